# SPDX-License-Identifier: Apache-2.0
"""Precisions in which weights are stored and computed: dtypes, and int8 and nf4 quantization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lisa_ros.error_text import error_summary
from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command

PRECISIONS = {
    'fp32': torch.float32,
    'bf16': torch.bfloat16,
    'fp16': torch.float16,
    'int8': torch.float16,  # of the weights that are not quantized
    'nf4': torch.bfloat16,  # of the weights that are not quantized
}
# Of a quantized weight. With nf4, 64 weights share a scale of 8 bits, and 256 scales share one of
# 32 bits (double quantization: QLoRA, arXiv 2305.14314, section 3).
QUANTIZED_BITS = {'int8': 8, 'nf4': 4 + 8 / 64 + 32 / (64 * 256)}

# A few million weights that decide where mask boundaries run: float32 at every precision. SAM's
# neck is one of them because its sums overflow in fp16.
_FLOAT32_PREFIXES = (
    'text_hidden_fcs.',
    'sam.prompt_encoder.',
    'sam.mask_decoder.',
    'sam.vision_encoder.neck.',
)


def storage_dtype(name: str, precision: str) -> torch.dtype:
    """Return the dtype of a weight that is not quantized, by its name in `LISA.state_dict()`."""
    return torch.float32 if name.startswith(_FLOAT32_PREFIXES) else PRECISIONS[precision]


def check_precision(precision: str, device: str | torch.device) -> None:
    """Check that a precision exists and that the device and the installed packages support it.

    Raises:
        SettingsError: it does not exist, or needs a CUDA GPU or the package bitsandbytes, which is
            not installed or cannot be imported.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f'precision {precision!r}: expected one of {", ".join(PRECISIONS)}')
    if precision not in QUANTIZED_BITS:
        return
    if torch.device(device).type != 'cuda':
        raise SettingsError(
            f'precision {precision} needs a CUDA GPU, and the device is {device}: use fp32 or bf16'
        )
    try:
        import bitsandbytes  # noqa: F401  only to check that it is installed
    except Exception as error:  # the import of a package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == 'bitsandbytes':
            raise SettingsError(
                f'precision {precision} needs the package bitsandbytes: '
                f'{install_command("gpu")}, or use bf16'
            ) from error
        raise SettingsError(
            f'precision {precision} needs bitsandbytes, which cannot be imported '
            f'({error_summary(error)}): pip install --upgrade bitsandbytes, or use bf16'
        ) from error


def weights_precision(model: nn.Module) -> str:
    """Return the precision of a model's language layers, a name in PRECISIONS; '' if unknown."""
    layers = {type(module).__name__ for module in model.modules()}
    for name, quantized_layer in (('nf4', 'Linear4bit'), ('int8', 'Linear8bitLt')):
        if quantized_layer in layers:
            return name
    names = {PRECISIONS[name]: name for name in ('fp32', 'bf16', 'fp16')}
    weights = (weight for name, weight in model.named_parameters() if name.startswith('llm.'))
    first = next(weights, None)
    return '' if first is None else names.get(first.dtype, '')


def is_quantized(name: str, module: nn.Module) -> bool:
    """Return whether int8 and nf4 quantize this weight of `module`.

    Only the language model's linear layers are quantized. The original, too, leaves CLIP, SAM and
    the projections as they are.
    """
    is_linear = isinstance(module, nn.Linear) and name.endswith('.weight')
    return is_linear and module.bias is None and name.startswith('llm.model.layers.')


def quantize_linear(
    linear: nn.Linear, weight: Tensor, device: str | torch.device, precision: str
) -> nn.Module:
    """Return a bitsandbytes layer with the sizes of `linear` and this weight, on the device.

    `weight` has the type that PRECISIONS gives for the precision.
    """
    import bitsandbytes as bnb

    size = (linear.in_features, linear.out_features)
    with torch.device('meta'):
        if precision == 'int8':
            layer = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = bnb.nn.Linear4bit(
                *size, bias=False, compute_dtype=torch.bfloat16, quant_type='nf4'
            )
    if precision == 'int8':
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type='nf4', compress_statistics=True
        )
    return layer.to(device)  # the move to the device quantizes
