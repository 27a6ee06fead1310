# SPDX-License-Identifier: Apache-2.0
"""Names of nodes in the ROS graph."""

from __future__ import annotations


def full_name(name: str, namespace: str) -> str:
    """Return the full name of a node, such as /arm/lisa."""
    return f'{namespace.rstrip("/")}/{name}'
