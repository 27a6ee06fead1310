# SPDX-License-Identifier: Apache-2.0
"""A ROS graph for tests: the node in its own process, and a peer that uses it over DDS."""

import array
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lisa_ros.ros import fastdds

DOMAIN = str(1 + os.getpid() % 100)  # each test process has its own graph
REFERENCE = Path(__file__).parent / 'data' / 'reference'  # LISA at toy size, random weights
MODEL = {
    'model': REFERENCE / 'ckpt_256',
    'vision_tower': REFERENCE / 'clip_256',
    'template': 'llava_v1',
    'threads': 1,
}
START, ANSWER = 60.0, 20.0  # timeouts that suffice on a busy machine [s]
REPLY = 5.0  # until a call of a service is repeated [s]
STATE_AFTER = {
    'configure': 'inactive',
    'activate': 'active',
    'deactivate': 'inactive',
    'cleanup': 'unconfigured',
    'shutdown': 'finalized',
}


def environment():
    return {**os.environ, 'ROS_DOMAIN_ID': DOMAIN, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def executable(name='lisa_node', module='lisa_ros.ros.node'):
    """Return the command that starts the installed node, or the module if it is not installed."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        installed = Path(get_package_prefix('lisa_ros')) / 'lib' / 'lisa_ros' / name
    except PackageNotFoundError:
        installed = Path()
    return [str(installed)] if installed.is_file() else [sys.executable, '-m', module]


class NodeProcess:
    """A process of `lisa_node` or another program; its output goes to a log file."""

    def __init__(self, log, parameters, *arguments, program=None):
        self._log = log
        # Most tests publish one image and ask about it much later, and none of their models dies.
        defaults = {'max_image_age': 0.0, 'worker_standby': 'false'}
        options = [
            part
            for name, value in {**defaults, **parameters}.items()
            for part in ('-p', f'{name}:={value}')
        ]
        with log.open('w') as output:
            self.process = subprocess.Popen(
                [*(program or executable()), '--ros-args', *options, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    def output(self):
        return self._log.read_text()

    def wait_for_output(self, text, times=1):
        deadline = time.monotonic() + START
        while self.output().count(text) < times:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f'no {text!r} in {self.output()}'
            time.sleep(0.02)

    def stop(self, signal_number=signal.SIGINT):
        """Send a signal, by default that of Ctrl-C; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


@contextlib.contextmanager
def running_node(log, parameters, *arguments, program=None):
    """Start a node; at the end it must stop when it is told to, without a traceback in its log."""
    process = NodeProcess(log, parameters, *arguments, program=program)
    try:
        yield process
    finally:
        status = process.stop()
    assert status == 0, process.output()
    assert 'Traceback' not in process.output(), process.output()


@contextlib.contextmanager
def peer_of(process, namespace='', cameras=('',)):
    """Connect to a node as soon as it is active."""
    peer = Peer(namespace, cameras)
    try:
        peer.wait_until_active(process)
        yield peer
    finally:
        peer.close()


class Camera:
    """The topics of a camera."""

    def __init__(self, node, namespace):
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, Image

        types = {'image': Image, 'depth': Image, 'camera_info': CameraInfo}
        self.topics = [f'{namespace}/{name}' for name in types]
        self.images, self.depths, self.infos = (
            node.create_publisher(message_type, topic, qos_profile_sensor_data)
            for topic, message_type in zip(self.topics, types.values(), strict=True)
        )

    def publish(self, image, depth, focal_length):
        """Publish an image with its depth and its calibration; the axis is in the middle."""
        from sensor_msgs.msg import CameraInfo

        info = CameraInfo(header=image.header, height=image.height, width=image.width)
        centre = image.width / 2, image.height / 2
        info.k = [focal_length, 0.0, centre[0], 0.0, focal_length, centre[1], 0.0, 0.0, 1.0]
        self.infos.publish(info)
        self.depths.publish(depth)
        self.images.publish(image)


class Peer:
    """Publishes images and commands, and collects the messages of the node."""

    def __init__(self, namespace='', cameras=('',)):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lisa_ros.msg import Segmentation
        from sensor_msgs.msg import Image
        from std_msgs.msg import String

        fastdds.configure_shared_memory()
        self.context = rclpy.Context()
        self.context.init(domain_id=int(DOMAIN))
        self.node = rclpy.create_node('tester', context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.name = f'{namespace}/lisa'
        self.received = {}  # topic -> messages
        self._clients = {}  # of the node's services, by name
        for topic, message_type in {
            'segmentation': Segmentation,
            'mask': Image,
            'confidence': Image,
            'explanation': String,
        }.items():
            self.subscribe(f'{self.name}/{topic}', message_type, topic)
        self.subscribe('/diagnostics', DiagnosticArray, 'diagnostics')
        self.commands = self.node.create_publisher(String, f'{self.name}/command', 10)
        prefixes = {name: f'{namespace}/{name}' if name else namespace for name in cameras}
        self.cameras = {name: Camera(self.node, prefix) for name, prefix in prefixes.items()}
        first = self.cameras[cameras[0]]
        self.images, self.depths, self.infos = first.images, first.depths, first.infos

    def subscribe(self, topic, message_type, key):
        """Collect the messages of a topic in `received[key]`."""
        self.received[key] = []
        return self.node.create_subscription(message_type, topic, self.received[key].append, 10)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.shutdown()

    def wait(self, done, seconds=ANSWER, what='the condition'):
        """Spin until `done()` is true; `what` names it if it times out."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f'waited {seconds} s for {what}'
            self.executor.spin_once(timeout_sec=0.05)

    def wait_until_active(self, process):
        """Wait until the node and this camera have discovered each other.

        Both must have: messages that a best-effort camera publishes before the node has discovered
        it are lost, and on a busy machine Fast DDS needs seconds for that.
        """

        def ready():
            assert process.process.poll() is None, process.output()
            return (
                self.commands.get_subscription_count()
                and all(camera.images.get_subscription_count() for camera in cameras)
                and self._knows_publishers_of(*topics)
            )

        cameras = self.cameras.values()
        topics = [topic for camera in cameras for topic in camera.topics]
        self.received['diagnostics'].clear()
        self.wait(ready, START, 'an active node')

    def create_input(self, message_type, topic, qos=10):
        """Return a publisher for an input of the node, which has discovered it."""
        publisher = self.node.create_publisher(message_type, topic, qos)
        self.received['diagnostics'].clear()
        self.wait(
            lambda: publisher.get_subscription_count() and self._knows_publishers_of(topic),
            START,
            f'an input {topic}',
        )
        return publisher

    def _knows_publishers_of(self, *topics):
        """Return whether the node's diagnostics count all publishers of its inputs."""
        counted = {
            status.name.removeprefix(f'{self.name}: input '): int(value.value)
            for array in self.received['diagnostics']
            for status in array.status
            for value in status.values
            if value.key == 'publishers'
        }
        return counted and all(
            counted.get(topic, math.inf) >= self.node.count_publishers(topic) for topic in topics
        )

    def publish_image(self, image, settle=True):
        """Publish an image and give DDS a moment to deliver it."""
        self.images.publish(image)
        if settle:
            self.settle()

    def publish_rgbd(self, image, depth, focal_length, camera=''):
        """Publish what an RGB-D camera sends, and give DDS a moment to deliver it."""
        self.cameras[camera].publish(image, depth, focal_length)
        self.settle()

    def settle(self, seconds=0.2):
        """Spin for a while, so that messages arrive."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def ask(self, *texts):
        """Send commands; return their answers on ~/segmentation in order of arrival."""
        from std_msgs.msg import String

        answers = self.received['segmentation']
        answers.clear()
        for text in texts:
            self.commands.publish(String(data=text))
        self.wait(lambda: len(answers) >= len(texts), what=f'the answer to {texts}')
        return list(answers)

    def call(self, service_type, name, **fields):
        """Call a service of the node.

        Fast DDS may drop the reply to a client that it has not discovered yet
        (ros2/rmw_fastrtps#842). The call is therefore repeated.
        """
        client = self.client(service_type, name)
        deadline = time.monotonic() + START
        futures = []

        def has_reply():
            return any(future.done() for future in futures)

        while not has_reply():
            assert time.monotonic() < deadline, f'{name} did not reply within {START} s'
            futures.append(client.call_async(service_type.Request(**fields)))
            self._wait_at_most(REPLY, has_reply)
        return next(future.result() for future in futures if future.done())

    def client(self, service_type, name):
        """Return a client of a service of the node, which has had a moment to discover it."""
        client = self._clients.get(name)
        if client is None or not client.service_is_ready():
            if client is None:
                client = self.node.create_client(service_type, f'{self.name}/{name}')
                self._clients[name] = client
            self.wait(client.service_is_ready, START, f'the service {name}')
            self.settle(0.5)
        return client

    def _wait_at_most(self, seconds, done):
        """Spin until `done()` is true, or some time has passed."""
        end = time.monotonic() + seconds
        self.wait(lambda: done() or time.monotonic() > end, 2 * seconds)

    def set_parameters(self, **values):
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        messages = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        return self.call(SetParameters, 'set_parameters', parameters=messages).results

    def state(self):
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, 'get_state').current_state.label

    def change_state(self, label):
        """Ask for a transition; return whether it succeeded.

        A transition cannot be repeated. If its reply is lost (see `call`), the state tells.
        """
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        client = self.client(ChangeState, 'change_state')
        future = client.call_async(ChangeState.Request(transition=Transition(label=label)))
        deadline = time.monotonic() + START
        while not future.done():
            assert time.monotonic() < deadline, f'{label!r} did not end within {START} s'
            self._wait_at_most(REPLY, future.done)
            if not future.done() and self.state() == STATE_AFTER[label]:
                return True
        return future.result().success

    def load(self, process, **parameters):
        """Load a model through the lifecycle of the node, which is active or has none."""
        if self.state() != 'unconfigured':
            assert self.change_state('deactivate')
            assert self.change_state('cleanup')
        results = self.set_parameters(**parameters)
        assert all(result.successful for result in results), results
        assert self.change_state('configure'), process.output()
        assert self.change_state('activate')
        self.wait_until_active(process)


def image(pixels, encoding='rgb8', stamp=(7, 5), frame='camera_optical', padding=0, big=False):
    """Return a sensor_msgs/Image with `padding` bytes after each row, in either byte order."""
    from sensor_msgs.msg import Image

    pixels = np.asarray(pixels)
    pixels = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
    rows = [row.tobytes() + b'\xab' * padding for row in pixels]
    message = Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big),
        step=len(rows[0]),
        data=array.array('B', b''.join(rows)),
    )
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    return message
