# SPDX-License-Identifier: Apache-2.0
"""The instance masks of `lisa-ros export`, and the files that describe them for people.

Letters: N instances, H x W the image [px].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lisa_ros.commands.rgbd_input import RgbdInput
from lisa_ros.commands.segment import box_json
from lisa_ros.errors import ImageError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.images.mask_file import read_mask
from lisa_ros.perception.answer_phrases import object_names
from lisa_ros.perception.masks import MAX_MASKS, area
from lisa_ros.perception.overlay import overlay
from lisa_ros.results import Segmentation, Status

NAMES = ('answer.json', 'overlay.png')


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """The masks of the objects to grasp."""

    masks: np.ndarray  # (N, H, W) bool, N at most MAX_MASKS
    source: str  # the query, or the name of the file
    answer: Segmentation | None = None  # None: the masks are from a file

    def score(self, index: int) -> float | None:
        """Return the score of a mask, None from a file."""
        return None if self.answer is None else round(float(self.answer.scores[index]), 4)

    def name(self, index: int) -> str | None:
        """Return the name of an object, as on ~/detections; None from a file."""
        return None if self.answer is None else object_names(self.answer)[index]


def read_masks(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the masks of a PNG by rising value, (N, H, W) bool, N at most MAX_MASKS.

    Each value is an instance, as in ~/mask. 255 is an instance if there is no other value, and
    "unlabelled" else. A cut-out, a colour, a mask with soft edges or a JPEG is one instance; see
    `images.mask_file`.

    Raises:
        ImageError: the file cannot be read, has another shape (H, W) or no clear meaning, or is
            empty.
    """
    image = read_mask(path)
    is_single = image.is_graded or not image.has_ids
    values = image.mask().astype(np.uint8) if is_single else image.values
    if values.shape != shape:
        raise ImageError(
            f'{path} is {values.shape[1]} x {values.shape[0]} pixels, the image '
            f'{shape[1]} x {shape[0]}: give a mask of the same size'
        )
    labels = np.unique(values)
    if labels[0] != 0 and len(labels) > 1 and 255 not in labels:
        raise ImageError(
            f'{path} has values from {labels[0]} to {labels[-1]}, but no background; expected 0 '
            'there: save it again, as PNG and not as JPEG'
        )
    labels = labels[labels > 0]
    if len(labels) > 1:
        labels = labels[labels != 255]
    if not 1 <= len(labels) <= MAX_MASKS:
        raise ImageError(
            f'{path} has {len(labels)} values above 0; expected 1 to {MAX_MASKS} instances'
        )
    return values[None] == labels[:, None, None]


def write(
    out: Path,
    rgbd_input: RgbdInput,
    instances: InstanceMasks,
    objects: list[Object3D | None],
) -> None:
    """Write answer.json and overlay.png into a folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    answer = instances.answer
    answer_json = {
        'query': answer and answer.query,
        'answer': answer and answer.answer,
        'status': (answer.status if answer else Status.FOUND).name,
        'header': _header_json(rgbd_input),
        'camera': _camera_json(rgbd_input.rgbd.camera),
        'instances': [
            {
                'id': index + 1,
                'name': instances.name(index),
                'score': instances.score(index),
                'box': box_json(mask),
                'area': area(mask),
                'place': located and _object_json(located),
            }
            for index, (mask, located) in enumerate(zip(instances.masks, objects, strict=True))
        ],
    }
    text = json.dumps(answer_json, indent=1) + '\n'
    (out / 'answer.json').write_text(text, encoding='utf-8')
    caption = [instances.source, answer.answer] if answer else [instances.source]
    labels = [str(number) for number in range(1, len(instances.masks) + 1)]
    drawing = overlay(rgbd_input.rgbd.image, instances.masks, labels, caption)
    Image.fromarray(drawing).save(out / 'overlay.png')


def print_summary(instances: InstanceMasks, objects: list[Object3D | None], out: Path) -> None:
    """Print the answer, and a line for each instance."""
    if instances.answer:
        print(instances.answer.answer)
    for index, located in enumerate(objects):
        name = instances.name(index)
        title = f'{index + 1}, {name}' if name else f'{index + 1}'
        if located is None:
            print(f'{title}: no valid depth, or none that forms a surface')
            continue
        x, y, z = located.centroid
        size = ' x '.join(f'{value:.3f}' for value in located.box.extent)
        score = instances.score(index)
        score_text = '' if score is None else f', score {score:.2f}'
        print(
            f'{title}: {len(located.points)} points about ({x:.3f}, {y:.3f}, {z:.3f}) m, '
            f'box {size} m{score_text}'
        )
    print(f'FOUND, files in {out}/')


def _header_json(rgbd_input: RgbdInput) -> dict | None:
    if rgbd_input.stamp is None:
        return None
    seconds, nanoseconds = divmod(rgbd_input.stamp, 1_000_000_000)
    return {
        'stamp': {'sec': seconds, 'nanosec': nanoseconds},
        'frame_id': rgbd_input.frame_id,
    }


def _camera_json(camera: Camera) -> dict:
    return {
        'k': np.asarray(camera.k, float).ravel().tolist(),
        'width': camera.size[0],
        'height': camera.size[1],
        'distortion_model': camera.distortion_model,
        'd': np.asarray(camera.distortion, float).ravel().tolist(),
    }


def _object_json(located: Object3D) -> dict:
    """Return the position of an object as plain data, metres in the optical frame."""
    box = {
        'centre': located.box.centre.tolist(),
        'rotation': located.box.rotation.tolist(),  # rows of the matrix; its columns are the axes
        'size': located.box.extent.tolist(),
    }
    return {
        'points': len(located.points),
        'centroid': located.centroid.tolist(),
        'nearest': located.nearest.tolist(),
        'box': box,
        'depth_confidence': round(located.confidence, 4),
    }
