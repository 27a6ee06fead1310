# SPDX-License-Identifier: Apache-2.0
"""Camera models: from a CameraInfo to rays through pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from lisa_ros.errors import ImageError

MODELS = ('plumb_bob', 'rational_polynomial', 'equidistant')


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with its lens, as sensor_msgs/CameraInfo has it.

    A rectified picture (image_rect) has the K of its P and no distortion.
    """

    k: np.ndarray  # (3, 3) float64 [px], pixel centres at whole numbers
    size: tuple[int, int]  # width, height of the picture that k is for [px]
    distortion: np.ndarray = ()  # (n,) of the model; empty or zeros: none (as image_geometry)
    model: str = ''  # one of MODELS; '' without distortion

    def rays(self) -> np.ndarray:
        """Return x/z and y/z of each pixel, (H, W, 2) float32, read-only, computed once.

        NaN where the lens model has no ray for the pixel.

        Raises:
            ImageError: a distortion of a model that is none of MODELS.
        """
        distortion = np.asarray(self.distortion, np.float64).ravel()
        return _rays(
            np.ascontiguousarray(self.k, np.float64).tobytes(),
            tuple(self.size),
            distortion.tobytes() if distortion.any() else b'',
            self.model,
        )

    def scaled(self, size: tuple[int, int]) -> Camera:
        """Return the camera of the same pictures brought to `size` (width, height)."""
        k = np.array(self.k, np.float64)
        for i in range(2):
            ratio = size[i] / self.size[i]
            k[i, :2] *= ratio
            k[i, 2] = (k[i, 2] + 0.5) * ratio - 0.5
        return Camera(k, tuple(size), self.distortion, self.model)


@functools.lru_cache(maxsize=8)  # colour cameras of one robot; 7 MB each at 1280 x 720
def _rays(k: bytes, size: tuple[int, int], distortion: bytes, model: str) -> np.ndarray:
    """Return x/z and y/z of each pixel, (H, W, 2) float32 and read-only.

    The two lie one after the other in memory, so that arithmetic on one of them is fast.
    """
    intrinsics = np.frombuffer(k).reshape(3, 3)
    lens = np.frombuffer(distortion)
    width, height = size
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    if lens.size:
        rays = _undistorted(np.stack([u, v], axis=-1).reshape(-1, 1, 2), intrinsics, lens, model)
        x, y = rays.T.reshape(2, height, width)
    else:
        x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    planes = np.array([x, y], np.float32)
    planes.setflags(write=False)
    return planes.transpose(1, 2, 0)


def _undistorted(pixels: np.ndarray, k: np.ndarray, lens: np.ndarray, model: str) -> np.ndarray:
    """Return x/z, y/z of (n, 1, 2) pixels; NaN where projecting them does not lead back."""
    counts = {'plumb_bob': (4, 5), 'rational_polynomial': (8, 12, 14), 'equidistant': (4,)}
    if model not in counts:
        raise ImageError(
            f'distortion model {model!r} is not supported, only {", ".join(MODELS)}: give the '
            'rectified picture (image_proc rectify) with the K of its P and no distortion'
        )
    if lens.size not in counts[model]:
        raise ImageError(
            f'distortion model {model} with {lens.size} coefficients; expected '
            f'{" or ".join(map(str, counts[model]))}: correct d in camera_info'
        )
    enough = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
    nowhere = np.zeros(3)
    if model == 'equidistant':
        rays = cv2.fisheye.undistortPoints(pixels, k, lens, criteria=enough)
        back = cv2.fisheye.projectPoints(_ahead(rays), nowhere, nowhere, k, lens)[0]
    else:
        if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4; its undistortPoints stops after five
            rays = cv2.undistortPointsIter(pixels, k, lens, None, None, enough)
        else:
            rays = cv2.undistortPoints(pixels, k, lens, criteria=enough)
        back = cv2.projectPoints(_ahead(rays), nowhere, nowhere, k, lens)[0]
    lost = ~(np.abs(back.reshape(-1, 2) - pixels[:, 0]).max(axis=1) < 0.1)
    rays = rays.reshape(-1, 2)
    rays[lost] = np.nan
    return rays


def _ahead(rays: np.ndarray) -> np.ndarray:
    """Return (n, 1, 2) rays as points at z = 1, (n, 1, 3)."""
    return np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
