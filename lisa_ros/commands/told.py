# SPDX-License-Identifier: Apache-2.0
"""What several commands print: the figures of a report."""

from __future__ import annotations

import argparse
import json


def print_report(plain: dict, options: argparse.Namespace) -> None:
    """Print the figures of a report, as a table or as one JSON object."""
    if options.json:
        print(json.dumps({name: plain[name] for name in ('title', 'mode', 'figures', 'broken')}))
        return
    print(f'{plain["title"]}, mode {plain["mode"]}')
    print(f'{"":16}{"gIoU":>8}{"95 %":>16}{"cIoU":>8}{"P@0.5":>8}{"count":>8}')
    for sort, row in plain['figures'].items():
        if row['count']:
            sure = ' - '.join(f'{value:.3f}' for value in row['giou_interval'] or ())
            whole, half = (
                '' if row[name] is None else f'{row[name]:.3f}' for name in ('ciou', 'p@0.5')
            )
            print(f'{sort:16}{row["giou"]:8.3f}{sure:>16}{whole:>8}{half:>8}{row["count"]:8d}')
    for one in plain['broken']:
        print(f'not used: {one}')
    print(f'report: {options.out}/report.html')
