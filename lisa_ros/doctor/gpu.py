# SPDX-License-Identifier: Apache-2.0
"""Check GPU, driver and the build of torch: does torch use the GPU that is there?"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa_ros.doctor.finding import Finding
from lisa_ros.doctor.probe import ProbeResult
from lisa_ros.error_text import one_line
from lisa_ros.health.verdict import Level

_SMI_TIMEOUT = 5.0  # [s]
_NVIDIA = '0x10de'  # vendor on the PCI bus
_GB = 10**9
_SELECT = 'choose the build at https://pytorch.org/get-started/locally'


@dataclass(frozen=True)
class DriverFacts:
    """What the system says of NVIDIA GPUs, without torch."""

    gpus_on_bus: int  # on the PCI bus; a Jetson has none there
    smi: str  # first line of nvidia-smi: "NVIDIA H100, 580.65.06"; empty: none, or it failed
    smi_error: str  # what nvidia-smi says if it fails
    cuda: str  # newest CUDA version of the driver: "12.4"; empty: unknown


@dataclass(frozen=True)
class TorchFacts:
    """What torch says of itself and of its GPUs."""

    version: str
    cuda: str  # version of CUDA in the build; empty: a build for CPUs
    hip: str  # version of ROCm in the build
    devices: Sequence[Mapping[str, Any]]  # name, capability [major, minor], memory [bytes]
    architectures: Sequence[str]  # of the kernels: sm_80, compute_90
    warning: str
    kernel_error: str  # of a computation on the first GPU
    free: int = 0  # memory of the first GPU [bytes]


def driver_facts() -> DriverFacts:
    """Read the PCI bus and ask nvidia-smi."""
    smi, error = _nvidia_smi('--query-gpu=name,driver_version', '--format=csv,noheader')
    banner, _ = _nvidia_smi() if smi else ('', '')
    cuda = re.search(r'CUDA(?: UMD)? Version:\s*([\d.]+)', banner)
    first = smi.splitlines()[0] if smi else ''
    return DriverFacts(_gpus_on_bus(), first, error, cuda[1] if cuda else '')


def _nvidia_smi(*arguments: str) -> tuple[str, str]:
    """Return the output of nvidia-smi, and its error."""
    path = shutil.which('nvidia-smi')
    if path is None:
        return '', ''
    try:
        process = subprocess.run(  # noqa: S603  # found in PATH
            [path, *arguments], capture_output=True, text=True, timeout=_SMI_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return '', f'nvidia-smi: {error}'
    output = process.stdout.strip()
    return (output, '') if process.returncode == 0 else ('', output or process.stderr.strip())


def _gpus_on_bus(bus: Path = Path('/sys/bus/pci/devices')) -> int:
    """Return the number of NVIDIA's display devices."""
    count = 0
    with contextlib.suppress(OSError):
        for device in bus.iterdir():
            with contextlib.suppress(OSError):
                is_display = (device / 'class').read_text().startswith('0x03')
                count += is_display and (device / 'vendor').read_text().strip() == _NVIDIA
    return count


def judge_gpu(driver: DriverFacts, result: ProbeResult, device: str = 'auto') -> Finding:
    """Return the finding about torch and its GPU.

    Args:
        driver: of the system.
        result: of `model_probe`.
        device: that is asked for.
    """
    if 'torch' not in result.facts:
        level = Level.WARN if result.is_late else Level.ERROR
        cure = f'pip install torch; {_SELECT}'
        if result.is_late:
            cure = 'give more time with --timeout'
        elif 'numpy' in result.error.lower():
            cure = 'see the row import numpy'
        return Finding('GPU and torch', level, f'torch: {result.error}', cure)
    torch = TorchFacts(**result.facts['torch'])
    if torch.devices:
        return _with_gpu(torch, driver)
    problem = _unused_gpu(torch, driver)
    if problem is not None:
        return problem
    observed = f'torch {torch.version} on the CPU ({os.cpu_count()} cores); no GPU here'
    if device.startswith('cuda'):
        return Finding('GPU and torch', Level.ERROR, observed, 'use device cpu, or install a GPU')
    return Finding('GPU and torch', Level.OK, observed)


def _with_gpu(torch: TorchFacts, driver: DriverFacts) -> Finding:
    gpu = torch.devices[0]
    capability = tuple(gpu['capability'])
    name = f'{gpu["name"]} (sm_{capability[0]}{capability[1]})'
    build = f'torch {torch.version}, {"ROCm " + torch.hip if torch.hip else "CUDA " + torch.cuda}'
    if not torch.hip and not has_kernels(capability, torch.architectures):
        kernels = ', '.join(torch.architectures)
        observed = f'{build} has no kernels for {name}, only {kernels}'
        return Finding('GPU and torch', Level.ERROR, observed, f'install another build: {_SELECT}')
    if torch.kernel_error:
        observed = f'{build} cannot compute on {name}: {torch.kernel_error}'
        cure = 'end other programs on the GPU (nvidia-smi), look at dmesg, restart the computer'
        return Finding('GPU and torch', Level.ERROR, observed, cure)
    memory = f'{torch.free / _GB:.1f} of {gpu["memory"] / _GB:.1f} GB free'
    version = driver.smi.rpartition(',')[2].strip() or 'unknown'
    return Finding('GPU and torch', Level.OK, f'{name}, {memory}, driver {version}; {build}')


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether a build has kernels for a GPU.

    A kernel sm_XY runs on GPUs of the same major version and of Y or a later minor version.
    compute_XY is compiled when it is needed, for X.Y and all later GPUs.

    Args:
        capability: of the GPU, (major, minor).
        architectures: of the build; none: unknown.
    """
    for architecture in architectures:
        match = re.fullmatch(r'(sm|compute)_(\d+)(\d)[a-z]?', architecture)
        if match is None:
            continue
        version = int(match[2]), int(match[3])
        is_same = version[0] == capability[0] and version <= capability
        if is_same or (match[1] == 'compute' and version <= capability):
            return True
    return not architectures


def _unused_gpu(torch: TorchFacts, driver: DriverFacts) -> Finding | None:
    """Return why torch sees no GPU although there is one; None if there is none."""
    build = f'torch {torch.version}' + (f' (CUDA {torch.cuda})' if torch.cuda else '')
    if driver.smi_error:
        observed = f'the driver does not work: {one_line(driver.smi_error, 200)}'
        return Finding(
            'GPU and torch', Level.ERROR, observed, 'restart the computer after an update'
        )
    if not driver.smi and driver.gpus_on_bus:
        observed = f'{driver.gpus_on_bus} NVIDIA GPUs without a driver; {build} uses the CPU'
        cure = 'install the NVIDIA driver; in a container: docker run --gpus all'
        return Finding('GPU and torch', Level.WARN, observed, cure)
    if not driver.smi:
        return None
    if not torch.cuda:
        observed = f'{driver.smi}, but {build} is a build without CUDA and uses the CPU'
        return Finding('GPU and torch', Level.WARN, observed, f'install a CUDA build: {_SELECT}')
    return _refused_gpu(torch, driver, build)


def _refused_gpu(torch: TorchFacts, driver: DriverFacts, build: str) -> Finding:
    """Return why a CUDA build does not use a GPU whose driver works."""
    if _major(driver.cuda) < _major(torch.cuda) or 'too old' in torch.warning:
        supported = f' up to CUDA {driver.cuda}' if driver.cuda else ''
        observed = f'the driver of {driver.smi}{supported} is too old for {build}'
        cure = f'update the driver, or install a build for an older CUDA: {_SELECT}'
        return Finding('GPU and torch', Level.ERROR, observed, cure)
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
    if hidden is not None and hidden.strip() in ('', '-1'):
        observed = f'CUDA_VISIBLE_DEVICES={hidden!r} hides {driver.smi}'
        return Finding('GPU and torch', Level.WARN, observed, 'unset CUDA_VISIBLE_DEVICES')
    observed = f'{build} does not use {driver.smi}: {torch.warning[:200] or "no reason given"}'
    cure = 'check the permissions of /dev/nvidia*, restart the computer'
    return Finding('GPU and torch', Level.ERROR, observed, cure)


def _major(version: str) -> int:
    """Return the first number of a version; of an unknown one a large number."""
    digits = version.split('.')[0]
    return int(digits) if digits.isdecimal() else 10**6
