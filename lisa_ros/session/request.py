# SPDX-License-Identifier: Apache-2.0
"""One command on its way to an answer."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lisa_ros.results import Dialogue, Segmentation, Status
from lisa_ros.session.frame_buffer import SyncedMessages


@dataclass(frozen=True, eq=False)
class Request:
    """One command on its way; `cancelled` is set to stop it.

    With a frame of its own it waits for no image.
    """

    text: str
    frame: SyncedMessages | None = None
    tag: Any = None  # whatever the asker wants back with the answer
    dialogue: str | None = None  # whose turns it follows; None: it stands alone
    max_age: float = 0.0  # of the frame when the model begins [s]; 0: any
    patient: bool = False  # a goal: none that comes later supersedes it
    standing: bool = False  # of a standing query: it makes room for others
    turns: Dialogue | None = None  # the very turns that it follows, whatever was said since
    since: float = field(default_factory=time.monotonic)  # when it came [s, monotonic]
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class RequestCounters:
    """What has happened since the session began; read by the diagnostics."""

    images: int = 0
    commands: int = 0
    answered: int = 0  # FOUND and NOT_FOUND
    failed: int = 0
    cancelled: int = 0  # superseded ones apart
    superseded: int = 0
    rejected: int = 0  # goals for which there was no room
    without_depth: int = 0  # requests that found no depth within the tolerance


def unanswered(request: Request, status: Status, reason: str) -> Segmentation:
    """Return a result without answer and masks."""
    none = np.zeros((0, 0, 0), np.float32)
    return Segmentation(
        query=request.text,
        answer='',
        answer_raw='',
        token_ids=(),
        masks=none.astype(bool),
        mask_logits=none,
        scores=np.zeros(0, np.float32),
        status=status,
        reason=reason,
    )
