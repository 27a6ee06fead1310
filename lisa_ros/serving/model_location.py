# SPDX-License-Identifier: Apache-2.0
"""Which folder the name of a model leads to, and the version of its files. Any thread.

The name may be a link that is moved to new weights at any time. A plan keeps the folder that it
led to when the version was computed: a replica that starts later loads that one, so that its
answers name the weights that made them.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checksums import file_checksums, folder_checksum, local_name
from lisa_ros.model.file_checks import exists
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.perception.backend import Backend, LoadOptions, SupervisedBackend
from lisa_ros.perception.registry import find_loader, load_backend
from lisa_ros.serving.wire_format import Served

_log = logging.getLogger(__name__)
_link_folders: list[tempfile.TemporaryDirectory[str]] = []  # deleted at the end of this process


@dataclass(frozen=True)
class ModelLocation:
    """What the name of a model leads to at one moment."""

    served: Served  # name and version, as clients see them
    folder: str = ''  # or file, absolute and without links; '': no local one, such as a hub id


def locate(model: str) -> ModelLocation:
    """Return what a model leads to now; its version is the one that `lisa-ros checksum` prints.

    Args:
        model: as `registry.load_backend` takes it.

    Raises:
        CheckpointError: a file of the model cannot be read.
        SettingsError: its scheme is not registered.
    """
    _, name = find_loader(model)
    bundled = resolve_bundled_model(name)
    if bundled != name:
        return ModelLocation(Served(model, _version(Path(bundled))))
    folder = _local_folder(name)
    if not folder:
        return ModelLocation(Served(model))
    shown = f'{model.removesuffix(name)}{Path(folder).name}'
    return ModelLocation(Served(shown, _version(Path(folder))), folder)


def load_located(model: str, folder: str, options: LoadOptions) -> Backend:
    """Load a model: by its own name, or the folder that it led to if a link leads elsewhere now.

    That folder is loaded through a link of the same last name, which is there as long as this
    process: a model may read files later, too.

    Args:
        model: as `registry.load_backend` takes it.
        folder: of its `ModelLocation`; '', or none of this machine: the model's name counts.
        options: as `registry.load_backend` takes them.

    Raises:
        CheckpointError, SettingsError: as `registry.load_backend`.
    """
    if not _leads_elsewhere(model, folder):
        backend = load_backend(model, options)
        if not _leads_elsewhere(model, folder):
            return backend
        if isinstance(backend, SupervisedBackend):
            backend.close()
        del backend  # a link was moved meanwhile: its files may be of two models
    _log.warning('%s leads elsewhere by now; %s is loaded until an update', model, folder)
    _, name = find_loader(model)
    try:
        _link_folders.append(tempfile.TemporaryDirectory(prefix='lisa_ros_'))
        link = Path(_link_folders[-1].name, local_name(name))  # lock files and profiles know it
        link.symlink_to(folder)
    except OSError as error:
        raise CheckpointError(
            f'{folder}: no link to it can be made ({error}); set TMPDIR to a folder with space'
        ) from error
    return load_backend(f'{model.removesuffix(name)}{link}', options)


def _leads_elsewhere(model: str, folder: str) -> bool:
    """Return whether a model is a link that was moved from a folder which is still there."""
    _, name = find_loader(model)
    return bool(folder) and _local_folder(name) != folder and exists(Path(folder))


def _local_folder(name: str) -> str:
    """Return the absolute path of a folder or file, without links; '': there is none."""
    path = Path(name).expanduser()
    return os.path.realpath(path) if exists(path) else ''


def _version(source: Path) -> str:
    return folder_checksum(file_checksums(source))
