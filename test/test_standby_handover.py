# SPDX-License-Identifier: Apache-2.0
"""A standby process outlives a node that is killed, and loads the model of the next one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from lisa_ros.perception import standby_handover

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the handover needs Linux')

NODE = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import numpy, scripted_backend
from lisa_ros.perception.backend import *
from lisa_ros.perception.process_backend import ProcessBackend

backend = ProcessBackend(sys.argv[2], LoadOptions(), has_standby=True)
supervisor = backend._supervisor
while supervisor._standby is None:
    pass
print(supervisor._worker.pid, supervisor._standby.pid, flush=True)
image = numpy.zeros((4, 4, 3), numpy.uint8)
for line in sys.stdin:
    query = Query(line.strip())
    events = list(backend.stream(image, query, InferenceOptions(), threading.Event()))
    print(events[-1].result.answer, flush=True)
"""
REPLIES = {'': {'answer': 'Sure.'}, 'hold': {'hold': 30}}


class Node:
    """A process with a scripted model and a standby."""

    def __init__(self, folder, **environment):
        script = folder / 'script.json'
        script.write_text(json.dumps(REPLIES))
        tests = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, '-c', NODE, tests, f'scripted:{script}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.model, self.standby = map(int, self.process.stdout.readline().split())
        self.children = [psutil.Process(pid) for pid in (self.model, self.standby)]
        wait(lambda: self.children[1].num_threads() > 1)  # it reads messages
        time.sleep(0.5)  # it knows that it is a standby

    def ask(self, query):
        self.process.stdin.write(f'{query}\n')
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        """Kill the node alone; return when its pipe is closed: nobody else holds it."""
        self.process.kill()
        self.process.stdout.read()
        self.process.wait(5)


@pytest.fixture
def runtime_folder(monkeypatch):
    """A folder of the user; the path of a socket may have 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv('XDG_RUNTIME_DIR', folder)
        yield Path(folder)


@pytest.fixture
def start(tmp_path, runtime_folder):
    nodes = []

    def start(**environment):
        nodes.append(Node(tmp_path, **environment))
        return nodes[-1]

    yield start
    for node in nodes:
        node.process.kill()
        for process in node.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.process.stdin.close()
        node.process.stdout.close()
        node.process.wait(5)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_next_node_takes_the_standby_of_one_that_was_killed(start):
    first = start()
    first.kill()
    wait(lambda: has_ended(first.model))
    second = start()
    assert second.model == first.standby
    assert second.ask('the mug') == 'Sure.'
    second.kill()  # the third takes the standby that the second has started
    third = start()
    assert third.model == second.standby
    assert third.ask('the mug') == 'Sure.'
    wait(lambda: has_ended(second.model))


def test_a_taken_standby_ends_with_its_node_even_while_it_hangs(start):
    first = start()
    first.kill()
    second = start()
    assert second.model == first.standby
    second.process.stdin.write('hold\n')  # it hangs, and holds the GIL
    second.process.stdin.flush()
    time.sleep(0.3)
    second.process.kill()
    wait(lambda: has_ended(first.standby), timeout=2)


def test_a_standby_that_was_taken_can_be_killed_and_is_replaced(start):
    first = start()
    first.kill()
    second = start()
    os.kill(second.model, signal.SIGKILL)
    assert second.ask('the mug') == 'Sure.'


WAITING = """
import sys
from lisa_ros.perception import standby_handover
standby_handover.PATIENCE = 0.5
sys.exit(0 if standby_handover.wait_for_next_parent('x', 4) is None else 1)
"""


def test_a_standby_ends_if_no_node_comes(runtime_folder):
    start = time.monotonic()
    subprocess.run([sys.executable, '-c', WAITING], check=True)
    assert time.monotonic() - start > 0.5
    assert not list(runtime_folder.rglob('x-*'))


def test_no_standby_waits_for_a_node_that_has_ended_in_an_orderly_way(start):
    first = start()
    first.process.stdin.close()  # the program returns; it does not close the backend
    first.process.wait(5)
    wait(lambda: has_ended(first.standby) and has_ended(first.model), timeout=2)


def test_sigterm_ends_a_standby_that_waits(start):
    first = start()
    first.kill()
    time.sleep(0.3)
    os.kill(first.standby, signal.SIGTERM)
    wait(lambda: has_ended(first.standby), timeout=2)


def test_sigterm_does_not_end_a_standby_of_a_living_node_nor_one_that_was_taken(start):
    first = start()
    os.kill(first.standby, signal.SIGTERM)
    time.sleep(0.3)
    assert not has_ended(first.standby)
    first.kill()
    # The signal came before: it was for all processes of the robot.
    wait(lambda: has_ended(first.standby), timeout=2)
    second = start()
    second.kill()
    third = start()
    assert third.model == second.standby
    os.kill(third.model, signal.SIGTERM)
    assert third.ask('the mug') == 'Sure.'


def test_received_descriptors_are_not_for_the_children(folder):
    ours, theirs = socket.socketpair()
    own = [os.dup(1) for _ in range(3)]
    socket.send_fds(ours, [b'1'], own)
    outputs = os.dup(1), os.dup(2)
    (received,) = standby_handover._receive(theirs, 1)
    os.dup2(outputs[0], 1), os.dup2(outputs[1], 2)
    assert not os.get_inheritable(received)
    for descriptor in (received, *own, *outputs):
        os.close(descriptor)
    ours.close(), theirs.close()


def test_a_node_in_another_environment_does_not_take_it(start):
    first = start()
    first.kill()
    second = start(LISA_ROS_TEST='another')
    assert second.model != first.standby
    assert second.ask('the mug') == 'Sure.'


def test_a_program_that_has_changed_does_not_take_it(monkeypatch, tmp_path):
    fingerprint = standby_handover.fingerprint()
    assert fingerprint == standby_handover.fingerprint()
    with monkeypatch.context() as change:
        change.syspath_prepend(tmp_path)
        assert fingerprint != standby_handover.fingerprint()
    monkeypatch.setenv('INVOCATION_ID', 'another')  # by systemd, at each start
    assert fingerprint == standby_handover.fingerprint()
    monkeypatch.chdir(tmp_path)
    assert fingerprint != standby_handover.fingerprint()


@pytest.fixture
def folder(runtime_folder):
    folder = runtime_folder / f'lisa_ros-{os.getuid()}'
    folder.mkdir(mode=0o700)
    return folder


def test_a_folder_that_others_can_enter_is_not_used(folder):
    folder.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / 'x-1'))
    listener.listen()
    assert standby_handover.adopt('x', []) is None
    assert (folder / 'x-1').exists()
    elsewhere = folder.with_name('elsewhere')
    folder.chmod(0o700)
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    assert standby_handover.adopt('x', []) is None
    assert (folder / 'x-1').exists()
    listener.close()


@pytest.mark.parametrize('reply', [b'', b'x', None], ids=['none', 'wrong', 'silent'])
def test_what_does_not_answer_as_a_standby_is_passed_over(reply, folder):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / 'x-1'))
    listener.listen()

    def answer():
        peer, _ = listener.accept()
        with peer:
            time.sleep(1.2) if reply is None else peer.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    assert standby_handover.adopt('x', []) is None
    thread.join()
    listener.close()


def test_a_file_that_a_killed_standby_has_left_is_removed(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / 'x-1'))
    assert standby_handover.adopt('x', []) is None
    assert not list(folder.iterdir())


def test_the_handover_needs_nothing_that_takes_time_to_import():
    code = 'import sys, lisa_ros.perception.standby_handover; print("numpy" in sys.modules)'
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'False\n'
