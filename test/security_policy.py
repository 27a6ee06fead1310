# SPDX-License-Identifier: Apache-2.0
"""config/security/lisa_ros.policy.xml as sets of names, and as DDS permissions."""

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

FILE = Path(__file__).parents[1] / 'config' / 'security' / 'lisa_ros.policy.xml'
ROLES = {  # element: the attributes that it may have
    'topics': {'publish', 'subscribe'},
    'services': {'request', 'reply'},
    'actions': {'call', 'execute'},
}
_SERVICES_OF_AN_ACTION = ('send_goal', 'cancel_goal', 'get_result')
_TOPICS_OF_AN_ACTION = ('feedback', 'status')


def resolved(name, profile):
    """Return the full name of a topic, service or action in a profile."""
    namespace = profile.get('ns').rstrip('/')
    if name.startswith('/'):
        return name
    if name.startswith('~'):
        return f'{namespace}/{profile.get("node")}{name[1:]}'
    return f'{namespace}/{name}'


def read_policy():
    """Return {enclave: {role: names}}; the roles are those of ROLES."""
    enclaves = {}
    for enclave in ElementTree.parse(FILE).getroot().iter('enclave'):  # noqa: S314  # our own file
        names = enclaves[enclave.get('path')] = defaultdict(set)
        for profile in enclave.iter('profile'):
            for group in profile:
                for role in group.attrib:
                    names[role] |= {resolved(entry.text, profile) for entry in group}
    return enclaves


def dds_topics(names):
    """Return the DDS topics that an enclave may publish and subscribe to."""
    publish, subscribe = {'ros_discovery_info'}, {'ros_discovery_info'}
    publish |= {f'rt{name}' for name in names['publish']}
    subscribe |= {f'rt{name}' for name in names['subscribe']}
    streams = {
        role: _of_actions(names[role], _TOPICS_OF_AN_ACTION) for role in ('call', 'execute')
    }
    subscribe |= {f'rt{name}' for name in streams['call']}
    publish |= {f'rt{name}' for name in streams['execute']}
    requested = names['request'] | _of_actions(names['call'], _SERVICES_OF_AN_ACTION)
    replied = names['reply'] | _of_actions(names['execute'], _SERVICES_OF_AN_ACTION)
    publish |= {f'rq{name}Request' for name in requested} | {f'rr{name}Reply' for name in replied}
    subscribe |= {f'rr{name}Reply' for name in requested} | {
        f'rq{name}Request' for name in replied
    }
    return publish, subscribe


def _of_actions(actions, parts):
    return {f'{action}/_action/{part}' for action in actions for part in parts}
