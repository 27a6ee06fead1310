# SPDX-License-Identifier: Apache-2.0
"""Check the clock of this computer: plausible, and synchronized by NTP or PTP."""

from __future__ import annotations

import ctypes
import sys
import time

from lisa_ros.doctor.finding import Finding
from lisa_ros.health.verdict import Level

_EARLIEST = 1735689600  # 2025-01-01: a computer without a battery starts in 1970 [s]
_STA_UNSYNC = 0x40  # of adjtimex(2)
_CURE = 'timedatectl set-ntp true, or start chrony; PTP for cameras'


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex; the rest is not read."""

    _fields_ = (
        ('modes', ctypes.c_uint),
        ('offset', ctypes.c_long),
        ('freq', ctypes.c_long),
        ('maxerror', ctypes.c_long),
        ('esterror', ctypes.c_long),
        ('status', ctypes.c_int),
        ('rest', ctypes.c_byte * 512),
    )


def check_system_clock() -> list[Finding]:
    """Return the finding about the computer's clock."""
    return [judge_system_clock(time.time(), is_synchronized())]


def is_synchronized() -> bool | None:
    """Return whether the kernel's clock is kept by NTP or PTP; None: unknown."""
    if sys.platform != 'linux':
        return None
    state = _Timex()
    try:
        result = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if result < 0 else not state.status & _STA_UNSYNC


def judge_system_clock(now: float, synchronized: bool | None) -> Finding:
    """Return the finding about a clock; `now` in seconds since 1970."""
    date = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(now))
    if now < _EARLIEST:
        return Finding('system clock', Level.ERROR, f'{date} is in the past', _CURE)
    if synchronized is False:  # a fault only if images come from another computer
        observed = f'{date}, not synchronized by NTP or PTP'
        return Finding(
            'system clock', Level.OK, observed, f'for images of other computers: {_CURE}'
        )
    return Finding('system clock', Level.OK, date + (', synchronized' if synchronized else ''))
