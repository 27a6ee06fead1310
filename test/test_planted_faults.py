# SPDX-License-Identifier: Apache-2.0
"""Faults planted in a running node: /diagnostics and `lisa-ros doctor` name each of them."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

import rclpy
from lisa_ros.msg import Segmentation
from rclpy_features import needs_goal_clients
from ros_graph import ANSWER, DOMAIN, START, NodeProcess, Peer, image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from lisa_ros.client import LisaClient
from lisa_ros.doctor.graph import check_graph
from lisa_ros.health.verdict import Level

pytestmark = pytest.mark.ros

OK, WARN, ERROR = Level
REPLIES = {
    '': {'masks': 'all'},
    'fail': {'failure': 'the lens is dirty'},
    'hang': {'hang': 1, 'uncancellable': 1},
    'slow': {'masks': 'all', 'delay': 1.0},
}
PIXELS, DEPTH = np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 900, np.uint16)
INFO = {'k': [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0], 'width': 64, 'height': 48}


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp('planted')
    (folder / 'replies.json').write_text(json.dumps(REPLIES))
    parameters = {
        'model': f'scripted:{folder}/replies.json',
        'diagnostics_period': 0.1,
        'target_frame': 'map',
        'transform_timeout': 0.0,
        'goals_kept': 2,
        'qos_overrides./camera_info.subscription.reliability': 'reliable',
    }
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    process = NodeProcess(folder / 'node.log', parameters, program=program)
    yield process
    assert process.stop() == 0, process.output()
    assert (
        'Traceback' not in process.output().replace('RuntimeError: the lens is dirty', '')
        or 'the lens is dirty' in process.output()
    )


@pytest.fixture(scope='module')
def peer(process):
    peer = Peer()
    peer.wait_until_active(process)
    yield peer
    peer.close()


def now():
    return divmod(time.time_ns(), 10**9)


class Camera:
    """Publishes the messages of a camera; a test changes what is wrong with it."""

    def __init__(self, peer):
        self._peer = peer
        self.image_stamp, self.depth_stamp = now, now
        self.depth_pixels, self.depth_frame = DEPTH, 'camera_optical'
        self.depth_encoding = '16UC1'

    def publish(self, depth=True):
        self._peer.publish_image(image(PIXELS, stamp=self.image_stamp()), settle=False)
        if depth:
            stamp, frame = self.depth_stamp(), self.depth_frame
            self._peer.depths.publish(image(self.depth_pixels, self.depth_encoding, stamp, frame))


@pytest.fixture
def camera(peer):
    return Camera(peer)


def status(peer, part):
    """Return level, message and values of the newest status of a part of the node."""
    for array in reversed(peer.received['diagnostics']):
        for item in array.status:
            if item.name == f'/lisa: {part}':
                values = {value.key: value.value for value in item.values}
                return Level(item.level[0]), item.message, values
    return None, '', {}


def wait_for(peer, part, level, *texts, camera=None, **published):
    """Wait until the newest status of a part has this level, and all texts in its message."""
    peer.received['diagnostics'].clear()

    def is_reported():
        if camera is not None:
            camera.publish(**published)
        newest, message, _ = status(peer, part)
        return newest is level and all(text in message for text in texts)

    try:
        peer.wait(is_reported, ANSWER)
    except AssertionError:
        pytest.fail(f'{part}: expected {level.name} {texts}, the newest is {status(peer, part)}')


def test_a_healthy_node_is_ok(peer, camera):
    wait_for(peer, 'input /image', OK, 'Hz', camera=camera, depth=False)
    wait_for(peer, 'node', OK, 'active')
    wait_for(peer, 'requests', OK, 'ready')
    wait_for(peer, 'depth', OK, 'no depth')
    wait_for(peer, 'memory', OK, 'MiB are used')
    values = status(peer, 'memory')[2]
    for name in ('memory', 'peak memory', 'model process memory', 'model process peak memory'):
        assert int(values[f'{name} [MiB]']) > 0
    assert int(values['memory [MiB]']) <= int(values['peak memory [MiB]'])
    assert status(peer, 'model')[2]['precision'] == 'unknown'  # of a backend that does not tell


def test_a_best_effort_publisher_is_incompatible_with_a_reliable_subscription(peer, camera):
    part = 'input /camera_info'
    wait_for(peer, part, ERROR, 'RELIABILITY', 'set qos_overrides./camera_info', camera=camera)


def test_depth_without_camera_info(peer, camera):
    wait_for(peer, 'depth', WARN, 'without camera_info', 'remap camera_info', camera=camera)


def test_a_missing_transform(peer, camera):
    wait_for(peer, 'transforms', WARN, 'camera_optical', 'map', camera=camera)


def test_the_doctor_sees_the_same_from_outside(peer, camera, monkeypatch):
    """QoS, stamps, TF and a second node at once; the rest it reads from /diagnostics."""
    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    seconds, nanoseconds = now()
    camera.image_stamp = lambda: (seconds + 100, nanoseconds)
    twin = rclpy.create_node('lisa', context=peer.context)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(check_graph, '/lisa', 40.0)

        def is_done():
            camera.publish()
            return future.done()

        peer.wait(is_done, START)
    twin.destroy_node()
    print(*future.result(), sep='\n')

    rows = {finding.check: finding for finding in future.result()}
    for check, level, observed, cure in (
        ('/lisa', WARN, '2 nodes have the name /lisa', 'stop one, or rename it'),
        ('input /camera_info', ERROR, '/tester: ', 'qos_overrides./camera_info'),
        ('input /image', WARN, 'ahead of the clock', 'synchronize the clocks'),
        ('TF', WARN, 'no transform from camera_optical to map', 'static_transform_publisher'),
        ('/diagnostics depth', WARN, 'depth comes without camera_info', ''),
        ('/diagnostics input /image', WARN, 'its stamp does not change', ''),
    ):
        finding = rows[check]
        assert finding.level is level, finding
        assert observed in finding.observed, finding
        assert cure in finding.cure, finding


def test_a_second_node_of_the_same_name(peer):
    twin = rclpy.create_node('lisa', context=peer.context)
    wait_for(peer, 'node', WARN, '2 nodes have the name /lisa', 'rename it')
    twin.destroy_node()
    wait_for(peer, 'node', OK, 'active')


def test_a_clock_that_is_ahead(peer, camera):
    camera.image_stamp = lambda: (time.time_ns() // 10**9 + 20, time.time_ns() % 10**9)
    wait_for(peer, 'input /image', WARN, "ahead of the node's clock: synchronize", camera=camera)
    camera.image_stamp = now
    wait_for(peer, 'input /image', OK, 'Hz', camera=camera)


@pytest.mark.parametrize(
    ('topic', 'level'), [('/image', ERROR), ('/depth', WARN), ('/camera_info', WARN)]
)
def test_a_publisher_of_another_type(peer, topic, level):
    """Such as a topic of compressed images, while image_transport is raw."""
    context = rclpy.Context()  # one participant of DDS cannot have two types on a topic
    context.init(domain_id=int(DOMAIN))
    other = rclpy.create_node('republisher', context=context)
    other.create_publisher(CompressedImage, topic, 10)
    sends = '/republisher sends sensor_msgs/msg/CompressedImage, the node expects sensor_msgs/msg/'
    wait_for(peer, f'input {topic}', level, sends, 'remap')
    other.destroy_node()
    context.shutdown()


def test_depth_that_does_not_fit(peer, camera):
    peer.node.destroy_publisher(peer.infos)
    peer.infos = peer.create_input(CameraInfo, '/camera_info')  # reliable

    def publish(frame='camera_optical', **message):
        info = CameraInfo(**{**INFO, **message})
        info.header.frame_id = frame
        info.header.stamp.sec, info.header.stamp.nanosec = now()
        peer.infos.publish(info)
        peer.settle(0.1)

    publish(k=[0.0] * 9)
    wait_for(peer, 'depth', WARN, 'camera_info is not calibrated', camera=camera)
    publish(binning_x=2, binning_y=2)  # of an image that is not binned
    wait_for(peer, 'depth', WARN, '32 x 24 pixels', 'set binning to 0', camera=camera)
    publish('infra_optical')  # of another camera, with the same size
    wait_for(peer, 'depth', WARN, 'camera_info is that of frame infra_optical', camera=camera)
    publish()
    wait_for(peer, 'depth', OK, 'depth fits the image', camera=camera)
    camera.depth_encoding = 'mono16'
    wait_for(peer, 'depth', WARN, 'mono16 has no unit', 'publish 16UC1', camera=camera)
    camera.depth_encoding, camera.depth_frame = '16UC1', 'infrared'
    wait_for(peer, 'depth', WARN, 'depth is in frame infrared', 'align_depth', camera=camera)
    camera.depth_frame, camera.depth_pixels = 'camera_optical', DEPTH[:30]
    wait_for(peer, 'depth', WARN, 'not the same aspect ratio', camera=camera)
    camera.depth_pixels, camera.depth_stamp = DEPTH, lambda: (time.time_ns() // 10**9 + 5, 0)
    camera.publish()
    wait_for(peer, 'depth', WARN, 'the nearest differ by', 'depth_tolerance', camera=camera)
    camera.depth_stamp = now
    wait_for(peer, 'depth', OK, 'depth fits the image', camera=camera)


def ask(peer, camera, text):
    camera.publish()
    peer.settle(0.1)
    return peer.ask(text)[0]


def test_answers_that_became_slow(peer, camera):
    for _ in range(6):
        assert ask(peer, camera, 'the mug').status == Segmentation.FOUND
    for _ in range(3):
        assert ask(peer, camera, 'slow').status == Segmentation.FOUND
    wait_for(peer, 'model', WARN, 'earlier ones took', 'see top and nvidia-smi')
    for _ in range(3):
        ask(peer, camera, 'the mug')
    wait_for(peer, 'model', OK, 'is loaded')


def test_answers_that_fail(peer, camera):
    for _ in range(10):
        ask(peer, camera, 'fail')
    wait_for(peer, 'requests', ERROR, '10 of the last 10 requests failed', 'the lens is dirty')
    ask(peer, camera, 'the mug')
    wait_for(peer, 'requests', WARN, '9 of the last 10')


def test_a_full_queue_and_rejected_goals(peer, camera):
    client = LisaClient(peer.node)
    camera.publish()
    futures = [client.segment_async('slow', timeout=START, max_age=0.0) for _ in range(5)]
    wait_for(peer, 'requests', ERROR, 'the queue is full, 2 of 2 goals wait', camera=camera)
    wait_for(peer, 'requests', WARN, 'raise goals_kept')
    assert int(status(peer, 'requests')[2]['rejected goals']) > 0

    def are_done():
        camera.publish()
        return all(future.done() for future in futures)

    peer.wait(are_done, START)


@needs_goal_clients
def test_continuous_goals_name_their_owner(peer, camera):
    from lisa_ros.action import Segment
    from rclpy.action import ActionClient

    client = ActionClient(peer.node, Segment, '/lisa/segment')
    assert client.wait_for_server(START)
    sent = client.send_goal_async(Segment.Goal(query='the mug', continuous=True))
    peer.wait(sent.done)
    wait_for(peer, 'goals', OK, 'continuous: 1 of /tester', camera=camera)
    assert "'the mug' of /tester" in status(peer, 'goals')[2]['continuous goal 1']
    sent.result().cancel_goal_async()
    wait_for(peer, 'goals', OK, 'no goals')
    client.destroy()


def test_a_model_that_hangs(peer, camera):
    assert peer.set_parameters(answer_timeout=0.5)[0].successful
    assert ask(peer, camera, 'hang').status == Segmentation.TIMED_OUT
    wait_for(peer, 'model', WARN, 'has not returned for 1 s')
    assert peer.set_parameters(answer_timeout=30.0)[0].successful


def test_a_camera_that_stops_and_one_that_is_not_there(peer, camera):
    wait_for(peer, 'input /image', ERROR, 'no message comes: check the camera', '/tester')
    second = peer.node.create_publisher(Image, '/image', 10)
    wait_for(peer, 'input /image', ERROR, 'publishers send on it')
    wait_for(peer, 'input /image', WARN, 'stop all but one', camera=camera)
    peer.node.destroy_publisher(second)
    wait_for(peer, 'input /image', OK, 'Hz', camera=camera)
    peer.node.destroy_publisher(peer.images)
    wait_for(peer, 'input /image', ERROR, 'nobody publishes it: start the camera')


def test_a_node_that_is_not_active(peer, monkeypatch):
    assert peer.change_state('deactivate')
    wait_for(peer, 'node', WARN, 'inactive, so nothing is answered', '/lisa activate')
    monkeypatch.setenv('ROS_DOMAIN_ID', DOMAIN)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    (row, *_) = check_graph('/lisa', 40.0)
    assert row.observed == 'inactive, so nothing is answered'
    assert row.cure == 'ros2 lifecycle set /lisa activate'
    assert peer.change_state('cleanup')
    assert peer.set_parameters(model='nowhere:lisa')[0].successful
    assert not peer.change_state('configure')
    wait_for(peer, 'node', ERROR, 'configure failed', 'nowhere:lisa', 'is not a registered scheme')
    wait_for(peer, 'model', WARN, 'no model')
