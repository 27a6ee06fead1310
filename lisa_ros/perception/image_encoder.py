# SPDX-License-Identifier: Apache-2.0
"""Images as CLIP and SAM see them, encoded once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lisa_ros.model.image_processing import SamInput


@dataclass
class EncodedImage:
    """What is known of a picture; SAM looks at it only when the first [SEG] is said."""

    key: tuple
    image: np.ndarray  # (H, W, 3) uint8 RGB
    clip_tokens: Tensor  # (P, D)
    sam: SamInput
    sam_features: Tensor | None = None  # (1, C, h, w)
    seconds: dict[str, float] = field(default_factory=dict)  # that no answer has told yet


class StageTimer:
    """Seconds by stage, in the order in which stages first ran."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; on a GPU wait for its kernels, which the next stage would pay for."""
        start = time.perf_counter()
        yield
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self.add({name: time.perf_counter() - start})

    def add(self, seconds: dict[str, float]) -> None:
        """Add what was spent elsewhere."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def image_key(image: np.ndarray) -> tuple:
    """Return what a picture is known by again."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image)).digest()
