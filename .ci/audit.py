# SPDX-License-Identifier: Apache-2.0
"""Compare the pinned packages with the known vulnerabilities; exit status 1 if there are any.

    python .ci/audit.py TOOLS

TOOLS is the virtual environment with pip-audit. Where the advisory service cannot be reached, one
line says so and the exit status is 0: a build must not depend on the network. audit-allow.toml
lists accepted vulnerabilities with their reasons.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import tomllib

FOLDER = Path(__file__).parent
ALLOW_FILE = FOLDER / 'audit-allow.toml'
SERVICE = 'https://pypi.org/pypi'  # that pip-audit asks; mirrors have no page for each version
TIMEOUT = 5.0  # [s]


@dataclass(frozen=True)
class Vulnerability:
    """A known vulnerability of an installed package."""

    package: str
    version: str
    ids: frozenset[str]  # its id and its aliases
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        cure = f'fixed in {", ".join(self.fixed_in)}' if self.fixed_in else 'no fixed version yet'
        return f'{self.package} {self.version}: {", ".join(sorted(self.ids))}; {cure}'


class AllowListError(ValueError):
    """An entry of the allow list is not complete."""


def probe() -> str:
    """Return the address of the service's page for one of our pins."""
    (version,) = re.findall(r'^numpy==([\w.]+)', pinned(), re.MULTILINE)
    return f'{SERVICE}/numpy/{version}/json'


def unreachable(url: str) -> str:
    """Return why the advisory service cannot be used; empty if it can."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310  # https only
            content = json.load(response)
    except (OSError, ValueError) as error:
        return str(error)
    return '' if 'vulnerabilities' in content else 'its answer has no vulnerabilities'


def read_allow_list(text: str) -> dict[str, str]:
    """Return {package and id: reason}.

    Raises:
        AllowListError: an entry lacks a key, or its reason is empty.
    """
    allowed = {}
    for number, entry in enumerate(tomllib.loads(text).get('vulnerability', ()), 1):
        values = [str(entry.get(key, '')).strip() for key in ('package', 'id', 'reason')]
        if not all(values):
            raise AllowListError(
                f'{ALLOW_FILE.name}, entry {number}: expected package, id and reason, none empty'
            )
        package, identifier, reason = values
        allowed[f'{package.lower()} {identifier}'] = reason
    return allowed


def vulnerabilities(report: dict) -> list[Vulnerability]:
    """Return the vulnerabilities in a report of `pip-audit --format json`."""
    return [
        Vulnerability(
            entry['name'].lower(),
            entry['version'],
            frozenset([item['id'], *item.get('aliases', ())]),
            tuple(item.get('fix_versions', ())),
        )
        for entry in report['dependencies']
        for item in entry.get('vulns', ())
    ]


def judge(report: dict, allowed: dict[str, str]) -> tuple[list[str], int]:
    """Return the lines to print and the exit status.

    pip-audit skips packages that the service does not have, and calls that a success.
    """
    checked = [entry for entry in report['dependencies'] if 'skip_reason' not in entry]
    if not checked:
        return ['audit: the advisory service has none of the packages: nothing was checked'], 0
    skipped = len(report['dependencies']) - len(checked)
    lines, bad = [], 0
    for found in vulnerabilities(report):
        keys = [f'{found.package} {identifier}' for identifier in found.ids]
        reason = next((allowed[key] for key in keys if key in allowed), '')
        lines.append(f'audit: {"accepted: " if reason else ""}{found}{reason and f" ({reason})"}')
        bad += not reason
    lines.append(
        f'audit: {len(checked)} packages checked, {skipped} not known to the service, '
        f'{bad} vulnerabilities'
    )
    return lines, int(bad > 0)


def pinned() -> str:
    """Return the pins as requirements; PyTorch's is in the Makefile."""
    torch = re.search(
        r'^TORCH \?= (torch==[\w.]+)', (FOLDER / '../Makefile').read_text(), re.MULTILINE
    )
    return f'{(FOLDER / "constraints.txt").read_text()}\n{torch[1]}\n'


def main(tools: Path) -> int:
    """Run pip-audit and judge its report."""
    allowed = read_allow_list(ALLOW_FILE.read_text())
    problem = unreachable(probe())
    if problem:
        print(f'audit: the advisory service cannot be reached ({problem}): nothing was checked')
        return 0
    requirements = tools / 'pinned.txt'
    requirements.write_text(pinned())
    run = subprocess.run(  # noqa: S603
        [
            *(tools / 'bin' / 'python', '-m', 'pip_audit', '--requirement', requirements),
            *('--no-deps', '--disable-pip', '--format', 'json', '--progress-spinner', 'off'),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(run.stdout)
    except ValueError:
        last = (run.stderr.strip().splitlines() or ['no output'])[-1]
        print(f'audit: pip-audit failed ({last}): nothing was checked')
        return 0
    lines, status = judge(report, allowed)
    print('\n'.join(lines))
    return status


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
