# SPDX-License-Identifier: Apache-2.0
"""Find an object and drive to it with Nav2's Simple Commander.

    ros2 launch lisa_ros lisa.launch.py target_frame:=map image:=... depth:=... camera_info:=...
    python3 examples/find_and_drive.py 'the red mug' --distance 0.6

The robot stops `--distance` before the object and faces it.
"""

from __future__ import annotations

import argparse
import math
import sys

import rclpy
from geometry_msgs.msg import PoseStamped

from lisa_ros.client import LisaClient, Status

ROBOT_FRAME = 'base_link'
TARGET_TIMEOUT = 2.0  # for ~/target after the answer [s]


def approach(
    target: tuple[float, float], robot: tuple[float, float], distance: float
) -> tuple[float, float, float]:
    """Return where to stop before a target, x, y [m] and yaw [rad], all in the map frame.

    It is on the line from the robot to the target. A robot that is nearer already only turns.

    Args:
        target: x, y [m].
        robot: x, y [m].
        distance: from the target [m].
    """
    dx, dy = target[0] - robot[0], target[1] - robot[1]
    length = math.hypot(dx, dy)
    share = max(0.0, 1 - distance / length) if length else 0.0
    return robot[0] + share * dx, robot[1] + share * dy, math.atan2(dy, dx)


def goal_pose(x: float, y: float, yaw: float, frame: str) -> PoseStamped:
    """Return a pose on the floor: x, y [m], yaw [rad]."""
    pose = PoseStamped()
    pose.header.frame_id = frame
    pose.pose.position.x, pose.pose.position.y = x, y
    pose.pose.orientation.z, pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
    return pose


def main() -> int:
    """Find, drive and return the exit status."""
    from nav2_simple_commander.robot_navigator import BasicNavigator, TaskResult
    from rclpy.duration import Duration
    from rclpy.time import Time
    from tf2_ros import Buffer, TransformListener

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('query', help='what to find')
    parser.add_argument('--distance', type=float, default=0.6, help='from the object [m]')
    options = parser.parse_args()
    rclpy.init()
    navigator = BasicNavigator()
    transforms = Buffer(Duration(seconds=70.0))  # longer than an answer takes
    TransformListener(transforms, navigator)
    targets: list[PoseStamped] = []
    navigator.create_subscription(PoseStamped, 'lisa/target', targets.append, 10)
    navigator.waitUntilNav2Active()

    answer = LisaClient(navigator).segment(options.query, max_age=1.0)
    print(answer.answer or answer.reason)
    if answer.status is not Status.FOUND:
        return 1
    deadline = navigator.get_clock().now().nanoseconds + TARGET_TIMEOUT * 1e9
    while not any(target.header.stamp == answer.header.stamp for target in targets):
        if navigator.get_clock().now().nanoseconds > deadline:
            print(f'no place in the map: {answer.message.place_reason}')
            return 1
        rclpy.spin_once(navigator, timeout_sec=0.1)
    target = next(t for t in targets if t.header.stamp == answer.header.stamp)
    frame, position = target.header.frame_id, target.pose.position
    robot = transforms.lookup_transform(frame, ROBOT_FRAME, Time()).transform.translation
    stop = approach((position.x, position.y), (robot.x, robot.y), options.distance)
    navigator.goToPose(goal_pose(*stop, frame))
    while not navigator.isTaskComplete():
        pass  # isTaskComplete waits for a tenth of a second
    return 0 if navigator.getResult() is TaskResult.SUCCEEDED else 1


if __name__ == '__main__':
    sys.exit(main())
