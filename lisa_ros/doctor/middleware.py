# SPDX-License-Identifier: Apache-2.0
"""Which middleware the environment asks for, and which of its files and transports count."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from lisa_ros.discovery_range import is_localhost

FAST_DDS_PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
CYCLONE_CONFIGURATION = 'CYCLONEDDS_URI'
_RMW = 'RMW_IMPLEMENTATION'
_CYCLONE = 'rmw_cyclonedds'
_NOT_FAST_DDS = (_CYCLONE, 'rmw_connext', 'rmw_zenoh', 'rmw_gurumdds')  # begins of names
_BUILTIN = 'FASTDDS_BUILTIN_TRANSPORTS'
_WITHOUT_SHARED_MEMORY = ('UDPv4', 'UDPv6', 'NONE')  # values of it
_SHARED_MEMORY = 'SHM'
_CYCLONE_ITEM = re.compile(r'\s*(<.*?>(?=\s*(?:,|$))|[^,<]+)', re.DOTALL)


def uses_fast_dds(environment: Mapping[str, str]) -> bool:
    """Return whether the middleware is Fast DDS; it is ROS's default."""
    return not environment.get(_RMW, '').startswith(_NOT_FAST_DDS)


def uses_cyclone(environment: Mapping[str, str]) -> bool:
    """Return whether the middleware is Cyclone DDS."""
    return environment.get(_RMW, '').startswith(_CYCLONE)


def configuration_files(name: str, environment: Mapping[str, str]) -> list[Path]:
    """Return the files that the variable of a middleware names; none if it is not in use.

    CYCLONEDDS_URI is a list of files and of XML, separated by commas. A name with a variable,
    which Cyclone DDS expands, is left out.
    """
    value = environment.get(name, '')
    if not (uses_cyclone if name == CYCLONE_CONFIGURATION else uses_fast_dds)(environment):
        return []
    items = _CYCLONE_ITEM.findall(value) if name == CYCLONE_CONFIGURATION else [value]
    paths = [item.strip().removeprefix('file://') for item in items]
    return [Path(path) for path in paths if path and not path.startswith('<') and '$' not in path]


def uses_shared_memory(environment: Mapping[str, str]) -> bool:
    """Return whether Fast DDS is the middleware and sends large messages through /dev/shm."""
    if not uses_fast_dds(environment):
        return False
    if is_localhost(environment):  # rmw_fastrtps adds a shared memory of its own
        return True
    for path in (p for name in FAST_DDS_PROFILES for p in configuration_files(name, environment)):
        try:
            root = ElementTree.parse(path).getroot()  # noqa: S314  # a file that the user named
        except (OSError, ElementTree.ParseError):  # has a row of its own
            continue
        return profile_has_shared_memory(root, environment)
    return _builtin_has_shared_memory(environment.get(_BUILTIN, ''))


def profile_has_shared_memory(root: ElementTree.Element, environment: Mapping[str, str]) -> bool:
    """Return whether a profile of Fast DDS, by its XML, leaves a transport of shared memory."""
    types = {
        _text(transport, 'transport_id'): _text(transport, 'type')
        for transport in _elements(root, 'transport_descriptor')
    }
    for participant in _elements(root, 'participant'):
        if participant.get('is_default_profile') != 'true':
            continue
        used = [
            (transport.text or '').strip()
            for transports in _elements(participant, 'userTransports')
            for transport in _elements(transports, 'transport_id')
        ]
        builtin = _text(participant, 'builtinTransports')
        has_builtin = _text(participant, 'useBuiltinTransports') not in ('false', '0')
        return _SHARED_MEMORY in map(types.get, used) or (
            has_builtin and _builtin_has_shared_memory(builtin or environment.get(_BUILTIN, ''))
        )
    return _builtin_has_shared_memory(environment.get(_BUILTIN, ''))


def _builtin_has_shared_memory(transports: str) -> bool:
    """Return it for a value such as LARGE_DATA or UDPv4?max_msg_size=1MB; empty: the default."""
    return transports.partition('?')[0] not in _WITHOUT_SHARED_MEMORY


def _elements(parent: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Yield the elements of a name below a parent, in any XML namespace."""
    return (element for element in parent.iter() if element.tag.rpartition('}')[2] == name)


def _text(parent: ElementTree.Element, name: str) -> str:
    return next(((element.text or '').strip() for element in _elements(parent, name)), '')
