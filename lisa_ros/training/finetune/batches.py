# SPDX-License-Identifier: Apache-2.0
"""Makes model inputs from images with dialogues, as the original does (utils/dataset.py).

Each ground-truth mask keeps the size of its image, also if the images of a batch differ in size.
(`lisa-tabletop` is trained in SAM's square instead, see `training.tabletop`.)

Letters: B images, Q dialogues, T tokens, n masks of one image of H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisa_ros.errors import DataError
from lisa_ros.model import image_processing
from lisa_ros.model.lisa import Conversations, LisaBatch
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import prompts
from lisa_ros.results import SEG, Turn
from lisa_ros.training.padding import pad_conversations


@dataclass(frozen=True)
class Sample:
    """An image, independent dialogues about it, and the masks of their [SEG] tokens."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    dialogues: tuple[tuple[Turn, ...], ...]
    # (n, H, W) uint8: 0, 1 or IGNORE_LABEL; in the order of the dialogues and their [SEG]
    ground_truth: np.ndarray
    name: str = 'an image'  # for error messages


@dataclass(frozen=True)
class FinetuneBatch:
    """Model inputs with their ground truth."""

    inputs: LisaBatch
    ground_truth: tuple[Tensor, ...]  # B x (n, H, W) uint8: 0, 1 or IGNORE_LABEL
    resized: tuple[tuple[int, int], ...]  # B x (height, width) inside SAM's square [px]

    def to(self, device: torch.device | str) -> FinetuneBatch:
        """Return the same batch on `device`."""
        ground_truth = tuple(masks.to(device) for masks in self.ground_truth)
        return dataclasses.replace(self, inputs=self.inputs.to(device), ground_truth=ground_truth)


def make_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    clip: image_processing.ClipPreprocessing,
    samples: Sequence[Sample],
    *,
    typed_specials: bool = False,
    max_length: int | None = None,
) -> FinetuneBatch:
    """Return the model inputs and the ground truth of some samples.

    Args:
        config: the model's; its conversation template formats the dialogues.
        tokenizer: the model's.
        clip: preprocessing of the model's CLIP.
        samples: B images with their dialogues.
        typed_specials: whether special tokens that are typed in questions are read as tokens.
        max_length: longer dialogues are cut to this length [tokens; the image counts as one].

    Raises:
        DataError: a sample has not exactly one mask for each [SEG] of its dialogues, or a dialogue
            has no answer, because it is cut before the first one: nothing of it could be learned.
        QueryError, ImageError: a question or an image cannot be used.
    """
    conversations = _conversations(config, tokenizer, samples, typed_specials, max_length)
    sam_inputs = [image_processing.sam_input(sample.image, config.sam_size) for sample in samples]
    clip_pixels = [image_processing.clip_pixels(sample.image, clip) for sample in samples]
    inputs = LisaBatch(
        **vars(conversations),
        clip_pixels=torch.from_numpy(np.stack(clip_pixels)),
        sam_pixels=torch.from_numpy(np.stack([sam_input.pixels for sam_input in sam_inputs])),
    )
    ground_truth = tuple(
        torch.from_numpy(np.ascontiguousarray(sample.ground_truth)) for sample in samples
    )
    return FinetuneBatch(
        inputs, ground_truth, tuple(sam_input.resized for sam_input in sam_inputs)
    )


def _conversations(
    config: LisaConfig,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    typed_specials: bool,
    max_length: int | None,
) -> Conversations:
    """Return the dialogues of all samples, tokenized and padded; see `make_batch`."""
    rows, labels, image_index = [], [], []
    for index, sample in enumerate(samples):
        first = len(rows)
        for turns in sample.dialogues:
            ids, dialogue_labels = prompts.training_ids(
                tokenizer, config.template, turns, typed_specials, max_length
            )
            rows.append(ids)
            labels.append(dialogue_labels)
            image_index.append(index)
        expected = sum(row.count(config.seg_token_id) for row in rows[first:])
        if expected != len(sample.ground_truth):
            raise DataError(
                f'{sample.name}: its dialogues have {expected} {SEG} and '
                f'{len(sample.ground_truth)} masks; expected one mask for each {SEG}. A dialogue '
                f'that is too long is cut and loses its last {SEG}: shorten the question'
            )
        if any(set(own) == {IGNORE_INDEX} for own in labels[first:]):
            raise DataError(
                f'{sample.name}: a question leaves no room for the first token of its answer; '
                'shorten it'
            )
    return pad_conversations(rows, labels, image_index, tokenizer.pad_token_id)
