# SPDX-License-Identifier: Apache-2.0
"""Load a model by its name: LISA, or a backend that is registered under a scheme.

"lisa-tabletop", a folder and a hub id are LISA models. "vlm+sam:rest" is a vision-language model
with SAM 2, "http://server:8000" (or https) a model on a server. Any other "scheme:rest" goes to
the loader of that scheme. An installed package provides a loader as an entry point of the group
`lisa_ros.backends`:

    [project.entry-points."lisa_ros.backends"]
    vlm = "my_package.backend:load"

This module imports neither torch nor transformers; the LISA backend is imported when its first
model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from importlib import metadata

from lisa_ros import garbage_collection
from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command, local_model_packages
from lisa_ros.perception.backend import Backend, BackendLoader, LoadOptions

_SCHEME = re.compile(r'[a-z][a-z0-9+.-]+')  # two letters or more: "C:" is a drive
_ENTRY_POINTS = 'lisa_ros.backends'  # group of the loaders in installed packages, by scheme


def register_backend(scheme: str, loader: BackendLoader) -> None:
    """Let `load_backend` load models named "scheme:rest" in this process.

    It replaces an earlier loader and goes before an entry point. The node and the workers of Ray
    are other processes: there a scheme needs an entry point.

    Args:
        scheme: lower-case letters, digits, "+", "." and "-", without the colon.
        loader: called with the rest of the name and the options.
    """
    if not _SCHEME.fullmatch(scheme):
        raise SettingsError(f'{scheme!r} is not a scheme: write it as "vlm+sam", no colon')
    _loaders[scheme] = loader


def registered_backends() -> dict[str, BackendLoader]:
    """Return the loaders of this process by scheme, for another process to register."""
    return dict(_loaders)


def load_backend(model: str, options: LoadOptions) -> Backend:
    """Load a model.

    Args:
        model: "lisa-tabletop", a folder, a hub id or "scheme:rest".
        options: device, precision and companions; "" and "auto" mean None, which leaves the
            choice to the backend.

    Raises:
        CheckpointError: the files are not a whole model.
        SettingsError: the scheme, the device, the precision or the template is not available, or
            the package of the scheme cannot be imported.
    """
    loader, name = find_loader(model)
    return loader(name, without_auto(options))


def find_loader(model: str) -> tuple[BackendLoader, str]:
    """Return the loader of a model, and the model's name without the scheme.

    Raises:
        SettingsError: the scheme is not registered.
    """
    scheme, colon, rest = model.partition(':')
    if not colon or not _SCHEME.fullmatch(scheme) or os.path.lexists(model):
        return load_lisa, model
    installed = metadata.entry_points(group=_ENTRY_POINTS)
    entry_points = {entry.name: entry for entry in (*installed, *_SERVED)}
    if scheme not in _loaders and scheme in entry_points:
        _loaders[scheme] = _import_loader(entry_points[scheme])
    if scheme not in _loaders:
        names = sorted({*_loaders, *entry_points})
        known = ', '.join(f'"{name}:"' for name in names) or 'none'
        raise SettingsError(
            f'model {model!r}: no folder has this name, and "{scheme}:" is not a registered '
            f'scheme (registered: {known}); use lisa-tabletop, a folder or a hub id'
        )
    return _loaders[scheme], rest


def _import_loader(entry_point: metadata.EntryPoint) -> BackendLoader:
    """Return the loader of an entry point.

    Raises:
        SettingsError: its package cannot be imported.
    """
    try:
        return entry_point.load()
    except Exception as error:  # the import of a package may raise anything
        if isinstance(error, ModuleNotFoundError) and entry_point in _SERVED:
            raise SettingsError(
                f'a model on a server needs {error.name}, which is not installed: '
                f'{install_command("thin")}'
            ) from error
        raise SettingsError(
            f'scheme "{entry_point.name}:": {entry_point.value} cannot be imported '
            f'({type(error).__name__}: {error}); install its package again, or correct its entry '
            f'point in the group {_ENTRY_POINTS}'
        ) from error


def without_auto(options: LoadOptions) -> LoadOptions:
    """Return the options with None instead of "" and "auto"."""
    return LoadOptions(
        **{
            name: None if value in ('', 'auto') else value
            for name, value in dataclasses.asdict(options).items()
        }
    )


def load_vlm_sam(model: str, options: LoadOptions) -> Backend:
    """Load a vision-language model and SAM 2; see `VlmBackend.load`."""
    with garbage_collection.paused(), local_model_packages(f"model 'vlm+sam:{model}'"):
        from lisa_ros.perception.vlm_backend import VlmBackend  # torch takes seconds to import

        return VlmBackend.load(model, options)


def load_lisa(model: str, options: LoadOptions) -> Backend:
    """Load a LISA; see `LisaBackend.load`.

    Raises:
        SettingsError: it should run at a server, which gives no masks.
    """
    if options.vlm_url:
        raise SettingsError(
            f'vlm_url is for model vlm+sam:NAME, and model is {model!r}: a LISA runs on this '
            'machine alone'
        )
    with garbage_collection.paused(), local_model_packages(f'model {model!r}'):
        from lisa_ros.perception.lisa_backend import LisaBackend  # torch takes seconds to import

        return LisaBackend.load(model, options)


# as entry points: a colcon workspace installs no metadata
_SERVED = tuple(
    metadata.EntryPoint(scheme, f'lisa_ros.serving.served_backend:load_{scheme}', _ENTRY_POINTS)
    for scheme in ('http', 'https')
)
_loaders: dict[str, BackendLoader] = {'vlm+sam': load_vlm_sam}
