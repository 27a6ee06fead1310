# SPDX-License-Identifier: Apache-2.0
"""READ's points: where an image is most and least similar to a [SEG], as prompts for SAM.

READ (arxiv.org/abs/2412.17741) multiplies the language model's states of the image tokens with the
state that predicts [SEG]. Cells of the resulting map with high values become points inside of the
object, cells with low values points outside. The rule and its rounding are those of rui-qian/READ
@2549240 (test/test_family_parity.py), so that the same cells are chosen.

Letters: P image tokens in a square grid, D width of the language model, H x W the image [px],
M points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INSIDE, OUTSIDE, NEITHER = 1, 0, -1  # labels of points, as SAM has them
_LAYERS_13B = 40  # of a LLaMA with 13 billion weights
_FINE_SIDE = 336  # of the map by which points move between pixels [cells]
_MOVE_RADIUS = 12  # beyond which a pixel has no influence on a point: exp(-144) [px]


@dataclass(frozen=True)
class PointRule:
    """Which cells of a similarity map become points; the defaults are those of READ-7B."""

    count: int = 30  # most points
    inside: float = 0.8  # least value of a point inside, of values in 0..1
    outside: float = 0.2  # greatest value of a point outside
    down_sample: int = 2  # image tokens on the side of a cell

    @classmethod
    def of_layers(cls, layers: int) -> PointRule:
        """Return the rule of the released READ whose language model has so many layers."""
        return cls() if layers < _LAYERS_13B else cls(count=60, inside=0.6, down_sample=1)


@dataclass(frozen=True)
class Points:
    """Points in an image."""

    places: Tensor  # (M, 2) float32, x and y [px]
    labels: Tensor  # (M,) long: INSIDE, OUTSIDE or NEITHER


def similarity(image_states: Tensor, seg_state: Tensor) -> Tensor:
    """Return the similarity of each image token to a [SEG], (P,).

    Args:
        image_states: (P, D) states of the image tokens, after the final norm.
        seg_state: (D,) the state that predicts [SEG].
    """
    return image_states.float() @ seg_state.float()


def choose_points(similarities: Tensor, shape: tuple[int, int], rule: PointRule) -> Points | None:
    """Return the points of a map; None if it has no contrast.

    Args:
        similarities: (P,) of the image tokens; CLIP saw the middle square of the image.
        shape: (H, W) of the image [px].
        rule: which cells become points.
    """
    side = int(len(similarities) ** 0.5)
    cells = max(1, side // rule.down_sample)
    square = similarities.float()[: side * side].view(1, 1, side, side)
    coarse = F.interpolate(square, (cells, cells), mode='bilinear', align_corners=False)
    scaled = _scaled(coarse)
    if scaled is None:
        return None
    values = _padded(scaled[0, 0], shape, fill=-1.0)
    chosen, labels = _chosen_cells(values.cpu().numpy(), rule)
    if not len(chosen):
        return None
    rows, columns = np.divmod(chosen, values.shape[1])
    places = np.stack(
        [_pixels(columns, values.shape[1], shape[1]), _pixels(rows, values.shape[0], shape[0])], 1
    )
    fine = F.interpolate(_scaled(square), (_FINE_SIDE,) * 2, mode='bilinear', align_corners=False)
    fine = _padded(fine[0, 0], shape, fill=0.0)[None, None]
    fine = F.interpolate(fine, shape, mode='bilinear', align_corners=False)[0, 0]
    device = similarities.device
    return Points(
        _moved(torch.from_numpy(places).to(device), fine), torch.from_numpy(labels).to(device)
    )


def _scaled(values: Tensor) -> Tensor | None:
    """Return a map scaled to 0..1; None if all values are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if low < high else None


def _padded(square: Tensor, shape: tuple[int, int], fill: float) -> Tensor:
    """Return the map of a whole image, of that of its middle square.

    The rounding of the original is part of the rule: for some sizes the padding is -1, which cuts
    a ring of cells off.
    """
    cells = square.shape[0]
    scale = cells / min(shape)
    height, width = ((int(side * scale) - cells) // 2 for side in shape)
    return F.pad(square, (width, width, height, height), value=fill)


def _chosen_cells(values: np.ndarray, rule: PointRule) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat indices of cells, most important first, and their labels."""
    flat = values.ravel()
    inside = flat >= rule.inside
    outside = ~inside & (flat >= 0) & (flat <= rule.outside)
    between = (flat > rule.outside) & ~inside
    by_value = np.argsort(flat, kind='stable')
    groups = [
        (by_value[::-1][inside[by_value[::-1]]], INSIDE),
        (by_value[outside[by_value]], OUTSIDE),
        (np.flatnonzero(between), NEITHER),
    ]
    cells = np.concatenate([indices for indices, _ in groups])
    labels = np.concatenate([np.full(len(indices), label) for indices, label in groups])
    return cells[: rule.count], labels[: rule.count]


def _pixels(cells: np.ndarray, count: int, length: int) -> np.ndarray:
    """Return the whole pixels at the centres of cells, of `count` on a side of `length` pixels."""
    return np.minimum((cells + 0.5) * length / count, length - 1).astype(np.int64)


def _moved(places: Tensor, weights: Tensor) -> Tensor:
    """Return points between pixels, (M, 2) float32: means of pixels near by, weighted by the map.

    Args:
        places: (M, 2) whole x and y [px].
        weights: (H, W), higher: more weight.
    """
    height, width = weights.shape
    probabilities = weights.flatten().softmax(0).view(height, width)
    steps = torch.arange(-_MOVE_RADIUS, _MOVE_RADIUS + 1, device=places.device)
    columns, rows = (places[:, axis, None] + steps for axis in (0, 1))  # (M, steps) each
    is_pixel = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None
    ]
    near = probabilities[
        rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    ]
    closeness = torch.exp(-(steps.float() ** 2))
    shares = near * is_pixel * closeness[:, None] * closeness
    shares = shares / shares.sum((1, 2), keepdim=True)
    x = (shares.sum(1) * columns).sum(1)
    y = (shares.sum(2) * rows).sum(1)
    return torch.stack([x, y], 1)
