# SPDX-License-Identifier: Apache-2.0
"""Options of a camera's scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionOptions:
    """How requests of one camera are scheduled; `Settings` has the defaults and the ranges."""

    frames_kept: int  # images kept for matching; read when a scheduler is made
    depth_tolerance: float  # between the stamps of an image and of its depth and camera info [s]
    image_timeout: float  # how long a request waits for the first image [s]
    dialogue_turns: int  # earlier turns that a command can refer to
    goals_kept: int  # maximum number of waiting goals
    max_image_age: float  # of the newest image when the model begins [s]; 0: any
    max_command_chars: int  # longest query
    stop_ends_goals: bool  # "stop" ends all goals, not only continuous ones
    watch_rate: float  # maximum rate of answers to a standing query [Hz]
