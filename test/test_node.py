# SPDX-License-Identifier: Apache-2.0
"""The node as users run it: its own process, real rclpy, real DDS, a real (toy-size) LISA."""

import array
import dataclasses
import importlib.util
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from diagnostic_msgs.msg import DiagnosticStatus
from lisa_ros.msg import Segmentation
from rcl_interfaces.srv import DescribeParameters
from ros_graph import MODEL, START, NodeProcess, Peer, image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import parameter_info

pytestmark = pytest.mark.ros

PICTURE = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
ASK = 'Where is the cup? Please segment it.'  # this toy model answers it with masks
STAMP = (7, 5)


@pytest.fixture(scope='module')
def lisa(tmp_path_factory):
    """An active node for most of the tests."""
    log = tmp_path_factory.mktemp('node') / 'node.log'
    process = NodeProcess(log, {**MODEL, 'diagnostics_period': 0.2, 'image_timeout': 2.0})
    yield process
    assert process.stop() == 0, process.said()
    assert 'Traceback' not in process.said(), process.said()


@pytest.fixture(scope='module')
def tester(lisa):
    someone = Peer()
    someone.wait_until_active(lisa)
    yield someone
    someone.close()


def header_of(message):
    stamp = message.header.stamp
    return (stamp.sec, stamp.nanosec), message.header.frame_id


def test_a_command_before_any_image_fails_in_time_and_says_what_is_missing(tester):
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FAILED
    assert 'no image within 2 s' in answer.reason


def test_a_command_is_answered_about_the_image_with_its_stamp_and_frame(tester):
    tester.show(image(PICTURE))
    for messages in tester.heard.values():
        messages.clear()
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FOUND
    assert header_of(answer) == (STAMP, 'camera_optical')
    assert (answer.query, answer.reason) == (ASK, '')
    assert '[SEG]' in answer.answer_raw
    assert '[SEG]' not in answer.answer
    assert answer.stages[0] == 'convert'
    assert len(answer.seconds) == len(answer.stages)
    tester.wait(lambda: tester.heard['mask'] and tester.heard['confidence'])
    for topic in ('mask', 'confidence'):
        got = tester.heard[topic][-1]
        assert header_of(got) == (STAMP, 'camera_optical')
        assert (got.encoding, got.height, got.width) == ('mono8', 120, 160)
    tester.wait(lambda: tester.heard['explanation'])
    assert tester.heard['explanation'][-1].data == answer.answer
    for number, instance in enumerate(answer.instances, 1):
        mask = np.frombuffer(instance.mask.data, np.uint8).reshape(120, 160)
        assert instance.id == number
        assert instance.area == (mask == 255).sum()
        assert header_of(instance.mask) == (STAMP, 'camera_optical')
        assert math.isnan(instance.centroid.x)  # nobody publishes depth yet


def show_in_space(tester, second, depth):
    """Publish an image with its depth (a message's pixels and encoding) and camera info."""
    stamp = (second, 0)
    info = CameraInfo(width=160, height=120, k=[100.0, 0, 80, 0, 100, 60, 0, 0, 1])
    info.header.stamp.sec = second
    tester.infos.publish(info)
    tester.depths.publish(image(*depth, stamp, big=True, padding=6))
    tester.show(image(PICTURE, stamp=stamp))


def test_places_come_from_the_depth_at_the_same_stamp(tester):
    ramp = np.linspace(1500, 2000, 120)[:, None].repeat(160, 1).astype(np.uint16)
    show_in_space(tester, 9, (ramp, '16UC1'))
    (answer,) = tester.ask(ASK)
    filled = [instance for instance in answer.instances if instance.area]
    assert filled
    camera = Camera(np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]]), (160, 120))
    for instance in filled:
        mask = np.frombuffer(instance.mask.data, np.uint8).reshape(120, 160) > 0
        there = localize_object(PICTURE, ramp.astype(np.float32) / 1000, mask, camera)
        assert 1.5 < instance.centroid.z < 2.0
        assert xyz(instance.centroid) == pytest.approx(there.centroid, abs=1e-6)
        assert xyz(instance.box_pose.position) == pytest.approx(there.box.centre, abs=1e-5)
        assert xyz(instance.box_size) == pytest.approx(there.box.extent, abs=1e-5)
        assert xyz(instance.nearest) == pytest.approx(there.nearest, abs=1e-6)
        assert instance.depth_confidence == pytest.approx(there.confidence)
    assert answer.place_reason == ''


def xyz(point):
    return point.x, point.y, point.z


def test_depth_of_half_the_size_is_brought_to_the_image(tester):
    show_in_space(tester, 12, (np.full((60, 80), 2, np.float32), '32FC1'))
    (answer,) = tester.ask(ASK)
    assert {round(i.centroid.z, 4) for i in answer.instances if i.area} == {2.0}


def test_depth_of_another_camera_costs_the_place_and_nothing_else(lisa, tester):
    show_in_space(tester, 10, (np.ones((60, 100), np.float32), '32FC1'))
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FOUND
    assert math.isnan(answer.instances[0].centroid.z)
    assert 'depth is 100 x 60 pixels, the image 160 x 120' in answer.place_reason
    assert 'depth is 100 x 60 pixels' in lisa.said()


def test_the_readme_lists_the_topics_and_services_of_the_node(tester):
    """As the graph knows them; those of vision_msgs where that is installed."""
    readme = (Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (in|out|service) \| (.*)$', readme, re.MULTILINE)
    vision = importlib.util.find_spec('vision_msgs') is not None
    listed = {'in': set(), 'out': set(), 'service': set()}
    for direction, row in rows:
        names = re.findall(r'`((?:~/|/)?[a-z0-9_/]+)`', row)
        named = row.split('|')[0]
        first = [n for n in names if f'`{n}`' in named or n.startswith('~/tracked/')]
        listed[direction] |= {n.replace('~', '/lisa') for n in first}
    if not vision:
        listed['out'] = {n for n in listed['out'] if not re.search('detections|label_info', n)}
    node = tester.node
    own = r'/(lisa/(?!_|segment/)\w+(/\w+)?|diagnostics|image|depth|camera_info)$'
    standard = r'parameter|describe|transition|change_state|get_|type_desc|logger'

    def of(pairs):
        names = {name for name, _ in pairs if re.match(own, name)}
        return {name for name in names if not re.search(standard, name)}

    assert of(node.get_publisher_names_and_types_by_node('lisa', '/')) == listed['out']
    heard = of(node.get_subscriber_names_and_types_by_node('lisa', '/'))
    assert heard == {n if n.startswith('/') else f'/{n}' for n in listed['in']}
    assert of(node.get_service_names_and_types_by_node('lisa', '/')) == listed['service']


def test_two_quick_commands_are_both_answered(tester):
    tester.show(image(PICTURE))
    answers = tester.ask(ASK, 'segment the second thing')
    assert [answer.query for answer in answers] == [ASK, 'segment the second thing']
    first, last = answers
    assert last.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), last.reason
    if first.status == Segmentation.CANCELLED:  # both were there before the model began
        assert 'superseded' in first.reason
    else:
        assert first.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), first.reason


def test_a_bad_encoding_is_named_and_the_next_image_is_answered(lisa, tester):
    tester.show(image(PICTURE, 'rgb9', stamp=(11, 0)))
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FAILED
    assert "'rgb9' is not supported" in answer.reason
    assert header_of(answer)[0] == (11, 0)
    tester.show(image(PICTURE, stamp=(12, 0)))
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FOUND
    assert "'rgb9' is not supported" in lisa.said()


def test_an_empty_command_fails_with_a_reason(tester):
    (answer,) = tester.ask('  ')
    assert answer.status == Segmentation.FAILED
    assert 'empty' in answer.reason


@pytest.mark.parametrize(
    ('pixels', 'encoding'),
    [
        (PICTURE, 'bgr8'),
        (PICTURE[:, :, 0], 'mono8'),
        (PICTURE[:, :, 0], 'bayer_rggb8'),
        (PICTURE[:, :, :2], 'yuv422'),
        (PICTURE[:, :, 0].astype(np.uint16) * 256, 'mono16'),
        (PICTURE[:, :, 0].astype(np.float32), '32FC1'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_padded_big_endian_images_are_answered(tester, pixels, encoding):
    tester.show(image(pixels, encoding, padding=5, big=True))
    (answer,) = tester.ask(ASK)
    assert answer.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), answer.reason


def test_time_may_jump_back(tester):
    tester.show(image(PICTURE, stamp=(1000, 0)))
    tester.show(image(PICTURE, stamp=(2, 0)))
    (answer,) = tester.ask(ASK)
    assert header_of(answer)[0] == (2, 0)


def test_parameters_are_described_as_the_settings_say(tester):
    fields = dataclasses.fields(Settings)
    names = [field.name for field in fields]
    described = tester.call(DescribeParameters, 'describe_parameters', names=names).descriptors
    for field, got in zip(fields, described, strict=True):
        known = parameter_info(field)
        assert (got.name, got.description) == (field.name, known.sentence)
        assert got.read_only == known.read_only
        ranges = [*got.integer_range, *got.floating_point_range]
        assert [(r.from_value, r.to_value) for r in ranges] == (
            [] if known.low is None else [(known.low, known.high)]
        )


def test_what_is_read_on_configure_is_refused_while_configured(tester):
    (result,) = tester.set(precision='bf16')
    assert not result.successful
    assert 'precision is read on configure: clean the node up first' in result.reason
    (result,) = tester.set(confidence_threshold=2.0)
    assert not result.successful


def test_the_threshold_works_at_once(tester):
    tester.show(image(PICTURE))
    assert tester.set(confidence_threshold=1.0)[0].successful
    (answer,) = tester.ask(ASK)
    assert (answer.status, len(answer.instances)) == (Segmentation.NOT_FOUND, 0)
    assert tester.set(confidence_threshold=0.0)[0].successful
    (answer,) = tester.ask(ASK)
    assert answer.status == Segmentation.FOUND


def test_the_dialogue_can_be_reset(tester):
    response = tester.call(Trigger, 'reset_dialogue')
    assert (response.success, response.message) == (True, 'dialogue forgotten')


def test_the_self_test_runs_the_model_and_disturbs_nobody(tester):
    tester.heard['segmentation'].clear()
    response = tester.call(Trigger, 'self_test')
    assert response.success, response.message
    assert 'the model answers in' in response.message
    assert tester.heard['segmentation'] == []


def test_the_overlay_is_drawn_for_those_who_look(tester):
    seen = tester.listen('/lisa/overlay', Image, 'overlay')
    tester.wait(lambda: tester.node.count_publishers('/lisa/overlay'), START)
    tester.settle(1.0)
    tester.show(image(PICTURE, stamp=STAMP))
    tester.ask(ASK)
    tester.wait(lambda: tester.heard['overlay'])
    drawn = tester.heard['overlay'][0]
    assert header_of(drawn) == (STAMP, 'camera_optical')
    assert (drawn.encoding, drawn.width) == ('rgb8', 640)
    tester.node.destroy_subscription(seen)


def test_diagnostics_tell_the_model_the_inputs_and_the_requests(tester):
    tester.heard['diagnostics'].clear()
    for _ in range(5):
        tester.show(image(PICTURE), settle=False)
        tester.settle(0.1)
    statuses = {s.name: s for s in tester.heard['diagnostics'][-1].status}
    assert statuses['/lisa: input /image'].level == DiagnosticStatus.OK
    assert statuses['/lisa: model'].level == DiagnosticStatus.OK
    assert statuses['/lisa: model'].hardware_id == '/lisa'
    values = {v.key: v.value for v in statuses['/lisa: requests'].values}
    assert int(values['answered']) > 0
    assert int(values['failed']) > 0


def test_the_life_cycle_frees_and_loads_again(tester):
    assert tester.state() == 'active'
    assert tester.change('deactivate')
    tester.wait(lambda: tester.commands.get_subscription_count() == 0)
    assert tester.change('cleanup')
    assert tester.state() == 'unconfigured'
    assert not tester.call(Trigger, 'self_test').success
    assert tester.set(max_new_tokens=40, precision='fp32')[1].successful
    assert tester.change('configure')
    assert tester.change('activate')
    tester.wait(lambda: tester.images.get_subscription_count() == 1)
    tester.show(image(PICTURE, stamp=(20, 0)))
    (answer,) = tester.ask(ASK)
    assert header_of(answer)[0] == (20, 0)


def test_an_interrupt_while_the_weights_load_ends_the_node_at_once(tmp_path):
    process = NodeProcess(tmp_path / 'node.log', MODEL, '-r', '__ns:=/hasty')
    process.wait_to_say('loading')
    assert process.stop() == 0
    assert 'Traceback' not in process.said()


# A second node: in a namespace, with a model that is not there, compressed images, other QoS.

COMPRESSED = '/robot/image/compressed'


@pytest.fixture(scope='module')
def lost(tmp_path_factory):
    log = tmp_path_factory.mktemp('lost') / 'node.log'
    parameters = {
        **MODEL,
        'model': '/nowhere/lisa',
        'image_transport': 'compressed',
        'diagnostics_period': 0.2,
        'use_sim_time': True,  # nobody publishes /clock: nothing may wait for it
        f'qos_overrides.{COMPRESSED}.subscription.reliability': 'reliable',
    }
    process = NodeProcess(log, parameters, '-r', '__ns:=/robot')
    yield process
    assert process.stop() == 0, process.said()
    assert 'Traceback' not in process.said(), process.said()


@pytest.fixture(scope='module')
def robot(lost):
    someone = Peer('/robot')
    yield someone
    someone.close()


def test_a_wrong_model_path_is_one_line_and_the_node_stays_up(lost, robot):
    robot.wait(lambda: 'failed' in lost.said(), START, 'the error')
    robot.wait(lambda: robot.state() == 'unconfigured')
    lines = [line for line in lost.said().splitlines() if '[ERROR]' in line]
    assert len(lines) == 1
    assert 'configure failed' in lines[0]
    assert '/nowhere/lisa' in lines[0]


def test_the_right_path_can_be_set_and_configured(lost, robot):
    assert not robot.change('configure')
    assert robot.set(model=str(MODEL['model']))[0].successful
    assert robot.change('configure')
    assert robot.change('activate')
    assert robot.state() == 'active'


def test_a_quality_of_service_that_does_not_fit_is_named(lost, robot):
    from rclpy.qos import qos_profile_sensor_data

    publisher = robot.node.create_publisher(CompressedImage, COMPRESSED, qos_profile_sensor_data)
    robot.wait(lambda: 'does not fit' in lost.said(), what='the warning')
    assert f'qos_overrides.{COMPRESSED}.subscription' in lost.said()

    def reported():
        statuses = [s for array in robot.heard['diagnostics'] for s in array.status]
        return any('QoS of the publisher is incompatible' in s.message for s in statuses)

    robot.wait(reported, what='the diagnostic')
    robot.node.destroy_publisher(publisher)


def test_compressed_images_are_answered(robot):
    publisher = robot.node.create_publisher(CompressedImage, COMPRESSED, 10)
    robot.wait(publisher.get_subscription_count)
    message = CompressedImage(format='jpeg')
    message.data = array.array('B', cv2.imencode('.jpg', PICTURE)[1].tobytes())
    message.header.stamp.sec, message.header.frame_id = 33, 'camera_optical'
    publisher.publish(message)
    robot.settle()
    (answer,) = robot.ask(ASK)
    assert answer.status in (Segmentation.FOUND, Segmentation.NOT_FOUND), answer.reason
    assert header_of(answer) == ((33, 0), 'camera_optical')


# Nodes with a model that takes as long as the test wants, see slow_node.py.


@pytest.fixture
def slow(tmp_path):
    """Start slow nodes in /slow; at the end their output holds no traceback."""
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    started = []

    def start(**parameters):
        given = {'model': tmp_path / 'model', 'diagnostics_period': 0.1, **parameters}
        log = tmp_path / 'node.log'
        started.append(NodeProcess(log, given, '-r', '__ns:=/slow', program=program))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0, process.said()
        assert 'Traceback' not in process.said(), process.said()


@pytest.fixture
def friend():
    someone = Peer('/slow')
    yield someone
    someone.close()


def wait_until_it_sees(friend, process, *extra, encoding='rgb8'):
    """Show a picture until the diagnostics have counted it: DDS may lose the first ones."""
    friend.wait_until_active(process)
    friend.heard['diagnostics'].clear()

    def seen():
        for message in extra:
            friend.depths.publish(message)
        friend.show(image(PICTURE, encoding))
        return any(
            value.key == 'images' and int(value.value)
            for array in friend.heard['diagnostics']
            for status in array.status
            if status.name == f'{friend.name}: requests'
            for value in status.values
        )

    friend.wait(seen, what='an image')


def ask_and_wait_until_it_thinks(friend, process, text):
    wait_until_it_sees(friend, process)
    friend.commands.publish(String(data=text))
    process.wait_to_say('thinking')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('text', ['the mug', 'deaf'], ids=['attentive', 'deaf'])
def test_an_interrupt_during_an_answer_ends_the_node_quietly(slow, friend, tmp_path, number, text):
    (tmp_path / 'model').mkdir()
    process = slow()
    ask_and_wait_until_it_thinks(friend, process, text)
    assert process.stop(number) == 0, process.said()
    assert 'Traceback' not in process.said(), process.said()
    assert '[ERROR]' not in process.said(), process.said()


def test_a_busy_model_keeps_the_node_active_until_it_stops(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    process = slow()
    ask_and_wait_until_it_thinks(friend, process, 'deaf')
    assert not friend.change('deactivate')
    assert friend.state() == 'active'
    assert 'deactivate failed: the model is still busy' in process.said()
    (tmp_path / 'model' / 'answer').touch()
    friend.wait(lambda: friend.heard['segmentation'], what='the end of the command')
    assert friend.heard['segmentation'][0].status == Segmentation.CANCELLED
    assert friend.change('deactivate')
    assert friend.change('activate')
    wait_until_it_sees(friend, process)
    (answer,) = friend.ask('the mug')
    assert answer.status == Segmentation.NOT_FOUND
    assert friend.change('deactivate')
    assert friend.change('cleanup')
    assert friend.state() == 'unconfigured'


def test_the_node_goes_on_during_a_self_test(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    process = slow()
    friend.wait_until_active(process)
    client = friend.node.create_client(Trigger, f'{friend.name}/self_test')
    assert client.wait_for_service(START)
    response = client.call_async(Trigger.Request())
    process.wait_to_say('thinking')
    friend.heard['diagnostics'].clear()
    assert friend.set(depth_tolerance=0.1)[0].successful
    friend.wait(lambda: len(friend.heard['diagnostics']) > 2, what='the diagnostics')
    assert friend.state() == 'active'
    assert not response.done()
    (tmp_path / 'model' / 'answer').touch()
    friend.wait(response.done, what='the self-test')
    assert response.result().success, response.result().message


def test_an_interrupt_during_a_self_test_ends_the_node_quietly(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    process = slow()
    friend.wait_until_active(process)
    client = friend.node.create_client(Trigger, f'{friend.name}/self_test')
    assert client.wait_for_service(START)
    client.call_async(Trigger.Request())
    process.wait_to_say('thinking')
    assert process.stop() == 0, process.said()
    assert 'never awaited' not in process.said()


def test_what_is_read_on_configure_is_refused_while_the_weights_load(slow, friend, tmp_path):
    process = slow()
    process.wait_to_say('loading')
    (result,) = friend.set(precision='bf16')
    assert not result.successful
    assert friend.set(max_new_tokens=40)[0].successful
    (tmp_path / 'model').mkdir()
    friend.wait_until_active(process)


def test_a_wrong_quality_of_service_is_one_line_and_the_node_stays_up(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    topic = '/slow/depth'
    process = slow(**{f'qos_overrides.{topic}.subscription.reliability': 'relable'})
    process.wait_to_say('[ERROR]')
    friend.wait(lambda: friend.state() == 'inactive', what='the state')
    (line,) = [line for line in process.said().splitlines() if '[ERROR]' in line]
    assert f'activate failed: no subscription to {topic}' in line
    assert 'relable' in line
    assert friend.images.get_subscription_count() == 0
    assert friend.change('cleanup')
    assert friend.state() == 'unconfigured'


def test_complaints_of_one_cause_are_told_once(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    process = slow()
    wait_until_it_sees(friend, process, encoding='rgb9')
    for text in ('one', 'two', 'three'):
        (answer,) = friend.ask(text)
        assert answer.status == Segmentation.FAILED
    assert process.said().count("'rgb9' is not supported") == 1


def test_depth_without_camera_info_is_named(slow, friend, tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').touch()
    process = slow()
    wait_until_it_sees(friend, process, image(np.ones((120, 160), np.float32), '32FC1'))
    friend.ask('found one')
    friend.ask('found one')
    assert process.said().count('there is depth, but no camera_info') == 1


SPINS = """
import sys
import rclpy
from std_msgs.msg import String
from lisa_ros.ros.runtime import spin

def tick():
    if sys.argv[1] == 'told to stop':
        rclpy.shutdown()  # as its handler of signals does, whatever runs just then
    if sys.argv[1] == 'broken':
        raise RuntimeError('of its own')
    publisher.publish(String())

rclpy.init()
node = rclpy.create_node('spins')
publisher = node.create_publisher(String, 'said', 1)
node.create_timer(0.01, tick)
spin(node)
print('over')
"""


def test_a_node_that_is_told_to_stop_as_it_publishes_stops_without_a_traceback():
    def ended(how):
        command = [sys.executable, '-c', SPINS, how]
        return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)

    told, broken = ended('told to stop'), ended('broken')
    assert (told.returncode, told.stdout) == (0, 'over\n'), told.stderr
    assert 'Traceback' not in told.stderr
    assert broken.returncode == 1
    assert 'of its own' in broken.stderr
