# SPDX-License-Identifier: Apache-2.0
"""Decoding of the input images, Image and CompressedImage. Any thread."""

from __future__ import annotations

import numpy as np

from lisa_ros.messages.image import message_to_rgb
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.session.frame_buffer import SyncedMessages


class MessageDecoder:
    """Decodes ROS images for the inference thread, as its `FrameDecoder`."""

    def __init__(self, settings: CurrentSettings):
        """Decode images of up to the setting `max_image_pixels`."""
        self._settings = settings

    def rgb_image(self, frame: SyncedMessages) -> np.ndarray:
        """Return the frame's colour image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the encoding or the size is not supported.
        """
        return rgb_image(frame, self._settings.value.max_image_pixels)


def rgb_image(frame: SyncedMessages, max_pixels: int) -> np.ndarray:
    """Return the frame's colour image, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the encoding or the size is not supported, or it has more than `max_pixels`.
    """
    return message_to_rgb(frame.image, max_pixels)
