# SPDX-License-Identifier: Apache-2.0
"""Load a model by its name: LISA, or a backend that is registered under a scheme.

"lisa-tabletop", a folder and a hub id are LISA models. "scheme:rest" goes to the loader of that
scheme, such as "scripted:" of the tests. This module imports neither torch nor transformers; the
LISA backend is imported when its first model is loaded.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from lisa_ros.errors import SettingsError
from lisa_ros.perception.backend import Backend, BackendLoader, LoadOptions

_SCHEME = re.compile(r'[a-z][a-z0-9+.-]+')  # two letters or more: "C:" is a drive
_loaders: dict[str, BackendLoader] = {}


def register_backend(scheme: str, loader: BackendLoader) -> None:
    """Let `load_backend` load models named "scheme:rest"; replaces an earlier loader.

    Args:
        scheme: lower-case letters, digits, "+", "." and "-", without the colon.
        loader: called with the rest of the name and the options.
    """
    if not _SCHEME.fullmatch(scheme):
        raise SettingsError(f'{scheme!r} is not a scheme: write it as "vlm+sam", no colon')
    _loaders[scheme] = loader


def load_backend(model: str, options: LoadOptions) -> Backend:
    """Load a model.

    Args:
        model: "lisa-tabletop", a folder, a hub id or "scheme:rest".
        options: device, precision and companions; "" and "auto" mean None, which leaves the
            choice to the backend.

    Raises:
        CheckpointError: the files are not a whole model.
        SettingsError: the scheme, the device, the precision or the template is not available.
    """
    options = LoadOptions(
        **{
            name: None if value in ('', 'auto') else value
            for name, value in dataclasses.asdict(options).items()
        }
    )
    scheme, colon, rest = model.partition(':')
    if not colon or not _SCHEME.fullmatch(scheme) or Path(model).exists():
        return _load_lisa(model, options)
    if scheme not in _loaders:
        known = ', '.join(f'"{name}:"' for name in sorted(_loaders)) or 'none'
        raise SettingsError(
            f'model {model!r}: no folder has this name, and "{scheme}:" is not a registered '
            f'scheme (registered: {known}); use lisa-tabletop, a folder or a hub id'
        )
    return _loaders[scheme](rest, options)


def _load_lisa(model: str, options: LoadOptions) -> Backend:
    from lisa_ros.perception.lisa_backend import LisaBackend  # torch takes seconds to import

    return LisaBackend.load(model, options)
