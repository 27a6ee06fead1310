# SPDX-License-Identifier: Apache-2.0
"""Ask the real node commands over DDS while a bag is played to it, with drops and delays.

Nothing waits for the model: while it answers, the bag plays on, and an answer is about the frame
that was the newest when its command came. A command that becomes due while another one is being
answered is asked late, or skipped if it is due again by then, as on a robot.

Threads: `BagPlayer` has its own; the caller's thread does all else and spins the client.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from tqdm import tqdm

from lisa_ros.errors import ErrorHandler, raise_error
from lisa_ros.evaluation.bag import report_not_asked
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.live import LiveAnswer, LiveRun
from lisa_ros.messages.bag import image_times
from lisa_ros.messages.segmentation import result_from_message
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.ros.bag_player import BagPlayer, node_inputs
from lisa_ros.ros.initialization import initialize
from lisa_ros.ros.node_process import (
    NodeClient,
    isolate_ros_graph,
    managed_process,
    node_command,
    write_parameters,
)

_LOAD_TIMEOUT, _ANSWER_TIMEOUT = 3600.0, 600.0  # weights may be downloaded; a CPU is slow [s]
_DIALOGUE_TURNS = 16  # that the node keeps if commands have dialogues


@dataclass(frozen=True)
class Playback:
    """How a bag is played."""

    topics: Mapping[str, str]  # image, depth and camera_info to the bag's topics
    every: int = 10  # commands without a time run on every n-th frame
    rate: float = 1.0  # playback speed, 1.0 is real time
    laps: int = 1  # how often the bag is played; stamps jump back in between
    sim_time: bool = False  # the node uses bag time (/clock) instead of the machine's


def run_live(
    bag: Path,
    commands: Sequence[Command],
    playback: Playback,
    settings: Mapping[str, Any],
    log: Path,
    on_error: ErrorHandler = raise_error,
) -> LiveRun:
    """Play a bag to the node and ask the commands when they are due.

    Args:
        bag: rosbag2; its messages are played byte by byte, so ROS 1 does not work.
        commands: what to ask.
        playback: how to play the bag.
        settings: parameters of the node that differ from its defaults.
        log: file for the node's output; its parameters go to a .yaml file of the same name.
        on_error: called for each part of the bag and each image that cannot be read, and for
            commands that are due after its end; if it returns, the run goes on without.

    Raises:
        DataError: the bag cannot be played, a command is due after its end, or the node ended or
            did not answer; the message has the end of its log.
    """
    images = image_times(bag, playback.topics['image'], on_error)
    by_index = {image.index: image.seconds for image in images.values()}
    frame_times = [by_index.get(index) for index in range(max(by_index, default=-1) + 1)]
    due_commands = schedule(commands, frame_times, playback.every, on_error)
    has_dialogues = any(command.dialogue for command in commands)
    with _running_node(playback, settings, has_dialogues, log) as client:
        diagnostics: dict[str, str] = {}
        client.node.create_subscription(
            DiagnosticArray,
            '/diagnostics',
            lambda message: diagnostics.update(_diagnostic_values(message)),
            10,
        )
        client.wait_for_node()
        player = BagPlayer(
            client.node,
            bag,
            playback.rate,
            loop=playback.laps > 1,
            topics=playback.topics.values(),
            clock=playback.sim_time,
            on_error=on_error,
        )
        times = {stamp: image.seconds for stamp, image in images.items()}
        driver = LiveDriver(client, player, times, has_dialogues)
        try:
            player.start()
            for lap in range(playback.laps):
                driver.run_lap(due_commands, lap)
        finally:
            player.stop()
        _spin(client, 1.5)  # diagnostics are published every second
    received, peak_memory, model_peak_memory = (
        float(diagnostics.get(name, 0))
        for name in ('images', 'peak memory [MiB]', 'model process peak memory [MiB]')
    )
    played = player.sent[playback.topics['image']]
    return LiveRun(
        driver.answers,
        played,
        int(received),
        driver.skipped,
        peak_memory,
        model_peak_memory or None,
    )


@contextlib.contextmanager
def _running_node(
    playback: Playback, settings: Mapping[str, Any], has_dialogues: bool, log: Path
) -> Iterator[NodeClient]:
    """Start the node, and give a client of it; both end with the context."""
    topics, transports = node_inputs(playback.topics)
    parameters = {
        **settings,
        **transports,
        'autostart': True,
        'use_sim_time': playback.sim_time,
        'max_image_age': 0.0,  # a frame is shown for as long as its query takes
        'worker_standby': False,
        'dialogue_turns': _DIALOGUE_TURNS if has_dialogues else 0,
    }
    parameter_file = write_parameters(log.with_suffix('.yaml'), parameters)
    isolate_ros_graph()
    with managed_process(node_command(topics, parameter_file), log) as process:
        initialize(['lisa-ros'])
        try:
            yield NodeClient(process, log, _LOAD_TIMEOUT, _ANSWER_TIMEOUT)
        finally:
            rclpy.try_shutdown()


@dataclass(frozen=True)
class DueCommand:
    """A command at one of its times."""

    time: float  # [s from the bag's start]
    repetition: int  # of this command, from 0
    command: Command


def schedule(
    commands: Sequence[Command],
    times: Sequence[float | None],
    every: int,
    on_error: ErrorHandler = raise_error,
) -> list[DueCommand]:
    """Return when each command is due, in that order.

    Args:
        commands: each with a time, a frame, or neither.
        times: of the frames [s from the bag's start]; None: the frame cannot be read.
        every: commands without a time run on every n-th frame.
        on_error: called if commands are due after the last frame; if it returns, they are left
            out.

    Raises:
        DataError: a command is due after the last frame, and `on_error` raised it.
    """
    due: list[DueCommand] = []
    known_times = [t for t in times if t is not None]
    not_asked = []
    for command in commands:
        if command.frame is not None:
            own_times = times[command.frame : command.frame + 1]
        elif command.at is not None:
            own_times = [t for t in known_times if t - known_times[0] >= command.at][:1]
        else:
            own_times = times[::every]
        own_times = [t for t in own_times if t is not None]
        if not own_times:
            not_asked.append(command)
        due += [DueCommand(t, repetition, command) for repetition, t in enumerate(own_times)]
    end = f'the bag ends after {len(times)} frames'
    report_not_asked(not_asked, every, len(times), end, on_error)
    return sorted(due, key=lambda entry: (entry.time, entry.command.number))


class LiveDriver:
    """Asks the due commands, one after another, while a bag is played. One thread."""

    def __init__(
        self,
        client: NodeClient,
        player: BagPlayer,
        times: Mapping[int, float],
        has_dialogues: bool = False,
    ):
        """Ask nothing yet.

        Args:
            client: of the node.
            player: of the bag.
            times: of the frames [s from the bag's start], by stamp [ns].
            has_dialogues: the node keeps earlier turns, and must forget them between dialogues.
        """
        self._client, self._player, self._times = client, player, times
        self._has_dialogues = has_dialogues
        self._dialogue: tuple[int, int, str] | None = None  # lap, repetition, name
        self.answers: list[LiveAnswer] = []
        self.skipped = 0  # commands that were due again before they could be asked

    def run_lap(self, due: Sequence[DueCommand], lap: int) -> None:
        """Ask all that is due in one lap of the bag; return at its end."""
        for index, entry in enumerate(tqdm(due, desc=f'lap {lap + 1}', unit='command')):
            next_time = next(
                (other.time for other in due[index + 1 :] if other.command is entry.command),
                math.inf,
            )
            self._spin_until(entry.time, lap)
            if next_time <= self._bag_time(lap) and next_time < math.inf:
                self.skipped += 1
                continue
            self._ask(entry, lap)
        self._spin_until(math.inf, lap)

    def _ask(self, due: DueCommand, lap: int) -> None:
        command = due.command
        dialogue = None if command.dialogue is None else (lap, due.repetition, command.dialogue)
        if self._has_dialogues and (dialogue is None or dialogue != self._dialogue):
            self._client.reset_dialogue()
        self._dialogue = dialogue
        message, latency = self._client.ask(command.text)
        now = self._bag_time(lap)
        captured = self._times.get(stamp_ns(message.header), math.nan)
        age = now - captured if captured <= now < math.inf else math.nan
        self.answers.append(live_answer(command.number, message, latency, lap, age))

    def _bag_time(self, lap: int) -> float:
        """Return the time within a lap [s from the bag's start], infinity after the lap."""
        current, elapsed = self._player.position
        return elapsed if current == lap else math.inf

    def _spin_until(self, bag_time: float, lap: int) -> None:
        """Spin until a time of a lap, or its end."""
        while self._bag_time(lap) < bag_time and not self._player.is_finished:
            _spin(self._client, 0.0)


def live_answer(
    command: int, message: Any, latency: float, lap: int = 0, age: float = math.nan
) -> LiveAnswer:
    """Return a lisa_ros/msg/Segmentation as the answer to a command.

    Args:
        command: its number.
        message: the node's answer.
        latency: from the command to the answer [s].
        lap: of the bag.
        age: of the frame when the answer came [s of bag time]; NaN: unknown.
    """
    centroids = [instance.centroid for instance in message.instances]
    return LiveAnswer(
        command,
        stamp_ns(message.header),
        result_from_message(message),
        latency,
        lap,
        age,
        tuple((p.x, p.y, p.z) for p in centroids if math.isfinite(p.z)),
    )


def _spin(client: NodeClient, seconds: float) -> None:
    """Spin for some time, at least once."""
    deadline = time.monotonic() + seconds
    client.spin_once(0.005)
    while time.monotonic() < deadline:
        client.spin_once(0.02)


def _diagnostic_values(message: DiagnosticArray) -> dict[str, str]:
    """Return all keys and values of the node's diagnostics."""
    return {pair.key: pair.value for status in message.status for pair in status.values}
