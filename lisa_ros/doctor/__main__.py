# SPDX-License-Identifier: Apache-2.0
"""`python -m lisa_ros.doctor`: the checks where `lisa-ros` itself cannot be imported.

NumPy and all other packages may be missing or broken. The model is lisa-tabletop.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from lisa_ros.doctor.run import DoctorOptions, report
from lisa_ros.doctor.weights import ModelOptions
from lisa_ros.number_arguments import positive_float
from lisa_ros.resources import DEFAULT_MODEL


def main(arguments: list[str] | None = None) -> int:
    """Run all checks and print the findings; return the exit status."""
    parser = argparse.ArgumentParser(prog='python -m lisa_ros.doctor', description=__doc__)
    parser.add_argument('--node', metavar='NAME', help='a node that must run, such as /lisa')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--timeout', type=positive_float, default=10.0, help='of each check [s]')
    parser.add_argument('--strict', action='store_true', help='warnings count as errors')
    options, others = parser.parse_known_args(arguments)
    if others:  # those of `lisa-ros doctor`, which starts this where it cannot be imported
        print(
            f'doctor: {shlex.join(others)} has no effect here: only {DEFAULT_MODEL} is checked '
            'until all packages can be imported',
            file=sys.stderr,
        )
    doctor_options = DoctorOptions(
        ModelOptions(DEFAULT_MODEL), options.node, timeout=options.timeout
    )
    return report(doctor_options, as_json=options.json, is_strict=options.strict)


if __name__ == '__main__':
    raise SystemExit(main())
