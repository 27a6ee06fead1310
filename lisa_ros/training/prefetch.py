# SPDX-License-Identifier: Apache-2.0
"""Draws the batches of the next steps while the model trains, in a thread or in processes.

On a CPU one thread is enough: a training step takes a second, drawing its batch a tenth of that. A
GPU trains on three hundred images in a second, and drawing these takes a dozen cores. A thread and
processes give the same batches in the same order.
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

BatchStream = Generator[Any | Exception, None, None]

_BATCH_TIMEOUT = 600  # [s]


def prefetch_batches(draw: Callable[[int], Any], steps: range, workers: int = 0) -> BatchStream:
    """Yield the batch of each step, or the exception that drawing it raised.

    Close the generator to end the thread or the processes.

    Args:
        draw: returns the batch of a step; it must depend only on the step. It runs in a thread, or
            in forked processes, where it must not use a GPU.
        steps: the steps, in order.
        workers: number of processes; 0: a thread. Each process keeps two batches ready, in shared
            memory (/dev/shm).
    """
    batches = _StepBatches(draw, steps)
    return _from_processes(batches, workers) if workers else _from_thread(batches)


class _StepBatches(Dataset):
    """The batch of each step, or the exception that drawing it raised."""

    def __init__(self, draw: Callable[[int], Any], steps: range):
        self._draw, self._steps = draw, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Any | Exception:
        try:
            return self._draw(self._steps[index])
        except Exception as error:  # noqa: BLE001  # the consumer raises it again
            if get_worker_info() and not isinstance(error, LisaError):
                traceback.print_exc()  # the traceback is not passed to the main process
            return error


def _from_thread(batches: _StepBatches) -> BatchStream:
    ready: queue.Queue[Any | Exception] = queue.Queue(maxsize=3)
    closed = threading.Event()

    def fill() -> None:
        for index in range(len(batches)):
            batch = batches[index]
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(batch, timeout=0.2)
                    break
            if closed.is_set():
                return

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        for _ in range(len(batches)):
            yield ready.get()
    finally:
        closed.set()
        thread.join()


def _from_processes(batches: _StepBatches, count: int) -> BatchStream:
    loader = DataLoader(
        batches,
        batch_size=None,
        collate_fn=_identity,
        num_workers=count,
        multiprocessing_context='fork',  # forked processes share the images in memory
        worker_init_fn=_ignore_signals,
        timeout=_BATCH_TIMEOUT,  # a batch that cannot be passed between processes never arrives
    )
    try:
        yield from loader
    except Exception as error:  # noqa: BLE001  # a worker was killed or timed out
        yield error


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the trainer ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
