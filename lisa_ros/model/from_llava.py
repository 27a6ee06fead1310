# SPDX-License-Identifier: Apache-2.0
"""Make a new LISA from a LLaVA checkpoint and a SAM, to be fine-tuned."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lisa_ros.errors import CheckpointError
from lisa_ros.model.assembly import MappedWeights, Placement
from lisa_ros.model.checkpoint import (
    Checkpoint,
    LoadTarget,
    ReleasedParts,
    assemble_released,
    read_config,
    translate_load_errors,
)
from lisa_ros.model.family import LISA_OF_LLAVA_15
from lisa_ros.model.json_file import read_json
from lisa_ros.model.key_mapping import (
    LISA_SAM_PREFIX,
    PROJECTOR_PREFIX,
    map_key,
    map_key_without_clip,
    map_sam_file_key,
)
from lisa_ros.model.limits import Limits
from lisa_ros.model.origin import Origin, is_hub_id
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.tokenizer import IMAGE_MARKS, Tokenizer
from lisa_ros.model.weight_files import Shapes, WeightFiles
from lisa_ros.results import SEG

_MAX_NEW_ROWS = 256  # tokens that a LLaVA's tokenizer may have beyond its embedding
_VOCABULARY_WEIGHTS = ('model.embed_tokens.weight', 'lm_head.weight')  # a row for each token


class _InMemoryWeights:
    """A WeightSource of tensors in memory."""

    def __init__(self, state: dict[str, Tensor]):
        self._state = state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight."""
        yield from self._state.items()


class _ExtendedVocabulary:
    """A WeightSource with rows for new tokens; each starts as the mean of the old rows."""

    def __init__(self, files: WeightFiles, vocabulary_size: int):
        self._files, self._vocabulary_size = files, vocabulary_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight, with rows for all tokens."""
        return {
            name: (max(self._vocabulary_size, shape[0]), *shape[1:])
            if name in _VOCABULARY_WEIGHTS
            else shape
            for name, shape in self._files.shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight, with rows for all tokens."""
        for name, tensor in self._files.tensors():
            new_rows = self._vocabulary_size - len(tensor) if name in _VOCABULARY_WEIGHTS else 0
            if new_rows > 0:
                mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
                yield name, torch.cat([tensor, mean.expand(new_rows, -1)])
            else:
                yield name, tensor


def load_llava(
    name: str | Path,
    *,
    sam: str | Path,
    vision_tower: str | Path | None = None,
    template: str | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
    seed: int = 0,
    origin: Origin | None = None,
    limits: Limits | None = None,
) -> Checkpoint:
    """Make a LISA from a LLaVA and a SAM, as the original's train_ds.py does.

    [SEG], and for LLaVA 1 <im_start> and <im_end>, are added to the vocabulary if the tokenizer
    lacks them; each embedding starts as the mean of the others. text_hidden_fcs is random: the
    model finds nothing before it is trained.

    Args:
        name: folder or hub id of LLaVA 1 or 1.5.
        sam: a segment-anything .pth file.
        vision_tower: CLIP's folder or hub id; None: the one that config.json names.
        template: the conversation template; None: the one of this LLaVA.
        device: device of the weights.
        precision: as in `checkpoint.load`.
        seed: of text_hidden_fcs.
        origin: as in `checkpoint.load`.
        limits: as in `checkpoint.load`.

    Raises:
        CheckpointError: a folder or file is not what is expected; the message names it.
        SettingsError: the precision does not exist or is not available here.
    """
    check_precision(precision, device)
    placement = Placement(device, precision, limits or Limits())
    target = LoadTarget(placement, vision_tower, template, Path(name).name, origin or Origin())
    with translate_load_errors(name):
        return _load_llava(name, Path(sam), target, seed)


def _load_llava(name: str | Path, sam: Path, target: LoadTarget, seed: int) -> Checkpoint:
    """Make a LISA from a LLaVA and a SAM; see `load_llava`."""
    is_local = not is_hub_id(name)
    folder = target.origin.model_folder(name)
    config = read_config(folder)
    files, sam_files = WeightFiles.of_folder(folder), WeightFiles([target.origin.sam_file(sam)])
    shapes, sam_shapes = files.shapes(), sam_files.shapes()
    _check_is_llava(folder, shapes)
    tokenizer = Tokenizer.load(folder)
    is_15 = not tokenizer.legacy and f'{PROJECTOR_PREFIX}weight' not in shapes
    family, marks = (LISA_OF_LLAVA_15, ()) if is_15 else (None, IMAGE_MARKS)
    tokenizer = _with_tokens(tokenizer, (SEG, *marks))  # in the order of the original
    _check_vocabulary(tokenizer, shapes, folder)
    if 'prompt_encoder.no_mask_embed.weight' not in sam_shapes:
        raise CheckpointError(f"{sam}: not a SAM in segment-anything's layout")
    head = _random_head(
        width=shapes['model.embed_tokens.weight'][-1],
        prompt_width=sam_shapes['prompt_encoder.no_mask_embed.weight'][-1],
        seed=seed,
    )
    extended = _ExtendedVocabulary(files, len(tokenizer))
    prefixed = {f'{LISA_SAM_PREFIX}{key}': shape for key, shape in sam_shapes.items()}
    shapes = {**extended.shapes(), **prefixed, **head.shapes()}
    sources = [
        MappedWeights(extended, map_key_without_clip),
        MappedWeights(head, map_key),
        MappedWeights(sam_files, map_sam_file_key),
    ]
    return assemble_released(
        ReleasedParts(folder, config, shapes, sources, tokenizer, is_local, family), target
    )


def _check_vocabulary(tokenizer: Tokenizer, shapes: Shapes, folder: Path) -> None:
    """Check that few tokens have no row of their own in the embedding.

    Raises:
        CheckpointError: the tokenizer has far more tokens than the model.
    """
    rows = shapes.get('model.embed_tokens.weight', (0,))[0]
    if len(tokenizer) > rows + _MAX_NEW_ROWS:
        raise CheckpointError(
            f'{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {rows}: '
            'added_tokens.json is damaged or of another model'
        )


def _check_is_llava(folder: Path, shapes: Shapes) -> None:
    """Raise a CheckpointError if the weights are those of a LISA, or of no LLaVA."""
    if any(key.startswith('model.text_hidden_fcs.') for key in shapes):
        raise CheckpointError(f'{folder} is a LISA already: load it as a model, not as a LLaVA')
    for prefix in (PROJECTOR_PREFIX, 'model.embed_tokens.weight'):
        if not any(key.startswith(prefix) for key in shapes):
            raise CheckpointError(
                f'{folder} is not a LLaVA: it has no {prefix}*; expected version 1 or 1.5 in its '
                'original layout, such as liuhaotian/llava-v1.5-7b'
            )


def _random_head(width: int, prompt_width: int, seed: int) -> _InMemoryWeights:
    """Return random weights of text_hidden_fcs under released names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))
    state = {f'model.text_hidden_fcs.0.{key}': t for key, t in head.state_dict().items()}
    return _InMemoryWeights(state)


def _with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """Return the tokenizer with those of the tokens that it lacks, after all others."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        path = Path(folder) / 'added_tokens.json'
        added, next_id = read_json(path), len(tokenizer)
        for token in tokens:
            if token not in added:
                added[token], next_id = next_id, next_id + 1
        path.write_text(json.dumps(added), encoding='utf-8')
        return Tokenizer.load(folder)
