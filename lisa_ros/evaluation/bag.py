# SPDX-License-Identifier: Apache-2.0
"""Commands about a bag: answered offline, or live by a node and judged here.

Offline every command is held against its frame, as fast as it goes. Nothing depends on a clock:
the same bag, commands and model give the same answers, on a CPU to the last bit. Each frame starts
every dialogue anew. The next frames are decoded by a thread of their own meanwhile, and CLIP and
SAM may look at several at once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.evaluation.cases import Case, case_of, draw
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.ground_truth import GroundTruth
from lisa_ros.evaluation.result_bag import ResultBag
from lisa_ros.messages.bag import BagImage, prefetch, read_images
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Dialogue, Segmentation


def evaluate_offline(
    segmenter: Segmenter,
    bag: Path,
    commands: Sequence[Command],
    *,
    topic: str | None = None,
    truth: GroundTruth | None = None,
    every: int = 10,
    batch: int = 1,
    out: Path | None = None,
    results: ResultBag | None = None,
    progress: bool = True,
) -> Iterator[Case]:
    """Yield a case for each command and each frame that it is asked about, in the bag's order.

    Args:
        segmenter: the model.
        bag: as `bags.opened` takes it.
        commands: what is asked.
        topic: of pictures; by default the bag's only one.
        truth: what the frames show; None: nobody knows.
        every: commands without a time are asked about every so manieth frame.
        batch: frames that go through CLIP and SAM at once.
        out: a folder for overlays.
        results: a bag for the answers.
        progress: show a bar.

    Raises:
        DataError: the bag, its pictures or the truth are not what they should be; or a command is
            for a time after the last frame.
    """
    frames = prefetch(read_images(bag, topic))
    frames = tqdm(frames, desc=bag.name, unit='frame', disable=not progress)
    asked = _with_their_commands(frames, bag, commands, every)
    while some := list(itertools.islice(asked, batch)):
        if batch > 1:
            segmenter.encode_images([frame.pixels for frame, _ in some])
        for frame, due in some:
            yield from _asked(segmenter, frame, due, truth, out, results)


def _with_their_commands(
    frames: Iterable[BagImage], bag: Path, commands: Sequence[Command], every: int
) -> Iterator[tuple[BagImage, list[Command]]]:
    """Yield each frame that anything is asked about, with the commands that are due then."""
    waiting = {c.number for c in commands if c.at is not None or c.frame is not None}
    start, count, since = None, 0, 0.0
    for number, frame in enumerate(frames):
        start = frame.stamp if start is None else start
        count = number + 1
        since = (frame.stamp - start) / 1e9
        due = [
            command
            for command in commands
            if (command.number in waiting and _is_due(command, number, since))
            or (command.at is command.frame is None and number % every == 0)
        ]
        waiting -= {command.number for command in due}
        if due:
            yield frame, due
    if waiting:
        late = ', '.join(str(number + 1) for number in sorted(waiting))
        raise DataError(
            f'{bag}: ends after {count} frames, {since:.1f} s, before commands {late} are due'
        )


def _is_due(command: Command, number: int, since: float) -> bool:
    """Return whether a frame, so manieth and so many seconds on, is the one a command is for."""
    return number == command.frame if command.at is None else since >= command.at


def _asked(
    segmenter: Segmenter,
    frame: BagImage,
    due: Sequence[Command],
    truth: GroundTruth | None,
    out: Path | None,
    results: ResultBag | None,
) -> Iterator[Case]:
    """Yield the cases of one frame."""
    dialogues: dict[str, Dialogue] = {}
    for command in due:
        before = dialogues.get(command.dialogue, Dialogue()) if command.dialogue else None
        result = segmenter.segment(frame.pixels, command.text, before)
        if command.dialogue:
            dialogues[command.dialogue] = before.extended(result)
        yield _judged(frame, command, command.number, result, truth, out, results)


class LiveAnswer(Protocol):
    """What a node said to a command, as `ros.live` has it."""

    command: int  # its number
    stamp: int  # of the frame that it is about [ns]
    result: Segmentation


def evaluate_live_answers(
    answers: Sequence[LiveAnswer],
    bag: Path,
    commands: Sequence[Command],
    *,
    topic: str,
    truth: GroundTruth | None = None,
    out: Path | None = None,
    results: ResultBag | None = None,
) -> Iterator[Case]:
    """Yield a case for each answer of a node, in the order of the frames.

    A second answer to one command about one frame (a bag that was played in a loop) has a name of
    its own. Answers about no frame of the bag, such as those that failed, have no truth.
    Arguments and errors as `offline`.
    """
    by_frame: dict[int, list[LiveAnswer]] = {}
    for answer in answers:
        by_frame.setdefault(answer.stamp, []).append(answer)
    seen: Counter[tuple[int, int]] = Counter()
    for frame in read_images(bag, topic):
        for answer in by_frame.pop(frame.stamp, ()):
            command = commands[answer.command]
            again = seen[frame.stamp, command.number]
            seen[frame.stamp, command.number] += 1
            place = f'{command.number}.{again + 1}' if again else command.number
            yield _judged(frame, command, place, answer.result, truth, out, results)
    for number, answer in enumerate(a for some in by_frame.values() for a in some):
        command = commands[answer.command]
        place = f'{command.number}.{number}'
        yield case_of('no frame', place, command.kind, command.text, answer.result, None)


def _judged(
    frame: BagImage,
    command: Command,
    place: int | str,
    result: Segmentation,
    truth: GroundTruth | None,
    out: Path | None,
    results: ResultBag | None,
) -> Case:
    """Compare an answer with the truth of its frame; draw and keep it."""
    if result.masks.shape[1:] != frame.pixels.shape[:2]:  # a message without masks has no size
        nothing = np.zeros((0, *frame.pixels.shape[:2]), np.float32)
        result = replace(result, masks=nothing > 0, mask_logits=nothing)
    if results is not None:
        results.put(frame, result)
    real = None
    if truth is not None and command.has_truth:
        real = truth.mask(frame.stamp, frame.pixels.shape[:2], command)
    picture = out and out / f'{frame.stamp}.{place}.jpg'
    if picture:
        draw(picture, frame.pixels, result, real)
    return case_of(str(frame.stamp), place, command.kind, command.text, result, real, picture)
