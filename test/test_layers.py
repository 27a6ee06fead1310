# SPDX-License-Identifier: Apache-2.0
"""Import rules: only `ros/` may import ROS, and a module imports lower layers only.

What only newer Pythons have is named nowhere.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'lisa_ros'
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py'))

# From low to high. A module may import from lower layers, and from its own folder.
LAYERS = [
    ['error_text'],
    [
        'discovery_range',
        'errors',
        'english',
        'garbage_collection',
        'native_settings',
        'ray_environment',
        'resources',
        'stop_signals',
        'tcp_delay',
        'perception.masks',
    ],
    [
        'files',
        'number_arguments',
        'optional_packages',
        'perception.device_memory',
        'server_connection',
    ],
    ['results', 'settings_schema', 'evaluation.metrics', 'images', 'api_key', 'launch_arguments'],
    [
        'model.finite',
        'model.file_checks',
        'model.json_file',
        'model.model_folder',
        'model.pickle_claims',
        'model.transformers_folder',
        'model.weight_files',
    ],
    ['geometry', 'tracking', 'model', 'session.command_parser', 'chat_ui'],
    ['vlm', 'perception.backend', 'perception.health', 'perception.process_memory'],
    [
        'serving.mask_coding',
        'serving.problems',
        'serving.query_format',
        'serving.query_reading',
        'serving.wire_format',
    ],
    ['perception', 'voice'],
    [
        'serving.http_client',
        'serving.image_transfer',
        'serving.parallel_requests',
        'serving.query_encoding',
        'serving.served_backend',
        'serving.server_address',
        'serving.server_monitor',
    ],
    ['settings', 'messages', 'session'],
    ['datasets', 'tabletop', 'health'],
    ['segmenter', 'evaluation', 'doctor', 'agents', 'serving'],
    ['training', 'ros', 'model_zoo'],
    ['commands', 'client'],
    ['cli'],
    ['startup'],
    ['__main__'],
]
ROS = {'ament_index_python', 'launch', 'launch_ros', 'rclpy', 'std_srvs'}


def layer_of(module):
    """Return the layer number of a module, without its leading `lisa_ros.`; None if unlisted."""
    for number, entries in enumerate(LAYERS):
        if any(module == entry or module.startswith(entry + '.') for entry in entries):
            return number
    return None


def imports(file):
    """Yield (module, whether it is imported at the top of the file) for each import."""
    tree = ast.parse((PACKAGE / file).read_text())
    top_level = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}:{node.lineno}: write imports in full'
            for alias in node.names:
                path = PACKAGE.parent.joinpath(*node.module.split('.'), alias.name)
                is_module = path.is_dir() or path.with_suffix('.py').is_file()
                name = f'{node.module}.{alias.name}' if is_module else node.module
                yield name, id(node) in top_level


def is_ros(module):
    first, *rest = module.split('.')
    return (
        first in ROS
        or first.endswith('_msgs')
        or (first, *rest[:1]) in {('lisa_ros', part) for part in ('msg', 'srv', 'action')}
    )


def module_name(file):
    return file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


@pytest.mark.parametrize('file', [f for f in FILES if not f.endswith('__init__.py')])
def test_a_module_imports_lower_layers_only(file):
    importer = module_name(file)
    layer = layer_of(importer)
    assert layer is not None, f'{file} has no layer: add it to LAYERS'
    for module, at_top in imports(file):
        imported = module.removeprefix('lisa_ros.')
        if imported == module or is_ros(module):
            continue
        imported_layer = layer_of(imported)
        assert imported_layer is not None, f'{file} imports {module}, which has no layer'
        same_folder = '.' in importer and importer.split('.')[0] == imported.split('.')[0]
        allowed = imported_layer < layer or (same_folder and imported_layer == layer)
        assert allowed, f'{file} imports {module}, which is not in a lower layer'
        # the command line works without ROS: only its demo imports it, when it is called
        needs_ros = importer == 'cli' and imported.startswith('ros')
        assert not (at_top and needs_ros), f'{file} imports {module}'


@pytest.mark.parametrize('file', [f for f in FILES if not f.startswith('ros/')])
def test_only_the_ros_folder_imports_ros(file):
    assert not [module for module, _ in imports(file) if is_ros(module)]


# of Python 3.11 and later; setup.py allows 3.10
NEWER = {
    'asyncio': {'Barrier', 'Runner', 'TaskGroup', 'timeout', 'timeout_at'},
    'contextlib': {'chdir'},
    'datetime': {'UTC'},
    'enum': {'ReprEnum', 'StrEnum', 'verify'},
    'hashlib': {'file_digest'},
    'itertools': {'batched'},
    'math': {'cbrt', 'exp2'},
    'tomllib': {'load', 'loads'},
}


def newer_names(tree):
    """Yield what a syntax tree uses of NEWER, and new syntax and exceptions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = {(node.value.id, node.attr)}
        elif isinstance(node, ast.ImportFrom):
            used = {(node.module, alias.name) for alias in node.names}
        else:
            used = set()
            if isinstance(node, ast.Name) and node.id.endswith('ExceptionGroup'):
                yield node.id
            elif type(node).__name__ == 'TryStar':
                yield 'except*'
        yield from (f'{first}.{last}' for first, last in used if last in NEWER.get(first, ()))


def test_what_a_newer_python_has_is_found():
    code = """
import asyncio
from enum import StrEnum
async def main():
    async with asyncio.timeout(1), asyncio.TaskGroup():
        raise ExceptionGroup('', [])
"""
    expected = {'asyncio.timeout', 'asyncio.TaskGroup', 'enum.StrEnum', 'ExceptionGroup'}
    assert set(newer_names(ast.parse(code))) == expected


@pytest.mark.parametrize('file', FILES)
def test_a_module_runs_with_the_oldest_python(file):
    assert not list(newer_names(ast.parse((PACKAGE / file).read_text(), feature_version=(3, 10))))
