# SPDX-License-Identifier: Apache-2.0
"""Extracts images from a bag, to annotate them and fine-tune on them.

    lisa-ros frames BAG --topic /camera/color/image_raw --out frames --every 2
    labelme frames             # outline the objects that the robot should find, and name them
    lisa-ros finetune --data frames ...

A frame is written as `<stamp>.png`, with the stamp of its header in nanoseconds, so that it can be
found in the bag. Existing images are overwritten; annotation files are kept.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.messages.bag import read_images


def extract_frames(
    bag: Path,
    out: Path,
    topic: str | None = None,
    min_interval: float = 0.0,
    on_error: ErrorHandler = raise_error,
) -> list[Path]:
    """Write images of a bag as PNG files into a folder; return the files in the bag's order.

    Args:
        bag: a bag as `messages.bag.open_bag` accepts it.
        out: the folder; created if missing.
        topic: of Image or CompressedImage; None: the only one in the bag.
        min_interval: shortest time between two frames, by their stamps [s]; 0: all frames.
        on_error: called for each part of the bag and each image that cannot be read; if it
            returns, the part or the image is left out.

    Raises:
        DataError: as `messages.bag.read_images`; or the folder cannot be written to.
    """
    written: list[Path] = []
    for frame in read_images(bag, topic, min_interval, on_error):
        path = out / f'{frame.stamp}.png'
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.pixels).save(path)
        except OSError as error:
            raise DataError(f'{out}: cannot be written to ({error})') from error
        written.append(path)
    return written
