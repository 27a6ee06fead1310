# SPDX-License-Identifier: Apache-2.0
"""Commands about a bag, answered live: its clock, the real node over DDS, drops and delays.

Nothing waits for the model: while it thinks the bag plays on, and an answer is about the frame
that was the newest when its command came. A command whose time has come while another is still
being answered is asked late, or not at all once the same one is due again, as with a robot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.messages.bag import image_times
from lisa_ros.messages.segmentation import result_from_message
from lisa_ros.results import Segmentation
from lisa_ros.ros.bag_player import BagPlayer
from lisa_ros.ros.message_types import stamp_ns
from lisa_ros.ros.node_process import NodeClient, isolate_ros_graph, managed_process, node_command


class Command(Protocol):
    """What is asked, as `evaluation.commands` reads it."""

    number: int
    text: str
    at: float | None  # [s] from the first frame
    frame: int | None
    dialogue: str | None


@dataclass(frozen=True)
class Answered:
    """A command with what the node said."""

    command: int  # its number
    lap: int  # of the bag, from 0
    stamp: int  # of the frame that it is about [ns], 0 of none
    result: Segmentation
    latency: float  # from the command to its answer [s]
    age: float  # of the frame when the answer came [s of the bag's time], nan where unknown


@dataclass(frozen=True)
class LiveRun:
    """All answers, in the order asked, and what the node met."""

    answers: list[Answered]
    frames_played: int
    frames_heard: int  # by the node
    not_asked: int  # commands that were due again before they could be asked
    peak_memory: float  # of the node [MiB]


def live(
    bag: Path,
    commands: Sequence[Command],
    topics: dict[str, str],
    settings: dict[str, Any],
    log: Path,
    *,
    every: int = 10,
    rate: float = 1.0,
    laps: int = 1,
    sim_time: bool = False,
) -> LiveRun:
    """Play a bag into the node and ask it the commands when they are due.

    Args:
        bag: rosbag2; its messages are played byte by byte, so not one of ROS 1.
        commands: those without a time are asked about every `every`-th frame, as offline.
        topics: our names (image, depth, camera_info) to the bag's.
        settings: parameters of the node that are not to have their defaults.
        log: a file for what the node says; its parameters go beside it.
        every: frames between two times that a command without one is asked.
        rate: of the replay, times real time.
        laps: how often the bag is played; stamps jump back in between.
        sim_time: the node runs on the bag's own time (/clock), not on the machine's.

    Raises:
        DataError: the bag cannot be played; a command is for a time after its end; or the node
            ended, or did not answer, with its last words.
    """
    times = image_times(bag, topics['image'])  # stamp [ns] -> bag's time [s from its start]
    due = schedule(commands, list(times.values()), every)
    compressed = topics['image'].endswith('/compressed')
    given = {**settings, 'autostart': True, 'use_sim_time': sim_time}
    given['image_transport'] = 'compressed' if compressed else 'raw'
    remembers = any(command.dialogue for command in commands)
    given['dialogue_turns'] = 16 if remembers else 0
    parameters = log.with_suffix('.yaml')
    parameters.write_text(yaml.safe_dump({'/**': {'ros__parameters': given}}))
    names = {**topics, 'image': topics['image'].removesuffix('/compressed')}
    isolate_ros_graph()
    with managed_process(node_command(names, parameters), log) as process:
        rclpy.init(args=[])
        try:
            asker = NodeClient(process, log, load=_LOAD, answer=_ANSWER)
            told: dict[str, str] = {}
            asker.node.create_subscription(
                DiagnosticArray, '/diagnostics', lambda message: told.update(_values(message)), 10
            )
            asker.wait_for_node()
            replay = BagPlayer(
                asker.node, bag, rate, loop=laps > 1, topics=topics.values(), clock=sim_time
            )
            talk = LiveDriver(asker, replay, times, remembers)
            try:
                replay.start()
                for lap in range(laps):
                    talk.lap(due, lap)
            finally:
                replay.stop()
            _listen(asker, 1.5)  # diagnostics come every second
        finally:
            rclpy.try_shutdown()
    heard, memory = (float(told.get(name, 0)) for name in ('images', 'peak memory [MiB]'))
    played = replay.sent[topics['image']]
    return LiveRun(talk.answers, played, int(heard), talk.not_asked, memory)


_LOAD, _ANSWER = 3600.0, 600.0  # longest waits: weights may be fetched, a CPU is slow [s]


def schedule(
    commands: Sequence[Command], times: Sequence[float], every: int
) -> list[tuple[float, int, Command]]:
    """Return when each command is due [s from the bag's start], and for which time, in that order.

    Args:
        commands: with a time, a frame, or neither.
        times: of the frames [s from the bag's start].
        every: frames between two times that a command without a time is due.

    Raises:
        DataError: one is for after the last frame.
    """
    due: list[tuple[float, int, Command]] = []
    late = []
    for command in commands:
        if command.frame is not None:
            whens = times[command.frame : command.frame + 1]
        elif command.at is not None:
            whens = [t for t in times if t - times[0] >= command.at][:1]
        else:
            whens = times[::every]
        late += [] if whens else [str(command.number + 1)]
        due += [(when, turn, command) for turn, when in enumerate(whens)]
    if late:
        raise DataError(
            f'the bag ends after {len(times)} frames, before commands {", ".join(late)} are due'
        )
    return sorted(due, key=lambda one: (one[0], one[2].number))


class LiveDriver:
    """Asks what is due, one after another, while a bag plays."""

    def __init__(
        self,
        asker: NodeClient,
        replay: BagPlayer,
        times: dict[int, float],
        remembers: bool = False,
    ):
        self._asker, self._replay, self._times = asker, replay, times
        self._remembers = remembers  # whether the node keeps the turns before a command
        self._dialogue: tuple[int, int, str] | None = None  # lap, for which time, name
        self.answers: list[Answered] = []
        self.not_asked = 0

    def lap(self, due: Sequence[tuple[float, int, Command]], lap: int) -> None:
        """Ask all that is due in one lap of the bag."""
        bar = tqdm(due, desc=f'lap {lap + 1}', unit='command')
        for number, (when, turn, command) in enumerate(bar):
            again = next((t for t, _, other in due[number + 1 :] if other is command), math.inf)
            self._until(when, lap)
            if again <= self._now(lap) and again < math.inf:
                self.not_asked += 1
                continue
            self._ask(command, lap, turn)
        self._until(math.inf, lap)

    def _ask(self, command: Command, lap: int, turn: int) -> None:
        dialogue = None if command.dialogue is None else (lap, turn, command.dialogue)
        if self._remembers and (dialogue is None or dialogue != self._dialogue):
            self._asker.forget()
        self._dialogue = dialogue
        message, latency = self._asker.ask(command.text)
        stamp = stamp_ns(message.header)
        taken = self._times.get(stamp, math.nan)
        now = self._now(lap)
        age = now - taken if taken <= now < math.inf else math.nan
        result = result_from_message(message)
        self.answers.append(Answered(command.number, lap, stamp, result, latency, age))

    def _now(self, lap: int) -> float:
        """Return how far into a lap it is [s of the bag's time], infinity after it."""
        laps, since = self._replay.position
        return since if laps == lap else math.inf

    def _until(self, when: float, lap: int) -> None:
        """Spin until a time of a lap, or its end."""
        while self._now(lap) < when and not self._replay.over:
            _listen(self._asker, 0.0)


def _listen(asker: NodeClient, seconds: float) -> None:
    """Take what comes for a while."""
    until = time.monotonic() + seconds
    rclpy.spin_once(asker.node, timeout_sec=0.005)
    while time.monotonic() < until:
        rclpy.spin_once(asker.node, timeout_sec=0.02)


def _values(message: DiagnosticArray) -> dict[str, str]:
    """Return all that the node's diagnostics tell."""
    return {pair.key: pair.value for status in message.status for pair in status.values}
