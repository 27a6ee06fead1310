# SPDX-License-Identifier: Apache-2.0
"""The package as installed: one version, declared imports, messages and executables found."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import lisa_ros

ROOT = Path(__file__).parents[1]
WHEELS = {
    'moonshine_voice': 'moonshine-voice',
    'silero_vad': 'silero-vad',
    'PIL': 'pillow',
    'prometheus_client': 'prometheus-client',
    'python_multipart': 'python-multipart',
    'cv2': 'opencv-python-headless',
    'yaml': 'pyyaml',
}  # by import name


@pytest.fixture(scope='module')
def package():
    return ET.parse(ROOT / 'package.xml').getroot()  # noqa: S314  our own file


def in_env(command, **variables):
    """Return the output of a command outside the checkout, in an environment with .ci/env.sh."""
    clean = {k: os.environ[k] for k in ('HOME', 'PATH') if k in os.environ}
    script = f'source {ROOT}/.ci/env.sh && cd / && exec "$@"'
    process = subprocess.run(
        ['bash', '-c', script, '-', *command],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def imports(folder):
    """Yield (path, top-level module) for each import in a folder."""
    for path in sorted(folder.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split('.')[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module.split('.')[0]


def test_setup_and_manifest_have_the_version_of_the_package(package):
    assert package.findtext('version') == lisa_ros.__version__
    setup = [sys.executable, 'setup.py', '--version']
    output = subprocess.run(setup, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split()[-1] == lisa_ros.__version__


def test_the_changelog_has_the_version():
    titles = re.findall(r'^(.+)\n-+$', (ROOT / 'CHANGELOG.rst').read_text(), re.MULTILINE)
    released = [title.split()[0] for title in titles if title != 'Forthcoming']
    assert titles
    assert released[:1] in ([], [lisa_ros.__version__])  # before the first release there is none


def test_the_manifest_has_the_required_entries(package):
    assert package.get('format') == '3'
    assert package.findtext('name') == 'lisa_ros'
    assert package.findtext('license') == 'Apache-2.0'
    assert package.findtext('export/build_type') == 'ament_cmake'
    assert package.findtext('member_of_group') == 'rosidl_interface_packages'


def test_the_owner_is_named(package):
    fields = [
        package.find('maintainer').get('email'),
        *(url.text for url in package.findall('url')),
    ]
    if any('.example' in field for field in fields):
        pytest.skip('to be filled by the owner: maintainer, url and author in package.xml')
    assert all(fields)
    assert package.findtext('author')


ROS_PACKAGES = {'tf2_ros': 'tf2_ros_py'}  # by module, where the names differ
OPTIONAL = {'audio_common_msgs', 'bondpy', 'whisper_msgs'}  # used if installed, see package.xml


def test_cmake_lists_all_interfaces():
    listed = set(
        re.findall(
            r'^  ((?:msg|srv|action)/\w+\.\w+)$',
            (ROOT / 'CMakeLists.txt').read_text(),
            re.MULTILINE,
        )
    )
    files = [file for kind in ('msg', 'srv', 'action') for file in ROOT.glob(f'{kind}/*.{kind}')]
    assert listed == {str(file.relative_to(ROOT)) for file in files}


def requirements(file):
    """Return the requirements of a file, without those of other files."""
    lines = file.read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r '))]


def test_every_import_is_declared(package):
    ros = {e.text for e in package if e.tag in ('depend', 'exec_depend')}
    files = (ROOT / 'config/requirements').glob('*.txt')
    wheels = {
        re.split(r'[<>=[]', line)[0].lower() for file in files for line in requirements(file)
    }
    always = sys.stdlib_module_names | {'lisa_ros', *OPTIONAL}
    for folder in ('lisa_ros', 'launch'):
        for path, name in imports(ROOT / folder):
            in_ros = ROS_PACKAGES.get(name, name) in ros
            declared = name in always or in_ros or WHEELS.get(name, name).lower() in wheels
            assert declared, f'{path.relative_to(ROOT)} imports {name}, which nothing declares'


def parsed(text):
    """Return (name, bounds, extra) of a requirement, without other markers."""
    name, bounds, marker = re.match(r'([\w.[\]-]+)([^;]*)(.*)', text).groups()
    extra = ''.join(re.findall(r'extra == .(\w+)', marker))
    return name, frozenset(bounds.replace(' ', '').split(',')), extra


def test_pip_installs_what_the_requirement_files_list(tmp_path):
    """setup.py reads the files that a robot installs; local is what robot.txt has."""
    command = [sys.executable, 'setup.py', '--quiet', 'egg_info', '--egg-base', tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    metadata = importlib.metadata.Distribution.at(tmp_path / 'lisa_ros.egg-info')
    installed = {parsed(text) for text in metadata.requires}

    folder = ROOT / 'config/requirements'
    extras = {f.stem: [f.stem] for f in folder.glob('*.txt') if f.stem not in ('robot', 'library')}
    extras |= {'': ['library'], 'local': ['local', 'thin']}
    assert (folder / 'robot.txt').read_text().splitlines()[-2:] == ['-r local.txt', '-r thin.txt']
    listed = {
        (*parsed(line)[:2], extra)
        for extra, stems in extras.items()
        for stem in stems
        for line in requirements(folder / f'{stem}.txt')
    }
    assert listed == {wheel for wheel in installed if wheel[2] != 'test'}


def test_a_thin_installation_has_no_model_packages():
    folder = ROOT / 'config/requirements'
    lines = [*requirements(folder / 'library.txt'), *requirements(folder / 'thin.txt')]
    local = {parsed(line)[0] for line in requirements(folder / 'local.txt')}
    assert 'torch' in local
    assert not local & {parsed(line)[0] for line in lines}


@pytest.mark.ros
@pytest.mark.parametrize('first', ['', str(ROOT)], ids=['installed', 'source-first'])
def test_messages_import(first):
    code = (
        'import sys; sys.path[:0] = filter(None, sys.argv[1:]); '
        'import lisa_ros.session.scheduler; '
        'from lisa_ros.msg import Segmentation as Message; '
        'print(lisa_ros.__file__, type(Message().header).__name__)'
    )
    path, header = in_env(['python', '-c', code, first]).split()
    assert header == 'Header'
    assert Path(path).is_relative_to(first or ROOT / 'install')


@pytest.mark.ros
def test_the_node_is_installed():
    installed = ROOT / 'install/lisa_ros'
    assert os.access(installed / 'lib/lisa_ros/lisa_node', os.X_OK), 'run `make setup`'
    assert (installed / 'share/lisa_ros/launch/lisa.launch.py').is_file()
    for config in ('lisa.yaml', 'security/lisa_ros.policy.xml', 'requirements/voice.txt'):
        assert (installed / 'share/lisa_ros/config' / config).is_file()
    in_env(['python', '-c', 'from lisa_ros.ros.node import main'])


@pytest.mark.ros
@pytest.mark.parametrize(('name', 'word'), [('lisa-ros', 'finetune'), ('evaluate', 'compare')])
def test_ros2_run_finds_the_command_line(name, word):
    """`ros2 run lisa_ros NAME` runs lib/lisa_ros/NAME."""
    assert word in in_env([str(ROOT / 'install/lisa_ros/lib/lisa_ros' / name), '--help'])


@pytest.mark.ros
def test_setup_bash_puts_the_command_line_on_the_path():
    assert os.access(ROOT / 'install/lisa_ros/bin/lisa-ros', os.X_OK), 'run `make setup`'
    hook = ROOT / 'install/lisa_ros/share/lisa_ros/environment/path.sh'
    assert '$AMENT_CURRENT_PREFIX/bin' in hook.read_text()


def test_how_a_robot_talks_does_not_reach_the_environment():
    names = [
        *('ROS_DISCOVERY_SERVER', 'ROS_STATIC_PEERS', 'ROS_SECURITY_ENABLE', 'SKIP_DEFAULT_XML'),
        *('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        *('FASTDDS_BUILTIN_TRANSPORTS', 'RMW_FASTRTPS_PUBLICATION_MODE'),
    ]
    code = 'import os; print(sorted(os.environ))'
    output = in_env(['python', '-c', code], **dict.fromkeys(names, 'x'))
    assert "'ROS_DOMAIN_ID'" in output
    assert not [name for name in names if repr(name) in output]


@pytest.mark.ros
def test_a_sourced_ros_does_not_reach_the_environment():
    """Many users source ROS in their .bashrc; its packages must not be mixed with the wheels."""
    code = (
        'import os, rclpy; print(os.environ["PATH"], os.environ.get("PYTHONPATH"), rclpy.__file__)'
    )
    sourced = {
        'ROS_DISTRO': 'jazzy',
        'PATH': '/opt/ros/jazzy/bin:' + os.environ['PATH'],
        'PYTHONPATH': '/opt/ros/jazzy/lib/python3.12/site-packages',
        'AMENT_PREFIX_PATH': '/opt/ros/jazzy',
    }
    output = in_env(['python', '-c', code], **sourced)
    assert '/opt/ros' not in output
