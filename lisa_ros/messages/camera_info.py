# SPDX-License-Identifier: Apache-2.0
"""Convert a sensor_msgs/CameraInfo to a camera model, field by field; no ROS. Any thread.

`width`, `height`, `k`, `p`, `d` (in ROS 1: `K`, `P`, `D`), `distortion_model`, `roi`, `binning_x`
and `binning_y` are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera, focal_length_range

_LAYOUTS = {'K': '[fx 0 cx; 0 fy cy; 0 0 1]', 'P': '[fx 0 cx Tx; 0 fy cy Ty; 0 0 1 0]'}
# Some calibrations fit a skew between the axes. The camera model has none: up to this share of fx,
# an image is less than 1 % wrong
_MAX_SKEW = 0.01


def camera_from_info(message: Any, rectified: bool = False) -> Camera:
    """Return the camera of a sensor_msgs/CameraInfo, for the pixels of the published image.

    K in CameraInfo is for the full sensor; a region of interest shifts the principal point, and
    binning scales K.

    Args:
        message: the CameraInfo; its `width` and `height` are those of the full sensor, or 0.
        rectified: the image is rectified (image_rect): use P, without distortion.

    Raises:
        ImageError: the camera is not calibrated (fx or fy is not positive, or K is not finite); K
            or P has another layout; or no lens has such a focal length.
    """
    # ROS 1 has these names in capitals
    values = {name: getattr(message, name, getattr(message, name.upper(), ())) for name in 'kpd'}
    name, columns = ('p', 4) if rectified else ('k', 3)
    numbers = np.array(values[name], dtype=np.float64).ravel()
    if len(numbers) != 3 * columns:
        raise ImageError(
            f'{name.upper()} in camera_info has {len(numbers)} numbers; expected {3 * columns}: '
            'publish the result of camera_calibration'
        )
    k = numbers.reshape(3, columns)[:, :3].copy()
    if not k[0, 0] > 0 or not k[1, 1] > 0 or not np.isfinite(k).all():
        raise ImageError(
            f'camera_info is not calibrated: fx {k[0, 0]:g}, fy {k[1, 1]:g}, cx {k[0, 2]:g}, cy '
            f'{k[1, 2]:g}; expected numbers, fx and fy above 0: calibrate the camera '
            '(camera_calibration) and publish the result'
        )
    _check_layout(k, name.upper(), (message.width, message.height))
    binning = max(message.binning_x, 1), max(message.binning_y, 1)  # 0 means 1
    k[0, 2] -= message.roi.x_offset
    k[1, 2] -= message.roi.y_offset
    k[0] /= binning[0]
    k[1] /= binning[1]
    width, height = message.roi.width or message.width, message.roi.height or message.height
    distortion = () if rectified else np.array(values['d'], dtype=np.float64)
    size = (width // binning[0], height // binning[1])
    return Camera(k, size, distortion, message.distortion_model)


def _check_layout(k: np.ndarray, name: str, size: tuple[int, int]) -> None:
    """Check that a matrix is that of a pinhole camera.

    Args:
        k: (3, 3) finite numbers, fx and fy above 0: K, or the left part of P.
        name: K or P.
        size: width and height of the full sensor [px]; 0: unknown.

    Raises:
        ImageError: another number is not 0 or 1, or no lens has such a focal length.
    """
    fx, fy = k[0, 0], k[1, 1]
    expected = np.array([[fx, 0, k[0, 2]], [0, fy, k[1, 2]], [0, 0, 1]])
    tolerance = np.full((3, 3), 1e-6)
    tolerance[0, 1] = _MAX_SKEW * fx
    rows = '; '.join(' '.join(f'{value:g}' for value in row) for row in k)
    if (np.abs(k - expected) > tolerance).any():
        raise ImageError(
            f'{name} in camera_info is not that of a camera, [{rows}]; expected '
            f'{_LAYOUTS[name]}, row by row: correct it, or calibrate the camera '
            '(camera_calibration)'
        )
    shortest, longest = focal_length_range(size)
    if not (shortest <= min(fx, fy) and max(fx, fy) <= longest):
        raise ImageError(
            f'{name} in camera_info has the focal lengths fx {fx:g}, fy {fy:g}; expected '
            f'{shortest:g} to {longest:g} pixels for this image: publish them in pixels, not as '
            'fractions of the image or in millimetres'
        )
