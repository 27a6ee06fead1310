# SPDX-License-Identifier: Apache-2.0
"""Stamps of headers as integers in nanoseconds; needs no ROS. Any thread."""

from __future__ import annotations

from typing import Any


def stamp_ns(header: Any) -> int:
    """Return the stamp of a std_msgs/Header as an integer [ns]."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
