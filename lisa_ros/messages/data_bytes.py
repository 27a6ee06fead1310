# SPDX-License-Identifier: Apache-2.0
"""The bytes of a message's uint8[] field, in all forms that Python has for it."""

from __future__ import annotations

from typing import Any

import numpy as np


def data_bytes(message: Any) -> np.ndarray:
    """Return a message's data as (n,) uint8: no copy of array('B'), bytes or a NumPy array.

    From ROS 2 Lyrical on the data can be a rosidl_buffer.Buffer in the memory of a GPU, if the
    subscription accepts that. It is copied.
    """
    data = message.data
    try:
        return np.frombuffer(data, np.uint8)
    except TypeError:
        if hasattr(data, 'backend_type'):  # a Buffer
            return np.frombuffer(data.to_bytes(), np.uint8)
        return np.asarray(data, dtype=np.uint8)  # a list, in messages written by hand
