# SPDX-License-Identifier: Apache-2.0
"""The environment of Ray, set before it is imported: no telemetry, nobody else in our clusters.

Ray's ports accept work from whoever reaches them. A cluster that a command starts for itself
listens on the loopback device only, and only the processes of that command know its token.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

_TOKENS = ('RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH')
_OWN_CLUSTER_ADDRESS = '127.0.0.1'  # of its only node
_folders: list[str] = []  # of the clusters of this process


def prepare_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported; what the user has set stays.

    A program that has imported Ray before keeps Ray's own defaults: any address, no token.

    Args:
        address: of a cluster that runs already; None: the command starts one of its own.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # no telemetry
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
    os.environ.setdefault('RAY_SERVE_LOG_TO_STDERR', '0')
    os.environ.setdefault('RAY_DISABLE_FAILURE_SIGNAL_HANDLER', '1')  # SIGTERM is ours
    # a Ray that is imported has read its settings, and would not agree with its own cluster
    is_late = 'ray' in sys.modules
    if address is not None or is_late:
        return
    # without it Ray takes the address of a network device, as for a cluster of machines
    os.environ.setdefault('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', '0')
    # a program that has used Ray, and starts this one, leaves the mode behind, and no token
    has_token = any(name in os.environ for name in _TOKENS)
    if os.environ.setdefault('RAY_AUTH_MODE', 'token') == 'token' and not has_token:
        os.environ['RAY_AUTH_TOKEN'] = secrets.token_hex(32)


def own_cluster_options() -> dict[str, object]:
    """Return the options of `ray.init` for a cluster that ends with this process.

    Its folder is a new one: Ray keeps the logs of each cluster, and programs look for a running
    cluster in the folder that they share. `delete_cluster_folders` deletes it, at the latest when
    the process ends; its path is short, since those of sockets are limited.
    """
    folder = tempfile.mkdtemp(prefix='ray-', dir=os.environ.get('RAY_TMPDIR'))
    _folders.append(folder)
    atexit.register(delete_cluster_folders)
    return {
        'address': 'local',
        'include_dashboard': False,
        '_node_ip_address': _OWN_CLUSTER_ADDRESS,
        '_temp_dir': folder,
    }


def exit_with_own_cluster() -> NoReturn:
    """End this process at once, and with it a cluster of its own, while a thread calls Ray.

    Ray's calls can neither be interrupted nor be left behind in a thread: Python would wait for
    it, until a large model is loaded.
    """
    for process in _descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            os.kill(process, signal.SIGKILL)
    delete_cluster_folders()
    os._exit(0)


def _descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and theirs (Linux)."""
    texts = []
    for file in Path(f'/proc/{process}/task').glob('*/children'):
        with contextlib.suppress(OSError):  # the thread has ended
            texts.append(file.read_text())
    children = [int(word) for text in texts for word in text.split()]
    return [*children, *(each for child in children for each in _descendants(child))]


def delete_cluster_folders() -> None:
    """Delete the folders of clusters that have been shut down."""
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)
