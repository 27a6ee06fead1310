# SPDX-License-Identifier: Apache-2.0
"""Settings as ROS parameters: declared, checked and read from the class that holds them."""

from __future__ import annotations

import copy
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
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions

from lisa_ros.errors import SettingsError
from lisa_ros.settings_schema import ValidatedSettings, parameter_info, validate

if TYPE_CHECKING:
    from rclpy.node import Node

_Kind = TypeVar('_Kind', bound=ValidatedSettings)


def declare(
    node: Node, kind: type[ValidatedSettings], is_configured: Callable[[], bool] = lambda: False
) -> None:
    """Declare every setting with its default, sentence and range, and check each change.

    Args:
        node: whose parameters they become; values from files and the command line win.
        kind: the class of settings.
        is_configured: tells whether settings that are read on configure are in use now.

    Raises:
        rclpy.exceptions.ParameterException: a value from outside that the setting does not take.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}

    def refuse(changes: list[Parameter]) -> SetParametersResult:
        for change in changes:
            field = fields.get(change.name)
            if field is None:  # use_sim_time, qos_overrides: not ours
                continue
            try:
                validate(field, change.value)
            except SettingsError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if parameter_info(field).at_configure and is_configured():
                reason = f'{change.name} is read on configure: clean the node up first'
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(refuse)  # first: it also checks the values of the start
    for name, field in fields.items():
        default = [''] if field.default == () else field.default  # ROS knows no empty list
        node.declare_parameter(name, default, descriptor(field))


def descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    """Return what `ros2 param describe` shows of one of the fields of a class of settings."""
    known = parameter_info(field)
    constraints = []
    if known.choices:
        constraints.append('one of ' + ', '.join(repr(choice) for choice in known.choices))
    if known.at_configure:
        constraints.append('read on configure, refused while configured')
    described = ParameterDescriptor(
        name=field.name,
        description=known.sentence,
        additional_constraints='; '.join(constraints),
        read_only=known.read_only,
    )
    if known.low is not None and isinstance(field.default, int):
        described.integer_range = [
            IntegerRange(from_value=int(known.low), to_value=int(known.high), step=1)
        ]
    elif known.low is not None:
        described.floating_point_range = [
            FloatingPointRange(from_value=float(known.low), to_value=float(known.high), step=0.0)
        ]
    return described


def read(node: Node, kind: type[_Kind]) -> _Kind:
    """Return the parameters' present values."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: node.get_parameter(name).value for name in names})


def sensor_qos() -> QoSProfile:
    """Return sensor-data QoS of one's own: rclpy writes overrides into the object it is given."""
    return copy.copy(qos_profile_sensor_data)


def qos_overrides() -> QoSOverridingOptions:
    """Let `qos_overrides.<topic>.subscription.{history,depth,reliability}` change an input."""
    return QoSOverridingOptions.with_default_policies()
