# SPDX-License-Identifier: Apache-2.0
"""Declare the fields of a settings class as ROS parameters, check each change, read values.

Names, defaults, ranges and descriptions are in lisa_ros/settings.py and voice/settings.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter

from lisa_ros.errors import SettingsError
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import ValidatedSettings, parameter_info, validate

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

    Args:
        node: gets the parameters; values from files and the command line override defaults.
        settings_class: has the settings as its fields.
        is_configured: returns whether settings that are read on configure are in use now.

    Raises:
        rclpy.exceptions.ParameterException: an overriding value is not valid.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}

    def check_changes(changes: list[Parameter]) -> SetParametersResult:
        for change in changes:
            field = fields.get(change.name)
            if field is None:  # use_sim_time, qos_overrides: not of this package
                continue
            try:
                validate(field, change.value)
            except SettingsError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if parameter_info(field).at_configure and is_configured():
                reason = f'{change.name} is read on configure: call cleanup first'
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check_changes)  # first: it also checks initial values
    for name, field in fields.items():
        default = [''] if field.default == () else field.default  # ROS has no typed empty list
        node.declare_parameter(name, default, descriptor(field))


def descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    """Return what `ros2 param describe` shows of a field of a settings class."""
    info = parameter_info(field)
    constraints = []
    if info.choices:
        constraints.append('one of ' + ', '.join(repr(choice) for choice in info.choices))
    if info.at_configure:
        constraints.append('read on configure, refused while configured')
    result = ParameterDescriptor(
        name=field.name,
        description=info.description,
        additional_constraints='; '.join(constraints),
        read_only=info.read_only,
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
