# SPDX-License-Identifier: Apache-2.0
"""Shared memory for large messages: with the real Fast DDS, and never against the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lisa_ros.resources import FASTDDS_PROFILE
from lisa_ros.ros import fastdds

VARIABLES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
    'SKIP_DEFAULT_XML',
)
PRINT_SHARED_MEMORY = """
import sys
sys.path.insert(0, {here!r})
from lisa_ros.ros import fastdds
print(fastdds.configure_shared_memory())
import rclpy
rclpy.init()
node = rclpy.create_node('roomy')
for line in open('/proc/self/maps'):
    if '/dev/shm/fastdds_' in line or '/dev/shm/fastrtps_' in line:
        begin, end = (int(end, 16) for end in line.split()[0].split('-'))
        print(end - begin)
"""


@pytest.fixture
def unconfigured(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.setenv(name, '')  # empty means unset; restored afterwards
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('unconfigured')
@pytest.mark.parametrize(
    ('distribution', 'name'), [('kilted', VARIABLES[0]), ('jazzy', VARIABLES[1])]
)
def test_the_profile_is_set_if_the_user_has_none(distribution, name, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    assert fastdds.configure_shared_memory()
    assert {variable: os.environ[variable] for variable in VARIABLES if os.environ[variable]} == {
        name: str(FASTDDS_PROFILE)
    }
    assert not fastdds.configure_shared_memory()  # it is set already


@pytest.mark.usefixtures('unconfigured')
@pytest.mark.parametrize('name', VARIABLES)
def test_the_user_s_configuration_is_kept(name, monkeypatch):
    monkeypatch.setenv(name, 'mine')
    assert not fastdds.configure_shared_memory()
    assert [variable for variable in VARIABLES if os.environ[variable]] == [name]


@pytest.mark.usefixtures('unconfigured')
def test_a_profile_in_the_working_directory_is_kept(tmp_path):
    (tmp_path / 'DEFAULT_FASTDDS_PROFILES.xml').touch()
    assert not fastdds.configure_shared_memory()


@pytest.mark.ros
@pytest.mark.usefixtures('unconfigured')
@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads what Linux has mapped')
def test_fast_dds_reads_the_profile_and_allocates_the_memory():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    code = PRINT_SHARED_MEMORY.format(here=str(Path(__file__).parents[1]))
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not process.stderr, process.stderr  # Fast DDS and rmw_fastrtps print warnings there
    configured, *sizes = process.stdout.split()
    assert configured == 'True'
    assert max(map(int, sizes)) > 32 << 20


class Refusing:
    """A publisher whose DDS has no free memory: with the real one that takes minutes."""

    topic_name = '/lisa/mask'

    def publish(self, message):
        raise RuntimeError('Failed to publish: cannot publish data')


class Log:
    """A throttled log that keeps its errors with their causes."""

    def __init__(self):
        self.errors = []

    def error(self, message, cause):
        self.errors.append((message, cause))


@pytest.mark.ros
def test_a_message_that_dds_refuses_is_logged_and_raises_nothing():
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')
    from rclpy.lifecycle import LifecycleNode

    from lisa_ros.ros.context import NodeContext
    from lisa_ros.ros.parameter_declaration import CurrentSettings
    from lisa_ros.ros.publishers import AnswerPublishers
    from lisa_ros.settings import Settings

    context = rclpy.Context()
    context.init()
    node = LifecycleNode('outputs', context=context)
    log = Log()
    node_context = NodeContext(node, CurrentSettings(Settings()), None, log)
    outputs = AnswerPublishers(node_context, '~/')
    outputs.publish_safely(Refusing(), None)
    ((line, cause),) = log.errors
    assert line == '/lisa/mask has lost a message: Failed to publish: cannot publish data'
    assert cause == 'lost on /lisa/mask'
    context.shutdown()
    outputs.publish_safely(Refusing(), None)  # after Ctrl-C nothing is logged
    assert len(log.errors) == 1
