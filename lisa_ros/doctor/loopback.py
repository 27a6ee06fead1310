# SPDX-License-Identifier: Apache-2.0
"""Check that a message goes from one node to another, small and as large as an image."""

from __future__ import annotations

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.probe import ProbeResult, run_probe
from lisa_ros.health.verdict import Level

_PROBE = 'lisa_ros.ros.loopback_probe'
_SLOW = 0.1  # latency [s]
_CURE = 'see the rows RMW, domain, discovery and shared memory'


def check_loopback(timeout: float) -> list[Finding]:
    """Return the finding; `timeout` [s]."""
    return [judge_loopback(run_probe(_PROBE, [], timeout))]


def judge_loopback(result: ProbeResult) -> Finding:
    """Return the finding from the facts of `loopback_probe`."""
    error = result.error or str(result.facts.get('error', ''))
    if error:
        return Finding('loopback', Level.ERROR, error, _cure(error))
    facts = result.facts
    times = {name: f'{1000 * facts[f"{name}_latency"]:.1f} ms' for name in ('small', 'large')}
    lost = {name: facts['sent'] - facts[name] for name in ('small', 'large')}
    observed = f'message {times["small"]}, image of 0.9 MB {times["large"]}'
    if any(lost.values()):
        text = f'of {facts["sent"]} messages, {lost["small"]} small and {lost["large"]} large'
        return Finding('loopback', Level.ERROR, f'{text} ones were lost', _CURE)
    if max(facts['small_latency'], facts['large_latency']) > _SLOW:
        cure = 'end programs that use all cores (top), or check the network interface of DDS'
        return Finding('loopback', Level.WARN, f'slow: {observed}', cure)
    return Finding('loopback', Level.OK, observed)


def _cure(error: str) -> str:
    if 'rmw' in error.lower():
        return 'unset RMW_IMPLEMENTATION, or install that package'
    if 'No module named' in error or 'cannot import' in error or 'undefined symbol' in error:
        return 'source the setup.bash of ROS and of the workspace, built for this Python'
    return _CURE
