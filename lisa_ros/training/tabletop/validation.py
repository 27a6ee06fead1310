# SPDX-License-Identifier: Apache-2.0
"""Validation of a pretraining run: mask IoU by query category, presence, a sheet of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from lisa_ros.model.lisa import LISA
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import masks, overlay
from lisa_ros.tabletop import queries, query_sampling
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.training.tabletop.auxiliary_losses import AuxiliaryHeads
from lisa_ros.training.tabletop.batches import make_batch
from lisa_ros.training.tabletop.dataset import SceneSet, SceneView
from lisa_ros.training.tabletop.initialization import clip_preprocessing

MAX_SCENES = 96
_BATCH_SIZE = 8  # scenes
_SHEET_TILES, _SHEET_COLUMNS = 20, 4
_SHEET_CATEGORIES = queries.CATEGORIES[:8]  # in turn on the tiles of the sheet
_QUERY_SEED = 1


@dataclass(frozen=True)
class _Prediction:
    """A predicted mask with its ground truth, both (h, w) bool in SAM's square without padding."""

    mask: np.ndarray
    truth: np.ndarray
    conversation: int  # row of the batch
    view: SceneView
    query: TabletopQuery

    @property
    def iou(self) -> float:
        return masks.iou(self.mask, self.truth)


class Validation:
    """Asks fixed queries about the validation scenes, with teacher forcing."""

    def __init__(
        self,
        lisa: LISA,
        heads: AuxiliaryHeads,
        tokenizer: Tokenizer,
        scenes: SceneSet,
        *,
        bf16: bool,
    ):
        """Take a model with its auxiliary heads, and the validation scenes.

        Args:
            lisa: the model, on its device.
            heads: on the same device.
            tokenizer: of the model.
            scenes: all of one image shape.
            bf16: whether to use bfloat16 products.
        """
        self._lisa, self._heads, self._tokenizer = lisa, heads, tokenizer
        self._scenes, self._bf16 = scenes, bf16
        self._preprocessing = clip_preprocessing(lisa.config)

    def run(self, sheet: Path) -> dict[str, float]:
        """Return the mean IoU of each query category as `val_CATEGORY`, and `val_presence`.

        `val_presence` is the accuracy of the tokens that say whether an object is present.

        Args:
            sheet: PNG to write, with some of the answers.
        """
        ious: dict[str, list[float]] = {}
        accuracies, tiles = [], []
        for start in range(0, len(self._scenes), _BATCH_SIZE):
            numbers = range(start, min(start + _BATCH_SIZE, len(self._scenes)))
            predictions, accuracy = self._predict(numbers)
            accuracies.append(accuracy)
            for prediction in _of_last_turn(predictions):
                category = prediction.query.category
                ious.setdefault(category, []).append(prediction.iou)
                turn = len(tiles) % len(_SHEET_CATEGORIES)
                if len(tiles) < _SHEET_TILES and category == _SHEET_CATEGORIES[turn]:
                    tiles.append(_tile(prediction))
        if tiles:
            image = overlay.contact_sheet(tiles, columns=_SHEET_COLUMNS)
            cv2.imwrite(str(sheet), image[..., ::-1])
        means = {f'val_{name}': float(np.mean(ious[name])) for name in sorted(ious)}
        return {**means, 'val_presence': float(np.mean(accuracies))}

    def _predict(self, numbers: range) -> tuple[list[_Prediction], float]:
        """Return the masks of the queries about some scenes, and the accuracy of presence."""
        views = [self._scenes.view(number) for number in numbers]
        view_queries = [
            query_sampling.make_test_queries(
                np.random.default_rng((_QUERY_SEED, number)), view.scene_graph
            )
            for number, view in zip(numbers, views, strict=True)
        ]
        batch = make_batch(
            self._lisa.config, self._tokenizer, self._preprocessing, views, view_queries
        )
        device = self._lisa.device
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            output = self._lisa(batch.inputs, packed=True)
            _, accuracy = self._heads.presence_loss(self._lisa, output, batch)
        height, width = batch.valid_size
        size = (height, width)
        predicted = (self._lisa.postprocess(output.mask_logits, size, size) > 0).cpu().numpy()
        truths = (batch.masks[:, :height, :width] > 0).cpu().numpy()
        conversations = [
            (view, query) for view, some in zip(views, view_queries, strict=True) for query in some
        ]
        rows = output.seg_query.tolist()
        predictions = [
            _Prediction(mask, truth, row, *conversations[row])
            for mask, truth, row in zip(predicted, truths, rows, strict=True)
        ]
        return predictions, float(accuracy)


def _of_last_turn(predictions: list[_Prediction]) -> Iterator[_Prediction]:
    """Yield the predictions for the last turn of each dialogue."""
    counts: Counter[int] = Counter()
    for prediction in predictions:
        counts[prediction.conversation] += 1
        if counts[prediction.conversation] > prediction.query.first_target:
            yield prediction


def _tile(prediction: _Prediction) -> np.ndarray:
    """Return the image with the predicted mask on it, and query and IoU below."""
    image = prediction.view.image
    mask = cv2.resize(prediction.mask.astype(np.uint8), image.shape[1::-1]) > 0
    caption = f'{prediction.query.turns[-1].query} ({prediction.iou:.2f})'
    return overlay.overlay(image, mask[None], caption=[caption])
