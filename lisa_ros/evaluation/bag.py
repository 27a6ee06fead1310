# SPDX-License-Identifier: Apache-2.0
"""Ask commands about the frames of a bag, offline.

Each command is answered for its own frame, as fast as the model can. Nothing depends on a clock:
the same bag, commands and model give the same answers, on a CPU bit by bit. Dialogues start
afresh at each frame. A thread decodes the next frames meanwhile, and CLIP and SAM may encode
several frames at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.evaluation.answering import answer_query, encode_images
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.messages.bag import BagImage, prefetch, read_images
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import ANSWERED, Dialogue


def evaluate_offline(
    segmenter: Segmenter,
    bag: Path,
    commands: Sequence[Command],
    judge: FrameJudge,
    *,
    topic: str | None = None,
    every: int = 10,
    batch_size: int = 1,
    progress: bool = True,
    on_error: ErrorHandler = raise_error,
) -> Iterator[Case]:
    """Yield a case for each command and each of its frames, in the bag's order.

    Args:
        segmenter: the model.
        bag: as in `messages.bag.open_bag`.
        commands: what to ask.
        judge: compares the answers with the ground truth and writes them.
        topic: image topic; None: the only one of the bag.
        every: commands without a time run on every n-th frame. Frames that cannot be read count:
            a damaged bag has the answers about its other frames in common with a whole one.
        batch_size: frames that CLIP and SAM encode at once.
        progress: show a progress bar.
        on_error: called for each part of the bag and each image that cannot be read, and for
            commands that are due after the last frame; if it returns, the run goes on without.

    Raises:
        DataError: the bag or the ground truth cannot be read, or `on_error` raised it.
    """
    frames = prefetch(read_images(bag, topic, on_error=on_error))
    frames = tqdm(frames, desc=bag.name, unit='frame', disable=not progress)
    frames_with_commands = _with_due_commands(frames, bag, commands, every, on_error)
    while batch := list(itertools.islice(frames_with_commands, batch_size)):
        if batch_size > 1:
            encode_images(segmenter, [frame.pixels for frame, _ in batch])
        for frame, due_commands in batch:
            yield from _evaluate_frame(segmenter, frame, due_commands, judge)


def _with_due_commands(
    frames: Iterable[BagImage],
    bag: Path,
    commands: Sequence[Command],
    every: int,
    on_error: ErrorHandler,
) -> Iterator[tuple[BagImage, list[Command]]]:
    """Yield each frame for which a command is due, with its commands."""
    waiting = {command.number for command in commands}  # have not been due yet
    start, count, elapsed = None, 0, 0.0
    for frame in frames:
        start = frame.stamp if start is None else start
        count = frame.index + 1
        elapsed = (frame.stamp - start) / 1e9
        due_commands = [
            command
            for command in commands
            if (
                command.number in waiting and _is_due(command, frame.index, elapsed)
                if command.has_time
                else frame.index % every == 0
            )
        ]
        waiting -= {command.number for command in due_commands}
        if due_commands:
            yield frame, due_commands
    not_asked = [command for command in commands if command.number in waiting]
    report_not_asked(
        not_asked, every, count, f'{bag}: ends after {count} frames, {elapsed:.1f} s', on_error
    )


def report_not_asked(
    commands: Sequence[Command], every: int, count: int, end: str, on_error: ErrorHandler
) -> None:
    """Report commands that were due at no frame, because of its end or of frames unread.

    Args:
        commands: that were not asked.
        every: commands without a time run on every n-th frame.
        count: number of frames, up to the last one that can be read; 0: the cause is reported.
        end: where the bag ends, for the message.
        on_error: called with one error, if there are such commands.
    """
    problems, late = [], []
    for command in commands:
        number = command.number + 1
        if command.frame is not None and command.frame < count:
            problems.append(
                f'command {number} is not asked: frame {command.frame} cannot be read; give '
                'another frame'
            )
        elif command.has_time:
            late.append(str(number))
        elif count:
            problems.append(
                f'command {number} is not asked: no {every}-th frame can be read; give a smaller '
                '--every'
            )
    if late:
        numbers = ', '.join(late)
        problems.append(f'{end}, before commands {numbers} are due; give an earlier time or frame')
    if problems:
        on_error(DataError('; '.join(problems)))


def _is_due(command: Command, index: int, elapsed: float) -> bool:
    """Return whether a command is due at this frame index or time [s from the first frame]."""
    return index == command.frame if command.at is None else elapsed >= command.at


def _evaluate_frame(
    segmenter: Segmenter, frame: BagImage, due_commands: Sequence[Command], judge: FrameJudge
) -> Iterator[Case]:
    """Yield the cases of one frame."""
    dialogues: dict[str, Dialogue] = {}
    for command in due_commands:
        dialogue = dialogues.get(command.dialogue, Dialogue()) if command.dialogue else None
        result = answer_query(segmenter, frame.pixels, command.text, dialogue)
        if command.dialogue and result.status in ANSWERED:  # as in the node
            dialogues[command.dialogue] = dialogue.extended(result)
        yield judge.judge(frame, command, result)
