# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the core knows no ROS, and every import points down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'lisa_ros'
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py'))

# Low to high. A module imports from the rows below its own, and from its own folder.
ROWS = [
    ['errors', 'resources'],
    ['results', 'settings_schema', 'evaluation.metrics'],
    ['geometry', 'tracking', 'model', 'session', 'chat_ui'],
    ['perception', 'voice'],
    ['settings', 'messages'],
    ['datasets', 'tabletop'],
    ['segmenter', 'evaluation'],
    ['training', 'ros'],
    ['commands', 'client'],
    ['cli'],
]
ROS = {'ament_index_python', 'launch', 'launch_ros', 'rclpy', 'std_srvs'}


def row(module):
    """The row of a module, named without its leading `lisa_ros.`; None if it has none."""
    for height, entries in enumerate(ROWS):
        if any(module == entry or module.startswith(entry + '.') for entry in entries):
            return height
    return None


def imports(file):
    """(module, True where the import is at the top of the file) for each import of a file."""
    tree = ast.parse((PACKAGE / file).read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}:{node.lineno}: imports are written in full'
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split('.'), alias.name)
                is_module = inner.is_dir() or inner.with_suffix('.py').is_file()
                name = f'{node.module}.{alias.name}' if is_module else node.module
                yield name, id(node) in top


def is_ros(module):
    first, *rest = module.split('.')
    return (
        first in ROS
        or first.endswith('_msgs')
        or (first, *rest[:1]) in {('lisa_ros', 'msg'), ('lisa_ros', 'action')}
    )


def name_of(file):
    return file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


@pytest.mark.parametrize('file', [f for f in FILES if not f.endswith('__init__.py')])
def test_imports_point_down(file):
    here = name_of(file)
    assert row(here) is not None, f'{file} has no row: give it one in ROWS'
    for module, at_top in imports(file):
        there = module.removeprefix('lisa_ros.')
        if there == module or is_ros(module):
            continue
        assert row(there) is not None, f'{file} imports {module}, which has no row'
        beside = '.' in here and here.split('.')[0] == there.split('.')[0]
        below = row(there) < row(here)
        assert below or (beside and row(there) == row(here)), f'{file} imports {module}: not down'
        # the command runs without ROS: only its demo may ask for it, when it is called
        lazy = not at_top
        assert lazy or not (here == 'cli' and there.startswith('ros')), f'{file} imports {module}'


@pytest.mark.parametrize('file', [f for f in FILES if not f.startswith('ros/')])
def test_the_core_knows_no_ros(file):
    assert not [module for module, _ in imports(file) if is_ros(module)]
