# SPDX-License-Identifier: Apache-2.0
"""A plane in the camera's optical frame (REP-103), metres. Pure numpy, any thread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Plane:
    """The points p with up @ p == offset."""

    up: np.ndarray  # (3,) unit normal, towards the camera and the object on the plane
    offset: float  # [m]

    def height(self, points: np.ndarray) -> np.ndarray:
        """Return the height of (..., 3) points above the plane, (...) [m]."""
        return points @ self.up.astype(points.dtype) - points.dtype.type(self.offset)

    def coordinates(self, points: np.ndarray) -> np.ndarray:
        """Return (..., 3) points along two perpendicular directions of the plane, (..., 2) [m]."""
        return points @ self._axes.T

    @cached_property
    def _axes(self) -> np.ndarray:
        """Two perpendicular unit vectors in the plane, (2, 3)."""
        return np.linalg.svd(self.up[None])[2][1:]
