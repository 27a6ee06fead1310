# SPDX-License-Identifier: Apache-2.0
"""Writes a bag of a camera that moves around a rendered scene, with ground-truth masks.

    bag/                rosbag2 (mcap): colour rgb8, aligned depth 16UC1 [mm] (REP-118),
                        camera_info, tf_static (camera_link to the optical frame), tf (world to
                        camera_link)
    truth/<stamp>.png   (H, W) uint8 instance ids of the frame with this stamp [ns]; 0 none
    truth/objects.json  instance id -> {"kind": category, "name": name}

Frames follow REP-103: world and camera_link have x forward, y left, z up; the optical frame has
x right, y down, z forward.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore
from tqdm import tqdm

from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.tabletop import rendering, scene_sampling, scene_writer
from lisa_ros.tabletop.objects import PART_FLAG

OPTICAL_FRAME = 'camera_color_optical_frame'
FIRST_STAMP = 1_790_000_000_000_000_000  # [ns]
_OPTICAL_TO_LINK = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # rotation, see REP-103


def camera_path(count: int, max_azimuth: float = 0.45) -> list[np.ndarray]:
    """Return camera poses on an arc around the table; the camera is lowest in the middle.

    Args:
        count: number of poses.
        max_azimuth: angle of the arc to each side [rad].

    Returns:
        Poses of the optical frame in the world, (4, 4) each.
    """
    poses = []
    for i in range(count):
        t = i / max(1, count - 1)
        azimuth = -math.pi / 2 + max_azimuth * (2 * t - 1)
        elevation = math.radians(44 - 8 * math.sin(math.pi * t))
        target = np.array([0.0, -0.01, 0.04])
        position = target + 0.8 * scene_sampling.direction(azimuth, elevation)
        poses.append(scene_sampling.camera_matrix(position, target))
    return poses


def write_sample_bag(
    cache: Path,
    out: Path,
    split: str,
    number: int,
    *,
    seconds: float = 4.0,
    rate: float = 10.0,
    size: tuple[int, int] = (320, 240),
) -> None:
    """Render a scene from a moving camera and write the bag; replace an earlier one.

    Args:
        cache: folder of the converted assets, see `assets`.
        out: folder of bag/ and truth/.
        split: split of the scene, see `scene_sampling.SPLITS`.
        number: number of the scene in its split.
        seconds: duration of the bag [s].
        rate: frame rate [Hz].
        size: (width, height) of the images [px].
    """
    renderer = rendering.Renderer(cache, *size)
    scene = scene_sampling.draw_scene(
        scene_sampling.scene_rng(split, number), renderer.boxes, unseen=split == 'unseen'
    )
    renderer.set_scene(scene)
    shutil.rmtree(out / 'bag', ignore_errors=True)
    shutil.rmtree(out / 'truth', ignore_errors=True)
    (out / 'truth').mkdir(parents=True)
    objects: dict[int, dict[str, str]] = {}
    bag = Writer(out / 'bag', version=9, storage_plugin=StoragePlugin.MCAP)
    bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with bag as writer:
        topics = _TopicWriter(writer, get_typestore(Stores.ROS2_JAZZY))
        mount = _Transform('camera_link', OPTICAL_FRAME, _OPTICAL_TO_LINK, np.zeros(3))
        topics.write_transforms('/tf_static', [mount], FIRST_STAMP)
        poses = camera_path(int(seconds * rate))
        for i, pose in enumerate(tqdm(poses, desc='bag', unit='frame')):
            stamp = FIRST_STAMP + round(i * 1e9 / rate)
            frame = renderer.render(pose)
            topics.write_frame(frame, pose, size, stamp)
            _write_ids(out / 'truth' / f'{stamp}.png', frame.ids)
            objects |= _visible_objects(scene_writer.scene_metadata(scene, pose, frame.ids))
    text = json.dumps({str(key): objects[key] for key in sorted(objects)}, indent=1)
    (out / 'truth' / 'objects.json').write_text(text + '\n')


def _write_ids(path: Path, ids: np.ndarray) -> None:
    """Write an id image; a named part gets the id of its object."""
    cv2.imwrite(str(path), ids % PART_FLAG, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _visible_objects(metadata: Iterable[dict]) -> dict[int, dict[str, str]]:
    """Return the entries of objects.json for the objects that a frame shows."""
    return {
        obj['id']: {
            'kind': obj['category'],
            'name': ' '.join(filter(None, (obj['colour'], obj['category']))),
        }
        for obj in metadata
        if obj['area']
    }


@dataclass(frozen=True)
class _Transform:
    parent: str  # frame ids
    child: str
    rotation: np.ndarray  # (3, 3), child to parent
    translation: np.ndarray  # (3,) [m]


class _TopicWriter:
    """Builds messages and writes them to a bag; stamps are in ns."""

    def __init__(self, writer: Writer, store: Typestore):
        self._writer, self._store = writer, store
        self._connections: dict[str, Connection] = {}

    def write_frame(
        self, frame: rendering.RenderedFrame, pose: np.ndarray, size: tuple[int, int], stamp: int
    ) -> None:
        """Write the camera's transform, colour image, depth image and intrinsics."""
        rotation = pose[:3, :3] @ _OPTICAL_TO_LINK.T
        transform = _Transform('world', 'camera_link', rotation, pose[:3, 3])
        self.write_transforms('/tf', [transform], stamp)
        self._write('/camera/color/image_raw', self._image(frame.image, 'rgb8', stamp), stamp)
        depth = scene_writer.depth_in_millimetres(frame.depth)
        self._write(
            '/camera/aligned_depth_to_color/image_raw', self._image(depth, '16UC1', stamp), stamp
        )
        self._write('/camera/color/camera_info', self._camera_info(frame.k, size, stamp), stamp)

    def write_transforms(self, topic: str, transforms: Iterable[_Transform], stamp: int) -> None:
        """Write a TFMessage. On /tf_static its durability is transient local."""
        types = self._store.types
        messages = []
        for transform in transforms:
            x, y, z, w = matrix_to_quaternion(transform.rotation)
            messages.append(
                types['geometry_msgs/msg/TransformStamped'](
                    self._header(stamp, transform.parent),
                    transform.child,
                    types['geometry_msgs/msg/Transform'](
                        types['geometry_msgs/msg/Vector3'](*map(float, transform.translation)),
                        types['geometry_msgs/msg/Quaternion'](x, y, z, w),
                    ),
                )
            )
        self._write(topic, types['tf2_msgs/msg/TFMessage'](messages), stamp)

    def _write(self, topic: str, message: Any, stamp: int) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic,
                message.__msgtype__,
                typestore=self._store,
                offered_qos_profiles=[_latched_qos()] if topic == '/tf_static' else [],
            )
        data = self._store.serialize_cdr(message, message.__msgtype__)
        self._writer.write(self._connections[topic], stamp, data)

    def _header(self, stamp: int, frame_id: str) -> Any:
        types = self._store.types
        time = types['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9)
        return types['std_msgs/msg/Header'](time, frame_id)

    def _image(self, pixels: np.ndarray, encoding: str, stamp: int) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
        header = self._header(stamp, OPTICAL_FRAME)
        return self._store.types['sensor_msgs/msg/Image'](
            header, height, width, encoding, 0, data.size // height, data
        )

    def _camera_info(self, k: np.ndarray, size: tuple[int, int], stamp: int) -> Any:
        projection = np.zeros((3, 4))
        projection[:, :3] = k
        types = self._store.types
        roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
        return types['sensor_msgs/msg/CameraInfo'](
            self._header(stamp, OPTICAL_FRAME), size[1], size[0], 'plumb_bob', np.zeros(5),
            k.ravel(), np.eye(3).ravel(), projection.ravel(), 0, 0, roi,
        )  # fmt: skip


def _latched_qos() -> Qos:
    infinite = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
        infinite, infinite, QosLiveliness.AUTOMATIC, infinite,
        avoid_ros_namespace_conventions=False,
    )  # fmt: skip
