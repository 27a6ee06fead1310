# SPDX-License-Identifier: Apache-2.0
"""Check the ROS installation from files and variables: distribution, rclpy, messages, RMW."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from lisa_ros.doctor.finding import Finding
from lisa_ros.health.verdict import Level

_SUPPORTED = ('jazzy', 'kilted', 'lyrical', 'rolling')
_SOURCE = 'source /opt/ros/DISTRIBUTION/setup.bash and install/setup.bash of the workspace'
_RMW_RESOURCES = Path('share/ament_index/resource_index/rmw_typesupport')
_DISPATCHER = 'rmw_implementation'  # loads one of the others


@dataclass(frozen=True)
class RosFacts:
    """The ROS installation of this environment."""

    distribution: str  # ROS_DISTRO; empty: none was sourced, such as with wheels
    rclpy_version: str | None  # None: not installed
    has_messages: bool  # lisa_ros.msg was built
    rmw: str  # RMW_IMPLEMENTATION; empty: the default
    installed_rmws: tuple[str, ...]


def ros_facts(environment: Mapping[str, str] = os.environ) -> RosFacts:
    """Read the ROS installation."""
    prefixes = environment.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    folders = [Path(prefix) / _RMW_RESOURCES for prefix in prefixes if prefix]
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return RosFacts(
        environment.get('ROS_DISTRO', ''),
        _rclpy_version(),
        util.find_spec('lisa_ros.msg') is not None,
        environment.get('RMW_IMPLEMENTATION', ''),
        tuple(sorted(names - {_DISPATCHER})),
    )


def _rclpy_version() -> str | None:
    if util.find_spec('rclpy') is None:
        return None
    for name in ('rclpy', 'ros-rclpy'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ''


def judge_ros(facts: RosFacts) -> list[Finding]:
    """Return the findings about the installation."""
    if facts.rclpy_version is None:
        observed = 'no rclpy in this Python: the command line works, the node does not'
        return [Finding('ROS', Level.WARN, observed, _SOURCE)]
    version = f'rclpy {facts.rclpy_version or "of unknown version"}'
    observed = f'ROS 2 {facts.distribution or "without ROS_DISTRO"}, {version}'
    if facts.distribution and facts.distribution not in _SUPPORTED:
        cure = f'use one of {", ".join(_SUPPORTED)}'
        rows = [Finding('ROS', Level.WARN, f'{observed}; not tested with lisa_ros', cure)]
    else:
        rows = [Finding('ROS', Level.OK, observed)]
    if not facts.has_messages:
        text = 'the messages of lisa_ros are not built, or not for this Python'
        cure = 'colcon build in the workspace, then source install/setup.bash'
        rows.append(Finding('ROS', Level.ERROR, text, cure))
    return [*rows, _judge_rmw(facts)]


def _judge_rmw(facts: RosFacts) -> Finding:
    installed = ', '.join(facts.installed_rmws) or 'none'
    if facts.rmw and facts.installed_rmws and facts.rmw not in facts.installed_rmws:
        observed = f'RMW_IMPLEMENTATION is {facts.rmw}, installed: {installed}'
        package = f'ros-{facts.distribution or "DISTRIBUTION"}-{facts.rmw.replace("_", "-")}'
        cure = f'apt install {package}, or unset RMW_IMPLEMENTATION'
        return Finding('RMW', Level.ERROR, observed, cure)
    observed = f'{facts.rmw or "the default"}; installed: {installed}'
    return Finding('RMW', Level.OK, observed)
