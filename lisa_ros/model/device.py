# SPDX-License-Identifier: Apache-2.0
"""Choose the torch device that a model runs on."""

from __future__ import annotations

import torch

from lisa_ros.errors import SettingsError


def resolve_device(name: str | None) -> torch.device:
    """Return the named device; for None, "" or "auto" the GPU if there is one, else the CPU.

    Raises:
        SettingsError: torch does not know the device, or sees no such CUDA GPU.
    """
    if name in (None, '', 'auto'):
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f'no device {name!r}: use cpu, cuda or cuda:1') from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f'device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs here; use cpu, or '
            'install the driver and a torch with CUDA'
        )
    return device
