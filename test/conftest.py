# SPDX-License-Identifier: Apache-2.0
"""Stop the test run if ROS is required (`make test` sets that); run the slow files first."""

import gc
import importlib
import os

import pytest

# Several processes take a file each: a slow one at the end would leave the others idle.
SLOW_FILES = ('test_tabletop.py', 'test_trainer.py', 'test_action_server.py', 'test_node.py')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


def pytest_collection_finish():
    """Never look at what the imports of the tests have made: it stays."""
    gc.freeze()


@pytest.fixture(scope='module')
def one_thread():
    """Use one thread: layers as small as in the tests are slower with several."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
