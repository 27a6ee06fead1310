# SPDX-License-Identifier: Apache-2.0
"""QoS of sensor topics, of commands and their answers, and of the action `~/segment`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from rclpy.qos import (
    DurabilityPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.topic_endpoint_info import TopicEndpointInfo

# Of server and clients. Deep enough for a burst of goals: with the usual depth of 10 some goals
# are lost, and their clients wait for ever.
ACTION_SERVICE_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)

# Of ~/command and ~/segmentation, which answers each command: a burst of commands fits in.
COMMAND_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)

_OUTPUT_POLICIES = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)  # rclpy's default are the first three
_INPUT_POLICIES = (
    *_OUTPUT_POLICIES,
    QoSPolicyKind.DEADLINE,
    QoSPolicyKind.LIVELINESS,
    QoSPolicyKind.LIVELINESS_LEASE_DURATION,
)
OVERRIDABLE_POLICIES = {'subscription': _INPUT_POLICIES, 'publisher': _OUTPUT_POLICIES}


def sensor_qos() -> QoSProfile:
    """Return the QoS of camera and audio subscriptions: best effort, keep last 5.

    Each call returns a new copy, because rclpy writes overrides into the profile that it gets.
    """
    return copy.copy(qos_profile_sensor_data)


def latched_qos() -> QoSProfile:
    """Return the QoS that receives the last message of a latched (transient local) publisher."""
    return QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def is_latched(publisher: TopicEndpointInfo) -> bool:
    """Return whether `latched_qos` fits a publisher."""
    profile = publisher.qos_profile
    return (
        profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
        and profile.reliability is ReliabilityPolicy.RELIABLE
    )


def are_all_latched(publishers: Sequence[TopicEndpointInfo]) -> bool:
    """Return whether `latched_qos` fits all publishers of a topic, and there are some."""
    return bool(publishers) and all(map(is_latched, publishers))


def is_latched_in_vain(profile: QoSProfile) -> bool:
    """Return whether a subscription asks for latched messages in a way that gets none."""
    return (
        profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
        and profile.reliability is ReliabilityPolicy.BEST_EFFORT
    )


def input_qos_overrides() -> QoSOverridingOptions:
    """Return the options for `qos_overrides.<topic>.subscription.*` parameters of an input.

    These parameters set every policy that a subscription has.
    """
    return QoSOverridingOptions(_INPUT_POLICIES)


def output_qos_overrides() -> QoSOverridingOptions:
    """Return the options for `qos_overrides.<topic>.publisher.*` parameters of an output."""
    return QoSOverridingOptions(_OUTPUT_POLICIES)


def creation_fault(side: str, topic: str, error: Exception) -> str:
    """Return why a publisher or subscription cannot be made, and the cure.

    Args:
        side: publisher or subscription.
        topic: full name.
        error: of rclpy.
    """
    missing = f'no {side} {"to" if side == "subscription" else "of"} {topic}'
    if 'incompatible type' in str(error):  # as Fast DDS says it
        return (
            f'{missing}: the node has this topic already, with another type; correct '
            'the remappings (-r), so that each of its topics has a name of its own'
        )
    return (
        f'{missing}: {error}; correct qos_overrides.{topic}.{side}.* and restart the '
        'node, which reads them at its start'
    )
