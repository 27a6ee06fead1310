# SPDX-License-Identifier: Apache-2.0
"""Write the README's tables of parameters and messages from their sources.

    python docs/tables.py            # rewrite README.md
    python docs/tables.py --check    # exit 1 if README.md is out of date

Tables stand between `<!-- NAME -->` and `<!-- /NAME -->`; NAME: "parameters" or a file of msg/.
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lisa_ros.settings import Settings  # noqa: E402  # found by the line above
from lisa_ros.settings_schema import ValidatedSettings, parameter_info  # noqa: E402

TABLES = (
    *('parameters', 'Segmentation.msg', 'Instance.msg', 'StageTime.msg'),
    *('NodeState.msg', 'CameraState.msg', 'Place.msg'),
)


def parameter_table(settings: type[ValidatedSettings]) -> str:
    """Return a node's parameters: name, default, effect, values, when it may change."""
    rows = []
    for field in fields(settings):
        info = parameter_info(field)
        if info.choices:
            values = ', '.join(f'`{choice}`' for choice in info.choices if choice)
        elif info.minimum is not None:
            values = f'{info.minimum:g} to {info.maximum:g}'
        else:
            values = {bool: 'true, false', tuple: 'names'}.get(type(field.default), 'text')
        change = 'no' if info.read_only else 'unconfigured' if info.at_configure else 'any time'
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        default_cell = 'empty' if default in ('', ()) else f'`{default}`'
        rows.append((f'`{field.name}`', default_cell, info.description, values, change))
    return table(('parameter', 'default', 'effect', 'values', 'may change'), rows)


def field_table(definition: str) -> str:
    """Return the fields of an interface; a line with only a comment continues the one above."""
    rows: list[list[str]] = []
    for line in definition.splitlines():
        code, _, comment = (part.strip() for part in line.partition('#'))
        if code and '=' not in code:
            kind, field = code.split()
            rows.append([f'`{field}`', f'`{kind}`', comment])
        elif not code and comment and rows:
            rows[-1][2] += ' ' + comment
    return table(('field', 'type', 'meaning'), rows)


def table(head: tuple[str, ...], rows: list) -> str:
    """Return a Markdown table."""
    lines = [head, ('---',) * len(head), *rows]
    return '\n'.join(
        '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines
    )


def with_tables(text: str) -> str:
    """Return the README's text with up-to-date tables."""
    for name in TABLES:
        if name == 'parameters':
            content = parameter_table(Settings)
        else:
            content = field_table((ROOT / 'msg' / name).read_text(encoding='utf-8'))
        mark = re.escape(name)
        text, count = re.subn(
            f'<!-- {mark} -->.*?<!-- /{mark} -->',
            lambda _, n=name, c=content: f'<!-- {n} -->\n{c}\n<!-- /{n} -->',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f'README.md needs <!-- {name} --> ... <!-- /{name} --> once')
    return text


if __name__ == '__main__':
    readme = ROOT / 'README.md'
    old = readme.read_text(encoding='utf-8')
    new = with_tables(old)
    if '--check' in sys.argv:
        raise SystemExit(
            0 if old == new else 'README.md is out of date: run python docs/tables.py'
        )
    readme.write_text(new, encoding='utf-8')
