# SPDX-License-Identifier: Apache-2.0
"""Flood a node with hostile messages and requests: it must end as it began.

    python benchmarks/flood.py                      # 1000 messages, half a minute
    python benchmarks/flood.py --messages 100000    # the long run

Images, depth images, camera infos, commands, goals, requests for parameters and transitions, and
deactivations and reloads on the way, over DDS to a lisa_node in a process of its own; what is
wrong with them is in hostile_messages.py. Writes OUT/flood.json, OUT/flood.png and the node's log.
Exit status 1 if a limit does not hold:

- a command about a fixed image has the same answer as before, to the bit;
- the node and its model process have no more threads and open files than after the warm-up, the
  first fifth of the messages;
- their memory at rest, after each fifth of the messages, is at most 3 % above its level after the
  warm-up (not judged below 30000 messages);
- the log has at most 2 MB and no traceback;
- each command has one answer, each accepted goal one result, each request one response.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import endurance_report as report
import hostile_messages as hostile
import node_processes as processes  # makes lisa_ros importable
import rclpy
import rgbd_camera
from lisa_ros.action import Segment
from lisa_ros.msg import Segmentation
from node_peer import NODE, NodePeer
from node_processes import Sample, sample
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.action import ActionClient
from std_srvs.srv import Trigger
from tqdm import tqdm

from lisa_ros.ros.qos import ACTION_SERVICE_QOS

MEMORY_GROWTH, LOG_SIZE = 0.03, 2.0  # largest allowed: share, [MB]
STAGES = 5  # after each one the node rests and is measured; the first one is the warm-up
REST = 12.0  # the node returns free memory to the system each 10 s [s]
JUDGED_MESSAGES = 30_000  # with fewer, buffers still fill in the warm-up: memory is not judged
SAMPLES = 100  # of memory
KINDS = {  # how often each kind is sent
    'image': 24, 'depth': 12, 'camera_info': 10, 'command': 18, 'control': 4, 'goal': 10,
    'parameters': 14, 'lifecycle': 6, 'trigger': 2,
}  # fmt: skip
CYCLE = 10_000  # messages between two deactivations; every third one loads the model again, too
# Outstanding at a time: rclpy's own services keep 10 requests, a client 10 responses.
_MAX_REQUESTS, _MAX_COMMANDS, _MAX_GOALS = 8, 500, 48
_SERIAL = re.compile(r'[cg]\d{7}')
_IGNORED = ('header', 'timings', 'age')  # fields of an answer that differ each time


def bits(message: Any) -> Any:
    """Return the content of a message as nested tuples that are equal if all bits are."""
    if hasattr(message, 'get_fields_and_field_types'):
        names = [name for name in message.get_fields_and_field_types() if name not in _IGNORED]
        return tuple((name, bits(getattr(message, name))) for name in names)
    if isinstance(message, float):
        return message.hex()
    if isinstance(message, list | tuple):
        return tuple(map(bits, message))
    return bytes(message) if hasattr(message, 'tobytes') else message


@dataclass(eq=False)
class Goal:
    """A goal that was sent."""

    is_continuous: bool
    handle: Any = None  # the client's, once the goal was accepted
    results: int = 0


@dataclass
class Tally:
    """What was sent, and what came back."""

    sent: collections.Counter = field(default_factory=collections.Counter)  # by kind
    statuses: collections.Counter = field(default_factory=collections.Counter)  # of answers
    answers: dict[str, int] = field(default_factory=dict)  # to each command, by its serial
    commands: set[str] = field(default_factory=set)  # without an answer so far
    goals: set[Goal] = field(default_factory=set)  # without a result or a rejection so far
    requests: set[Any] = field(default_factory=set)  # futures without a response so far
    accepted: int = 0
    rejected: int = 0
    extra_results: int = 0  # beyond the first one of a goal

    def on_answer(self, message: Segmentation) -> None:
        """Count an answer to a command."""
        serial = _SERIAL.match(message.query)
        if serial and serial[0] in self.answers:
            self.answers[serial[0]] += 1
            self.commands.discard(serial[0])
            self.statuses[int(message.status)] += 1

    @property
    def is_settled(self) -> bool:
        """Whether nothing is open."""
        return not (self.commands or self.goals or self.requests)


class Flood:
    """Sends hostile messages to the node and counts what comes back."""

    def __init__(self, peer: NodePeer, tally: Tally, seed: int):
        """Prepare a flood; the node must be active."""
        self._peer, self.tally, self._rng = peer, tally, random.Random(seed)
        self._client = ActionClient(
            peer.node,
            Segment,
            f'{NODE}/segment',
            goal_service_qos_profile=ACTION_SERVICE_QOS,
            result_service_qos_profile=ACTION_SERVICE_QOS,
            cancel_service_qos_profile=ACTION_SERVICE_QOS,
        )
        peer.wait(lambda: self._client.wait_for_server(0), 20, 'the action')
        self._frame = (
            rgbd_camera.image_message(rgbd_camera.test_image(320, 240), 'rgb8'),
            rgbd_camera.image_message(rgbd_camera.table_depth(320, 240), '16UC1'),
            rgbd_camera.camera_info(320, 240),
        )
        self._parameters = self._read_parameters()

    # ---- sending

    def send(self, kinds: dict[str, int] = KINDS) -> None:
        """Send one hostile message of a random kind, and take what has come back."""
        kind = self._rng.choices(tuple(kinds), tuple(kinds.values()))[0]
        self.tally.sent[kind] += 1
        getattr(self, f'_send_{kind}')()
        if self._rng.random() < 0.1:  # else there is often no image to answer about
            self._peer.publish_frame(*self._frame)
        self._throttle()

    def _send_image(self) -> None:
        self._peer.images.publish(hostile.image(self._rng))

    def _send_depth(self) -> None:
        self._peer.depths.publish(hostile.image(self._rng))

    def _send_camera_info(self) -> None:
        self._peer.infos.publish(hostile.camera_info(self._rng))

    def _send_command(self) -> None:
        serial = f'c{len(self.tally.answers):07}'
        self.tally.answers[serial] = 0
        self.tally.commands.add(serial)
        self._peer.command(hostile.query(self._rng, serial))

    def _send_control(self) -> None:
        self._peer.command(hostile.control_command(self._rng))

    def _send_goal(self) -> None:
        message = hostile.goal(self._rng, f'g{self.tally.sent["goal"]:07}')
        goal = Goal(message.continuous)
        self.tally.goals.add(goal)
        sent = self._client.send_goal_async(message)
        sent.add_done_callback(lambda future: self._on_response(goal, future.result()))

    def _send_parameters(self) -> None:
        self._request(hostile.parameter_request(self._rng, tuple(self._parameters)))

    def _send_lifecycle(self) -> None:
        self._request(hostile.lifecycle_request(self._rng))

    def _send_trigger(self) -> None:
        self._request(hostile.trigger_request(self._rng))

    def _request(self, request: hostile.ServiceRequest) -> None:
        client = self._peer.client(request.service_type, request.name)
        future = client.call_async(request.request)
        self.tally.requests.add(future)
        future.add_done_callback(self.tally.requests.discard)

    def _on_response(self, goal: Goal, handle: Any) -> None:
        if not handle.accepted:
            self.tally.rejected += 1
            self.tally.goals.discard(goal)
            return
        self.tally.accepted += 1
        goal.handle = handle
        handle.get_result_async().add_done_callback(lambda _: self._on_result(goal))

    def _on_result(self, goal: Goal) -> None:
        goal.results += 1
        self.tally.extra_results += goal.results > 1
        self.tally.goals.discard(goal)

    def _throttle(self) -> None:
        """Take what has come back; wait while too much is open."""
        tally = self.tally
        if len(tally.goals) > _MAX_GOALS:
            self._cancel_continuous_goals()

        def has_room() -> bool:
            return (
                len(tally.requests) < _MAX_REQUESTS
                and len(tally.commands) < _MAX_COMMANDS
                and len(tally.goals) < 2 * _MAX_GOALS
            )

        self._peer.take()
        if not has_room():
            self._settle(has_room)

    def _cancel_continuous_goals(self) -> None:
        for goal in self.tally.goals:
            if goal.is_continuous and goal.handle is not None:
                goal.handle.cancel_goal_async()
                goal.is_continuous = False  # asked once

    # ---- rest

    def settle(self) -> bool:
        """Restore the parameters and wait until nothing is open; return whether that comes."""
        self.restore_parameters()
        is_settled = self._settle(lambda: self.tally.is_settled)
        self._peer.spin(0.5)  # answers that are one too many
        return is_settled

    def _settle(self, is_done: Any) -> bool:
        """Wait for a condition while good frames arrive; return whether it comes in time."""
        deadline = time.monotonic() + 60
        while not is_done():
            if time.monotonic() > deadline:
                return False
            self._cancel_continuous_goals()
            self._peer.publish_frame(*self._frame)
            self._peer.spin(0.1)
        return True

    def rest(self, seconds: float) -> None:
        """Settle, ask one question and leave the node alone for some seconds.

        The question is the one before the first message: it maps shared memory anew.
        """
        self.settle()
        self.probe()
        self._peer.spin(seconds)

    def reload(self, with_model: bool) -> None:
        """Deactivate and activate the node, if asked with its model, among hostile messages."""
        self.settle()
        self._change('deactivate')
        self._send_while_inactive()
        if with_model:
            self._change('cleanup')
            self._send_while_inactive()
            self._change('configure')
        self._change('activate')
        self._peer.wait_until_active()
        self._peer.publish_frame(*self._frame)

    def _send_while_inactive(self) -> None:
        for _ in range(20):
            self.send({'image': 2, 'goal': 3, 'parameters': 5})
        self.settle()

    def _change(self, label: str) -> None:
        """Request a transition that is possible.

        Raises:
            RuntimeError: it failed.
        """
        if not self._peer.change_state(label):
            raise RuntimeError(f'{label} failed: see the log of the node')

    def state(self) -> str:
        """Return the lifecycle state of the node."""
        return self._peer.state()

    # ---- the same answer

    def probe(self) -> Any:
        """Ask about a fixed image without earlier turns; return the bits of the answer.

        Raises:
            RuntimeError: the answer has no mask.
        """
        self._peer.call(Trigger, 'reset_dialogue')
        for _ in range(3):  # best effort: one of them arrives
            self._peer.publish_frame(*self._frame)
            self._peer.spin(0.1)
        answer = self._peer.ask(rgbd_camera.SPONGE)
        if answer.status != Segmentation.FOUND:
            raise RuntimeError(f'{answer.query!r} has no mask, status {answer.status}')
        return bits(answer)

    def _read_parameters(self) -> dict[str, Any]:
        names = self._peer.call(ListParameters, 'list_parameters').result.names
        values = self._peer.call(GetParameters, 'get_parameters', names=names).values
        return dict(zip(names, values, strict=True))

    def restore_parameters(self) -> None:
        """Set all parameters to what they were; those that may not change now are as they were."""
        parameters = [
            hostile.Parameter(name=name, value=value) for name, value in self._parameters.items()
        ]
        self._peer.call(SetParameters, 'set_parameters', parameters=parameters)


@dataclass(frozen=True)
class Samples:
    """What the node and its model process hold while the messages arrive, and at rest."""

    flooded: list[Sample]  # the first one before all messages
    resting: list[Sample]  # one after each stage

    def growth(self, process: str) -> float:
        """Return how much the memory at rest of "node" or "model" grows after the warm-up.

        The largest value counts, as a share of the first one.
        """
        level, *later = [getattr(item, process).memory for item in self.resting]
        return max(later) / level - 1

    def lost(self, process: str, attribute: str) -> int:
        """Return how many threads or handles there are at the end that the warm-up did not have.

        Libraries start some threads when a function is used for the first time.
        """
        warm_up = self.resting[0]
        before = [item for item in self.flooded if item.count <= warm_up.count] + [warm_up]
        most = max(getattr(getattr(item, process), attribute) for item in before)
        return getattr(getattr(self.resting[-1], process), attribute) - most


def run(flood: Flood, messages: int, node: int) -> Samples:
    """Send hostile messages in stages and measure the node, by its process id."""
    flooded, resting = [sample(0, node)], []
    every = max(1, messages // SAMPLES)
    cycle = min(CYCLE, messages // 3 + 1)
    with tqdm(total=messages, desc='flood', unit='message') as progress:
        for number in range(1, messages + 1):
            flood.send()
            progress.update()
            if number % cycle == cycle // 2:  # long before the rest after a stage
                flood.reload(with_model=number // cycle % 3 == 2)
            if number % every == 0:
                flooded.append(sample(number, node))
            if number % max(1, messages // STAGES) == 0:
                flood.rest(REST if messages >= JUDGED_MESSAGES else 0.5)
                resting.append(processes.resting_sample(number, node))
    return Samples(flooded, resting)


def limits(tally: Tally, samples: Samples, same: bool, log: str) -> list[report.Limit]:
    """Return the limits of a flood.

    Args:
        tally: what was sent and came back.
        samples: of the run.
        same: whether the answer is the one from before.
        log: of the node.
    """
    answers = [count for count in tally.answers.values() if count != 1]
    rows = [
        report.Limit('answers that differ from before', 1 - same, 0),
        report.Limit('commands without exactly one answer', len(answers), 0),
        report.Limit(
            'goals without exactly one result', len(tally.goals) + tally.extra_results, 0
        ),
        report.Limit('requests without a response', len(tally.requests), 0),
        report.Limit('log', len(log.encode()) / 1e6, LOG_SIZE, 'MB'),
        report.Limit('tracebacks in the log', log.count('Traceback (most'), 0),
    ]
    for process in ('node', 'model'):
        rows += [
            report.Limit(f'threads lost by the {process}', samples.lost(process, 'threads'), 0),
            report.Limit(f'handles lost by the {process}', samples.lost(process, 'handles'), 0),
            report.Limit(
                f'growth of the resting {process} after the warm-up',
                100 * samples.growth(process),
                100 * MEMORY_GROWTH,
                '%',
                samples.resting[-1].count >= JUDGED_MESSAGES,
            ),
        ]
    return rows


def plot(samples: Samples, path: Path, title: str) -> None:
    """Draw memory, threads and handles over the messages."""
    drawn, (memory, counts) = report.figure(2, title)
    messages = [item.count for item in samples.flooded]
    for process, colour in (('node', report.NODE_COLOUR), ('model', report.MODEL_COLOUR)):
        usages = [getattr(item, process) for item in samples.flooded]
        memory.plot(messages, [usage.memory for usage in usages], color=colour, lw=0.7)
        resting = [(item.count, getattr(item, process).memory) for item in samples.resting]
        memory.plot(*zip(*resting, strict=True), 'o-', color=colour, label=f'{process}, at rest')
        memory.axhline(resting[0][1] * (1 + MEMORY_GROWTH), color=colour, ls=':', lw=1)
        counts.plot(messages, [usage.threads for usage in usages], color=colour)
        counts.plot(messages, [usage.handles for usage in usages], color=colour, ls='--')
    memory.axvspan(0, samples.resting[0].count, color='0.92')
    memory.set(ylabel='memory [MiB]', ylim=(0, None))
    report.add_legend(memory, 'thin: during the flood, dotted: limit, grey: warm-up')
    counts.set(xlabel='hostile messages', ylabel='threads (-), files (--)', ylim=(0, None))
    report.save(drawn, path)


def main() -> int:
    """Flood, report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--messages', type=int, default=1000, help='(default: 1000)')
    parser.add_argument('--seed', type=int, default=0, help='of the messages (default: 0)')
    parser.add_argument(
        '--model',
        default='lisa-tabletop',
        help=f'or {processes.CENTRE} (default: lisa-tabletop)',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/endurance'), help='folder')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / 'flood_node.log'
    log.unlink(missing_ok=True)
    processes.Run()
    processes.join_graph()
    start, tally = time.monotonic(), Tally()
    peer = NodePeer(tally.on_answer)
    command = processes.node_command(options.out, options.model, {'cache_memory': 0})
    with processes.started(command, log) as process:
        peer.wait_until_active()
        flood = Flood(peer, tally, options.seed)
        before = flood.probe()
        samples = run(flood, options.messages, process.pid)
        after, state = flood.probe(), flood.state()
    peer.close()
    rclpy.shutdown()
    is_same = before == after and state == 'active'
    text = log.read_text(encoding='utf-8', errors='replace')
    result = report.Report(
        'flood',
        {name: str(value) for name, value in vars(options).items()},
        time.monotonic() - start,
        limits(tally, samples, is_same, text),
        {
            'sent': dict(tally.sent),
            'answers by status': {str(key): value for key, value in tally.statuses.items()},
            'goals accepted': tally.accepted,
            'goals rejected': tally.rejected,
            'state': state,
            'exit status': process.returncode,
            'samples': [dataclasses.asdict(item) for item in samples.flooded],
            'resting': [dataclasses.asdict(item) for item in samples.resting],
        },
    )
    plot(samples, options.out / 'flood.png', f'{options.messages} hostile messages')
    print(f'figures: {result.write(options.out)}')
    result.print_table()
    return int(not result.holds)


if __name__ == '__main__':
    raise SystemExit(main())
