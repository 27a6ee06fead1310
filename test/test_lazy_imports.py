# SPDX-License-Identifier: Apache-2.0
"""Node, client and `--help` import neither torch nor transformers, which take seconds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / 'docs/site'
HAS_ROS = all(importlib.util.find_spec(name) for name in ('rclpy', 'lisa_ros.msg'))
CODE = """
import contextlib, sys
with contextlib.suppress(SystemExit):
    {statement}
print('imported:', *(name for name in ('torch', 'transformers') if name in sys.modules))
"""


@pytest.mark.parametrize(
    'statement',
    [
        pytest.param(
            statement, marks=[] if HAS_ROS else pytest.mark.skip(reason='needs ROS 2: make setup')
        )
        for statement in ('import lisa_ros.ros.node', 'import lisa_ros.client')
    ]
    + ['from lisa_ros import cli; cli.main(["--help"])', 'import lisa_ros.perception.registry']
    + [f'sys.path.insert(0, {str(SITE)!r}); import interfaces'],  # make docs, without torch
)
def test_nothing_heavy_is_imported(statement):
    process = subprocess.run(
        [sys.executable, '-c', CODE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert process.stdout.splitlines()[-1] == 'imported:'
