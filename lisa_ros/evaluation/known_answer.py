# SPDX-License-Identifier: Apache-2.0
"""An image whose right answer is known, to test a model that runs.

A model with broken weights answers, too: "not there". So the self-test of the node asks about an
image and compares the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import read_image
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import DataError
from lisa_ros.perception.masks import IGNORED_PIXEL, iou
from lisa_ros.results import Segmentation

_MIN_IOU = 0.5  # at which a mask shows the object


@dataclass(frozen=True)
class KnownAnswer:
    """A query about an image, and its mask."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    query: str  # "the mug"
    ground_truth: np.ndarray  # (H, W) uint8: 1 target, IGNORED_PIXEL ignored, 0 elsewhere

    @classmethod
    def read(cls, folder: Path) -> KnownAnswer:
        """Return the first query about the first image of a folder that has a mask.

        Args:
            folder: as `datasets.reasonseg.read_folder` reads it.

        Raises:
            DataError: the folder cannot be read, or no query in it has a mask.
        """
        for annotated in read_folder(folder, explained=False):
            for query in annotated.queries:
                if query.regions:
                    image = read_image(annotated.path)
                    return cls(image, query.text, query.ground_truth(*image.shape[:2]))
        raise DataError(f'{folder}: no query has a mask; draw one with `labelme FOLDER`')

    def error_of(self, result: Segmentation) -> str:
        """Return what is wrong about an answer; '' if its masks together show the object."""
        if not len(result.masks):
            return f'the model does not find {self.query!r} in the test image'
        judged = self.ground_truth != IGNORED_PIXEL
        overlap = iou(result.masks.any(axis=0) & judged, self.ground_truth == 1)
        if overlap >= _MIN_IOU:
            return ''
        return (
            f'the mask of {self.query!r} in the test image is wrong: its IoU with the right one '
            f'is {overlap:.2f}, expected at least {_MIN_IOU}'
        )
