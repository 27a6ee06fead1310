# SPDX-License-Identifier: Apache-2.0
"""A LISA that starts from a LLaVA checkpoint, for fine-tuning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checkpoint import (
    Checkpoint,
    _assembled,
    _of_sam,
    _sam_file,
    _Source,
    _without_clip,
)
from lisa_ros.model.key_mapping import map_key
from lisa_ros.model.quantization import check_precision
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import WeightFiles, read_json, resolve_model_folder
from lisa_ros.results import SEG

_MARKS = (SEG, '<im_start>', '<im_end>')  # in the order in which the original adds them


class _InMemoryWeights:
    """Weights that are there already."""

    def __init__(self, state: dict[str, Tensor]):
        self._state = state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight."""
        yield from self._state.items()


class _ExtendedVocabulary:
    """Weights whose words are more than they were: new ones begin as the mean of the old."""

    def __init__(self, files: WeightFiles, words: int):
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
    folder = resolve_model_folder(name, 'model')
    plain = read_json(folder / 'config.json')
    files, sam_files = WeightFiles.of_folder(folder), WeightFiles([_sam_file(sam)])
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
    grown = _ExtendedVocabulary(files, len(tokenizer))
    sam_shapes = sam_files.shapes()
    width = shapes['model.mm_projector.weight'][0]
    if 'prompt_encoder.no_mask_embed.weight' not in sam_shapes:
        raise CheckpointError(f"{sam}: no SAM in segment-anything's layout")
    out = sam_shapes['prompt_encoder.no_mask_embed.weight'][-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
    fresh = _InMemoryWeights(
        {f'model.text_hidden_fcs.0.{k}': t for k, t in head.state_dict().items()}
    )
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
