# SPDX-License-Identifier: Apache-2.0
"""Where parameters were given: names the file of a wrong value, and warns of names without effect.

ROS ignores a misspelt parameter, and a section for a node of another name, without a word. A file
may be meant for several nodes: names that resemble those of this node are reported, and files
that have no section for it.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lisa_ros.files.parameter_sections import ParameterSection, read_parameter_file
from lisa_ros.ros.qos import OVERRIDABLE_POLICIES

_SIMILARITY = 0.8  # of two names, above which one may be a misspelling of the other [0..1]
_QOS_OVERRIDE = re.compile(r'qos_overrides\./[^.]*\.(subscription|publisher)\.(\w+)')


def read_sections(args: Sequence[str] | None = None) -> list[ParameterSection]:
    """Return the sections of all parameter files on a command line, which rclpy has accepted.

    Args:
        args: None: those of the process.
    """
    args = sys.argv if args is None else args
    sections: list[ParameterSection] = []
    for option, path in itertools.pairwise(args):
        if option == '--params-file':
            sections += read_parameter_file(Path(path))
    return sections


def source_of(name: str, node: str, sections: Sequence[ParameterSection]) -> str:
    """Return "FILE: " if a file sets a parameter of a node, else an empty text: -p sets it."""
    files = [
        section.file for section in sections if name in section.values and section.is_for(node)
    ]
    return f'{files[-1]}: ' if files else ''


def ineffective_names(
    node: str, own_names: Collection[str], sections: Sequence[ParameterSection]
) -> list[str]:
    """Return a warning for each name in the files that was meant for a node, but is not used.

    A file without a section for the node is one, too: launch files that include each other share
    an argument such as `params_file`.

    Args:
        node: its full name.
        own_names: of its own parameters, without those of rclpy.
        sections: of its parameter files.
    """
    warnings = []
    for section in sections:
        if section.is_for(node):
            warnings += _misspelt(section, own_names)
        elif section.resembles(node) and set(section.values) & set(own_names):
            warnings.append(
                f'{section.file}: the parameters of {section.node} are not for this node: '
                f'name the section {node} or /**'
            )
    concerned = {s.file for s in sections if s.is_for(node) or s.resembles(node)}
    others = dict.fromkeys(s.file for s in sections if s.file not in concerned)
    warnings += [
        f'{file} has no parameters for this node: name a section {node} or /**, or give another '
        'file'
        for file in others
    ]
    return warnings


def _misspelt(section: ParameterSection, own_names: Collection[str]) -> Iterator[str]:
    for name in section.values:
        policy = _QOS_OVERRIDE.fullmatch(name)
        known, given = own_names, name
        if policy:
            known = [kind.name.lower() for kind in OVERRIDABLE_POLICIES[policy[1]]]
            given = policy[2]
        similar = difflib.get_close_matches(given, known, 1, 0 if policy else _SIMILARITY)
        if given not in known and similar:
            yield f'{section.file}: there is no parameter {name}; did you mean {similar[0]}?'
