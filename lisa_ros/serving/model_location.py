# SPDX-License-Identifier: Apache-2.0
"""Which folder the name of a model leads to, and the version of its files. Any thread.

The name may be a link that is moved to new weights at any time. A plan keeps the folder that it
led to when the version was computed: a replica that starts later loads that one, so that its
answers name the weights that made them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.model.checksums import file_checksums, folder_checksum
from lisa_ros.model.file_checks import exists
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.perception.backend import Backend, LoadOptions
from lisa_ros.perception.registry import find_loader, load_backend
from lisa_ros.serving.wire_format import Served

_log = logging.getLogger(__name__)


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

    Args:
        model: as `registry.load_backend` takes it.
        folder: of its `ModelLocation`; '', or none of this machine: the model's name counts.
        options: as `registry.load_backend` takes them.

    Raises:
        CheckpointError, SettingsError: as `registry.load_backend`.
    """
    name = _name_to_load(model, folder)
    backend = load_backend(name, options)
    planned = _name_to_load(model, folder)
    if planned == name:
        return backend
    del backend  # a link was moved meanwhile: its files may be of two models
    return load_backend(planned, options)


def _name_to_load(model: str, folder: str) -> str:
    _, name = find_loader(model)
    if not folder or _local_folder(name) == folder or not exists(Path(folder)):
        return model
    _log.warning('%s leads elsewhere by now; %s is loaded until an update', model, folder)
    return f'{model.removesuffix(name)}{folder}'


def _local_folder(name: str) -> str:
    """Return the absolute path of a folder or file, without links; '': there is none."""
    path = Path(name).expanduser()
    return os.path.realpath(path) if exists(path) else ''


def _version(source: Path) -> str:
    return folder_checksum(file_checksums(source))
