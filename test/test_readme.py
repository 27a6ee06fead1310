# SPDX-License-Identifier: Apache-2.0
"""The README agrees with the code: its tables come from the sources."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_tables_match_messages_and_settings():
    done = subprocess.run(
        [sys.executable, ROOT / 'docs' / 'tables.py', '--check'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_changed_table_is_detected(tmp_path):
    sys.path.insert(0, str(ROOT / 'docs'))
    import tables

    assert tables.with_tables(README) == README
    wrong = README.replace('| `depth_tolerance` | `0.05` |', '| `depth_tolerance` | `0.5` |')
    assert wrong != README
    assert tables.with_tables(wrong) == README
