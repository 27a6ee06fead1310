# SPDX-License-Identifier: Apache-2.0
"""The launch file: compiles everywhere, and with a real `launch` starts the node it describes."""

import ast
from pathlib import Path

import pytest
import yaml

from lisa_ros import cli

LAUNCH = Path(__file__).parents[1] / 'launch' / 'lisa.launch.py'
ARGUMENTS = {
    'model', 'vision_tower', 'template', 'device', 'precision', 'allow_download', 'image', 'depth',
    'camera_info', 'params_file', 'namespace', 'respawn', 'rviz', 'voice', 'voice_params_file',
    'audio',
}  # fmt: skip


@pytest.mark.parametrize('file', sorted(LAUNCH.parent.glob('*.launch.py')), ids=lambda f: f.name)
def test_a_launch_file_compiles(file):
    compile(file.read_text(), str(file), 'exec')


def test_the_evaluation_is_launched_with_options_that_the_command_has(capsys):
    tree = ast.parse((LAUNCH.parent / 'evaluate.launch.py').read_text())
    tables = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    bag, *names = ast.literal_eval(tables['ARGUMENTS'])
    assert bag == 'bag'
    assert set(ast.literal_eval(tables['FLAGS'])) < set(names)
    with pytest.raises(SystemExit):
        cli.main(['evaluate', 'bag', '--help'])
    offered = capsys.readouterr().out
    for name in names:
        assert f'--{name.replace("_", "-")} ' in offered.replace(']', ' '), name


def test_every_topic_that_rviz_shows_follows_the_launch_arguments():
    config = yaml.safe_load((LAUNCH.parents[1] / 'config' / 'lisa.rviz').read_text())
    displays = config['Visualization Manager']['Displays']
    shown = {display['Topic']['Value'] for display in displays if 'Topic' in display}
    text = LAUNCH.read_text()  # `launch` is not on every machine: its rules are read
    assert "('/image', LaunchConfiguration('image'))" in text
    (named,) = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and node.targets[0].id == 'SHOWN'
    )
    names = eval(compile(ast.Expression(named), 'SHOWN', 'eval'))  # noqa: S307  # our own file
    assert shown == {'/image', *(f'/lisa/{name}' for name in names)}


def test_the_node_is_launched_as_a_lifecycle_node_with_its_name():
    (call,) = (
        node
        for node in ast.walk(ast.parse(LAUNCH.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'LifecycleNode'
    )
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert keywords['name'] == "'lisa'"
    assert keywords['executable'] == "'lisa_node'"
    assert 'namespace' in keywords
    assert "given['respawn']" in keywords['respawn']
    assert 'respawn_delay' in keywords


@pytest.fixture(scope='module')
def described():
    pytest.importorskip('launch_ros', reason='launch comes with a ROS install only')
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    return get_launch_description_from_python_launch_file(str(LAUNCH))


@pytest.mark.ros
def test_every_argument_is_declared_with_a_sentence(described):
    declared = {argument.name: argument for argument in described.get_launch_arguments()}
    assert set(declared) == ARGUMENTS
    assert all(argument.description for argument in declared.values())


@pytest.mark.ros
def test_launch_starts_the_node_with_its_parameters_and_topics(described, tmp_path):
    import signal
    import subprocess

    import psutil
    from rcl_interfaces.srv import GetParameters
    from ros_graph import MODEL, START, Peer, environment

    parameters = tmp_path / 'parameters.yaml'
    lines = [f'    {name}: {value}' for name, value in MODEL.items() if name != 'model']
    parameters.write_text('\n'.join(['/**:', '  ros__parameters:', *lines]) + '\n')
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            ['ros2', 'launch', 'lisa_ros', 'lisa.launch.py', f'params_file:={parameters}',
             f'model:={MODEL["model"]}', 'image:=/camera/colour', 'namespace:=arm'],
            stdout=log, stderr=subprocess.STDOUT, env=environment(), start_new_session=True,
        )  # fmt: skip
    peer = Peer('/arm')
    try:
        peer.wait(lambda: peer.node.count_subscribers('/camera/colour') == 1, START)
        names = ['model', 'threads']
        values = peer.call(GetParameters, 'get_parameters', names=names).values
        assert values[0].string_value == str(MODEL['model'])
        assert values[1].integer_value == 1
        assert 'Traceback' not in (tmp_path / 'log').read_text()

        def nodes():
            children = psutil.Process(process.pid).children(True)
            return [child for child in children if 'lisa_node' in child.name()]

        (killed,) = nodes()
        killed.kill()  # launch starts it again
        # The killed one stays in the graph until its DDS lease ends.
        peer.wait(lambda: nodes() and nodes() != [killed], START, 'the next node')
        peer.wait(lambda: peer.node.count_subscribers('/camera/colour') == 1, START)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        peer.close()
