# SPDX-License-Identifier: Apache-2.0
"""Judge whether a frame is new enough to answer about, by its arrival and by its stamp.

A stamp alone cannot be trusted. A camera with a wrong clock stamps the future, and its last image
would stay "new" after it has died; some cameras leave the stamp 0. The arrival alone does not show
how long an image was under way. So both are checked:

    limit               arrival   stamp
    max_age of a goal   yes       yes, in both directions
    max_image_age       yes       yes, unless it differs from the node's clock by more than a day

A bag or a simulation without use_sim_time has stamps of another day: then the node's own limit
leaves them out, and only the diagnostics report the two clocks.

Arrivals are measured on a clock that pauses with a simulation: the last image of a paused one can
be asked about. A simulation that has ended is no paused one. Nobody publishes /clock any more, so
its last image ages by the time of the computer. Any thread.
"""

from __future__ import annotations

import time
from typing import Protocol

from lisa_ros.session.frame_buffer import SyncedMessages

SECONDS_PER_DAY = 86400.0
MAX_STAMP_AGE = 1.5  # an image that arrives with an older stamp is from a wrong clock [s]
_SYNCHRONIZE = 'synchronize the clocks of camera and node (chrony, PTP)'
_USE_SIM_TIME = 'for a bag, set use_sim_time and play it with --clock'
STAMP_IS_CONSTANT = 'its stamp does not change: stamp each image with the time it was taken'
_NO_CLOCK = (
    'use_sim_time is on, but /clock has no message: start the simulation, or play the bag with '
    '--clock'
)


class Clock(Protocol):
    """The clock that stamps the images, and one to measure durations."""

    def now_ns(self) -> int:
        """Return the present time [ns]; 0: the time of a simulation that has not started."""

    def steady(self) -> float:
        """Return a time to measure durations with [s]; it pauses with a simulation."""

    def has_ended(self) -> bool:
        """Return whether this is the time of a simulation that ran and has gone."""


class SystemClock:
    """The clock of the computer, seconds since 1970."""

    def now_ns(self) -> int:
        """Return the present time [ns]."""
        return time.time_ns()

    def steady(self) -> float:
        """Return the monotonic time [s]."""
        return time.monotonic()

    def has_ended(self) -> bool:
        """Return False: it never ends."""
        return False


def stamp_age(stamp: int, clock: Clock) -> float:
    """Return how much older than now a stamp [ns] is [s]; negative: it is in the future."""
    return (clock.now_ns() - stamp) / 1e9


def clock_hint(age: float, clock: Clock, is_constant: bool = False) -> str:
    """Return the cure for a stamp that cannot be right.

    Args:
        age: of the stamp [s]; negative: it is in the future.
        clock: that of the stamp.
        is_constant: the camera repeats the stamp.
    """
    if clock.now_ns() == 0:
        return _NO_CLOCK
    if is_constant:
        return STAMP_IS_CONSTANT
    return _USE_SIM_TIME if abs(age) > SECONDS_PER_DAY else _SYNCHRONIZE


def stale_reason(
    frame: SyncedMessages, max_age: float, max_image_age: float, clock: Clock
) -> str | None:
    """Return why a camera's newest frame is too old to answer about; None if it is not.

    Args:
        frame: the newest frame.
        max_age: limit of the request [s]; 0: the node's limit.
        max_image_age: limit of the node [s]; 0: none.
        clock: that of the stamps and arrivals.
    """
    name, limit = ('max_age', max_age) if max_age else ('max_image_age', max_image_age)
    if not limit:
        return None
    allows = f'{name} allows {limit:g} s'
    silence = clock.steady() - frame.arrived_at
    if silence < -limit:
        return 'the simulation went back in time, and no image has come since: wait for one'
    if silence > limit:
        return f'the newest image came {silence:.2f} s ago, {allows}: check the camera'
    wall_silence = time.monotonic() - frame.received_at
    if wall_silence > limit and clock.has_ended():
        return (
            f'the simulation has ended: nobody publishes /clock, and the newest image came '
            f'{wall_silence:.2f} s ago, {allows}: start it again, or set max_image_age to 0'
        )
    age = stamp_age(frame.stamp, clock)
    if abs(age) <= limit or (not max_age and abs(age) > SECONDS_PER_DAY):
        return None
    hint = clock_hint(age, clock, frame.is_stamp_repeated)
    if age < 0:
        return f"the newest image is {-age:.2f} s ahead of the node's clock, {allows}: {hint}"
    is_delay = age - silence < MAX_STAMP_AGE  # it may well have been under way for so long
    return f'the newest image is {age:.2f} s old, {allows}' + ('' if is_delay else f': {hint}')
