# SPDX-License-Identifier: Apache-2.0
"""An RGB-D camera: publishes image, depth and camera_info at a steady rate, until it is stopped.

    python benchmarks/rgbd_camera.py [--rate 30] [--width 640 --height 480] [--no-depth]

The image is the first one of the bundled test set, moved by a pixel from frame to frame, so that
no two frames in a row are the same. The depth is a table that is seen at a slant, with a box in
the centre, in millimetres.
"""

from __future__ import annotations

import argparse
import array
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.resources import TEST_SETS  # found by the line above

SPONGE = 'show me the sponge'  # a query about the image that lisa-tabletop answers with a mask
_IMAGE = 'test_00000.webp'  # of the bundled test set
FRAME_ID = 'camera_optical'
_PERIOD = 16  # frames until the motion repeats


def test_image(width: int, height: int) -> np.ndarray:
    """Return the first image of the bundled test set, (height, width, 3) uint8 RGB."""
    with zipfile.ZipFile(TEST_SETS / 'test.zip') as files:
        content = np.frombuffer(files.read(_IMAGE), np.uint8)
    return cv2.resize(cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1], (width, height))


def table_depth(width: int, height: int) -> np.ndarray:
    """Return the depth of a slanted table with a box on it, (height, width) uint16 [mm]."""
    rows = np.linspace(1200, 600, height).astype(np.uint16)
    depth = np.repeat(rows[:, None], width, axis=1)
    depth[height // 4 : height - height // 4, width // 4 : width - width // 4] = 700
    return depth


def image_message(pixels: np.ndarray, encoding: str):  # -> sensor_msgs/Image
    """Return a message without stamp; pixels are (H, W, 3) uint8 or (H, W) uint16."""
    from sensor_msgs.msg import Image

    content = array.array('B', np.ascontiguousarray(pixels).tobytes())
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding=encoding, data=content)
    message.step = len(content) // height
    message.header.frame_id = FRAME_ID
    return message


def camera_info(width: int, height: int):  # -> sensor_msgs/CameraInfo
    """Return the camera info of a lens without distortion, without stamp."""
    from sensor_msgs.msg import CameraInfo

    k = [0.9 * width, 0.0, width / 2, 0.0, 0.9 * width, height / 2, 0.0, 0.0, 1.0]
    message = CameraInfo(width=width, height=height, k=k, distortion_model='plumb_bob')
    message.header.frame_id = FRAME_ID
    message.d = [0.0] * 5
    return message


def publish(rate: float, width: int, height: int, has_depth: bool = True) -> None:
    """Publish frames at a rate [Hz] until a signal comes; without depth only images."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data as qos
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import CameraInfo, Image

    from lisa_ros.ros import fastdds

    fastdds.configure_shared_memory()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('camera')
    image, depth = test_image(width, height), table_depth(width, height)
    frames = [image_message(np.roll(image, n, axis=1), 'rgb8') for n in range(_PERIOD)]
    messages = [image_message(depth, '16UC1'), camera_info(width, height)]
    topics = {'depth': Image, 'camera_info': CameraInfo, 'image': Image}
    if not has_depth:
        messages, topics = [], {'image': Image}
    publishers = [node.create_publisher(topics[topic], topic, qos) for topic in topics]
    is_stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_stopping.set())
    next_at, count = time.monotonic(), 0
    while not is_stopping.wait(max(0.0, next_at - time.monotonic())):
        stamp = node.get_clock().now().to_msg()
        frame = frames[count % _PERIOD]
        for message, publisher in zip([*messages, frame], publishers, strict=True):
            message.header.stamp = stamp
            publisher.publish(message)
        count, next_at = count + 1, max(next_at + 1 / rate, time.monotonic() - 1)
    node.destroy_node()  # frees the shared memory
    rclpy.try_shutdown()


def main() -> None:
    """Publish until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rate', type=float, default=30.0, help='[Hz] (default: 30)')
    parser.add_argument('--width', type=int, default=640, help='[px] (default: 640)')
    parser.add_argument('--height', type=int, default=480, help='[px] (default: 480)')
    parser.add_argument(
        '--no-depth', dest='depth', action='store_false', help='publish images only'
    )
    options = parser.parse_args()
    publish(options.rate, options.width, options.height, options.depth)


if __name__ == '__main__':
    main()
