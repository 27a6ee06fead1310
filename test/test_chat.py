# SPDX-License-Identifier: Apache-2.0
"""Chat in a terminal: streamed text, an image of each answer, turns that refer to others."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted_backend import ScriptedBackend

from lisa_ros import chat_ui, cli
from lisa_ros.commands.chat import LocalChat
from lisa_ros.errors import LisaError
from lisa_ros.messages import bag
from lisa_ros.perception.segmenter import Segmenter

FRAME = next(
    bag.read_images(
        Path(cli.__file__).parent / 'samples' / 'tabletop' / 'bag', '/camera/color/image_raw'
    )
)
# Ctrl-C may be ignored, and is so in child processes, where a script runs the tests in background
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lisa_ros.cli import main
sys.exit(main())
"""
COMMAND = [sys.executable, '-m', 'lisa_ros', 'chat']


@pytest.fixture
def chat(tmp_path):
    """Return a function that types lines into a chat about an image and returns its output."""
    Image.fromarray(FRAME.pixels).save(tmp_path / 'table.png')

    def run(*lines, more=()):
        ended = subprocess.run(
            [*COMMAND, '--image', 'table.png', '--out', 'out', *more],
            input='\n'.join(lines) + '\n', capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert 'Traceback' not in ended.stderr
        return ended.stdout

    return run


def test_another_image_begins_a_new_dialogue(tmp_path):
    """Earlier turns have boxes in the old image."""
    backend = ScriptedBackend({'': {'masks': 'all'}})
    local = LocalChat(Segmenter(backend), FRAME.pixels, 'a test')
    Image.new('RGB', (40, 30)).save(tmp_path / 'other.png')

    def turns_before(query):
        local.ask(query, lambda text: None)
        return [turn.query for turn in backend.calls[-1][0].dialogue.turns]

    assert turns_before('the mug') == []
    assert turns_before('the other one') == ['the mug']
    with pytest.raises(LisaError):
        local.set_image(tmp_path / 'missing.png')
    assert turns_before('which one?') == ['the mug', 'the other one']
    local.set_image(tmp_path / 'other.png')
    assert turns_before('the mug') == []


def test_turns_follow_one_another_and_every_answer_has_its_image(chat, tmp_path):
    output = chat('segment the yellow mug', 'what is it for?', '', '/reset', 'find the banana')
    turns = output.split('> ')[1:]
    assert turns[0].startswith('Sure.\n  (1 found, score 0.')
    assert turns[1].startswith('The mug holds a hot drink.\n  (NOT_FOUND; ')
    assert turns[4].startswith('There is no banana here.\n  (NOT_FOUND; ')
    images = sorted((tmp_path / 'out').iterdir())
    assert [path.name for path in images] == ['001.png', '002.png', '003.png']
    assert Image.open(images[0]).size[0] == 640


def test_another_image_is_loaded_and_errors_are_printed(chat, tmp_path):
    Image.new('RGB', (64, 48), (90, 60, 40)).save(tmp_path / 'empty.png')
    output = chat('/show', '/image nowhere.png', '/image empty.png', 'segment the milk', '/what')
    assert 'there is no image yet' in output
    assert re.search(r'! .*nowhere\.png', output)
    assert 'There is no milk here.' in output
    assert '/image FILE' in output


def test_the_image_is_shown_in_the_terminal(chat):
    output = chat('segment the milk', more=['--show'])
    assert output.count('\u2580') > 500


def test_ctrl_c_ends_a_line_and_ctrl_d_the_chat(tmp_path):
    Image.fromarray(FRAME.pixels).save(tmp_path / 'table.png')
    outer, inner = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, '-c', INTERRUPTIBLE, 'chat', '--image', 'table.png'],
        stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path, start_new_session=True,
        env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path), 'TERM': 'dumb'},
    )  # fmt: skip
    os.close(inner)
    output = b''

    def wait_for(words, times=1, seconds=60):
        nonlocal output
        deadline = time.monotonic() + seconds
        while output.count(words) < times:
            assert time.monotonic() < deadline, output
            if select.select([outer], [], [], 0.2)[0]:
                output += os.read(outer, 1000)

    try:
        wait_for(b'> ')
        os.write(outer, b'segment the')
        wait_for(b'segment the')
        for _ in range(30):  # a signal just before readline's select is lost
            if output.count(b'> ') >= 2:
                break
            started.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                wait_for(b'> ', 2, seconds=2)
            assert started.poll() is None, output
        wait_for(b'> ', 2)
        os.write(outer, b'find the banana\n')
        wait_for(b'There is no banana here.')
        wait_for(b'> ', 3)
        os.write(outer, b'\x04')
        assert started.wait(20) == 0, output
        assert 'find the banana' in (tmp_path / 'lisa_ros' / 'chat_history').read_text()
    finally:
        started.kill()
        os.close(outer)


# ---- the terminal


def test_half_blocks_have_the_colours_of_the_image():
    image = np.zeros((4, 2, 3), np.uint8)
    image[0], image[1] = (255, 0, 0), (0, 255, 0)
    first, second = chat_ui.render_half_blocks(image).splitlines()
    assert first == '\x1b[38;2;255;0;0;48;2;0;255;0m\u2580' * 2 + '\x1b[0m'
    assert second.count('38;2;0;0;0;48;2;0;0;0') == 2
    assert chat_ui.render_half_blocks(np.zeros((1000, 2000, 3), np.uint8), 10).count('\n') == 1


@pytest.mark.parametrize(
    ('parts', 'answer', 'written'),
    [
        (['Sure', 'Sure,', 'Sure.'], 'Sure.', ['Sure', '', '', '.']),
        (['It is', 'It is here', 'It is here.'], 'It is here.', ['It is', ' here', '', '.']),
        (['', 'Here.'], 'Here.', ['', 'Here', '.']),
        (['A mug'], 'The mug.', ['A mug', '\nThe mug.']),
    ],
)
def test_each_part_of_an_answer_is_written_once(parts, answer, written):
    calls = []
    printer = chat_ui.StreamPrinter(calls.append)
    for part in parts:
        printer.update(part)
    printer.end(answer)
    assert calls == written
