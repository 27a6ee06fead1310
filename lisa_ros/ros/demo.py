# SPDX-License-Identifier: Apache-2.0
"""Demo of the whole system on one machine: a camera bag, the installed node and five commands.

    python -m lisa_ros.ros.demo --out demo

The node runs as a process of its own, started by `ros2 launch` if that is installed; the sample
bag is played to it over DDS. The exit status is 0 if every answer fits the ground truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lisa_ros import stop_signals
from lisa_ros.errors import DataError, LisaError
from lisa_ros.evaluation import acceptance
from lisa_ros.evaluation.acceptance import Verdict
from lisa_ros.evaluation.command_file import Command, read_commands
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.evaluation.ground_truth import GroundTruth, InstanceFolder
from lisa_ros.evaluation.live import LiveAnswer, case_without_frame
from lisa_ros.files.text import parse_yaml
from lisa_ros.messages.bag import BagImage, read_images
from lisa_ros.number_arguments import positive_float
from lisa_ros.perception import overlay
from lisa_ros.resources import SAMPLE
from lisa_ros.ros.node_process import (
    NodeClient,
    isolate_ros_graph,
    managed_process,
    node_command,
    write_parameters,
)


@dataclass(frozen=True)
class Sample:
    """A bag with the ground truth of its frames and commands about it."""

    bag: Path
    ground_truth: GroundTruth
    commands: Sequence[Command]

    @classmethod
    def open(cls, folder: Path) -> Sample:
        """Read a folder with bag, truth/<stamp in ns>.png and commands.yaml.

        Raises:
            DataError: one of them is missing or not valid.
        """
        for name in ('bag', 'truth', 'commands.yaml'):
            if not (folder / name).exists():
                raise DataError(f'the sample in {folder} is incomplete: {name} is missing')
        ground_truth = InstanceFolder(folder / 'truth')
        return cls(folder / 'bag', ground_truth, read_commands(folder / 'commands.yaml'))


@dataclass(frozen=True)
class DemoAnswer:
    """The answer to one command of the demo."""

    verdict: Verdict
    image: np.ndarray | None  # (H, W, 3) uint8 RGB, the overlay; None: of no frame of the bag

    @property
    def category(self) -> str:
        """Kind of query: explicit, implicit, several, follow_up or absent."""
        return self.verdict.case.category

    @property
    def caption(self) -> str:
        """One line for the contact sheet."""
        iou = '' if self.verdict.iou is None else f', IoU {self.verdict.iou:.2f}'
        status, latency = self.verdict.case.status, self.verdict.latency
        return f'{self.category.replace("_", "-")}, {status}{iou}, {latency:.1f} s'

    def to_json(self) -> dict[str, Any]:
        """Return the answer for answers.json."""
        case = self.verdict.case
        return {
            'text': case.expression,
            'category': case.category,
            'status': case.status,
            'answer': self.verdict.text,
            'iou': self.verdict.iou,
            'seconds': self.verdict.latency,
            'fault': self.verdict.fault,
            'positions': self.verdict.positions,
        }


def judge(sample: Sample, frame: BagImage | None, answer: LiveAnswer) -> DemoAnswer:
    """Compare an answer with the ground truth of its frame, and draw it.

    Args:
        sample: the ground truth and the commands.
        frame: that the answer is about; None: it is not in the bag, as for a failure.
        answer: of the node.

    Raises:
        DataError: there is no ground truth for this frame.
    """
    command, result = sample.commands[answer.command], answer.result
    if frame is None:
        return DemoAnswer(acceptance.judge(answer, case_without_frame(answer, command)), None)
    case = FrameJudge(sample.ground_truth).judge(frame, command, result)
    labels = [f'{number}  {score:.2f}' for number, score in enumerate(result.scores, 1)]
    masks = result.masks.reshape(-1, *frame.pixels.shape[:2])
    caption = [command.text, result.answer or result.reason]
    image = overlay.overlay(frame.pixels, masks, labels, caption)
    return DemoAnswer(acceptance.judge(answer, case), image)


def save(answers: Sequence[DemoAnswer], out: Path) -> None:
    """Write an overlay of each answer, the contact sheet and answers.json."""
    drawn = [answer for answer in answers if answer.image is not None]
    for number, answer in enumerate(drawn, 1):
        _write_image(out / f'{number}_{answer.category}.png', answer.image)
    if drawn:
        images, captions = [a.image for a in drawn], [a.caption for a in drawn]
        sheet = overlay.contact_sheet(images, captions, columns=3)
        _write_image(out / 'contact_sheet.png', sheet)
    rows = [answer.to_json() for answer in answers]
    (out / 'answers.json').write_text(json.dumps(rows, indent=2) + '\n', encoding='utf-8')


def _write_image(path: Path, rgb: np.ndarray) -> None:
    if not cv2.imwrite(str(path), rgb[:, :, ::-1]):
        raise DataError(f'{path}: cannot be written; give another --out')


def run(sample: Sample, out: Path, settings: Mapping[str, Any], rate: float) -> list[DemoAnswer]:
    """Start the node, play the bag, ask the commands; return the answers in that order.

    Args:
        sample: the bag, its ground truth and the commands.
        out: an existing folder for the node's parameters and log.
        settings: parameters of the node that differ from its defaults.
        rate: playback speed, 1.0 is real time.

    Raises:
        DataError: the node ended or did not answer, or a frame has no ground truth.
    """
    import rclpy

    from lisa_ros.ros.bag_player import BagPlayer, camera_topics, node_inputs
    from lisa_ros.ros.initialization import initialize

    topics = camera_topics(sample.bag)
    inputs, transports = node_inputs(topics)
    log = out / 'node.log'
    # The node lives for some minutes: a standby would only take time from the answers.
    settings = {'autostart': True, 'worker_standby': False, **transports, **settings}
    command_line = node_command(inputs, write_parameters(out / 'parameters.yaml', settings))
    frames = {frame.stamp: frame for frame in read_images(sample.bag, topics['image'])}
    _print(f'starting {Path(command_line[0]).name}, its log is {log} ...')
    with managed_process(command_line, log) as process:
        initialize(['demo'])
        try:
            client = NodeClient(process, log)
            client.wait_for_node()
            player = BagPlayer(client.node, sample.bag, rate, loop=True, topics=topics.values())
            player.start()
            _print(f'replaying {sample.bag.name} in a loop: {", ".join(topics.values())}')
            answers = [_ask(client, sample, command, frames) for command in sample.commands]
            player.stop()
            client.node.destroy_node()
        finally:
            rclpy.try_shutdown()
    return answers


def _ask(
    client: NodeClient, sample: Sample, command: Command, frames: Mapping[int, BagImage]
) -> DemoAnswer:
    """Ask one command and judge its answer."""
    from lisa_ros.ros.live_evaluation import live_answer

    _print(f'{command.number + 1}/{len(sample.commands)}  {command.text}')
    answer = live_answer(command.number, *client.ask(command.text))
    return judge(sample, frames.get(answer.stamp), answer)


def _print(line: str) -> None:
    print(line, flush=True)


def main(args: list[str] | None = None) -> int:
    """Run the demo; return 0 if every answer fits the ground truth."""
    parser = argparse.ArgumentParser(description='A camera bag and five commands, end to end.')
    parser.add_argument(
        '--out', type=Path, default=Path('demo'), help='folder for the images (default: demo)'
    )
    parser.add_argument(
        '--sample',
        type=Path,
        default=SAMPLE,
        help='folder with bag, truth and commands.yaml (default: that of the package)',
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter of the node, such as model=xinlai/LISA-7B-v1; may be repeated',
    )
    parser.add_argument(
        '--rate',
        type=positive_float,
        default=1.0,
        help='playback speed, 1 is real time (default: 1)',
    )
    options = parser.parse_args(args)
    settings = {}
    for assignment in options.set:
        name, equals, value = assignment.partition('=')
        if not equals:
            parser.error(f'--set {assignment}: expected NAME=VALUE')
        try:
            settings[name] = parse_yaml(value, f'--set {name}')
        except LisaError as error:
            parser.error(str(error))
    isolate_ros_graph()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        answers = run(Sample.open(options.sample), options.out, settings, options.rate)
        save(answers, options.out)
    except LisaError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('demo: interrupted', file=sys.stderr)
        return 130
    verdicts = [answer.verdict for answer in answers]
    _print(
        f'\n{acceptance.table(verdicts)}\n\n'
        f'images: {options.out}/contact_sheet.png and one for each command'
    )
    return 1 if any(verdict.fault for verdict in verdicts) else 0


if __name__ == '__main__':
    stop_signals.end(main())
