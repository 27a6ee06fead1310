# SPDX-License-Identifier: Apache-2.0
"""Where the files of a model may come from and how large they may be, from its load options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checksums import Lock
from lisa_ros.model.limits import Limits
from lisa_ros.model.origin import Origin, cached_folder
from lisa_ros.perception.backend import LoadOptions

VLM_SCHEME = 'vlm+sam:'  # of a vision-language model with SAM 2, before its name
DEFAULT_SEGMENTER = 'facebook/sam2.1-hiera-large'


def origin_of(options: LoadOptions) -> Origin:
    """Return where the model's files may come from."""
    lock = Lock.read(options.lock) if options.lock else None
    return Origin(options.allow_download, options.sha256, lock)


def limits_of(options: LoadOptions) -> Limits:
    """Return the largest model that is loaded."""
    default = Limits()
    return Limits(options.max_input_side or default.input_side, options.max_model_size)


def segmenter_folder(name: str | Path | None, origin: Origin, may_download: bool) -> Path:
    """Return the folder of SAM 2.

    Args:
        name: the user's choice, which may be downloaded; None: DEFAULT_SEGMENTER.
        origin: of the vision-language model; its lock file is that of SAM 2, too.
        may_download: the default one.

    Raises:
        CheckpointError: there is no such model, or the default one may not be downloaded.
    """
    if name is None and not may_download and cached_folder(DEFAULT_SEGMENTER) is None:
        raise CheckpointError(
            f'segmenter_model is not set, and its default {DEFAULT_SEGMENTER} is not in the local '
            'cache and is not downloaded without permission: give a folder with segmenter_model '
            '(--segmenter-model), or allow the download with allow_download:=true '
            '(--allow-download)'
        )
    # the checksum is that of the vision-language model
    return dataclasses.replace(origin, sha256=None).model_folder(name or DEFAULT_SEGMENTER)
