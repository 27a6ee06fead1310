# SPDX-License-Identifier: Apache-2.0
"""Opening rosbag2 bags without ROS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.typesys import Stores, get_typestore

from lisa_ros.errors import DataError


@contextlib.contextmanager
def opened(bag: Path) -> Iterator[AnyReader]:
    """Give a rosbags reader of the bag, a folder or a bare file.

    Raises:
        DataError: it is not there, or no bag; the message says what is wrong with it.
    """
    if not bag.exists():
        raise DataError(f'there is no bag at {bag}')
    try:
        reader = AnyReader([bag], default_typestore=get_typestore(Stores.LATEST))
        reader.open()
    except (AnyReaderError, ValueError, OSError) as error:
        raise DataError(f'{bag} is no rosbag2 bag that can be read: {error}') from error
    try:
        yield reader
    finally:
        reader.close()
