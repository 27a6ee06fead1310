# SPDX-License-Identifier: Apache-2.0
"""Load a folder or hub id as a LISA with its tokenizer and CLIP preprocessing.

Two layouts are read here:

- the released one, written by merge_lora_weights_and_save_hf_model.py of dvlab-research/LISA:
  LISAForCausalLM (`model.layers.*`, `model.mm_projector.*`, `lm_head.*`,
  `model.text_hidden_fcs.*`, `model.visual_model.*`), with CLIP in a folder or hub repository of
  its own. A segment-anything .pth file may fill in weights of SAM that it lacks;
- our own: config.json, model.safetensors under the names of `LISA.state_dict()`, the tokenizer's
  files and CLIP's preprocessor_config.json, all in one folder. LoRA updates in
  model_additions.safetensors are applied to its weights (lora.py).

from_llava.py starts a LISA from a LLaVA folder, which has the released layout without LISA's own
parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.model.assembly import MappedWeights, build_model
from lisa_ros.model.checkpoint_checks import check_consistency, check_image_marks
from lisa_ros.model.config_inference import Shapes, clip_config, infer_config
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import (
    LISA_SAM_PREFIX,
    map_clip_key,
    map_key_without_clip,
    map_sam_file_key,
    unmap_key,
)
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.lora import WeightsWithLora
from lisa_ros.model.model_folder import (
    describe_folder,
    error_summary,
    read_json,
    resolve_model_folder,
)
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.sam_file import sam_path
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import WeightFiles


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer and image preprocessing."""

    model: LISA  # in eval mode, on the requested device
    tokenizer: Tokenizer
    clip_preprocessing: ClipPreprocessing
    vision_tower: str | None = None  # folder or hub id of CLIP; None: the model's own folder


@dataclass(frozen=True)
class LoadTarget:
    """Device and precision of the model, and replacements of the folder's CLIP and template."""

    device: str | torch.device = 'cpu'
    precision: str = 'fp32'  # one of `quantization.PRECISIONS`
    vision_tower: str | Path | None = None  # CLIP's folder or hub id; None: as config.json names
    template: str | None = None  # conversation template; None: the checkpoint's


@dataclass(frozen=True)
class ReleasedParts:
    """The parts of a checkpoint in the released layout, before CLIP is found."""

    folder: Path
    config_dict: dict  # of config.json
    shapes: Shapes  # of all weights, under released names
    sources: list[MappedWeights]
    tokenizer: Tokenizer


def load(
    name: str | Path,
    *,
    vision_tower: str | Path | None = None,
    sam: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
) -> Checkpoint:
    """Load a LISA in our own layout or the released one.

    Args:
        name: a folder or a hub id.
        vision_tower: CLIP's folder or hub id; None: the one that config.json names.
        sam: a segment-anything .pth file, for weights of SAM that a released checkpoint lacks.
            The checkpoint's own weights win, because LISA trains the mask decoder.
        template: the conversation template; None: the checkpoint's.
        device: device of the weights.
        precision: fp32, bf16, fp16, or int8 or nf4, which quantize the language model's layers.

    Raises:
        CheckpointError: the folder is not a LISA, or files, weights or sizes do not fit; the
            message names each mismatch.
        SettingsError: the precision does not exist or is not available here; or `sam` is given for
            a checkpoint of our own layout, which is complete.
    """
    check_precision(precision, device)
    target = LoadTarget(device, precision, vision_tower, template)
    folder = resolve_model_folder(name, 'model')
    if not (folder / 'config.json').is_file():
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found '
            f'{describe_folder(folder)}'
        )
    config_dict = read_json(folder / 'config.json')
    if config_dict.get('model_type') == 'lisa_ros':
        if sam is not None:
            raise SettingsError(f'{folder} has a SAM of its own: remove sam={str(sam)!r}')
        return _load_own(folder, config_dict, target)
    return _load_released(folder, config_dict, sam, target)


def _load_own(folder: Path, config_dict: dict, target: LoadTarget) -> Checkpoint:
    """Load a folder of our own layout."""
    if target.template:
        config_dict = {**config_dict, 'template': target.template}
    try:
        config = LisaConfig.from_dict(config_dict)
    except (KeyError, TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(
            f'{folder / "config.json"}: not a config of lisa_ros ({error_summary(error)}); it may '
            'be of another version'
        ) from error
    tokenizer = Tokenizer.load(folder)
    preprocessing = ClipPreprocessing.from_dict(read_json(folder / 'preprocessor_config.json'))
    weights = WeightsWithLora(WeightFiles.of_folder(folder), folder)
    source = MappedWeights(weights, lambda key: key)
    model = build_model(config, [source], target.device, target.precision, folder)
    check_consistency(config, tokenizer, preprocessing, folder)
    return Checkpoint(model, tokenizer, preprocessing)


def _load_released(
    folder: Path, config_dict: dict, sam: str | Path | None, target: LoadTarget
) -> Checkpoint:
    """Load a folder of the released layout."""
    files = WeightFiles.of_folder(folder)
    shapes = files.shapes()
    # a merged folder may contain CLIP's weights; those of the vision tower are used
    sources = [MappedWeights(files, map_key_without_clip)]
    if sam is not None:
        own_keys = frozenset(shapes)
        sam_files = WeightFiles([sam_path(sam)])
        sources.append(MappedWeights(sam_files, lambda key: map_sam_file_key(key, own_keys)))
        sam_shapes = {f'{LISA_SAM_PREFIX}{key}': s for key, s in sam_files.shapes().items()}
        shapes = sam_shapes | shapes
    _check_is_lisa(folder, config_dict, shapes)
    tokenizer = Tokenizer.load(folder)
    return assemble_released(
        ReleasedParts(folder, config_dict, shapes, sources, tokenizer), target
    )


def _check_is_lisa(folder: Path, config_dict: dict, shapes: Shapes) -> None:
    """Raise a CheckpointError if a part of LISA has no weights."""
    prefixes = ('model.text_hidden_fcs.', LISA_SAM_PREFIX, 'model.mm_projector.')
    missing = [prefix for prefix in prefixes if not any(key.startswith(prefix) for key in shapes)]
    if missing:
        architectures = config_dict.get('architectures')
        kind = ', '.join(architectures or [config_dict.get('model_type', 'unknown')])
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it is a {kind} with {len(shapes)} weights, none '
            f'of them named {"*, ".join(missing)}*; expected LISAForCausalLM with LoRA merged, '
            'such as xinlai/LISA-7B-v1'
        )


def assemble_released(parts: ReleasedParts, target: LoadTarget) -> Checkpoint:
    """Build a LISA from weights under released names and the CLIP that belongs to them.

    Raises:
        CheckpointError: config.json names no vision tower, or parts do not fit each other.
    """
    folder, config_dict, tokenizer = parts.folder, parts.config_dict, parts.tokenizer
    check_image_marks(config_dict, tokenizer, folder)
    tower_name = (
        target.vision_tower
        or config_dict.get('mm_vision_tower')
        or config_dict.get('vision_tower')
    )
    if not isinstance(tower_name, str | Path) or not tower_name:
        raise CheckpointError(f'{folder}/config.json names no vision tower: give vision_tower')
    inside = folder / tower_name  # `export.save_clip` writes it there
    is_inside = not Path(tower_name).is_absolute() and inside.is_dir()
    tower = inside if is_inside else resolve_model_folder(tower_name, 'vision tower')
    clip_files = WeightFiles.of_folder(tower)
    clip = clip_config(read_json(tower / 'config.json'), tower)
    preprocessing = _clip_preprocessing(tower, clip.image_size)
    template = target.template or _guess_template(config_dict)
    config = infer_config(parts.shapes, config_dict, clip, tokenizer.seg_token_id, template)
    sources = [*parts.sources, MappedWeights(clip_files, map_clip_key)]
    model = build_model(config, sources, target.device, target.precision, folder, unmap_key)
    check_consistency(config, tokenizer, preprocessing, folder)
    if is_inside:
        return Checkpoint(model, tokenizer, preprocessing)
    # the full path of a folder, so that another config.json can name it, too
    is_folder = Path(tower_name).expanduser().is_dir()
    vision_tower = str(tower.resolve()) if is_folder else str(tower_name)
    return Checkpoint(model, tokenizer, preprocessing, vision_tower)


def _clip_preprocessing(tower: Path, image_size: int) -> ClipPreprocessing:
    """Return the preprocessing in CLIP's folder; the usual one if the folder has none."""
    path = tower / 'preprocessor_config.json'
    if path.is_file():
        return ClipPreprocessing.from_dict(read_json(path))
    return ClipPreprocessing.of_size(image_size)


def _guess_template(config_dict: dict) -> str:
    """Return the template that `save_original` wrote, or that of the base model.

    The original reads it from the command line (chat.py --conv_type): released folders do not
    contain it.
    """
    if isinstance(config_dict.get('conv_type'), str):
        return config_dict['conv_type']
    base = str(config_dict.get('_name_or_path', '')).lower().replace('_', '-')
    return 'llava_llama_2' if 'llama-2' in base else 'llava_v1'
