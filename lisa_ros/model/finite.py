# SPDX-License-Identifier: Apache-2.0
"""Find NaN and infinity in tensors: in weights when they are loaded, in features when computed.

Any thread.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lisa_ros.errors import NON_FINITE_CAUSE, ModelError


def all_finite(values: Tensor) -> bool:
    """Return whether a floating point tensor has neither NaN nor infinity.

    A finite sum proves it in one cheap pass. A sum that overflows is no proof of the opposite:
    then the extremes are compared.
    """
    if values.numel() == 0 or math.isfinite(values.sum().item()):
        return True
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(values))


def finite_rows(values: Tensor) -> list[bool]:
    """Return for each row of a floating point tensor (N, ...) whether it is finite."""
    return values.isfinite().flatten(1).all(1).tolist()


def non_finite(noun: str) -> ModelError:
    """Return the error for NaN or infinity in what a model has computed."""
    return ModelError(f'the model computed NaN or infinity in {noun}: {NON_FINITE_CAUSE}')


def check_finite(values: Tensor, noun: str) -> None:
    """Check what a model has computed.

    Args:
        values: of any shape and floating point type.
        noun: what they are, for the message.

    Raises:
        ModelError: there is NaN or infinity among them.
    """
    if not all_finite(values):
        raise non_finite(noun)
