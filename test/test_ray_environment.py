# SPDX-License-Identifier: Apache-2.0
"""Ray's environment: a cluster of our own is closed, whatever a parent process has left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, os, sys
from lisa_ros.ray_environment import prepare_ray
prepare_ray(json.loads(sys.argv[1]))
print(json.dumps({name: os.environ[name] for name in os.environ if name.startswith('RAY_')}))
"""
CLOSED = 'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'


def prepared(address=None, **variables):
    """Return Ray's variables in a process that begins with some of them."""
    command = [sys.executable, '-c', CODE, json.dumps(address)]
    environment = {name: value for name, value in os.environ.items() if 'RAY' not in name}
    output = subprocess.check_output(command, text=True, env={**environment, **variables})
    return json.loads(output)


@pytest.mark.parametrize('left', [{}, {'RAY_AUTH_MODE': 'token'}, {'RAY_CLIENT_MODE': '0'}])
def test_a_cluster_of_our_own_listens_on_loopback_and_wants_a_new_token(left):
    first, second = prepared(**left), prepared(**left)
    assert (first[CLOSED], first['RAY_AUTH_MODE']) == ('0', 'token')
    assert len(first['RAY_AUTH_TOKEN']) == 64
    assert first['RAY_AUTH_TOKEN'] != second['RAY_AUTH_TOKEN']


def test_what_the_user_has_set_stays():
    given = {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 'x' * 32, CLOSED: '1'}
    assert prepared(**given).items() >= given.items()
    assert 'RAY_AUTH_TOKEN' not in prepared(RAY_AUTH_MODE='disabled')


def test_a_cluster_that_runs_has_its_own_rules():
    variables = prepared('head:6379')
    assert CLOSED not in variables
    assert 'RAY_AUTH_MODE' not in variables
    assert variables['RAY_USAGE_STATS_ENABLED'] == '0'


OWNER = """
import sys, time
from lisa_ros.ray_environment import own_cluster_options
print(own_cluster_options()['_temp_dir'], flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def owner(tmp_path):
    """A function that starts a process with a folder of its own; returns both."""
    made = []

    def start(seconds=600.0):
        command = [sys.executable, '-c', OWNER, str(seconds)]
        environment = os.environ | {'RAY_TMPDIR': str(tmp_path)}
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment)
        made.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in made:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_folder_of_a_killed_process_is_deleted_by_the_next_one(owner, tmp_path):
    killed, abandoned = owner()
    (abandoned / 'session' / 'logs').mkdir(parents=True)
    (abandoned / 'session' / 'logs' / 'raylet.out').write_text('log')
    (abandoned / 'latest').symlink_to(abandoned / 'session')
    _, used = owner()
    assert abandoned.exists()  # its owner runs
    killed.kill()
    killed.wait()
    ended, last = owner(0.0)
    assert ended.wait(60) == 0
    assert not abandoned.exists()
    assert not last.exists()
    assert used.exists()
    assert list(tmp_path.iterdir()) == [used]


def test_other_folders_stay(owner, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'lisa-ros.lock').touch()
    (elsewhere / 'data').touch()
    (tmp_path / 'ray-link').symlink_to(elsewhere)
    (tmp_path / 'ray-foreign').mkdir()
    (tmp_path / 'ray-file').touch()
    linked = tmp_path / 'ray-linked'
    linked.mkdir()
    (linked / 'lisa-ros.lock').symlink_to(elsewhere / 'lisa-ros.lock')
    before = set(tmp_path.rglob('*'))
    ended, _ = owner(0.0)
    assert ended.wait(60) == 0
    assert set(tmp_path.rglob('*')) == before
