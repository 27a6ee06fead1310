# SPDX-License-Identifier: Apache-2.0
"""Where the files of a model may come from and how large they may be, from its load options."""

from __future__ import annotations

from lisa_ros.model.checksums import Lock
from lisa_ros.model.limits import Limits
from lisa_ros.model.origin import Origin
from lisa_ros.perception.backend import LoadOptions


def origin_of(options: LoadOptions) -> Origin:
    """Return where the model's files may come from."""
    lock = Lock.read(options.lock) if options.lock else None
    return Origin(options.allow_download, options.sha256, lock)


def limits_of(options: LoadOptions) -> Limits:
    """Return the largest model that is loaded."""
    default = Limits()
    return Limits(options.max_input_side or default.input_side, options.max_model_size)
