# SPDX-License-Identifier: Apache-2.0
"""Precisions that weights are stored and computed in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lisa_ros.errors import SettingsError

PRECISIONS = {
    'fp32': torch.float32,
    'bf16': torch.bfloat16,
    'fp16': torch.float16,
    'int8': torch.float16,  # of what is not quantised
    'nf4': torch.bfloat16,
}


# A few million weights that decide where a mask's edge runs: float32 whatever the rest is in.
# SAM's neck among them, because its sums overflow in fp16.
_FULL_PRECISION = (
    'text_hidden_fcs.',
    'sam.prompt_encoder.',
    'sam.mask_decoder.',
    'sam.vision_encoder.neck.',
)


def storage_dtype(name: str, precision: str) -> torch.dtype:
    """Return the type in which a weight of ours is kept, unless it is quantised."""
    return torch.float32 if name.startswith(_FULL_PRECISION) else PRECISIONS[precision]


def check_precision(precision: str, device: str | torch.device) -> None:
    """Refuse a precision that there is not, or not here.

    Raises:
        SettingsError: with what would be needed.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f'no precision {precision!r}: it is one of {", ".join(PRECISIONS)}')
    if precision not in ('int8', 'nf4'):
        return
    if torch.device(device).type != 'cuda':
        raise SettingsError(
            f'{precision} needs a CUDA GPU, and the device is {device}: take fp32 or bf16 here'
        )
    try:
        import bitsandbytes  # noqa: F401  is it there?
    except ImportError as error:
        raise SettingsError(
            f'{precision} needs the package bitsandbytes: pip install bitsandbytes, or take bf16'
        ) from error


def is_quantized(name: str, module: nn.Module) -> bool:
    """Return whether int8 and nf4 quantise a weight, of this module.

    Only the language model's layers; the original, too, spares all that touches pictures.
    """
    is_linear = isinstance(module, nn.Linear) and name.endswith('.weight')
    return is_linear and module.bias is None and name.startswith('llm.model.layers.')


def _quantized(
    linear: nn.Linear, tensor: Tensor, device: str | torch.device, precision: str
) -> nn.Module:
    import bitsandbytes as bnb

    size = (linear.in_features, linear.out_features)
    half = tensor.to(torch.float16 if precision == 'int8' else torch.bfloat16)
    with torch.device('meta'):
        if precision == 'int8':
            layer = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = bnb.nn.Linear4bit(
                *size, bias=False, compute_dtype=torch.bfloat16, quant_type='nf4'
            )
    if precision == 'int8':
        layer.weight = bnb.nn.Int8Params(half, requires_grad=False, has_fp16_weights=False)
    else:
        layer.weight = bnb.nn.Params4bit(
            half, requires_grad=False, quant_type='nf4', compress_statistics=True
        )
    return layer.to(device)  # the move is what quantises
