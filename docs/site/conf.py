# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site, for Sphinx: `make docs` writes it to build/site.

The pages are README.md and the other texts of the top folder, of docs/ and of examples/, as they
are: the source folder is the top folder, so a link or an image has one path here and on a Git
server. Links to other files become downloads. The site loads nothing from other hosts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
INTERFACES = 'docs/interfaces'  # the page that interfaces.py writes; git ignores it

# {caption: {page: title}}; test/test_docs.py checks that no page is missing
NAVIGATION = {
    'Start': {
        'README': 'Overview',
        'docs/troubleshooting': 'Troubleshooting',
    },
    'Use': {
        'docs/commands': 'Commands, goals, dialogues',
        'docs/voice': 'Voice',
        'docs/space': '3D positions and tracking',
        'docs/models': 'Known models',
        'docs/vlm': 'Vision-language models',
        'docs/agents': 'Agents (MCP)',
    },
    'Build on it': {
        'docs/navigation': 'Navigation',
        'examples/lisa_ros_bt/README': 'Behaviour trees of Nav2',
        'docs/grasping': 'Grasping',
        'docs/architecture': 'Architecture',
        'CONTRIBUTING': 'Contributing',
    },
    'Operate': {
        'docs/fleet': 'One server, many robots',
        'docs/performance': 'Performance',
        'docs/endurance': 'Endurance',
        'docs/security': 'DDS security',
        'SECURITY': 'Security policy',
        'docs/docker': 'Docker',
    },
    'Train and evaluate': {
        'docs/evaluation': 'Evaluation',
        'docs/finetuning': 'Fine-tuning',
        'docs/lisa-tabletop': 'lisa-tabletop',
    },
    'Reference': {
        INTERFACES: 'Messages and parameters',
        'docs/quality': 'Quality declaration',
        'CHANGELOG': 'Changelog',
    },
}

# ---- Sphinx

project = 'lisa_ros'
copyright = 'lisa_ros contributors, Apache-2.0'
init_file = ROOT / 'lisa_ros/__init__.py'
version = release = re.search(r"__version__ = '(.+)'", init_file.read_text(encoding='utf-8'))[1]

extensions = ['myst_parser', 'sphinx_copybutton']
root_doc = 'README'
include_patterns = ['*.md', '*.rst', 'docs/*.md', 'examples/*/*.md']
exclude_patterns = [  # folders that would be searched for pages in vain
    path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ('docs', 'examples')
]
nitpicky = True
smartquotes = False
highlight_language = 'sh'  # of indented code
myst_heading_anchors = 4
myst_fence_as_directive = ['mermaid']

html_theme = 'furo'
html_title = f'lisa_ros {release}'
html_favicon = 'logo.svg'
html_static_path = ['site.css']
html_css_files = ['site.css']
html_extra_path = ['index.html']
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_theme_options = {
    'light_css_variables': {'color-brand-primary': '#0b6e63', 'color-brand-content': '#0b6e63'},
    'dark_css_variables': {'color-brand-primary': '#5cc8b8', 'color-brand-content': '#5cc8b8'},
}


def write_interfaces(app: Sphinx) -> None:
    """Write the page of messages and parameters, if it has changed."""
    sys.path.insert(0, str(FOLDER))
    from interfaces import interfaces_page

    page = ROOT / f'{INTERFACES}.md'
    text = interfaces_page()
    if not page.exists() or page.read_text(encoding='utf-8') != text:
        page.write_text(text, encoding='utf-8')


def adapt_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Show the titles of linked pages, not their paths; give the first page the navigation."""
    source[0] = re.sub(r'\[[\w/.-]+\.md\](?=\()', '[]', source[0])
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            entries = [
                f'{title} <{"self" if name == root_doc else name}>'
                for name, title in pages.items()
            ]
            options = [':hidden:', f':caption: {caption}', '']
            source[0] += '\n'.join(['', '', '```{toctree}', *options, *entries, '```', ''])


def refuse_requests(app: Sphinx, error: Exception | None) -> None:
    """End the build if a page or a style loads something from another host."""
    from sphinx.errors import SphinxError

    tag = r"""<(?:script|link|img|iframe|source)\b[^>]+(?:src|href)=["'](?:https?:)?//[^>]*"""
    style = r"""(?:@import|url\()\s*["']?(?:https?:)?//[^)]*"""
    for file in app.outdir.rglob('*') if not error else ():
        pattern = {'.html': tag, '.css': style}.get(file.suffix)
        found = pattern and re.search(pattern, file.read_text(encoding='utf-8'))
        if found:
            raise SphinxError(f'{file.name} loads from another host: {found[0][:200]}')


def setup(app: Sphinx) -> None:
    """Connect the functions above, and draw diagrams while the site is built."""
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Mermaid(SphinxDirective):
        """A diagram as SVG: no script in the page, no browser for the build."""

        has_content = True

        def run(self) -> list[nodes.Node]:
            import mermaidx

            diagram = ['---', 'config: {theme: neutral}', '---', *self.content]
            svg = mermaidx.render('\n'.join(diagram)).svg()
            return [nodes.raw('', f'<div class="diagram">{svg}</div>', format='html')]

    app.add_directive('mermaid', Mermaid)
    app.connect('builder-inited', write_interfaces)
    app.connect('source-read', adapt_source)
    app.connect('build-finished', refuse_requests)
