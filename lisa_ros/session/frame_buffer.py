# SPDX-License-Identifier: Apache-2.0
"""The newest messages of a camera, matched by stamp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LOOK_BACK = 500_000_000  # how far before the newest image one with depth is looked for [ns]


@dataclass(frozen=True)
class SyncedMessages:
    """What one request is answered about: messages as they came, not yet converted."""

    stamp: int  # of the image [ns]
    image: Any
    depth: Any | None = None
    camera_info: Any | None = None
