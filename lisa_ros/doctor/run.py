# SPDX-License-Identifier: Apache-2.0
"""Run all checks at the same time, each within a time limit; none ends the others.

Threads: each check has one. A check that does not end is left behind with its thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lisa_ros.doctor import discovery, imports, loopback, versions
from lisa_ros.doctor.finding import Check, Finding, worst
from lisa_ros.doctor.graph import check_graph
from lisa_ros.doctor.ros_install import RosFacts, judge_ros, ros_facts
from lisa_ros.doctor.shared_memory import check_shared_memory
from lisa_ros.doctor.system_clock import check_system_clock
from lisa_ros.doctor.table import as_table, to_json
from lisa_ros.doctor.weights import ModelOptions, check_model, time_limit
from lisa_ros.error_text import error_summary
from lisa_ros.health.verdict import Level
from lisa_ros.optional_packages import is_served

_MARGIN = 2.0  # that a check may take beyond its own limit [s]


@dataclass(frozen=True)
class DoctorOptions:
    """What is checked."""

    model: ModelOptions
    node: str | None = None  # full name; None: /lisa, if it runs
    is_loaded: bool = False  # load the model and ask it
    timeout: float = 10.0  # of each check [s]


def report(options: DoctorOptions, *, as_json: bool = False, is_strict: bool = False) -> int:
    """Run all checks and print the findings.

    Args:
        options: what to check.
        as_json: print JSON instead of a table.
        is_strict: warnings count as errors.

    Returns:
        The exit status: 1 with errors, else 0.
    """
    limit = time_limit(options.model, options.is_loaded, options.timeout) + _MARGIN
    findings = run_checks(checks(options), limit)
    print(to_json(findings) if as_json else as_table(findings))
    return int(worst(findings) >= (Level.WARN if is_strict else Level.ERROR))


def checks(options: DoctorOptions, ros: RosFacts | None = None) -> list[Check]:
    """Return the checks, in the order of the table.

    Args:
        options: what to check.
        ros: the installation; None: that of this environment.
    """
    ros, timeout, model = ros or ros_facts(), options.timeout, options.model
    listed = [
        Check('versions', partial(versions.check_versions, is_served=is_served(model.model))),
        *(
            Check(f'import {name}', partial(imports.check_import, name, timeout))
            for name in imports.MODULES
        ),
        _model_check(options),
        Check('system clock', check_system_clock),
        Check('shared memory', check_shared_memory),
        Check('ROS', lambda: judge_ros(ros)),
        Check('discovery', discovery.check_discovery),
    ]
    if ros.rclpy_version is None or not ros.has_messages:
        level = Level.ERROR if options.node else Level.OK
        skipped = Finding('node', level, 'not looked for: it needs ROS, see the row ROS')
        return [*listed, Check('node', lambda: [skipped])]
    return [
        *listed,
        Check('loopback', lambda: loopback.check_loopback(timeout)),
        Check('node', lambda: check_graph(options.node, timeout)),
    ]


def _model_check(options: DoctorOptions) -> Check:
    """Return the check of the weights and of PyTorch, or of the server that has them."""
    model, timeout = options.model, options.timeout
    if is_served(model.model):
        return Check('server', lambda: _check_server(model, timeout))
    return Check('GPU, torch, weights', lambda: check_model(model, options.is_loaded, timeout))


def _check_server(model: ModelOptions, timeout: float) -> list[Finding]:
    from lisa_ros.doctor.server import check_server  # needs NumPy, which may be broken

    return check_server(model, timeout)


def run_checks(listed: Sequence[Check], timeout: float) -> list[Finding]:
    """Run checks at the same time; return their findings in the order of the checks.

    Args:
        listed: the checks.
        timeout: after it a check is reported as not finished [s].
    """
    outcomes: queue.SimpleQueue[tuple[int, Sequence[Finding]]] = queue.SimpleQueue()
    for number, check in enumerate(listed):
        threading.Thread(
            target=lambda n, c: outcomes.put((n, _outcome(c))), args=(number, check), daemon=True
        ).start()
    findings = dict(_received(outcomes, len(listed), timeout))
    return [
        finding
        for number, check in enumerate(listed)
        for finding in findings.get(number, [_late(check, timeout)])
    ]


def _received(
    outcomes: queue.SimpleQueue[tuple[int, Sequence[Finding]]], count: int, timeout: float
) -> Iterator[tuple[int, Sequence[Finding]]]:
    deadline = time.monotonic() + timeout
    with contextlib.suppress(queue.Empty):
        for _ in range(count):
            yield outcomes.get(timeout=max(0.0, deadline - time.monotonic()))


def _outcome(check: Check) -> Sequence[Finding]:
    try:
        return check.run()
    except BaseException as error:  # noqa: BLE001  # of a broken installation: any type
        text = f'the check itself failed: {error_summary(error)}'
        cure = 'please report it, with the version of lisa_ros'
        return [Finding(check.name, Level.ERROR, text, cure)]


def _late(check: Check, timeout: float) -> Finding:
    observed = f'not finished within {timeout:g} s'
    return Finding(check.name, Level.WARN, observed, 'give more time with --timeout')
