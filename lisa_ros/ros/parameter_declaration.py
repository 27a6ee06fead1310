# SPDX-License-Identifier: Apache-2.0
"""Declare the fields of a settings class as ROS parameters, check each change, read values.

Names, defaults, ranges and descriptions are in lisa_ros/settings.py and voice/settings.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter

from lisa_ros.errors import SettingsError
from lisa_ros.files.parameter_sections import ParameterSection
from lisa_ros.ros.parameter_files import ineffective_names, read_sections, source_of
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import ValidatedSettings, converted, parameter_info, validate

if TYPE_CHECKING:
    from rclpy.node import Node

_Settings = TypeVar('_Settings', bound=ValidatedSettings)


class CurrentSettings:
    """The node's current settings: one frozen value, replaced as a whole.

    Threads: any. If several settings must be consistent, read `value` once.
    """

    def __init__(self, value: Settings):
        self._value = value

    @property
    def value(self) -> Settings:
        """The present settings."""
        return self._value

    def replace(self, value: Settings) -> None:
        """Use other settings from now on."""
        self._value = value


def declare(
    node: Node,
    settings_class: type[ValidatedSettings],
    is_configured: Callable[[], bool] = lambda: False,
) -> None:
    """Declare every setting with its default, description and range, and check each change.

    Values of another type are converted where their meaning is clear (see `converted`), both at
    the start and when a parameter is set.

    Args:
        node: gets the parameters; values from files and the command line override defaults.
        settings_class: has the settings as its fields.
        is_configured: returns whether settings that are read on configure are in use now.

    Raises:
        SettingsError: an overriding value is not valid.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}

    def convert_changes(changes: list[Parameter]) -> list[Parameter]:
        return [_converted(fields.get(change.name), change) for change in changes]

    def check_changes(changes: list[Parameter]) -> SetParametersResult:
        for change in changes:
            field = fields.get(change.name)
            if field is None:  # use_sim_time, qos_overrides: not of this package
                continue
            if change.value == node.get_parameter(change.name).value:
                continue  # `ros2 param load` sets all parameters of a file
            info, reason = parameter_info(field), ''
            if info.read_only:
                reason = f'{change.name} is read at the start: give it to the node and start it'
            elif info.at_configure and is_configured():
                reason = f'{change.name} is read on configure: call cleanup first'
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    sections = read_sections()
    for field in fields.values():
        value = _initial_value(node, field, sections)
        node.declare_parameter(field.name, value, descriptor(field), ignore_override=True)
    for warning in ineffective_names(node.get_fully_qualified_name(), fields, sections):
        node.get_logger().warning(warning)
    node.add_pre_set_parameters_callback(convert_changes)
    node.add_on_set_parameters_callback(check_changes)


def _initial_value(
    node: Node, field: dataclasses.Field, sections: Sequence[ParameterSection]
) -> Any:
    """Return the value of a parameter from a file or the command line, else its default.

    Raises:
        SettingsError: the value is not valid.
    """
    # Any type is accepted for a moment: rclpy refuses another type than the default's.
    any_type = ParameterDescriptor(dynamic_typing=True)
    given = node.declare_parameter(field.name, _ros_value(field.default), any_type).value
    node.undeclare_parameter(field.name)
    value = converted(field, given)
    try:
        validate(field, [] if value is None else value)  # an empty list has no type in ROS
    except SettingsError as error:
        source = source_of(field.name, node.get_fully_qualified_name(), sections)
        raise SettingsError(f'{source}{error}') from error
    return _ros_value(value)


def _converted(field: dataclasses.Field | None, change: Parameter) -> Parameter:
    """Return a change with its value in the type of its setting.

    Raises:
        SettingsError: the value is not valid; `guard_services` makes it the answer. rclpy would
            answer "Wrong parameter type, expected '4' got '1'".
    """
    if field is None or change.type_ is Parameter.Type.NOT_SET:
        return change
    value = converted(field, change.value)
    validate(field, value)
    return change if value is change.value else Parameter(change.name, value=_ros_value(value))


def _ros_value(value: Any) -> Any:
    """Return a value as ROS can hold it: it has no empty list, because that has no type."""
    if isinstance(value, tuple):
        return list(value) or ['']
    return value


def descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    """Return what `ros2 param describe` shows of a field of a settings class."""
    info = parameter_info(field)
    constraints = []
    if info.choices:
        constraints.append('one of ' + ', '.join(repr(choice) for choice in info.choices))
    if info.at_configure:
        constraints.append('read on configure; another value is refused while configured')
    if info.read_only:  # not as ROS's own flag, with which the same value is refused, too
        constraints.append('read at the start; another value is refused')
    result = ParameterDescriptor(
        name=field.name,
        description=info.description,
        additional_constraints='; '.join(constraints),
    )
    if info.minimum is not None and isinstance(field.default, int):
        result.integer_range = [
            IntegerRange(from_value=int(info.minimum), to_value=int(info.maximum), step=1)
        ]
    elif info.minimum is not None:
        result.floating_point_range = [
            FloatingPointRange(
                from_value=float(info.minimum), to_value=float(info.maximum), step=0.0
            )
        ]
    return result


def read(node: Node, settings_class: type[_Settings]) -> _Settings:
    """Return the present values of the parameters."""
    names = [field.name for field in dataclasses.fields(settings_class)]
    return settings_class(**{name: node.get_parameter(name).value for name in names})
