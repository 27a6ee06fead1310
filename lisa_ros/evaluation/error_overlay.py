# SPDX-License-Identifier: Apache-2.0
"""Small overlays that show true positive, false negative and false positive pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lisa_ros.errors import OutputError
from lisa_ros.evaluation.cases import union_mask
from lisa_ros.perception import overlay
from lisa_ros.perception.masks import IGNORED_PIXEL
from lisa_ros.results import Segmentation

_LONGEST_NAME = 120  # of a file without its suffix [bytes]; file systems allow 255


def overlay_path(folder: Path, group: str, number: int | str) -> Path:
    """Return the path of a case's overlay, which no other case has.

    Args:
        folder: for all overlays.
        group: of the case; it may have slashes, for images in several folders.
        number: of the case in its group.
    """
    parts = [part for part in group.split('/') if part]
    parts = [f'_{part}' if part in ('.', '..') else part for part in parts] or ['_']
    short = []
    for part in parts:
        raw = part.encode('utf-8', 'surrogateescape')
        if len(raw) > _LONGEST_NAME:
            digest = hashlib.sha256(raw).hexdigest()[:16]
            part = f'{raw[: _LONGEST_NAME - 20].decode("utf-8", "ignore")}_{digest}'  # noqa: PLW2901
        short.append(part)
    return folder.joinpath(*short[:-1], f'{short[-1]}.{number}.jpg')


def write_error_overlay(
    path: Path,
    image: np.ndarray,
    result: Segmentation,
    ground_truth: np.ndarray | None,
    max_side: int = 480,
) -> None:
    """Write an overlay of an answer's errors as JPEG; create its folder.

    Args:
        path: of the file.
        image: (H, W, 3) uint8 RGB.
        result: the answer.
        ground_truth: as in `cases.case_from_result`; ignored pixels are shown without colour.
        max_side: longer side of the overlay [px].

    Raises:
        OutputError: the file cannot be written.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    predicted = union_mask(result)
    target = predicted if ground_truth is None else ground_truth == 1
    if ground_truth is not None:
        predicted = predicted & (ground_truth != IGNORED_PIXEL)

    def resize(pixels: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(pixels, size, interpolation=interpolation)

    drawn = overlay.draw_errors(
        resize(image, cv2.INTER_AREA),
        *(resize(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0 for mask in (predicted, target)),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(path, quality=82)
    except OSError as error:
        raise OutputError(f'{path}: cannot be written ({error}); give another --out') from error
