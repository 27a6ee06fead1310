# SPDX-License-Identifier: Apache-2.0
"""Typed, documented parameters: ranges, choices, when they may change, their YAML."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any, ClassVar

from lisa_ros.errors import SettingsError


@dataclass(frozen=True)
class ParameterInfo:
    """What is to know about a setting besides its name, type and default."""

    sentence: str  # what it does, with the unit in brackets
    low: float | None = None  # both ends belong to the range
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False  # fixed when the node starts
    at_configure: bool = False  # read on configure: it may change only while unconfigured


class ValidatedSettings:
    """A dataclass of settings; building one checks every value."""

    YAML_NOTES: ClassVar[tuple[str, ...]] = ()  # comment lines below the parameters in YAML

    def __post_init__(self) -> None:
        """Check every value; integers are taken where a float is asked for, lists as tuples."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            validate(field, value)
            if isinstance(value, list):  # [''] is ROS's way to say an empty list
                object.__setattr__(self, field.name, tuple(filter(None, value)))


def parameter(default: Any, sentence: str, **about: Any) -> Any:
    """Return a dataclass field that carries an `About`; the keywords are its fields."""
    return dataclasses.field(default=default, metadata={'about': ParameterInfo(sentence, **about)})


def parameter_info(field: dataclasses.Field) -> ParameterInfo:
    """Return what is to know about one of `dataclasses.fields(Settings)`."""
    return field.metadata['about']


def validate(field: dataclasses.Field, value: Any) -> None:
    """Raise a SettingsError if the value is not one that the field takes."""
    known = parameter_info(field)
    kind = type(field.default)
    if kind is tuple:
        _check_names(field.name, value)
        return
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise SettingsError(f'{field.name} is {value!r}; expected a {kind.__name__}')
    if known.choices and value not in known.choices:
        choices = ', '.join(repr(choice) for choice in known.choices)
        raise SettingsError(f'{field.name} is {value!r}; expected one of {choices}')
    # Not "value < low": a NaN is in no range and must not slip through.
    if known.low is not None and not known.low <= value <= known.high:
        raise SettingsError(f'{field.name} is {value}; expected {known.low} to {known.high}')


def _check_names(name: str, value: Any) -> None:
    """Raise a SettingsError if the value is no list of names that topics can have."""
    if value in ([''], ('',)):  # none: ROS cannot tell what an empty list is of
        return
    named = isinstance(value, list | tuple) and all(
        isinstance(one, str) and re.fullmatch('[A-Za-z][A-Za-z0-9_]*', one) for one in value
    )
    if not named or len(set(value)) < len(value) or 'tracked' in value:
        raise SettingsError(
            f'{name} is {value!r}; expected names that differ, of letters, digits and _, none of '
            'them "tracked"'
        )


def as_yaml(kind: type[ValidatedSettings], node: str) -> str:
    """Return the file in config/ that has every parameter of a node with its default."""
    lines = [
        '# SPDX-License-Identifier: Apache-2.0',
        f'# Every parameter of {node} with its default; made from lisa_ros/settings.py.',
    ]
    if any(parameter_info(field).at_configure for field in dataclasses.fields(kind)):
        lines += [
            '# Those marked * are read on configure: change them while the node is unconfigured.'
        ]
    lines += ['/**:', '  ros__parameters:']
    for field in dataclasses.fields(kind):
        known = parameter_info(field)
        notes = []
        if known.choices:
            notes.append('one of ' + ', '.join(choice or "''" for choice in known.choices))
        if known.low is not None:
            notes.append(f'{known.low:g} to {known.high:g}')
        notes += ['*'] * known.at_configure + ['read-only'] * known.read_only
        sentence = f'{known.sentence} ({"; ".join(notes)})' if notes else known.sentence
        lines += [f'    # {line}' for line in textwrap.wrap(sentence, 92)]
        # JSON of a number or a truth value is YAML too; words need no quotes unless empty.
        value = field.default if isinstance(field.default, str) else json.dumps(field.default)
        if field.default == ():
            value = "['']"
        lines.append(f'    {field.name}: {value or repr("")}')
    if kind.YAML_NOTES:
        lines += ['', *(f'    # {line}' for line in kind.YAML_NOTES)]
    return '\n'.join(lines) + '\n'
