# SPDX-License-Identifier: Apache-2.0
"""The examples: their own arithmetic, and the behaviour with a real node."""

import math
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

from goal_server import GoalServer
from ros_graph import START, NodeProcess, Peer, environment, image

from lisa_ros.errors import LisaError
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.geometry.rotation import quaternion_to_matrix

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / 'examples'
pytestmark = pytest.mark.ros


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize(
    ('target', 'robot', 'distance', 'stop'),
    [
        ((2.0, 0.0), (0.0, 0.0), 0.5, (1.5, 0.0, 0.0)),
        ((0.0, -3.0), (0.0, 1.0), 1.0, (0.0, -2.0, -math.pi / 2)),
        ((0.3, 0.0), (0.0, 0.0), 0.5, (0.0, 0.0, 0.0)),  # near already: only turns
        ((1.0, 1.0), (1.0, 1.0), 0.5, (1.0, 1.0, 0.0)),
    ],
)
def test_the_robot_stops_before_the_target_and_faces_it(target, robot, distance, stop):
    from find_and_drive import approach, goal_pose

    assert approach(target, robot, distance) == pytest.approx(stop)
    orientation = goal_pose(*stop, 'map').pose.orientation
    assert 2 * math.atan2(orientation.z, orientation.w) == pytest.approx(stop[2])


@pytest.mark.parametrize(
    ('yaw', 'extent', 'position', 'forward', 'closing'),
    [
        # a tall box: 4 cm below its top, across its 3 cm side, which is along y
        (0, (0.09, 0.03, 0.20), (0.5, 0.1, 0.36), (1, 0, 0), (0, -1, 0)),
        # a flat box: at its centre; the narrow side is along x
        (0, (0.03, 0.09, 0.06), (0.5, 0.1, 0.3), (0, 1, 0), (1, 0, 0)),
        # turned by 30 degrees; 210 degrees is the same box, and the same grasp
        (30, (0.09, 0.03, 0.10), (0.5, 0.1, 0.31), (3**0.5 / 2, 0.5, 0), (0.5, -(3**0.5) / 2, 0)),
        (210, (0.09, 0.03, 0.10), (0.5, 0.1, 0.31), (3**0.5 / 2, 0.5, 0), (0.5, -(3**0.5) / 2, 0)),
    ],
)
def test_the_gripper_comes_from_above_across_the_narrower_side(
    yaw, extent, position, forward, closing
):
    from find_and_pick import grasp_from_above, pose_message

    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    order = [2, 0, 1]  # the axis that points up need not be the third one
    for columns in ([0, 1, 2], order):
        box = Box(np.array([0.5, 0.1, 0.3]), axes[:, columns], np.array(extent)[columns])
        tips, rotation = grasp_from_above(box)
        assert tips == pytest.approx(position)
        expected = np.stack([forward, closing, (0, 0, -1)], axis=1)
        assert rotation == pytest.approx(expected, abs=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
    pose = pose_message(tips, rotation)
    q = pose.orientation
    assert quaternion_to_matrix(q.x, q.y, q.z, q.w) == pytest.approx(rotation, abs=1e-9)
    assert (pose.position.x, pose.position.y, pose.position.z) == pytest.approx(position)


def test_a_box_is_moved_from_the_camera_to_the_robot():
    from find_and_pick import box_in_frame, grasp_from_above
    from geometry_msgs.msg import Point, Pose, Quaternion, Transform, Vector3
    from lisa_ros.msg import Instance

    # The camera looks along the robot's x axis from 0.2, 0, 0.8 m: its z is x, its x is -y.
    level = Quaternion(x=-0.5, y=0.5, z=-0.5, w=0.5)
    camera = Transform(translation=Vector3(x=0.2, y=0.0, z=0.8), rotation=level)
    upright = Quaternion(x=0.5, y=-0.5, z=0.5, w=0.5)  # the box's z is the camera's -y
    instance = Instance(
        box_pose=Pose(position=Point(x=0.1, y=0.5, z=0.4), orientation=upright),
        box_size=Vector3(x=0.06, y=0.05, z=0.12),
    )
    box = box_in_frame(instance, camera)
    assert box.centre == pytest.approx((0.6, -0.1, 0.3))
    assert box.rotation == pytest.approx(np.eye(3), abs=1e-12)
    assert box.extent == pytest.approx((0.06, 0.05, 0.12))
    assert grasp_from_above(box)[0] == pytest.approx((0.6, -0.1, 0.32))


@pytest.mark.parametrize(
    ('tilt', 'extent', 'cause'),
    [(30, (0.03, 0.03, 0.1), 'tilted'), (0, (0.2, 0.09, 0.1), '0.090 m wide')],
)
def test_a_box_that_the_gripper_cannot_take_is_refused(tilt, extent, cause):
    from find_and_pick import grasp_from_above

    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    axes = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    with pytest.raises(LisaError, match=cause):
        grasp_from_above(Box(np.array([0.5, 0, 0.1]), axes, np.array(extent)))


def scripted_node(folder):
    """Start a node that finds a mug and nothing else; a command with "hang" does not end."""
    (folder / 'replies.json').write_text('{"": {}, "mug": {"masks": "all"}, "hang": {"hang": 1}}')
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    return NodeProcess(
        folder / 'log', {'model': f'scripted:{folder}/replies.json'}, program=program
    )


def test_a_flat_box_has_no_side_of_0():
    from find_and_pick import box_in_frame
    from geometry_msgs.msg import Transform, Vector3
    from lisa_ros.msg import Instance

    flat = Instance(box_size=Vector3(x=0.3, y=0.2, z=0.0))
    assert box_in_frame(flat, Transform()).extent.tolist() == [0.3, 0.2, 0.001]


def test_the_recipe_for_moveit_gives_a_box_that_moveit_accepts():
    from geometry_msgs.msg import Point, Pose, Vector3
    from lisa_ros.msg import Instance, Segmentation

    solid = type('SolidPrimitive', (SimpleNamespace,), {'BOX': 1})  # MoveIt has no wheels
    collision = type('CollisionObject', (SimpleNamespace,), {'ADD': b'\0'})
    guide = (ROOT / 'docs' / 'grasping.md').read_text(encoding='utf-8')
    (recipe,) = re.findall(r'```python\n(def collision_object.*?)```', guide, re.DOTALL)
    names = {'math': math, 'SolidPrimitive': solid, 'CollisionObject': collision, 'Pose': Pose}
    exec(recipe, names)  # noqa: S102  our own file

    def collision_object(*instances):
        return names['collision_object'](Segmentation(instances=instances))

    assert collision_object() is None
    nowhere = float('nan')
    unknown = Pose(position=Point(x=nowhere, y=nowhere, z=nowhere))
    size = Vector3(x=nowhere, y=nowhere, z=nowhere)
    assert collision_object(Instance(box_pose=unknown, box_size=size)) is None
    pose = Pose(position=Point(x=0.1, y=0.2, z=0.7))
    flat = collision_object(Instance(box_pose=pose, box_size=Vector3(x=0.3, y=0.2, z=0.0)))
    assert flat.pose == pose
    assert flat.primitives[0].dimensions == [0.3, 0.2, 0.001]


STAND_INS = {  # Nav2 and tf2 have no wheels
    'nav2_simple_commander/robot_navigator.py': """
import enum
from rclpy.node import Node

TaskResult = enum.Enum('TaskResult', 'SUCCEEDED FAILED')

class BasicNavigator(Node):
    def __init__(self):
        super().__init__('basic_navigator')

    def waitUntilNav2Active(self, navigator='bt_navigator', localizer='amcl'):
        print('waits for', localizer, navigator)

    def goToPose(self, pose):
        print('goes to', pose.header.frame_id, pose.pose.position.x, pose.pose.position.y)

    def isTaskComplete(self):
        return True

    def getResult(self):
        return TaskResult.SUCCEEDED
""",
    'tf2_ros.py': """
from geometry_msgs.msg import TransformStamped

class TransformException(Exception):
    pass

class Buffer:
    def __init__(self, duration):
        pass

    def lookup_transform(self, target, source, time):
        if target != 'map':
            raise TransformException(f'{target} does not exist')
        return TransformStamped()

class TransformListener:
    def __init__(self, buffer, node):
        pass
""",
}


def test_the_driver_keeps_the_localization_and_names_what_it_lacks(tmp_path):
    from geometry_msgs.msg import PoseStamped

    for name, content in STAND_INS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    node, peer = scripted_node(tmp_path), Peer()
    places = peer.node.create_publisher(PoseStamped, '/place', 10)
    target_frame = ''

    def publish_place():
        """Publish the place of the newest answer: the node has no depth camera."""
        segmentations = peer.received['segmentation']
        if target_frame and segmentations:
            pose = PoseStamped(header=segmentations[-1].header)
            pose.header.frame_id, pose.pose.position.x = target_frame, 3.0
            places.publish(pose)

    def drive():
        """Run the script while a camera runs; return its exit status and its lines."""
        command = [sys.executable, str(EXAMPLES / 'find_and_drive.py'), 'mug']
        process = subprocess.Popen(
            [*command, '--distance', '1', '--ros-args', '-r', 'lisa/target:=/place'],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(), 'PYTHONPATH': path},
        )
        deadline = time.monotonic() + START
        try:
            while process.poll() is None and time.monotonic() < deadline:
                stamp = divmod(time.time_ns(), 10**9)
                peer.publish_image(image(np.full((30, 40, 3), 200, np.uint8), stamp=stamp))
                publish_place()
        finally:
            process.kill()
        return process.wait(), process.communicate()[0].splitlines()

    try:
        path = f'{tmp_path}:{environment().get("PYTHONPATH", "")}'
        peer.wait_until_active(node)
        status, lines = drive()
        assert (status, lines[0]) == (1, 'waits for bt_navigator bt_navigator'), lines
        assert lines[-1].startswith('found, but not in the map: '), lines
        assert 'depth' in lines[-1]
        target_frame = 'odom'
        status, lines = drive()
        assert status == 1
        assert lines[-1] == 'no transform from base_link to odom: odom does not exist', lines
        target_frame = 'map'
        status, lines = drive()
        assert (status, lines[-1]) == (0, 'goes to map 2.0 0.0'), lines
    finally:
        peer.close()
        node.stop()


def test_the_behaviour_fails_at_once_when_its_node_has_left():
    py_trees = pytest.importorskip('py_trees', reason='needs pip install py_trees')
    from py_trees_find import Find

    failure, server, peer = py_trees.common.Status.FAILURE, GoalServer(), Peer()
    try:
        behaviour = Find('find', peer.node, 'mug')
        behaviour.setup(START)
        behaviour.tick_once()
        peer.wait(server.has_goal.is_set)
        peer.settle()
        behaviour.tick_once()
        assert behaviour.status is py_trees.common.Status.RUNNING
        server.close()

        def has_failed():
            behaviour.tick_once()
            return behaviour.status is failure

        peer.wait(has_failed)
        assert 'has left the ROS graph' in behaviour.feedback_message
        start = time.monotonic()
        behaviour.tick_once()  # nobody takes another goal
        assert time.monotonic() - start < 2
        assert behaviour.status is failure
        assert 'no action lisa/segment' in behaviour.feedback_message
    finally:
        peer.close()
        server.close()


def test_the_behaviour_finds_and_fails_and_is_cancelled(tmp_path):
    py_trees = pytest.importorskip('py_trees', reason='needs pip install py_trees')
    from py_trees_find import Find

    node, peer = scripted_node(tmp_path), Peer()
    try:
        peer.wait_until_active(node)

        def publish():
            stamp = divmod(time.time_ns(), 10**9)
            peer.publish_image(image(np.full((30, 40, 3), 200, np.uint8), stamp=stamp))

        def run(query, until):
            behaviour = Find(query, peer.node, query)
            behaviour.setup()
            for _ in range(200):
                publish()
                behaviour.tick_once()
                peer.executor.spin_once(timeout_sec=0.05)
                if until(behaviour):
                    return behaviour
            raise AssertionError(behaviour.feedback_message)

        ended = lambda b: b.status is not py_trees.common.Status.RUNNING  # noqa: E731
        found = run('mug', ended)
        assert found.status is py_trees.common.Status.FAILURE  # there is no depth camera
        assert 'not in 3D' in found.feedback_message
        assert run('nothing', ended).status is py_trees.common.Status.FAILURE
        hanging = run('hang', lambda b: peer.node.count_subscribers('/lisa/command') and b._goal)
        hanging.stop(py_trees.common.Status.INVALID)
        deadline = time.monotonic() + 10
        while not hanging._goal.done() and time.monotonic() < deadline:
            publish()
            peer.executor.spin_once(timeout_sec=0.05)
        assert hanging._goal.done()
        assert threading.active_count() < 50
    finally:
        peer.close()
        node.stop()
