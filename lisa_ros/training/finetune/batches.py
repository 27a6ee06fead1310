# SPDX-License-Identifier: Apache-2.0
"""Pictures with finished dialogues become batches, and LISA's losses on the pictures' own pixels.

This is the original's way (model/LISA.py, utils/dataset.py): masks are compared at the size of
the picture they belong to, whatever sizes lie side by side in a batch. `lisa-tabletop` learns
otherwise, from `data`, in SAM's square.

Letters: B pictures, Q dialogues, T tokens, n masks of one picture of H x W pixels, N of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisa_ros.datasets.annotations import UNSURE
from lisa_ros.errors import DataError
from lisa_ros.model import image_processing
from lisa_ros.model.lisa import IGNORED, LISA, LisaBatch, LisaConfig
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import prompts
from lisa_ros.results import SEG, Turn
from lisa_ros.training.losses import BCE_WEIGHT, CE_WEIGHT, DICE_WEIGHT, dice_loss, sigmoid_ce_loss

WEIGHTS = {'ce': CE_WEIGHT, 'bce': BCE_WEIGHT, 'dice': DICE_WEIGHT}


@dataclass(frozen=True)
class Sample:
    """A picture with dialogues about it, each of its own, and what their [SEG] stand for."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    dialogues: tuple[tuple[Turn, ...], ...]
    truth: np.ndarray  # (n, H, W) uint8: 0, 1 or UNSURE; dialogue by dialogue, [SEG] by [SEG]
    name: str = 'a picture'  # for messages


@dataclass(frozen=True)
class FinetuneBatch:
    """A batch and its truth."""

    batch: LisaBatch
    truth: tuple[Tensor, ...]  # B x (n, H, W) uint8: 0, 1 or UNSURE
    resized: tuple[tuple[int, int], ...]  # B x (height, width) inside SAM's square [px]

    def to(self, device: torch.device | str) -> FinetuneBatch:
        """Return the same lesson on `device`."""
        truth = tuple(one.to(device) for one in self.truth)
        return dataclasses.replace(self, batch=self.batch.to(device), truth=truth)


def make_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    clip: image_processing.ClipPreprocessing,
    samples: Sequence[Sample],
    *,
    typed_specials: bool = False,
    max_length: int | None = None,
) -> FinetuneBatch:
    """Return what LISA sees and should answer.

    Args:
        config: the model's; its template writes the dialogues.
        tokenizer: the model's.
        clip: how the model's CLIP wants its pictures.
        samples: B pictures with their dialogues.
        typed_specials: tokens written out in questions are those tokens.
        max_length: longer dialogues are cut there [tokens, the picture counting one].

    Raises:
        DataError: a picture has not as many masks as its dialogues have [SEG].
        QueryError, ImageError: a question or a picture is none.
    """
    rows, labels, owners = [], [], []
    for number, sample in enumerate(samples):
        first = len(rows)
        for turns in sample.dialogues:
            ids, learnt = prompts.training_ids(
                tokenizer, config.template, turns, typed_specials, max_length
            )
            rows.append(ids)
            labels.append(learnt)
            owners.append(number)
        asked = sum(row.count(config.seg_token_id) for row in rows[first:])
        if asked != len(sample.truth):
            raise DataError(
                f'{sample.name}: its dialogues have {asked} {SEG} and {len(sample.truth)} masks; '
                'expected one mask for each (a long question may push its answer over the end)'
            )
    longest, pad = max(map(len, rows)), tokenizer.pad_token_id
    sams = [image_processing.sam_input(sample.image, config.sam_size) for sample in samples]
    batch = LisaBatch(
        clip_pixels=torch.from_numpy(
            np.stack([image_processing.clip_pixels(sample.image, clip) for sample in samples])
        ),
        sam_pixels=torch.from_numpy(np.stack([sam.pixels for sam in sams])),
        input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
        labels=torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
        attention_mask=torch.tensor(
            [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
        ),
        image_index=torch.tensor(owners),
    )
    truth = tuple(torch.from_numpy(np.ascontiguousarray(sample.truth)) for sample in samples)
    return FinetuneBatch(batch, truth, tuple(sam.resized for sam in sams))


def losses(lisa: LISA, given: FinetuneBatch) -> dict[str, Tensor]:
    """Return `ce`, `bce` and `dice` as the original has them, without their WEIGHTS.

    Masks of the whole batch count the same, whatever their size; pixels that are UNSURE do not
    count. The dialogues about a picture share one pass of the vision parts and of its places.
    """
    out = lisa(given.batch, packed=True)
    count = len(out.mask_logits)
    bce = dice = out.ce_loss.new_zeros(())
    for logits, truth in zip(_by_picture(lisa, out, given), given.truth, strict=True):
        if not (truth == UNSURE).any():
            bce = bce + sigmoid_ce_loss(logits, truth.float(), count)
            dice = dice + dice_loss(logits, truth.float(), count)
            continue
        for one, real in zip(logits, truth, strict=True):
            sure = real != UNSURE
            if sure.any():
                inside, real = one[sure][None], real[sure][None].float()  # noqa: PLW2901
                bce = bce + sigmoid_ce_loss(inside, real, count)
                dice = dice + dice_loss(inside, real, count)
    return {'ce': out.ce_loss, 'bce': bce, 'dice': dice}


def predict_masks(lisa: LISA, given: FinetuneBatch) -> list[np.ndarray]:
    """Return the masks of a batch whose answers are known, B x (n, H, W) bool."""
    out = lisa(given.batch, packed=True)
    return [(logits > 0).cpu().numpy() for logits in _by_picture(lisa, out, given)]


def _by_picture(lisa: LISA, out, given: FinetuneBatch) -> list[Tensor]:
    """Return mask logits on the pictures' own pixels, B x (n, H, W)."""
    images_of = given.batch.image_index[out.seg_query]
    return [
        lisa.postprocess(out.mask_logits[images_of == number], resized, tuple(truth.shape[1:]))
        for number, (resized, truth) in enumerate(zip(given.resized, given.truth, strict=True))
    ]
