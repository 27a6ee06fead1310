# SPDX-License-Identifier: Apache-2.0
"""The README says what the code does: its tables are made from the sources, its topics exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_tables_are_those_of_the_messages_and_the_settings():
    done = subprocess.run(
        [sys.executable, ROOT / 'docs' / 'tables.py', '--check'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_table_is_noticed(tmp_path):
    sys.path.insert(0, str(ROOT / 'docs'))
    import tables

    assert tables.rewritten(README) == README
    wrong = README.replace('| `depth_tolerance` | `0.05` |', '| `depth_tolerance` | `0.5` |')
    assert wrong != README
    assert tables.rewritten(wrong) == README


def test_every_file_it_names_is_there():
    named = re.findall(r'\]\(([^)#:]+)\)', README)
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
