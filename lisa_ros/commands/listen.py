# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros listen`: the commands that the voice engine recognizes in WAV files, without ROS."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.commands.arguments import setting_arguments
from lisa_ros.voice.settings import VoiceSettings

if TYPE_CHECKING:
    from lisa_ros.voice.interpreter import Recognition

_SETTINGS = (
    'engine', 'speech_model', 'device', 'vocabulary', 'confidence_threshold', 'wake_phrase',
    'awake', 'pause',
)  # fmt: skip


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('listen', help='recognize spoken commands in WAV files')
    parser.add_argument(
        'sounds', type=Path, nargs='+', metavar='WAV', help='WAV file, any sample rate'
    )
    setting_arguments(parser, VoiceSettings, _SETTINGS)
    parser.add_argument(
        '--json', action='store_true', help='print a JSON object for each utterance'
    )
    parser.set_defaults(run=listen)


def listen(options: argparse.Namespace) -> None:
    """Print the result of each utterance in each file, one on a line."""
    from lisa_ros.voice.audio import RATE, read_wav
    from lisa_ros.voice.listener import make_listener

    values = {name: getattr(options, name) for name in _SETTINGS}
    listener, _ = make_listener(VoiceSettings(**values, partial_every=0.0))
    for path in options.sounds:
        samples = read_wav(path)
        recognitions = [*listener.feed(samples), *listener.finish()]
        for recognition in recognitions:
            print(_json_line(path, recognition) if options.json else _line(path, recognition))
        if not recognitions and not options.json:
            print(f'{path}: no speech in {len(samples) / RATE:.1f} s')


def _json_line(path: Path, recognition: Recognition) -> str:
    row = dataclasses.asdict(recognition)
    return json.dumps({**row, 'outcome': recognition.outcome.value, 'file': str(path)})


def _line(path: Path, recognition: Recognition) -> str:
    command = f' -> "{recognition.command}"' if recognition.command else ''
    return (
        f'{path}: {recognition.outcome.value} {recognition.confidence:.2f} "{recognition.text}"'
        f'{command} ({recognition.seconds:.2f} s)'
    )
