# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP at any moment: the nodes end with 0, the command line with 130.

LISA_ROS_SIGNAL_MOMENTS=200 tries that many moments from 0 to 20 s after the start (an hour)
instead of twelve from 0 to 6 s.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

from ros_graph import MODEL, NodeProcess, Peer, executable, image
from std_msgs.msg import String

from lisa_ros.client import LisaClient, Status

pytestmark = pytest.mark.ros

MOMENTS = int(os.environ.get('LISA_ROS_SIGNAL_MOMENTS', '12'))
LATEST = 20.0 if MOMENTS > 12 else 6.0  # [s]
LIMIT = 2.0  # from the first signal to the end [s]
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SEQUENCES = ([INT], [TERM], [HUP], [INT, INT], [TERM, TERM, INT], [INT, TERM, HUP, INT, TERM])
LISA_NODE = executable()
VOICE_NODE = executable('voice_node', 'lisa_ros.ros.voice_node')


def end_by(process, numbers, pause=0.05):
    """Send signals to a process; return its exit status and the time to its end [s]."""
    start = time.monotonic()
    for number in numbers:
        process.send_signal(number)  # no effect after its end
        time.sleep(pause if len(numbers) > 1 else 0)
    try:
        return process.wait(30), time.monotonic() - start
    finally:
        process.kill()


def check_end_by(node, numbers, pause=0.05):
    status, seconds = end_by(node.process, numbers, pause)
    assert 'Traceback' not in node.output(), node.output()
    assert status == 0, node.output()
    assert seconds < LIMIT, node.output()


def start_and_end(number, log):
    moment = random.Random(number)
    delay = (number + moment.random()) * LATEST / MOMENTS
    program = VOICE_NODE if number % 4 == 3 else LISA_NODE
    node = NodeProcess(log, MODEL if program is LISA_NODE else {}, program=program)
    time.sleep(delay)
    check_end_by(node, moment.choice(SEQUENCES))


@pytest.mark.parametrize('first', range(0, MOMENTS, 2))
def test_a_signal_at_any_moment_ends_a_node(first, tmp_path):
    with ThreadPoolExecutor() as pool:  # two nodes at once, on two cores
        logs = tmp_path / 'first.log', tmp_path / 'second.log'
        list(pool.map(start_and_end, (first, first + 1), logs))


@pytest.mark.parametrize('program', [LISA_NODE, VOICE_NODE], ids=['lisa_node', 'voice_node'])
@pytest.mark.parametrize('delay', [0.01, 0.05, 0.1, 0.2])
def test_a_signal_while_python_starts_ends_a_node(delay, program, tmp_path):
    node = NodeProcess(tmp_path / 'log', {}, program=program)
    time.sleep(delay)
    check_end_by(node, [INT, TERM, HUP], pause=0.001)


@pytest.fixture
def scripted_node(tmp_path):
    """An active node whose model answers "hang..." only when it is cancelled, or never."""
    replies = {'': {}, 'hang': {'hang': 1}, 'hang for ever': {'hang': 1, 'uncancellable': 1}}
    (tmp_path / 'replies.json').write_text(json.dumps(replies))
    program = [sys.executable, str(Path(__file__).with_name('slow_node.py'))]
    parameters = {'model': f'scripted:{tmp_path}/replies.json', 'diagnostics_period': 0.1}
    return NodeProcess(tmp_path / 'log', parameters, program=program)


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


def send_goals(peer, node, queries):
    """Send goals about new images; return their futures once the first is answered."""
    peer.wait_until_active(node)
    client, stages = LisaClient(peer.node), []
    sent = [
        client.segment_async(query, on_feedback=lambda feedback: stages.append(feedback.stage))
        for query in queries
    ]

    def is_looking():
        peer.publish_image(image([[[1, 2, 3]] * 40] * 30))
        return 'looking' in stages

    peer.wait(is_looking, what='the first goal to be run')
    return sent


@pytest.mark.parametrize('numbers', [[TERM, TERM], [HUP, INT]], ids=str)
def test_goals_in_flight_get_their_result_from_a_node_that_is_stopped(
    numbers, scripted_node, peer
):
    goals = send_goals(peer, scripted_node, ['hang'] * 5)
    peer.commands.publish(String(data='hang too'))
    for number in numbers:
        scripted_node.process.send_signal(number)
    peer.wait(lambda: all(goal.done() for goal in goals), what='the results')
    assert {goal.result().status for goal in goals} == {Status.CANCELLED}
    check_end_by(scripted_node, [])


def test_a_model_that_does_not_stop_does_not_keep_the_node(scripted_node, peer):
    send_goals(peer, scripted_node, ['hang for ever'])
    check_end_by(scripted_node, [TERM, INT])


@pytest.mark.parametrize(
    ('delay', 'numbers', 'status', 'output'),
    [
        (0.3, [INT], 130, 'lisa-ros: interrupted\n'),
        (0.9, [INT, INT], 130, 'lisa-ros: interrupted\n'),
        (0.6, [TERM], 128 + TERM, ''),
        (1.2, [HUP], 128 + HUP, ''),
    ],
)
def test_a_signal_ends_the_command_line_as_usual(delay, numbers, status, output, tmp_path):
    Image.new('RGB', (40, 30)).save(tmp_path / 'image.png')
    arguments = ['segment', str(tmp_path / 'image.png'), 'the mug', '--out', str(tmp_path)]
    process = subprocess.Popen(
        [*executable('lisa-ros', 'lisa_ros'), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(delay)
    assert end_by(process, numbers, pause=0.001)[0] == status
    assert process.stdout.read() == output


def list_models(stdout, is_buffered):
    """Run `lisa-ros models`; return its exit status and what it wrote to stderr."""
    process = subprocess.run(
        [*executable('lisa-ros', 'lisa_ros'), 'models'],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONUNBUFFERED': '' if is_buffered else '1'},
        timeout=60,
        check=False,
        text=True,
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize('is_buffered', [False, True])
def test_a_closed_pipe_ends_the_command_line_without_a_traceback(is_buffered):
    """As in `lisa-ros models | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    assert list_models(writer, is_buffered) == (141, '')
    os.close(writer)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs Linux')
@pytest.mark.parametrize('is_buffered', [False, True])
def test_a_full_disk_under_the_output_is_an_error_without_a_traceback(is_buffered):
    with Path('/dev/full').open('w') as full:
        status, errors = list_models(full, is_buffered)
    assert status == 1
    assert 'No space left on device' in errors
    assert 'Traceback' not in errors


IMPORTING = """
import signal, subprocess, sys, time
from lisa_ros.startup import _exit_terminated
signal.signal(signal.SIGTERM, _exit_terminated)
child = subprocess.Popen(['sleep', '60']) if sys.argv[1] == 'child' else None
try:
    import slow_module
    time.sleep(10)
finally:
    if child:
        child.kill()
"""

SLOW_MODULE = """
import sys, time
modules = set(sys.modules)
print('importing', flush=True)
time.sleep(0.5)
print('imported', *set(sys.modules) - modules)
"""


@pytest.mark.parametrize(('child', 'output'), [('child', 'imported\n'), ('no child', '')])
def test_a_signal_does_not_raise_in_an_import(child, output, tmp_path):
    """PyTorch aborts if a callback of its native code raises.

    Nor does the handler import: the next signal would come during this import.
    """
    (tmp_path / 'slow_module.py').write_text(SLOW_MODULE)
    process = subprocess.Popen(
        [sys.executable, '-u', '-c', IMPORTING, child],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'},
    )
    assert process.stdout.readline() == 'importing\n'
    assert end_by(process, [TERM])[0] == 128 + TERM
    assert process.stdout.read() == output


FORKING = """
import os, signal, time
from lisa_ros import stop_signals
stop_signals.install()
child = os.fork()
if child == 0:
    time.sleep(30)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
print('child ended by', os.waitpid(child, 0)[1])
time.sleep(0.2)
print('parent goes on')
"""


def test_a_signal_to_a_forked_child_ends_the_child_only():
    process = subprocess.run(
        [sys.executable, '-c', FORKING], capture_output=True, text=True, timeout=30, check=True
    )
    assert process.stdout.splitlines() == [f'child ended by {int(TERM)}', 'parent goes on']


WAITING = """
import subprocess, sys, time
from lisa_ros import stop_signals
stop_signals.install()
child = subprocess.Popen(['sleep', '60'])
stop_signals.before_exit(child.kill)
stop_signals.before_exit(lambda: 1 / 0)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_children_are_killed_before_the_end():
    process = subprocess.Popen([sys.executable, '-c', WAITING], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert end_by(process, [TERM])[0] == 0
    state = Path(f'/proc/{child}/stat')
    deadline = time.monotonic() + 10
    while state.exists() and ') Z ' not in state.read_text():  # a zombie if nobody waits for it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nohup_keeps_a_node_when_its_terminal_closes(tmp_path):
    node = NodeProcess(tmp_path / 'log', {}, program=['nohup', *VOICE_NODE])
    time.sleep(1.0)
    node.process.send_signal(HUP)
    time.sleep(0.5)
    assert node.process.poll() is None, node.output()
    check_end_by(node, [INT])


LATE_ACTIVATION = """
import sys
import time
sys.path.insert(0, sys.argv[1])
import scripted_backend
import rclpy
from lisa_ros.ros import camera_pipeline, node

shutdown = rclpy.try_shutdown
rclpy.try_shutdown = lambda: (time.sleep(0.5), shutdown())  # as on a slow computer
activate = camera_pipeline.CameraPipeline.activate

def activate_late(camera, inference):
    print('activating', flush=True)
    end = time.monotonic() + 1.0
    while any(camera._context.node.publishers) and time.monotonic() < end:
        time.sleep(0.001)  # until the node is destroyed, which it may not be
    activate(camera, inference)

camera_pipeline.CameraPipeline.activate = activate_late
node.main([sys.argv[0], *sys.argv[2:]])
"""


def test_a_signal_while_a_node_activates_itself_does_not_destroy_it(tmp_path):
    (tmp_path / 'script.json').write_text('{}')
    program = [sys.executable, '-c', LATE_ACTIVATION, str(Path(__file__).parent)]
    parameters = {'model': f'scripted:{tmp_path}/script.json', 'isolation': 'thread'}
    node = NodeProcess(tmp_path / 'log', parameters, program=program)
    node.wait_for_output('activating')
    check_end_by(node, [INT])
    assert '[ERROR]' not in node.output(), node.output()


NATIVE_TEARDOWN = """
import ctypes

libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
text = ctypes.c_void_p(libc.strdup(b'native teardown'))
libc['__cxa_atexit'](libc.puts, text, None)  # as for a static object
"""
NODE_TO_STOP = """
from lisa_ros.ros import node
node.main()
"""


def test_a_node_that_was_stopped_ends_without_the_teardown_of_native_libraries(tmp_path):
    """Threads of DDS still run then, and use static objects; see `stop_signals.end`."""
    program = [sys.executable, '-c', NATIVE_TEARDOWN + NODE_TO_STOP]
    node = NodeProcess(tmp_path / 'log', {'autostart': 'false'}, program=program)
    node.wait_for_output('autostart is off')
    check_end_by(node, [INT])
    assert 'native teardown' not in node.output()


COMMAND = """
import atexit
from lisa_ros import cli, startup

def main(arguments):
    atexit.register(print, 'cleaned up')
    if 'other' not in arguments:
        import rclpy
    print('done')
    if 'exits' in arguments:
        raise SystemExit(3)
    return 3

cli.main = main
startup.run_command_line()
"""


@pytest.mark.parametrize(
    ('argument', 'output'),
    [
        ('returns', 'done\ncleaned up\n'),
        ('exits', 'done\ncleaned up\n'),
        ('other', 'done\ncleaned up\nnative teardown\n'),
    ],
)
def test_a_command_that_has_used_ros_ends_without_the_teardown_of_native_libraries(
    argument, output
):
    command = [sys.executable, '-c', NATIVE_TEARDOWN + COMMAND, argument]
    ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, output, '')


@pytest.mark.parametrize('closed', ['>&-', '<&- >&-'])
@pytest.mark.parametrize('program', [LISA_NODE, VOICE_NODE], ids=['lisa_node', 'voice_node'])
def test_a_node_whose_standard_streams_are_closed_ends_with_0(program, closed, tmp_path):
    """As a supervisor starts it that has no terminal; only stderr is open here."""
    shell = ['sh', '-c', f'exec "$@" {closed}', 'sh', *program]
    node = NodeProcess(tmp_path / 'log', {'autostart': 'false'}, program=shell)
    node.wait_for_output('[INFO]')
    check_end_by(node, [INT])


STREAMS = """
import os
from lisa_ros import startup
startup.open_closed_streams()
print('written')
os.write(3, ' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)).encode())
os.write(3, b' inherited' if all(map(os.get_inheritable, range(3))) else b' lost')
"""


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs Linux')
def test_closed_standard_streams_are_the_null_device(tmp_path):
    output = tmp_path / 'output'
    shell = ['sh', '-c', 'exec "$@" 3>"$0" <&- >&- 2>&-', output, sys.executable, '-c', STREAMS]
    assert subprocess.run(shell, check=False, timeout=60).returncode == 0
    assert output.read_text() == '/dev/null /dev/null /dev/null inherited'
