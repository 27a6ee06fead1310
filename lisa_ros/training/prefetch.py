# SPDX-License-Identifier: Apache-2.0
"""Lessons made ready while a model learns: by one thread, or by the processes that a GPU wants.

A thread suits a CPU, where a step takes a second and a lesson a tenth of it. A GPU takes three
hundred pictures in that time, which keep a dozen cores busy. The lessons and their order are the
same.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Generator
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from lisa_ros.errors import LisaError

Made = Generator[Any | Exception, None, None]

_TOO_LONG = 600  # for one lesson [s]


def prefetch_batches(draw: Callable[[int], Any], steps: range, workers: int = 0) -> Made:
    """Yield the lesson of each step, or the error that it failed with; close it when done.

    Args:
        draw: returns a step's lesson, which depends on nothing else. It is called elsewhere: in
            forked processes it must not touch a GPU.
        steps: in their order.
        workers: processes; 0: a thread. Tensors come from them in shared memory (/dev/shm), two
            lessons of each.
    """
    lessons = _Lessons(draw, steps)
    return _by_processes(lessons, workers) if workers else _by_thread(lessons)


class _Lessons(Dataset):
    """The lesson of each step; an error stands in the place of one that could not be drawn."""

    def __init__(self, draw: Callable[[int], Any], steps: range):
        self._draw, self._steps = draw, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Any | Exception:
        try:
            return self._draw(self._steps[index])
        except Exception as error:  # noqa: BLE001  # raised again where lessons are taken
            if get_worker_info() and not isinstance(error, LisaError):
                traceback.print_exc()  # which does not come along from another process
            return error


def _by_thread(lessons: _Lessons) -> Made:
    ready: queue.Queue[Any | Exception] = queue.Queue(maxsize=3)
    over = threading.Event()

    def fill() -> None:
        for index in range(len(lessons)):
            lesson = lessons[index]
            while not over.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(lesson, timeout=0.2)
                    break
            if over.is_set():
                return

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        for _ in range(len(lessons)):
            yield ready.get()
    finally:
        over.set()
        thread.join()


def _by_processes(lessons: _Lessons, count: int) -> Made:
    loader = DataLoader(
        lessons,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=count,
        multiprocessing_context='fork',  # all share the pictures in memory
        worker_init_fn=_leave_signals,
        timeout=_TOO_LONG,  # a lesson that cannot be handed over never comes
    )
    try:
        yield from loader
    except Exception as error:  # noqa: BLE001  # a worker was killed, or is late
        yield error


def _as_it_is(lesson: Any) -> Any:
    return lesson


def _leave_signals(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal: the one that learns ends the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
