# SPDX-License-Identifier: Apache-2.0
"""The launch file: compiles everywhere, and with a real `launch` starts the node it describes."""

import ast
import contextlib
from pathlib import Path

import pytest
import yaml

from lisa_ros import cli

LAUNCH = Path(__file__).parents[1] / 'launch' / 'lisa.launch.py'
ARGUMENTS = {
    'model', 'vision_tower', 'template', 'device', 'precision', 'allow_download', 'image', 'depth',
    'camera_info', 'cameras', 'target_frame', 'gravity_frame', 'map_frame',
    'output_reliability', 'params_file', 'namespace', 'use_sim_time', 'autostart', 'respawn',
    'log_level', 'rviz', 'voice', 'voice_params_file', 'audio',
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
    assert "('/image', images[0])" in text
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


def launch(*arguments, log):
    """Start `ros2 launch lisa_ros lisa.launch.py` in a process group of its own."""
    import subprocess

    from ros_graph import environment

    with log.open('w') as output:
        return subprocess.Popen(
            ['ros2', 'launch', 'lisa_ros', 'lisa.launch.py', *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )


def written_parameters(folder):
    """Return a file with the parameters of the toy model, without `model`."""
    from ros_graph import MODEL

    lines = [f'    {name}: {value}' for name, value in MODEL.items() if name != 'model']
    file = folder / 'parameters.yaml'
    file.write_text('\n'.join(['/**:', '  ros__parameters:', *lines]) + '\n')
    return file


@pytest.mark.ros
@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['params_file:=none.yaml'], "params_file is 'none.yaml': there is no such file"),
        (
            ['voice:=1', 'voice_params_file:=none.yaml'],
            "voice_params_file is 'none.yaml': there is no such file",
        ),
        (['respawn:=maybe'], "respawn is 'maybe'; expected true or false: respawn:=true"),
        (['use_sim_time:=2'], "use_sim_time is '2'; expected true or false"),
        (['log_level:=loud'], "log_level is 'loud'; expected one of debug, info"),
        (['output_reliability:=often'], "'often'; expected one of reliable, best_effort"),
        (
            ['cameras:=front,wrist', 'image:=/camera/image'],
            'image:=/camera/image names 1 topics for 2 cameras (front, wrist)',
        ),
        (['params_file:=CAMERAS', 'depth:=/depth'], 'names 1 topics for 2 cameras (left, right)'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_wrong_argument_ends_the_launch_with_one_line(described, arguments, line, tmp_path):
    cameras = tmp_path / 'cameras.yaml'
    cameras.write_text('/**:\n  ros__parameters:\n    cameras: [left, right]\n')
    arguments = [argument.replace('CAMERAS', str(cameras)) for argument in arguments]
    log = tmp_path / 'log'
    process = launch(*arguments, log=log)
    assert process.wait(30) != 0
    assert line in log.read_text()
    assert 'process started' not in log.read_text()


@pytest.mark.ros
def test_several_cameras_have_their_topics_and_large_outputs_their_qos(described, tmp_path):
    import signal

    from rcl_interfaces.srv import GetParameters
    from rclpy.qos import ReliabilityPolicy
    from ros_graph import MODEL, START, Peer

    log = tmp_path / 'log'
    process = launch(
        f'params_file:={written_parameters(tmp_path)}', f'model:={MODEL["model"]}',
        'cameras:=front,wrist', 'image:=/a/colour,/b/colour',
        'target_frame:=base_link', 'output_reliability:=best_effort', 'use_sim_time:=false',
        'log_level:=warn', 'namespace:=arm', log=log,
    )  # fmt: skip
    peer = Peer('/arm')
    try:
        peer.wait(lambda: peer.node.count_subscribers('/b/colour') == 1, START)
        assert peer.node.count_subscribers('/a/colour') == 1
        assert peer.node.count_subscribers('/arm/front/depth') == 1
        values = peer.call(GetParameters, 'get_parameters', names=['target_frame']).values
        assert values[0].string_value == 'base_link'

        def reliability(name):
            (publisher,) = peer.node.get_publishers_info_by_topic(f'/arm/lisa/{name}')
            return publisher.qos_profile.reliability

        for name in ('front/mask', 'wrist/tracked/overlay'):
            assert reliability(name) is ReliabilityPolicy.BEST_EFFORT
        assert reliability('front/segmentation') is ReliabilityPolicy.RELIABLE
        assert '[INFO] [' not in log.read_text().replace('[INFO] [launch', '').replace(
            '[INFO] [lisa_node-1]: process', ''
        )
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        peer.close()


@pytest.mark.ros
def test_a_launch_test_drives_the_lifecycle_by_events(tmp_path):
    import subprocess
    import sys

    from ros_graph import environment

    pytest.importorskip('launch_testing_ros', reason='launch comes with a ROS install only')
    file = Path(__file__).with_name('launch_lifecycle.py')
    done = subprocess.run(
        [sys.executable, '-m', 'launch_testing.launch_test', str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ros
def test_launch_starts_the_node_with_its_parameters_and_topics(described, tmp_path):
    import signal

    import psutil
    from rcl_interfaces.srv import GetParameters
    from ros_graph import MODEL, START, Peer

    process = launch(
        f'params_file:={written_parameters(tmp_path)}', f'model:={MODEL["model"]}',
        'image:=/camera/colour', 'namespace:=arm', log=tmp_path / 'log',
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
            found = []
            for child in psutil.Process(process.pid).children(True):
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    if 'lisa_node' in child.name():
                        found.append(child)
            return found

        (killed,) = nodes()
        killed.kill()  # launch starts it again
        # The killed one stays in the graph until its DDS lease ends.
        peer.wait(lambda: nodes() and nodes() != [killed], START, 'the next node')
        peer.wait(lambda: peer.node.count_subscribers('/camera/colour') == 1, START)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        peer.close()
