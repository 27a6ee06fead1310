# SPDX-License-Identifier: Apache-2.0
"""A real graph for tests: the node as its own process, and someone who talks to it over DDS."""

import array
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lisa_ros.ros import fastdds

DOMAIN = str(1 + os.getpid() % 100)  # a graph for each test process
REFERENCE = Path(__file__).parent / 'data' / 'reference'  # LISA at toy size, random weights
MODEL = {
    'model': REFERENCE / 'ckpt_256',
    'vision_tower': REFERENCE / 'clip_256',
    'template': 'llava_v1',
    'threads': 1,
}
START, ANSWER = 60.0, 20.0  # longest waits on a busy machine [s]


def environment():
    return {**os.environ, 'ROS_DOMAIN_ID': DOMAIN, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def executable(name='lisa_node', module='lisa_ros.ros.node'):
    """The installed node where there is one, else the module."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        installed = Path(get_package_prefix('lisa_ros')) / 'lib' / 'lisa_ros' / name
    except PackageNotFoundError:
        installed = Path()
    return [str(installed)] if installed.is_file() else [sys.executable, '-m', module]


class NodeProcess:
    """`lisa_node` with parameters; its output is collected in a file."""

    def __init__(self, log, parameters, *arguments, program=None):
        self._log = log
        given = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
        with log.open('w') as output:
            self.process = subprocess.Popen(
                [*(program or executable()), '--ros-args', *given, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    def said(self):
        return self._log.read_text()

    def wait_to_say(self, words, times=1):
        until = time.monotonic() + START
        while self.said().count(words) < times:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, f'no {words!r} in {self.said()}'
            time.sleep(0.02)

    def stop(self, number=signal.SIGINT):
        """Interrupt it as Ctrl-C does, or as asked; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


class Peer:
    """Publishes camera and commands, collects what the node says."""

    def __init__(self, namespace=''):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lisa_ros.msg import Segmentation
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, Image
        from std_msgs.msg import String

        fastdds.configure_shared_memory()
        self.context = rclpy.Context()
        self.context.init(domain_id=int(DOMAIN))
        self.node = rclpy.create_node('tester', context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.name = f'{namespace}/lisa'
        self.heard = {}  # topic -> messages
        for topic, kind in {
            'segmentation': Segmentation,
            'mask': Image,
            'confidence': Image,
            'explanation': String,
        }.items():
            self.listen(f'{self.name}/{topic}', kind, topic)
        self.listen('/diagnostics', DiagnosticArray, 'diagnostics')
        self.commands = self.node.create_publisher(String, f'{self.name}/command', 10)
        publish = self.node.create_publisher
        self.images = publish(Image, f'{namespace}/image', qos_profile_sensor_data)
        self.depths = publish(Image, f'{namespace}/depth', qos_profile_sensor_data)
        self.infos = publish(CameraInfo, f'{namespace}/camera_info', qos_profile_sensor_data)

    def listen(self, topic, kind, key):
        self.heard[key] = []
        return self.node.create_subscription(kind, topic, self.heard[key].append, 10)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.shutdown()

    def wait(self, done, seconds=ANSWER, what='that'):
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f'{what} did not come within {seconds} s'
            self.executor.spin_once(timeout_sec=0.05)

    def wait_until_active(self, process):
        """Wait until the node and this camera have found one another.

        That this side knows the node is not enough: what a best-effort camera says before the
        node knows it, too, is lost, and on a busy machine that takes Fast DDS seconds.
        """

        def ready():
            assert process.process.poll() is None, process.said()
            return (
                self.commands.get_subscription_count()
                and self.images.get_subscription_count()
                and self._known_as_camera()
            )

        self.heard['diagnostics'].clear()
        self.wait(ready, START, 'an active node')

    def _known_as_camera(self):
        """Return whether the node's diagnostics count this publisher of images."""
        own = f'{self.name}: input {self.images.topic_name}'
        told = [
            {value.key: value.value for value in status.values}
            for array in self.heard['diagnostics']
            for status in array.status
            if status.name == own
        ]
        return any(int(values['publishers']) for values in told)

    def show(self, image, settle=True):
        """Publish an image (or what is given) and leave DDS a moment to bring it."""
        self.images.publish(image)
        if settle:
            self.settle()

    def settle(self, seconds=0.2):
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > until)

    def ask(self, *texts):
        """Send commands, return the messages on ~/segmentation that answer them, as they came."""
        from std_msgs.msg import String

        answers = self.heard['segmentation']
        answers.clear()
        for text in texts:
            self.commands.publish(String(data=text))
        self.wait(lambda: len(answers) >= len(texts), what=f'the answer to {texts}')
        return list(answers)

    def call(self, kind, name, **fields):
        """Call a service of the node.

        Fast DDS may answer before it has found the new client's ear, and drops the answer
        (ros2/rmw_fastrtps#842); so what may be asked twice is asked again.
        """
        client = self.node.create_client(kind, f'{self.name}/{name}')
        assert client.wait_for_service(START), name
        self.settle()
        until = time.monotonic() + START
        futures = []

        def answered():
            return any(future.done() for future in futures)

        while not answered():
            assert time.monotonic() < until, f'{name} did not answer within {START} s'
            futures.append(client.call_async(kind.Request(**fields)))
            pause = time.monotonic() + (START if name == 'change_state' else ANSWER / 4)
            self.wait(lambda: answered() or time.monotonic() > pause, 2 * START)  # noqa: B023
        self.node.destroy_client(client)
        return next(future.result() for future in futures if future.done())

    def set(self, **values):
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        messages = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        return self.call(SetParameters, 'set_parameters', parameters=messages).results

    def state(self):
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, 'get_state').current_state.label

    def change(self, label):
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        return self.call(ChangeState, 'change_state', transition=Transition(label=label)).success


def image(pixels, encoding='rgb8', stamp=(7, 5), frame='camera_optical', padding=0, big=False):
    """A sensor_msgs/Image with padded rows in either byte order."""
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
