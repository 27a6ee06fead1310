# SPDX-License-Identifier: Apache-2.0
"""Check what decides which processes find each other: domain, range, multicast, DDS profiles."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.discovery_range import is_localhost
from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.middleware import (
    CYCLONE_CONFIGURATION,
    FAST_DDS_PROFILES,
    configuration_files,
    profile_has_shared_memory,
)
from lisa_ros.health.verdict import Level

_LARGEST_DOMAIN = 232  # of DDS; its port numbers do not allow more
_SAFE_DOMAIN = 101  # above it, ports may be those that Linux gives to other programs
_RANGES = ('SUBNET', 'LOCALHOST', 'OFF', 'SYSTEM_DEFAULT')
_GROUP = '239.255.0.1'  # of DDS discovery
_MULTICAST_TIMEOUT = 0.5  # [s]
_CONFIGURATIONS = (*FAST_DDS_PROFILES, CYCLONE_CONFIGURATION)
_COMPARED = (  # a node and this shell must agree on these to find each other
    *('ROS_DOMAIN_ID', 'RMW_IMPLEMENTATION', 'ROS_LOCALHOST_ONLY'),
    *('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_DISCOVERY_SERVER'),
)
_DEFAULTS = {
    'ROS_DOMAIN_ID': '0',
    'ROS_LOCALHOST_ONLY': '0',
    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
    'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp',
}
_EXECUTABLE = 'lisa_node'


@dataclass(frozen=True)
class NodeProcessFacts:
    """A process of lisa_node on this computer."""

    pid: int
    environment: Mapping[str, str]  # of the variables of ROS


def check_discovery(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings about discovery."""
    return [
        judge_domain(environment.get('ROS_DOMAIN_ID', '')),
        *judge_range(environment),
        *(finding for name in _CONFIGURATIONS for finding in judge_profile(name, environment)),
        *judge_processes(running_nodes(), environment),
        judge_multicast(multicast_error(), environment),
    ]


def judge_domain(domain: str) -> Finding:
    """Return the finding about the value of ROS_DOMAIN_ID."""
    if domain and not (domain.isdecimal() and int(domain) <= _LARGEST_DOMAIN):
        observed = f'ROS_DOMAIN_ID is {domain!r}; expected 0 to {_LARGEST_DOMAIN}'
        return Finding(
            'domain', Level.ERROR, observed, 'export ROS_DOMAIN_ID=0, or another number'
        )
    if domain and int(domain) > _SAFE_DOMAIN:
        observed = f'ROS_DOMAIN_ID is {domain}: its ports may be taken by other programs'
        return Finding('domain', Level.WARN, observed, f'use 0 to {_SAFE_DOMAIN}')
    return Finding('domain', Level.OK, f'ROS_DOMAIN_ID is {domain or "0 (not set)"}')


def judge_range(environment: Mapping[str, str]) -> list[Finding]:
    """Return the finding about how far discovery reaches."""
    localhost = environment.get('ROS_LOCALHOST_ONLY', '')
    reach = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '')
    if reach and reach not in _RANGES:
        observed = f'ROS_AUTOMATIC_DISCOVERY_RANGE is {reach!r}'
        return [Finding('discovery', Level.ERROR, observed, f'use one of {", ".join(_RANGES)}')]
    if localhost == '1' and reach not in ('', 'LOCALHOST'):
        observed = f'ROS_LOCALHOST_ONLY=1 overrides ROS_AUTOMATIC_DISCOVERY_RANGE={reach}'
        return [Finding('discovery', Level.WARN, observed, 'unset ROS_LOCALHOST_ONLY: it is old')]
    if reach == 'OFF':
        observed = 'ROS_AUTOMATIC_DISCOVERY_RANGE=OFF: no node finds another'
        return [Finding('discovery', Level.ERROR, observed, 'set it to LOCALHOST or SUBNET')]
    reach = 'LOCALHOST' if is_localhost(environment) else reach or 'SUBNET'
    server = environment.get('ROS_DISCOVERY_SERVER', '')
    text = f'{reach}{": this computer only" if reach == "LOCALHOST" else ""}'
    text += f', discovery server {server}' if server else ''
    return [Finding('discovery', Level.OK, text)]


def judge_profile(name: str, environment: Mapping[str, str]) -> list[Finding]:
    """Return the findings about the files in the variable of a DDS profile; none without files.

    A variable of another middleware than the one in use has no effect, and no findings.
    """
    paths = configuration_files(name, environment)
    return [_judge_profile_file(name, path, environment) for path in paths]


def _judge_profile_file(name: str, path: Path, environment: Mapping[str, str]) -> Finding:
    check, is_local = 'DDS profile', is_localhost(environment)
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  # a file that the user has named
    except OSError as error:
        observed = f'{name}={environment[name]}: {error.strerror}'
        return Finding(check, Level.ERROR, observed, f'unset {name}, or correct the path')
    except ElementTree.ParseError as error:
        observed = f'{name}={environment[name]}: not XML: {error}'
        return Finding(check, Level.ERROR, observed, 'correct this line, or unset it')
    if name == CYCLONE_CONFIGURATION:
        return Finding(check, Level.OK, str(path))
    has_size = any(element.tag.endswith('segment_size') for element in root.iter())
    if not has_size and (is_local or profile_has_shared_memory(root, environment)):
        observed = f'{path} sets no segment_size: large messages overwrite each other'
        cure = 'add a SHM transport with segment_size, as in lisa_ros/ros/fastdds.xml'
        return Finding(check, Level.WARN, observed, cure)
    if is_local and any(element.text == 'UDPv4' for element in root.iter()):
        observed = f'{path} has a UDP transport, and LOCALHOST adds one: nodes appear 3 s late'
        cure = 'leave the UDP transport out, as in lisa_ros/ros/fastdds_localhost.xml'
        return Finding(check, Level.WARN, observed, cure)
    return Finding(check, Level.OK, str(path))


# ---- other processes


def running_nodes(proc: Path = Path('/proc')) -> list[NodeProcessFacts]:
    """Return the processes of lisa_node whose environment may be read."""
    nodes = []
    for folder in proc.glob('[0-9]*'):
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is another user's
            arguments = (folder / 'cmdline').read_bytes().split(b'\0')
            if not any(Path(os.fsdecode(part)).name == _EXECUTABLE for part in arguments[:3]):
                continue
            pairs = (folder / 'environ').read_bytes().decode(errors='replace').split('\0')
            variables = dict(pair.split('=', 1) for pair in pairs if '=' in pair)
            environment = {name: variables.get(name, '') for name in _COMPARED}
            nodes.append(NodeProcessFacts(int(folder.name), environment))
    return sorted(nodes, key=lambda node: node.pid)


def judge_processes(
    nodes: Sequence[NodeProcessFacts], environment: Mapping[str, str]
) -> list[Finding]:
    """Return a finding for each lisa_node that this shell cannot find."""
    return [finding for node in nodes for finding in _compare(node, environment)]


def _compare(node: NodeProcessFacts, environment: Mapping[str, str]) -> list[Finding]:
    differences = []
    for name in _COMPARED:
        theirs, ours = _value(node.environment, name), _value(environment, name)
        if theirs != ours:
            differences.append((name, theirs, ours))
    if not differences:
        return []
    texts = [f'{name}={theirs or "(not set)"}' for name, theirs, _ in differences]
    ours = [f'{name}={own or "(not set)"}' for name, _, own in differences]
    observed = f'lisa_node (pid {node.pid}) has {", ".join(texts)}; here {", ".join(ours)}'
    name, theirs, _ = differences[0]
    cure = f'export {name}={theirs}' if theirs else f'unset {name}'
    return [Finding('discovery', Level.WARN, observed, f'{cure} in this shell')]


def _value(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, '')
    return _DEFAULTS.get(name, '') if value in ('', 'SYSTEM_DEFAULT') else value


# ---- multicast


def multicast_error() -> str:
    """Send a packet to DDS's group and receive it; return the error, '' if it came back."""
    with contextlib.ExitStack() as stack:
        try:
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.settimeout(_MULTICAST_TIMEOUT)
            receiver.bind(('', 0))
            membership = struct.pack('4sl', socket.inet_aton(_GROUP), socket.INADDR_ANY)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender.sendto(b'lisa-ros doctor', (_GROUP, receiver.getsockname()[1]))
            receiver.recvfrom(64)
        except TimeoutError:
            return f'a packet to {_GROUP} did not come back within {_MULTICAST_TIMEOUT} s'
        except OSError as error:
            return f'a packet to {_GROUP}: {error.strerror}'
    return ''


def judge_multicast(error: str, environment: Mapping[str, str]) -> Finding:
    """Return the finding about multicast, which discovery between computers needs."""
    if not error:
        return Finding('multicast', Level.OK, f'a packet to {_GROUP} came back')
    if is_localhost(environment) or environment.get('ROS_DISCOVERY_SERVER'):
        return Finding('multicast', Level.OK, f'{error}; not needed with these settings')
    cure = 'allow UDP multicast in the firewall, or set ROS_STATIC_PEERS or a discovery server'
    return Finding('multicast', Level.WARN, error, cure)
