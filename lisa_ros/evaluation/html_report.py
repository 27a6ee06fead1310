# SPDX-License-Identifier: Apache-2.0
"""The page of a report: one HTML file that needs nothing beside it, on a phone or a wide screen.

Pictures are in it as data; its one script sorts and filters them. Nothing is fetched.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --faint: #667080; --paper: #fafbfc;
  --card: #fff; --line: #dfe3e8; --accent: #0a6;
  --right: #34c759; --wrong: #ff5c35; --missed: #3884ff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --faint: #98a2b0; --paper: #15181d;
  --card: #1e2229; --line: #333a44; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1240px; color: var(--ink);
  background: var(--paper);  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .5rem; }
p, .faint { color: var(--faint); margin: .2rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .6rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem .8rem; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--faint); font-size: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .88rem; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.words { text-align: left;
  white-space: normal; } td.wraps { white-space: normal; }
th { color: var(--faint); font-weight: 500; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: .6rem; }
.plots svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; }
select, input { font: inherit; color: inherit; background: var(--card); padding: .3rem .5rem;
  border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
input { flex: 1 1 8rem; }
.gallery { display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
figure .pair { display: grid; grid-auto-flow: column; gap: 2px; }
figure img { width: 100%; display: block; } figcaption { padding: .5rem .7rem .7rem; }
figcaption q { font-weight: 600; quotes: none; } figcaption div { font-size: .88rem; }
.tag { float: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin: 0 .3em 0 .8em; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""

_SCRIPT = """
const cases = JSON.parse(document.getElementById('cases').textContent);
const gallery = document.getElementById('gallery');
const order = document.getElementById('order'), sort = document.getElementById('sort');
const words = document.getElementById('words'), told = document.getElementById('told');
function show() {
  const wanted = words.value.toLowerCase();
  const chosen = cases.filter(c => (!sort.value || c.sort === sort.value) &&
    (c.query + ' ' + c.answer + ' ' + c.name).toLowerCase().includes(wanted));
  const [key, way] = order.value.split(' ');
  const value = c => c[key] ?? -1;
  chosen.sort((a, b) => way * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0));
  gallery.replaceChildren(...chosen.map(c => document.getElementById(c.id)));
  told.textContent = chosen.length + ' of ' + cases.length;
}
for (const control of [order, sort, words]) control.addEventListener('input', show);
show();
"""


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or the browser asks for one
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n'
        + '\n'.join(parts)
        + '\n</body></html>\n'
    )


def run_page(plain: dict, timings: dict, folder: Path, most: int) -> str:
    """Return the page of one run.

    Args:
        plain: what report.json has.
        timings: what timings.json has.
        folder: where pictures lie.
        most: pictures in the page, the worst.
    """
    told, cases = plain['figures'], plain['cases']
    return _page(
        plain['title'],
        [
            f'<h1>{html.escape(plain["title"])}</h1>',
            f'<p>{len(cases)} questions, mode <b>{html.escape(plain["mode"])}</b></p>',
            _cards(told['all'], timings['percentiles']['all']),
            '<h2>By kind of query</h2>',
            _figures(told, plain['published'], plain['mode']),
            *_by_bag(plain['by_bag'], plain['mode']),
            '<h2>How sure, how good, how fast</h2>',
            f'<div class="plots">{_reliability(cases)}{_ious(cases)}{_latency(timings)}</div>',
            _conditions({**timings['delays'], **timings['conditions']}),
            *_broken(plain['broken']),
            '<h2>Answers</h2>',
            _gallery(cases, folder, most),
            '<h2>Settings</h2>',
            _settings({**plain['settings'], **timings['machine']}),
        ],
    )


def comparison_page(plain: dict, runs: Sequence[dict], folders: Sequence[Path], most: int) -> str:
    """Return the page of two runs, the second held against the first."""
    names = ' and '.join(plain['titles'])
    head = '<th>kind</th><th>questions</th><th>gIoU A</th><th>gIoU B</th><th>B &minus; A</th>'
    head += '<th>95 %</th><th>p</th><th>better</th><th>worse</th><th>cIoU A</th><th>cIoU B</th>'
    rows = ''
    for sort, row in plain['figures'].items():
        cells = [
            html.escape(sort), row['count'], *(f'{v:.3f}' for v in row['giou']),
            f'{row["difference"]:+.3f}', ' to '.join(f'{v:+.3f}' for v in row['interval'] or ()),
            f'{row["p"]:.4f}', row['better'], row['worse'], *(f'{v:.3f}' for v in row['ciou']),
        ]  # fmt: skip
        rows += f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    left = ' and '.join(
        f'{count} of {letter}' for count, letter in zip(plain['left_out'], 'AB', strict=True)
    )
    note = f'<p>Left out, without a truth or a counterpart: {left}.</p>'
    if plain['modes'][0] != plain['modes'][1]:
        note += '<p><b>The modes differ</b>: these figures are of two kinds.</p>'
    both = []
    for name, change in plain['changes']:
        first, second = (run['names'][name] for run in runs)
        both.append({**second, 'change': change, 'first': first})
    return _page(
        names,
        [
            '<h1>Two runs, question by question</h1>',
            *(
                f'<p><b>{letter}</b> {html.escape(title)}, mode {html.escape(mode)}</p>'
                for letter, title, mode in zip('AB', plain['titles'], plain['modes'], strict=True)
            ),
            note,
            f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>',
            '<p>p: chance of such a difference if the runs were alike (paired permutation).</p>',
            '<h2>What changed most</h2>',
            _gallery(both, folders, most),
            '<h2>Settings</h2>',
            *(
                f'<h3>{letter}</h3>{_settings({**settings, **run["timings"]["machine"]})}'
                for letter, settings, run in zip('AB', plain['settings'], runs, strict=True)
            ),
        ],
    )


def _number(value: float | None, form: str = '.3f') -> str:
    return '–' if value is None or value != value else format(value, form)


def _cards(row: Mapping, seconds: Mapping | None) -> str:
    low, high = row.get('giou_interval') or (None, None)
    cards = [
        ('gIoU', _number(row.get('giou')), f'95 %: {_number(low)} to {_number(high)}'),
        ('cIoU', _number(row.get('ciou')), 'sum over sum'),
        ('P@0.5', _number(row.get('p@0.5')), 'IoU of 0.5 or more'),
        ('boundary F', _number(row.get('boundary_f')), 'outlines'),
        ('T-acc.', _number(row.get('t_acc')), 'present, and found'),
        ('N-acc.', _number(row.get('n_acc')), 'absent, and not found'),
    ]
    if seconds:
        more = f'a fresh picture; p99 {seconds["p99"]:.2f}'
        cards.append(('seconds', _number(seconds['p50'], '.2f'), more))
    inner = ''.join(
        f'<div class="card"><span>{name}</span><b>{value}</b><span>{more}</span></div>'
        for name, value, more in cards
    )
    return f'<div class="cards">{inner}</div>'


_COLUMNS = ('giou', 'ciou', 'p@0.5', 'p@0.7', 'p@0.9', 'boundary_f', 't_acc', 'n_acc')


def _figures(told: Mapping, published: Mapping, mode: str, of: str = 'kind') -> str:
    names = ('gIoU', 'cIoU', 'P@0.5', 'P@0.7', 'P@0.9', 'boundary F', 'T-acc.', 'N-acc.')
    head = ''.join(f'<th>{name}</th>' for name in (of, 'questions', *names))
    rows = ''
    for sort, row in told.items():
        cells = ''.join(f'<td>{_number(row.get(column))}</td>' for column in _COLUMNS)
        rows += f'<tr><td>{html.escape(sort)}</td><td>{row["count"]}</td>{cells}</tr>'
    for name, (giou, ciou) in published.items():
        cells = f'<td></td><td>{_number(giou, ".1f")} %</td><td>{_number(ciou, ".1f")} %</td>'
        rows += f'<tr class="faint"><td>published: {html.escape(name)}</td>{cells}</tr>'
    note = ''
    if published:
        note = (
            f'<p>Published figures are teacher forced; this run is <b>{html.escape(mode)}</b>.</p>'
        )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{note}'


def _by_bag(figures: Mapping, mode: str) -> list[str]:
    """Return a table of several bags, the worst first, to be opened."""
    if not figures:
        return []
    worst = sorted(figures.items(), key=lambda one: one[1].get('giou', 2.0))
    table = _figures(dict(worst), {}, mode, 'bag')
    return [f'<details><summary>By bag, {len(worst)}, worst first</summary>{table}</details>']


def _broken(broken: Sequence[str]) -> list[str]:
    if not broken:
        return []
    items = ''.join(f'<li>{html.escape(one)}</li>' for one in broken)
    return [f'<h2>What could not be used ({len(broken)})</h2><ul>{items}</ul>']


def _conditions(conditions: Mapping) -> str:
    rows = ''.join(
        f'<tr><td class="wraps">{html.escape(name)}</td><td class="wraps">{_told(value)}</td></tr>'
        for name, value in conditions.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>' if rows else ''


def _told(value: float | Mapping) -> str:
    """Return a number, or percentiles in one line."""
    if isinstance(value, Mapping):
        return ', '.join(f'{name} {_number(one)}' for name, one in value.items())
    return _number(value, 'd' if isinstance(value, int) else '.1f')


def _settings(settings: Mapping) -> str:
    rows = ''.join(
        f'<tr><td>{html.escape(str(name))}</td>'
        f'<td class="words">{html.escape(str(value))}</td></tr>'
        for name, value in settings.items()
    )
    return f'<details><summary>{len(settings)} of them</summary><table>{rows}</table></details>'


# ---- pictures


def _gallery(cases: Sequence[dict], folders: Path | Sequence[Path], most: int) -> str:
    """Return tiles of the worst cases, or of those that changed most, with their controls."""
    changed = bool(cases) and 'change' in cases[0]
    rank = (
        (lambda c: -abs(c['change']))
        if changed
        else (lambda c: -1 if c['iou'] is None else c['iou'])
    )
    chosen = sorted(cases, key=rank)[:most]
    known, tiles = [], []
    for number, case in enumerate(chosen):
        score = max(case['scores'], default=None)
        entry = {k: case[k] for k in ('name', 'sort', 'query', 'answer', 'iou')}
        known.append({**entry, 'score': score, 'id': f'c{number}', 'change': case.get('change')})
        sources = [(case, folders)]
        if changed:
            sources = list(zip((case['first'], case), folders, strict=True))
        images = ''.join(
            f'<img loading="lazy" alt="{html.escape(c["query"], quote=True)}" src="{_data(f, c)}">'
            for c, f in sources
            if c['picture'] and (f / c['picture']).is_file()
        )
        tag = _number(case['iou'], '.2f')
        if changed:
            tag = f'{case["first"]["iou"]:.2f} &rarr; {tag}'
        said = ' / '.join(dict.fromkeys(c['answer'] for c, _ in sources))
        tiles.append(
            f'<figure id="c{number}"><div class="pair">{images}</div><figcaption>'
            f'<span class="tag">{tag}</span><q>{html.escape(case["query"])}</q>'
            f'<div>{html.escape(said) or "(no words)"}</div>'
            f'<div class="faint">{html.escape(case["name"])}, {html.escape(case["sort"])}'
            f'{"" if score is None else f", score {score:.2f}"}</div></figcaption></figure>'
        )
    orders = [('iou 1', 'worst first'), ('iou -1', 'best first'), ('score -1', 'surest first')]
    orders += [('score 1', 'least sure first'), ('name 1', 'by name')]
    if changed:
        orders = [('change 1', 'lost most first'), ('change -1', 'won most first'), *orders]
    options = ''.join(f'<option value="{value}">{name}</option>' for value, name in orders)
    sorts = ''.join(
        f'<option>{html.escape(sort)}</option>' for sort in dict.fromkeys(c['sort'] for c in cases)
    )
    key = ''.join(
        f'<i style="background: var(--{name})"></i>{said}'
        for name, said in (('right', 'found'), ('wrong', 'wrongly found'), ('missed', 'missed'))
    )
    which = 'that changed most' if changed else 'worst'
    few = f' The {most} {which} of {len(cases)} are here.' if len(cases) > most else ''
    data = json.dumps(known).replace('<', '\\u003c')
    return (
        f'<p class="key">{key}.{few}</p><div class="controls">'
        f'<select id="order" aria-label="order">{options}</select>'
        f'<select id="sort" aria-label="kind"><option value="">every kind</option>{sorts}</select>'
        '<input id="words" type="search" placeholder="words" aria-label="words">'
        '<span id="told" class="faint"></span></div>'
        f'<div class="gallery" id="gallery">{"".join(tiles)}</div>'
        f'<script type="application/json" id="cases">{data}</script><script>{_SCRIPT}</script>'
    )


def _data(folder: Path, case: dict) -> str:
    """Return a picture as a data URL."""
    coded = base64.b64encode((folder / case['picture']).read_bytes()).decode()
    return f'data:image/jpeg;base64,{coded}'


# ---- plots, as SVG of 320 x 200


def _plot(title: str, inner: str, across: str, marks: Sequence[tuple[float, str]]) -> str:
    """Return a plot with its axes; `inner` is drawn in a unit square, y up, 260 x 130 pixels."""
    ticks = ''.join(
        f'<text x="{40 + 260 * at:.0f}" y="178" text-anchor="middle">{name}</text>'
        for at, name in marks
    )
    sides = ''.join(
        f'<text x="34" y="{164 - 130 * at:.0f}" text-anchor="end">{at:g}</text>'
        for at in (0, 0.5, 1)
    )
    return (
        f'<svg viewBox="0 0 320 200" role="img" aria-label="{html.escape(title, quote=True)}">'
        '<text x="40" y="20" style="fill: var(--ink); font-weight: 600">'
        f'{html.escape(title)}</text>'
        f'<g transform="translate(40 160) scale(260 -130)">{inner}</g>'
        '<path d="M40 30 V160 H300" fill="none" stroke="var(--faint)"/>'
        f'{ticks}{sides}'
        f'<text x="170" y="194" text-anchor="middle">{html.escape(across)}</text></svg>'
    )


_UNITS = [(0.0, '0'), (0.5, '0.5'), (1.0, '1')]


def _reliability(cases: Sequence[dict]) -> str:
    """Return how many of the masks of a score are right (IoU above 0.5)."""
    known = [c for c in cases if c['scores'] and c['iou'] is not None]
    scored = [(max(c['scores']), c['iou'] > 0.5) for c in known]
    bars = ''
    for low in np.arange(0, 1, 0.1):
        inside = [right for score, right in scored if low <= min(score, 0.999) < low + 0.1]
        if inside:
            opacity = 0.35 + 0.65 * min(1, len(inside) / 20)
            bars += (
                f'<rect x="{low + 0.01:.2f}" y="0" width="0.08" height="{np.mean(inside):.3f}" '
                f'fill="var(--accent)" opacity="{opacity:.2f}"/>'
            )
    line = '<path d="M0 0 L1 1" stroke="var(--faint)" stroke-width=".006" stroke-dasharray=".03"/>'
    return _plot('share right, by score', bars + line, 'score of the mask', _UNITS)


def _ious(cases: Sequence[dict]) -> str:
    """Return how the IoU is spread."""
    known = [c['iou'] for c in cases if c['iou'] is not None]
    counts, _ = np.histogram(known, bins=20, range=(0, 1))
    most = max(1, counts.max())
    bars = ''.join(
        f'<rect x="{i / 20 + 0.004:.3f}" y="0" width="0.042" height="{count / most:.3f}" '
        'fill="var(--missed)"/>'
        for i, count in enumerate(counts)
    )
    return _plot(f'IoU (highest bar: {counts.max()})', bars, 'IoU', _UNITS)


def _latency(timings: dict) -> str:
    """Return the share of answers that were there after so many seconds."""
    spent = np.sort([sum(stages.values()) for stages in timings['cases'].values()])
    if not len(spent):
        return ''
    longest = float(spent[-1]) or 1.0
    shares = np.arange(1, len(spent) + 1) / len(spent)
    path = 'M0 0 ' + ' '.join(
        f'L{x / longest:.4f} {y:.4f}' for x, y in zip(spent, shares, strict=True)
    )
    line = f'<path d="{path}" fill="none" stroke="var(--wrong)" stroke-width=".008"/>'
    marks = [(at, f'{at * longest:.2g}') for at in (0.0, 0.5, 1.0)]
    return _plot('share answered, by time', line, 'seconds', marks)
