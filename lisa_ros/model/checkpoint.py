# SPDX-License-Identifier: Apache-2.0
"""Load a folder or hub id as a LISA with its tokenizer and CLIP preprocessing.

Two layouts are read here:

- the released one, written by merge_lora_weights_and_save_hf_model.py of dvlab-research/LISA:
  LISAForCausalLM (`model.layers.*`, `model.mm_projector.*`, `lm_head.*`,
  `model.text_hidden_fcs.*`, `model.visual_model.*`), with CLIP in a folder or hub repository of
  its own. A segment-anything .pth file may fill in weights of SAM that it lacks. LISA++, SESAME,
  LISAt and READ have this layout, too; family.py tells them apart. Version 0 of LISA has SAM and
  text_hidden_fcs in two more files;
- our own: config.json, model.safetensors under the names of `LISA.state_dict()`, the tokenizer's
  files and CLIP's preprocessor_config.json, all in one folder. LoRA updates in
  model_additions.safetensors are applied to its weights (lora.py).

from_llava.py starts a LISA from a LLaVA folder, which has the released layout without LISA's own
parts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lisa_ros.error_text import error_summary, short_repr
from lisa_ros.errors import CheckpointError, LisaError, SettingsError
from lisa_ros.model.assembly import MappedWeights, Placement, build_model
from lisa_ros.model.checkpoint_checks import check_consistency, check_image_marks
from lisa_ros.model.config_checks import check_preprocessing
from lisa_ros.model.config_inference import clip_config, infer_config
from lisa_ros.model.family import LISA_V0, READ, Family, recognize
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.key_mapping import (
    LISA_SAM_PREFIX,
    PROJECTOR_PREFIX,
    V0_FILES,
    map_clip_key,
    map_key_without_clip,
    map_sam_file_key,
    released_key,
    unmap_key,
)
from lisa_ros.model.limits import Limits
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig, read_answer_styles, read_point_rule
from lisa_ros.model.lora import WeightsWithLora
from lisa_ros.model.model_folder import describe_folder
from lisa_ros.model.origin import Origin, is_hub_id
from lisa_ros.model.point_prompts import PointRule
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.usual_replies import read_usual_replies
from lisa_ros.model.weight_files import Shapes, WeightFiles
from lisa_ros.perception.device_memory import is_memory_error

# in errors of a GPU, its driver and their libraries
_DEVICE_FAILURE = re.compile(
    r'CUDA|cuda|NVML|nvrtc|cuDNN|CUDNN|CUBLAS|cublas|MIOpen|\bHIP\b|\bhip[A-Z]|dlopen'
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer and image preprocessing."""

    model: LISA  # in eval mode, on the requested device
    tokenizer: Tokenizer
    clip_preprocessing: ClipPreprocessing
    vision_tower: str | None = None  # folder or hub id of CLIP; None: the model's own folder
    usual_replies: tuple[str, ...] = ()  # see usual_replies.py


@dataclass(frozen=True)
class LoadTarget:
    """How a model is stored, replacements of its CLIP and template, and where files come from."""

    placement: Placement = field(default_factory=Placement)
    vision_tower: str | Path | None = None  # CLIP's folder or hub id; None: as config.json names
    template: str | None = None  # conversation template; None: the checkpoint's
    name: str = ''  # by which the user names the model
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True)
class ReleasedParts:
    """The parts of a checkpoint in the released layout, before CLIP is found."""

    folder: Path
    config: JsonFields  # of config.json
    shapes: Shapes  # of all weights, under released names
    sources: list[MappedWeights]
    tokenizer: Tokenizer
    is_local: bool  # whether the user named a local folder, not a hub id
    family: Family | None = None  # None: recognized


def load(
    name: str | Path,
    *,
    vision_tower: str | Path | None = None,
    sam: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
    origin: Origin | None = None,
    limits: Limits | None = None,
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
        origin: whether parts may be downloaded, and their checksums; None: no download of parts
            that a local folder names, no checksums.
        limits: the largest model that is loaded; None: the defaults of `Limits`.

    Raises:
        CheckpointError: the folder is not a LISA, or files, weights or sizes do not fit; the
            message names each mismatch.
        SettingsError: the precision does not exist or is not available here; or `sam` is given for
            a checkpoint of our own layout, which is complete.
    """
    check_precision(precision, device)
    placement = Placement(device, precision, limits or Limits())
    target = LoadTarget(placement, vision_tower, template, Path(name).name, origin or Origin())
    with translate_load_errors(name):
        is_local = not is_hub_id(name)
        folder = target.origin.model_folder(name)
        config = read_config(folder)
        if config.text('model_type', '') != 'lisa_ros':
            return _load_released(folder, config, sam, target, is_local)
        if sam is not None:
            raise SettingsError(f'{folder} has a SAM of its own: remove sam={str(sam)!r}')
        return _load_own(folder, config, target)


def read_config(folder: Path) -> JsonFields:
    """Return the config.json of a model's folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not os.path.lexists(folder / 'config.json'):
        raise CheckpointError(
            f'{folder} is not a LISA checkpoint: it has no config.json; found '
            f'{describe_folder(folder)}'
        )
    return JsonFields.read(folder / 'config.json')


@contextmanager
def translate_load_errors(name: str | Path) -> Iterator[None]:
    """Turn errors that no check foresaw into CheckpointError: the files come from other people."""
    try:
        yield
    except LisaError:
        raise
    except Exception as error:
        raise CheckpointError(f'{name}: {_load_problem(error)}') from error


def _load_problem(error: Exception) -> str:
    """Return why a model cannot be loaded, with the cure where it is known."""
    summary = error_summary(error)
    if is_memory_error(error):
        return (
            f'the memory is full ({summary}); choose a smaller precision (bf16, int8, nf4) or '
            'another device'
        )
    if _is_device_error(error):
        return (
            f'the device failed while loading ({summary}); run lisa-ros doctor, or set device to '
            'cpu'
        )
    return f'cannot be loaded as a LISA ({summary}); its files are damaged or of another kind'


def _is_device_error(error: Exception) -> bool:
    """Return whether the GPU, its driver or a library of it has failed."""
    kind = getattr(torch, 'AcceleratorError', None)  # since PyTorch 2.8
    if kind is not None and isinstance(error, kind):
        return True
    return isinstance(error, RuntimeError) and _DEVICE_FAILURE.search(str(error)) is not None


def _load_own(folder: Path, fields: JsonFields, target: LoadTarget) -> Checkpoint:
    """Load a folder of our own layout."""
    config = LisaConfig.from_fields(fields)
    if target.template:
        config = replace(config, template=target.template)
    tokenizer = _with_marks(Tokenizer.load(folder), config.image_marks)
    preprocessing = ClipPreprocessing.read(folder / 'preprocessor_config.json')
    check_preprocessing(preprocessing, config.clip, folder)
    weights = WeightsWithLora(WeightFiles.of_folder(folder), folder)
    source = MappedWeights(weights, lambda key: key)
    model = build_model(config, [source], target.placement, folder)
    check_consistency(config, tokenizer, preprocessing, folder)
    replies = read_usual_replies(folder)
    return Checkpoint(model, tokenizer, preprocessing, usual_replies=replies)


def _load_released(
    folder: Path, config: JsonFields, sam: str | Path | None, target: LoadTarget, is_local: bool
) -> Checkpoint:
    """Load a folder of the released layout."""
    files = WeightFiles.of_folder(folder)
    v0_files = [folder / name for name in V0_FILES if os.path.lexists(folder / name)]
    family = LISA_V0 if v0_files else None
    if v0_files:
        files = _FilesOfV0(files, WeightFiles(v0_files))
    shapes = files.shapes()
    # a merged folder may contain CLIP's weights; those of the vision tower are used
    sources = [MappedWeights(files, map_key_without_clip)]
    if sam is not None:
        own_keys = frozenset(shapes)
        sam_files = WeightFiles([target.origin.sam_file(sam)])
        sources.append(MappedWeights(sam_files, lambda key: map_sam_file_key(key, own_keys)))
        sam_shapes = {f'{LISA_SAM_PREFIX}{key}': s for key, s in sam_files.shapes().items()}
        shapes = sam_shapes | shapes
    _check_is_lisa(folder, config, shapes)
    tokenizer = Tokenizer.load(folder)
    return assemble_released(
        ReleasedParts(folder, config, shapes, sources, tokenizer, is_local, family), target
    )


class _FilesOfV0:
    """A WeightSource of LISA's version 0, under the names of version 1."""

    def __init__(self, llava: WeightFiles, parts: WeightFiles):
        self._files = [llava]
        if not any(key != released_key(key) for key in llava.shapes()):  # not in its index, too
            self._files.append(parts)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight."""
        return {
            released_key(key): shape
            for files in self._files
            for key, shape in files.shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight once."""
        for files in self._files:
            for key, tensor in files.tensors():
                yield released_key(key), tensor


def _check_is_lisa(folder: Path, config: JsonFields, shapes: Shapes) -> None:
    """Raise a CheckpointError if a part of LISA has no weights."""
    prefixes = ('model.text_hidden_fcs.', LISA_SAM_PREFIX, PROJECTOR_PREFIX)
    missing = [prefix for prefix in prefixes if not any(key.startswith(prefix) for key in shapes)]
    if missing not in ([], [PROJECTOR_PREFIX]):  # of that alone, `projector_type` says more
        architectures = config.values.get('architectures') or [config.text('model_type', '?')]
        kind = short_repr(architectures).strip('[]').replace("'", '')
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
    folder, fields = parts.folder, parts.config
    tower, tower_name = target.origin.find_tower(
        folder, fields, target.vision_tower, is_local=parts.is_local
    )
    clip_files = WeightFiles.of_folder(tower)
    clip = clip_config(JsonFields.read(tower / 'config.json'))
    preprocessing = _clip_preprocessing(tower, clip.image_size)
    check_preprocessing(preprocessing, clip, tower)
    config = infer_config(
        parts.shapes,
        fields.values,
        clip,
        parts.tokenizer.seg_token_id,
        target.template or fields.text('conv_type', ''),
        fields.path,
    )
    family = parts.family or recognize(
        fields, config.mm_projector_type, parts.tokenizer, target.name
    )
    config = _of_family(family, config, fields, parts.tokenizer)
    if config.image_marks:
        check_image_marks(fields, parts.tokenizer, folder)
    tokenizer = _with_marks(parts.tokenizer, config.image_marks)
    sources = [*parts.sources, MappedWeights(clip_files, map_clip_key)]
    model = build_model(config, sources, target.placement, folder, unmap_key)
    check_consistency(config, tokenizer, preprocessing, folder)
    return Checkpoint(model, tokenizer, preprocessing, tower_name)


def _of_family(
    family: Family, config: LisaConfig, fields: JsonFields, tokenizer: Tokenizer
) -> LisaConfig:
    """Return the config with what the family decides, unless `save_original` wrote it.

    Released folders do not contain the template: the original reads it from the command line
    (chat.py --conv_type).
    """
    rule = PointRule.of_layers(config.llama.num_hidden_layers) if family is READ else None
    return replace(
        config,
        template=config.template or family.template,
        image_marks=family.uses_image_marks(fields, tokenizer),
        point_rule=read_point_rule(fields) or rule,
        explain=fields.text('explain', family.explain),
        answer_styles=read_answer_styles(fields) or family.answer_styles,
    )


def _with_marks(tokenizer: Tokenizer, image_marks: bool) -> Tokenizer:
    return tokenizer if image_marks else tokenizer.without_image_marks()


def _clip_preprocessing(tower: Path, image_size: int) -> ClipPreprocessing:
    """Return the preprocessing in CLIP's folder; the usual one if the folder has none."""
    path = tower / 'preprocessor_config.json'
    if os.path.lexists(path):
        return ClipPreprocessing.read(path)
    return ClipPreprocessing.of_size(image_size)
