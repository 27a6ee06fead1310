# SPDX-License-Identifier: Apache-2.0
"""Convert a sensor_msgs/CameraInfo to a camera model, field by field; no ROS. Any thread.

`width`, `height`, `k`, `p`, `d` (in ROS 1: `K`, `P`, `D`), `distortion_model`, `roi`, `binning_x`
and `binning_y` are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera


def camera_from_info(message: Any, rectified: bool = False) -> Camera:
    """Return the camera of a sensor_msgs/CameraInfo, for the pixels of the published image.

    K in CameraInfo is for the full sensor; a region of interest shifts the principal point, and
    binning scales K.

    Args:
        message: the CameraInfo; its `width` and `height` are those of the full sensor, or 0.
        rectified: the image is rectified (image_rect): use P, without distortion.

    Raises:
        ImageError: the camera is not calibrated (fx or fy is not positive, or K is not finite).
    """
    # ROS 1 has these names in capitals
    values = {name: getattr(message, name, getattr(message, name.upper(), ())) for name in 'kpd'}
    k = np.array(values['k'], dtype=np.float64).reshape(3, 3)
    if rectified:
        k = np.array(values['p'], dtype=np.float64).reshape(3, 4)[:, :3].copy()
    if not k[0, 0] > 0 or not k[1, 1] > 0 or not np.isfinite(k).all():
        raise ImageError(
            f'camera_info is not calibrated: fx {k[0, 0]:g}, fy {k[1, 1]:g}, cx {k[0, 2]:g}, cy '
            f'{k[1, 2]:g}; expected numbers, fx and fy above 0: calibrate the camera '
            '(camera_calibration) and publish the result'
        )
    binning = max(message.binning_x, 1), max(message.binning_y, 1)  # 0 means 1
    k[0, 2] -= message.roi.x_offset
    k[1, 2] -= message.roi.y_offset
    k[0] /= binning[0]
    k[1] /= binning[1]
    width, height = message.roi.width or message.width, message.roi.height or message.height
    distortion = () if rectified else np.array(values['d'], dtype=np.float64)
    size = (width // binning[0], height // binning[1])
    return Camera(k, size, distortion, message.distortion_model)
