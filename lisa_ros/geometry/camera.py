# SPDX-License-Identifier: Apache-2.0
"""Camera model of a sensor_msgs/CameraInfo: intrinsics, lens distortion, one ray per pixel.

Rays are in the camera's optical frame (REP-103: x right, y down, z forward). Any thread.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.geometry.distortion import opencv_distortion

# Focal length by the longer side of the image: a fisheye lens has 0.15, a telescope 100
_MIN_FOCAL_LENGTH, _MAX_FOCAL_LENGTH = 0.01, 10_000
_UNKNOWN_SIDE = 100  # of an image whose size is not known [px]
_MAX_REPROJECTION_ERROR = 0.1  # a pixel with a larger error has no ray [px]


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with lens distortion, as in sensor_msgs/CameraInfo.

    A rectified image (image_rect) has the K part of P and no distortion.
    """

    k: np.ndarray  # (3, 3) float64 intrinsic matrix [px], pixel centres at whole numbers
    size: tuple[int, int]  # width, height of the image that k refers to [px]
    distortion: np.ndarray = ()  # (n,) coefficients; empty or all zero: no distortion
    distortion_model: str = ''  # as `opencv_distortion` takes it; '' without distortion

    def rays(self) -> np.ndarray:
        """Return x/z and y/z of each pixel, (H, W, 2) float32, read-only and cached.

        NaN where the lens model has no ray for the pixel.

        Raises:
            ImageError: the distortion model or its number of coefficients is not supported.
        """
        model, coefficients = opencv_distortion(self.distortion_model, self.distortion)
        return _pixel_rays(
            np.ascontiguousarray(self.k, np.float64).tobytes(),
            tuple(self.size),
            coefficients.tobytes(),
            model,
        )


def focal_length_range(size: tuple[int, int]) -> tuple[float, float]:
    """Return the shortest and the longest focal length of a lens [px].

    Args:
        size: width and height of the image [px]; 0: unknown.
    """
    side = max(size) or _UNKNOWN_SIDE
    return _MIN_FOCAL_LENGTH * side, _MAX_FOCAL_LENGTH * side


@functools.lru_cache(maxsize=8)  # colour cameras of one robot; 7 MB each at 1280 x 720
def _pixel_rays(k: bytes, size: tuple[int, int], distortion: bytes, model: str) -> np.ndarray:
    """Return x/z and y/z of each pixel, (H, W, 2) float32 and read-only.

    `k` and `distortion` are the bytes of float64 arrays, so that they can be cache keys. In
    memory the x/z plane comes before the y/z plane: arithmetic on one of them is fast.
    """
    intrinsics = np.frombuffer(k).reshape(3, 3)
    coefficients = np.frombuffer(distortion)
    width, height = size
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    if coefficients.size:
        pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
        x, y = _undistort(pixels, intrinsics, coefficients, model).T.reshape(2, height, width)
    else:
        x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    planes = np.array([x, y], np.float32)
    planes.setflags(write=False)
    return planes.transpose(1, 2, 0)


def _undistort(
    pixels: np.ndarray, k: np.ndarray, coefficients: np.ndarray, model: str
) -> np.ndarray:
    """Return x/z, y/z of (n, 1, 2) pixels, (n, 2); NaN where reprojection misses the pixel."""
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
    zeros = np.zeros(3)  # rotation and translation
    if model == 'equidistant':
        rays = cv2.fisheye.undistortPoints(pixels, k, coefficients, criteria=criteria)
        points = _at_unit_depth(rays)
        reprojected = cv2.fisheye.projectPoints(points, zeros, zeros, k, coefficients)[0]
    else:
        if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4: undistortPoints stops after 5 steps
            rays = cv2.undistortPointsIter(pixels, k, coefficients, None, None, criteria)
        else:
            rays = cv2.undistortPoints(pixels, k, coefficients, criteria=criteria)
        reprojected = cv2.projectPoints(_at_unit_depth(rays), zeros, zeros, k, coefficients)[0]
    error = np.abs(reprojected.reshape(-1, 2) - pixels[:, 0]).max(axis=1)
    rays = rays.reshape(-1, 2)
    rays[~(error < _MAX_REPROJECTION_ERROR)] = np.nan  # ~: the error itself may be NaN
    return rays


def _at_unit_depth(rays: np.ndarray) -> np.ndarray:
    """Return (n, 1, 2) rays as points at z = 1, (n, 1, 3)."""
    return np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
