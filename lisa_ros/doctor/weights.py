# SPDX-License-Identifier: Apache-2.0
"""Check torch with its GPU, and the weights of a model: present, readable, whole.

One process imports torch, which takes seconds, for both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.gpu import driver_facts, judge_gpu
from lisa_ros.doctor.probe import ProbeResult, run_probe
from lisa_ros.health.verdict import Level

_LONG_TIMEOUT = 600.0  # of what reads all weights: checksums, --load [s]
_PROBE = 'lisa_ros.doctor.model_probe'
_IMPORT = 'import model'  # the row
_BACKENDS = {  # modules that answer with a model on this machine, by its scheme
    '': 'lisa_ros.perception.lisa_backend',
    'vlm+sam': 'lisa_ros.perception.vlm_backend',
}


@dataclass(frozen=True)
class ModelOptions:
    """Which model is checked, and what it must be."""

    model: str
    vision_tower: str = ''
    segmenter_model: str = ''
    vlm_url: str = ''
    api_key_env: str = ''
    api_key_file: str = ''
    sha256: str = ''
    lock: str = ''
    allow_download: bool = False
    device: str = 'auto'
    precision: str = 'auto'
    template: str = ''
    max_input_side: int | None = None  # [px]; None: 1024
    max_model_size: float | None = None  # [GB]; None: the free memory


def check_model(options: ModelOptions, is_loaded: bool, timeout: float) -> list[Finding]:
    """Return the findings about torch and the weights, and about the loaded model.

    Args:
        options: of the model; sha256 and lock read all weights.
        is_loaded: load the model and ask it.
        timeout: [s]; ten minutes if all weights are read.
    """
    backend = _BACKENDS.get(_scheme(options), '')
    arguments = [json.dumps(value) for value in (asdict(options), is_loaded, backend)]
    with ThreadPoolExecutor(1) as pool:  # a driver that hangs costs no time of the model
        driver = pool.submit(driver_facts)
        result = run_probe(_PROBE, arguments, time_limit(options, is_loaded, timeout))
    findings = [judge_gpu(driver.result(), result, options.device), _weights(options, result)]
    if backend:
        findings.append(_imports(result))
    return [*findings, judge_model('model', result, 'loaded')] if is_loaded else findings


def time_limit(options: ModelOptions, is_loaded: bool, timeout: float) -> float:
    """Return the time limit of the model's checks [s]; longer if all weights are read."""
    reads_all = is_loaded or options.sha256 or options.lock
    return _LONG_TIMEOUT if reads_all else timeout


def _weights(options: ModelOptions, result: ProbeResult) -> Finding:
    if _scheme(options):
        observed = f'{options.model} has a loader of its own: use --load'
        return Finding('weights', Level.OK, observed)
    return judge_model('weights', result, 'weights')


def _scheme(options: ModelOptions) -> str:
    """Return the scheme of the model's loader; "" of a folder or hub id."""
    scheme, colon, _ = options.model.partition(':')
    return scheme if colon and '/' not in scheme else ''


def _imports(result: ProbeResult) -> Finding:
    """Return whether the packages of the model can be imported; a slow computer is no fault."""
    if 'weights' in result.facts and 'import' not in result.facts and result.is_late:
        return Finding(_IMPORT, Level.OK, f'{result.error}; for all give more time with --timeout')
    return judge_model(_IMPORT, result, 'import')


def judge_model(check: str, result: ProbeResult, key: str) -> Finding:
    """Return a finding of the probe; if the probe did not come so far, why.

    Args:
        check: the subject.
        result: of `model_probe`.
        key: of the facts: weights, import or loaded.
    """
    facts: Mapping[str, Any] | None = result.facts.get(key)
    if facts is not None:
        return Finding(check, Level(facts['level']), facts['observed'], facts['cure'])
    level = Level.WARN if result.is_late else Level.ERROR
    cure = 'give more time with --timeout' if result.is_late else 'see the row of torch'
    return Finding(check, level, result.error or 'not checked', cure)
