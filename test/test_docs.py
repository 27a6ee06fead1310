# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: their links, their navigation, the page made of interfaces."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for folder in ('', 'docs/', 'examples/*/') for page in ROOT.glob(f'{folder}*.md')
)
SITE = runpy.run_path(str(ROOT / 'docs/site/conf.py'))

sys.path.insert(0, str(ROOT / 'docs/site'))

from interfaces import interfaces_page  # noqa: E402  # found by the line above


def without_code_blocks(page: Path) -> str:
    return re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.M | re.S)


def links(page: Path) -> list[str]:
    """Return the targets inside the repository."""
    text = re.sub(r'`[^`\n]*`', '', without_code_blocks(page))
    return re.findall(r'\]\((?!\w+:)([^)\s]+)\)', text)


def anchors(page: Path) -> set[str]:
    """Return the ids of the headings as a Git server and Sphinx make them."""
    names = re.findall(r'^#+ +(.+)$', without_code_blocks(page), re.M)
    return {re.sub(r'[^\w\- ]', '', name.lower()).replace(' ', '-') for name in names}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links(page):
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        if target.name != 'interfaces.md':  # made with the site
            assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found():
    assert {'docs/commands.md', 'SECURITY.md', 'docs/demo.jpg'} <= set(links(ROOT / 'README.md'))
    assert 'commands.md#in-a-behaviour-tree' in links(ROOT / 'docs/navigation.md')


def test_every_page_is_in_the_navigation_once():
    entries = [name for pages in SITE['NAVIGATION'].values() for name in pages]
    pages = {str(page.relative_to(ROOT).with_suffix('')) for page in PAGES}
    assert sorted(entries) == sorted(pages | {SITE['INTERFACES'], 'CHANGELOG'})


def test_links_to_pages_show_their_titles():
    text = ['[docs/voice.md](docs/voice.md), [LISA](https://x), [`a.py`](a.py)\n']
    SITE['adapt_source'](None, 'docs/space', text)
    assert text == ['[](docs/voice.md), [LISA](https://x), [`a.py`](a.py)\n']


def test_interfaces_page_has_every_field_and_constant():
    sections = dict(re.findall(r'^## (\S+)\n(.*?)(?=^## |\Z)', interfaces_page(), re.M | re.S))
    files = [file for kind in ('msg', 'srv', 'action') for file in ROOT.glob(f'{kind}/*')]
    assert len(files) >= 10
    for file in files:
        section = sections[f'lisa_ros/{file.suffix[1:]}/{file.stem}']
        for line in file.read_text(encoding='utf-8').splitlines():
            code, _, comment = (part.strip() for part in line.partition('#'))
            name = code.split()[-1].split('=')[0] if code and code != '---' else ''
            assert f'| `{name}` |' in section or not name, (file.name, line)
            assert comment.replace('|', '\\|') in section, (file.name, line)
