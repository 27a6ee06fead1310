# SPDX-License-Identifier: Apache-2.0
"""Our node as a process of its own, in a graph of its own, and somebody who asks it.

The demo and the live evaluation both do. Nothing but the node itself is imported by it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lisa_ros.errors import DataError
from lisa_ros.ros import fastdds


def isolate_ros_graph() -> None:
    """Leave all other nodes of this machine and its network alone, from now on; before `init`."""
    fastdds.configure_shared_memory()
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


def node_command(topics: dict[str, str], parameters: Path) -> list[str]:
    """Return the command line that starts the installed node with the bag's topics.

    Args:
        topics: our names (image, depth, camera_info) to the bag's.
        parameters: a YAML file of ROS parameters.

    Raises:
        DataError: the package is not installed.
    """
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        executable = Path(get_package_prefix('lisa_ros'), 'lib', 'lisa_ros', 'lisa_node')
    except PackageNotFoundError:
        executable = Path('lib/lisa_ros/lisa_node')
    if not executable.exists():
        raise DataError(
            'lisa_node is not installed: run `make setup`, or colcon build and source '
            'install/setup.bash'
        )
    renamed = [f'{name}:={topic}' for name, topic in topics.items()]
    if shutil.which('ros2') and importlib.util.find_spec('launch_ros'):
        launch = ['ros2', 'launch', 'lisa_ros', 'lisa.launch.py']
        return [*launch, f'params_file:={parameters.resolve()}', *renamed]
    remaps = [part for rename in renamed for part in ('-r', rename)]
    return [str(executable), '--ros-args', *remaps, '--params-file', str(parameters)]


@contextlib.contextmanager
def managed_process(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a process with its output in a file; at the end it and its children are gone."""
    with (
        log.open('w', encoding='utf-8') as output,
        subprocess.Popen(  # noqa: S603  # our own node, no shell
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            for number, patience in (
                (signal.SIGINT, 10),
                (signal.SIGTERM, 5),
                (signal.SIGKILL, 5),
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
                    break


class NodeClient:
    """Sends commands to the node and waits for their answers."""

    def __init__(
        self,
        process: subprocess.Popen,
        log: Path,
        load: float = 180.0,
        answer: float = 60.0,
    ) -> None:
        """Join the graph; rclpy is initialised.

        Args:
            process: the node's.
            log: what it says.
            load: longest wait until it is ready [s].
            answer: longest wait for an answer [s].
        """
        from rclpy.node import Node
        from std_msgs.msg import String
        from std_srvs.srv import Trigger

        from lisa_ros.msg import Segmentation

        self._process, self._log = process, log
        self._load, self._answer = load, answer
        self.node = Node('lisa_asker')
        self._say, self._string = self.node.create_publisher(String, '/lisa/command', 10), String
        self._trigger = Trigger
        self._answers: list[Segmentation] = []
        self.node.create_subscription(Segmentation, '/lisa/segmentation', self._answers.append, 10)

    def wait_for_node(self) -> None:
        """Wait until the node hears commands, which is when its model is loaded."""
        self.wait(lambda: self._say.get_subscription_count() > 0, self._load, 'get ready')
        self.wait(
            lambda: self.node.count_publishers('/lisa/segmentation') > 0, self._load, 'get ready'
        )

    def ask(self, text: str) -> tuple[Any, float]:
        """Return the Segmentation message that answers the command, and the seconds it took."""
        self._answers.clear()
        began = time.monotonic()
        self._say.publish(self._string(data=text))
        self.wait(
            lambda: any(answer.query == text for answer in self._answers),
            self._answer,
            f'answer {text!r}',
        )
        answer = next(answer for answer in self._answers if answer.query == text)
        return answer, time.monotonic() - began

    def forget(self) -> None:
        """Let the node forget the turns so far."""
        client = self.node.create_client(self._trigger, '/lisa/reset_dialogue')
        done: list[Any] = []

        def asked() -> bool:
            # Fast DDS may drop the first answer to a new client (ros2/rmw_fastrtps#842)
            if client.service_is_ready() and (not done or time.monotonic() - done[-1][0] > 1):
                done.append((time.monotonic(), client.call_async(self._trigger.Request())))
            return any(future.done() for _, future in done)

        self.wait(asked, self._answer, 'reset the dialogue')
        self.node.destroy_client(client)

    def wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        """Spin until something is done.

        Raises:
            DataError: it is not done in time [s], or the node has ended; with its last words.
        """
        import rclpy

        until = time.monotonic() + timeout
        while not done():
            rclpy.spin_once(self.node, timeout_sec=0.02)
            if self._process.poll() is not None:
                raise DataError(f'the node ended with {self._process.returncode}: {self._tail()}')
            if time.monotonic() > until:
                raise DataError(f'the node did not {what} within {timeout:g} s: {self._tail()}')

    def _tail(self) -> str:
        lines = self._log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join([f'its last words, from {self._log}:', *lines[-12:]])
