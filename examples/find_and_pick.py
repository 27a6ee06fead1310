# SPDX-License-Identifier: Apache-2.0
r"""Find an object and pick it up from above with MoveIt's Python API.

    ros2 launch lisa_ros lisa.launch.py gravity_frame:=panda_link0 image:=... depth:=... \
        camera_info:=...
    python3 examples/find_and_pick.py 'the red mug' --dry-run
    python3 examples/find_and_pick.py 'the red mug' --ros-args --params-file moveit_py.yaml

The file has the parameters of your MoveIt configuration for the node moveit_py, with the pipelines
ompl and pilz_industrial_motion_planner. The constants are those of a Panda.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np
import rclpy
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, Vector3
from lisa_ros.msg import Instance
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from rclpy.utilities import remove_ros_args
from std_msgs.msg import Header

from lisa_ros.client import LisaClient, Status
from lisa_ros.errors import LisaError
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix

FRAME = 'panda_link0'  # of the robot's base, z up: all positions below are in it
ARM, GRIPPER, TIP = 'panda_arm', 'hand', 'panda_hand_tcp'  # two groups; link between the tips
MAX_WIDTH = 0.08  # of an object that fits into the open gripper [m]
FINGER_DEPTH = 0.04  # the tips reach this far below the top of the object [m]
MIN_SIDE = 0.001  # of a box: not every planner accepts the side of 0 of a flat face [m]
UP = np.array([0.0, 0, 1])
CLEARANCE = 0.12 * UP  # from the grasp to the poses before and after it [m]


def grasp_from_above(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the pose of TIP that grasps a box across its narrower side, (3,) [m] and (3, 3).

    z points down, from palm to tips; the fingers close along y; x points away from the robot.
    A LisaError says that no axis of the box is vertical, or that it does not fit.
    """
    vertical = int(np.abs(box.rotation[2]).argmax())
    if abs(box.rotation[2, vertical]) < 0.94:  # tilted by more than 20 degrees
        raise LisaError(f'the box of the object is tilted: use gravity_frame:={FRAME}')
    narrow = min({0, 1, 2} - {vertical}, key=lambda axis: box.extent[axis])
    if box.extent[narrow] > MAX_WIDTH:
        raise LisaError(f'{box.extent[narrow]:.3f} m wide; the gripper opens {MAX_WIDTH} m')
    forward = np.cross(UP, box.rotation[:, narrow])
    forward *= math.copysign(1, forward @ box.centre) / np.linalg.norm(forward)
    above_centre = max(0.0, box.extent[vertical] / 2 - FINGER_DEPTH)
    rotation = np.stack([forward, np.cross(-UP, forward), -UP], axis=1)
    return box.centre + above_centre * UP, rotation


def pose_message(position: np.ndarray, rotation: np.ndarray) -> Pose:
    """Return a pose from a (3,) position [m] and a (3, 3) rotation."""
    x, y, z = map(float, position)
    qx, qy, qz, qw = matrix_to_quaternion(rotation)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def box_in_frame(instance: Instance, camera: Transform) -> Box:
    """Return the box of an object after a transform from the image's frame to FRAME."""

    def parts(p: Point | Vector3, q: Quaternion) -> tuple[np.ndarray, np.ndarray]:
        return np.array([p.x, p.y, p.z]), quaternion_to_matrix(q.x, q.y, q.z, q.w)

    shift, turn = parts(camera.translation, camera.rotation)
    centre, rotation = parts(instance.box_pose.position, instance.box_pose.orientation)
    size = instance.box_size
    extent = np.maximum([size.x, size.y, size.z], MIN_SIDE)
    return Box(turn @ centre + shift, turn @ rotation, extent)


def find(node: Node, query: str) -> Box:
    """Ask the lisa node for an object and return its box in FRAME; a LisaError says why not."""
    import tf2_ros

    transforms = tf2_ros.Buffer(Duration(seconds=70.0))  # longer than an answer takes
    tf2_ros.TransformListener(transforms, node)
    answer = LisaClient(node).segment(query, max_age=1.0)
    if answer.status is not Status.FOUND:
        raise LisaError(answer.reason or answer.answer)
    instance = answer.message.instances[0]
    if math.isnan(instance.box_pose.position.x):
        raise LisaError(f'found, but not in 3D: {answer.message.place_reason}')
    source, stamp = answer.header.frame_id, Time.from_msg(answer.header.stamp)
    try:
        camera = transforms.lookup_transform(FRAME, source, stamp).transform
    except tf2_ros.TransformException as error:
        raise LisaError(f'no transform to {FRAME}: {error}') from error
    return box_in_frame(instance, camera)


def pick(box: Box) -> bool:
    """Move above the object, down, close the gripper, lift; return whether all motions ended."""
    from moveit.planning import MoveItPy, PlanRequestParameters
    from moveit_msgs.msg import AttachedCollisionObject, CollisionObject
    from shape_msgs.msg import SolidPrimitive

    grasp, rotation = grasp_from_above(box)
    moveit, header = MoveItPy(node_name='moveit_py'), Header(frame_id=FRAME)
    arm, gripper = moveit.get_planning_component(ARM), moveit.get_planning_component(GRIPPER)
    touching = moveit.get_robot_model().get_joint_model_group(GRIPPER).link_model_names
    straight = PlanRequestParameters(moveit, '')
    straight.planning_pipeline, straight.planner_id = 'pilz_industrial_motion_planner', 'LIN'
    straight.max_velocity_scaling_factor = straight.max_acceleration_scaling_factor = 0.1

    def move(group, parameters=None, **goal) -> bool:
        group.set_start_state_to_current_state()
        group.set_goal_state(**goal)
        plan = group.plan(single_plan_parameters=parameters)
        return bool(plan) and bool(moveit.execute(plan.trajectory, controllers=[]))

    def reach(position: np.ndarray, parameters=None) -> bool:
        goal = PoseStamped(header=header, pose=pose_message(position, rotation))
        return move(arm, parameters, pose_stamped_msg=goal, pose_link=TIP)

    target = CollisionObject(header=header, id='target')
    target.pose = pose_message(box.centre, box.rotation)
    target.primitives = [SolidPrimitive(type=SolidPrimitive.BOX, dimensions=box.extent.tolist())]
    target.primitive_poses = [Pose()]
    monitor = moveit.get_planning_scene_monitor()
    with monitor.read_write() as scene:
        scene.apply_collision_object(target)
        for link in touching:
            scene.allowed_collision_matrix.set_entry(target.id, link, True)
    above, opened = grasp + CLEARANCE, move(gripper, configuration_name='open')
    if not (opened and reach(above) and reach(grasp, straight)):
        return False
    move(gripper, configuration_name='close')  # the object stops it: this may count as a failure
    held = AttachedCollisionObject(link_name=TIP, touch_links=touching)
    held.object.id = target.id
    monitor.process_attached_collision_object(held)
    return reach(above, straight)


def main() -> int:
    """Find, pick and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('query', help='what to find')
    parser.add_argument('--dry-run', action='store_true', help='print the grasp; do not move')
    options = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init()
    try:
        box = find(rclpy.create_node('find_and_pick'), options.query)
        position, _ = grasp_from_above(box)
    except LisaError as error:
        print(error)
        return 1
    print(f'grasp at {position.round(3).tolist()} m in {FRAME}')
    return 0 if options.dry_run or pick(box) else 1


if __name__ == '__main__':
    sys.exit(main())
