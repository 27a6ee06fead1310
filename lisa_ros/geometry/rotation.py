# SPDX-License-Identifier: Apache-2.0
"""Rotation matrices and quaternions (x, y, z, w, as geometry_msgs/Quaternion). Any thread."""

from __future__ import annotations

import numpy as np


def matrix_to_quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return the unit quaternion x, y, z, w of a (3, 3) rotation matrix; w is not negative.

    The eigenvector with the largest eigenvalue of a symmetric 4 x 4 matrix (Bar-Itzhack, "New
    Method for Extracting the Quaternion from a Rotation Matrix", 2000): no case distinction.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a - e - i, d + b, g + c, h - f],
            [d + b, e - a - i, h + f, c - g],
            [g + c, h + f, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    vector = np.linalg.eigh(matrix)[1][:, -1]
    x, y, z, w = (vector if vector[3] >= 0 else -vector).tolist()
    return x, y, z, w


def quaternion_to_matrix(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Return the (3, 3) rotation matrix of a quaternion of any length.

    The length is divided out, as tf2 does: TF passes on quaternions that were rounded or measured
    (tf2 takes those with a squared length of 0.99 to 1.01). All zero: the identity.
    """
    scale = 2 / ((x * x + y * y + z * z + w * w) or 1.0)
    return np.array(
        [
            [1 - scale * (y * y + z * z), scale * (x * y - z * w), scale * (x * z + y * w)],
            [scale * (x * y + z * w), 1 - scale * (x * x + z * z), scale * (y * z - x * w)],
            [scale * (x * z - y * w), scale * (y * z + x * w), 1 - scale * (x * x + y * y)],
        ]
    )
