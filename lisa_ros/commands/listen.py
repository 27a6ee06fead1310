# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros listen`: what a WAV file's speech is understood as, without ROS."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from lisa_ros.commands.arguments import setting_arguments
from lisa_ros.voice.settings import VoiceSettings


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser('listen', help='what is understood of speech in WAV files')
    parser.add_argument('sounds', type=Path, nargs='+', metavar='WAV')
    setting_arguments(parser, VoiceSettings, _USED)
    parser.add_argument('--json', action='store_true', help='print one JSON object a line')
    parser.set_defaults(run=listen)


_USED = (
    'engine', 'speech_model', 'device', 'vocabulary', 'confidence_threshold', 'wake_phrase',
    'awake', 'pause',
)  # fmt: skip


def listen(options: argparse.Namespace) -> None:
    """Print what is heard in each file, a line for each utterance."""
    from lisa_ros.voice.audio import RATE, read_wav
    from lisa_ros.voice.listener import listener_of

    given = {name: getattr(options, name) for name in _USED}
    listener, _ = listener_of(VoiceSettings(**given, partial_every=0.0))
    for path in options.sounds:
        samples = read_wav(path)
        found = 0
        for heard in (*listener.feed(samples), *listener.finish()):
            found += 1
            told = {**dataclasses.asdict(heard), 'outcome': heard.outcome.value, 'file': str(path)}
            if options.json:
                print(json.dumps(told))
                continue
            sent = f' -> "{heard.command}"' if heard.command else ''
            print(
                f'{path}: {heard.outcome.value} {heard.confidence:.2f} "{heard.text}"{sent} '
                f'({heard.seconds:.2f} s)'
            )
        if not found and not options.json:
            print(f'{path}: no speech in {len(samples) / RATE:.1f} s')
