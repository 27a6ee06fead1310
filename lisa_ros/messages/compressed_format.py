# SPDX-License-Identifier: Apache-2.0
"""The text `format` of a sensor_msgs/CompressedImage, as image_transport and drivers write it.

- "rgb8; jpeg compressed bgr8": encoding of the image; codec; channel order of the file
- "16UC1; compressedDepth png": depth with a header, see compressed_depth.py
- "jpeg", "png", "": the codec alone; colours as the file has them
"""

from __future__ import annotations

from dataclasses import dataclass

_VIDEO = ('h264', 'h265', 'hevc', 'av1', 'vp8', 'vp9', 'ffmpeg', 'theora', 'mpeg')


@dataclass(frozen=True)
class CompressedFormat:
    """The parts of a format; a part that is missing is ''."""

    encoding: str  # of sensor_msgs, in lower case
    codec: str  # in lower case
    stored: str  # encoding of the pixels in the file, in lower case

    @classmethod
    def parse(cls, text: str) -> CompressedFormat:
        """Return the parts of a format; a format of any text has parts."""
        head, semicolon, tail = text.lower().partition(';')
        words = (tail if semicolon else head).replace(';', ' ').split()
        compressed = words.index('compressed') if 'compressed' in words else len(words)
        return cls(
            head.strip() if semicolon else '',
            words[0] if words else '',
            ''.join(words[compressed + 1 : compressed + 2]),
        )

    @property
    def is_compressed_depth(self) -> bool:
        """Whether the data are those of compressed_depth_image_transport."""
        return self.codec == 'compresseddepth'

    @property
    def is_depth(self) -> bool:
        """Whether the image is depth: its encoding has a range instead of colours."""
        return self.is_compressed_depth or self.encoding in ('16uc1', '32fc1')

    @property
    def is_video(self) -> bool:
        """Whether the data are part of a video stream, which is no image by itself."""
        return any(self.codec.startswith(name) for name in _VIDEO)

    @property
    def swaps_red_and_blue(self) -> bool:
        """Whether red and blue are swapped in the file.

        image_transport gives OpenCV's encoder, which expects BGR, what the last word says. For
        TIFF it names nothing and gives it the pixels as they are.
        """
        is_plain_tiff = self.codec == 'tiff' and not self.stored
        return (self.encoding if is_plain_tiff else self.stored).startswith('rgb')
