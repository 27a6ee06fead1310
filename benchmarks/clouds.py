# SPDX-License-Identifier: Apache-2.0
"""Measure the time to make and publish the point cloud of a frame.

    python benchmarks/clouds.py            # 1280 x 720

"published" is the time until `publish` returns: rclpy and DDS convert the message, serialize it
and store it in the history, with a reliable subscription in this process. If sensor_msgs_py is
installed, its `create_cloud` is measured with the same points, for comparison.
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
from lisa_ros.geometry.point_cloud import depth_to_cloud  # after sys.path is set
from lisa_ros.ros import message_types


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Return the median time of a function over `times` runs [ms], after a first run."""
    work()
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        durations.append((time.perf_counter() - start) * 1000)
    return statistics.median(durations)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(1280, 720),
        metavar=('W', 'H'),
        help='width and height of the frame [px] (default: 1280 720)',
    )
    parser.add_argument('--times', type=int, default=30, help='measured runs (default: 30)')
    options = parser.parse_args()
    width, height = options.size
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

    def make_and_publish() -> None:
        publisher.publish(message_types.make.cloud(header, depth_to_cloud(image, depth, camera)))

    rows = {
        'points and colours': lambda: depth_to_cloud(image, depth, camera),
        'PointCloud2': lambda: message_types.make.cloud(header, cloud),
        'published': lambda: publisher.publish(message),
        'all together': make_and_publish,
    }
    for name, work in rows.items():
        print(f'{name:20} {milliseconds(work, options.times):6.1f} ms')
    try:
        from sensor_msgs_py.point_cloud2 import create_cloud
    except ImportError:
        return
    reference = milliseconds(lambda: create_cloud(header, message.fields, cloud), options.times)
    packed = milliseconds(lambda: message_types.make.cloud(header, cloud), options.times)
    ratio = reference / packed
    print(f'{"create_cloud":20} {reference:6.1f} ms, {ratio:.1f} times the time of PointCloud2')


if __name__ == '__main__':
    main()
