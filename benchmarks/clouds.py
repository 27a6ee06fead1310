# SPDX-License-Identifier: Apache-2.0
"""How long the cloud of a frame takes, from depth to the bytes that DDS sends.

    python benchmarks/clouds.py            # 1280 x 720

"published" is what rclpy and DDS take until `publish` returns: the message converted, serialised
and put into the history, with a reliable subscription in this process. Beside it, where it is
installed, sensor_msgs_py's `create_cloud` of the same points, as a ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import rclpy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.rgbd import depth_to_cloud  # found by the line above
from lisa_ros.ros import message_types


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Return the median time of some work [ms], the first run left out."""
    work()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument('--size', type=int, nargs=2, default=(1280, 720), help='width, height')
    options.add_argument('--times', type=int, default=30)
    given = options.parse_args()
    width, height = given.size
    cv2.setNumThreads(1)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = generator.uniform(0.4, 3.0, (height, width)).astype(np.float32)
    depth[generator.random(depth.shape) < 0.2] = np.nan
    focal = 0.7 * width
    k = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    camera, header = Camera(k, (width, height)), Header(frame_id='camera')
    cloud = depth_to_cloud(image, depth, camera)
    message = message_types.make.cloud(header, cloud)

    rclpy.init()
    node = rclpy.create_node('cloud_benchmark')
    publisher = node.create_publisher(PointCloud2, 'cloud_benchmark', 1)
    node.create_subscription(PointCloud2, 'cloud_benchmark', lambda _: None, 1)
    while not publisher.get_subscription_count():
        time.sleep(0.01)

    def all_of_it() -> None:
        publisher.publish(message_types.make.cloud(header, depth_to_cloud(image, depth, camera)))

    rows = {
        'points and colours': lambda: depth_to_cloud(image, depth, camera),
        'PointCloud2': lambda: message_types.make.cloud(header, cloud),
        'published': lambda: publisher.publish(message),
        'all of it': all_of_it,
    }
    for name, work in rows.items():
        print(f'{name:20} {milliseconds(work, given.times):6.1f} ms')
    try:
        from sensor_msgs_py.point_cloud2 import create_cloud
    except ImportError:
        return
    theirs = milliseconds(lambda: create_cloud(header, message.fields, cloud), given.times)
    ours = milliseconds(lambda: message_types.make.cloud(header, cloud), given.times)
    print(f"{'create_cloud':20} {theirs:6.1f} ms, {theirs / ours:.1f} times PointCloud2's")


if __name__ == '__main__':
    main()
