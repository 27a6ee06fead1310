# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros chat`: a talk about a picture, with the model itself or through a running node."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lisa_ros import chat_ui
from lisa_ros.chat_ui import ChatBackend, Reply
from lisa_ros.commands.arguments import load, model_arguments
from lisa_ros.errors import DataError, LisaError, SettingsError
from lisa_ros.model.image_processing import read_rgb
from lisa_ros.perception import overlay
from lisa_ros.results import Dialogue, Done, Status, Token, answer_text

_HELP = """\
  /image FILE   talk about another picture (with --image)
  /show         the last answer's picture, here in the terminal
  /reset        forget what was said
  /help, /quit  or Ctrl-D; Ctrl-C stops an answer"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    talk = commands.add_parser('chat', help='talk about a picture, or with a running node')
    talk.add_argument(
        '--image', type=Path, metavar='FILE', help='talk with the model about this picture'
    )
    talk.add_argument(
        '--node', default='lisa', metavar='NAME', help='or with this node (default: lisa)'
    )
    talk.add_argument('--out', type=Path, default=Path('lisa-out'), help='for pictures of answers')
    talk.add_argument('--show', action='store_true', help='show each in the terminal as well')
    model_arguments(talk)
    talk.set_defaults(run=chat)


def chat(options: argparse.Namespace) -> None:
    """Read what is asked, line by line, and answer it, until the end of the input."""
    partner = LocalChat(options) if options.image else _node(options.node)
    print(f'{partner.about}. /help says what else there is.')
    keep_history = _history()
    last: np.ndarray | None = None
    count = 0
    try:
        while (line := _line()) is not None:
            name, _, rest = line.partition(' ')
            try:
                if name == '/quit':
                    return
                if name == '/reset':
                    partner.reset()
                elif name == '/image':
                    partner.look_at(Path(rest.strip()))
                elif name == '/show':
                    print('there is no picture yet' if last is None else _shown(last))
                elif name.startswith('/'):
                    print(_HELP)
                elif line:
                    count += 1
                    last = _answer(partner, line, options.out / f'{count:03d}.png')
                    if options.show and last is not None:
                        print(_shown(last))
            except LisaError as error:
                print(f'! {error}')
    finally:
        keep_history()


def _answer(partner: ChatBackend, line: str, path: Path) -> np.ndarray | None:
    """Ask, write the answer and its picture; return that."""
    words = chat_ui.StreamPrinter(lambda text: print(text, end='', flush=True))
    reply = partner.ask(line, words.update)
    words.end(reply.answer)
    where = ''
    if reply.overlay is not None:
        _save(reply.overlay, path)
        where = f', {path}'
    found = ', '.join(f'{score:.2f}' for score in reply.scores)
    what = f'{len(reply.scores)} found, score {found}' if found else reply.status.name
    why = f': {reply.reason}' if reply.reason else ''
    print(f'\n  ({what}{why}; {reply.seconds:.2f} s{where})')
    return reply.overlay


def _line() -> str | None:
    """Return the next line, without blanks around it; None at the end of all."""
    try:
        return input('> ').strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:  # of a line, not of the talk
        print()
        return ''


def _history() -> Callable[[], None]:
    """Let lines be edited and found again, where Python has readline; return what keeps them."""
    try:
        import readline
    except ImportError:  # no such thing on Windows
        return lambda: None
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    path = cache / 'lisa_ros' / 'chat_history'
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def keep() -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    return keep


def _shown(image: np.ndarray) -> str:
    size, (height, width) = shutil.get_terminal_size(), image.shape[:2]
    return chat_ui.render_half_blocks(
        image, min(size.columns, 2 * (size.lines - 4) * width // height)
    )


def _save(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    except OSError as error:
        raise DataError(f'{path}: cannot be written ({error}); give another --out') from error


class LocalChat:
    """The model itself, about a picture."""

    def __init__(self, options: argparse.Namespace):
        self._image = read_rgb(options.image)
        self._lisa, self._dialogue = load(options), Dialogue()
        self.about = f'{options.model} about {options.image}'

    def look_at(self, path: Path) -> None:
        """See Partner."""
        self._image = read_rgb(path)

    def reset(self) -> None:
        """See Partner."""
        self._dialogue = Dialogue()

    def ask(self, text: str, so_far: Callable[[str], None]) -> Reply:
        """See Partner."""
        raw, stop = '', threading.Event()
        events = self._lisa.stream(self._image, text, self._dialogue, stop)
        while True:
            try:
                event = next(events)
                if isinstance(event, Done):
                    break
                if isinstance(event, Token):
                    raw += event.text
                    so_far(answer_text(raw))
            except KeyboardInterrupt:
                stop.set()
                events.close()
                return Reply(Status.CANCELLED, answer_text(raw), 'stopped', (), 0.0, None)
        result = event.result
        self._dialogue = self._dialogue.extended(result)
        labels = [f'{score:.2f}' for score in result.scores]
        shown = overlay.overlay(self._image, result.masks, labels, [text, result.answer])
        return Reply(
            result.status,
            result.answer,
            result.reason,
            tuple(map(float, result.scores)),
            sum(result.timings.values()),
            shown,
        )


def _node(name: str) -> ChatBackend:
    try:
        from lisa_ros.ros.chat import NodeChat
    except ImportError as error:
        raise SettingsError(
            f'a talk with a node needs ROS 2 and the built package ({error}): `make setup`, or '
            'source install/setup.bash; with --image FILE no ROS is needed'
        ) from error
    return NodeChat(name)
