# SPDX-License-Identifier: Apache-2.0
"""The sensors of a robot on a rendered drive: image, depth, camera_info and TF, until stopped.

    python benchmarks/drive_player.py FRAMES --seconds 60 --rate 5 --width 640 --height 480 \
        --seed 0 --start NANOSECONDS

TF is that of a real robot: map to odom from a localization, which jumps, odom to base_link from an
odometry, which drifts, and the camera as static transforms. The robot stands until `--start` and
after the end of the drive. Needs tf2_msgs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
import tabletop_drive
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rgbd_camera import image_message
from sensor_msgs.msg import CameraInfo, Image
from tabletop_drive import ODOMETRY_STEP, Drive, DrivenPath, Odometry

from lisa_ros.geometry.rotation import matrix_to_quaternion
from lisa_ros.ros import fastdds
from lisa_ros.ros.qos import latched_qos

OPTICAL_FRAME = 'camera_optical_frame'
_LOCALIZATION_STEPS = 2  # steps of the odometry between two messages of the localization
# A localization dates its transform ahead: it holds until the next one (transform_tolerance).
_TOLERANCE = 200_000_000  # [ns]


class DrivePlayer:
    """Publishes the drive; one thread."""

    def __init__(self, folder: Path, drive: Drive, start: int):
        """Join the graph; `start` of the drive [ns]."""
        from tf2_msgs.msg import TFMessage  # without it, `command` works all the same

        self._folder, self._drive, self._start = folder, drive, start
        self._message = TFMessage
        self.node = rclpy.create_node('robot')
        create = self.node.create_publisher
        self._images = create(Image, 'image', qos_profile_sensor_data)
        self._depths = create(Image, 'depth', qos_profile_sensor_data)
        self._infos = create(CameraInfo, 'camera_info', qos_profile_sensor_data)
        self._transforms = create(TFMessage, '/tf', 100)
        self._odometry = Odometry(DrivenPath(drive.seconds), drive.seed)
        self._info = CameraInfo(
            width=drive.size[0], height=drive.size[1], distortion_model='plumb_bob'
        )
        self._info.k, self._info.d = drive.k().ravel(), [0.0] * 5
        self._static = create(TFMessage, '/tf_static', latched_qos())
        link, optical = (
            tabletop_drive.base_to_camera_link(),
            tabletop_drive.camera_link_to_optical(),
        )
        self._static.publish(
            self._message(
                transforms=[
                    _transform('base_link', 'camera_link', link, start),
                    _transform('camera_link', OPTICAL_FRAME, optical, start),
                ]
            )
        )

    def play(self, is_stopping: threading.Event) -> None:
        """Publish until the event is set."""
        step_ns = round(ODOMETRY_STEP * 1e9)
        steps_per_frame = round(1 / self._drive.rate / ODOMETRY_STEP)
        step = (time.time_ns() - self._start) // step_ns
        while not is_stopping.is_set():
            stamp = self._start + step * step_ns
            if is_stopping.wait(max(0.0, (stamp - time.time_ns()) / 1e9)):
                return
            self._publish_transforms(step, stamp)
            if step % steps_per_frame == 0:
                self._publish_frame(step // steps_per_frame, stamp)
            step += 1

    def _publish_transforms(self, step: int, stamp: int) -> None:
        base = _transform('odom', 'base_link', self._odometry.odom_to_base(step), stamp)
        transforms = [base]
        if step % _LOCALIZATION_STEPS == 0:
            odom = self._odometry.map_to_odom(step)
            transforms.append(_transform('map', 'odom', odom, stamp + _TOLERANCE))
        self._transforms.publish(self._message(transforms=transforms))

    def _publish_frame(self, number: int, stamp: int) -> None:
        number = min(max(number, 0), self._drive.frame_count - 1)
        image, depth = tabletop_drive.read_frame(self._folder, number)
        for message, publisher in (
            (image_message(depth, '16UC1'), self._depths),
            (self._info, self._infos),
            (image_message(image, 'rgb8'), self._images),
        ):
            message.header.stamp, message.header.frame_id = _time(stamp), OPTICAL_FRAME
            publisher.publish(message)


def _time(stamp: int) -> Time:
    return Time(sec=stamp // 10**9, nanosec=stamp % 10**9)


def _transform(parent: str, child: str, pose: np.ndarray, stamp: int) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.stamp, message.header.frame_id = _time(stamp), parent
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = map(float, pose[:3, 3])
    rotation.x, rotation.y, rotation.z, rotation.w = matrix_to_quaternion(pose[:3, :3])
    return message


def command(folder: Path, drive: Drive, start: int) -> list[str]:
    """Return the command line that plays a drive from `start` [ns] on."""
    width, height = drive.size
    options = {'seconds': drive.seconds, 'rate': drive.rate, 'width': width, 'height': height,
               'seed': drive.seed, 'start': start}  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f'--{name}', str(value))]
    return [sys.executable, __file__, str(folder.resolve()), *arguments]


def main() -> None:
    """Play until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('frames', type=Path, help='folder of tabletop_drive.render')
    for name, of_type in (
        ('seconds', float), ('rate', float), ('width', int), ('height', int), ('seed', int),
        ('start', int),
    ):  # fmt: skip
        parser.add_argument(f'--{name}', type=of_type, required=True)
    options = parser.parse_args()
    fastdds.configure_shared_memory()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    is_stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_stopping.set())
    drive = Drive(options.seconds, options.rate, (options.width, options.height), options.seed)
    player = DrivePlayer(options.frames, drive, options.start)
    player.play(is_stopping)
    player.node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
