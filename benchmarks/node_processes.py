# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, node, model process, cameras and clients: what they use and leave.

All of them carry the name of the run in their environment, so that each one is found again, also
one whose parent has ended.

Threads: `RespawnedNode` starts the node again on a thread of its own; all else is one thread's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rclpy
from rclpy.signals import SignalHandlerOptions

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lisa_ros.ros.node_process import isolate_ros_graph, write_parameters  # noqa: E402

CENTRE = 'centre:'  # as --model: answers at once, without weights
RESPAWN_DELAY = 0.2  # as in launch/lisa.launch.py [s]
SHARED_MEMORY = Path('/dev/shm')  # noqa: S108  # where Fast DDS keeps its segments on Linux
CAMERA = (sys.executable, str(ROOT / 'benchmarks' / 'rgbd_camera.py'))  # command line
_LOCK_SUFFIX = '_el'  # of the file that the owner of a segment holds locked
_RUN_VARIABLE = 'LISA_ROS_RUN'
_WORKER = 'lisa_ros.perception.worker_process'  # in the command line of a model process
_NODE = 'from lisa_ros import startup; startup.run_node("lisa_ros.ros.node")'  # as lisa_node does
_CENTRE_NODE = (
    'import sys; sys.path[:0] = sys.argv[1:3]; del sys.argv[1:3]; '
    'from lisa_ros import native_settings; native_settings.apply(); import centre_backend; '
    + _NODE
)


@dataclass(frozen=True)
class Usage:
    """What a process holds at one moment."""

    resident: float  # RSS [MiB]
    memory: float  # RSS without files: what is resident of libraries depends on others, too [MiB]
    threads: int
    handles: int  # open file descriptors


def usage(pid: int) -> Usage:
    """Return what a process holds.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    process = psutil.Process(pid)
    kibibytes = {
        name: int(value.split()[0])
        for name, _, value in (
            line.partition(':') for line in Path(f'/proc/{pid}/status').read_text().splitlines()
        )
        if name in ('VmRSS', 'RssAnon', 'RssShmem')
    }
    memory = kibibytes['RssAnon'] + kibibytes['RssShmem']
    handles = process.num_fds()
    return Usage(kibibytes['VmRSS'] / 1024, memory / 1024, process.num_threads(), handles)


@dataclass(frozen=True)
class Sample:
    """What a node and its model process hold after a number of messages or queries."""

    count: int
    node: Usage
    model: Usage


def sample(count: int, node: int) -> Sample:
    """Measure a node, by its process id, and its model process."""
    model = model_process(node)
    assert model is not None, 'the node has no model process'
    return Sample(count, usage(node), usage(model))


def join_graph() -> None:
    """Join a ROS graph of this process and its children alone.

    SIGTERM ends this process by SystemExit, so that it ends its children first.
    """
    isolate_ros_graph()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def resting_sample(count: int, node: int) -> Sample:
    """Measure as `sample`, with the fewest threads and handles of a second: leaks stay."""
    samples = []
    for _ in range(5):
        time.sleep(0.2)
        samples.append(sample(count, node))
    return Sample(
        count, _fewest([item.node for item in samples]), _fewest([item.model for item in samples])
    )


def _fewest(usages: Sequence[Usage]) -> Usage:
    return dataclasses.replace(
        usages[-1],
        threads=min(item.threads for item in usages),
        handles=min(item.handles for item in usages),
    )


def memory_growth(samples: Sequence[Sample], process: str) -> float:
    """Return how much the memory of "node" or "model" grows over the second half, as a share.

    A line is fitted to the second half, so that single samples do not count much.
    """
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return float('nan')
    memory = [getattr(item, process).memory for item in half]
    slope, start = np.polyfit(np.linspace(0, 1, len(memory)), memory, 1)
    return float(slope / start)


class Run:
    """The processes and the shared memory of one run."""

    def __init__(self) -> None:
        """Mark this process; processes that it starts from now on belong to the run."""
        self._name = uuid.uuid4().hex
        self._segments: dict[str, str] = {}  # names in SHARED_MEMORY, and whose they are
        os.environ[_RUN_VARIABLE] = self._name

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the run, without this one."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and self._is_member(process)
        ]

    def _is_member(self, process: psutil.Process) -> bool:
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            return is_alive and process.environ().get(_RUN_VARIABLE) == self._name
        except psutil.Error:  # it has ended, or belongs to another user
            return False

    def note_segments(self) -> None:
        """Remember the shared memory that belongs to the processes of the run now."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                owner = f'{process.pid} {" ".join(process.cmdline()[:3])[-60:]}'
                self._segments |= dict.fromkeys(_segments(process), owner)

    def abandoned_segments(self) -> dict[str, str]:
        """Return shared memory of this run whose processes have ended, and whose it was."""
        living = set().union(*map(_segments, self.processes()))
        return {
            name: owner
            for name, owner in self._segments.items()
            if name not in living and (SHARED_MEMORY / name).exists()
        }


def _segments(process: psutil.Process) -> set[str]:
    """Return the names of the segments in SHARED_MEMORY that a process has made.

    It holds a lock on the file NAME_el of each. Ports, of 50 kB, belong to all processes of a
    domain and are left out.
    """
    try:
        names = [Path(file.path).name for file in process.open_files()]
    except psutil.Error:  # it has ended
        return set()
    return {
        name.removesuffix(_LOCK_SUFFIX)
        for name in names
        if name.endswith(_LOCK_SUFFIX) and '_port' not in name
    }


def workers(node: int) -> list[int]:
    """Return the process ids of a node's model process and of its standby, in this order."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if _WORKER in ' '.join(process.cmdline()) and _belongs_to(process, node):
                found.append((process.create_time(), process.pid))
    return [pid for _, pid in sorted(found)]


def _belongs_to(worker: psutil.Process, node: int) -> bool:
    """Return whether a node has started a process, or has taken it over: they share a pipe."""
    return worker.ppid() == node or bool(_pipes(worker.pid) & _pipes(node))


def _pipes(pid: int) -> set[str]:
    """Return the pipes of a process, without those of its output."""
    pipes = set()
    for descriptor in Path(f'/proc/{pid}/fd').iterdir():
        with contextlib.suppress(OSError):
            if int(descriptor.name) > 2 and (target := descriptor.readlink().name)[:4] == 'pipe':
                pipes.add(target)
    return pipes


def model_process(node: int) -> int | None:
    """Return the process id of the model process of a node; None while there is none."""
    return next(iter(workers(node)), None)


def node_command(folder: Path, model: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs lisa_node.

    Args:
        folder: receives the parameter file.
        model: CENTRE, or what the parameter `model` accepts.
        parameters: of the node, beside `model`.
    """
    program = [sys.executable, '-c', _NODE]
    if model == CENTRE:
        program = [sys.executable, '-c', _CENTRE_NODE, str(ROOT), str(ROOT / 'benchmarks')]
    path = write_parameters(folder / 'parameters.yaml', {'model': model, **parameters})
    return [*program, '--ros-args', '--params-file', str(path)]


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a process with its output in a file; end it at the end, by SIGINT at first."""
    with log.open('a', encoding='utf-8') as output:
        process = subprocess.Popen(  # noqa: S603  # our own programs, no shell
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> int:
    """End a process by SIGINT, and by SIGKILL after 15 s; return its status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def kill(process: subprocess.Popen) -> float:
    """Kill a process by SIGKILL, wait for its end; return when [s, monotonic]."""
    killed_at = time.monotonic()
    process.kill()
    process.wait()
    return killed_at


class RespawnedNode:
    """lisa_node, started again after RESPAWN_DELAY whenever it ends, as the launch file does."""

    def __init__(self, command: Sequence[str], log: Path):
        """Start it; its output goes to the end of a file."""
        self._command, self._log = command, log
        self._is_stopping = threading.Event()
        self._process = self._start()
        self.exits: list[tuple[float, int]] = []  # time [s, monotonic] and status of each end
        self._thread = threading.Thread(target=self._respawn, name='respawn', daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen:
        with self._log.open('a', encoding='utf-8') as output:
            return subprocess.Popen(  # noqa: S603
                self._command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
            )

    def _respawn(self) -> None:
        while not self._is_stopping.is_set():
            status = self._process.wait()
            self.exits.append((time.monotonic(), status))
            if not self._is_stopping.wait(RESPAWN_DELAY):
                self._process = self._start()

    @property
    def pid(self) -> int:
        """Process id of the present node."""
        return self._process.pid

    def kill(self) -> float:
        """Kill the node by SIGKILL; return when [s, monotonic]."""
        killed_at = time.monotonic()
        self._process.kill()
        return killed_at

    def stop(self) -> int:
        """End the node for good; return its exit status."""
        self._is_stopping.set()
        status = end(self._process)
        self._thread.join(5)
        return status
