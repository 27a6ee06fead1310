# SPDX-License-Identifier: Apache-2.0
"""Files to weights and back: the only place that knows how others name LISA's weights.

Three layouts come in:

- the released one, LISAForCausalLM as merge_lora_weights_and_save_hf_model.py of
  dvlab-research/LISA writes it (`model.layers.*`, `model.mm_projector.*`, `lm_head.*`,
  `model.text_hidden_fcs.*`, `model.visual_model.*`), with CLIP in a folder or a hub repository of
  its own;
- segment-anything's .pth files, for SAM alone;
- our own: config.json, model.safetensors under the names of `LISA.state_dict()`, the tokenizer's
  files and CLIP's preprocessor_config.json, all in one folder; `save` writes it.

Weights come from safetensors, or from .bin and .pth files with torch.load(weights_only=True): no
code in them is ever run. They stream, tensor by tensor, into a model without storage, so that the
peak is about one copy in the wanted precision. Every size is read off the weights' shapes or off
config.json; none is assumed.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.images import ClipRecipe
from lisa_ros.model.lisa import LISA, LisaConfig, sam_config
from lisa_ros.model.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[int, ...]]

PRECISIONS = {
    'fp32': torch.float32,
    'bf16': torch.bfloat16,
    'fp16': torch.float16,
    'int8': torch.float16,  # of what is not quantised
    'nf4': torch.bfloat16,
}

# A few million weights that decide where a mask's edge runs: float32 whatever the rest is in.
# SAM's neck among them, because its sums overflow in fp16.
_FULL_PRECISION = (
    'text_hidden_fcs.',
    'sam.prompt_encoder.',
    'sam.mask_decoder.',
    'sam.vision_encoder.neck.',
)


@dataclass(frozen=True)
class Checkpoint:
    """All that a folder of weights gives."""

    model: LISA  # in eval mode, on the device asked for
    tokenizer: Tokenizer
    clip_recipe: ClipRecipe


# ---- old names to ours

_SAM_NAMES = [
    # vision encoder
    (r'^image_encoder\.', 'vision_encoder.'),
    (r'\.patch_embed\.proj\.', '.patch_embed.projection.'),
    (r'^(vision_encoder)\.blocks\.', r'\1.layers.'),
    (r'\.neck\.0\.', '.neck.conv1.'),
    (r'\.neck\.1\.', '.neck.layer_norm1.'),
    (r'\.neck\.2\.', '.neck.conv2.'),
    (r'\.neck\.3\.', '.neck.layer_norm2.'),
    # prompt encoder
    (
        r'\.pe_layer\.positional_encoding_gaussian_matrix$',
        '.shared_embedding.positional_embedding',
    ),
    (r'\.point_embeddings\.', '.point_embed.'),
    (r'\.mask_downscaling\.0\.', '.mask_embed.conv1.'),
    (r'\.mask_downscaling\.1\.', '.mask_embed.layer_norm1.'),
    (r'\.mask_downscaling\.3\.', '.mask_embed.conv2.'),
    (r'\.mask_downscaling\.4\.', '.mask_embed.layer_norm2.'),
    (r'\.mask_downscaling\.6\.', '.mask_embed.conv3.'),
    # mask decoder
    (r'\.norm_final_attn\.', '.layer_norm_final_attn.'),
    (r'\.norm(\d)\.', r'.layer_norm\1.'),
    (r'\.output_upscaling\.0\.', '.upscale_conv1.'),
    (r'\.output_upscaling\.1\.', '.upscale_layer_norm.'),
    (r'\.output_upscaling\.3\.', '.upscale_conv2.'),
]
_LISA_NAMES = [
    (r'^model\.text_hidden_fcs\.0\.', 'text_hidden_fcs.'),
    (r'^model\.mm_projector\.', 'mm_projector.'),
    (r'^model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?', 'clip.'),
    (r'^model\.(embed_tokens|layers|norm)\.', r'llm.model.\1.'),
    (r'^lm_head\.', 'llm.lm_head.'),
]
# Computed, not learnt; files of old libraries carry them along.
_COMPUTED = re.compile(r'rotary_emb\.inv_freq$|position_ids$|pixel_(mean|std)$')
# The words' half of a CLIP, which LISA has no use for.
_CLIP_WORDS = re.compile(r'^(text_model\.|text_projection|visual_projection|logit_scale)')

_CLIP_FIELDS = (
    *('hidden_size', 'intermediate_size', 'projection_dim', 'num_hidden_layers'),
    *('num_attention_heads', 'num_channels', 'image_size', 'patch_size'),
    *('hidden_act', 'layer_norm_eps'),
)


def map_sam_key(name: str) -> str | None:
    """Return transformers' name of a segment-anything weight; None if it is not learnt."""
    if _COMPUTED.search(name):
        return None
    for old, new in _SAM_NAMES:
        name = re.sub(old, new, name)
    # MLPs of three layers; transformers names the ends and counts what lies between
    head = re.match(r'(mask_decoder\.(?:output_\w+\.\d+|iou_\w+))\.layers\.(\d+)\.(\w+)$', name)
    if head:
        place = {'0': 'proj_in', '1': 'layers.0', '2': 'proj_out'}.get(
            head[2], f'layers.{head[2]}'
        )
        return f'{head[1]}.{place}.{head[3]}'
    return name


def map_key(name: str) -> str | None:
    """Return our name of a weight in the released layout; None if it is not learnt.

    Names that mean nothing in that layout come back as they are, and so turn up as unexpected.
    """
    if _COMPUTED.search(name):
        return None
    if name.startswith('model.visual_model.'):
        return 'sam.' + map_sam_key(name.removeprefix('model.visual_model.'))
    for old, new in _LISA_NAMES:
        name, found = re.subn(old, new, name)
        if found:
            break
    return name


def map_clip_key(name: str) -> str | None:
    """Return our name of a weight in a CLIP folder; None for CLIP's words and what is computed."""
    if _COMPUTED.search(name) or _CLIP_WORDS.match(name):
        return None
    return 'clip.' + name.removeprefix('vision_model.')


# ---- shapes and config.json to a LisaConfig


def infer_sam(shapes: Shapes) -> SamConfig:
    """Return the config of a SAM from its weights' shapes, under segment-anything's names.

    The mask decoder's heads leave no trace in the shapes; segment-anything builds all of its
    sizes with 8 (build_sam.py).

    Raises:
        CheckpointError: a weight that tells a size is missing.
    """
    try:
        _, grid, _, width = shapes['image_encoder.pos_embed']
        patch = shapes['image_encoder.patch_embed.proj.weight'][-1]
        block = 'image_encoder.blocks.{}.attn.rel_pos_h'.format
        depth = _count(shapes, r'image_encoder\.blocks\.(\d+)\.')
        # 2n - 1 relative positions along a side of n patches: of a window, or of the whole grid
        sides = [(shapes[block(index)][0] + 1) // 2 for index in range(depth)]
        windows = {side for side in sides if side != grid}
        mlp = shapes['image_encoder.blocks.0.mlp.lin1.weight'][0]
        decoder = 'mask_decoder.transformer.layers'
        return sam_config(
            image_size=grid * patch,
            width=width,
            depth=depth,
            heads=width // shapes[block(0)][1],
            global_layers=tuple(i for i, side in enumerate(sides) if side == grid),
            prompt_width=shapes['prompt_encoder.no_mask_embed.weight'][-1],
            patch_size=patch,
            window=windows.pop() if windows else grid,
            vision_mlp=mlp,
            vision_bias='image_encoder.blocks.0.attn.qkv.bias' in shapes,
            decoder_mlp=shapes[f'{decoder}.0.mlp.lin1.weight'][0],
            decoder_depth=_count(shapes, re.escape(decoder) + r'\.(\d+)\.'),
            iou_width=shapes['mask_decoder.iou_prediction_head.layers.0.weight'][0],
            iou_depth=_count(shapes, r'mask_decoder\.iou_prediction_head\.layers\.(\d+)\.'),
            multimask_outputs=shapes['mask_decoder.mask_tokens.weight'][0] - 1,
            mask_channels=shapes['prompt_encoder.mask_downscaling.3.weight'][0],
        )
    except KeyError as error:
        raise CheckpointError(
            f'the SAM in these weights lacks {error.args[0]}, which tells its size: the file is '
            "cut, or not in segment-anything's layout"
        ) from error


def _count(shapes: Shapes, pattern: str) -> int:
    """Return how many layers there are, by the highest index that `pattern` finds."""
    return 1 + max(
        (int(found[1]) for key in shapes if (found := re.match(pattern, key))), default=-1
    )


def infer_config(
    shapes: Shapes, config: Mapping, clip: CLIPVisionConfig, seg_token_id: int, template: str
) -> LisaConfig:
    """Return the LisaConfig of a released checkpoint.

    Args:
        shapes: of all weights, under the released names.
        config: the folder's config.json.
        clip: the vision tower's config.
        seg_token_id: from the tokenizer.
        template: the conversation template.

    Raises:
        CheckpointError: the config lacks a field, or a weight that tells a size is missing.
    """
    prefix = 'model.visual_model.'
    sam = infer_sam({k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)})
    try:
        vocabulary, width = shapes['model.embed_tokens.weight']
        pad, heads = config.get('pad_token_id'), config['num_attention_heads']
        scaling = dict(config.get('rope_scaling') or {})
        llama = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=shapes['model.layers.0.mlp.gate_proj.weight'][0],
            num_hidden_layers=_count(shapes, r'model\.layers\.(\d+)\.'),
            num_attention_heads=heads,
            num_key_value_heads=config.get('num_key_value_heads') or heads,
            head_dim=config.get('head_dim') or width // heads,
            hidden_act=config.get('hidden_act', 'silu'),
            max_position_embeddings=config.get('max_position_embeddings', 2048),
            rms_norm_eps=config['rms_norm_eps'],
            rope_parameters={
                'rope_theta': config.get('rope_theta', 10000.0),
                'rope_type': scaling.pop('type', scaling.pop('rope_type', 'default')),
                **scaling,
            },
            attention_bias='model.layers.0.self_attn.q_proj.bias' in shapes,
            tie_word_embeddings=bool(config.get('tie_word_embeddings')),
            pad_token_id=pad if pad is not None and 0 <= pad < vocabulary else None,
            bos_token_id=config.get('bos_token_id', 1),
            eos_token_id=config.get('eos_token_id', 2),
        )
        out_dim = shapes['model.text_hidden_fcs.0.2.weight'][0]
    except KeyError as error:
        raise CheckpointError(
            f'neither config.json nor the weights have {error.args[0]!r}: the checkpoint is '
            'incomplete, download it again'
        ) from error
    if config.get('mm_vision_select_feature', 'patch') != 'patch':
        raise CheckpointError(
            f'mm_vision_select_feature is {config["mm_vision_select_feature"]!r} in config.json; '
            'only "patch" is known, as in all released LISA'
        )
    return LisaConfig(
        clip=clip,
        llama=llama,
        sam=sam,
        seg_token_id=seg_token_id,
        mm_vision_select_layer=config.get('mm_vision_select_layer', -2),
        out_dim=out_dim,
        template=template,
    )


# ---- files to tensors


class _Files:
    """The weights of one folder (or file), which may lie in several files; read one at a time."""

    def __init__(self, paths: list[Path]):
        self._paths = paths

    @classmethod
    def of_folder(cls, folder: Path) -> _Files:
        """Return the weights of a folder; safetensors where there are both kinds.

        Raises:
            CheckpointError: there are none, or an index names a file that is not there.
        """
        for single in ('model.safetensors', 'pytorch_model.bin'):
            index = folder / f'{single}.index.json'
            if index.is_file():
                named = _read_json(index).get('weight_map', {})
                paths = [folder / Path(name).name for name in sorted(set(named.values()))]
                missing = [path.name for path in paths if not path.is_file()]
                if missing or not paths:
                    raise CheckpointError(
                        f'{index} names files that are not there: {", ".join(missing) or "none"}; '
                        'download the folder again'
                    )
                return cls(paths)
            if (folder / single).is_file():
                return cls([folder / single])
        raise CheckpointError(
            f'{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or in '
            f'shards with an index; found {_listing(folder)}'
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape without reading the weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _reading(path), safe_open(path, 'pt') as file:
                    shapes |= {k: tuple(file.get_slice(k).get_shape()) for k in _keys(file)}
            else:
                shapes |= {k: tuple(t.shape) for k, t in _unpickle(path, mapped=True).items()}
        return shapes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight, and let go of it: copy what is to be kept."""
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _reading(path), safe_open(path, 'pt') as file:
                    keys = _keys(file)
                for key in keys:  # opened for each: pages of an open file count as memory of ours
                    with _reading(path), safe_open(path, 'pt') as file:
                        tensor = file.get_tensor(key)
                    yield key, tensor
                    del tensor
            else:
                state = _unpickle(path)
                while state:
                    yield state.popitem()


class _reading:  # noqa: N801  a context manager, read as a verb
    """Turns the errors of a broken safetensors file into ours."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError):
            raise CheckpointError(
                f'{self._path}: no safetensors file that can be read ({error}); download it again'
            ) from error


def _keys(file: safe_open) -> list[str]:
    return file.keys()  # it is no dict, and cannot be iterated


def _unpickle(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a .bin or .pth file; code in it is refused.

    Mapped, nothing is read before it is used; but what was used counts as memory of ours until
    all of it is let go.
    """
    try:
        try:
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
        except RuntimeError:  # files older than torch 1.6 are no zip archives: no mapping
            state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: has more in it than weights, and was not read, for it could run code '
            f'({str(error).splitlines()[0]}); get a safetensors file, or one of plain tensors'
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f'{path}: not a file of weights that can be read ({error}); download it again'
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: holds {type(state).__name__}, not weights by name')
    return dict(state)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path}: no JSON that can be read ({error})') from error


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ', '.join(names[:12]) + (f' and {len(names) - 12} more' if len(names) > 12 else '') or (
        'an empty folder' if folder.is_dir() else 'no such folder'
    )


def _local(name: str | Path, what: str) -> Path:
    """Return the folder that `name` is, or the hub repository's files, downloaded."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f'{what} {name} is a file; expected a folder or a hub id')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)):
        raise CheckpointError(
            f'{what} {name}: there is no such folder, and it is no hub id such as '
            'xinlai/LISA-7B-v1 either'
        )
    from huggingface_hub import snapshot_download  # only here: the network is wanted

    texts = ['*.json', '*.model']
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'model*.safetensors']))
        if not list(folder.glob('*.safetensors')):
            folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'pytorch_model*']))
    except (OSError, ValueError) as error:  # the hub's errors are children of these
        raise CheckpointError(
            f'{what} {name}: no such folder, and the hub did not give it '
            f'({type(error).__name__}: {str(error).splitlines()[0]}); check the name and the '
            'network, or give a local folder'
        ) from error
    return folder


# ---- tensors into the model


def load(
    name: str | Path,
    *,
    vision_tower: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
) -> Checkpoint:
    """Load a LISA, in our layout or the released one.

    Args:
        name: a folder or a hub id.
        vision_tower: CLIP's folder or hub id; by default the one that config.json names.
        template: the conversation template; by default the one that the checkpoint tells.
        device: where the weights go.
        precision: fp32, bf16, fp16, or int8 or nf4, which quantise the language model's layers.

    Raises:
        CheckpointError: the folder is no LISA, or files, weights or sizes do not fit; the message
            names each of them.
        SettingsError: there is no such precision, or it cannot be had here.
    """
    check_precision(precision, device)
    folder = _local(name, 'model')
    if not (folder / 'config.json').is_file():
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found {_listing(folder)}'
        )
    plain = _read_json(folder / 'config.json')
    if plain.get('model_type') == 'lisa_ros':
        return _load_own(folder, plain, template, device, precision)
    return _load_released(folder, plain, vision_tower, template, device, precision)


def _load_own(
    folder: Path, plain: dict, template: str | None, device: str | torch.device, precision: str
) -> Checkpoint:
    try:
        config = LisaConfig.from_dict({**plain, **({'template': template} if template else {})})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{folder / "config.json"}: not what lisa_ros writes ({error!r}); it may be of '
            'another version'
        ) from error
    tokenizer = Tokenizer.load(folder)
    recipe = ClipRecipe.from_dict(_read_json(folder / 'preprocessor_config.json'))
    model = _fill(config, [(_Files.of_folder(folder), lambda key: key)], device, precision, folder)
    _check_agreement(config, tokenizer, recipe, folder)
    return Checkpoint(model, tokenizer, recipe)


def _load_released(
    folder: Path,
    plain: dict,
    vision_tower: str | Path | None,
    template: str | None,
    device: str | torch.device,
    precision: str,
) -> Checkpoint:
    files = _Files.of_folder(folder)
    shapes = files.shapes()
    signs = ('model.text_hidden_fcs.', 'model.visual_model.', 'model.mm_projector.')
    absent = [sign for sign in signs if not any(key.startswith(sign) for key in shapes)]
    if absent:
        kind = ', '.join(plain.get('architectures') or [plain.get('model_type', 'unknown')])
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it is a {kind} with {len(shapes)} weights, none '
            f'of them named {"*, ".join(absent)}*; expected LISAForCausalLM with its LoRA merged, '
            'as xinlai/LISA-7B-v1'
        )
    tokenizer = Tokenizer.load(folder)

    tower = vision_tower or plain.get('mm_vision_tower') or plain.get('vision_tower')
    if not tower:
        raise CheckpointError(f'{folder}/config.json names no vision tower: give one by hand')
    tower = _local(tower, 'vision tower')
    clip_files, clip_plain = _Files.of_folder(tower), _read_json(tower / 'config.json')
    clip = _clip_config(clip_plain, tower)
    recipe_file = tower / 'preprocessor_config.json'
    recipe = (
        ClipRecipe.from_dict(_read_json(recipe_file))
        if recipe_file.is_file()
        else ClipRecipe.of_size(clip.image_size)
    )
    config = infer_config(
        shapes, plain, clip, tokenizer.seg_token_id, template or _guess_template(plain)
    )
    # a merged folder may carry its tower along; the one asked for wins
    sources = [(files, _without_clip), (clip_files, map_clip_key)]
    model = _fill(config, sources, device, precision, folder)
    _check_agreement(config, tokenizer, recipe, folder)
    return Checkpoint(model, tokenizer, recipe)


def _without_clip(key: str) -> str | None:
    ours = map_key(key)
    return None if ours is None or ours.startswith('clip.') else ours


def _clip_config(plain: dict, tower: Path) -> CLIPVisionConfig:
    """Return the config of the tower, from CLIP's vision half alone or from a whole CLIP's."""
    plain = plain.get('vision_config') or plain
    if 'patch_size' not in plain and 'clip' not in str(plain.get('model_type')):
        raise CheckpointError(
            f'{tower} is not a CLIP: its config.json says {plain.get("model_type", "nothing")}'
        )
    return CLIPVisionConfig(**{key: plain[key] for key in _CLIP_FIELDS if key in plain})


def _guess_template(plain: dict) -> str:
    """Return the template by the name of what LISA was trained from; chat.py has no better way."""
    base = str(plain.get('_name_or_path', '')).lower().replace('_', '-')
    return 'llava_llama_2' if 'llama-2' in base else 'llava_v1'


def _check_agreement(
    config: LisaConfig, tokenizer: Tokenizer, recipe: ClipRecipe, folder: Path
) -> None:
    """Refuse parts that were not made for each other, before they give nonsense."""
    size = config.clip.image_size
    if recipe.output != (size, size):
        raise CheckpointError(
            f'{folder}: CLIP wants pictures of {size} x {size} pixels, but its '
            f'preprocessor_config.json makes {recipe.output or "another size for each shape"}'
        )
    if config.seg_token_id != tokenizer.seg_token_id:
        raise CheckpointError(
            f'{folder}: config.json says that [SEG] is {config.seg_token_id}, the tokenizer that '
            f'it is {tokenizer.seg_token_id}: files of two checkpoints are mixed'
        )
    if len(tokenizer) > config.llama.vocab_size:
        raise CheckpointError(
            f'{folder}: the tokenizer has {len(tokenizer)} tokens, the model only '
            f'{config.llama.vocab_size}: files of two checkpoints are mixed'
        )
    if config.out_dim != config.sam.prompt_encoder_config.hidden_size:
        raise CheckpointError(
            f'{folder}: [SEG] is projected to {config.out_dim} numbers, SAM takes '
            f'{config.sam.prompt_encoder_config.hidden_size}'
        )


def check_keys(
    model: nn.Module, shapes: Shapes, where: str | Path, tied: Iterable[str] = ()
) -> None:
    """Compare the weights that a model needs with those that there are, under our names.

    Raises:
        CheckpointError: naming every missing weight, every unexpected one and every other shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(set(wanted) - set(shapes) - set(tied))
    unexpected = sorted(set(shapes) - set(wanted))
    other = [
        f'{name} {shapes[name]} instead of {wanted[name]}'
        for name in sorted(set(wanted) & set(shapes))
        if shapes[name] != wanted[name]
    ]
    groups = {'missing': missing, 'unexpected': unexpected, 'of another shape': other}
    found = [f'{len(names)} {what}: {", ".join(names)}' for what, names in groups.items() if names]
    if found:
        raise CheckpointError(f'{where}: the weights do not fit. ' + '; '.join(found))


def _fill(
    config: LisaConfig,
    sources: list[tuple[_Files, Callable[[str], str | None]]],
    device: str | torch.device,
    precision: str,
    where: Path,
) -> LISA:
    """Return the model with the weights of all sources, cast one by one as they are read."""
    with torch.device('meta'):
        model = LISA(config)
    shapes = {
        ours: shape
        for files, to_ours in sources
        for key, shape in files.shapes().items()
        if (ours := to_ours(key)) is not None
    }
    tied = ['llm.lm_head.weight'] if config.llama.tie_word_embeddings else []
    check_keys(model, shapes, where, tied)
    for files, to_ours in sources:
        for key, tensor in files.tensors():
            ours = to_ours(key)
            if ours is not None:
                _put(model, ours, tensor, device, precision)
    if config.llama.tie_word_embeddings:
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    # what is computed, not learnt
    with torch.device(device):
        model.llm.model.rotary_emb = LlamaRotaryEmbedding(model.llm.config)
        positions = model.clip.embeddings.num_positions
        model.clip.embeddings.position_ids = torch.arange(positions)[None]
    return model.eval()


def _put(
    model: LISA, name: str, tensor: Tensor, device: str | torch.device, precision: str
) -> None:
    """Set one weight of the model, in the precision for its place."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in ('int8', 'nf4') and _is_quantised(name, module):
        parent, _, child = path.rpartition('.')
        linear = _quantised(module, tensor, device, precision)
        setattr(model.get_submodule(parent), child, linear)
        return
    full = name.startswith(_FULL_PRECISION)
    dtype = torch.float32 if full else PRECISIONS[precision]
    learns = getattr(module, leaf).requires_grad
    # a copy in any case: the file may be mapped, and may change under us
    weight = tensor.to(device=device, dtype=dtype, copy=True)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=learns))


# ---- fewer bits


def check_precision(precision: str, device: str | torch.device) -> None:
    """Refuse a precision that there is not, or not here.

    Raises:
        SettingsError: with what would be needed.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f'no precision {precision!r}: it is one of {", ".join(PRECISIONS)}')
    if precision not in ('int8', 'nf4'):
        return
    if torch.device(device).type != 'cuda':
        raise SettingsError(
            f'{precision} needs a CUDA GPU, and the device is {device}: take fp32 or bf16 here'
        )
    try:
        import bitsandbytes  # noqa: F401  is it there?
    except ImportError as error:
        raise SettingsError(
            f'{precision} needs the package bitsandbytes: pip install bitsandbytes, or take bf16'
        ) from error


def _is_quantised(name: str, module: nn.Module) -> bool:
    """Only the language model's layers; the original, too, spares all that touches pictures."""
    is_linear = isinstance(module, nn.Linear) and name.endswith('.weight')
    return is_linear and module.bias is None and name.startswith('llm.model.layers.')


def _quantised(
    linear: nn.Linear, tensor: Tensor, device: str | torch.device, precision: str
) -> nn.Module:
    import bitsandbytes as bnb

    size = (linear.in_features, linear.out_features)
    half = tensor.to(torch.float16 if precision == 'int8' else torch.bfloat16)
    with torch.device('meta'):
        if precision == 'int8':
            layer = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = bnb.nn.Linear4bit(
                *size, bias=False, compute_dtype=torch.bfloat16, quant_type='nf4'
            )
    if precision == 'int8':
        layer.weight = bnb.nn.Int8Params(half, requires_grad=False, has_fp16_weights=False)
    else:
        layer.weight = bnb.nn.Params4bit(
            half, requires_grad=False, quant_type='nf4', compress_statistics=True
        )
    return layer.to(device)  # the move is what quantises


# ---- SAM alone


def load_sam_pth(path: str | Path) -> tuple[SamConfig, dict[str, Tensor]]:
    """Read a segment-anything .pth file, such as sam_vit_h_4b8939.pth.

    Returns:
        The config, inferred, and the weights under the names of `lisa.Sam`, for its
        load_state_dict.

    Raises:
        CheckpointError: the file is not one of SAM's, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such file; expected a SAM .pth')
    state = _unpickle(path)
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    named = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in named.items() if key is not None}


# ---- our own layout, written


def save(
    model: LISA,
    tokenizer: Tokenizer,
    recipe: ClipRecipe,
    folder: str | Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the model in our own layout, whole, for `load`.

    Args:
        model: with weights that are not quantised.
        tokenizer: the one that it was trained with.
        recipe: CLIP's.
        folder: made if it is not there; files of the same names are replaced.
        dtype: of the weights in the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    if model.config.llama.tie_word_embeddings:
        del state['llm.lm_head.weight']  # the same storage as the embedding; `load` ties again
    # frequencies multiply coordinates before a sine: half precision would blur the positions
    kept = 'sam.prompt_encoder.shared_embedding.positional_embedding'
    state = {
        key: tensor.to(torch.float32 if key == kept else dtype).contiguous()
        for key, tensor in state.items()
    }
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
    texts = {'config.json': model.config.to_dict(), 'preprocessor_config.json': recipe.to_dict()}
    for name, plain in texts.items():
        (folder / name).write_text(json.dumps(plain, indent=2) + '\n', encoding='utf-8')
    tokenizer.save(folder)
