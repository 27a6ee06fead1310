# SPDX-License-Identifier: Apache-2.0
"""The re-query policy: when the last query is asked again while its objects are tracked.

`TrackingWorker` asks the policy after each frame. Any thread.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

from lisa_ros.tracking.tracker import TrackingState


class RequeryRule(enum.Enum):
    """When the last query is asked again while its objects are tracked."""

    DRIFT = 'drift'  # when a mask has drifted, an object is lost or nothing was found
    TIMER = 'timer'  # after each period
    NEVER = 'never'


@dataclass(frozen=True)
class RequeryPolicy:
    """Decides when the last query is asked again, so that tracking errors do not add up."""

    rule: RequeryRule
    period: float  # minimum time between an answer and the repeated query [s]
    max_drift: float  # drift of a mask above which the query is repeated [0..1]

    def is_due(self, state: TrackingState | None, answered_at: float) -> bool:
        """Return whether to ask the query again.

        Args:
            state: where the objects are now; None if the tracker has lost its reference.
            answered_at: when the last answer came or was asked for again [s, monotonic].
        """
        if self.rule is RequeryRule.NEVER or time.monotonic() - answered_at < self.period:
            return False
        return self.rule is RequeryRule.TIMER or state is None or self._has_drifted(state)

    def _has_drifted(self, state: TrackingState) -> bool:
        """Return whether an object is lost, none was found, or a mask has drifted too far."""
        all_tracked = len(state.tracked) > 0 and bool(state.tracked.all())
        return not all_tracked or float(state.drift.max()) > self.max_drift
