# SPDX-License-Identifier: Apache-2.0
"""The site's page of messages, services, actions and parameters, from their definitions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

import tables  # noqa: E402  # found by the line above

from lisa_ros.voice.settings import VoiceSettings  # noqa: E402

PARTS = {'msg': ('',), 'srv': ('Request', 'Response'), 'action': ('Goal', 'Result', 'Feedback')}

INTRODUCTION = """\
# Messages and parameters

The definitions of `lisa_ros`, with their comments. The topics, services and the action that use
them are in the [overview](../README.md#topics-services-and-the-action), with the
[parameters of lisa_node](../README.md#parameters).
"""


def interfaces_page() -> str:
    """Return the page as Markdown."""
    files = [file for kind in PARTS for file in sorted((ROOT / kind).glob(f'*.{kind}'))]
    return '\n'.join(
        [
            INTRODUCTION,
            *(_interface(file) for file in files),
            '## Parameters of voice_node\n',
            tables.parameter_table(VoiceSettings),
            '',
        ]
    )


def _interface(file: Path) -> str:
    """Return the section of an interface: its comment, then constants and fields of each part."""
    kind = file.suffix[1:]
    lines = [f'## lisa_ros/{kind}/{file.stem}\n']
    definition = file.read_text(encoding='utf-8')
    comment = re.match(r'(#.*\n)*', definition)[0]
    lines.append(_comment_text(comment))
    parts = definition.removeprefix(comment).split('---\n')
    for title, part in zip(PARTS[kind], parts, strict=True):
        lines += [f'**{title}**\n'] if title else []
        constants = re.findall(r'^(\w+) +(\w+) *= *(\S+) *#? *(.*)$', part, re.MULTILINE)
        if constants:
            rows = [(f'`{name}`', value, text) for _, name, value, text in constants]
            lines += [tables.table(('constant', 'value', 'meaning'), rows), '']
        lines += [tables.field_table(part), '']
    return '\n'.join(lines)


def _comment_text(comment: str) -> str:
    """Return a comment as Markdown; its indented lines are code."""
    text = re.sub(r'^# ?', '', comment, flags=re.MULTILINE)
    return re.sub(r'((?:^ +\S.*\n)+)', r'\n```python\n\1```\n\n', text, flags=re.MULTILINE)
