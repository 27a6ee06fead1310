# SPDX-License-Identifier: Apache-2.0
"""The file that keeps a `PlaceMemory` over a restart: JSON with the frame and the places.

A new version is written to another file, which then replaces the old one: a node that is killed
meanwhile leaves the old version complete.
A file belongs to one map. It has only the name of the map's frame, and a new map has the same.
Any thread, one at a time for each file.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Sequence
from pathlib import Path

from lisa_ros.errors import DataError
from lisa_ros.files.access import is_missing
from lisa_ros.files.json_schema import INTEGER, NUMBER, TEXT, ListOf, Record, check_json
from lisa_ros.files.text import read_json
from lisa_ros.session.place_memory import Place, is_valid_place

_PLACE = Record(
    {
        'name': TEXT,
        'position': ListOf(NUMBER),
        'stamp': TEXT,  # JSON readers round integers of this size
        'confidence': NUMBER,
        'camera': TEXT,
        'thumbnail': TEXT,
        'sightings': INTEGER,
    }
)
_FILE = Record({'frame': TEXT, 'places': ListOf(_PLACE)})


def write_places(path: Path, frame: str, places: Sequence[Place]) -> None:
    """Write places; `frame` is that of their positions.

    Raises:
        DataError: the file cannot be written.
    """
    content = {
        'frame': frame,
        'places': [
            {
                'name': place.name,
                'position': list(place.position),
                'stamp': str(place.stamp),
                'confidence': place.confidence,
                'camera': place.camera,
                'thumbnail': base64.b64encode(place.thumbnail).decode(),
                'sightings': place.sightings,
            }
            for place in places
        ],
    }
    new = path.with_name(f'{path.name}.new')
    try:
        with new.open('w', encoding='utf-8') as file:
            file.write(json.dumps(content))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file
        new.replace(path)
    except OSError as error:
        raise DataError(
            f'{path} cannot be written ({error.strerror}): let the user of the node write there, '
            'or give another places_file'
        ) from error


def read_places(path: Path, frame: str) -> list[Place]:
    """Return the places in a file; none if there is no file.

    Raises:
        DataError: the file is damaged, or its places are in another frame.
    """
    if is_missing(path):
        return []
    content = read_json(path)
    check_json(path, content, _FILE)
    if content['frame'] != frame:
        raise DataError(
            f'{path} has places in {content["frame"]!r}; expected {frame!r}: set map_frame to the '
            'same frame, or give another places_file'
        )
    return [_place(path, item) for item in content['places']]


def _place(path: Path, item: dict) -> Place:
    try:
        x, y, z = map(float, item['position'])
        place = Place(
            item['name'],
            (x, y, z),
            int(item['stamp']),
            float(item['confidence']),
            item['camera'],
            base64.b64decode(item['thumbnail'], validate=True),
            item['sightings'],
        )
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f'{path}: the place {item["name"]!r} is damaged ({error}): remove it, or the file'
        ) from error
    if not is_valid_place(place):
        raise DataError(
            f'{path}: the place {place.name!r} has a position, stamp or count that cannot be: '
            'remove it, or the file'
        )
    return place
