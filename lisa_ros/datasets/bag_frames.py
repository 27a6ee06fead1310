# SPDX-License-Identifier: Apache-2.0
"""Extracts images from a bag, to annotate them and fine-tune on them.

    lisa-ros frames BAG --topic /camera/color/image_raw --out frames --every 2
    labelme frames             # outline the objects that the robot should find, and name them
    lisa-ros finetune --data frames ...

A frame is written as `<stamp>.png`, with the stamp of its header in nanoseconds, so that it can be
found in the bag. Existing images are overwritten; annotation files are kept. An annotated image
with other pixels is kept, too: its outlines would not fit the new ones.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.datasets.annotations import read_image
from lisa_ros.datasets.json_io import read_or_skip
from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.messages.bag import BagImage, read_images


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
        on_error: called for each part of the bag and each image that cannot be read, and for each
            annotated image in the folder that has other pixels; if it returns, the part or the
            image is left out, and the image in the folder is kept.

    Raises:
        DataError: as `messages.bag.read_images`; or the folder cannot be written to; or `on_error`
            raised it.
    """
    written: list[Path] = []
    for frame in read_images(bag, topic, min_interval, on_error):
        path = out / f'{frame.stamp}.png'
        if read_or_skip(partial(_check_annotated, path, frame), on_error) is None:
            continue
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.pixels).save(path)
        except OSError as error:
            raise DataError(f'{out}: cannot be written to ({error})') from error
        written.append(path)
    return written


def _check_annotated(path: Path, frame: BagImage) -> bool:
    """Return True if a frame may be written to a path, where it may be written again.

    Raises:
        DataError: another image with annotations is there.
    """
    labels = (path.with_suffix(suffix) for suffix in ('.json', '.JSON', ''))
    annotation = next((label for label in labels if label.exists()), None)
    if annotation is None or not path.exists():
        return True
    try:
        present = read_image(path)
    except DataError:  # cut off when it was written; its annotations are those of this frame
        return True
    if not np.array_equal(present, frame.pixels):
        raise DataError(
            f'{path}: {annotation.name} belongs to it, and it has other pixels than the frame of '
            'this stamp, perhaps of another topic; it is kept: give another --out'
        )
    return True
