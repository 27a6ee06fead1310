# SPDX-License-Identifier: Apache-2.0
"""Names and coefficients of lens distortion as drivers write them, in OpenCV's terms. Any thread.

sensor_msgs has three models: plumb_bob (k1, k2, p1, p2, k3), rational_polynomial (the same and k4,
k5, k6, then OpenCV's thin prism and tilt) and equidistant (k1 to k4). Drivers use other names for
them, and append zeros. OrbbecSDK_ROS2 writes plumb_bob with eight coefficients, of which the last
three are 0, or the k4, k5 and k6 of rational_polynomial (Femto Bolt and Mega). image_geometry and
depth_image_proc give them all to OpenCV, and so does this module.
"""

from __future__ import annotations

import numpy as np

from lisa_ros.errors import ImageError

_COUNTS = {  # of coefficients
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}
DISTORTION_MODELS = tuple(_COUNTS)  # of sensor_msgs
_OTHER_NAMES = {
    'plumbbob': 'plumb_bob',
    'brown_conrady': 'plumb_bob',  # librealsense
    'radtan': 'plumb_bob',  # Kalibr
    'radial_tangential': 'plumb_bob',
    'rational': 'rational_polynomial',
    'fisheye': 'equidistant',  # OpenCV, Isaac Sim
    'kannala_brandt': 'equidistant',
    'kannala_brandt4': 'equidistant',  # librealsense
    'kb4': 'equidistant',
    'equi': 'equidistant',  # Kalibr
}


def opencv_distortion(name: str, coefficients: np.ndarray) -> tuple[str, np.ndarray]:
    """Return one of DISTORTION_MODELS, and coefficients in a number that OpenCV takes.

    Zeros at the end are removed or added as needed; rational_polynomial may have any first
    coefficients, at least four. plumb_bob with coefficients after the fifth is
    rational_polynomial.

    Args:
        name: `distortion_model` of a camera_info, in any spelling; not read without distortion.
        coefficients: (n,) its `d`; empty or all zero: ('', empty) is returned.

    Raises:
        ImageError: the model or its number of coefficients is not supported, or one is not finite.
    """
    d = np.asarray(coefficients, np.float64).ravel()
    if not d.any():
        return '', np.zeros(0)
    if not np.isfinite(d).all():
        raise ImageError(f'd in camera_info is {d.tolist()}; expected numbers: calibrate the lens')
    spelling = '_'.join(name.lower().replace('-', ' ').replace('_', ' ').split())
    model = _OTHER_NAMES.get(spelling, spelling)
    if model not in _COUNTS:
        raise ImageError(
            f'distortion model {name!r} is not supported; expected one of '
            f'{", ".join(DISTORTION_MODELS)}: use the rectified image (image_proc rectify) with '
            'the K of its P and no distortion'
        )
    if model == 'plumb_bob' and d[5:].any() and d.size in _COUNTS['rational_polynomial']:
        model = 'rational_polynomial'
    return model, _fitted(model, d)


def _fitted(model: str, d: np.ndarray) -> np.ndarray:
    """Return the coefficients in a number that OpenCV takes for the model."""
    counts = _COUNTS[model]
    if d.size in counts:
        return d
    used = int(np.flatnonzero(d)[-1]) + 1
    fitting = [count for count in counts if count >= used]
    is_prefix = d.size > counts[-1] or model == 'rational_polynomial'
    if d.size < 4 or not fitting or not is_prefix:
        raise ImageError(
            f'distortion model {model} with {d.size} coefficients; expected '
            f'{" or ".join(map(str, counts))}, or zeros after them: correct d or '
            'distortion_model in camera_info'
        )
    return np.concatenate([d[:used], np.zeros(fitting[0] - used)])
