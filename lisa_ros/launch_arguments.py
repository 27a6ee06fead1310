# SPDX-License-Identifier: Apache-2.0
"""Read the arguments of the launch files; a wrong one is an error of one line.

ROS 2's launch is not imported: all values are texts, as `LaunchConfiguration.perform` returns
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lisa_ros.errors import SettingsError
from lisa_ros.files.parameter_sections import read_parameter_file, value_for

INPUTS = ('image', 'depth', 'camera_info')
_LARGE_OUTPUTS = (
    *('mask', 'confidence', 'overlay', 'scene_points', 'object_points'),
    *('mask/compressed', 'overlay/compressed'),
)


def is_on(name: str, value: str) -> bool:
    """Return whether an argument is on; a SettingsError names one that is neither on nor off."""
    if value.lower() in ('true', 'on', 'yes', '1'):
        return True
    if value.lower() in ('false', 'off', 'no', '0'):
        return False
    raise SettingsError(f'{name} is {value!r}; expected true or false: {name}:=true')


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return an argument in lower case; a SettingsError names one that is not a choice."""
    if value.lower() not in choices:
        raise SettingsError(f'{name} is {value!r}; expected one of {", ".join(choices)}')
    return value.lower()


def existing_file(name: str, value: str) -> str:
    """Return the path of a file; a SettingsError names one that is not there."""
    if not Path(value).is_file():
        raise SettingsError(f'{name} is {value!r}: there is no such file; correct {name}:=FILE')
    return value


def items(value: str) -> list[str]:
    """Return the items of "front, wrist" or "[front, wrist]"."""
    return [item.strip() for item in value.strip('[] ').split(',') if item.strip()]


def cameras_in_file(path: str, node: str) -> list[str]:
    """Return the names of cameras that a parameter file sets for a node; none without names.

    Args:
        path: of the file; the node says what is wrong with it.
        node: its full name, such as /robot/lisa.
    """
    cameras = value_for('cameras', node, read_parameter_file(Path(path)))
    if isinstance(cameras, str):
        cameras = [cameras]  # the node accepts one name without a list, too
    return [str(camera) for camera in cameras if camera] if isinstance(cameras, list) else []


def input_remappings(given: Mapping[str, str], cameras: Sequence[str]) -> list[tuple[str, str]]:
    """Return the remappings of the inputs: one topic for each input, or for each of its cameras.

    Args:
        given: the arguments `image`, `depth` and `camera_info`; empty: not remapped.
        cameras: names of several cameras; empty: one camera without a name.

    Raises:
        SettingsError: an argument has another number of topics than there are cameras.
    """
    if not cameras:
        return [(name, given[name]) for name in INPUTS if given[name]]
    remappings = []
    for name in INPUTS:
        topics = items(given[name])
        if topics and len(topics) != len(cameras):
            raise SettingsError(
                f'{name}:={given[name]} names {len(topics)} topics for {len(cameras)} cameras '
                f'({", ".join(cameras)}): give one for each, separated by commas, or leave it out '
                f'for {cameras[0]}/{name} and so on'
            )
        remappings += [
            (f'{camera}/{name}', topic) for camera, topic in zip(cameras, topics, strict=False)
        ]
    return remappings


def output_qos(reliability: str, node: str, cameras: Sequence[str]) -> dict[str, str]:
    """Return the parameters that set the reliability of the images and clouds of a node.

    Args:
        reliability: reliable or best_effort.
        node: its full name.
        cameras: as for `input_remappings`.
    """
    prefixes = [f'{camera}/' for camera in cameras] or ['']
    return {
        f'qos_overrides.{node}/{prefix}{kind}{name}.publisher.reliability': reliability
        for prefix in prefixes
        for kind in ('', 'tracked/')
        for name in _LARGE_OUTPUTS
    }


def full_name(*parts: str) -> str:
    """Return the full name of namespaces and a node: "/arm/lisa" of "arm" and "lisa".

    A part that begins with "/" replaces those before it, as in ROS.
    """
    start = max((i for i, part in enumerate(parts) if part.startswith('/')), default=0)
    return '/'.join(['', *(name for part in parts[start:] for name in part.split('/') if name)])
