# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments, parameter files and variables: one line with the cure, exit status 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')

import rclpy
from ros_graph import environment, executable

from lisa_ros.errors import SettingsError
from lisa_ros.ros.initialization import initialize

pytestmark = pytest.mark.ros

FILES = {
    'list.yaml': '/**: {ros__parameters: {cameras: [front, on]}}',
    'syntax.yaml': '/**:\n  ros__parameters:\n    cameras: [a, b\n',
    'tab.yaml': '/**:\n\tros__parameters:\n',
    'level.yaml': 'lisa:\n  watch_rate: 5.0\n',
    'empty_value.yaml': '/**:\n  ros__parameters:\n    tracker_model:\n',
    'top_list.yaml': '- lisa',
    'value.yaml': '/**: {ros__parameters: {depth_tolerance: 20.0}}',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('parameters')
    for name, content in FILES.items():
        (folder / name).write_text(content)
    (folder / 'latin.yaml').write_bytes(b'/**: {ros__parameters: {device: "caf\xe9"}}')
    return folder


def error_of(*arguments):
    """Return the error of initialize with arguments; rclpy itself refuses them."""
    with pytest.raises(SettingsError) as caught:
        try:
            initialize(['lisa_node', *arguments])
        finally:
            rclpy.try_shutdown()
    line = str(caught.value)
    assert '\n' not in line
    return line


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ('--params-file absent.yaml', ['absent.yaml: no such parameter file', 'correct the path']),
        ('--params-file list.yaml', ['list.yaml: ', 'expected a list of values of one type']),
        ('--params-file syntax.yaml', ['syntax.yaml: not YAML', 'line 3', 'correct this line']),
        ('--params-file tab.yaml', ['not YAML: while scanning', 'line 2, column 1']),
        ('--params-file level.yaml', ['level.yaml: ', 'line 2', 'NODE: ros__parameters: NAME']),
        ('--params-file empty_value.yaml', ["write '' for an empty text"]),
        ('--params-file top_list.yaml', ["contains ['lisa']", 'expected NODE: ros__parameters']),
        ('--params-file latin.yaml', ['not UTF-8 (invalid continuation byte at byte', 'save the']),
        ('--params-file .', ['.: cannot be read (Is a directory)']),
        ('--params-file', ['--params-file is the last argument; expected its value']),
        ('-r __ns:=bad-ns', ["'bad-ns' is not a namespace; expected", 'such as /robot1']),
        ('-r __ns:=/a//b', ["'/a//b' is not a namespace; expected"]),
        ('-r __node:=9x', ["'9x' is not a node name; expected letters, digits and _"]),
        ('-r image:colour', ["'image:colour' is not a remapping; expected FROM:=TO"]),
        ('-r image:=', ["'image:=' is not a remapping; expected FROM:=TO"]),
        ('--log-level loud', ["'loud' is not a log level; expected debug, info, warn, error"]),
        ('--log-level lisa:=loud', ["'lisa:=loud' is not a log level"]),
        ('-p tracker', ["'tracker' is not a parameter; expected NAME:=VALUE"]),
        ('-p cameras:=[1,a]', ["'cameras:=[1,a]' is not a parameter; expected NAME:=VALUE"]),
        ('--fast', ["['--fast']; expected -p NAME:=VALUE"]),
        ('-e arm', ['Enclave name is not valid', 'check the arguments']),
        ('-- left', ["unknown argument 'left'; arguments of ROS follow --ros-args"]),
    ],
)
def test_a_wrong_argument_is_explained_in_one_line(folder, monkeypatch, capfd, arguments, words):
    monkeypatch.chdir(folder)
    line = error_of('--ros-args', *arguments.split())
    for word in words:
        assert word in line
    assert '[ERROR]' not in capfd.readouterr().err  # rcl says nothing beside it


def test_an_argument_before_ros_args_is_not_ignored():
    assert "'--params-file'; arguments of ROS follow --ros-args" in error_of('--params-file', 'x')


@pytest.mark.parametrize('domain', ['abc', '500', '-1', '1.5'])
def test_a_wrong_domain_is_explained(monkeypatch, domain):
    monkeypatch.setenv('ROS_DOMAIN_ID', domain)
    assert f"ROS_DOMAIN_ID is '{domain}'; expected 0 to 232" in error_of()


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads every file')
def test_an_unreadable_parameter_file_is_not_called_missing(folder):
    path = folder / 'secret.yaml'
    path.write_text('')
    path.chmod(0)
    assert 'cannot be read (Permission denied)' in error_of(
        '--ros-args', '--params-file', str(path)
    )


@pytest.mark.parametrize(
    'variables',
    [{}, {'HOME': '/dev/null'}, {'ROS_LOG_DIR': '/proc'}],
    ids=['no HOME', 'HOME is no folder', 'no file can be made'],
)
def test_a_missing_folder_for_logs_is_explained(variables):
    """As in a systemd service without User=, which has no HOME."""
    unset = ('HOME', 'ROS_HOME', 'ROS_LOG_DIR')
    inherited = {name: value for name, value in environment().items() if name not in unset}
    code = 'from lisa_ros.ros.initialization import initialize; initialize(["x"])'
    process = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**inherited, **variables},
        check=False,
    )
    *_, line = process.stderr.splitlines()
    assert line.startswith('lisa_ros.errors.SettingsError: ')
    assert 'set ROS_LOG_DIR to a folder that this user may write to' in line
    assert '--ros-args' not in line


def run(program, *arguments):
    return subprocess.run(
        [*program, '--ros-args', *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(
    ('program', 'arguments', 'message'),
    [
        (executable(), '-p tracker:=on', "[lisa]: tracker is True; expected one of 'flow'"),
        (executable(), '-p use_sim_time:=maybe', "'use_sim_time' to 'maybe'"),
        (
            executable(),
            '--params-file value.yaml',
            'value.yaml: depth_tolerance is 20.0; expected 0.0 to 10.0',
        ),
        (
            executable('voice_node', 'lisa_ros.ros.voice_node'),
            '-r a_b:c',
            "[voice]: 'a_b:c' is not a remapping",
        ),
    ],
)
def test_a_node_ends_with_one_line_and_status_1(folder, program, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    process = run(program, *arguments.split())
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert '[FATAL]' in line
    assert message in line
