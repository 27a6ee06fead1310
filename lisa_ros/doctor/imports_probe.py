# SPDX-License-Identifier: Apache-2.0
"""Import NumPy, OpenCV and cv_bridge, and use them once; runs in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from importlib import util

from lisa_ros.error_text import one_line

_MAX_CHARS = 5000  # NumPy explains a wrong version at length


def main(arguments: list[str]) -> Iterator[dict[str, object]]:
    """Yield the version, and the error, of one module.

    Args:
        arguments: the module: numpy, cv2 or cv_bridge.
    """
    (name,) = arguments
    if util.find_spec(name) is None:
        yield {'is_installed': False}
        return
    lines = io.StringIO()  # NumPy prints why a module of an older NumPy cannot be imported
    try:
        with contextlib.redirect_stderr(lines):
            module = importlib.import_module(name)
            _use(name)
    except BaseException as error:  # noqa: BLE001  # a compiled module may raise anything
        text = f'{lines.getvalue()} {type(error).__name__}: {error}'
        yield {'is_installed': True, 'error': one_line(text, _MAX_CHARS)}
        return
    version = getattr(module, '__version__', '')
    yield {'is_installed': True, 'version': version, 'file': str(module.__file__)}


def _use(name: str) -> None:
    """Call into the compiled part, which an import alone may not load."""
    numpy = importlib.import_module('numpy')
    image = numpy.zeros((4, 4, 3), numpy.uint8)
    if name == 'cv2':
        sys.modules[name].resize(image, (2, 2))
    elif name == 'cv_bridge':
        bridge = sys.modules[name].CvBridge()
        bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(image, 'bgr8'), 'mono8')
