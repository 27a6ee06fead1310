# SPDX-License-Identifier: Apache-2.0
"""Check the shared memory that Fast DDS sends large messages through."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.middleware import uses_fast_dds, uses_shared_memory
from lisa_ros.health.verdict import Level

FOLDER = Path('/dev/shm')  # noqa: S108  # where Linux has it
_MIB = 2**20
_PER_PROCESS = 32 * _MIB  # of a node with ros/fastdds.xml
_SMALL = 256 * _MIB  # node, camera and model; Docker's default is 64 MiB
_NAME = 'shared memory'


@dataclass(frozen=True)
class SharedMemoryFacts:
    """The state of /dev/shm."""

    size: int  # [bytes]
    free: int  # [bytes]
    foreign_ports: tuple[str, ...] = ()  # of Fast DDS, that this user may not write
    segments: int = 0  # bytes in files of Fast DDS


def check_shared_memory(
    folder: Path = FOLDER, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """Return the findings about the shared memory of Fast DDS, if that uses it."""
    if not uses_fast_dds(environment):
        return [Finding(_NAME, Level.OK, 'not checked: Fast DDS is not in use')]
    if not uses_shared_memory(environment):
        observed = f'{FOLDER} is not used: messages go through the network stack'
        return [Finding(_NAME, Level.OK, observed)]
    facts = shared_memory_facts(folder)
    if facts is None:
        observed = f'{folder} is missing: messages go through the network stack'
        return [Finding(_NAME, Level.WARN, observed, 'mount a tmpfs on /dev/shm')]
    return [judge_shared_memory(facts)]


def shared_memory_facts(folder: Path) -> SharedMemoryFacts | None:
    """Read the state of a folder; None if there is no such folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    ports, segments = [], 0
    for path in folder.glob('*fastdds*'):
        with contextlib.suppress(OSError):  # it has just been removed
            segments += path.stat().st_blocks * 512
            if 'port' in path.name and not os.access(path, os.R_OK | os.W_OK):
                ports.append(path.name)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    return SharedMemoryFacts(size, free, tuple(sorted(ports)), segments)


def judge_shared_memory(facts: SharedMemoryFacts) -> Finding:
    """Return the finding about the shared memory."""
    observed = f'{facts.free // _MIB} of {facts.size // _MIB} MiB of /dev/shm are free'
    if facts.free < _PER_PROCESS:
        cure = 'end unused nodes and run `fastdds shm clean`; in a container: --shm-size=1g'
        level = Level.ERROR
        return Finding(_NAME, level, f'{observed}; a node needs {_PER_PROCESS // _MIB}', cure)
    if facts.foreign_ports:
        names = ', '.join(facts.foreign_ports[:3])
        observed = f'{names} in /dev/shm belong to another user: nodes of {_user()} lose messages'
        cure = 'run all nodes as one user; remove the files when no node of the other user runs'
        return Finding(_NAME, Level.WARN, observed, cure)
    if facts.size < _SMALL:
        observed = f'{FOLDER} has {facts.size // _MIB} MiB; expected {_SMALL // _MIB} or more'
        return Finding(_NAME, Level.WARN, observed, 'in a container: --shm-size=1g, or --ipc=host')
    return Finding(_NAME, Level.OK, f'{observed}, {facts.segments // _MIB} used by Fast DDS')


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.geteuid())
