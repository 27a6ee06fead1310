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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.model.checkpoint_checks import (
    _check_agreement,
    _check_marks,
    _check_sizes,
    check_keys,
)
from lisa_ros.model.config_inference import Shapes, clip_config, infer_config, infer_sam
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import map_clip_key, map_key, map_sam_key, unmap_key
from lisa_ros.model.lisa import LISA, LisaConfig
from lisa_ros.model.lora import WeightsWithLora
from lisa_ros.model.quantization import _quantized, check_precision, is_quantized, storage_dtype
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import (
    WeightFiles,
    WeightSource,
    describe_folder,
    error_summary,
    load_pickle,
    read_json,
    resolve_model_folder,
)

_Source = tuple[WeightSource, Callable[[str], str | None]]  # weights, and their names to ours


@dataclass(frozen=True)
class Checkpoint:
    """All that a folder of weights gives."""

    model: LISA  # in eval mode, on the device asked for
    tokenizer: Tokenizer
    clip_recipe: ClipPreprocessing
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
    folder = resolve_model_folder(name, 'model')
    if not (folder / 'config.json').is_file():
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found '
            f'{describe_folder(folder)}'
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
            f'{folder / "config.json"}: not what lisa_ros writes ({error_summary(error)}); it may '
            'be of another version'
        ) from error
    tokenizer = Tokenizer.load(folder)
    recipe = ClipPreprocessing.from_dict(read_json(folder / 'preprocessor_config.json'))
    sources = [(WeightsWithLora(WeightFiles.of_folder(folder), folder), lambda key: key)]
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
    files = WeightFiles.of_folder(folder)
    shapes = files.shapes()
    sam_files, own = None, frozenset(shapes)
    if sam is not None:
        sam_files = WeightFiles([_sam_file(sam)])
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
    tower = within if is_within else resolve_model_folder(named, 'vision tower')
    clip_files, clip_plain = WeightFiles.of_folder(tower), read_json(tower / 'config.json')
    clip = clip_config(clip_plain, tower)
    recipe_file = tower / 'preprocessor_config.json'
    recipe = (
        ClipPreprocessing.from_dict(read_json(recipe_file))
        if recipe_file.is_file()
        else ClipPreprocessing.of_size(clip.image_size)
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
            f'{where}/config.json describes no model that can be built ({error_summary(error)})'
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


def model_from_state_dict(config: LisaConfig, state: Mapping[str, Tensor]) -> LISA:
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


def _put(
    model: LISA, name: str, tensor: Tensor, device: str | torch.device, precision: str
) -> None:
    """Set one weight of the model, in the precision for its place."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in ('int8', 'nf4') and is_quantized(name, module):
        parent, _, child = path.rpartition('.')
        linear = _quantized(module, tensor, device, precision)
        setattr(model.get_submodule(parent), child, linear)
        return
    learns = getattr(module, leaf).requires_grad
    # a copy in any case: the file may be mapped, and may change under us
    weight = tensor.to(device=device, dtype=storage_dtype(name, precision), copy=True)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=learns))


# ---- a LISA that begins: LLaVA, a SAM, and a way from words to masks that is still to be learnt


# ---- fewer bits


# ---- SAM alone


def load_sam_pth(path: str | Path) -> tuple[SamConfig, dict[str, Tensor]]:
    """Read a segment-anything .pth file, such as sam_vit_h_4b8939.pth.

    Returns:
        The config, inferred, and the weights under the names of `lisa.Sam`, for its
        load_state_dict.

    Raises:
        CheckpointError: the file is not one of SAM's, or cannot be read.
    """
    state = load_pickle(_sam_file(path))
    config = infer_sam({key: tuple(tensor.shape) for key, tensor in state.items()})
    named = {map_sam_key(key): tensor for key, tensor in state.items()}
    return config, {key: tensor for key, tensor in named.items() if key is not None}


def _sam_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such file; expected a SAM .pth')
    return path
