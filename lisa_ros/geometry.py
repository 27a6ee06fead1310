# SPDX-License-Identifier: Apache-2.0
"""From pixels to metres: what a mask and its depth say about the thing in space.

Points are in the camera's optical frame (REP-103): x right, y down, z forward.
"""

from __future__ import annotations

import numpy as np

from lisa_ros.errors import ImageError


def centroid(depth: np.ndarray, mask: np.ndarray, intrinsics: np.ndarray) -> np.ndarray | None:
    """Return the mean of the mask's valid points, (3,) float64 metres, None if there is no point.

    Args:
        depth: (H, W) float32 metres along z, NaN where invalid.
        mask: (H, W) bool, on the same pixels as the depth.
        intrinsics: K, (3, 3), of those pixels.

    Raises:
        ImageError: depth and mask differ in size, so that no pixel of one is known in the other.
    """
    if depth.shape != mask.shape:
        raise ImageError(
            f'depth is {depth.shape[1]} x {depth.shape[0]} pixels, the image '
            f'{mask.shape[1]} x {mask.shape[0]}: publish depth registered to the image'
        )
    v, u = np.nonzero(mask & np.isfinite(depth))
    if u.size == 0:
        return None
    z = depth[v, u].astype(np.float64)
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1] * z
    return np.array([x.mean(), y.mean(), z.mean()])
