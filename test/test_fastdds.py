# SPDX-License-Identifier: Apache-2.0
"""Room for large messages: asked of the real Fast DDS, and left to those who have chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lisa_ros.ros import fastdds

CHOICES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
    'SKIP_DEFAULT_XML',
)
SHARED = """
import sys
sys.path.insert(0, {here!r})
from lisa_ros.ros import transport
print(transport.make_room())
import rclpy
rclpy.init()
node = rclpy.create_node('roomy')
for line in open('/proc/self/maps'):
    if '/dev/shm/fastdds_' in line or '/dev/shm/fastrtps_' in line:
        begin, end = (int(end, 16) for end in line.split()[0].split('-'))
        print(end - begin)
"""


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    for name in CHOICES:
        monkeypatch.setenv(name, '')  # an empty one is none; and it is put back afterwards
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('nothing_chosen')
@pytest.mark.parametrize(('distribution', 'name'), [('kilted', CHOICES[0]), ('jazzy', CHOICES[1])])
def test_room_is_made_where_nobody_has_chosen(distribution, name, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    assert fastdds.configure_shared_memory()
    assert {one: os.environ[one] for one in CHOICES if os.environ[one]} == {
        name: str(fastdds.PROFILE)
    }
    assert not fastdds.configure_shared_memory()  # it is made already


@pytest.mark.usefixtures('nothing_chosen')
@pytest.mark.parametrize('name', CHOICES)
def test_what_the_user_has_chosen_stays(name, monkeypatch):
    monkeypatch.setenv(name, 'mine')
    assert not fastdds.configure_shared_memory()
    assert [one for one in CHOICES if os.environ[one]] == [name]


@pytest.mark.usefixtures('nothing_chosen')
def test_a_profile_in_the_working_directory_stays(tmp_path):
    (tmp_path / 'DEFAULT_FASTDDS_PROFILES.xml').touch()
    assert not fastdds.configure_shared_memory()


@pytest.mark.ros
@pytest.mark.usefixtures('nothing_chosen')
@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads what Linux has mapped')
def test_fast_dds_takes_the_profile_and_has_the_room():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    code = SHARED.format(here=str(Path(__file__).parents[1]))
    told = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not told.stderr, told.stderr  # Fast DDS and rmw_fastrtps complain there
    made, *sizes = told.stdout.split()
    assert made == 'True'
    assert max(map(int, sizes)) > 32 << 20


class Refusing:
    """A publisher whose DDS has waited for room in vain: with the real one that takes minutes."""

    topic_name = '/lisa/mask'

    def publish(self, message):
        raise RuntimeError('Failed to publish: cannot publish data')


@pytest.mark.ros
def test_a_message_that_dds_refuses_is_told_and_ends_nothing():
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')
    from rclpy.lifecycle import LifecycleNode

    from lisa_ros.ros.publishers import AnswerPublishers
    from lisa_ros.settings import Settings

    context = rclpy.Context()
    context.init()
    node = LifecycleNode('outputs', context=context)
    told = []
    outputs = AnswerPublishers(node, '~/', Settings, None, lambda *said: told.append(said))
    outputs.publish_safely(Refusing(), None)
    ((line, cause),) = told
    assert line == '/lisa/mask has lost a message: Failed to publish: cannot publish data'
    assert cause == 'lost on /lisa/mask'
    context.shutdown()
    outputs.publish_safely(Refusing(), None)  # after Ctrl-C there is nobody to tell
    assert len(told) == 1
