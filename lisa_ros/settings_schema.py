# SPDX-License-Identifier: Apache-2.0
"""Schema of node parameters: description, range, choices, when they may change; YAML output.

The parameters themselves are in settings.py (lisa_node) and voice/settings.py (voice_node).
"""

from __future__ import annotations

import array
import dataclasses
import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any, ClassVar

from lisa_ros.errors import SettingsError


@dataclass(frozen=True)
class ParameterInfo:
    """Metadata of a parameter: description, range, choices, when it may change."""

    description: str  # effect and special values, with the unit in square brackets
    minimum: float | None = None  # smallest value; numbers only; given together with maximum
    maximum: float | None = None  # largest value
    choices: tuple[str, ...] = ()  # allowed values; strings only; empty: any string
    item_pattern: str = ''  # regular expression that each item matches; lists only
    items: str = ''  # what matches item_pattern, in words; lists only
    reserved_items: tuple[str, ...] = ()  # items that are refused; lists only
    read_only: bool = False  # fixed when the node starts
    at_configure: bool = False  # read on configure: may change only while unconfigured
    off: str = ''  # the choice that YAML's off, no and false mean, beside 'off'; strings only

    def __post_init__(self) -> None:
        """Refuse a range with one end: ROS declares both."""
        if (self.minimum is None) != (self.maximum is None):
            raise ValueError(f'{self.description!r} has one of minimum and maximum: give both')


class ValidatedSettings:
    """Base of frozen dataclasses whose fields are made by `parameter`; checks all values.

    Raises:
        SettingsError: a value has another type, is outside its range or not among its choices.
    """

    YAML_NOTES: ClassVar[tuple[str, ...]] = ()  # comment lines below the parameters in YAML

    def __post_init__(self) -> None:
        """Check all values; convert those that mean another one, and lists to tuples."""
        for field in dataclasses.fields(self):
            value = converted(field, getattr(self, field.name))
            validate(field, value)
            if isinstance(value, list):  # [''] is an empty list in ROS
                value = tuple(filter(None, value))
            object.__setattr__(self, field.name, value)


def parameter(default: Any, description: str, **info: Any) -> Any:
    """Return a dataclass field with a ParameterInfo; `info`: its other fields."""
    return dataclasses.field(
        default=default, metadata={'parameter_info': ParameterInfo(description, **info)}
    )


def parameter_info(field: dataclasses.Field) -> ParameterInfo:
    """Return the metadata of a field of a ValidatedSettings class."""
    return field.metadata['parameter_info']


def converted(field: dataclasses.Field, value: Any) -> Any:
    """Return the value that a file or a command line means, in the type of a field.

    YAML reads off, on, yes and no as booleans, 1 as an integer and '1' as text. Where that leaves
    no doubt, the value is converted: off for a choice 'off', 1 for 1.0, 'true' for true, a text
    for a list of one. A value that could mean several things is returned as it is, for `validate`
    to refuse.
    """
    convert = _CONVERSIONS[type(field.default)]
    return convert(parameter_info(field), field.default, value)


def _to_text(info: ParameterInfo, default: str, value: Any) -> Any:
    if info.choices and value not in info.choices:
        is_on = _YAML_BOOLEANS.get(str(value).lower())
        choice = {True: 'on', False: info.off or 'off'}.get(is_on)
        return choice if choice in info.choices else value
    return '' if default == '' and value in ('~', 'null', 'Null', 'NULL') else value


def _to_bool(info: ParameterInfo, default: bool, value: Any) -> Any:
    if isinstance(value, str):
        return _YAML_BOOLEANS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _to_int(info: ParameterInfo, default: int, value: Any) -> Any:
    number = _to_float(info, default, value)
    is_whole = isinstance(number, float) and number.is_integer()
    return int(number) if is_whole and not isinstance(value, int) else value


def _to_float(info: ParameterInfo, default: float, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):  # no number, or an int that no float can hold
        return value


def _to_list(info: ParameterInfo, default: tuple, value: Any) -> Any:
    if value is None or value == '':
        return ()  # rclpy gives None for an empty list, which has no type
    if isinstance(value, array.array):
        return list(value)
    return (value,) if isinstance(value, str) else value


_YAML_BOOLEANS = {
    **dict.fromkeys(('true', 'yes', 'on', 'y'), True),
    **dict.fromkeys(('false', 'no', 'off', 'n'), False),
}
_CONVERSIONS = {str: _to_text, bool: _to_bool, int: _to_int, float: _to_float, tuple: _to_list}


def validate(field: dataclasses.Field, value: Any) -> None:
    """Check a value for a field of a ValidatedSettings class.

    Raises:
        SettingsError: the value has another type, is outside its range or not among its choices.
    """
    info = parameter_info(field)
    value_type = type(field.default)
    if value_type is tuple:
        _validate_list(field.name, info, value)
        return
    has_type = isinstance(value, value_type) and (value_type is bool) == isinstance(value, bool)
    if not has_type or (info.choices and value not in info.choices):
        raise SettingsError(f'{field.name} is {value!r}; {_expected(value_type, info, value)}')
    # "not a <= value" instead of "value < a": NaN must be refused.
    if info.minimum is not None and not info.minimum <= value <= info.maximum:
        raise SettingsError(f'{field.name} is {value}; expected {info.minimum} to {info.maximum}')


def _expected(value_type: type, info: ParameterInfo, value: Any) -> str:
    """Return what was expected instead of a value, and the cure."""
    expected = f'expected {"an" if value_type is int else "a"} {value_type.__name__}'
    if info.choices:
        expected = 'expected one of ' + ', '.join(repr(choice) for choice in info.choices)
    if value_type is str and isinstance(value, bool):
        return f'{expected}; YAML reads on, off, yes, no, y and n as booleans: put it in quotes'
    if value_type is str and isinstance(value, int | float):
        return f"{expected}; put it in quotes: '{value}'"
    return expected


def _validate_list(name: str, info: ParameterInfo, value: Any) -> None:
    """Check a list of distinct strings."""
    if value in ([''], ('',)):  # ROS parameters cannot hold an empty list: it has no type
        return
    is_valid = isinstance(value, list | tuple) and all(
        isinstance(item, str) and re.fullmatch(info.item_pattern or '.*', item) for item in value
    )
    if not is_valid or len(set(value)) < len(value) or set(value) & set(info.reserved_items):
        names = ', '.join(map(repr, info.reserved_items))
        reserved = f'; {names} is reserved' if names else ''
        has_words = isinstance(value, list) and any(type(item) is not str for item in value)
        cure = '; put names such as on and 1 in quotes' if has_words else ''
        raise SettingsError(
            f'{name} is {value!r}; expected distinct {info.items or "texts"}{reserved}{cure}'
        )


def as_yaml(settings_class: type[ValidatedSettings], node: str) -> str:
    """Return the parameter file of a node: each parameter with its default and description."""
    fields = dataclasses.fields(settings_class)
    lines = [
        '# SPDX-License-Identifier: Apache-2.0',
        f'# All parameters of {node} with their defaults. Generated by: '
        'python -m lisa_ros.settings config',
    ]
    if any(parameter_info(field).at_configure for field in fields):
        lines.append('# *: read on configure; change it while the node is unconfigured.')
    lines += ['/**:', '  ros__parameters:']
    for field in fields:
        lines += [f'    # {line}' for line in textwrap.wrap(_commented(field), 92)]
        lines.append(f'    {field.name}: {_yaml_value(field.default)}')
    if settings_class.YAML_NOTES:
        lines += ['', *(f'    # {line}' for line in settings_class.YAML_NOTES)]
    return '\n'.join(lines) + '\n'


def _commented(field: dataclasses.Field) -> str:
    """Return a parameter's description with its values and when it may change."""
    info = parameter_info(field)
    notes = []
    if info.choices:
        notes.append('one of ' + ', '.join(choice or "''" for choice in info.choices))
    if info.minimum is not None:
        notes.append(f'{info.minimum:g} to {info.maximum:g}')
    notes += ['*'] * info.at_configure + ['read-only'] * info.read_only
    return f'{info.description} ({"; ".join(notes)})' if notes else info.description


def _yaml_value(default: Any) -> str:
    """Return a default in YAML. Numbers and booleans have the form of JSON."""
    if default == ():
        return "['']"
    return (default or "''") if isinstance(default, str) else json.dumps(default)
