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
_CALIBRATE = ': calibrate the camera (camera_calibration) and publish the result'
_OTHER_IS_CALIBRATED = {  # that matrix, but not the one that the image needs
    'P': '; P has them: set image_is_rectified to true if the image is rectified, else publish K',
    'K': '; K has them: set image_is_rectified to false if the image is not rectified, else '
    'publish P',
}
# Some calibrations fit a skew between the axes. The camera model has none: up to this share of fx,
# an image is less than 1 % wrong
_MAX_SKEW = 0.01
# Share of the sensor's diagonal. No lens has its principal point farther from the centre, unless
# it is shifted on purpose
_FAR_FROM_CENTRE = 0.125
_NEARER = 3  # times nearer to the centre of another image: it is the principal point of that one


def camera_from_info(message: Any, rectified: bool = False) -> Camera:
    """Return the camera of a sensor_msgs/CameraInfo, for the pixels of the published image.

    K in CameraInfo is for the full sensor; a region of interest shifts the principal point, and
    binning scales K.

    Args:
        message: the CameraInfo; its `width` and `height` are those of the full sensor, or 0.
        rectified: the image is rectified (image_rect): use P, without distortion.

    Raises:
        ImageError: the camera is not calibrated (fx or fy is not positive, or K is not finite); K
            or P has another layout; no lens has such a focal length; or width, height or K are
            those of the cropped or binned image although `roi` or `binning` is set.
    """
    # ROS 1 has these names in capitals
    values = {name: getattr(message, name, getattr(message, name.upper(), ())) for name in 'kpd'}
    matrices = {key.upper(): np.array(values[key], dtype=np.float64).ravel() for key in 'kp'}
    name, other, columns = ('P', 'K', 4) if rectified else ('K', 'P', 3)
    numbers = matrices[name]
    if len(numbers) != 3 * columns:
        raise ImageError(
            f'{name} in camera_info has {len(numbers)} numbers; expected {3 * columns}: '
            'publish the result of camera_calibration'
        )
    k = numbers.reshape(3, columns)[:, :3].copy()
    size = message.width, message.height
    if not k[0, 0] > 0 or not k[1, 1] > 0 or not np.isfinite(k).all():
        has_other = _has_focal_lengths(matrices[other], size)
        raise ImageError(
            f'camera_info is not calibrated: {name} has fx {k[0, 0]:g}, fy {k[1, 1]:g}, cx '
            f'{k[0, 2]:g}, cy {k[1, 2]:g}; expected numbers, fx and fy above 0'
            f'{_OTHER_IS_CALIBRATED[other] if has_other else _CALIBRATE}'
        )
    _check_layout(k, name, size)
    _check_region(message, k, name)
    _check_centre(message, k, name)
    k[:2, 2] -= message.roi.x_offset, message.roi.y_offset
    k[:2] /= np.reshape(_binning(message), (2, 1))
    distortion = () if rectified else np.array(values['d'], dtype=np.float64)
    return Camera(k, _published_size(message), distortion, message.distortion_model)


def image_size_fault(message: Any, size: tuple[int, int]) -> str:
    """Return why a CameraInfo is not that of an image, with the cure; empty if it may be.

    Args:
        message: the CameraInfo.
        size: width and height of the image [px].
    """
    expected = _published_size(message)
    if 0 in expected or expected == tuple(size):  # 0: the driver does not publish the size
        return ''
    full, roi, binning = (message.width, message.height), message.roi, _binning(message)
    changes = {
        'binning': f'binning {binning[0]} x {binning[1]}' if max(binning) > 1 else '',
        'roi': _described_region(roi) if roi.width or roi.height else '',
    }
    changes = {name: text for name, text in changes.items() if text}
    origin, cure = '', 'use the camera_info that is published with this image'
    if changes:
        origin = f' (width {full[0]}, height {full[1]}, {", ".join(changes.values())})'
        cure += ', or correct these values in the driver'
    if full == tuple(size):
        cure = f'set {" and ".join(changes)} to 0 in the driver of the camera'
    return (
        f'camera_info is for images of {expected[0]} x {expected[1]} pixels{origin}, the image '
        f'has {size[0]} x {size[1]}: {cure}'
    )


def _binning(message: Any) -> tuple[int, int]:
    return max(message.binning_x, 1), max(message.binning_y, 1)  # 0 means 1


def _region_size(message: Any) -> tuple[int, int]:
    """Return the width and height of the region of interest, before binning [px]; 0: unknown."""
    return message.roi.width or message.width, message.roi.height or message.height


def _published_size(message: Any) -> tuple[int, int]:
    """Return the width and height of the published image [px]; 0: unknown."""
    (width, height), binning = _region_size(message), _binning(message)
    return width // binning[0], height // binning[1]


def _described_region(roi: Any) -> str:
    return f'roi {roi.width} x {roi.height} at ({roi.x_offset}, {roi.y_offset})'


def _has_focal_lengths(numbers: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether the numbers of K or P, row by row, have focal lengths of a lens."""
    if len(numbers) not in (9, 12) or not np.isfinite(numbers).all():
        return False
    shortest, longest = focal_length_range(size)
    fx, fy = numbers[0], numbers[len(numbers) // 3 + 1]
    return bool(shortest <= min(fx, fy) and max(fx, fy) <= longest)


def _check_region(message: Any, k: np.ndarray, name: str) -> None:
    """Raise an ImageError if the region of interest is not inside the full sensor.

    Some drivers publish K (3, 3) of the full sensor beside the size of the region: that is right.
    """
    roi = message.roi
    ends = np.add((roi.x_offset, roi.y_offset), _region_size(message))
    full = np.array((message.width, message.height))
    has_offset = roi.x_offset or roi.y_offset  # without one, the sizes are compared later
    # less than one binned pixel is a rounded side
    if not has_offset or not full.all() or (ends - full < _binning(message)).all():
        return
    centre = np.array(_region_size(message)) / 2
    moved = k[:2, 2] - (roi.x_offset, roi.y_offset)
    if np.hypot(*(moved - centre)) < np.hypot(*(k[:2, 2] - centre)):
        return
    raise ImageError(
        f'camera_info has {_described_region(roi)}, which is not inside its width and height, '
        f'{full[0]} x {full[1]}: publish width, height and {name} of the full sensor, or, if '
        'they are those of the cropped image, a roi of zeros'
    )


def _check_centre(message: Any, k: np.ndarray, name: str) -> None:
    """Raise an ImageError if K (3, 3) [px] is already that of the cropped or binned image."""
    full = np.array((message.width, message.height))
    is_moved = message.roi.x_offset or message.roi.y_offset or max(_binning(message)) > 1
    if not is_moved or not full.all():
        return
    published = np.array(_published_size(message))
    off_sensor, off_image = (np.hypot(*(k[:2, 2] - size / 2)) for size in (full, published))
    if off_sensor < _FAR_FROM_CENTRE * np.hypot(*full) or off_sensor < _NEARER * off_image:
        return
    raise ImageError(
        f'{name} in camera_info has the principal point ({k[0, 2]:g}, {k[1, 2]:g}), the centre of '
        f'the cropped or binned image; expected that of the full sensor of {full[0]} x {full[1]}: '
        f'publish {name} of the full sensor, or binning and roi of 0 with the width and height of '
        'the image'
    )


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
