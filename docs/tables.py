# SPDX-License-Identifier: Apache-2.0
"""Write the tables of parameters, messages and known models from their sources.

    python docs/tables.py            # rewrite the pages of PAGES
    python docs/tables.py --check    # exit 1 if one of them is out of date

Tables stand between `<!-- NAME -->` and `<!-- /NAME -->`; NAME: "parameters", a file of msg/, or a
table of known models.
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

PAGES = {  # names of the tables of each page
    'README.md': (
        *('parameters', 'Segmentation.msg', 'Instance.msg', 'StageTime.msg'),
        *('NodeState.msg', 'CameraState.msg', 'Place.msg', 'model memory'),
    ),
    'docs/models.md': ('model memory', 'model abilities', 'model figures'),
}


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


def model_table(name: str) -> str:
    """Return a table of known models."""
    # the site is built without PyTorch, which counts their memory
    from lisa_ros.model_zoo import tables as zoo
    from lisa_ros.model_zoo.known_models import KNOWN_MODELS

    head, rows = {
        'model memory': (zoo.MEMORY_HEAD, zoo.memory_rows),
        'model abilities': (zoo.ABILITY_HEAD, zoo.ability_rows),
        'model figures': (zoo.FIGURE_HEAD, zoo.figure_rows),
    }[name]
    return table(head, rows(KNOWN_MODELS))


def content_of(name: str) -> str:
    """Return the table of a name in PAGES."""
    if name == 'parameters':
        return parameter_table(Settings)
    if name.startswith('model '):
        return model_table(name)
    return field_table((ROOT / 'msg' / name).read_text(encoding='utf-8'))


def with_tables(text: str, page: str = 'README.md') -> str:
    """Return the text of a page with up-to-date tables."""
    for name in PAGES[page]:
        content, mark = content_of(name), re.escape(name)
        text, count = re.subn(
            f'<!-- {mark} -->.*?<!-- /{mark} -->',
            lambda _, n=name, c=content: f'<!-- {n} -->\n{c}\n<!-- /{n} -->',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f'{page} needs <!-- {name} --> ... <!-- /{name} --> once')
    return text


def main(arguments: list[str]) -> None:
    """Rewrite the pages, or check them."""
    for page in PAGES:
        old = (ROOT / page).read_text(encoding='utf-8')
        new = with_tables(old, page)
        if '--check' not in arguments:
            (ROOT / page).write_text(new, encoding='utf-8')
        elif old != new:
            raise SystemExit(f'{page} is out of date: run python docs/tables.py')


if __name__ == '__main__':
    main(sys.argv[1:])
