# SPDX-License-Identifier: Apache-2.0
"""Stop the test run if ROS is required (`make test` sets that) and is not installed."""

import importlib
import os

import pytest


def pytest_configure(config):
    if not os.environ.get('LISA_ROS_REQUIRE_ROS'):
        return
    try:
        importlib.import_module('rclpy')
        importlib.import_module('lisa_ros.msg')
    except ImportError as error:
        raise pytest.UsageError(
            f'the ROS set-up is broken, run `make clean setup`: {error}'
        ) from error
