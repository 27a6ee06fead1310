# SPDX-License-Identifier: Apache-2.0
"""Sections of a ROS parameter file, and the nodes that each section is for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor


@dataclass(frozen=True)
class ParameterSection:
    """The parameters that a file gives to the nodes of one name or pattern."""

    file: Path
    node: str  # such as /**, lisa or /robot/lisa
    values: Mapping[str, Any]  # by name; levels of a name are joined by dots

    def is_for(self, node: str) -> bool:
        """Return whether the section is for a node; `node`: its full name, such as /lisa."""
        levels = self.node.strip('/').split('/')
        patterns = [
            '(/[^/]+)*' if level == '**' else '/' + re.escape(level).replace(r'\*', '[^/]*')
            for level in levels
        ]
        return re.fullmatch(''.join(patterns), node) is not None

    def resembles(self, node: str) -> bool:
        """Return whether the section may be meant for a node, as lisa_node for /arm/lisa."""
        own_name, name = self.node.split('/')[-1], node.split('/')[-1]
        return name in own_name or own_name in name


def read_parameter_file(path: Path) -> list[ParameterSection]:
    """Return the sections of a file in their order; none of a file that cannot be read.

    rclpy reads the same file and reports its errors. What only PyYAML refuses is no error.
    As in rclpy, sections of one name are one section, also in several documents.
    """
    values_by_node: dict[str, dict[str, Any]] = {}
    try:
        documents = yaml.compose_all(path.read_bytes(), yaml.SafeLoader)  # UTF-8 or UTF-16, as rcl
        for node, values in (section for root in documents for section in _sections(root)):
            values_by_node.setdefault(node, {}).update(_values(values))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return [ParameterSection(path, node, values) for node, values in values_by_node.items()]


def value_for(name: str, node: str, sections: Iterable[ParameterSection]) -> Any:
    """Return the value that a node gets for a parameter; None if no section sets it.

    Of several sections for the node the last one counts, as in rclpy, and not the narrowest name.

    Args:
        name: of the parameter.
        node: full name of the node.
        sections: of one file, in their order.
    """
    values = [s.values[name] for s in sections if name in s.values and s.is_for(node)]
    return values[-1] if values else None


def _sections(content: yaml.Node | None, node: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the node and the values of each section; names may be nested in namespaces."""
    if not isinstance(content, yaml.MappingNode):
        return
    for key, value in content.value:  # pairs: a dict would lose keys that occur twice
        if key.value == 'ros__parameters':
            yield node, SafeConstructor().construct_document(value)
        else:
            yield from _sections(value, f'{node}/{key.value}' if node else str(key.value))


def _values(value: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _values(inner, f'{prefix}.{key}' if prefix else str(key))
