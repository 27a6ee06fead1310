# SPDX-License-Identifier: Apache-2.0
"""For every test: under `make test`, which sets ROS up, its absence fails and skips nothing."""

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
        raise pytest.UsageError(f'the set-up is broken, `make clean setup`: {error}') from error
