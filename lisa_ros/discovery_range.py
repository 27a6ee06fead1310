# SPDX-License-Identifier: Apache-2.0
"""How far ROS 2 discovers other nodes, as its environment variables say."""

from __future__ import annotations

from collections.abc import Mapping


def is_localhost(environment: Mapping[str, str]) -> bool:
    """Return whether discovery stays on this computer."""
    reach = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '')
    return reach == 'LOCALHOST' or environment.get('ROS_LOCALHOST_ONLY') == '1'
