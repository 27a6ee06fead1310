# SPDX-License-Identifier: Apache-2.0
"""Shared memory for large messages: with the real Fast DDS, and never against the user."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lisa_ros.resources import FASTDDS_LOCALHOST_PROFILE, FASTDDS_PROFILE
from lisa_ros.ros import fastdds, fastdds_segments

VARIABLES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
    'SKIP_DEFAULT_XML',
)
PRINT_SHARED_MEMORY = """
import sys
sys.path.insert(0, {here!r})
from lisa_ros.ros import fastdds, fastdds_segments
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
    monkeypatch.setenv('RMW_FASTRTPS_USE_QOS_FROM_XML', '1')  # as the function sets it
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('unconfigured')
@pytest.mark.parametrize(
    ('distribution', 'name'), [('kilted', VARIABLES[0]), ('jazzy', VARIABLES[1])]
)
@pytest.mark.parametrize(
    ('reach', 'profile'),
    [('LOCALHOST', FASTDDS_LOCALHOST_PROFILE), ('', FASTDDS_PROFILE), ('SUBNET', FASTDDS_PROFILE)],
)
def test_the_profile_is_set_if_the_user_has_none(distribution, name, reach, profile, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    assert fastdds.configure_shared_memory()
    assert {variable: os.environ[variable] for variable in VARIABLES if os.environ[variable]} == {
        name: str(profile)
    }
    assert not fastdds.configure_shared_memory()  # it is set already


@pytest.mark.usefixtures('unconfigured')
def test_the_old_variable_for_a_graph_on_one_computer_counts(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', '')
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    assert fastdds.profile() == FASTDDS_LOCALHOST_PROFILE


def test_the_profiles_differ_in_the_udp_transport_alone():
    def elements(path):
        return [
            (element.tag, (element.text or '').strip())
            for element in ElementTree.parse(path).iter()  # noqa: S314  # our own file
        ]

    both, local = elements(FASTDDS_PROFILE), elements(FASTDDS_LOCALHOST_PROFILE)
    for element in local:
        both.remove(element)
    assert [text for _, text in both if text] == ['udp', 'UDPv4', 'udp']


@pytest.mark.usefixtures('unconfigured')
@pytest.mark.parametrize('name', VARIABLES)
def test_the_user_s_configuration_is_kept(name, monkeypatch):
    monkeypatch.setenv(name, 'mine')
    assert not fastdds.configure_shared_memory()
    assert [variable for variable in VARIABLES if os.environ[variable]] == [name]


@pytest.mark.usefixtures('unconfigured')
@pytest.mark.parametrize(
    ('mode', 'from_profile'),
    [('', '1'), ('SYNCHRONOUS', '1'), ('AUTO', '1'), ('ASYNCHRONOUS', None), ('SYNC', None)],
)
def test_the_user_s_publication_mode_is_kept(mode, from_profile, monkeypatch):
    monkeypatch.setenv('RMW_FASTRTPS_PUBLICATION_MODE', mode)
    monkeypatch.delenv('RMW_FASTRTPS_USE_QOS_FROM_XML')
    assert fastdds.configure_shared_memory()
    assert os.environ.get('RMW_FASTRTPS_USE_QOS_FROM_XML') == from_profile


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


@pytest.mark.ros
@pytest.mark.usefixtures('unconfigured')
@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads what Linux has mapped')
def test_rmw_fastrtps_reads_the_publication_mode_beside_the_profile(monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    monkeypatch.setenv('RMW_FASTRTPS_PUBLICATION_MODE', 'ASYNC')  # it says that it knows no such
    monkeypatch.delenv('RMW_FASTRTPS_USE_QOS_FROM_XML')
    code = PRINT_SHARED_MEMORY.format(here=str(Path(__file__).parents[1]))
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    )
    assert 'RMW_FASTRTPS_PUBLICATION_MODE' in process.stderr
    assert max(map(int, process.stdout.split()[1:])) > 32 << 20


BURST = """
import sys
sys.path.insert(0, {here!r})
from lisa_ros.ros import fastdds
fastdds.configure_shared_memory()
from pathlib import Path
import rclpy
from rclpy.serialization import serialize_message
from std_msgs.msg import String
from lisa_ros.ros.memory_reclaim import reclaim
rclpy.init()
node, received = rclpy.create_node('burst'), []
def mebibytes():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) // 1024
node.create_subscription(String, 'a', lambda message: received.append(len(message)), 200, raw=True)
publisher = node.create_publisher(String, 'a', 200)
message = serialize_message(String(data='x' * 1_000_000))
before = mebibytes()
for _ in range(100):
    publisher.publish(message)
full = mebibytes()
while len(received) < 100:
    rclpy.spin_once(node)
reclaim()
print(full - before, mebibytes() - before)
"""


@pytest.mark.ros
@pytest.mark.usefixtures('unconfigured')
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_messages_that_were_read_cost_no_memory():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    code = BURST.format(here=str(Path(__file__).parents[1]))
    output = subprocess.check_output([sys.executable, '-c', code], text=True, timeout=60)
    unread, read = map(int, output.split())
    assert unread > 90  # [MiB]: the burst was in the history
    assert read < 20


def segment(folder, number, age):
    """Make the files of a segment as Fast DDS does; return both paths."""
    paths = [folder / f'fastdds_{number:016x}{suffix}' for suffix in ('', '_el')]
    for path in paths:
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    return paths


@pytest.mark.skipif(sys.platform != 'linux', reason='Fast DDS has no such files elsewhere')
def test_only_segments_that_nobody_locks_are_removed(tmp_path):
    abandoned, used, young = (segment(tmp_path, n, age) for n, age in enumerate((60, 60, 0)))
    foreign = [tmp_path / name for name in ('fastdds_port7400_el', 'x_el', 'sem.fastdds_0_el')]
    for path in foreign:
        path.touch()
        os.utime(path, (0, 0))
    with used[1].open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert fastdds_segments.remove_abandoned_segments(tmp_path) == 1
        assert fastdds_segments.remove_abandoned_segments(tmp_path / 'absent') == 0
    assert {*tmp_path.iterdir()} == {*used, *young, *foreign}
    assert not any(path.exists() for path in abandoned)


@pytest.mark.ros
@pytest.mark.usefixtures('unconfigured')
@pytest.mark.skipif(sys.platform != 'linux', reason='Fast DDS has no such files elsewhere')
def test_the_segment_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    monkeypatch.setattr(fastdds_segments, '_MIN_AGE', 0.0)
    code = PRINT_SHARED_MEMORY.format(here=str(Path(__file__).parents[1])).replace(
        'print(end - begin)', "print('segment', line.split()[-1])"
    )
    command = [sys.executable, '-c', code + "print('ready', flush=True)\nsys.stdin.read()"]
    # Processes that discover each other map each other's segments.
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'OFF')
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as alive:
        segments = [read_segments(process) for process in (killed, alive)]
        killed.kill()
        killed.wait()
        fastdds_segments.remove_abandoned_segments()
        assert not any(path.exists() for path in segments[0])
        assert all(path.exists() for path in segments[1])
        alive.kill()
    fastdds_segments.remove_abandoned_segments()
    assert not any(path.exists() for path in segments[1])


@pytest.mark.ros
@pytest.mark.usefixtures('unconfigured')
@pytest.mark.skipif(sys.platform != 'linux', reason='Fast DDS has no such files elsewhere')
def test_a_process_that_ends_without_a_teardown_leaves_no_segment():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    code = PRINT_SHARED_MEMORY.format(here=str(Path(__file__).parents[1])).replace(
        'print(end - begin)', "print('segment', line.split()[-1])"
    )
    code += """
print('ready', flush=True)
from lisa_ros import stop_signals
segments = fastdds_segments.own_segments()
stop_signals.before_exit(lambda: fastdds_segments.remove_segments(segments))
stop_signals.leave(0)
"""
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
    ) as process:
        segments = read_segments(process)
        assert process.wait(20) == 0
    assert not any(path.exists() for path in segments)


def read_segments(process):
    """Return the segments that a process names before it is ready; it has its own, at least."""
    words = [line.split() for line in iter(process.stdout.readline, 'ready\n')]
    paths = [Path(line[1]) for line in words if line[0] == 'segment']
    names = {path for path in paths if 'port' not in path.name}
    assert names
    return names


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
    node_context = NodeContext(node, CurrentSettings(Settings()), None, log, None)
    outputs = AnswerPublishers(node_context, '~/')
    outputs.publish_safely(Refusing(), None)
    ((line, cause),) = log.errors
    assert line == '/lisa/mask has lost a message: Failed to publish: cannot publish data'
    assert cause == 'lost on /lisa/mask'
    context.shutdown()
    outputs.publish_safely(Refusing(), None)  # after Ctrl-C nothing is logged
    assert len(log.errors) == 1


@pytest.mark.ros
@pytest.mark.skipif(sys.platform != 'linux', reason='glibc, and /proc')
def test_free_pages_of_the_heap_are_returned():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    code = """
import ctypes, pathlib
from lisa_ros.ros.memory_reclaim import reclaim
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def pages():
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1])
before = pages()
blocks = [libc.malloc(60_000) for _ in range(1000)]  # below the size for a mapping of its own
for block in blocks:
    ctypes.memset(block, 1, 60_000)
for block in blocks[::2] + blocks[1:-1:2]:  # the last one stays on top
    libc.free(block)
kept = pages() - before
reclaim()
print(kept, pages() - before)
"""
    output = subprocess.check_output([sys.executable, '-c', code], text=True, timeout=60)
    kept, left = map(int, output.split())
    if kept < 10_000:
        pytest.skip('this C library returns free pages by itself')
    assert left < 1000
