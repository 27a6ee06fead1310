# SPDX-License-Identifier: Apache-2.0
"""Malformed and absurd messages and requests: the node answers as before, and logs little.

LISA_ROS_HOSTILE_MESSAGES=20000 sends that many of each of five kinds, instead of 1000.
"""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

from lifecycle_msgs.srv import ChangeState, GetState
from lisa_ros.action import Segment
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.serialization import serialize_message
from ros_graph import image, peer_of, running_node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import String
from std_srvs.srv import Trigger
from type_description_interfaces.srv import GetTypeDescription

from lisa_ros.client import LisaClient

pytestmark = pytest.mark.ros

MESSAGES = int(os.environ.get('LISA_ROS_HOSTILE_MESSAGES', '1000'))
PIXELS = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
NAMES = ('', 'watch_rate', 'model', 'use_sim_time', 'x' * 3000, '\N{SNOWMAN}', '\0', '.', 'a b')
LABELS = ('', 'create', 'destroy', 'fly', 'x' * 3000, '\N{SNOWMAN}', 'transition_success')
LISTS = {  # fields of ParameterValue that hold lists
    'bool_array_value': [True], 'integer_array_value': [2**63 - 1], 'byte_array_value': [b'\xff'],
    'double_array_value': [float('nan')], 'string_array_value': ['', '\N{SNOWMAN}'],
}  # fmt: skip


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    """A node with a scripted model; it must have survived everything and logged little."""
    folder = tmp_path_factory.mktemp('hostile')
    (folder / 'replies.json').write_text(json.dumps({'': {'masks': 'bright'}}))
    parameters = {'model': f'scripted:{folder}/replies.json', 'diagnostics_period': 0.1}
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    with running_node(folder / 'log', parameters, program=program) as node:
        yield node
    assert len(node.output()) < 2_000_000


@pytest.fixture(scope='module')
def peer(node):
    with peer_of(node) as peer:
        yield peer


@pytest.fixture
def same_answer(node, peer):
    """Check that a command gets the same answer before and after the test."""
    before = answer(peer)
    yield
    assert node.process.poll() is None, node.output()[-5000:]
    assert peer.state() == 'active'
    assert answer(peer) == before


def answer(peer):
    depth = image(np.full(PIXELS.shape[:2], 1000, np.uint16), '16UC1')
    k = [50.0, 0.0, 32.0, 0.0, 50.0, 24.0, 0.0, 0.0, 1.0]
    peer.depths.publish(depth)
    peer.infos.publish(CameraInfo(header=depth.header, width=64, height=48, k=k))
    peer.publish_image(image(PIXELS))
    (message,) = peer.ask('the mug')
    message.timings = []
    assert message.status == message.FOUND
    return repr(message)  # the padding of serialized messages is random, and NaN is not NaN


def mutated(rng, good):
    """Return a malformed variant of a serialized message, of at most its length."""
    data = bytearray(good)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(data[: rng.randrange(4, len(data) + 1)])
    if kind == 1:
        return bytes(data[:4]) + b'\xff' * rng.randrange(len(data) - 3)
    if kind == 2:
        return bytes(data[:4]) + rng.randbytes(rng.randrange(len(data) - 3))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(4, len(data))] = rng.randrange(256)
    return bytes(data)


def test_malformed_messages_on_every_topic(same_answer, peer):
    rng = random.Random(1)
    messages = {
        'image': image(PIXELS[:4, :4]),
        'depth': image(np.ones((4, 4), np.uint16), '16UC1'),
        'camera_info': CameraInfo(d=[0.0] * 5, distortion_model='plumb_bob'),
        'lisa/command': String(data='the mug'),
        'clock': Clock(),
    }
    publishers = [
        (peer.node.create_publisher(type(message), f'/{topic}', 10), serialize_message(message))
        for topic, message in messages.items()
    ]
    for number in range(MESSAGES):
        publisher, good = publishers[number % len(publishers)]
        publisher.publish(mutated(rng, good))
        if number % 50 == 0:
            peer.settle(0.01)
    for publisher, _ in publishers:
        peer.node.destroy_publisher(publisher)
    peer.settle(0.5)


def call_all(peer, requests):
    """Send requests (type, name, request) in bursts and check that each gets a response."""
    clients, responses = {}, []
    for service_type, name, _ in requests:
        if name not in clients:
            clients[name] = peer.client(service_type, name)
    peer.settle(1.0)  # Fast DDS may drop the first answer to a new client
    for start in range(0, len(requests), 8):  # the depth of these services is ten
        burst = [clients[name].call_async(request) for _, name, request in requests[start:][:8]]
        peer.wait(lambda: all(future.done() for future in burst), what=f'{requests[start:][:8]}')  # noqa: B023
        responses += [future.result() for future in burst]
    return responses


def hostile_parameter(rng):
    value = ParameterValue(
        type=rng.randrange(256) if rng.random() < 0.5 else rng.randrange(10),
        double_value=rng.choice([float('nan'), float('inf'), -1e300]),
        integer_value=rng.choice([2**63 - 1, -(2**63), -1]),
        string_value=rng.choice(NAMES[4:]),
        **{name: items for name, items in LISTS.items() if rng.random() < 0.3},
    )
    return Parameter(name=rng.choice(NAMES), value=value)


def test_absurd_requests_for_parameters(same_answer, peer):
    rng = random.Random(2)

    def names():
        return [rng.choice(NAMES) for _ in range(rng.randrange(4))]

    def request():
        parameters = [hostile_parameter(rng) for _ in range(rng.randrange(5))]
        return rng.choice(
            [
                (SetParameters, 'set_parameters', {'parameters': parameters}),
                (SetParametersAtomically, 'set_parameters_atomically', {'parameters': parameters}),
                (DescribeParameters, 'describe_parameters', {'names': names()}),
                (GetParameters, 'get_parameters', {'names': names()}),
                (GetParameterTypes, 'get_parameter_types', {'names': names()}),
                (
                    ListParameters,
                    'list_parameters',
                    {'prefixes': names(), 'depth': rng.choice([0, 1, 2**64 - 1])},
                ),
                (
                    GetTypeDescription,
                    'get_type_description',
                    {'type_name': rng.choice(NAMES), 'type_hash': rng.choice(NAMES)},
                ),
            ]
        )

    requests = [
        (service_type, name, service_type.Request(**fields))
        for service_type, name, fields in (request() for _ in range(MESSAGES))
    ]
    responses = call_all(peer, requests)
    for (service_type, _, request), response in zip(requests, responses, strict=True):
        if service_type is SetParameters:
            assert len(response.results) == len(request.parameters)
            assert all(result.successful or not result.reason for result in response.results) or (
                all(result.reason for result in response.results if not result.successful)
            )


def test_absurd_lifecycle_requests_and_triggers(same_answer, peer):
    rng = random.Random(3)

    def change():
        # the numbers of the transitions from active that exist are left out: 4 and 7
        request = ChangeState.Request()
        request.transition.id = rng.choice([0, 1, 2, 3, 5, 6, *range(8, 100), 250, 255])
        request.transition.label = rng.choice(LABELS)
        return ChangeState, 'change_state', request

    requests = [change() for _ in range(MESSAGES)]
    requests[::10] = [(GetState, 'get_state', GetState.Request())] * len(requests[::10])
    requests[1::50] = [(Trigger, 'reset_dialogue', Trigger.Request())] * len(requests[1::50])
    responses = call_all(peer, requests)
    assert not any(getattr(response, 'success', False) for response in responses[2::10])


def test_absurd_goals_all_get_a_result(same_answer, peer):
    rng = random.Random(4)
    client = LisaClient(peer.node)
    texts = ('', ' ', '\0', '\N{SNOWMAN}' * 200, 'the mug', 'watch: the mug', 'stop', '<image>')
    limits = (0, 1, 2**32 - 1)

    def goal():
        sides = {name: rng.choice(limits) for name in ('x_offset', 'y_offset', 'width', 'height')}
        broken = Image(width=rng.choice(limits), height=rng.choice(limits), encoding='rgb8')
        return {
            'query': rng.choice(texts),
            'max_age': rng.choice([0.0, float('nan'), float('inf'), -1.0, 1e-30]),
            'camera': rng.choice(['', 'absent', '\N{SNOWMAN}']),
            'dialogue': rng.choice(texts),
            'region': RegionOfInterest(**sides) if rng.random() < 0.5 else RegionOfInterest(),
            'image': broken if rng.random() < 0.3 else Image(),
        }

    assert set(goal()) < set(Segment.Goal.get_fields_and_field_types())
    for _ in range(MESSAGES // 200):
        goals = [client.segment_async(**goal()) for _ in range(40)]
        peer.publish_image(image(PIXELS), settle=False)
        peer.wait(lambda: all(goal.done() for goal in goals), what='the results')  # noqa: B023
    client.destroy()


def test_time_that_jumps(same_answer, peer):
    """The clock and the stamps go back, forward and beyond what fits."""
    rng = random.Random(5)
    clock = peer.node.create_publisher(Clock, '/clock', 10)
    (result,) = peer.set_parameters(use_sim_time=True)
    assert result.successful, result.reason
    try:
        for number in range(MESSAGES):
            message, pixels = Clock(), image(PIXELS[:4, :4])
            for stamp in (message.clock, pixels.header.stamp):
                stamp.sec = rng.choice([-(2**31), -1, 0, 1, 2**31 - 1])
                stamp.nanosec = rng.choice([0, 10**9, 2**32 - 1])
            clock.publish(message)
            peer.publish_image(pixels, settle=False)
            if number % 20 == 0:
                peer.settle(0.01)
    finally:
        peer.set_parameters(use_sim_time=False)
        peer.node.destroy_publisher(clock)
