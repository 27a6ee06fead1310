# SPDX-License-Identifier: Apache-2.0
"""Writes the README's tables of parameters and messages from their sources.

    python docs/tables.py            # rewrite README.md
    python docs/tables.py --check    # exit 1 if README.md is out of date

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lisa_ros.settings import Settings  # noqa: E402  # found by the line above
from lisa_ros.settings_schema import parameter_info  # noqa: E402


def parameters() -> str:
    """Return the node's parameters: name, default, what it does, range, when it may change."""
    rows = []
    for field in fields(Settings):
        known = parameter_info(field)
        if known.choices:
            values = ', '.join(f'`{choice}`' for choice in known.choices if choice)
        elif known.low is not None:
            values = f'{known.low:g} to {known.high:g}'
        else:
            kinds = {bool: 'true, false', tuple: 'names'}
            values = kinds.get(type(field.default), 'text')
        change = 'no' if known.read_only else 'unconfigured' if known.at_configure else 'any time'
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = 'empty' if default in ('', ()) else f'`{default}`'
        rows.append((f'`{field.name}`', shown, known.sentence, values, change))
    return table(('parameter', 'default', 'what it does', 'values', 'may change'), rows)


def message(name: str) -> str:
    """Return the fields of msg/NAME.msg; a comment line alone goes on with the one above."""
    rows: list[list[str]] = []
    for line in (ROOT / 'msg' / f'{name}.msg').read_text().splitlines():
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


def rewritten(text: str) -> str:
    """Return the README's text with its tables made anew."""
    tables = {
        'parameters': parameters(),
        'Segmentation.msg': message('Segmentation'),
        'Instance.msg': message('Instance'),
    }
    for name, content in tables.items():
        mark = re.escape(name)
        text, found = re.subn(
            f'<!-- {mark} -->.*?<!-- /{mark} -->',
            lambda _, n=name, c=content: f'<!-- {n} -->\n{c}\n<!-- /{n} -->',
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f'README.md needs <!-- {name} --> ... <!-- /{name} --> once')
    return text


if __name__ == '__main__':
    readme = ROOT / 'README.md'
    old = readme.read_text(encoding='utf-8')
    new = rewritten(old)
    if '--check' in sys.argv:
        raise SystemExit(
            0 if old == new else 'README.md is out of date: run python docs/tables.py'
        )
    readme.write_text(new, encoding='utf-8')
