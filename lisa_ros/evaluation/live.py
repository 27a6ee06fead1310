# SPDX-License-Identifier: Apache-2.0
"""Judge the answers that a node gave while a bag was played; `ros.live_evaluation` plays it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import ErrorHandler, raise_error
from lisa_ros.evaluation.cases import Case, case_from_result
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.evaluation.metrics import percentiles
from lisa_ros.evaluation.resources import MODEL_PEAK_MEMORY, NODE_PEAK_MEMORY
from lisa_ros.messages.bag import read_images
from lisa_ros.results import Segmentation


@dataclass(frozen=True)
class LiveAnswer:
    """The answer of a node to one command."""

    command: int  # its number
    stamp: int  # of the frame that the answer is about [ns]; 0: of none
    result: Segmentation
    latency: float  # from the command to its answer [s]
    lap: int = 0  # of the bag
    age: float = float('nan')  # of the frame when the answer came [s of bag time]; NaN: unknown
    # centroids of the located masks in the camera's optical frame [m]
    positions: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class LiveRun:
    """All answers of a run, in the order of the commands, and what the node experienced."""

    answers: list[LiveAnswer]
    frames_played: int
    frames_received: int  # by the node
    skipped: int  # commands that were due again before they could be asked
    peak_memory: float  # of the node [MiB]
    model_peak_memory: float | None = None  # of the model's own process [MiB]; None: it has none

    def conditions(self) -> dict[str, object]:
        """Return what the node experienced, for the report."""
        latencies, model_peak = [answer.latency for answer in self.answers], self.model_peak_memory
        ages = [answer.age for answer in self.answers if not math.isnan(answer.age)]
        return {
            'frames played': self.frames_played,
            'frames that the node received': self.frames_received,
            'commands': len(self.answers),
            'skipped, because they were due again': self.skipped,
            'from command to answer [s]': percentiles(latencies) or {},
            'age of the frame at the answer [s of bag time]': percentiles(ages) or {},
            NODE_PEAK_MEMORY: self.peak_memory,
            **({MODEL_PEAK_MEMORY: model_peak} if model_peak else {}),
        }


def evaluate_live_answers(
    answers: Sequence[LiveAnswer],
    bag: Path,
    commands: Sequence[Command],
    judge: FrameJudge,
    *,
    topic: str,
    on_error: ErrorHandler = raise_error,
) -> Iterator[Case]:
    """Yield a case for each answer of a node, in the order of the frames.

    A second answer to one command about one frame (the bag was played in a loop) gets a name of
    its own. Answers about no frame of the bag, such as failures, have no ground truth.

    Args:
        answers: what the node said.
        bag: the bag that was played.
        commands: that the answers are to.
        judge: compares the answers with the ground truth and writes them.
        topic: image topic.
        on_error: called for each part of the bag and each image that cannot be read.

    Raises:
        DataError: the bag or the ground truth cannot be read, and `on_error` raised it.
    """
    by_stamp: dict[int, list[LiveAnswer]] = {}
    for answer in answers:
        by_stamp.setdefault(answer.stamp, []).append(answer)
    counts: Counter[tuple[int, int]] = Counter()
    for frame in read_images(bag, topic, on_error=on_error):
        for answer in by_stamp.pop(frame.stamp, ()):
            command = commands[answer.command]
            earlier = counts[frame.stamp, command.number]
            counts[frame.stamp, command.number] += 1
            number = f'{command.number}.{earlier + 1}' if earlier else command.number
            yield judge.judge(frame, command, answer.result, number)
    unmatched = [answer for answers in by_stamp.values() for answer in answers]
    for index, answer in enumerate(unmatched):
        command = commands[answer.command]
        yield case_without_frame(answer, command, f'{command.number}.{index}')


def case_without_frame(answer: LiveAnswer, command: Command, number: int | str = 0) -> Case:
    """Return the case of an answer about no frame of the bag: it has no ground truth.

    Args:
        answer: of the node.
        command: that it answers.
        number: of the case among these.
    """
    return case_from_result(
        answer.result,
        None,
        group='no frame',
        number=number,
        category=command.category,
        expression=command.text,
    )
