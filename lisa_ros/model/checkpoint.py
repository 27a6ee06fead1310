# SPDX-License-Identifier: Apache-2.0
"""Files to weights and back: the only place that knows how others name LISA's weights.

Four layouts come in:

- the released one, LISAForCausalLM as merge_lora_weights_and_save_hf_model.py of
  dvlab-research/LISA writes it (`model.layers.*`, `model.mm_projector.*`, `lm_head.*`,
  `model.text_hidden_fcs.*`, `model.visual_model.*`), with CLIP in a folder or a hub repository of
  its own;
- LLaVA's, which is the released one without LISA's own parts: a LISA begins with it and a SAM
  (`load_llava`);
- segment-anything's .pth files, for SAM alone (`load_sam_pth`), or for what a released LISA lacks
  of its SAM (`load`'s `sam`);
- our own: config.json, model.safetensors under the names of `LISA.state_dict()`, the tokenizer's
  files and CLIP's preprocessor_config.json, all in one folder.

`save` writes our own layout, `save_original` the released one.

Weights come from safetensors, or from .bin and .pth files with torch.load(weights_only=True): no
code in them is ever run. They stream, tensor by tensor, into a model without storage, so that the
peak is about one copy in the wanted precision. Every size is read off the weights' shapes or off
config.json; none is assumed.
"""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.images import ClipRecipe
from lisa_ros.model.lisa import LISA, LisaConfig, sam_config
from lisa_ros.model.tokenizer import SEG, Tokenizer

Shapes = Mapping[str, tuple[int, ...]]
_Source = tuple['_Weights', Callable[[str], str | None]]  # weights, and their names to ours

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

_SAM_NAMES = [  # read from left to right and back: no right side may stand within another one's
    # vision encoder
    ('image_encoder.blocks.', 'vision_encoder.layers.'),
    ('image_encoder.', 'vision_encoder.'),
    ('.patch_embed.proj.', '.patch_embed.projection.'),
    ('.neck.0.', '.neck.conv1.'),
    ('.neck.1.', '.neck.layer_norm1.'),
    ('.neck.2.', '.neck.conv2.'),
    ('.neck.3.', '.neck.layer_norm2.'),
    # prompt encoder
    ('.pe_layer.positional_encoding_gaussian_matrix', '.shared_embedding.positional_embedding'),
    ('.point_embeddings.', '.point_embed.'),
    ('.mask_downscaling.0.', '.mask_embed.conv1.'),
    ('.mask_downscaling.1.', '.mask_embed.layer_norm1.'),
    ('.mask_downscaling.3.', '.mask_embed.conv2.'),
    ('.mask_downscaling.4.', '.mask_embed.layer_norm2.'),
    ('.mask_downscaling.6.', '.mask_embed.conv3.'),
    # mask decoder
    ('.norm_final_attn.', '.layer_norm_final_attn.'),
    *((f'.norm{number}.', f'.layer_norm{number}.') for number in range(1, 5)),
    ('.output_upscaling.0.', '.upscale_conv1.'),
    ('.output_upscaling.1.', '.upscale_layer_norm.'),
    ('.output_upscaling.3.', '.upscale_conv2.'),
]
# The mask decoder's heads: MLPs of three layers in every SAM (build_sam.py, mask_decoder.py).
_SAM_HEAD = r'^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.'
_SAM_HEAD_LAYERS = {'layers.0.': 'proj_in.', 'layers.1.': 'layers.0.', 'layers.2.': 'proj_out.'}
_LISA_NAMES = [
    (r'^model\.text_hidden_fcs\.0\.', 'text_hidden_fcs.'),
    (r'^model\.mm_projector\.', 'mm_projector.'),
    (r'^model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?', 'clip.'),
    (r'^model\.(embed_tokens|layers|norm)\.', r'llm.model.\1.'),
    (r'^lm_head\.', 'llm.lm_head.'),
]
_LISA_PREFIXES = {  # ours -> theirs; CLIP's as its own folder has them
    'text_hidden_fcs.': 'model.text_hidden_fcs.0.',
    'mm_projector.': 'model.mm_projector.',
    'clip.': 'vision_model.',
    'llm.model.': 'model.',
    'llm.lm_head.': 'lm_head.',
}
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
        name = name.replace(old, new)
    return _renamed_head(name, _SAM_HEAD_LAYERS)


def unmap_sam_key(name: str) -> str:
    """Return segment-anything's name of a weight: `map_sam_key`'s inverse."""
    for old, new in _SAM_NAMES:
        name = name.replace(new, old)
    return _renamed_head(name, {new: old for old, new in _SAM_HEAD_LAYERS.items()})


def _renamed_head(name: str, layers: Mapping[str, str]) -> str:
    """Return the name with its layer renamed if it is in one of the mask decoder's heads."""
    head = re.match(_SAM_HEAD, name)
    if head:
        for old, new in layers.items():
            if name.startswith(old, head.end()):
                return head[0] + new + name[head.end() + len(old) :]
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


def unmap_key(name: str) -> str:
    """Return the released name of one of our weights, for people to find it in their files."""
    if name.startswith('sam.'):
        return 'model.visual_model.' + unmap_sam_key(name.removeprefix('sam.'))
    for ours, theirs in _LISA_PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def map_clip_key(name: str) -> str | None:
    """Return our name of a weight in a CLIP folder; None for CLIP's words and what is computed."""
    if _COMPUTED.search(name) or _CLIP_WORDS.match(name):
        return None
    return 'clip.' + name.removeprefix('vision_model.')


# ---- shapes and config.json to a LisaConfig


def infer_sam(shapes: Shapes) -> SamConfig:
    """Return the config of a SAM from its weights' shapes, under segment-anything's names.

    How many attention heads the mask decoder has leaves no trace in the shapes; segment-anything
    builds all of its sizes with 8 (build_sam.py).

    Raises:
        CheckpointError: a weight that tells a size is missing, or has no shape of a SAM's.
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
            multimask_outputs=shapes['mask_decoder.mask_tokens.weight'][0] - 1,
            mask_channels=shapes['prompt_encoder.mask_downscaling.3.weight'][0],
        )
    except KeyError as error:
        raise CheckpointError(
            f'the SAM in these weights lacks {error.args[0]}, which tells its size: the file is '
            "cut, or not in segment-anything's layout"
        ) from error
    except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f'the SAM in these weights has sizes that no SAM has ({error}): the file is damaged, '
            "or not in segment-anything's layout"
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
        CheckpointError: the config lacks a field or has one that is no size, or a weight that
            tells a size is missing or has another rank.
    """
    prefix = 'model.visual_model.'
    sam = infer_sam({k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)})
    try:
        vocabulary, width = shapes['model.embed_tokens.weight']
        pad, heads = config.get('pad_token_id'), config['num_attention_heads']
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise CheckpointError(
                f'num_attention_heads is {heads!r} in config.json; expected a number that divides '
                f"the language model's width, {width}"
            )
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
    except (IndexError, ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            f'config.json and the weights make no language model ({_line(error)}): one of them '
            'is damaged, or of another model'
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


class _Weights(Protocol):
    """Weights by name, wherever they come from."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight."""


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
                named = _read_json(index).get('weight_map')
                files = set(named.values()) if isinstance(named, dict) else ()
                paths = [folder / Path(str(name)).name for name in sorted(files, key=str)]
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
        with path.open('rb') as file:
            start = file.read(2)
        if not start.startswith((b'PK', b'\x80')):  # a zip archive; a bare pickle of old
            raise CheckpointError(
                f'{path}: no weights (a git-lfs pointer? a web page, saved?): it begins with '
                f'{start!r}; download it again'
            )
        try:
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
        except RuntimeError:  # files older than torch 1.6 are no zip archives: no mapping
            state = torch.load(path, map_location='cpu', weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: has more in it than weights, and was not read, for it could run code '
            f'({_line(error)}); get a safetensors file, or one of plain tensors'
        ) from error
    except Exception as error:  # at broken bytes torch and its unpickler raise all sorts of things
        raise CheckpointError(
            f'{path}: not a file of weights that can be read ({_line(error)}); download it again'
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: holds {type(state).__name__}, not weights by name')
    return dict(state)


def _read_json(path: Path) -> dict:
    try:
        plain = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path}: no JSON that can be read ({error})') from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f'{path}: holds a {type(plain).__name__}; expected an object, {{"name": value}}'
        )
    return plain


def _line(error: BaseException) -> str:
    """Return what an error says, on one line; the libraries' own may have many, or none."""
    said = ' '.join(str(error).split())
    return f'{type(error).__name__}: {said}' if said else type(error).__name__


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
    except Exception as error:  # httpx's, xet's and some of the hub's have no other parent
        first = (str(error).splitlines() or [''])[0]
        raise CheckpointError(
            f'{what} {name}: no such folder, and the hub did not give it '
            f'({type(error).__name__}: {first}); check the name and the network, or give a local '
            'folder'
        ) from error
    return folder


# ---- tensors into the model


def load(
    name: str | Path,
    *,
    vision_tower: str | Path | None = None,
    sam: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
) -> Checkpoint:
    """Load a LISA, in our layout or the released one.

    Args:
        name: a folder or a hub id.
        vision_tower: CLIP's folder or hub id; by default the one that config.json names.
        sam: a .pth file of segment-anything, for what a released checkpoint lacks of its SAM; what
            the checkpoint has itself wins, for LISA trains the mask decoder.
        template: the conversation template; by default the one that the checkpoint tells.
        device: where the weights go.
        precision: fp32, bf16, fp16, or int8 or nf4, which quantise the language model's layers.

    Raises:
        CheckpointError: the folder is no LISA, or files, weights or sizes do not fit; the message
            names each of them.
        SettingsError: there is no such precision, or it cannot be had here; or a SAM is given to
            a checkpoint of our own layout, which is whole.
    """
    check_precision(precision, device)
    folder = _local(name, 'model')
    if not (folder / 'config.json').is_file():
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found {_listing(folder)}'
        )
    plain = _read_json(folder / 'config.json')
    if plain.get('model_type') == 'lisa_ros':
        if sam is not None:
            raise SettingsError(f'{folder} has a SAM of its own: leave sam={str(sam)!r} out')
        return _load_own(folder, plain, template, device, precision)
    return _load_released(folder, plain, vision_tower, sam, template, device, precision)


def _load_own(
    folder: Path, plain: dict, template: str | None, device: str | torch.device, precision: str
) -> Checkpoint:
    try:
        config = LisaConfig.from_dict({**plain, **({'template': template} if template else {})})
    except (KeyError, TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(
            f'{folder / "config.json"}: not what lisa_ros writes ({_line(error)}); it may be of '
            'another version'
        ) from error
    tokenizer = Tokenizer.load(folder)
    recipe = ClipRecipe.from_dict(_read_json(folder / 'preprocessor_config.json'))
    sources = [(_Files.of_folder(folder), lambda key: key)]
    model = _fill(config, sources, device, precision, folder, str)
    _check_agreement(config, tokenizer, recipe, folder)
    return Checkpoint(model, tokenizer, recipe)


def _load_released(
    folder: Path,
    plain: dict,
    vision_tower: str | Path | None,
    sam: str | Path | None,
    template: str | None,
    device: str | torch.device,
    precision: str,
) -> Checkpoint:
    files = _Files.of_folder(folder)
    shapes = files.shapes()
    sam_files, own = None, frozenset(shapes)
    if sam is not None:
        sam_files = _Files([_sam_file(sam)])
        shapes = {f'model.visual_model.{k}': v for k, v in sam_files.shapes().items()} | shapes
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
    # a merged folder may carry its tower along; the one asked for wins
    sources: list[_Source] = [(files, _without_clip)]
    if sam_files is not None:
        sources.append((sam_files, lambda key: _of_sam(key, own)))
    return _assembled(
        folder, plain, shapes, sources, tokenizer, vision_tower, template, device, precision
    )


def _assembled(
    folder: Path,
    plain: dict,
    shapes: Shapes,
    sources: list[_Source],
    tokenizer: Tokenizer,
    vision_tower: str | Path | None,
    template: str | None,
    device: str | torch.device,
    precision: str,
) -> Checkpoint:
    """Return a LISA of weights under released names, and of the CLIP that belongs to them."""
    _check_marks(plain, tokenizer, folder)
    tower = vision_tower or plain.get('mm_vision_tower') or plain.get('vision_tower')
    if not isinstance(tower, str | Path) or not tower:
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
    sources = [*sources, (clip_files, map_clip_key)]
    model = _fill(config, sources, device, precision, folder, unmap_key)
    _check_agreement(config, tokenizer, recipe, folder)
    return Checkpoint(model, tokenizer, recipe)


def _without_clip(key: str) -> str | None:
    ours = map_key(key)
    return None if ours is None or ours.startswith('clip.') else ours


def _of_sam(key: str, own: frozenset[str]) -> str | None:
    """Return our name of a weight in SAM's own file; None if the LISA's files have it."""
    key = f'model.visual_model.{key}'
    return None if key in own else map_key(key)


def _clip_config(plain: dict, tower: Path) -> CLIPVisionConfig:
    """Return the config of the tower, from CLIP's vision half alone or from a whole CLIP's."""
    half = plain.get('vision_config')
    plain = half if isinstance(half, dict) and half else plain
    if 'patch_size' not in plain and 'clip' not in str(plain.get('model_type')):
        raise CheckpointError(
            f'{tower} is not a CLIP: its config.json says {plain.get("model_type", "nothing")}'
        )
    try:
        return CLIPVisionConfig(**{key: plain[key] for key in _CLIP_FIELDS if key in plain})
    except (TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(
            f'{tower}: its config.json is not that of a CLIP ({_line(error)})'
        ) from error


def _guess_template(plain: dict) -> str:
    """Return the template that `save_original` noted, or that of what LISA was trained from.

    chat.py has no better way than to be told.
    """
    if isinstance(plain.get('conv_type'), str):
        return plain['conv_type']
    base = str(plain.get('_name_or_path', '')).lower().replace('_', '-')
    return 'llava_llama_2' if 'llama-2' in base else 'llava_v1'


def _check_sizes(config: LisaConfig, where: Path) -> None:
    """Refuse sizes that make a model whose weights fit, and which fails at the first picture."""
    llama, clip = config.llama, config.clip
    heads, shared = llama.num_attention_heads, llama.num_key_value_heads
    layers, chosen = clip.num_hidden_layers, config.mm_vision_select_layer
    wrong = None
    if shared < 1 or heads % shared:
        wrong = f'num_key_value_heads is {shared}; it must divide num_attention_heads, {heads}'
    elif llama.head_dim < 2 or llama.head_dim % 2:
        wrong = f'head_dim is {llama.head_dim}; it must be even, for positions turn pairs'
    elif type(chosen) is not int or not -layers - 1 <= chosen <= layers:
        wrong = (
            f'mm_vision_select_layer is {chosen!r}; this CLIP has {layers} layers: '
            f'expected {-layers - 1} to {layers}'
        )
    elif llama.max_position_embeddings <= config.image_tokens:
        wrong = (
            f'max_position_embeddings is {llama.max_position_embeddings}; a picture alone takes '
            f'{config.image_tokens} places'
        )
    if wrong:
        raise CheckpointError(f'{where}/config.json: {wrong}')


def _check_marks(plain: Mapping, tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer that lost the picture's marks: prompts without them mean nothing here.

    The model may have more words than the tokenizer (libraries round their number up), so that
    the sizes alone do not tell.
    """
    lost = [mark for mark in ('<im_start>', '<im_end>') if mark not in tokenizer]
    if plain.get('mm_use_im_start_end') and lost:
        raise CheckpointError(
            f'{folder}: the model was trained with <im_start> and <im_end>, and the tokenizer '
            f'lacks {" and ".join(lost)}: added_tokens.json is cut, or of another checkpoint'
        )


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
    model: nn.Module,
    shapes: Shapes,
    where: str | Path,
    tied: Iterable[str] = (),
    named: Callable[[str], str] = str,
) -> None:
    """Compare the weights that a model needs with those that there are, under our names.

    Args:
        model: what the weights are for.
        shapes: of the weights that there are.
        where: they are, for the message.
        tied: weights that need not be there.
        named: from our names to those in the user's files, for the message.

    Raises:
        CheckpointError: naming every missing weight, every unexpected one and every other shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(map(named, set(wanted) - set(shapes) - set(tied)))
    unexpected = sorted(map(named, set(shapes) - set(wanted)))
    other = [
        f'{named(name)} {shapes[name]} instead of {wanted[name]}'
        for name in sorted(set(wanted) & set(shapes))
        if shapes[name] != wanted[name]
    ]
    groups = {'missing': missing, 'unexpected': unexpected, 'of another shape': other}
    found = [f'{len(names)} {what}: {", ".join(names)}' for what, names in groups.items() if names]
    if found:
        raise CheckpointError(f'{where}: the weights do not fit. ' + '; '.join(found))


def _fill(
    config: LisaConfig,
    sources: list[_Source],
    device: str | torch.device,
    precision: str,
    where: Path,
    named: Callable[[str], str],
) -> LISA:
    """Return the model with the weights of all sources, cast one by one as they are read."""
    try:
        _check_sizes(config, where)
        with torch.device('meta'):
            model = LISA(config)
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise all sorts of things at sizes they refuse
        raise CheckpointError(
            f'{where}/config.json describes no model that can be built ({_line(error)})'
        ) from error
    shapes = {
        ours: shape
        for files, to_ours in sources
        for key, shape in files.shapes().items()
        if (ours := to_ours(key)) is not None
    }
    tied = ['llm.lm_head.weight'] if config.llama.tie_word_embeddings else []
    check_keys(model, shapes, where, tied, named)
    for files, to_ours in sources:
        for key, tensor in files.tensors():
            ours = to_ours(key)
            if ours is not None:
                _put(model, ours, tensor, device, precision)
    return _completed(model, device)


def _completed(model: LISA, device: str | torch.device) -> LISA:
    """Return the model, its weights there, with what is tied to them and what is computed."""
    if model.config.llama.tie_word_embeddings:
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    with torch.device(device):
        model.llm.model.rotary_emb = LlamaRotaryEmbedding(model.llm.config)
        positions = model.clip.embeddings.num_positions
        model.clip.embeddings.position_ids = torch.arange(positions)[None]
    return model.eval()


def assemble(config: LisaConfig, state: Mapping[str, Tensor]) -> LISA:
    """Return a LISA, in eval mode, that shares the tensors of `state`: nothing is copied.

    Raises:
        CheckpointError: they are not those of the config; the message names each.
    """
    with torch.device('meta'):
        model = LISA(config)
    tied = ['llm.lm_head.weight'] if config.llama.tie_word_embeddings else []
    check_keys(model, {name: tuple(t.shape) for name, t in state.items()}, 'in memory', tied)
    for name, tensor in state.items():
        path, _, leaf = name.rpartition('.')
        module = model.get_submodule(path)
        learns = getattr(module, leaf).requires_grad
        setattr(module, leaf, nn.Parameter(tensor.detach(), requires_grad=learns))
    return _completed(model, next(iter(state.values())).device)


def kept_dtype(name: str, precision: str) -> torch.dtype:
    """Return the type in which a weight of ours is kept, unless it is quantised."""
    return torch.float32 if name.startswith(_FULL_PRECISION) else PRECISIONS[precision]


def _put(
    model: LISA, name: str, tensor: Tensor, device: str | torch.device, precision: str
) -> None:
    """Set one weight of the model, in the precision for its place."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in ('int8', 'nf4') and is_quantised(name, module):
        parent, _, child = path.rpartition('.')
        linear = _quantised(module, tensor, device, precision)
        setattr(model.get_submodule(parent), child, linear)
        return
    learns = getattr(module, leaf).requires_grad
    # a copy in any case: the file may be mapped, and may change under us
    weight = tensor.to(device=device, dtype=kept_dtype(name, precision), copy=True)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=learns))


# ---- a LISA that begins: LLaVA, a SAM, and a way from words to masks that is still to be learnt

_MARKS = (SEG, '<im_start>', '<im_end>')  # in the order in which the original adds them


class _Memory:
    """Weights that are there already."""

    def __init__(self, state: dict[str, Tensor]):
        self._state = state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight."""
        yield from self._state.items()


class _Grown:
    """Weights whose words are more than they were: new ones begin as the mean of the old."""

    def __init__(self, files: _Files, words: int):
        self._files, self._words = files, words

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape, with all words."""
        return {
            name: (max(self._words, shape[0]), *shape[1:]) if name in _PER_WORD else shape
            for name, shape in self._files.shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight, with all words."""
        for name, tensor in self._files.tensors():
            more = self._words - len(tensor) if name in _PER_WORD else 0
            if more > 0:
                mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
                yield name, torch.cat([tensor, mean.expand(more, -1)])
            else:
                yield name, tensor


_PER_WORD = ('model.embed_tokens.weight', 'lm_head.weight')


def load_llava(
    name: str | Path,
    *,
    sam: str | Path,
    vision_tower: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
    seed: int = 0,
) -> Checkpoint:
    """Begin a LISA with a LLaVA and a SAM, as the original's train_ds.py does.

    [SEG], <im_start> and <im_end> become words where the tokenizer lacks them, each beginning as
    the mean of all others; text_hidden_fcs is random. It finds nothing before it is trained.

    Args:
        name: LLaVA's folder or hub id, with a linear mm_projector.
        sam: a .pth file of segment-anything.
        vision_tower: CLIP's folder or hub id; by default the one that config.json names.
        template: the conversation template; by default the one of that LLaVA.
        device: where the weights go.
        precision: as `load`'s.
        seed: of text_hidden_fcs.

    Raises:
        CheckpointError: a folder or file is not what it should be; the message names it.
        SettingsError: there is no such precision, or it cannot be had here.
    """
    check_precision(precision, device)
    folder = _local(name, 'model')
    plain = _read_json(folder / 'config.json')
    files, sam_files = _Files.of_folder(folder), _Files([_sam_file(sam)])
    shapes = files.shapes()
    if any(key.startswith('model.text_hidden_fcs.') for key in shapes):
        raise CheckpointError(f'{folder} is a LISA already: give it as the model, not as a LLaVA')
    if 'model.mm_projector.weight' not in shapes:
        raise CheckpointError(
            f'{folder} is not a LLaVA with a linear projector: it has no '
            'model.mm_projector.weight; expected one of version 1, as '
            'liuhaotian/llava-llama-2-13b-chat-lightning-preview'
        )
    tokenizer = _with_marks(Tokenizer.load(folder))
    grown = _Grown(files, len(tokenizer))
    sam_shapes = sam_files.shapes()
    width = shapes['model.mm_projector.weight'][0]
    if 'prompt_encoder.no_mask_embed.weight' not in sam_shapes:
        raise CheckpointError(f"{sam}: no SAM in segment-anything's layout")
    out = sam_shapes['prompt_encoder.no_mask_embed.weight'][-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
    fresh = _Memory({f'model.text_hidden_fcs.0.{k}': t for k, t in head.state_dict().items()})
    prefixed = {f'model.visual_model.{key}': shape for key, shape in sam_shapes.items()}
    shapes = {**grown.shapes(), **prefixed, **fresh.shapes()}
    sources: list[_Source] = [
        (grown, _without_clip),
        (fresh, map_key),
        (sam_files, lambda key: _of_sam(key, frozenset())),
    ]
    return _assembled(
        folder, plain, shapes, sources, tokenizer, vision_tower, template, device, precision
    )


def _with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with LISA's own tokens after all others, if it has them not yet."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        path = Path(folder) / 'added_tokens.json'
        added, next_id = _read_json(path), len(tokenizer)
        for mark in _MARKS:
            if mark not in added:
                added[mark], next_id = next_id, next_id + 1
        path.write_text(json.dumps(added), encoding='utf-8')
        return Tokenizer.load(folder)


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


def is_quantised(name: str, module: nn.Module) -> bool:
    """Return whether int8 and nf4 quantise a weight, of this module.

    Only the language model's layers; the original, too, spares all that touches pictures.
    """
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
    state = _unpickle(_sam_file(path))
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    named = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in named.items() if key is not None}


def _sam_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such file; expected a SAM .pth')
    return path


# ---- our own layout, written


def save(
    model: LISA,
    tokenizer: Tokenizer,
    recipe: ClipRecipe,
    folder: str | Path,
    dtype: torch.dtype | None = torch.float16,
    bits: int | None = None,
) -> None:
    """Write the model in our own layout, whole, for `load`.

    Args:
        model: with weights that are not quantised.
        tokenizer: the one that it was trained with.
        recipe: CLIP's.
        folder: made if it is not there; files of the same names are replaced.
        dtype: of the weights in the file; None: of each as it is.
        bits: matrices are rounded to so many bits a weight; the file's size stays, but archives
            and git pack it the better: at 8 bits to six tenths of what they do otherwise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    if model.config.llama.tie_word_embeddings:
        del state['llm.lm_head.weight']  # the same storage as the embedding; `load` ties again
    # frequencies multiply coordinates before a sine: half precision would blur the positions
    kept = 'sam.prompt_encoder.shared_embedding.positional_embedding'
    state = {
        key: tensor.to(torch.float32 if key == kept else dtype or tensor.dtype).contiguous()
        for key, tensor in state.items()
    }
    if bits is not None:
        state = {k: t if k == kept else _rounded(t, bits) for k, t in state.items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
    texts = {'config.json': model.config.to_dict(), 'preprocessor_config.json': recipe.to_dict()}
    for name, plain in texts.items():
        (folder / name).write_text(json.dumps(plain, indent=2) + '\n', encoding='utf-8')
    tokenizer.save(folder)


def _rounded(tensor: Tensor, bits: int) -> Tensor:
    """Return a matrix on a grid of its own for each row, whose step is a power of two."""
    if tensor.ndim < 2:
        return tensor
    rows = tensor.float().flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
    step = torch.exp2(torch.ceil(torch.log2(most / (2 ** (bits - 1) - 1))))
    return ((rows / step).round() * step).view_as(tensor).to(tensor.dtype)


# ---- the released layout, written

_SHARD = 10 * 10**9  # bytes of weights in a file at most, as transformers 4.31 writes them
_TOWER = 'openai/clip-vit-large-patch14'  # of all released LISA
_BASES = {  # by template: what the original trained from, which tells chat.py's users the template
    'llava_llama_2': 'liuhaotian/llava-llama-2-13b-chat-lightning-preview',
    'llava_v1': 'liuhaotian/LLaVA-Lightning-7B-v1-1',
}


def save_original(
    model: LISA,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    vision_tower: str | Path = _TOWER,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the model in the released layout, for the upstream code and for `load`.

    The names of the weights are exactly those of a released checkpoint, CLIP left out as there;
    SAM and text_hidden_fcs are float32, as the original's merge leaves them.

    Args:
        model: with weights that are not quantised.
        tokenizer: the one that it was trained with.
        folder: made if it is not there; files of the same names are replaced.
        vision_tower: what config.json names for CLIP: a hub id or a folder. Its weights must be
            the model's own; the upstream code wants "clip" in the name.
        dtype: of the language model and the projector; None: of each weight as it is. The
            released ones have bfloat16.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob('pytorch_model*'), *folder.glob('model*.safetensors*')):
        old.unlink()  # of a model with more files
    full = ('model.visual_model.', 'model.text_hidden_fcs.')
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = unmap_key(name)
        if not name.startswith('clip.'):
            wanted = torch.float32 if theirs.startswith(full) else dtype or tensor.dtype
            state[theirs] = tensor.detach().to('cpu', wanted)
    config = model.config
    frequencies, _ = model.llm.model.rotary_emb.compute_default_rope_parameters(model.llm.config)
    for layer in range(config.llama.num_hidden_layers):
        state[f'model.layers.{layer}.self_attn.rotary_emb.inv_freq'] = frequencies.cpu()
    _write_shards(state, folder)
    kept = state['model.embed_tokens.weight'].dtype
    special = {
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        'pad_token_id': tokenizer.pad_token_id,
    }
    texts = {
        'config.json': {**_original_config(config, vision_tower, kept), **special},
        'generation_config.json': {'_from_model_config': True, **special},
    }
    for name, plain in texts.items():
        plain['transformers_version'] = '4.31.0'  # whose form it is
        (folder / name).write_text(json.dumps(plain, indent=2) + '\n', encoding='utf-8')
    tokenizer.save(folder)


def _write_shards(state: dict[str, Tensor], folder: Path) -> None:
    """Write pytorch_model.bin, or so many parts of it with an index that each has _SHARD bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in state.items():
        if size + tensor.nbytes > _SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    index = {}
    for number, shard in enumerate(shards, 1):
        part = f'pytorch_model-{number:05}-of-{len(shards):05}.bin'
        path = part if len(shards) > 1 else 'pytorch_model.bin'
        # a view would take all of its storage along
        torch.save(
            {
                name: t.contiguous() if t.untyped_storage().nbytes() == t.nbytes else t.clone()
                for name, t in shard.items()
            },
            folder / path,
        )
        index |= dict.fromkeys(shard, path)
    if len(shards) > 1:
        plain = {'metadata': {'total_size': total}, 'weight_map': index}
        text = json.dumps(plain, indent=2) + '\n'
        (folder / 'pytorch_model.bin.index.json').write_text(text, encoding='utf-8')


def _original_config(config: LisaConfig, tower: str | Path, dtype: torch.dtype) -> dict:
    """Return config.json as the original writes it; `conv_type` is our own note."""
    llama = config.llama
    rope = dict(llama.rope_parameters)
    theta, kind = rope.pop('rope_theta', 10000.0), rope.pop('rope_type', 'default')
    own_head = llama.head_dim != llama.hidden_size // llama.num_attention_heads
    return {
        '_name_or_path': _BASES.get(config.template, _BASES['llava_v1']),
        'architectures': ['LISAForCausalLM'],
        'model_type': 'llava',
        'torch_dtype': str(dtype).removeprefix('torch.'),
        'conv_type': config.template,
        'vocab_size': llama.vocab_size,
        'hidden_size': llama.hidden_size,
        'intermediate_size': llama.intermediate_size,
        'num_hidden_layers': llama.num_hidden_layers,
        'num_attention_heads': llama.num_attention_heads,
        'num_key_value_heads': llama.num_key_value_heads,
        **({'head_dim': llama.head_dim} if own_head else {}),
        'hidden_act': llama.hidden_act,
        'initializer_range': llama.initializer_range,
        'max_position_embeddings': llama.max_position_embeddings,
        'rms_norm_eps': llama.rms_norm_eps,
        'rope_theta': theta,
        'rope_scaling': None if kind == 'default' else {'type': kind, **rope},
        'pretraining_tp': 1,
        'tie_word_embeddings': bool(llama.tie_word_embeddings),
        'use_cache': False,
        'mm_vision_tower': str(tower),
        'vision_tower': str(tower),
        'mm_hidden_size': config.clip.hidden_size,
        'mm_vision_select_layer': config.mm_vision_select_layer,
        'mm_vision_select_feature': 'patch',
        'mm_use_im_start_end': True,
        'mm_use_im_patch_token': False,
        'mm_resampler_type': None,
        'use_mm_proj': True,
        'freeze_mm_mlp_adapter': True,
        'tune_mm_mlp_adapter': False,
        'pretrain_mm_mlp_adapter': None,
        'tune_mm_vision_resampler': False,
        'image_aspect_ratio': 'square',
        'image_grid_pinpoints': None,
        'out_dim': config.out_dim,
        'train_mask_decoder': True,
    }
