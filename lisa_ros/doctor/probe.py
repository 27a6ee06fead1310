# SPDX-License-Identifier: Apache-2.0
"""Run a module in a process of its own and read the facts that it prints.

A probe is a module with `main(arguments)`, which yields dicts: the facts so far. A library that it
imports may hang, crash or print anything: the caller gets the facts until then, and an error in
words, within the time limit. Any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MARK = 'lisa_ros probe: '  # before the facts; libraries print lines of their own
_CODE = f"""
import ctypes, importlib, json, os, signal, sys
if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: Ctrl-C ends the doctor, too
sys.path[:] = json.loads(sys.argv[1])
for facts in importlib.import_module(sys.argv[2]).main(sys.argv[3:]):
    print('\\n{_MARK}' + json.dumps(facts), flush=True)
os._exit(0)  # threads of a library must not delay or break the end
"""
_MAX_CHARS = 400  # of a line of a library in a finding


@dataclass(frozen=True)
class ProbeResult:
    """What a probe has found."""

    facts: Mapping[str, Any] = field(default_factory=dict)  # the last that `main` has yielded
    error: str = ''  # why it did not end as it should; empty: it did
    is_late: bool = False  # the time limit was over


def run_probe(module: str, arguments: Sequence[str], timeout: float) -> ProbeResult:
    """Run a probe; kill it and its children at the time limit.

    Args:
        module: its full name.
        arguments: for its `main`.
        timeout: [s].
    """
    command = [sys.executable, '-c', _CODE, json.dumps(sys.path), module, *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(  # noqa: S603  # this Python
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        error = f'not finished within {timeout:g} s'
        return ProbeResult(_newest_facts(_text(expired.output or b'')), error, is_late=True)
    finally:
        _end(process)
    error = _exit_error(process.returncode, _text(errors)) if process.returncode else ''
    return ProbeResult(_newest_facts(_text(output)), error)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has not ended, and its children; its id is not that of another yet."""
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _newest_facts(output: str) -> Mapping[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the last line was cut off
            return json.loads(line.removeprefix(_MARK))
    return {}


def _exit_error(status: int, errors: str) -> str:
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), '')
    if status < 0:
        return f'died of signal {-status} {_signal_name(-status)}: {last}'[:_MAX_CHARS]
    return last[:_MAX_CHARS] or f'ended with status {status}'


def _signal_name(number: int) -> str:
    try:
        return f'({signal.Signals(number).name})'
    except ValueError:  # a real-time signal
        return ''


def _text(output: bytes) -> str:
    return output.decode(errors='replace')
