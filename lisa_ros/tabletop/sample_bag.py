# SPDX-License-Identifier: Apache-2.0
"""A bag of a camera that moves round a rendered table, with the truth of every frame beside it.

    bag/               rosbag2 (mcap): colour rgb8, aligned depth 16UC1 [mm] (REP-118),
                       camera_info, tf_static (camera_link to the optical frame) and tf (world
                       to camera_link)
    truth/<stamp>.png  (H, W) uint8 instance ids by stamp [ns], 0 none
    truth/objects.json what each id is

Frames follow REP-103: world and camera_link x forward, y left, z up; the optical frame x right,
y down, z forward.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.tabletop import rendering, scene_sampling

FRAME = 'camera_color_optical_frame'
START = 1_790_000_000_000_000_000  # stamp of the first frame [ns]
_OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # optical axes in camera_link


def camera_path(count: int, sway: float = 0.45) -> list[np.ndarray]:
    """Return optical poses in the world, (4, 4) each: an arc round the table that dips midway."""
    poses = []
    for i in range(count):
        t = i / max(1, count - 1)
        azimuth = -math.pi / 2 + sway * (2 * t - 1)
        height = math.radians(44 - 8 * math.sin(math.pi * t))
        away = np.array(
            [
                math.cos(azimuth) * math.cos(height),
                math.sin(azimuth) * math.cos(height),
                math.sin(height),
            ]
        )
        target = np.array([0.0, -0.01, 0.04])
        poses.append(scene_sampling.camera_matrix(target + 0.8 * away, target))
    return poses


def write_sample(
    cache: Path,
    out: Path,
    split: str,
    number: int,
    *,
    seconds: float = 4.0,
    rate: float = 10.0,
    size: tuple[int, int] = (320, 240),
) -> None:
    """Render a scene from a moving camera into `out`; what was there before is replaced."""
    renderer = rendering.Renderer(cache, *size)
    scene = scene_sampling.draw_scene(
        scene_sampling.scene_rng(split, number), renderer.boxes, unseen=split == 'unseen'
    )
    renderer.set_scene(scene)
    shutil.rmtree(out / 'bag', ignore_errors=True)
    shutil.rmtree(out / 'truth', ignore_errors=True)
    (out / 'truth').mkdir(parents=True)
    store = get_typestore(Stores.ROS2_JAZZY)
    objects: dict[int, dict] = {}
    bag = Writer(out / 'bag', version=9, storage_plugin=StoragePlugin.MCAP)
    bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with bag as writer:
        put = _topics(writer, store)
        put(
            '/tf_static',
            _transforms(store, [('camera_link', FRAME, _OPTICAL, np.zeros(3), START)]),
            START,
        )
        poses = camera_path(int(seconds * rate))
        for i, pose in enumerate(tqdm(poses, desc='bag', unit='frame')):
            stamp = START + round(i * 1e9 / rate)
            frame = renderer.frame(pose)
            millimetres = np.clip(np.rint(frame.depth * 1000), 0, 65535).astype(np.uint16)
            link = pose[:3, :3] @ _OPTICAL.T
            put(
                '/tf',
                _transforms(store, [('world', 'camera_link', link, pose[:3, 3], stamp)]),
                stamp,
            )
            put('/camera/color/image_raw', _image(store, frame.colour, 'rgb8', stamp), stamp)
            put(
                '/camera/aligned_depth_to_color/image_raw',
                _image(store, millimetres, '16UC1', stamp),
                stamp,
            )
            put('/camera/color/camera_info', _camera_info(store, frame.k, size, stamp), stamp)
            whole = frame.ids % rendering.PART_FLAG  # parts belong to their things here
            cv2.imwrite(
                str(out / 'truth' / f'{stamp}.png'), whole, [cv2.IMWRITE_PNG_COMPRESSION, 9]
            )
            for thing in rendering.scene_metadata(scene, pose, frame.ids):
                if thing['area']:
                    objects[thing['id']] = {
                        'kind': thing['kind'],
                        'name': ' '.join(filter(None, (thing['colour'], thing['kind']))),
                    }
    note = json.dumps({str(key): objects[key] for key in sorted(objects)}, indent=1)
    (out / 'truth' / 'objects.json').write_text(note + '\n')


def _topics(writer: Writer, store):
    """Return a function that writes a message on a topic at a time [ns]."""
    connections = {}
    never = QosTime(2147483647, 4294967295)
    latched = Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
        never, never, QosLiveliness.AUTOMATIC, never, avoid_ros_namespace_conventions=False,
    )  # fmt: skip

    def put(topic: str, message, stamp: int) -> None:
        if topic not in connections:
            qos = [latched] if topic == '/tf_static' else []
            connections[topic] = writer.add_connection(
                topic, message.__msgtype__, typestore=store, offered_qos_profiles=qos
            )
        data = store.serialize_cdr(message, message.__msgtype__)
        writer.write(connections[topic], stamp, data)

    return put


def _header(store, stamp: int, frame: str):
    time = store.types['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9)
    return store.types['std_msgs/msg/Header'](time, frame)


def _image(store, pixels: np.ndarray, encoding: str, stamp: int):
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
    return store.types['sensor_msgs/msg/Image'](
        _header(store, stamp, FRAME), height, width, encoding, 0, data.size // height, data
    )


def _camera_info(store, k: np.ndarray, size: tuple[int, int], stamp: int):
    p = np.zeros((3, 4))
    p[:, :3] = k
    region = store.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return store.types['sensor_msgs/msg/CameraInfo'](
        _header(store, stamp, FRAME), size[1], size[0], 'plumb_bob', np.zeros(5),
        k.ravel(), np.eye(3).ravel(), p.ravel(), 0, 0, region,
    )  # fmt: skip


def _transforms(store, edges):
    """Return a TFMessage of (parent, child, rotation (3, 3), translation [m], stamp [ns])."""
    types = store.types
    messages = []
    for parent, child, rotation, translation, stamp in edges:
        x, y, z, w = matrix_to_quaternion(rotation)
        messages.append(
            types['geometry_msgs/msg/TransformStamped'](
                _header(store, stamp, parent),
                child,
                types['geometry_msgs/msg/Transform'](
                    types['geometry_msgs/msg/Vector3'](*map(float, translation)),
                    types['geometry_msgs/msg/Quaternion'](x, y, z, w),
                ),
            )
        )
    return types['tf2_msgs/msg/TFMessage'](messages)
