# SPDX-License-Identifier: Apache-2.0
"""The node as users run it: its own process, rclpy, DDS, and a LISA model at toy size."""

import array
import dataclasses
import importlib.util
import itertools
import json
import math
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from lisa_ros.msg import NodeState, Segmentation
from rcl_interfaces.srv import DescribeParameters
from rclpy.qos import ReliabilityPolicy
from ros_graph import (
    MODEL,
    START,
    NodeProcess,
    Peer,
    executable,
    image,
    peer_of,
    running_node,
)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.ros.qos import COMMAND_QOS, latched_qos
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import parameter_info

pytestmark = pytest.mark.ros

IMAGE = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
QUERY = 'Where is the cup? Please segment it.'  # the toy model answers it with masks
STAMP = (7, 5)


@pytest.fixture(scope='module')
def node_process(tmp_path_factory):
    """An active node for most of the tests."""
    log = tmp_path_factory.mktemp('node') / 'node.log'
    parameters = {**MODEL, 'diagnostics_period': 0.2, 'image_timeout': 2.0}
    with running_node(log, parameters) as process:
        yield process


@pytest.fixture(scope='module')
def peer(node_process):
    with peer_of(node_process) as peer:
        yield peer


def test_the_process_has_the_name_of_its_executable(node_process, peer):
    if executable()[0] != sys.executable:  # env started it: killall and top show this name
        assert Path(f'/proc/{node_process.process.pid}/comm').read_text() == 'lisa_node\n'


def header_of(message):
    stamp = message.header.stamp
    return (stamp.sec, stamp.nanosec), message.header.frame_id


def test_a_command_without_an_image_fails_after_the_timeout_with_the_reason(peer):
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FAILED
    assert 'no image within 2 s' in answer.reason


def test_an_answer_has_the_stamp_and_frame_of_its_image(peer):
    peer.publish_image(image(IMAGE))
    for messages in peer.received.values():
        messages.clear()
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FOUND
    assert header_of(answer) == (STAMP, 'camera_optical')
    assert (answer.query, answer.reason) == (QUERY, '')
    assert '[SEG]' in answer.answer_raw
    assert '[SEG]' not in answer.answer
    assert answer.timings[0].stage == 'convert'
    assert all(time.seconds >= 0 for time in answer.timings)
    peer.wait(lambda: peer.received['mask'] and peer.received['confidence'])
    for topic in ('mask', 'confidence'):
        message = peer.received[topic][-1]
        assert header_of(message) == (STAMP, 'camera_optical')
        assert (message.encoding, message.height, message.width) == ('mono8', 120, 160)
    peer.wait(lambda: peer.received['explanation'])
    assert peer.received['explanation'][-1].data == answer.answer
    for number, instance in enumerate(answer.instances, 1):
        mask, box = np.frombuffer(instance.mask.data, np.uint8), instance.box
        assert instance.id == number
        assert instance.area == (mask == 255).sum()
        assert (instance.image_height, instance.image_width) == (120, 160)
        assert (instance.mask.height, instance.mask.width) == (box.height, box.width)
        assert header_of(instance.mask) == (STAMP, 'camera_optical')
        assert math.isnan(instance.centroid.x)  # no depth is published yet


def publish_rgbd(peer, second, depth):
    """Publish an image with camera info and depth, given as (pixels, encoding)."""
    stamp = (second, 0)
    depth = image(*depth, stamp, big=True, padding=6)
    peer.publish_rgbd(image(IMAGE, stamp=stamp), depth, 100.0)


def test_positions_come_from_the_depth_of_the_same_stamp(peer):
    ramp = np.linspace(1500, 2000, 120)[:, None].repeat(160, 1).astype(np.uint16)
    publish_rgbd(peer, 9, (ramp, '16UC1'))
    (answer,) = peer.ask(QUERY)
    nonempty = [instance for instance in answer.instances if instance.area]
    assert nonempty
    camera = Camera(np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]]), (160, 120))
    for instance in nonempty:
        mask = mask_from_message(instance)
        expected = localize_object(IMAGE, ramp.astype(np.float32) / 1000, mask, camera)
        assert 1.5 < instance.centroid.z < 2.0
        assert xyz(instance.centroid) == pytest.approx(expected.centroid, abs=1e-6)
        assert xyz(instance.box_pose.position) == pytest.approx(expected.box.centre, abs=1e-5)
        size = np.maximum(expected.box.extent, 0.001)  # the ramp is a plane
        assert xyz(instance.box_size) == pytest.approx(size, abs=1e-5)
        assert xyz(instance.nearest) == pytest.approx(expected.nearest, abs=1e-6)
        assert instance.depth_confidence == pytest.approx(expected.confidence)
    assert answer.place_reason == ''


def xyz(point):
    return point.x, point.y, point.z


def test_depth_of_half_the_size_is_resized_to_the_image(peer):
    publish_rgbd(peer, 12, (np.full((60, 80), 2, np.float32), '32FC1'))
    (answer,) = peer.ask(QUERY)
    assert {round(i.centroid.z, 4) for i in answer.instances if i.area} == {2.0}


def test_with_depth_of_another_camera_only_the_position_is_missing(node_process, peer):
    publish_rgbd(peer, 10, (np.ones((60, 100), np.float32), '32FC1'))
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FOUND
    assert math.isnan(answer.instances[0].centroid.z)
    assert 'depth is 100 x 60 pixels, the image 160 x 120' in answer.place_reason
    assert 'depth is 100 x 60 pixels' in node_process.output()


def test_the_readme_lists_the_topics_and_services_of_the_node(peer):
    """Compared with the ROS graph; topics of vision_msgs only if that is installed."""
    readme = (Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (in|out|service) \| (.*)$', readme, re.MULTILINE)
    has_vision_msgs = importlib.util.find_spec('vision_msgs') is not None
    listed = {'in': set(), 'out': set(), 'service': set()}
    for direction, row in rows:
        names = re.findall(r'`((?:~/|/)?[a-z0-9_/]+)`', row)
        first_cell = row.split('|')[0]
        topics = [n for n in names if f'`{n}`' in first_cell or n.startswith('~/tracked/')]
        listed[direction] |= {n.replace('~', '/lisa') for n in topics}
    if not has_vision_msgs:
        listed['out'] = {n for n in listed['out'] if not re.search('detections|label_info', n)}
    if importlib.util.find_spec('visualization_msgs') is None:
        listed['out'] = {n for n in listed['out'] if not n.endswith('/markers')}
    node = peer.node
    own_names = r'/(lisa/(?!_|segment/)\w+(/\w+){0,2}|diagnostics|image|depth|camera_info)$'
    standard_names = r'parameter|describe|transition|change_state|get_|type_desc|logger'

    def own(pairs):
        names = {name for name, _ in pairs if re.match(own_names, name)}
        return {name for name in names if not re.search(standard_names, name)}

    assert own(node.get_publisher_names_and_types_by_node('lisa', '/')) == listed['out']
    subscribed = own(node.get_subscriber_names_and_types_by_node('lisa', '/'))
    assert subscribed == {n if n.startswith('/') else f'/{n}' for n in listed['in']}
    assert own(node.get_service_names_and_types_by_node('lisa', '/')) == listed['service']


def test_two_quick_commands_are_both_answered(peer):
    peer.publish_image(image(IMAGE))
    answers = peer.ask(QUERY, 'segment the second thing')
    assert [answer.query for answer in answers] == [QUERY, 'segment the second thing']
    first, last = answers
    assert last.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), last.reason
    if first.status == Segmentation.SUPERSEDED:  # both arrived before the model started
        assert 'superseded' in first.reason
    else:
        assert first.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), first.reason


def test_an_unknown_encoding_is_an_error_and_the_next_image_is_answered(node_process, peer):
    peer.publish_image(image(IMAGE, 'rgb9', stamp=(11, 0)))
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FAILED
    assert "'rgb9' is not supported" in answer.reason
    assert header_of(answer)[0] == (11, 0)
    peer.publish_image(image(IMAGE, stamp=(12, 0)))
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FOUND
    assert "'rgb9' is not supported" in node_process.output()


def test_an_empty_command_fails_with_a_reason(peer):
    (answer,) = peer.ask('  ')
    assert answer.status == Segmentation.FAILED
    assert 'empty' in answer.reason


@pytest.mark.parametrize(
    ('pixels', 'encoding'),
    [
        (IMAGE, 'bgr8'),
        (IMAGE[:, :, 0], 'mono8'),
        (IMAGE[:, :, 0], 'bayer_rggb8'),
        (IMAGE[:, :, :2], 'yuv422'),
        (IMAGE[:, :, 0].astype(np.uint16) * 256, 'mono16'),
        (IMAGE[:, :, 0].astype(np.float32), '32FC1'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_padded_big_endian_images_are_answered(peer, pixels, encoding):
    peer.publish_image(image(pixels, encoding, padding=5, big=True))
    (answer,) = peer.ask(QUERY)
    assert answer.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), answer.reason


def test_time_may_jump_back(peer):
    peer.publish_image(image(IMAGE, stamp=(1000, 0)))
    peer.publish_image(image(IMAGE, stamp=(2, 0)))
    (answer,) = peer.ask(QUERY)
    assert header_of(answer)[0] == (2, 0)


def test_parameters_are_described_as_in_the_settings(peer):
    fields = dataclasses.fields(Settings)
    names = [field.name for field in fields]
    described = peer.call(DescribeParameters, 'describe_parameters', names=names).descriptors
    for field, descriptor in zip(fields, described, strict=True):
        info = parameter_info(field)
        assert (descriptor.name, descriptor.description) == (field.name, info.description)
        assert not descriptor.read_only  # so that the same value is accepted
        assert ('another value is refused' in descriptor.additional_constraints) == (
            info.read_only or info.at_configure
        )
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        assert [(r.from_value, r.to_value) for r in ranges] == (
            [] if info.minimum is None else [(info.minimum, info.maximum)]
        )


def test_settings_that_are_read_on_configure_are_refused_while_configured(peer):
    (result,) = peer.set_parameters(precision='bf16')
    assert not result.successful
    assert 'precision is read on configure: call cleanup first' in result.reason
    (result,) = peer.set_parameters(autostart=False)
    assert not result.successful
    assert 'autostart is read at the start' in result.reason
    (result,) = peer.set_parameters(confidence_threshold=2.0)
    assert not result.successful


def test_settings_that_have_the_value_already_are_accepted(peer):
    """As `ros2 param load` sets them from a file."""
    assert all(result.successful for result in peer.set_parameters(autostart=True, tracker='flow'))
    (result,) = peer.set_parameters(isolation='process')
    assert result.successful


def test_a_standing_query_is_logged_at_most_once_a_second(node_process, peer):
    line = "'the thing that is watched': "
    assert peer.set_parameters(watch_rate=50.0)[0].successful
    peer.commands.publish(String(data='watch: the thing that is watched'))

    def answers():
        peer.publish_image(image(IMAGE))
        return [m for m in peer.received['segmentation'] if m.query == line[1:-3]]

    start = time.monotonic()
    peer.wait(lambda: len(answers()) > 10, what='eleven answers')
    peer.commands.publish(String(data='stop'))
    node_process.wait_for_output('stopped the standing query')
    assert peer.set_parameters(watch_rate=2.0)[0].successful
    assert 0 < node_process.output().count(line) <= time.monotonic() - start + 1


def test_the_threshold_applies_at_once(peer):
    peer.publish_image(image(IMAGE))
    assert peer.set_parameters(confidence_threshold=1.0)[0].successful
    (answer,) = peer.ask(QUERY)
    assert (answer.status, len(answer.instances)) == (Segmentation.NOT_FOUND, 0)
    assert peer.set_parameters(confidence_threshold=0.0)[0].successful
    (answer,) = peer.ask(QUERY)
    assert answer.status == Segmentation.FOUND


def test_the_dialogue_can_be_reset(peer):
    response = peer.call(Trigger, 'reset_dialogue')
    assert (response.success, response.message) == (True, 'dialogue forgotten')


def test_the_self_test_compares_the_mask_and_publishes_nothing(peer):
    peer.received['segmentation'].clear()
    response = peer.call(Trigger, 'self_test')
    assert not response.success, response.message  # the weights are random
    assert "'the mug' in the test image" in response.message
    assert peer.received['segmentation'] == []


def test_the_overlay_is_drawn_for_a_subscriber(peer):
    subscription = peer.subscribe('/lisa/overlay', Image, 'overlay')
    peer.wait(lambda: peer.node.count_publishers('/lisa/overlay'), START)
    peer.settle(1.0)
    peer.publish_image(image(IMAGE, stamp=STAMP))
    peer.ask(QUERY)
    peer.wait(lambda: peer.received['overlay'])
    message = peer.received['overlay'][0]
    assert header_of(message) == (STAMP, 'camera_optical')
    assert (message.encoding, message.width) == ('rgb8', 640)
    peer.node.destroy_subscription(subscription)


def test_diagnostics_report_the_model_the_inputs_and_the_requests(peer):
    peer.ask('  ')  # fails
    peer.publish_image(image(IMAGE, stamp=(3, 0)))
    peer.ask(QUERY)
    peer.received['diagnostics'].clear()
    for _ in range(5):
        stamp = divmod(time.time_ns(), 10**9)
        peer.publish_image(image(IMAGE, stamp=stamp), settle=False)
        peer.settle(0.1)
    statuses = {s.name: s for s in peer.received['diagnostics'][-1].status}
    assert statuses['/lisa: input /image'].level == DiagnosticStatus.OK
    assert statuses['/lisa: model'].level == DiagnosticStatus.OK
    assert statuses['/lisa: model'].hardware_id == f'{platform.node()} cpu'
    model = {v.key: v.value for v in statuses['/lisa: model'].values}
    assert model['precision'] == 'fp32'  # the one in use: the parameter is auto
    values = {v.key: v.value for v in statuses['/lisa: requests'].values}
    assert int(values['answered']) > 0
    assert int(values['failed']) > 0


def test_diagnostics_report_a_camera_with_wrong_stamps(peer):
    now, counter = time.time(), itertools.count(1)
    for stamps, cause in (
        (lambda: (int(now) + 20, next(counter)), "s ahead of the node's clock: synchronize"),
        (lambda: (7, next(counter)), "s behind the node's clock: for a bag, set use_sim_time"),
        (lambda: (0, 0), 'its stamps are 0'),
        (lambda: (int(now), 5), 'its stamp does not change'),
    ):
        peer.received['diagnostics'].clear()
        for _ in range(5):
            peer.publish_image(image(IMAGE, stamp=stamps()), settle=False)
            peer.settle(0.1)
        last = {s.name: s for s in peer.received['diagnostics'][-1].status}['/lisa: input /image']
        assert last.level == DiagnosticStatus.WARN
        assert cause in last.message


def test_commands_that_have_arrived_are_answered_when_the_node_deactivates(node_process, peer):
    answered, texts = [], [f'the mug {number}' for number in range(60)]
    peer.node.create_subscription(
        Segmentation,
        '/lisa/segmentation',
        lambda message: answered.append(message.query),
        COMMAND_QOS,
    )
    commands = peer.node.create_publisher(String, '/lisa/command', COMMAND_QOS)
    client = peer.client(ChangeState, 'change_state')
    peer.wait(commands.get_subscription_count)
    peer.settle(1.0)
    node_process.process.send_signal(signal.SIGSTOP)  # so that all of them arrive at once
    try:
        for text in texts:
            commands.publish(String(data=text))
        request = ChangeState.Request(transition=Transition(label='deactivate'))
        future = client.call_async(request)
        peer.settle(0.5)
    finally:
        node_process.process.send_signal(signal.SIGCONT)
    peer.wait(future.done)
    assert future.result().success
    peer.wait(lambda: len(answered) >= len(texts), what=f'more answers than {answered}')
    peer.settle()
    assert sorted(answered) == sorted(texts)
    assert peer.change_state('activate')
    peer.wait(lambda: peer.images.get_subscription_count() == 1)


def test_cleanup_and_configure_free_and_load_the_model_again(peer):
    assert peer.state() == 'active'
    assert peer.change_state('deactivate')
    peer.wait(lambda: peer.commands.get_subscription_count() == 0)
    assert peer.change_state('cleanup')
    assert peer.state() == 'unconfigured'
    assert not peer.call(Trigger, 'self_test').success
    assert peer.set_parameters(max_new_tokens=40, precision='fp32')[1].successful
    assert peer.change_state('configure')
    assert peer.change_state('activate')
    peer.wait(lambda: peer.images.get_subscription_count() == 1)
    peer.publish_image(image(IMAGE, stamp=(20, 0)))
    (answer,) = peer.ask(QUERY)
    assert header_of(answer)[0] == (20, 0)


def test_an_interrupt_while_the_weights_load_ends_the_node_at_once(tmp_path):
    process = NodeProcess(tmp_path / 'node.log', MODEL, '-r', '__ns:=/loading')
    process.wait_for_output('loading')
    assert process.stop() == 0
    assert 'Traceback' not in process.output()


# A second node: in a namespace, with a missing model, compressed images, other QoS.

COMPRESSED = '/robot/image/compressed'


@pytest.fixture(scope='module')
def misconfigured(tmp_path_factory):
    log = tmp_path_factory.mktemp('misconfigured') / 'node.log'
    parameters = {
        **MODEL,
        'model': '/nowhere/lisa',
        'image_transport': 'compressed',
        'depth_transport': 'compressedDepth',
        'diagnostics_period': 0.2,
        'use_sim_time': True,  # no /clock is published: nothing may wait for it
        f'qos_overrides.{COMPRESSED}.subscription.reliability': 'reliable',
    }
    with running_node(log, parameters, '-r', '__ns:=/robot') as process:
        yield process


@pytest.fixture(scope='module')
def robot_peer(misconfigured):
    peer = Peer('/robot')
    yield peer
    peer.close()


def test_a_wrong_model_path_is_one_log_line_and_the_node_keeps_running(misconfigured, robot_peer):
    robot_peer.wait(lambda: 'failed' in misconfigured.output(), START, 'the error')
    robot_peer.wait(lambda: robot_peer.state() == 'unconfigured')
    lines = [line for line in misconfigured.output().splitlines() if '[ERROR]' in line]
    assert len(lines) == 1
    assert 'configure failed' in lines[0]
    assert '/nowhere/lisa' in lines[0]


def test_the_right_path_can_be_set_and_configured(misconfigured, robot_peer):
    assert not robot_peer.change_state('configure')
    assert robot_peer.set_parameters(model=str(MODEL['model']))[0].successful
    assert robot_peer.change_state('configure')
    assert robot_peer.change_state('activate')
    assert robot_peer.state() == 'active'


def test_an_incompatible_quality_of_service_is_reported(misconfigured, robot_peer):
    from rclpy.qos import qos_profile_sensor_data

    publisher = robot_peer.node.create_publisher(
        CompressedImage, COMPRESSED, qos_profile_sensor_data
    )
    robot_peer.wait(lambda: 'does not fit' in misconfigured.output(), what='the warning')
    assert f'qos_overrides.{COMPRESSED}.subscription' in misconfigured.output()

    def reported():
        statuses = [s for array in robot_peer.received['diagnostics'] for s in array.status]
        return any('QoS of the publisher is incompatible' in s.message for s in statuses)

    robot_peer.wait(reported, what='the diagnostic')
    robot_peer.node.destroy_publisher(publisher)


def test_compressed_images_are_answered(robot_peer):
    publisher = robot_peer.create_input(CompressedImage, COMPRESSED)
    message = CompressedImage(format='jpeg')
    message.data = array.array('B', cv2.imencode('.jpg', IMAGE)[1].tobytes())
    message.header.stamp.sec, message.header.frame_id = 33, 'camera_optical'
    publisher.publish(message)
    robot_peer.settle()
    (answer,) = robot_peer.ask(QUERY)
    assert answer.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), answer.reason
    assert header_of(answer) == ((33, 0), 'camera_optical')


def test_compressed_depth_gives_positions(robot_peer):
    images = robot_peer.create_input(CompressedImage, COMPRESSED)
    depths = robot_peer.create_input(CompressedImage, '/robot/depth/compressedDepth')
    info = CameraInfo(width=160, height=120, k=[100.0, 0, 80, 0, 100, 60, 0, 0, 1])
    depth = cv2.imencode('.png', np.full((120, 160), 1500, np.uint16))[1].tobytes()
    for publisher, message, data in (
        (robot_peer.infos, info, None),
        (depths, CompressedImage(format='16UC1; compressedDepth png'), bytes(12) + depth),
        (images, CompressedImage(format='jpeg'), cv2.imencode('.jpg', IMAGE)[1].tobytes()),
    ):
        message.header.stamp.sec, message.header.frame_id = 35, 'camera_optical'
        if data is not None:
            message.data = array.array('B', data)
        publisher.publish(message)
    robot_peer.settle()
    (answer,) = robot_peer.ask(QUERY)
    assert {round(i.centroid.z, 3) for i in answer.instances if i.area} == {1.5}


def test_an_image_above_max_image_pixels_is_refused(robot_peer):
    assert robot_peer.set_parameters(max_image_pixels=19_199)[0].successful
    (answer,) = robot_peer.ask(QUERY)  # about the image of the last test
    assert answer.status == Segmentation.FAILED
    assert 'has 160 x 120 pixels; expected at most 19,199 in all' in answer.reason
    assert not robot_peer.set_parameters(max_image_pixels=0)[0].successful
    assert robot_peer.set_parameters(max_image_pixels=19_200)[0].successful
    (answer,) = robot_peer.ask(QUERY)
    assert answer.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), answer.reason


# Nodes with a scripted model, see slow_node.py and scripted_backend.py.


@pytest.fixture
def start_node(tmp_path):
    """Start nodes in the namespace /slow; check at the end that they log no traceback."""
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    started = []

    def start(**parameters):
        parameters = {
            'model': f'scripted:{tmp_path}/model',
            'diagnostics_period': 0.1,
            **parameters,
        }
        log = tmp_path / 'node.log'
        started.append(NodeProcess(log, parameters, '-r', '__ns:=/slow', program=program))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0, process.output()
        assert 'Traceback' not in process.output(), process.output()


@pytest.fixture
def slow_peer():
    peer = Peer('/slow')
    yield peer
    peer.close()


def wait_until_an_image_arrives(slow_peer, process, *extra, encoding='rgb8'):
    """Publish an image until the diagnostics count one: DDS may lose the first ones."""
    slow_peer.wait_until_active(process)
    slow_peer.received['diagnostics'].clear()

    def has_arrived():
        for message in extra:
            slow_peer.depths.publish(message)
        slow_peer.publish_image(image(IMAGE, encoding))
        return any(
            value.key == 'images' and int(value.value)
            for array in slow_peer.received['diagnostics']
            for status in array.status
            if status.name == f'{slow_peer.name}: requests'
            for value in status.values
        )

    slow_peer.wait(has_arrived, what='an image')


def ask_and_wait_until_the_model_runs(slow_peer, process, text):
    wait_until_an_image_arrives(slow_peer, process)
    slow_peer.commands.publish(String(data=text))
    process.wait_for_output('thinking')


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    'text', ['the mug', 'uncancellable'], ids=['cancellable', 'uncancellable']
)
def test_an_interrupt_during_an_answer_ends_the_node_without_errors(
    start_node, slow_peer, tmp_path, signal_number, text
):
    (tmp_path / 'model').mkdir()
    process = start_node()
    ask_and_wait_until_the_model_runs(slow_peer, process, text)
    assert process.stop(signal_number) == 0, process.output()
    assert 'Traceback' not in process.output(), process.output()
    assert '[ERROR]' not in process.output(), process.output()


@pytest.mark.parametrize('isolation', ['process', 'thread'])
def test_a_model_that_does_not_stop_is_given_up_by_deactivate(
    start_node, slow_peer, tmp_path, isolation
):
    (tmp_path / 'model').mkdir()
    process = start_node(isolation=isolation, answer_timeout=0.0)
    ask_and_wait_until_the_model_runs(slow_peer, process, 'uncancellable')
    assert slow_peer.change_state('deactivate')
    assert slow_peer.state() == 'inactive'
    slow_peer.wait(lambda: slow_peer.received['segmentation'], what='the end of the command')
    assert slow_peer.received['segmentation'][0].status == Segmentation.CANCELLED
    (tmp_path / 'model' / 'answer').touch()  # the thread returns
    assert slow_peer.change_state('activate')
    wait_until_an_image_arrives(slow_peer, process)
    (answer,) = slow_peer.ask('the mug')
    assert answer.status == Segmentation.NOT_FOUND, answer.reason
    assert slow_peer.change_state('deactivate')
    assert slow_peer.change_state('cleanup')
    assert slow_peer.state() == 'unconfigured'


SCRIPT = {
    '': {'masks': 'all'},
    'hang': {'hang': 1, 'uncancellable': 1},
    'exit': {'run': 'import os; os._exit(3)'},
}


def start_scripted_node(start_node, slow_peer, tmp_path, **parameters):
    """Start a node that answers as SCRIPT says, and publish an image."""
    script = tmp_path / 'script.json'
    script.write_text(json.dumps(SCRIPT))
    process = start_node(model=f'scripted:{script}', **parameters)
    wait_until_an_image_arrives(slow_peer, process)
    return process


def wait_for_model_status(slow_peer, level, text):
    """Wait for a status of the model that an operator would see, for at most two seconds."""

    def is_reported():
        statuses = [s for array in slow_peer.received['diagnostics'] for s in array.status]
        models = [s for s in statuses if s.name == f'{slow_peer.name}: model']
        return any(s.level == level and re.search(text, s.message) for s in models)

    slow_peer.wait(is_reported, 2.0, f'{text!r} in the diagnostics')
    slow_peer.received['diagnostics'].clear()


def ask_for_seconds(slow_peer, text):
    """Return the answer to a command, and how long it took [s]."""
    start = time.monotonic()
    (answer,) = slow_peer.ask(text)
    return answer, time.monotonic() - start


def model_process(node):
    """Return the process of the model: its standby is younger."""
    return min(psutil.Process(node.process.pid).children(), key=psutil.Process.create_time)


def test_a_node_survives_its_model_in_a_process(start_node, slow_peer, tmp_path):
    parameters = {'answer_timeout': 0.5, 'worker_standby': 'true'}
    node = start_scripted_node(start_node, slow_peer, tmp_path, **parameters)
    wait_for_model_status(slow_peer, DiagnosticStatus.OK, 'is loaded')
    answer, seconds = ask_for_seconds(slow_peer, 'hang')
    assert (answer.status, seconds < 1.5) == (Segmentation.TIMED_OUT, True), seconds
    assert 'its process was ended and is being loaded again' in answer.reason
    wait_for_model_status(slow_peer, DiagnosticStatus.WARN, 'has not returned for 1 s')
    assert slow_peer.set_parameters(answer_timeout=20.0)[0].successful  # for a busy machine
    assert slow_peer.ask('the mug')[0].status == Segmentation.FOUND
    (answer,) = slow_peer.ask('exit')
    assert answer.status == Segmentation.FAILED
    assert answer.reason.startswith('the model process exited with status 3')
    wait_for_model_status(slow_peer, DiagnosticStatus.WARN, 'exited with status 3')
    assert slow_peer.ask('the mug')[0].status == Segmentation.FOUND
    model_process(node).kill()
    wait_for_model_status(slow_peer, DiagnosticStatus.WARN, 'died of signal 9')
    assert slow_peer.ask('the mug')[0].status == Segmentation.FOUND


def test_a_node_reports_a_model_that_holds_its_thread(start_node, slow_peer, tmp_path):
    parameters = {'isolation': 'thread', 'answer_timeout': 0.5}
    start_scripted_node(start_node, slow_peer, tmp_path, **parameters)
    assert slow_peer.ask('the mug')[0].status == Segmentation.FOUND
    answer, seconds = ask_for_seconds(slow_peer, 'hang')
    assert (answer.status, seconds < 1.5) == (Segmentation.TIMED_OUT, True), seconds
    wait_for_model_status(slow_peer, DiagnosticStatus.ERROR, 'restart the node')
    (answer,) = slow_peer.ask('the mug')
    assert answer.status == Segmentation.FAILED
    assert 'isolation:=process' in answer.reason
    response = slow_peer.call(Trigger, 'self_test')
    assert not response.success
    assert 'restart the node' in response.message
    assert slow_peer.change_state('deactivate')
    assert slow_peer.state() == 'inactive'


STUCK_TRACKER = """
import time
import scripted_backend
from lisa_ros.ros import node
from lisa_ros.tracking.optical_flow import FlowTracker

def hang(*_):
    FlowTracker.update = update
    print('stuck', flush=True)
    time.sleep(60)

update, FlowTracker.update = FlowTracker.update, hang
node.main(stop_timeout=0.5)
"""


def test_a_node_that_cannot_deactivate_goes_on_answering(tmp_path, slow_peer):
    script = tmp_path / 'script.json'
    script.write_text(json.dumps(SCRIPT))
    program = tmp_path / 'program.py'
    program.write_text(
        f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{STUCK_TRACKER}'
    )
    parameters = {'model': f'scripted:{script}', 'diagnostics_period': 0.1}
    process = NodeProcess(
        tmp_path / 'node.log', parameters, '-r', '__ns:=/slow',
        program=[sys.executable, str(program)],
    )  # fmt: skip
    slow_peer.subscribe('/slow/lisa/tracked/mask', Image, 'tracked')
    wait_until_an_image_arrives(slow_peer, process)
    slow_peer.wait(lambda: slow_peer.node.count_publishers('/slow/lisa/tracked/mask'))
    slow_peer.settle()
    slow_peer.ask('the mug')
    slow_peer.publish_image(image(IMAGE, stamp=(8, 0)))
    process.wait_for_output('stuck')
    assert not slow_peer.change_state('deactivate')
    assert slow_peer.state() == 'active'
    assert 'deactivate failed: a tracker' in process.output()
    wait_until_an_image_arrives(slow_peer, process)
    assert slow_peer.ask('the mug')[0].status == Segmentation.FOUND
    assert slow_peer.change_state('deactivate')
    assert process.stop() == 0, process.output()


def test_a_self_test_ends_although_the_model_hangs(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    process = start_node(answer_timeout=0.0)
    slow_peer.wait_until_active(process)
    response = slow_peer.call(Trigger, 'self_test')
    assert not response.success
    assert 'no answer within 1.5 s' in response.message


def test_a_self_test_fails_if_the_model_answers_wrongly(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').write_text('0')
    process = start_node()
    slow_peer.wait_until_active(process)
    response = slow_peer.call(Trigger, 'self_test')
    assert not response.success
    assert "does not find 'the mug' in the test image" in response.message
    images = tmp_path / 'images'
    (images / 'screws').mkdir(parents=True)
    cv2.imwrite(str(images / 'screws.png'), np.zeros((20, 30, 3), np.uint8))
    mask = np.full((20, 30), 255, np.uint8)
    cv2.imwrite(str(images / 'screws' / 'found.png'), mask)
    assert slow_peer.set_parameters(self_test_images=str(images))[0].successful
    response = slow_peer.call(Trigger, 'self_test')
    assert response.success, response.message
    mask[:15] = 0
    cv2.imwrite(str(images / 'screws' / 'found.png'), mask)
    response = slow_peer.call(Trigger, 'self_test')
    assert not response.success
    assert 'its IoU with the right one is 0.25' in response.message
    (images / 'screws.png').unlink()
    response = slow_peer.call(Trigger, 'self_test')
    assert not response.success
    assert str(images) in response.message


def test_only_the_process_of_the_model_loads_torch(node_process, peer):
    assert peer.state() == 'active'
    model = model_process(node_process)
    libraries = {pid: Path(f'/proc/{pid}/maps').read_text() for pid in (model.pid, model.ppid())}
    assert 'libtorch' in libraries[model.pid]
    assert 'libtorch' not in libraries[model.ppid()]


@pytest.mark.parametrize('isolation', ['process', 'thread'])
def test_stop_ends_commands_and_the_standing_query_and_names_them(
    start_node, slow_peer, tmp_path, isolation
):
    """In a thread, the state comes from the backend itself, which does not say its precision."""
    (tmp_path / 'model').mkdir()
    process = start_node(isolation=isolation)
    ask_and_wait_until_the_model_runs(slow_peer, process, 'the mug')
    slow_peer.commands.publish(String(data='the bowl'))
    slow_peer.commands.publish(String(data='watch: the milk'))
    process.wait_for_output('watching')
    states = []
    slow_peer.node.create_subscription(NodeState, '/slow/lisa/state', states.append, latched_qos())
    slow_peer.wait(lambda: states and states[-1].cameras[0].waiting == 1, what='the state')
    (camera,) = states[-1].cameras
    assert (camera.active_query, camera.standing_query) == ('the mug', 'the milk')
    assert (states[-1].lifecycle, states[-1].device) == ('active', 'cpu')
    assert slow_peer.call(Trigger, 'stop').success
    slow_peer.wait(lambda: not states[-1].cameras[0].standing_query, what='the state')
    process.wait_for_output(  # not in the reply: DDS may lose the first one to a new client
        "~/stop: stopped the standing query 'the milk', the running command 'the mug', "
        "the waiting command 'the bowl'"
    )
    slow_peer.wait(
        lambda: len(slow_peer.received['segmentation']) == 2, what='the ends of two commands'
    )
    assert {answer.status for answer in slow_peer.received['segmentation']} == {
        Segmentation.CANCELLED
    }
    assert slow_peer.call(Trigger, 'stop').message == 'there is nothing to stop'
    assert slow_peer.change_state('deactivate')
    slow_peer.wait(lambda: states[-1].lifecycle == 'inactive', what='the state')
    response = slow_peer.call(Trigger, 'stop')
    assert (response.success, response.message) == (False, 'the node is not active')


def test_a_command_that_a_newer_one_replaces_is_superseded(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    process = start_node()
    ask_and_wait_until_the_model_runs(slow_peer, process, 'the mug')
    slow_peer.commands.publish(String(data='the bowl'))
    slow_peer.commands.publish(String(data='the milk'))
    answers = slow_peer.received['segmentation']
    slow_peer.wait(lambda: answers, what='the end of the replaced command')
    assert (answers[0].query, answers[0].status) == ('the bowl', Segmentation.SUPERSEDED)
    assert answers[0].reason == "superseded by 'the milk' before it started"


def test_the_node_keeps_responding_during_a_self_test(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    process = start_node()
    slow_peer.wait_until_active(process)
    client = slow_peer.client(Trigger, 'self_test')
    response = client.call_async(Trigger.Request())
    process.wait_for_output('thinking')
    slow_peer.received['diagnostics'].clear()
    assert slow_peer.set_parameters(depth_tolerance=0.1)[0].successful
    slow_peer.wait(lambda: len(slow_peer.received['diagnostics']) > 2, what='the diagnostics')
    assert slow_peer.state() == 'active'
    assert not response.done()
    (tmp_path / 'model' / 'answer').touch()
    slow_peer.wait(response.done, what='the self-test')
    assert "does not find 'the mug'" in response.result().message


def test_an_interrupt_during_a_self_test_ends_the_node_without_errors(
    start_node, slow_peer, tmp_path
):
    (tmp_path / 'model').mkdir()
    process = start_node()
    slow_peer.wait_until_active(process)
    client = slow_peer.client(Trigger, 'self_test')
    client.call_async(Trigger.Request())
    process.wait_for_output('thinking')
    assert process.stop() == 0, process.output()
    assert 'never awaited' not in process.output()


def test_settings_that_are_read_on_configure_are_refused_while_the_weights_load(
    start_node, slow_peer, tmp_path
):
    process = start_node()
    process.wait_for_output('loading')
    (result,) = slow_peer.set_parameters(precision='bf16')
    assert not result.successful
    assert slow_peer.set_parameters(max_new_tokens=40)[0].successful
    (tmp_path / 'model').mkdir()
    slow_peer.wait_until_active(process)


def test_a_client_cannot_end_configure_while_the_weights_load(start_node, slow_peer, tmp_path):
    process = start_node()
    process.wait_for_output('loading')
    for label in ('transition_success', 'transition_failure', 'transition_error', 'shutdown'):
        assert not slow_peer.change_state(label)
    assert slow_peer.state() == 'configuring'
    assert 'a transition refused: transition_success is not possible; possible now: none' in (
        process.output()
    )
    (tmp_path / 'model').mkdir()
    slow_peer.wait_until_active(process)


def test_an_invalid_quality_of_service_is_one_log_line_and_the_node_keeps_running(
    start_node, slow_peer, tmp_path
):
    (tmp_path / 'model').mkdir()
    topic = '/slow/depth'
    process = start_node(**{f'qos_overrides.{topic}.subscription.reliability': 'relable'})
    process.wait_for_output('[ERROR]')
    slow_peer.wait(lambda: slow_peer.state() == 'inactive', what='the state')
    (line,) = [line for line in process.output().splitlines() if '[ERROR]' in line]
    assert f'activate failed: no subscription to {topic}' in line
    assert 'relable' in line
    assert slow_peer.images.get_subscription_count() == 0
    assert slow_peer.change_state('cleanup')
    assert slow_peer.state() == 'unconfigured'


@pytest.mark.parametrize(
    ('name', 'topic', 'fault'),
    [
        ('camera_info', '/slow/image', 'activate failed: no subscription to /slow/image'),
        ('~/command', '/slow/image', 'activate failed: no subscription to /slow/image'),
        ('~/target', '/slow/lisa/mask', 'configure failed: no publisher of /slow/lisa/mask'),
    ],
)
def test_two_topics_with_one_name_are_one_log_line(tmp_path, name, topic, fault):
    (tmp_path / 'script.json').write_text('{}')
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    remapped = ['-r', '__ns:=/slow', '-r', f'{name}:={topic}']
    parameters = {'model': f'scripted:{tmp_path}/script.json', 'isolation': 'thread'}
    with running_node(tmp_path / 'log', parameters, *remapped, program=program) as process:
        process.wait_for_output('[ERROR]')
        (line,) = [line for line in process.output().splitlines() if '[ERROR]' in line]
        assert fault in line
        assert 'with another type; correct the remappings' in line


def test_the_quality_of_service_of_an_output_can_be_overridden(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    process = start_node(**{'qos_overrides./slow/lisa/mask.publisher.reliability': 'best_effort'})
    slow_peer.wait_until_active(process)

    def reliability(name):
        topic = f'/slow/lisa/{name}'
        slow_peer.wait(lambda: slow_peer.node.count_publishers(topic) == 1, what=topic)
        (publisher,) = slow_peer.node.get_publishers_info_by_topic(topic)
        return publisher.qos_profile.reliability

    assert reliability('mask') is ReliabilityPolicy.BEST_EFFORT
    assert reliability('overlay') is ReliabilityPolicy.RELIABLE


def test_an_invalid_quality_of_service_of_an_output_is_one_log_line(
    start_node, slow_peer, tmp_path
):
    (tmp_path / 'model').mkdir()
    process = start_node(**{'qos_overrides./slow/lisa/overlay.publisher.depth': 'many'})
    process.wait_for_output('[ERROR]')
    (line,) = [line for line in process.output().splitlines() if '[ERROR]' in line]
    assert 'configure failed: no publisher of /slow/lisa/overlay' in line
    assert 'correct qos_overrides./slow/lisa/overlay.publisher.*' in line
    assert slow_peer.state() == 'unconfigured'


def test_repeated_errors_of_one_cause_are_logged_once(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    process = start_node()
    wait_until_an_image_arrives(slow_peer, process, encoding='rgb9')
    for text in ('one', 'two', 'three'):
        (answer,) = slow_peer.ask(text)
        assert answer.status == Segmentation.FAILED
    assert process.output().count("'rgb9' is not supported") == 1


def test_depth_without_camera_info_is_reported_once(start_node, slow_peer, tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').touch()
    process = start_node()
    wait_until_an_image_arrives(
        slow_peer, process, image(np.ones((120, 160), np.float32), '32FC1')
    )
    slow_peer.ask('found one')
    slow_peer.ask('found one')
    assert process.output().count('there is depth, but no camera_info has come') == 1


SPINNING_NODE = """
import rclpy
from std_msgs.msg import String
from lisa_ros.ros.runtime import spin

def tick():
    rclpy.shutdown()  # as another thread may do, at any time
    publisher.publish(String())

rclpy.init()
node = rclpy.create_node('spinning')
publisher = node.create_publisher(String, 'text', 1)
node.create_timer(0.01, tick)
spin(node)
print('ended')
"""


def test_a_node_that_is_stopped_while_it_publishes_ends_without_a_traceback():
    command = [sys.executable, '-c', SPINNING_NODE]
    stopped = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert (stopped.returncode, stopped.stdout) == (0, 'ended\n'), stopped.stderr
    assert 'Traceback' not in stopped.stderr
