# SPDX-License-Identifier: Apache-2.0
"""The torch device that a model runs on."""

from __future__ import annotations

import torch

from lisa_ros.errors import SettingsError


def resolve_device(name: str | None) -> torch.device:
    """Return the device, the GPU where there is one and none was named; or say why not.

    Raises:
        SettingsError: torch does not know it, or has no CUDA here.
    """
    if name in (None, '', 'auto'):
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f'no device {name!r}: take cpu, cuda or cuda:1') from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f'device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs here; take cpu, or '
            'install the driver and a torch with CUDA'
        )
    return device
