# SPDX-License-Identifier: Apache-2.0
"""examples/lisa_ros_bt: the manifest, the tree and its ports, the stand-off pose, the build."""

import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / 'examples' / 'lisa_ros_bt'
NODES = {'LisaFind': 'lisa_find', 'StandOffPose': 'stand_off_pose'}
BASIC_PORTS = {'server_name', 'server_timeout'}  # of Nav2's BtActionNode
RESERVED = {'name', 'ID'}  # of BehaviorTree.CPP: registering a port with such a name throws
TREE = ET.parse(EXAMPLE / 'trees' / 'find_and_drive.xml').getroot()  # noqa: S314  our own file


def ports(node):
    """Return {port: 'Input' or 'Output'} of a node, from its providedPorts()."""
    header = (EXAMPLE / 'src' / f'{NODES[node]}.hpp').read_text()
    found = re.findall(r'BT::(Input|Output)Port<[\w:]+>\(\s*"(\w+)"', header)
    assert found
    return {name: kind for kind, name in found}


def run(*command, cwd=ROOT, **options):
    """Return the output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_manifest_declares_what_cmake_needs():
    catkin_pkg = pytest.importorskip('catkin_pkg.package', reason='needs make setup')
    package = catkin_pkg.parse_package(str(EXAMPLE))
    cmake = (EXAMPLE / 'CMakeLists.txt').read_text()
    assert package.name == re.search(r'project\((\w+)', cmake)[1]
    assert package.version == catkin_pkg.parse_package(str(ROOT)).version
    declared = {d.name for d in (*package.build_depends, *package.buildtool_depends)}
    assert declared == set(re.findall(r'find_package\((\w+)', cmake))


def test_each_node_is_registered_and_documented():
    registered = re.findall(
        r'registerNodeType<lisa_ros_bt::\w+>\("(\w+)"\)',
        ''.join(path.read_text() for path in (EXAMPLE / 'src').glob('*.cpp')),
    )
    assert sorted(registered) == sorted(NODES)
    readme = (EXAMPLE / 'README.md').read_text()
    for node in NODES:
        row = next(line for line in readme.splitlines() if line.startswith(f'| `{node}`'))
        inputs, outputs = row.split('|')[2:4]
        for port, kind in ports(node).items():
            assert f'`{port}`' in (inputs if kind == 'Input' else outputs), port
            assert port not in RESERVED


def test_the_tree_uses_ports_that_exist_and_values_that_are_there():
    written = set()
    for element in TREE.iter():  # in the order of execution
        if element.tag in NODES:
            kinds = ports(element.tag) | dict.fromkeys(BASIC_PORTS, 'Input')
            assert set(element.attrib) <= set(kinds) | {'name'}
        for port, value in element.attrib.items():
            variable = re.fullmatch(r'\{(\w+)\}', value)
            if variable is None:
                continue
            if element.tag in NODES and kinds[port] == 'Output':
                written.add(variable[1])
            elif port in ('object', 'goal'):
                assert variable[1] in written, f'{element.tag} reads {value} before it is written'
    assert written >= {'object', 'goal'}
    assert TREE.get('BTCPP_format') == '4'
    assert TREE.get('main_tree_to_execute') in {tree.get('ID') for tree in TREE}


@pytest.mark.parametrize(
    ('target', 'robot', 'distance', 'stop'),
    [
        ((2.0, 0.0), (0.0, 0.0), 0.5, (1.5, 0.0, 0.0)),
        ((0.0, -3.0), (0.0, 1.0), 1.0, (0.0, -2.0, -math.pi / 2)),
        ((-3.0, -4.0), (0.0, 0.0), 1.0, (-2.4, -3.2, math.atan2(-4, -3))),
        ((0.3, 0.0), (0.0, 0.0), 0.5, (0.0, 0.0, 0.0)),  # near already: only turns
        ((1.0, 1.0), (1.0, 1.0), 0.5, (1.0, 1.0, 0.0)),
    ],
)
def test_the_robot_stops_before_the_object_and_faces_it(stand_off, target, robot, distance, stop):
    output = run(stand_off, *map(str, (*target, *robot, distance)))
    assert [float(number) for number in output.split()] == pytest.approx(stop, abs=1e-6)


@pytest.fixture(scope='module')
def stand_off(tmp_path_factory):
    """Return a program that prints what stand_off() of stand_off.hpp returns."""
    folder = tmp_path_factory.mktemp('stand_off')
    (folder / 'main.cpp').write_text(
        '#include <cstdio>\n#include <cstdlib>\n#include "stand_off.hpp"\n'
        'int main(int, char ** a) {\n'
        '  auto n = [a](int i) {return std::atof(a[i]);};\n'
        '  auto stop = lisa_ros_bt::stand_off({n(1), n(2)}, {n(3), n(4)}, n(5));\n'
        '  std::printf("%.9f %.9f %.9f", stop.x, stop.y, stop.yaw);\n}\n'
    )
    flags = ['-std=c++17', '-Wall', '-Wextra', '-Werror', f'-I{EXAMPLE / "src"}']
    run('g++', *flags, 'main.cpp', '-o', 'stand_off', cwd=folder)
    return folder / 'stand_off'


def test_colcon_finds_the_example_only_if_it_is_named():
    if shutil.which('colcon') is None:
        pytest.skip('needs colcon: make setup')
    assert run('colcon', 'list', '--names-only').split() == ['lisa_ros']
    named = run('colcon', 'list', '--names-only', '--base-paths', '.', str(EXAMPLE))
    assert sorted(named.split()) == ['lisa_ros', 'lisa_ros_bt']


def test_it_compiles_against_nav2(tmp_path):
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    if not any((Path(prefix) / 'share' / 'nav2_behavior_tree').is_dir() for prefix in prefixes):
        pytest.skip('needs Nav2: nav2_behavior_tree has no wheel')
    workspace = [f'--{name}-base={tmp_path / name}' for name in ('build', 'install')]
    log = ['--log-base', str(tmp_path / 'log')]
    run('colcon', *log, 'build', '--base-paths', str(EXAMPLE), *workspace)
    assert (tmp_path / 'install' / 'lisa_ros_bt' / 'lib' / 'liblisa_ros_bt.so').is_file()
