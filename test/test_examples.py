# SPDX-License-Identifier: Apache-2.0
"""The examples: their own arithmetic, and the behaviour with a real node."""

import math
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

from ros_graph import NodeProcess, Peer, image

EXAMPLES = Path(__file__).parents[1] / 'examples'
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


def test_the_behaviour_finds_and_fails_and_is_cancelled(tmp_path):
    py_trees = pytest.importorskip('py_trees', reason='needs pip install py_trees')
    from py_trees_find import Find

    (tmp_path / 'replies.json').write_text(
        '{"": {}, "mug": {"masks": "all"}, "hang": {"hang": 1}}'
    )
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    node = NodeProcess(
        tmp_path / 'log', {'model': f'scripted:{tmp_path}/replies.json'}, program=program
    )
    peer = Peer()
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
