# SPDX-License-Identifier: Apache-2.0
"""Ask torch for its build and its GPUs, and compute on them; see model_probe.py."""

from __future__ import annotations

import warnings

import torch

from lisa_ros.error_text import error_summary
from lisa_ros.model.limits import free_memory


def torch_facts() -> dict[str, object]:
    """Return the fields of `gpu.TorchFacts`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        is_available = torch.cuda.is_available()
    facts = {
        'version': torch.__version__,
        'cuda': torch.version.cuda or '',
        'hip': getattr(torch.version, 'hip', None) or '',
        'architectures': torch.cuda.get_arch_list() if is_available else [],
        'warning': ' '.join(str(warning.message) for warning in caught),
        'devices': [],
        'kernel_error': '',
    }
    if not is_available:
        return facts
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts['devices'].append(
            {
                'name': properties.name,
                'capability': [properties.major, properties.minor],
                'memory': properties.total_memory,
            }
        )
    try:
        matrix = torch.ones((8, 8), device='cuda')
        assert float((matrix @ matrix).sum()) == 512  # noqa: S101  # a wrong result is an error
        facts['free'] = free_memory('cuda')
    except Exception as error:  # noqa: BLE001  # of CUDA: any type
        facts['kernel_error'] = error_summary(error)
    return facts
