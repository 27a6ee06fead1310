# SPDX-License-Identifier: Apache-2.0
"""Run the node as a child process in an isolated ROS graph, and ask it commands.

The demo and the live evaluation use it; the node itself does not. rclpy is imported when a client
is created.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lisa_ros.errors import DataError
from lisa_ros.health.node import FAILED_TRANSITION
from lisa_ros.ros import fastdds

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

_SIGNALS = ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5))  # and waits [s]
_LOG_TAIL = 12  # lines of the log in an error


def isolate_ros_graph() -> None:
    """Choose a ROS domain for this process and its children alone; call it before `rclpy.init`."""
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    fastdds.configure_shared_memory()


def write_parameters(path: Path, parameters: Mapping[str, Any]) -> Path:
    """Write ROS parameters, valid for every node, as a YAML file; return its path."""
    content = {'/**': {'ros__parameters': dict(parameters)}}
    path.write_text(yaml.safe_dump(content), encoding='utf-8')
    return path


def node_command(topics: Mapping[str, str], parameters: Path) -> list[str]:
    """Return the command line that starts the installed node.

    Args:
        topics: image, depth and camera_info to the topics of the bag.
        parameters: YAML file of ROS parameters.

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
    remappings = [f'{name}:={topic}' for name, topic in topics.items()]
    if shutil.which('ros2') and importlib.util.find_spec('launch_ros'):
        launch = ['ros2', 'launch', 'lisa_ros', 'lisa.launch.py']
        once = 'respawn:=false'  # a node that ends is an error of the run
        return [*launch, f'params_file:={parameters.resolve()}', once, *remappings]
    arguments = [part for remapping in remappings for part in ('-r', remapping)]
    return [str(executable), '--ros-args', *arguments, '--params-file', str(parameters)]


@contextlib.contextmanager
def managed_process(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a process with its output in a file; at the end stop it and its children."""
    with (
        log.open('w', encoding='utf-8') as output,
        subprocess.Popen(  # noqa: S603  # our own node, no shell
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            for number, timeout in _SIGNALS:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout)
                    break


class NodeClient:
    """Sends commands to the node by topic and waits for the answers.

    Threads: one thread calls all methods; each of them spins `node`.
    """

    def __init__(
        self,
        process: subprocess.Popen,
        log: Path,
        load_timeout: float = 180.0,
        answer_timeout: float = 60.0,
    ) -> None:
        """Join the ROS graph; rclpy must be initialized.

        Args:
            process: the node's.
            log: file with its output, for error messages.
            load_timeout: longest wait until the node is ready [s].
            answer_timeout: longest wait for an answer [s].
        """
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.node import Node
        from std_msgs.msg import String
        from std_srvs.srv import Trigger

        from lisa_ros.msg import Segmentation
        from lisa_ros.ros.executor import GuardedExecutor
        from lisa_ros.ros.service_guard import guard_services

        self._process, self._log = process, log
        self._load_timeout, self._answer_timeout = load_timeout, answer_timeout
        self.node = Node('lisa_asker')
        self._executor = GuardedExecutor(self.node.get_logger())
        guard_services(self.node, self._executor.errors)
        self._commands = self.node.create_publisher(String, '/lisa/command', 10)
        self._string, self._trigger = String, Trigger
        self._answers: list[Segmentation] = []
        self.node.create_subscription(Segmentation, '/lisa/segmentation', self._answers.append, 10)
        self._failure = ''  # the transition that failed, and why
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._note_failure, 10)

    def wait_for_node(self) -> None:
        """Wait until the node subscribes to commands, which it does once its model is loaded.

        Raises:
            DataError: it ended, cannot load its model, or is not ready in time.
        """

        def is_ready() -> bool:
            if self._failure:  # it waits for the next `configure`
                raise DataError(f'the node is not ready: {self._failure}')
            return (
                self._commands.get_subscription_count() > 0
                and self.node.count_publishers('/lisa/segmentation') > 0
            )

        self._wait(is_ready, self._load_timeout, 'get ready')

    def ask(self, text: str) -> tuple[Any, float]:
        """Send a command; return the Segmentation message that answers it, and the seconds.

        Raises:
            DataError: the node ended, or does not answer in time.
        """
        self._answers.clear()
        start = time.monotonic()
        self._commands.publish(self._string(data=text))
        self._wait(
            lambda: any(answer.query == text for answer in self._answers),
            self._answer_timeout,
            f'answer {text!r}',
        )
        answer = next(answer for answer in self._answers if answer.query == text)
        return answer, time.monotonic() - start

    def reset_dialogue(self) -> None:
        """Make the node forget all earlier turns.

        Raises:
            DataError: the node ended, or does not answer in time.
        """
        client = self.node.create_client(self._trigger, '/lisa/reset_dialogue')
        calls: list[tuple[float, Any]] = []  # time and future of each

        def is_answered() -> bool:
            # Fast DDS may drop the first answer to a new client (ros2/rmw_fastrtps#842)
            if client.service_is_ready() and (not calls or time.monotonic() - calls[-1][0] > 1):
                calls.append((time.monotonic(), client.call_async(self._trigger.Request())))
            return any(future.done() for _, future in calls)

        self._wait(is_answered, self._answer_timeout, 'reset the dialogue')
        self.node.destroy_client(client)

    def spin_once(self, timeout: float) -> None:
        """Run a callback of `node`, or wait [s] for one."""
        import rclpy

        rclpy.spin_once(self.node, executor=self._executor, timeout_sec=timeout)

    def _wait(self, is_done: Callable[[], bool], timeout: float, action: str) -> None:
        """Spin until a condition holds.

        Raises:
            DataError: it does not within `timeout` [s], or the node ended; with the end of its
                log.
        """
        deadline = time.monotonic() + timeout
        while not is_done():
            self.spin_once(0.02)
            if self._process.poll() is not None:
                raise DataError(
                    f'the node ended with {self._process.returncode}: {self._log_tail()}'
                )
            if time.monotonic() > deadline:
                raise DataError(
                    f'the node did not {action} within {timeout:g} s: {self._log_tail()}'
                )

    def _note_failure(self, diagnostics: DiagnosticArray) -> None:
        for status in diagnostics.status:
            if status.name == '/lisa: node':
                values = {value.key: value.value for value in status.values}
                self._failure = values.get(FAILED_TRANSITION, '')

    def _log_tail(self) -> str:
        lines = self._log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join([f'end of {self._log}:', *lines[-_LOG_TAIL:]])
