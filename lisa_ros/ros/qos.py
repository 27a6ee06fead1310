# SPDX-License-Identifier: Apache-2.0
"""QoS of sensor topics, of commands and their answers, and of the action `~/segment`."""

from __future__ import annotations

import copy

from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions

# Of server and clients. Deep enough for a burst of goals: with the usual depth of 10 some goals
# are lost, and their clients wait for ever.
ACTION_SERVICE_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)

# Of ~/command and ~/segmentation, which answers each command: a burst of commands fits in.
COMMAND_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


def sensor_qos() -> QoSProfile:
    """Return the QoS of camera and audio subscriptions: best effort, keep last 5.

    Each call returns a new copy, because rclpy writes overrides into the profile that it gets.
    """
    return copy.copy(qos_profile_sensor_data)


def qos_overrides() -> QoSOverridingOptions:
    """Return the options for `qos_overrides.<topic>.subscription.*` parameters of an input.

    These parameters set reliability, history and depth.
    """
    return QoSOverridingOptions.with_default_policies()
