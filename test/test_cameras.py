# SPDX-License-Identifier: Apache-2.0
"""Space, tracking and several cameras over DDS: the node in its process, a model as slow as asked.

The camera goes on at its rate while the model thinks; every output carries the stamp and frame of
the image that it is about.
"""

import itertools
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from geometry_msgs.msg import PoseStamped
from lisa_ros.msg import Segmentation
from ros_graph import NodeProcess, Peer, image
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import String

from lisa_ros.client import LisaClient, Status
from lisa_ros.messages import bag
from lisa_ros.resources import SAMPLE
from lisa_ros.ros.bag_player import BagPlayer, camera_topics

pytestmark = pytest.mark.ros

SLOW = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
OUTPUTS = {
    'segmentation': Segmentation,
    'mask': Image,
    'confidence': Image,
    'overlay': Image,
    'scene_points': PointCloud2,
    'object_points': PointCloud2,
    'target': PoseStamped,
}
HEIGHT, WIDTH = 120, 160
K = [150.0, 0, 79.5, 0, 150, 59.5, 0, 0, 1]
FLOOR = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5
)


def picture(x):
    """A bright square at column x, 0.8 m before the camera, over a floor at 1 m."""
    pixels = np.minimum(FLOOR, 190)
    pixels[40:80, x : x + 40] = np.maximum(pixels[40:80, x : x + 40], 60) // 4 + 205
    depth = np.full((HEIGHT, WIDTH), 1000, np.uint16)
    depth[40:80, x : x + 40] = 800
    return pixels, depth


class Camera(threading.Thread):
    """Publishes image, depth and camera info at a rate, the square moving, until it is closed."""

    def __init__(self, peer, namespace, rate=30.0, speed=0):
        super().__init__(daemon=True)
        from rclpy.qos import qos_profile_sensor_data

        self.frame = f'{namespace.strip("/") or "camera"}_optical'
        publish = peer.node.create_publisher
        self.images = publish(Image, f'{namespace}/image', qos_profile_sensor_data)
        self.depths = publish(Image, f'{namespace}/depth', qos_profile_sensor_data)
        self.infos = publish(CameraInfo, f'{namespace}/camera_info', qos_profile_sensor_data)
        self.places = {}  # stamp in ns -> column of the square
        self.rate, self.speed, self.over = rate, speed, threading.Event()

    def run(self):
        for i in itertools.count():
            way = int(self.speed * i / self.rate) % 160
            x = 20 + min(way, 160 - way)  # to the right and back
            now = time.time_ns()
            stamp = divmod(now, 10**9)
            pixels, depth = picture(x)
            info = CameraInfo(width=WIDTH, height=HEIGHT, k=K)
            info.header.stamp.sec, info.header.stamp.nanosec = stamp
            self.places[now] = x
            self.infos.publish(info)
            self.images.publish(image(pixels, stamp=stamp, frame=self.frame))
            self.depths.publish(image(depth, '16UC1', stamp, frame=self.frame))
            if self.over.wait(1 / self.rate):
                return

    def close(self):
        self.over.set()
        self.join()


@pytest.fixture
def start(tmp_path):
    """Start a node whose model takes so many seconds; at the end it has said no traceback."""
    nodes, cameras, peers = [], [], []

    def begin(seconds, names=('',), speed=0, **parameters):
        (tmp_path / 'model').mkdir()
        (tmp_path / 'model' / 'answer').write_text(str(seconds))
        given = {'model': tmp_path / 'model', 'diagnostics_period': 0.2, **parameters}
        if names != ('',):
            given['cameras'] = f'[{",".join(names)}]'
        nodes.append(NodeProcess(tmp_path / 'node.log', given, program=SLOW))
        peer = Peer()
        peers.append(peer)
        for name in names:
            cameras.append(Camera(peer, f'/{name}' if name else '', speed=speed))
            cameras[-1].start()
        peer.wait(peer.commands.get_subscription_count, 60, 'the node')
        peer.wait(lambda: all(c.images.get_subscription_count() for c in cameras))
        return nodes[-1], peer, cameras

    yield begin
    for camera in cameras:
        camera.close()
    for peer in peers:
        peer.close()
    for node in nodes:
        assert node.stop() == 0, node.said()
        assert 'Traceback' not in node.said(), node.said()


def listen(peer, prefix, outputs=OUTPUTS):
    """Hear all outputs below a prefix; return them by name. It takes DDS a moment."""
    for name, kind in outputs.items():
        peer.listen(f'/lisa/{prefix}{name}', kind, prefix + name)
    peer.settle(1.0)
    return {name: peer.heard[prefix + name] for name in outputs}


def say(peer, text):
    peer.commands.publish(String(data=text))


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def mask_of(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width) > 0


def square(x):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[40:80, x : x + 40] = True
    return mask


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_all_that_is_said_of_an_answer_has_the_stamp_and_frame_of_its_image(start):
    """The camera runs at 30 Hz and the model takes two seconds."""
    _, peer, (camera,) = start(2.0, speed=20)
    heard = listen(peer, '')
    asked = time.time_ns()
    say(peer, 'bright things')
    peer.wait(lambda: all(heard.values()), what='every output')
    (answer,) = heard['segmentation']
    stamp = stamp_of(answer)
    assert stamp in camera.places
    assert stamp > asked - 0.5e9
    assert stamp < time.time_ns() - 2e9  # that of when the model began, not of when it ended
    for name, messages in heard.items():
        assert [(stamp_of(m), m.header.frame_id) for m in messages] == [
            (stamp, 'camera_optical')
        ], name
    x = camera.places[stamp]
    np.testing.assert_array_equal(mask_of(heard['mask'][0]), square(x))
    (thing,) = answer.instances
    middle = ((x + 19.5 - 79.5) / 150 * 0.8, (59.5 - 59.5) / 150 * 0.8, 0.8)
    assert xyz(thing.centroid) == pytest.approx(middle, abs=1e-3)
    assert xyz(heard['target'][0].pose.position) == pytest.approx(xyz(thing.centroid))
    assert thing.box_size.x == pytest.approx(40 / 150 * 0.8, abs=0.01)
    assert answer.place_reason == ''


def xyz(point):
    return point.x, point.y, point.z


def test_the_same_while_the_sample_bag_plays_at_30_hz(tmp_path):
    """Round and round, its stamps jumping back, three times as fast as it was recorded."""
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').write_text('2')
    topics = camera_topics(SAMPLE / 'bag')
    remaps = [part for name, topic in topics.items() for part in ('-r', f'{name}:={topic}')]
    given = {'model': tmp_path / 'model'}
    node = NodeProcess(tmp_path / 'node.log', given, *remaps, program=SLOW)
    peer = Peer()
    replay = BagPlayer(peer.node, SAMPLE / 'bag', rate=3.0, loop=True, topics=topics.values())
    try:
        peer.wait(peer.commands.get_subscription_count, 60, 'the node')
        heard = listen(peer, '')
        replay.start()
        peer.settle(1.0)
        say(peer, 'bright things')
        peer.wait(lambda: all(heard.values()), what='every output')
        (answer,) = heard['segmentation']
        frames = {frame.stamp: frame for frame in bag.read_images(SAMPLE / 'bag', topics['image'])}
        frame = frames[stamp_of(answer)]
        for name, messages in heard.items():
            said = [(stamp_of(m), m.header.frame_id) for m in messages]
            assert said == [(frame.stamp, frame.frame_id)], name
        np.testing.assert_array_equal(mask_of(heard['mask'][0]), frame.pixels[..., 0] > 200)
    finally:
        replay.stop()
        peer.close()
        assert node.stop() == 0, node.said()


def test_the_clouds_are_those_of_the_image_and_of_the_thing(start):
    _, peer, (camera,) = start(0.0)
    heard = listen(peer, '')
    say(peer, 'bright things')
    peer.wait(lambda: all(heard.values()), what='every output')
    scene, thing = heard['scene_points'][0], heard['object_points'][0]
    assert (scene.height, scene.width, scene.point_step) == (HEIGHT, WIDTH, 16)
    points = np.frombuffer(scene.data, np.float32).reshape(HEIGHT, WIDTH, 4)
    x = camera.places[stamp_of(scene)]
    assert np.unique(points[square(x), 2]).tolist() == [np.float32(0.8)]
    assert points[0, 0, 0] == pytest.approx(-79.5 / 150)
    pixels, _ = picture(x)
    red, green, blue = pixels[0, 0].astype(np.uint32)
    assert points[0, 0, 3:].view(np.uint32)[0] == red << 16 | green << 8 | blue
    found = np.frombuffer(thing.data, np.float32).reshape(-1, 4)
    assert thing.width == len(found) > 1000
    assert np.unique(found[:, 2]).tolist() == [np.float32(0.8)]


def test_a_frame_that_tf_does_not_know_gives_no_target_and_says_so(start):
    node, peer, _ = start(0.0, target_frame='base_link', transform_timeout=0.05)
    heard = listen(peer, '')
    say(peer, 'bright things')
    peer.wait(lambda: heard['segmentation'] and heard['object_points'])
    peer.settle(0.5)
    (answer,) = heard['segmentation']
    assert 'no target: ' in answer.place_reason
    assert 'base_link' in answer.place_reason
    assert heard['target'] == []
    assert xyz(answer.instances[0].centroid)[2] == pytest.approx(0.8)  # in the image's own frame
    assert 'no target: ' in node.said()


def test_the_target_is_where_tf_knew_it_when_the_image_was_taken(start):
    """The camera drives 0.5 m a second; the model takes a second and a half."""
    tf2_ros = pytest.importorskip('tf2_ros', reason='needs tf2_ros, which has no wheel')
    from geometry_msgs.msg import TransformStamped

    _, peer, _ = start(1.5, target_frame='map', gravity_frame='map')
    broadcaster, began = tf2_ros.TransformBroadcaster(peer.node), time.time_ns()

    def driven(stamp):
        return (stamp - began) / 1e9 * 0.5

    def broadcast():
        now = time.time_ns()
        moved = TransformStamped(child_frame_id='camera_optical')
        moved.header.frame_id = 'map'
        moved.header.stamp.sec, moved.header.stamp.nanosec = divmod(now, 10**9)
        moved.transform.translation.x, moved.transform.translation.z = driven(now), 2.0
        # the optical frame looks down, its x is the map's x
        moved.transform.rotation.x, moved.transform.rotation.w = 1.0, 0.0
        broadcaster.sendTransform(moved)

    timer = peer.node.create_timer(0.02, broadcast)
    heard = listen(peer, '')
    say(peer, 'bright things')
    peer.wait(lambda: heard['segmentation'] and heard['target'], what='a target')
    peer.node.destroy_timer(timer)
    (answer,), (target,) = heard['segmentation'], heard['target']
    assert answer.place_reason == ''
    assert (stamp_of(target), target.header.frame_id) == (stamp_of(answer), 'map')
    x, y, z = xyz(answer.instances[0].centroid)
    assert xyz(target.pose.position) == pytest.approx(
        (driven(stamp_of(answer)) + x, -y, 2.0 - z), abs=2e-3
    )
    up = answer.instances[0].box_pose.orientation  # the box's z is the map's: minus optical z
    assert up.x**2 + up.y**2 == pytest.approx(1, abs=1e-3)


def test_what_was_found_is_followed_to_every_newer_image(start):
    """The model takes a second, the thing moves meanwhile and afterwards."""
    node, peer, (camera,) = start(1.0, speed=20)
    heard = listen(peer, 'tracked/')
    assert not any(heard.values())
    say(peer, 'bright things')
    peer.wait(lambda: len(heard['mask']) > 30, 60, 'thirty tracked masks')
    for name, messages in heard.items():
        stamps = [stamp_of(m) for m in messages]
        assert stamps == sorted(set(stamps)), name
    masks = {stamp_of(m): mask_of(m) for m in heard['mask']}
    first = min(masks)
    overlaps = [iou(mask, square(camera.places[stamp])) for stamp, mask in masks.items()]
    assert np.mean(overlaps) > 0.8, node.said()
    told = {stamp_of(m): m for m in heard['segmentation']}
    assert told[first].age > 0.9  # the answer is about an image of a second before
    assert told[first].query == 'bright things'
    assert all(m.instances[0].tracked for m in told.values())
    assert all(0 < m.instances[0].drift < 1 for m in told.values())  # it moves: never quite sure
    targets = {stamp_of(m): m for m in heard['target']}
    for stamp, message in targets.items():
        x = (camera.places[stamp] + 19.5 - 79.5) / 150 * 0.8
        assert message.pose.position.x == pytest.approx(x, abs=0.02)
        assert message.pose.position.z == pytest.approx(0.8, abs=0.01)
    assert len(targets) > 20


def test_the_same_question_is_asked_again_on_a_timer(start):
    _, peer, _ = start(0.1, requery='timer', requery_period=0.5)
    listen(peer, 'tracked/', {'mask': Image})
    say(peer, 'bright things')
    answers = peer.heard['segmentation']
    peer.wait(lambda: len(answers) >= 4, 30, 'answers anew')
    assert {answer.query for answer in answers} == {'bright things'}
    assert all(answer.age == 0 for answer in answers)
    say(peer, 'stop')
    peer.settle(1.0)
    count, masks = len(answers), len(peer.heard['tracked/mask'])
    peer.settle(1.5)
    assert len(answers) == count
    assert len(peer.heard['tracked/mask']) == masks


def test_boxes_and_labels_in_the_terms_of_vision_msgs(start):
    vision = pytest.importorskip('vision_msgs.msg', reason='needs vision_msgs, which has no wheel')
    _, peer, (camera,) = start(0.0)
    heard = listen(
        peer, '',
        {'detections': vision.Detection2DArray, 'detections_3d': vision.Detection3DArray},
    )  # fmt: skip
    say(peer, 'bright things')
    peer.wait(lambda: all(heard.values()))
    flat, solid = heard['detections'][0], heard['detections_3d'][0]
    assert flat.header == solid.header
    x = camera.places[stamp_of(flat)]
    (one,) = flat.detections
    assert (one.id, one.results[0].hypothesis.class_id) == ('1', 'target_1')
    assert one.results[0].hypothesis.score == pytest.approx(1)
    assert (one.bbox.center.position.x, one.bbox.size_x) == (x + 20, 40)
    (box,) = solid.detections
    assert box.bbox.size.x == pytest.approx(40 / 150 * 0.8, abs=0.01)
    assert box.results[0].pose.pose.position.z == pytest.approx(0.8)
    # latched: whoever comes late is told the labels as well
    from rclpy.qos import DurabilityPolicy, QoSProfile

    labels = []
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    peer.node.create_subscription(vision.LabelInfo, '/lisa/label_info', labels.append, qos)
    peer.wait(lambda: labels)
    assert [(c.class_id, c.class_name) for c in labels[0].class_map[:2]] == [
        (0, 'background'),
        (1, 'target_1'),
    ]


def test_a_tracker_that_cannot_be_loaded_leaves_the_node_to_be_mended(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').write_text('0')
    given = {'model': tmp_path / 'model', 'tracker': 'sam2', 'tracker_model': '/nowhere'}
    node = NodeProcess(tmp_path / 'node.log', given, program=SLOW)
    peer = Peer()
    try:
        node.wait_to_say('configure failed: /nowhere cannot be loaded as sam2')
        assert peer.state() == 'unconfigured'
        assert peer.set(tracker='off')[0].successful
        assert peer.change('configure')
        assert peer.change('activate')
    finally:
        peer.close()
        assert node.stop() == 0
    assert 'Traceback' not in node.said()


def test_cameras_are_asked_by_name_or_all_at_once(start):
    _, peer, _ = start(0.0, names=('front', 'wrist'))
    front = listen(peer, 'front/')
    wrist = listen(peer, 'wrist/')
    say(peer, 'front: bright things')
    peer.wait(lambda: all(front.values()), what='what front sees')
    peer.settle(0.3)
    assert not any(wrist.values())
    assert {m.header.frame_id for m in front['mask']} == {'front_optical'}
    assert front['segmentation'][0].query == 'bright things'
    say(peer, 'bright squares')
    peer.wait(lambda: all(wrist.values()) and len(front['mask']) == 2, what='what both see')
    assert {m.header.frame_id for m in wrist['mask']} == {'wrist_optical'}
    statuses = {s.name for array in peer.heard['diagnostics'] for s in array.status}
    assert {'/lisa front: requests', '/lisa wrist: requests', '/lisa: model'} <= statuses


def test_a_goal_names_its_camera(start):
    _, peer, _ = start(0.0, names=('front', 'wrist'))
    peer.settle(0.5)
    client = LisaClient(peer.node)

    def ask(**goal):
        pending = client.segment_async('bright things', **goal)
        peer.wait(pending.done)
        return pending.result(0)

    answer = ask(camera='wrist')
    assert answer.status is Status.FOUND
    assert answer.header.frame_id == 'wrist_optical'
    assert answer.message.instances[0].centroid.z == pytest.approx(0.8)
    assert 'the goal has to name one' in ask().reason
    assert "no camera 'head': this node has 'front', 'wrist'" in ask(camera='head').reason


def test_each_of_two_cameras_is_answered_within_twice_its_fair_share(start):
    """Both at 30 Hz, half a second an answer: a camera's fair share is one answer a second."""
    _, peer, _ = start(0.5, names=('front', 'wrist'))
    outputs = {'segmentation': Segmentation}
    heard = {
        name: listen(peer, f'{name}/', outputs)['segmentation'] for name in ('front', 'wrist')
    }
    waits = {'front': [], 'wrist': []}
    since = {}

    def ask_anew():
        for name, answers in heard.items():
            if name in since and len(answers) > len(waits[name]):
                waits[name].append(time.monotonic() - since.pop(name))
            if name not in since:
                say(peer, f'{name}: bright things')
                since[name] = time.monotonic()
        return all(len(times) >= 5 for times in waits.values())

    peer.wait(ask_anew, 60, 'five answers of each')
    assert max(max(times) for times in waits.values()) < 2 * 2 * 0.5, waits
    assert abs(len(waits['front']) - len(waits['wrist'])) <= 1
