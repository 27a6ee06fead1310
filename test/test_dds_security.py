# SPDX-License-Identifier: Apache-2.0
"""With DDS security only the enclaves of the policy command the node and read its masks.

The tests need a middleware with its security plugins. The wheels of `make setup` have Fast DDS
without them; a ROS 2 distribution has them.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from keystore import Keystore
from ros_graph import DOMAIN, MODEL, START, environment, executable
from security_policy import read_policy

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(not shutil.which('openssl'), reason='needs the program openssl'),
]
PEER = Path(__file__).with_name('secured_peer.py')
PROBE = 'import rclpy; rclpy.init(); rclpy.create_node("client")'
ATTEMPTS = ('command', 'segmentation', 'mask', 'segment', 'stop')
WITHOUT_PLUGIN = 'SECURITY=ON'  # Fast DDS and Cyclone DDS name their CMake option in the error


def secured(keystore, **changes):
    return {
        **environment(),
        'ROS_SECURITY_ENABLE': 'true',
        'ROS_SECURITY_STRATEGY': 'Enforce',
        'ROS_SECURITY_KEYSTORE': str(keystore.folder),
        **changes,
    }


@pytest.fixture(scope='module')
def keystore(tmp_path_factory):
    keystore = Keystore(tmp_path_factory.mktemp('keystore') / 'keys', int(DOMAIN))
    for enclave, names in read_policy().items():
        keystore.add(enclave, names)
    return keystore


@pytest.fixture(scope='module')
def plugin(keystore):
    """Skip the tests if the middleware has no security plugins."""
    probe = run([sys.executable, '-c', PROBE], secured(keystore), '/lisa_ros/client')
    if WITHOUT_PLUGIN in probe.stderr:
        pytest.skip('the middleware was built without its security plugins')
    assert probe.returncode == 0, probe.stderr


def run(command, env, enclave=None):
    arguments = ['--ros-args', '--enclave', enclave] if enclave else []
    return subprocess.run(
        [*command, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=2 * START,
        check=False,
    )


def intrude(env, query, enclave=None, name='client'):
    result = run([sys.executable, str(PEER), f'intruder:{name}:{query}'], env, enclave)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


class Process:
    """A process in an enclave; its output goes to a file."""

    def __init__(self, log, command, env, enclave, *arguments):
        self._log = log
        with log.open('w') as output:
            self._process = subprocess.Popen(
                [*command, '--ros-args', '--enclave', enclave, *arguments],
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self):
        return self._log.read_text()

    def wait_for(self, text):
        deadline = time.monotonic() + 2 * START
        while text not in self.output():
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline, f'no {text!r} in {self.output()}'
            time.sleep(0.1)

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()


@pytest.fixture(scope='module')
def client(plugin, keystore, tmp_path_factory):
    """A client whose queries lisa_node answers; all have their enclaves."""
    folder, env = tmp_path_factory.mktemp('logs'), secured(keystore)
    parameters = [part for key, value in MODEL.items() for part in ('-p', f'{key}:={value}')]
    peer = [sys.executable, str(PEER)]
    processes = [
        Process(folder / 'node', executable(), env, '/lisa_ros/lisa_node', *parameters),
        Process(folder / 'camera', [*peer, 'camera'], env, '/lisa_ros/camera'),
        Process(folder / 'client', [*peer, 'client'], env, '/lisa_ros/client'),
    ]
    try:
        processes[-1].wait_for('"mask"')
        yield processes[-1]
    finally:
        for process in processes:
            process.stop()


def answers_after(client, act):
    """Return what the client prints until its next own answer after an action."""
    act()
    seen = len(client.output())
    client.wait_for('the client asks')
    deadline = time.monotonic() + START
    while 'the client asks' not in client.output()[seen:]:
        assert time.monotonic() < deadline, 'the node has stopped answering its client'
        time.sleep(0.1)
    return client.output()


def test_an_authorised_client_commands_and_reads_masks(client):
    client.wait_for('{"answered": "the client asks"}')
    client.wait_for('{"mask": 64}')


def test_what_the_intruder_tries_works_with_the_keys_of_a_client(client, keystore):
    results = {}
    output = answers_after(
        client,
        lambda: results.update(intrude(secured(keystore), 'another client', '/lisa_ros/client')),
    )
    assert 'another client' in output
    assert {results[name] for name in ATTEMPTS} == {'created'}
    assert results['received'] > 0
    assert results['sees_action']
    assert results['sees_stop']


def test_a_participant_without_keys_sees_nothing(client):
    results = {}
    output = answers_after(client, lambda: results.update(intrude(environment(), 'without keys')))
    assert 'without keys' not in output
    assert results['received'] == 0
    assert not results['sees_action']
    assert not results['sees_stop']
    assert results['sees_subscribers'] == 0


def test_keys_of_another_authority_are_of_no_use(client, tmp_path):
    foreign = Keystore(tmp_path / 'foreign', int(DOMAIN))
    foreign.add('/lisa_ros/client', read_policy()['/lisa_ros/client'])
    results = {}
    output = answers_after(
        client,
        lambda: results.update(intrude(secured(foreign), 'foreign keys', '/lisa_ros/client')),
    )
    assert 'foreign keys' not in output
    assert results['command'] == 'created'  # its own permissions allow that
    assert results['received'] == 0
    assert results['sees_subscribers'] == 0


def test_keys_without_permission_neither_command_nor_read(client, keystore):
    results = {}
    output = answers_after(
        client,
        lambda: results.update(
            intrude(secured(keystore), 'a camera asks', '/lisa_ros/camera', 'camera')
        ),
    )
    assert 'a camera asks' not in output
    assert all(results[name].startswith('refused') for name in ATTEMPTS), results
    assert results['received'] == 0


# ---- also without plugins: security that is asked for is never left out in silence


def start_node(env, enclave):
    command = [*executable(), '--ros-args', '--enclave', enclave, '-p', 'autostart:=false']
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=START, check=False
    )


def test_without_its_enclave_the_node_does_not_start(keystore):
    result = start_node(secured(keystore), '/lisa_ros/nobody')
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert '/lisa_ros/nobody' in result.stderr


def test_without_plugins_the_node_does_not_start(keystore):
    probe = run([sys.executable, '-c', PROBE], secured(keystore), '/lisa_ros/client')
    if WITHOUT_PLUGIN not in probe.stderr:
        pytest.skip('the middleware has its security plugins')
    result = start_node(secured(keystore), '/lisa_ros/lisa_node')
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
