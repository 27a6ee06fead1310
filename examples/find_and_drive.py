# SPDX-License-Identifier: Apache-2.0
"""Find an object and drive to it with Nav2's Simple Commander.

    ros2 launch lisa_ros lisa.launch.py target_frame:=map image:=... depth:=... camera_info:=...
    python3 examples/find_and_drive.py 'the red mug' --distance 0.6

The robot stops `--distance` before the object and faces it. It must be localized already, by AMCL,
SLAM or anything else: the script does not set its pose.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.time import Time
from rclpy.utilities import remove_ros_args

from lisa_ros.client import LisaClient, Status
from lisa_ros.errors import LisaError

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


def drive_to(query: str, distance: float) -> bool:
    """Find an object and drive to it; return whether the robot has arrived.

    A LisaError says why the robot did not start.

    Args:
        query: what to find.
        distance: from the object [m].
    """
    import tf2_ros
    from nav2_simple_commander.robot_navigator import BasicNavigator, TaskResult

    navigator = BasicNavigator()
    transforms = tf2_ros.Buffer(Duration(seconds=70.0))  # longer than an answer takes
    tf2_ros.TransformListener(transforms, navigator)
    targets: list[PoseStamped] = []
    navigator.create_subscription(PoseStamped, 'lisa/target', targets.append, 10)
    # The default, amcl, would set the pose of the robot to the origin, or wait for ever for AMCL.
    navigator.waitUntilNav2Active(localizer='bt_navigator')

    answer = LisaClient(navigator).segment(query, max_age=1.0)
    if answer.status is not Status.FOUND:
        raise LisaError(answer.reason or answer.answer)
    print(answer.answer)
    deadline = time.monotonic() + TARGET_TIMEOUT
    while not any(target.header.stamp == answer.header.stamp for target in targets):
        if time.monotonic() > deadline:
            reason = answer.message.place_reason or 'no message on lisa/target'
            raise LisaError(f'found, but not in the map: {reason}')
        rclpy.spin_once(navigator, timeout_sec=0.1)
    target = next(t for t in targets if t.header.stamp == answer.header.stamp)
    frame, position = target.header.frame_id, target.pose.position
    try:
        robot = transforms.lookup_transform(frame, ROBOT_FRAME, Time()).transform.translation
    except tf2_ros.TransformException as error:
        raise LisaError(f'no transform from {ROBOT_FRAME} to {frame}: {error}') from error
    stop = approach((position.x, position.y), (robot.x, robot.y), distance)
    navigator.goToPose(goal_pose(*stop, frame))
    while not navigator.isTaskComplete():
        pass  # isTaskComplete waits for a tenth of a second
    return navigator.getResult() is TaskResult.SUCCEEDED


def main() -> int:
    """Find, drive and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('query', help='what to find')
    parser.add_argument('--distance', type=float, default=0.6, help='from the object [m]')
    options = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init()
    try:
        return 0 if drive_to(options.query, options.distance) else 1
    except LisaError as error:
        print(error)
        return 1


if __name__ == '__main__':
    sys.exit(main())
