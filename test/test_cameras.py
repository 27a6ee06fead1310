# SPDX-License-Identifier: Apache-2.0
"""3D positions, tracking and several cameras over DDS; the model is scripted.

The camera keeps its rate while the model runs. Each output has the stamp and frame_id of its
image.
"""

import itertools
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

from geometry_msgs.msg import PoseStamped
from lisa_ros.msg import Segmentation
from ros_graph import NodeProcess, Peer, image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from lisa_ros.client import LisaClient, Status
from lisa_ros.errors import TransformError
from lisa_ros.messages import bag
from lisa_ros.messages.image import compressed_to_rgb, image_to_rgb
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.resources import SAMPLE
from lisa_ros.ros.bag_player import BagPlayer, camera_topics
from lisa_ros.session.frame_buffer import SyncedMessages

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


def scene_images(x):
    """Return image and depth [mm] of a bright square at column x, 0.8 m away, floor at 1 m."""
    pixels = np.minimum(FLOOR, 190)
    pixels[40:80, x : x + 40] = np.maximum(pixels[40:80, x : x + 40], 60) // 4 + 205
    depth = np.full((HEIGHT, WIDTH), 1000, np.uint16)
    depth[40:80, x : x + 40] = 800
    return pixels, depth


class Camera(threading.Thread):
    """Publishes image, depth and camera info of a moving square until `close`."""

    def __init__(self, peer, namespace, rate=30.0, speed=0):
        super().__init__(daemon=True)
        from rclpy.qos import qos_profile_sensor_data

        self.frame = f'{namespace.strip("/") or "camera"}_optical'
        publish = peer.node.create_publisher
        self.images = publish(Image, f'{namespace}/image', qos_profile_sensor_data)
        self.depths = publish(Image, f'{namespace}/depth', qos_profile_sensor_data)
        self.infos = publish(CameraInfo, f'{namespace}/camera_info', qos_profile_sensor_data)
        self.square_columns = {}  # stamp in ns -> column of the square
        self.rate, self.speed, self.closed = rate, speed, threading.Event()

    def run(self):
        for i in itertools.count():
            distance = int(self.speed * i / self.rate) % 160
            x = 20 + min(distance, 160 - distance)  # to the right and back
            now = time.time_ns()
            stamp = divmod(now, 10**9)
            pixels, depth = scene_images(x)
            info = CameraInfo(width=WIDTH, height=HEIGHT, k=K)
            info.header.stamp.sec, info.header.stamp.nanosec = stamp
            self.square_columns[now] = x
            self.infos.publish(info)
            self.images.publish(image(pixels, stamp=stamp, frame=self.frame))
            self.depths.publish(image(depth, '16UC1', stamp, frame=self.frame))
            if self.closed.wait(1 / self.rate):
                return

    def close(self):
        self.closed.set()
        self.join()


@pytest.fixture
def start(tmp_path):
    """Start a node whose model takes `seconds`; check at the end that it logged no traceback."""
    nodes, cameras, peers = [], [], []

    def start_node(seconds, names=('',), speed=0, **parameters):
        (tmp_path / 'model').mkdir()
        (tmp_path / 'model' / 'answer').write_text(str(seconds))
        parameters = {'model': f'scripted:{tmp_path}/model', **parameters}
        parameters.setdefault('diagnostics_period', 0.2)
        if names != ('',):
            parameters['cameras'] = f'[{",".join(names)}]'
        nodes.append(NodeProcess(tmp_path / 'node.log', parameters, program=SLOW))
        peer = Peer()
        peers.append(peer)
        for name in names:
            cameras.append(Camera(peer, f'/{name}' if name else '', speed=speed))
            cameras[-1].start()
        peer.wait(peer.commands.get_subscription_count, 60, 'the node')
        peer.wait(lambda: all(c.images.get_subscription_count() for c in cameras))
        return nodes[-1], peer, cameras

    yield start_node
    for camera in cameras:
        camera.close()
    for peer in peers:
        peer.close()
    for node in nodes:
        assert node.stop() == 0, node.output()
        assert 'Traceback' not in node.output(), node.output()


def subscribe_outputs(peer, prefix, outputs=OUTPUTS):
    """Subscribe to outputs under a prefix; return the list of messages of each."""
    for name, message_type in outputs.items():
        peer.subscribe(f'/lisa/{prefix}{name}', message_type, prefix + name)
    peer.settle(1.0)
    return {name: peer.received[prefix + name] for name in outputs}


def send_command(peer, text):
    peer.commands.publish(String(data=text))


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def mask_of(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width) > 0


def square(x):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[40:80, x : x + 40] = True
    return mask


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def test_every_output_has_the_stamp_and_frame_of_its_image(start):
    """The camera runs at 30 Hz and the model takes two seconds."""
    _, peer, (camera,) = start(2.0, speed=20)
    outputs = subscribe_outputs(peer, '')
    asked_at = time.time_ns()
    send_command(peer, 'bright objects')
    peer.wait(lambda: all(outputs.values()), what='every output')
    (answer,) = outputs['segmentation']
    stamp = stamp_of(answer)
    assert stamp in camera.square_columns
    assert stamp > asked_at - 0.5e9
    assert stamp < time.time_ns() - 2e9  # the image from before the model ran, not after it
    for name, messages in outputs.items():
        assert [(stamp_of(m), m.header.frame_id) for m in messages] == [
            (stamp, 'camera_optical')
        ], name
    x = camera.square_columns[stamp]
    np.testing.assert_array_equal(mask_of(outputs['mask'][0]), square(x))
    (answered_object,) = answer.instances
    middle = ((x + 19.5 - 79.5) / 150 * 0.8, (59.5 - 59.5) / 150 * 0.8, 0.8)
    assert xyz(answered_object.centroid) == pytest.approx(middle, abs=1e-3)
    assert xyz(outputs['target'][0].pose.position) == pytest.approx(xyz(answered_object.centroid))
    assert answered_object.box_size.x == pytest.approx(40 / 150 * 0.8, abs=0.01)
    assert answer.place_reason == ''


def xyz(point):
    return point.x, point.y, point.z


def test_outputs_match_their_image_while_the_sample_bag_plays_at_30_hz(tmp_path):
    """In a loop, so that stamps jump back, three times as fast as recorded."""
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').write_text('2')
    topics = camera_topics(SAMPLE / 'bag')
    remaps = [part for name, topic in topics.items() for part in ('-r', f'{name}:={topic}')]
    parameters = {'model': f'scripted:{tmp_path}/model'}
    node = NodeProcess(tmp_path / 'node.log', parameters, *remaps, program=SLOW)
    peer = Peer()
    player = BagPlayer(peer.node, SAMPLE / 'bag', rate=3.0, loop=True, topics=topics.values())
    try:
        peer.wait(peer.commands.get_subscription_count, 60, 'the node')
        outputs = subscribe_outputs(peer, '')
        player.start()
        peer.settle(1.0)
        send_command(peer, 'bright objects')
        peer.wait(lambda: all(outputs.values()), what='every output')
        (answer,) = outputs['segmentation']
        frames = {frame.stamp: frame for frame in bag.read_images(SAMPLE / 'bag', topics['image'])}
        frame = frames[stamp_of(answer)]
        for name, messages in outputs.items():
            headers = [(stamp_of(m), m.header.frame_id) for m in messages]
            assert headers == [(frame.stamp, frame.frame_id)], name
        np.testing.assert_array_equal(mask_of(outputs['mask'][0]), frame.pixels[..., 0] > 200)
    finally:
        player.stop()
        peer.close()
        assert node.stop() == 0, node.output()


def test_the_clouds_match_the_depth_image_and_the_object(start):
    _, peer, (camera,) = start(0.0)
    outputs = subscribe_outputs(peer, '')
    send_command(peer, 'bright objects')
    peer.wait(lambda: all(outputs.values()), what='every output')
    scene, answered_object = outputs['scene_points'][0], outputs['object_points'][0]
    assert (scene.height, scene.width, scene.point_step) == (HEIGHT, WIDTH, 16)
    points = np.frombuffer(scene.data, np.float32).reshape(HEIGHT, WIDTH, 4)
    x = camera.square_columns[stamp_of(scene)]
    assert np.unique(points[square(x), 2]).tolist() == [np.float32(0.8)]
    assert points[0, 0, 0] == pytest.approx(-79.5 / 150)
    pixels, _ = scene_images(x)
    red, green, blue = pixels[0, 0].astype(np.uint32)
    assert points[0, 0, 3:].view(np.uint32)[0] == red << 16 | green << 8 | blue
    object_points = np.frombuffer(answered_object.data, np.float32).reshape(-1, 4)
    assert answered_object.width == len(object_points) > 1000
    assert np.unique(object_points[:, 2]).tolist() == [np.float32(0.8)]


def test_an_answer_without_objects_empties_their_cloud(start):
    _, peer, _ = start(0.0)
    names = ('segmentation', 'object_points')
    outputs = subscribe_outputs(peer, '', {name: OUTPUTS[name] for name in names})
    for count, text in enumerate(('bright objects', 'something else', 'bright objects'), 1):
        send_command(peer, text)
        peer.wait(lambda n=count: all(len(messages) == n for messages in outputs.values()))
    answers, clouds = outputs.values()
    assert [len(answer.instances) for answer in answers] == [1, 0, 1]
    assert [cloud.width > 1000 for cloud in clouds] == [True, False, True]
    assert clouds[1].width == 0
    assert [stamp_of(cloud) for cloud in clouds] == [stamp_of(answer) for answer in answers]


def test_without_a_transform_the_answer_says_why_there_is_no_target(start):
    node, peer, _ = start(0.0, target_frame='base_link', transform_timeout=0.05)
    outputs = subscribe_outputs(peer, '')
    send_command(peer, 'bright objects')
    peer.wait(lambda: outputs['segmentation'] and outputs['object_points'])
    peer.settle(0.5)
    (answer,) = outputs['segmentation']
    assert 'no target: ' in answer.place_reason
    assert 'base_link' in answer.place_reason
    assert outputs['target'] == []
    assert xyz(answer.instances[0].centroid)[2] == pytest.approx(0.8)  # in the frame of the image
    assert 'no target: ' in node.output()


@pytest.mark.parametrize('target', ['map', '/map'])
def test_frames_of_ros_1_begin_with_a_slash_that_tf2_does_not_accept(target, monkeypatch):
    from geometry_msgs.msg import TransformStamped

    from lisa_ros.ros import transforms
    from lisa_ros.settings import Settings

    class Buffer:  # tf2_ros has no wheel: its rules for names
        def lookup_transform(self, to, source, *_):
            if to.startswith('/') or source.startswith('/'):
                raise ValueError("frame_ids cannot start with a '/'")
            found = TransformStamped()
            found.transform.translation.x = 1.0
            return found

        def can_transform(self, *names_and_time):
            return not any(str(name).startswith('/') for name in names_and_time)

    tf2_ros = SimpleNamespace(
        Buffer=lambda *_: Buffer(), TransformListener=lambda *_: None, TransformException=KeyError
    )
    monkeypatch.setattr(transforms, 'tf2_ros', tf2_ros)
    settings = SimpleNamespace(value=Settings(target_frame=target))
    known = transforms.Transforms(None, settings)
    pose = PoseStamped()
    pose.header.frame_id = '/camera'
    assert known.transform_pose(pose, target).pose.position.x == 1.0
    assert known.transform_pose(pose, 'camera') is pose
    assert known.missing(['/camera'], [target, 'camera']) == ''


DRIVE = 100.0  # when the robot begins to drive at 0.5 m/s along x of the map [s]
IMAGE_AT, ANSWER_AT = 101.0, 108.0  # [s]


@pytest.fixture
def tf(monkeypatch):
    """Put a TF into place with tf2's rules of time; frames are on a robot, or fixed in the map."""
    from geometry_msgs.msg import TransformStamped

    from lisa_ros.ros import transforms

    class Buffer:  # tf2_ros has no wheel
        def __init__(self):
            self.rotations = {'moving': (0, 0, 0, 1), 'fixed': (0, 0, 0, 1)}  # x, y, z, w

        def lookup_transform(self, to, source, when, *_):
            if source not in self.rotations:
                raise KeyError(f'frame {source} does not exist')
            seconds = when.nanoseconds / 1e9 or ANSWER_AT  # 0: the newest
            found = TransformStamped()
            rotation, translation = found.transform.rotation, found.transform.translation
            rotation.x, rotation.y, rotation.z, rotation.w = map(float, self.rotations[source])
            if source == 'moving':
                if seconds < DRIVE:
                    raise KeyError('Lookup would require extrapolation into the past')
                translation.x = 0.5 * (seconds - DRIVE)
            return found

    buffer = Buffer()
    tf2_ros = SimpleNamespace(
        Buffer=lambda *_: buffer,
        TransformListener=lambda *_: None,
        TransformException=KeyError,
        ExtrapolationException=OverflowError,
    )
    monkeypatch.setattr(transforms, 'tf2_ros', tf2_ros)
    return buffer


def transforms_of(**parameters):
    from lisa_ros.ros.transforms import Transforms
    from lisa_ros.settings import Settings

    return Transforms(None, SimpleNamespace(value=Settings(**parameters)))


def test_a_pose_without_a_stamp_is_not_moved_with_the_newest_transform(tf):
    """tf2 takes the stamp 0 as "now", which is when the answer comes."""
    known = transforms_of(target_frame='map')
    pose = PoseStamped()
    pose.pose.position.x = 1.0
    pose.header.frame_id, pose.header.stamp.sec = 'moving', int(IMAGE_AT)
    assert known.transform_pose(pose, 'map').pose.position.x == 1.5
    pose.header.stamp.sec = 0
    with pytest.raises(TransformError, match='let the driver stamp its images'):
        known.transform_pose(pose, 'map')
    with pytest.raises(TransformError, match='has no stamp'):
        known.gravity_direction('map', pose.header)
    pose.header.frame_id = 'fixed'  # known at any time
    assert known.transform_pose(pose, 'map').pose.position.x == 1.0


def test_an_image_without_a_stamp_has_that_of_its_arrival():
    from lisa_ros.ros.transforms import stamped_header

    for stamp, expected in (((0, 0), IMAGE_AT * 1e9), ((7, 5), 7 * 10**9 + 5)):
        message = image(np.zeros((2, 2, 3), np.uint8), stamp=stamp)
        header = stamped_header(SyncedMessages(int(IMAGE_AT * 1e9), message))
        assert (stamp_ns(header), header.frame_id) == (expected, 'camera_optical')
        assert stamp_ns(message.header) == stamp[0] * 10**9 + stamp[1]  # it is left as it is


HALF = 0.5**0.5


@pytest.mark.parametrize(
    ('rotation', 'is_doubted'),
    [
        ((0, 0, 0, 1), True),  # a body frame: x forward, z up
        ((0, 0.17, 0, 0.985), True),  # a body frame that looks down by 20 degrees
        ((-0.5, 0.5, -0.5, 0.5), False),  # an optical frame that looks forward
        ((1, 0, 0, 0), False),  # down
        ((-0.65, 0.65, -0.27, 0.27), False),  # down by 45 degrees
        ((-0.27, 0.27, -0.65, 0.65), False),  # up by 45 degrees
        ((HALF, 0, 0, HALF), False),  # to the side
    ],
)
def test_a_camera_that_looks_straight_up_is_doubted(tf, rotation, is_doubted):
    known = transforms_of(gravity_frame='odom')
    tf.rotations['camera_link'] = rotation
    assert known.axis_doubt(['camera_link'], ['odom']) == ''  # it does not listen yet
    known.listen()
    doubt = known.axis_doubt(['unknown', '/camera_link'], ['odom'])
    assert ('camera_link may not be an optical frame (REP-103' in doubt) == is_doubted
    assert bool(doubt) == is_doubted
    assert known.axis_doubt(['camera_link'], []) == ''  # no frame whose z axis is up
    assert known.axis_doubt(['odom'], ['odom']) == ''


@pytest.mark.parametrize('seconds', [1.5, 12.0])  # tf2 itself keeps transforms for 10 s
def test_the_target_uses_the_transform_at_the_time_of_the_image(start, seconds):
    """The camera moves at 0.5 m/s while the model runs."""
    tf2_ros = pytest.importorskip('tf2_ros', reason='needs tf2_ros, which has no wheel')
    from geometry_msgs.msg import TransformStamped

    _, peer, _ = start(seconds, target_frame='map', gravity_frame='map')
    broadcaster, start_time = tf2_ros.TransformBroadcaster(peer.node), time.time_ns()

    def camera_x(stamp):
        return (stamp - start_time) / 1e9 * 0.5

    def broadcast():
        now = time.time_ns()
        message = TransformStamped(child_frame_id='camera_optical')
        message.header.frame_id = 'map'
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
        message.transform.translation.x, message.transform.translation.z = camera_x(now), 2.0
        # the camera looks down; its x axis is that of the map
        message.transform.rotation.x, message.transform.rotation.w = 1.0, 0.0
        broadcaster.sendTransform(message)

    timer = peer.node.create_timer(0.02, broadcast)
    outputs = subscribe_outputs(peer, '')
    send_command(peer, 'bright objects')
    peer.wait(lambda: outputs['segmentation'] and outputs['target'], 40, 'a target')
    peer.node.destroy_timer(timer)
    (answer,), (target,) = outputs['segmentation'], outputs['target']
    assert answer.place_reason == ''
    assert (stamp_of(target), target.header.frame_id) == (stamp_of(answer), 'map')
    x, y, z = xyz(answer.instances[0].centroid)
    assert xyz(target.pose.position) == pytest.approx(
        (camera_x(stamp_of(answer)) + x, -y, 2.0 - z), abs=2e-3
    )
    rotation = answer.instances[0].box_pose.orientation  # box z is map z, minus optical z
    assert rotation.x**2 + rotation.y**2 == pytest.approx(1, abs=1e-3)


def test_masks_are_tracked_to_every_newer_image(start):
    """The model takes a second; the object moves during that time and afterwards."""
    node, peer, (camera,) = start(1.0, speed=20)
    outputs = subscribe_outputs(peer, 'tracked/')
    assert not any(outputs.values())
    send_command(peer, 'bright objects')
    peer.wait(lambda: len(outputs['mask']) > 30, 60, 'thirty tracked masks')
    for name, messages in outputs.items():
        stamps = [stamp_of(m) for m in messages]
        assert stamps == sorted(set(stamps)), name
    masks = {stamp_of(m): mask_of(m) for m in outputs['mask']}
    first = min(masks)
    overlaps = [iou(mask, square(camera.square_columns[stamp])) for stamp, mask in masks.items()]
    assert np.mean(overlaps) > 0.8, node.output()
    tracked = {stamp_of(m): m for m in outputs['segmentation']}
    assert tracked[first].age > 0.9  # the answer is about an image that is a second older
    assert tracked[first].query == 'bright objects'
    assert all(m.instances[0].tracked for m in tracked.values())
    assert all(0 < m.instances[0].drift < 1 for m in tracked.values())  # it moves: not 0
    targets = {stamp_of(m): m for m in outputs['target']}
    for stamp, message in targets.items():
        x = (camera.square_columns[stamp] + 19.5 - 79.5) / 150 * 0.8
        assert message.pose.position.x == pytest.approx(x, abs=0.02)
        assert message.pose.position.z == pytest.approx(0.8, abs=0.01)
    assert len(targets) > 20


def test_the_same_query_runs_again_on_a_timer(start):
    _, peer, _ = start(0.1, requery='timer', requery_period=0.5)
    subscribe_outputs(peer, 'tracked/', {'mask': Image})
    send_command(peer, 'bright objects')
    answers = peer.received['segmentation']
    peer.wait(lambda: len(answers) >= 4, 30, 'repeated answers')
    assert {answer.query for answer in answers} == {'bright objects'}
    assert all(answer.age == 0 for answer in answers)
    send_command(peer, 'stop')
    peer.settle(1.0)
    count, masks = len(answers), len(peer.received['tracked/mask'])
    peer.settle(1.5)
    assert len(answers) == count
    assert len(peer.received['tracked/mask']) == masks


def test_boxes_and_labels_as_vision_msgs(start):
    vision = pytest.importorskip('vision_msgs.msg', reason='needs vision_msgs, which has no wheel')
    _, peer, (camera,) = start(0.0)
    outputs = subscribe_outputs(
        peer, '',
        {'detections': vision.Detection2DArray, 'detections_3d': vision.Detection3DArray},
    )  # fmt: skip
    send_command(peer, 'bright objects')
    peer.wait(lambda: all(outputs.values()))
    flat, solid = outputs['detections'][0], outputs['detections_3d'][0]
    assert flat.header == solid.header
    x = camera.square_columns[stamp_of(flat)]
    (detection,) = flat.detections
    assert (detection.id, detection.results[0].hypothesis.class_id) == ('1', 'bright objects')
    assert detection.results[0].hypothesis.score == pytest.approx(1)
    assert (detection.bbox.center.position.x, detection.bbox.size_x) == (x + 20, 40)
    (box,) = solid.detections
    assert box.bbox.size.x == pytest.approx(40 / 150 * 0.8, abs=0.01)
    assert box.results[0].pose.pose.position.z == pytest.approx(0.8)
    # latched: a late subscriber also gets the labels
    from rclpy.qos import DurabilityPolicy, QoSProfile

    labels = []
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    peer.node.create_subscription(vision.LabelInfo, '/lisa/label_info', labels.append, qos)
    peer.wait(lambda: labels)
    assert [(c.class_id, c.class_name) for c in labels[0].class_map[:2]] == [
        (0, 'background'),
        (1, 'target_1'),
    ]


def test_the_node_survives_a_tracker_that_cannot_be_loaded(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'answer').write_text('0')
    parameters = {
        'model': f'scripted:{tmp_path}/model',
        'tracker': 'sam2',
        'tracker_model': '/nowhere',
    }
    node = NodeProcess(tmp_path / 'node.log', parameters, program=SLOW)
    peer = Peer()
    try:
        node.wait_for_output('configure failed: /nowhere cannot be loaded as sam2')
        assert peer.state() == 'unconfigured'
        assert peer.set_parameters(tracker='off')[0].successful
        assert peer.change_state('configure')
        assert peer.change_state('activate')
    finally:
        peer.close()
        assert node.stop() == 0
    assert 'Traceback' not in node.output()


def test_a_command_is_for_the_named_camera_or_for_all(start):
    _, peer, _ = start(0.0, names=('front', 'wrist'))
    front = subscribe_outputs(peer, 'front/')
    wrist = subscribe_outputs(peer, 'wrist/')
    send_command(peer, 'front: bright objects')
    peer.wait(lambda: all(front.values()), what='the outputs of front')
    peer.settle(0.3)
    assert not any(wrist.values())
    assert {m.header.frame_id for m in front['mask']} == {'front_optical'}
    assert front['segmentation'][0].query == 'bright objects'
    send_command(peer, 'bright squares')
    peer.wait(lambda: all(wrist.values()) and len(front['mask']) == 2, what='both cameras')
    assert {m.header.frame_id for m in wrist['mask']} == {'wrist_optical'}
    statuses = {s.name for array in peer.received['diagnostics'] for s in array.status}
    assert {'/lisa front: requests', '/lisa wrist: requests', '/lisa: model'} <= statuses


def test_a_goal_names_its_camera(start):
    _, peer, _ = start(0.0, names=('front', 'wrist'))
    peer.settle(0.5)
    client = LisaClient(peer.node)

    def ask(**goal):
        future = client.segment_async('bright objects', **goal)
        peer.wait(future.done)
        return future.result(0)

    answer = ask(camera='wrist')
    assert answer.status is Status.FOUND
    assert answer.header.frame_id == 'wrist_optical'
    assert answer.message.instances[0].centroid.z == pytest.approx(0.8)
    assert 'the goal has to name one' in ask().reason
    assert "no camera 'head': this node has 'front', 'wrist'" in ask(camera='head').reason


def test_each_of_two_cameras_is_answered_within_twice_its_fair_share(start):
    """At 30 Hz and 0.5 s an answer, each camera should get one answer a second."""
    _, peer, _ = start(0.5, names=('front', 'wrist'))
    answers = {
        name: subscribe_outputs(peer, f'{name}/', {'segmentation': Segmentation})['segmentation']
        for name in ('front', 'wrist')
    }
    latencies = {'front': [], 'wrist': []}
    sent_at = {}

    def ask_again():
        for name, messages in answers.items():
            if name in sent_at and len(messages) > len(latencies[name]):
                latencies[name].append(time.monotonic() - sent_at.pop(name))
            if name not in sent_at:
                send_command(peer, f'{name}: bright objects')
                sent_at[name] = time.monotonic()
        return all(len(times) >= 5 for times in latencies.values())

    peer.wait(ask_again, 60, 'five answers of each')
    assert max(max(times) for times in latencies.values()) < 2 * 2 * 0.5, latencies
    assert abs(len(latencies['front']) - len(latencies['wrist'])) <= 1


def test_compressed_outputs_are_the_same_images(start):
    _, peer, _ = start(0.0)
    outputs = subscribe_outputs(
        peer, '',
        {'mask': Image, 'overlay': Image,
         'mask/compressed': CompressedImage, 'overlay/compressed': CompressedImage},
    )  # fmt: skip
    send_command(peer, 'bright objects')
    peer.wait(lambda: all(outputs.values()))
    for name, mean in (('mask', 0), ('overlay', 3)):  # JPEG blurs the letters
        raw, compressed = outputs[name][0], outputs[f'{name}/compressed'][0]
        assert raw.header == compressed.header
        difference = np.abs(compressed_to_rgb(compressed).astype(int) - image_to_rgb(raw))
        assert difference.mean() <= mean
    assert outputs['mask/compressed'][0].format == 'mono8; png compressed '
    assert outputs['overlay/compressed'][0].format == 'rgb8; jpeg compressed bgr8'


def test_boxes_and_names_as_markers(start):
    module = pytest.importorskip(
        'visualization_msgs.msg', reason='needs visualization_msgs, which has no wheel'
    )
    _, peer, _ = start(0.0)
    outputs = subscribe_outputs(peer, '', {'markers': module.MarkerArray})
    send_command(peer, 'bright objects')
    peer.wait(lambda: all(outputs.values()))
    clear, box, name = outputs['markers'][0].markers
    assert clear.action == module.Marker.DELETEALL
    assert (box.type, box.ns, box.id) == (module.Marker.CUBE, 'boxes', 1)
    assert box.scale.x == pytest.approx(40 / 150 * 0.8, abs=0.01)
    assert (name.type, name.text) == (module.Marker.TEXT_VIEW_FACING, 'bright objects 1.00')
    assert name.pose.position == box.pose.position
    assert box.header.frame_id == name.header.frame_id == clear.header.frame_id != ''
