# SPDX-License-Identifier: Apache-2.0
"""Answer every service request, also one whose callback raises: its client would wait for ever.

The services of parameters and lifecycle are rclpy's, and their callbacks raise on odd requests:
`set_parameters` with an unknown type of value, for example.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions
from rcl_interfaces.msg import Parameter, ParameterType, SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.executors import await_or_execute
from rclpy.node import Node
from rclpy.service import Service

from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError
from lisa_ros.ros.executor import CallbackErrorLog

ServiceCallback = Callable[[Any, Any], Any]  # (request, response) -> response, or a coroutine

_VALUE_TYPES = range(ParameterType.PARAMETER_NOT_SET, ParameterType.PARAMETER_STRING_ARRAY + 1)

_TYPE_HASH = re.compile('RIHS01_[0-9a-f]{64}')
_FIRST_INTERNAL_TRANSITION = Transition.TRANSITION_ON_CONFIGURE_SUCCESS


def guard_services(node: Node, errors: CallbackErrorLog) -> None:
    """Make each present service of a node answer if its callback raises.

    The answer says that the request failed and why, if the response has fields for that; else it
    is empty. Call it before the node spins.
    """
    transitions = _available_transitions(node)
    for service in node.services:
        callback = service.callback
        if service.srv_type is SetParameters:
            callback = _set_one_by_one(callback, errors)
        elif service.srv_type is SetParametersAtomically:
            callback = _set_if_typed(callback)
        elif service.srv_type.__name__ == 'GetTypeDescription':
            callback = _describe_if_hashed(callback)
        elif service.srv_type is ChangeState:
            callback = _change_if_possible(callback, transitions, errors)
        service.callback = _guarded(service, callback, errors)


def _guarded(
    service: Service, callback: ServiceCallback, errors: CallbackErrorLog
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, response: Any) -> Any:
        try:
            answered = await await_or_execute(callback, request, response)
            if not isinstance(answered, service.srv_type.Response):
                raise TypeError(f'the callback returned {type(answered).__name__}')
            return answered
        except LisaError as error:  # the request is wrong, not the node
            return _failure(service.srv_type, str(error))
        except Exception as error:  # noqa: BLE001  # of rclpy's and our callbacks: any type
            errors.report(error, f'a request to {service.srv_name}')
            return _failure(service.srv_type, one_line(error))

    return answer


def _available_transitions(node: Node) -> Callable[[], list[Transition]]:
    """Return a function for the transitions that may be requested in the node's present state."""
    answer = next(
        (
            service.callback
            for service in node.services
            if service.srv_name.endswith('/get_available_transitions')
        ),
        lambda _, response: response,
    )

    def transitions() -> list[Transition]:
        response = answer(GetAvailableTransitions.Request(), GetAvailableTransitions.Response())
        found = [description.transition for description in response.available_transitions]
        return [transition for transition in found if transition.id < _FIRST_INTERNAL_TRANSITION]

    return transitions


def _change_if_possible(
    callback: ServiceCallback,
    transitions: Callable[[], list[Transition]],
    errors: CallbackErrorLog,
) -> ServiceCallback:
    """Return a callback of ChangeState for transitions that are possible in the present state.

    rclpy logs each other request, and accepts the transitions that a callback itself causes: a
    client could end `configure` while the weights load.
    """

    def change_state(request: Any, response: Any) -> Any:
        possible, wanted = transitions(), request.transition
        if any(_is_same(wanted, transition) for transition in possible):
            return callback(request, response)
        labels = ', '.join(transition.label for transition in possible) or 'none, it is changing'
        name = one_line(wanted.label) or wanted.id
        errors.report_refused('a transition', f'{name} is not possible; possible now: {labels}')
        response.success = False
        return response

    return change_state


def _is_same(wanted: Transition, transition: Transition) -> bool:
    """Return whether a request means a transition; a label counts more than a number."""
    if wanted.label:
        return wanted.label == transition.label
    return wanted.id == transition.id


def _describe_if_hashed(callback: ServiceCallback) -> ServiceCallback:
    """Return a callback of GetTypeDescription; rcl logs each text that is not a hash."""

    def describe(request: Any, response: Any) -> Any:
        if _TYPE_HASH.fullmatch(request.type_hash):
            return callback(request, response)
        response.successful = False
        response.failure_reason = (
            f'type_hash is {one_line(request.type_hash)!r}; expected RIHS01_ and 64 hex digits'
        )
        return response

    return describe


def _set_one_by_one(callback: ServiceCallback, errors: CallbackErrorLog) -> ServiceCallback:
    """Return a callback of SetParameters in which a wrong parameter does not affect the others."""

    def set_one(parameter: Parameter) -> SetParametersResult:
        reason = _type_fault(parameter)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        request = SetParameters.Request(parameters=[parameter])
        try:
            return callback(request, SetParameters.Response()).results[0]
        except LisaError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:  # noqa: BLE001  # as in `_guarded`
            errors.report(error, 'setting a parameter')
            return SetParametersResult(successful=False, reason=one_line(error))

    def set_parameters(request: Any, response: Any) -> Any:
        response.results = [set_one(parameter) for parameter in request.parameters]
        return response

    return set_parameters


def _set_if_typed(callback: ServiceCallback) -> ServiceCallback:
    """Return a callback of SetParametersAtomically that refuses unknown types of value."""

    def set_parameters(request: Any, response: Any) -> Any:
        reason = next(filter(None, map(_type_fault, request.parameters)), '')
        if reason:
            response.result = SetParametersResult(successful=False, reason=reason)
            return response
        return callback(request, response)

    return set_parameters


def _type_fault(parameter: Parameter) -> str:
    """Return why the type of a parameter's value is not one; empty if it is."""
    if parameter.value.type in _VALUE_TYPES:
        return ''
    return (
        f'{one_line(parameter.name)} has a value of type {parameter.value.type}; expected '
        f'{_VALUE_TYPES[0]} to {_VALUE_TYPES[-1]}, see rcl_interfaces/msg/ParameterType'
    )


def _failure(service_type: type, reason: str) -> Any:
    """Return a response that says that the request failed, if it has fields for that."""
    response = service_type.Response()
    if service_type is SetParametersAtomically:
        response.result = SetParametersResult(successful=False, reason=reason)
    elif hasattr(response, 'message'):
        response.message = reason  # `success` is false already
    return response
