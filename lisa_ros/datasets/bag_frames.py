# SPDX-License-Identifier: Apache-2.0
"""Takes pictures out of a bag, for people to label and `lisa-ros finetune` to learn from.

    lisa-ros frames BAG --topic /camera/color/image_raw --out frames --every 2
    labelme frames             # draw what the robot should find, and call it by its name
    lisa-ros finetune --data frames ...

A frame is `<stamp>.png`, its header's stamp in nanoseconds, so that it is found again in the bag.
Frames that are there already are written anew; the labels beside them stay.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lisa_ros.errors import DataError
from lisa_ros.messages.bag import read_images


def extract_frames(
    bag: Path, out: Path, topic: str | None = None, every: float = 0.0
) -> list[Path]:
    """Write frames of a bag as PNG into a folder; return the files, in the bag's order.

    Args:
        bag: as `bags.opened` takes it.
        out: made if it is not there.
        topic: of Image or CompressedImage; by default the bag's only one.
        every: least time between two frames, by their stamps [s]; 0: all of them.

    Raises:
        DataError: as `bags.pictures`; or a folder that cannot be written to.
    """
    written: list[Path] = []
    for frame in read_images(bag, topic, every):
        path = out / f'{frame.stamp}.png'
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.pixels).save(path)
        except OSError as error:
            raise DataError(f'{out}: cannot be written to ({error})') from error
        written.append(path)
    return written
