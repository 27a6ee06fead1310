# SPDX-License-Identifier: Apache-2.0
"""The whole path on one machine: a camera bag, the installed node, five commands, their truth.

    python -m lisa_ros.ros.demo --out demo

The node runs as its own process, started by `ros2 launch` where that is installed; the sample bag
is replayed into it over DDS. Ends with 0 if every command was answered as the truth expects.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from lisa_ros.errors import DataError, LisaError
from lisa_ros.messages.bag import read_images
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.perception import masks, overlay
from lisa_ros.resources import SAMPLE
from lisa_ros.results import Status
from lisa_ros.ros.node_process import NodeClient, isolate_ros_graph, managed_process, node_command

LEAST_IOU = {'explicit': 0.6, 'implicit': 0.6}  # what the sample's frames must reach


@dataclass(frozen=True)
class Answer:
    """One command of the demo and what came of it."""

    text: str
    kind: str  # explicit, implicit, several, follow_up or absent
    status: str
    answer: str
    iou: float | None  # of all masks together with all targets; None for an absent thing
    seconds: float  # from the command to its answer
    fault: str  # what was expected and did not come; empty if all is well
    picture: np.ndarray | None  # (H, W, 3) uint8 RGB, the overlay
    places: tuple[tuple[float, ...], ...] = ()  # centroids, optical frame [m]


@dataclass(frozen=True)
class Sample:
    """A bag with the truth of each of its frames."""

    bag: Path
    truth: Path  # a folder of <stamp in ns>.png, (H, W) uint8 of instance ids, 0 none
    commands: list[dict[str, Any]]  # text, kind, targets: instance ids

    @classmethod
    def open(cls, folder: Path) -> Sample:
        """Read the folder; DataError names what is missing."""
        for name in ('bag', 'truth', 'commands.yaml'):
            if not (folder / name).exists():
                raise DataError(f'the sample in {folder} is incomplete: {name} is missing')
        try:
            commands = yaml.safe_load((folder / 'commands.yaml').read_text(encoding='utf-8'))
        except yaml.YAMLError as error:
            raise DataError(f'{folder}/commands.yaml is no YAML: {error}') from error
        return cls(folder / 'bag', folder / 'truth', commands)

    def target(self, stamp: int, ids: list[int]) -> np.ndarray:
        """Return the (H, W) bool truth of these instances at a stamp [ns]."""
        path = self.truth / f'{stamp}.png'
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None:
            raise DataError(f'no truth for the frame at {stamp} ns: {path} is missing')
        return np.isin(labels, ids)


def judged(
    sample: Sample,
    given: dict[str, Any],
    message: Any,
    stamp: int,
    seconds: float,
    image: np.ndarray | None,
) -> Answer:
    """Compare an answer with the truth of the frame that it is about.

    Args:
        sample: the truth.
        given: the command, its kind and its targets.
        message: the Segmentation that answers it.
        stamp: of the frame [ns].
        seconds: from the command to the answer.
        image: the frame, (H, W, 3) uint8 RGB, None if it is not in the bag.
    """
    status = Status(message.status).name
    found = [mask_from_message(instance.mask) for instance in message.instances]
    iou, fault = None, ''
    if status not in ('FOUND', 'NOT_FOUND'):
        fault = f'{status}: {message.reason}'
    elif given['kind'] == 'absent':
        fault = f'{len(found)} mask(s) of a thing that is not there' if found else ''
    else:
        target = sample.target(stamp, given['targets'])
        together = np.any(found, axis=0) if found else np.zeros_like(target)
        iou = masks.iou(together, target)
        least = LEAST_IOU.get(given['kind'], 0.0)
        fault = f'IoU {iou:.2f} is below {least:g}' if iou < least else ''
    picture = None
    if image is not None:
        labels = [f'{instance.id}  {instance.score:.2f}' for instance in message.instances]
        shown = np.array(found, dtype=bool).reshape(-1, *image.shape[:2])
        words = [given['text'], message.answer or message.reason]
        picture = overlay.overlay(image, shown, labels, words)
    spoken = message.answer or message.reason
    points = [instance.centroid for instance in message.instances]
    places = tuple((p.x, p.y, p.z) for p in points if math.isfinite(p.z))
    return Answer(
        given['text'], given['kind'], status, spoken, iou, seconds, fault, picture, places
    )


def table(answers: list[Answer]) -> str:
    """Return the answers as text, one a line."""
    rows = [('command', 'answer', 'status', 'IoU', 's', 'where [m]', '')]
    for answer in answers:
        iou = '-' if answer.iou is None else f'{answer.iou:.2f}'
        seconds = f'{answer.seconds:.2f}'
        where = ', '.join(' '.join(f'{value:.2f}' for value in one) for one in answer.places)
        told = (answer.text, answer.answer, answer.status, iou, seconds, where or '-')
        rows.append((*told, answer.fault))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [
        '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]])
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in [lines[0], '-' * len(lines[0]), *lines[1:]])


def save(answers: list[Answer], out: Path) -> None:
    """Write an overlay for each answer, the contact sheet, and the figures as JSON."""
    shown = [answer for answer in answers if answer.picture is not None]
    for number, answer in enumerate(shown, 1):
        _write(out / f'{number}_{answer.kind}.png', answer.picture)
    if shown:
        captions = [
            f'{answer.kind.replace("_", "-")}, {answer.status}'
            + ('' if answer.iou is None else f', IoU {answer.iou:.2f}')
            + f', {answer.seconds:.1f} s'
            for answer in shown
        ]
        sheet = overlay.contact_sheet([answer.picture for answer in shown], captions, columns=3)
        _write(out / 'contact_sheet.png', sheet)
    figures = [
        {key: value for key, value in vars(answer).items() if key != 'picture'}
        for answer in answers
    ]
    (out / 'answers.json').write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')


def _write(path: Path, rgb: np.ndarray) -> None:
    if not cv2.imwrite(str(path), rgb[:, :, ::-1]):
        raise DataError(f'{path} cannot be written')


def run(sample: Sample, out: Path, settings: dict[str, Any], rate: float) -> list[Answer]:
    """Start the node, replay the bag, send the commands; return their answers in order.

    Args:
        sample: the bag, its truth and the commands.
        out: an existing folder for the node's parameters and log.
        settings: parameters of the node that are not to have their defaults.
        rate: of the replay, times real time.
    """
    import rclpy

    from lisa_ros.ros.bag_player import BagPlayer, camera_topics
    from lisa_ros.ros.message_types import stamp_ns

    topics = camera_topics(sample.bag)
    parameters, log = out / 'parameters.yaml', out / 'node.log'
    parameters.write_text(
        yaml.safe_dump({'/**': {'ros__parameters': {'autostart': True, **settings}}})
    )
    command = node_command(topics, parameters)
    images = {frame.stamp: frame.pixels for frame in read_images(sample.bag, topics['image'])}
    answers = []
    _say(f'starting {Path(command[0]).name}, its log is {log} ...')
    with managed_process(command, log) as process:
        rclpy.init(args=[])
        try:
            asker = NodeClient(process, log)
            asker.wait_for_node()
            replay = BagPlayer(asker.node, sample.bag, rate, loop=True, topics=topics.values())
            replay.start()
            _say(f'replaying {sample.bag.name} in a loop: {", ".join(topics.values())}')
            for number, given in enumerate(sample.commands, 1):
                _say(f'{number}/{len(sample.commands)}  {given["text"]}')
                message, seconds = asker.ask(given['text'])
                stamp = stamp_ns(message.header)
                image = images.get(stamp)
                answers.append(judged(sample, given, message, stamp, seconds, image))
            replay.stop()
            asker.node.destroy_node()
        finally:
            rclpy.try_shutdown()
    return answers


def _say(line: str) -> None:
    print(line, flush=True)


def main(args: list[str] | None = None) -> int:
    """Run the demo; 0 if every command was answered as the truth expects."""
    parser = argparse.ArgumentParser(description='A camera bag and five commands, end to end.')
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder for the pictures')
    parser.add_argument('--sample', type=Path, default=SAMPLE, help='bag, truth and commands')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter of the node, such as model=xinlai/LISA-7B-v1; may be repeated',
    )
    parser.add_argument('--rate', type=float, default=1.0, help='of the replay, times real time')
    given = parser.parse_args(args)
    settings = {}
    for assignment in given.set:
        name, equals, value = assignment.partition('=')
        if not equals:
            parser.error(f'--set {assignment}: expected NAME=VALUE')
        settings[name] = yaml.safe_load(value)
    isolate_ros_graph()
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        answers = run(Sample.open(given.sample), given.out, settings, given.rate)
        save(answers, given.out)
    except LisaError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    _say(f'\n{table(answers)}\n\npictures: {given.out}/contact_sheet.png and one for each command')
    return 1 if any(answer.fault for answer in answers) else 0


if __name__ == '__main__':
    raise SystemExit(main())
