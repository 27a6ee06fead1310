# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros chat`: a dialogue about an image, with the model itself or with a running node."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lisa_ros.chat_ui import ChatBackend, Reply, StreamPrinter, render_half_blocks
from lisa_ros.commands.arguments import load_segmenter, model_arguments
from lisa_ros.errors import DataError, LisaError, SettingsError

if TYPE_CHECKING:
    import numpy as np

    from lisa_ros.perception.segmenter import Segmenter
    from lisa_ros.results import Segmentation

_HELP = """\
  /image FILE   begin a new dialogue about another image (only with --image)
  /show         show the overlay of the last answer in the terminal
  /reset        begin a new dialogue
  /help         show these commands
  /quit         end the chat, as Ctrl-D does; Ctrl-C stops an answer"""


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'chat', help='chat about an image, with a model or with a running node'
    )
    parser.add_argument(
        '--image', type=Path, metavar='FILE', help='load the model here and chat about this image'
    )
    parser.add_argument(
        '--node',
        default='lisa',
        metavar='NAME',
        help='without --image: chat with this running node (default: lisa)',
    )
    parser.add_argument(
        '--camera',
        default='',
        metavar='NAME',
        help='without --image: camera of the node (default: its only one)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('lisa-out'),
        help='folder for the overlay image of each answer (default: lisa-out)',
    )
    parser.add_argument(
        '--show', action='store_true', help='also show each image in the terminal (default: no)'
    )
    model_arguments(parser)
    parser.set_defaults(run=chat)


def chat(options: argparse.Namespace) -> None:
    """Read queries and commands line by line and answer them, until the end of the input."""
    backend = _backend(options)
    print(f'{backend.about}. /help lists the commands.')
    session = _ChatSession(backend, options.out, options.show)
    save_history = _load_line_history()
    try:
        while (line := _read_line()) is not None and line.split(' ')[0] != '/quit':
            session.handle(line)
    finally:
        save_history()


class _ChatSession:
    """Handles the lines of one chat; keeps the last image and the number of the answer."""

    def __init__(self, backend: ChatBackend, out: Path, show: bool):
        self._backend, self._out, self._show = backend, out, show
        self._last_image: np.ndarray | None = None
        self._answers = 0

    def handle(self, line: str) -> None:
        """Run a command or answer a query; print a LisaError instead of raising it."""
        try:
            self._handle(line)
        except LisaError as error:
            print(f'! {error}')

    def _handle(self, line: str) -> None:
        name, _, argument = line.partition(' ')
        if name == '/reset':
            self._backend.reset()
        elif name == '/image':
            self._backend.set_image(Path(argument.strip()))
        elif name == '/show':
            has_image = self._last_image is not None
            print(_render_for_terminal(self._last_image) if has_image else 'there is no image yet')
        elif name.startswith('/'):
            print(_HELP)
        elif line:
            self._answer(line)

    def _answer(self, query: str) -> None:
        """Answer a query; print the answer and save its image."""
        self._answers += 1
        printer = StreamPrinter(lambda text: print(text, end='', flush=True))
        reply = self._backend.ask(query, printer.update)
        printer.end(reply.answer)
        saved = ''
        if reply.overlay is not None:
            path = self._out / f'{self._answers:03d}.png'
            _save(reply.overlay, path)
            saved = f', {path}'
        print(f'\n  ({_summary(reply)}; {reply.seconds:.2f} s{saved})')
        self._last_image = reply.overlay
        if self._show and reply.overlay is not None:
            print(_render_for_terminal(reply.overlay))


def _summary(reply: Reply) -> str:
    """Return the number of masks with their scores, or the status, and the reason."""
    scores = ', '.join(f'{score:.2f}' for score in reply.scores)
    summary = f'{len(reply.scores)} found, score {scores}' if scores else reply.status.name
    return f'{summary}: {reply.reason}' if reply.reason else summary


def _read_line() -> str | None:
    """Return the next line, stripped; '' after Ctrl-C, None at the end of the input."""
    try:
        return input('> ').strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:  # ends a line, not the chat
        print()
        return ''


def _load_line_history() -> Callable[[], None]:
    """Load the history of lines, if Python has readline; return the function that saves it."""
    try:
        import readline
    except ImportError:  # not on Windows
        return lambda: None
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    path = cache / 'lisa_ros' / 'chat_history'
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def save() -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    return save


def _render_for_terminal(image: np.ndarray) -> str:
    """Return an image as text that fits the terminal."""
    size, (height, width) = shutil.get_terminal_size(), image.shape[:2]
    return render_half_blocks(image, min(size.columns, 2 * (size.lines - 4) * width // height))


def _save(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    except OSError as error:
        raise DataError(f'{path}: cannot be written ({error}); give another --out') from error


def _backend(options: argparse.Namespace) -> ChatBackend:
    if options.image:
        from lisa_ros.images.image_file import read_rgb

        image = read_rgb(options.image)
        about = f'{options.model} about {options.image}'
        return LocalChat(load_segmenter(options), image, about)
    try:
        from lisa_ros.ros.chat import NodeChat
    except ImportError as error:
        raise SettingsError(
            f'a chat with a node needs ROS 2 and the built package ({error}): `make setup`, or '
            'source install/setup.bash. --image FILE needs no ROS'
        ) from error
    return NodeChat(options.node, options.camera)


class LocalChat:
    """A chat with the model itself, about one image at a time."""

    def __init__(self, segmenter: Segmenter, image: np.ndarray, about: str):
        """Begin a dialogue about an image, (H, W, 3) uint8 RGB."""
        from lisa_ros.results import Dialogue

        self.about = about
        self._segmenter, self._image, self._dialogue = segmenter, image, Dialogue()

    def set_image(self, path: Path) -> None:
        """See ChatBackend."""
        from lisa_ros.images.image_file import read_rgb

        self._image = read_rgb(path)
        self.reset()  # earlier turns are about another image

    def reset(self) -> None:
        """See ChatBackend."""
        from lisa_ros.results import Dialogue

        self._dialogue = Dialogue()

    def ask(self, text: str, on_text: Callable[[str], None]) -> Reply:
        """See ChatBackend."""
        from lisa_ros.results import ANSWERED, Done, Status, Token, answer_text

        raw_answer, cancel = '', threading.Event()
        events = self._segmenter.stream(self._image, text, self._dialogue, cancel)
        while True:
            try:
                event = next(events)
                if isinstance(event, Done):
                    break
                if isinstance(event, Token):
                    raw_answer += event.text
                    on_text(answer_text(raw_answer))
            except KeyboardInterrupt:
                cancel.set()
                events.close()
                return Reply(Status.CANCELLED, answer_text(raw_answer), 'stopped', (), 0.0, None)
        if event.result.status in ANSWERED:
            self._dialogue = self._dialogue.extended(event.result)
        return self._reply(event.result)

    def _reply(self, result: Segmentation) -> Reply:
        from lisa_ros.perception.overlay import overlay

        labels = [f'{score:.2f}' for score in result.scores]
        return Reply(
            result.status,
            result.answer,
            result.reason,
            tuple(map(float, result.scores)),
            sum(result.timings.values()),
            overlay(self._image, result.masks, labels, [result.query, result.answer]),
        )
