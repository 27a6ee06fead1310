# SPDX-License-Identifier: Apache-2.0
"""Files to a LISA that runs.

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
  files and CLIP's preprocessor_config.json, all in one folder; what lies in
  model_additions.safetensors beside them is put on top (`additions`).

Weights stream, tensor by tensor, into a model without storage, so that the peak is about one copy
in the wanted precision.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.images import ClipRecipe
from lisa_ros.model.additions import OnTop
from lisa_ros.model.files import (
    Files,
    Weights,
    listing,
    local_folder,
    one_line,
    read_json,
    unpickle,
)
from lisa_ros.model.lisa import LISA, LisaConfig
from lisa_ros.model.names import map_clip_key, map_key, map_sam_key, unmap_key
from lisa_ros.model.sizes import Shapes, clip_config, infer_config, infer_sam
from lisa_ros.model.tokenizer import SEG, Tokenizer

_Source = tuple[Weights, Callable[[str], str | None]]  # weights, and their names to ours

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
    vision_tower: str | None = None  # where CLIP came from; None: from the folder itself


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
    folder = local_folder(name, 'model')
    if not (folder / 'config.json').is_file():
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found {listing(folder)}'
        )
    plain = read_json(folder / 'config.json')
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
            f'{folder / "config.json"}: not what lisa_ros writes ({one_line(error)}); it may '
            'be of another version'
        ) from error
    tokenizer = Tokenizer.load(folder)
    recipe = ClipRecipe.from_dict(read_json(folder / 'preprocessor_config.json'))
    sources = [(OnTop(Files.of_folder(folder), folder), lambda key: key)]
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
    files = Files.of_folder(folder)
    shapes = files.shapes()
    sam_files, own = None, frozenset(shapes)
    if sam is not None:
        sam_files = Files([_sam_file(sam)])
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
    named = vision_tower or plain.get('mm_vision_tower') or plain.get('vision_tower')
    if not isinstance(named, str | Path) or not named:
        raise CheckpointError(f'{folder}/config.json names no vision tower: give one by hand')
    within = folder / named  # as `export.save_clip` puts it there
    is_within = not Path(named).is_absolute() and within.is_dir()
    tower = within if is_within else local_folder(named, 'vision tower')
    clip_files, clip_plain = Files.of_folder(tower), read_json(tower / 'config.json')
    clip = clip_config(clip_plain, tower)
    recipe_file = tower / 'preprocessor_config.json'
    recipe = (
        ClipRecipe.from_dict(read_json(recipe_file))
        if recipe_file.is_file()
        else ClipRecipe.of_size(clip.image_size)
    )
    config = infer_config(
        shapes, plain, clip, tokenizer.seg_token_id, template or _guess_template(plain)
    )
    sources = [*sources, (clip_files, map_clip_key)]
    model = _fill(config, sources, device, precision, folder, unmap_key)
    _check_agreement(config, tokenizer, recipe, folder)
    # a folder by its whole path, so that another may name it, too
    named = str(tower.resolve()) if Path(named).expanduser().is_dir() else str(named)
    return Checkpoint(model, tokenizer, recipe, None if is_within else named)


def _without_clip(key: str) -> str | None:
    ours = map_key(key)
    return None if ours is None or ours.startswith('clip.') else ours


def _of_sam(key: str, own: frozenset[str]) -> str | None:
    """Return our name of a weight in SAM's own file; None if the LISA's files have it."""
    key = f'model.visual_model.{key}'
    return None if key in own else map_key(key)


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
            f'{where}/config.json describes no model that can be built ({one_line(error)})'
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

    def __init__(self, files: Files, words: int):
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
    folder = local_folder(name, 'model')
    plain = read_json(folder / 'config.json')
    files, sam_files = Files.of_folder(folder), Files([_sam_file(sam)])
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
        added, next_id = read_json(path), len(tokenizer)
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
    state = unpickle(_sam_file(path))
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    named = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in named.items() if key is not None}


def _sam_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such file; expected a SAM .pth')
    return path
