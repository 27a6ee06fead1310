# SPDX-License-Identifier: Apache-2.0
"""Decoding of the input images, Image and CompressedImage. Any thread."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CompressedImage

from lisa_ros.messages.image import compressed_to_rgb, image_to_rgb
from lisa_ros.session.frame_buffer import SyncedMessages


class MessageDecoder:
    """Decodes ROS images for the inference thread, as its `FrameDecoder`."""

    def rgb_image(self, frame: SyncedMessages) -> np.ndarray:
        """Return the frame's colour image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the encoding or the size is not supported.
        """
        return rgb_image(frame)


def rgb_image(frame: SyncedMessages) -> np.ndarray:
    """Return the frame's colour image, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the encoding or the size is not supported.
    """
    is_compressed = isinstance(frame.image, CompressedImage)
    return compressed_to_rgb(frame.image) if is_compressed else image_to_rgb(frame.image)
