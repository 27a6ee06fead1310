# SPDX-License-Identifier: Apache-2.0
"""Build a LISA from weights: cast each tensor, quantize it if requested, put it in the model.

Weights stream, tensor by tensor, into a model without storage. The peak memory is about one copy
in the requested precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lisa_ros.error_text import error_summary
from lisa_ros.errors import CheckpointError
from lisa_ros.model.checkpoint_checks import check_keys
from lisa_ros.model.config_checks import check_claims
from lisa_ros.model.finite import all_finite
from lisa_ros.model.limits import Limits
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.model_folder import listed
from lisa_ros.model.quantization import (
    PRECISIONS,
    QUANTIZED_BITS,
    is_quantized,
    quantize_linear,
    storage_dtype,
)
from lisa_ros.model.weight_files import WeightSource

_FLOATS = (  # of weight files
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


@dataclass(frozen=True)
class Placement:
    """Where and how a model's weights are stored, and the largest model that is."""

    device: str | torch.device = 'cpu'
    precision: str = 'fp32'  # one of `quantization.PRECISIONS`
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class MappedWeights:
    """Weights with a map from their names to those of `LISA.state_dict()`."""

    weights: WeightSource
    to_model_key: Callable[[str], str | None]  # None: the model has no use for this weight

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight that the model uses, under the model's names."""
        return {
            name: shape
            for key, shape in self.weights.shapes().items()
            if (name := self.to_model_key(key)) is not None
        }


def build_model(
    config: LisaConfig,
    sources: list[MappedWeights],
    placement: Placement,
    folder: Path,
    to_file_key: Callable[[str], str] = str,
) -> LISA:
    """Return a LISA, in eval mode, with the weights of all sources, cast as they are read.

    Args:
        config: all sizes.
        sources: later ones replace weights of the same name.
        placement: device, precision and limits of the model.
        folder: the checkpoint's folder, for messages.
        to_file_key: maps the model's names to those in the user's files, for messages.

    Raises:
        CheckpointError: the config describes no model, the weights do not fit it or the memory,
            or a weight is not finite.
    """
    shapes = _merged_shapes(sources, folder)
    check_claims(config, shapes, placement.limits, folder)
    try:
        with torch.device('meta'):
            model = LISA(config)
    except Exception as error:  # the libraries raise many types for sizes that they refuse
        raise CheckpointError(
            f'{folder}/config.json describes no model that can be built ({error_summary(error)})'
        ) from error
    check_keys(model, shapes, folder, _tied_weights(config), to_file_key)
    size = weight_bytes(model, placement.precision)
    placement.limits.check_memory(size, str(placement.device), folder)
    for source in sources:
        for key, tensor in source.weights.tensors():
            name = source.to_model_key(key)
            if name is not None:
                _check_type(tensor, f'{folder}: the weight {key}')
                _set_weight(model, name, tensor, placement, f'{folder}: the weight {key}')
    return _finish(model, placement.device)


def _merged_shapes(sources: list[MappedWeights], folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all sources, under the model's names.

    Raises:
        CheckpointError: a weight has no numbers, so that no byte limits its other sides.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for source in sources:
        shapes |= source.shapes()
    empty = sorted(name for name, shape in shapes.items() if 0 in shape)
    if empty:
        raise CheckpointError(f'{folder}: weights without numbers: {listed(empty)}')
    return shapes


def weight_bytes(model: LISA, precision: str) -> int:
    """Return the memory of a model's weights in a precision [bytes]."""
    total = 0.0
    for name, tensor in model.state_dict().items():
        module = model.get_submodule(name.rpartition('.')[0])
        bits = QUANTIZED_BITS.get(precision) if is_quantized(name, module) else None
        total += tensor.numel() * (bits or 8 * storage_dtype(name, precision).itemsize) / 8
    return math.ceil(total)


def _check_type(tensor: Tensor, noun: str) -> None:
    """Check that a weight holds real numbers.

    Raises:
        CheckpointError: it holds integers, complex or packed numbers.
    """
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f'{noun} is {tensor.dtype}; expected float32, float16 or bfloat16: get the weights '
            'that are not quantized, and choose int8 or nf4 as the precision'
        )


def model_from_state_dict(config: LisaConfig, state: Mapping[str, Tensor]) -> LISA:
    """Return a LISA, in eval mode, that shares the tensors of `state`: nothing is copied.

    Raises:
        CheckpointError: the tensors are not those of the config; the message names each.
    """
    with torch.device('meta'):
        model = LISA(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_keys(model, shapes, 'in memory', _tied_weights(config))
    for name, tensor in state.items():
        path, _, leaf = name.rpartition('.')
        module = model.get_submodule(path)
        requires_grad = getattr(module, leaf).requires_grad
        setattr(module, leaf, nn.Parameter(tensor.detach(), requires_grad=requires_grad))
    return _finish(model, next(iter(state.values())).device)


def _tied_weights(config: LisaConfig) -> list[str]:
    """Return the names of weights that share another weight's storage."""
    return ['llm.lm_head.weight'] if config.llama.tie_word_embeddings else []


def _set_weight(model: LISA, name: str, tensor: Tensor, placement: Placement, noun: str) -> None:
    """Set one weight of the model, in the precision of its layer; check that it is finite.

    Raises:
        CheckpointError: it is not; `noun` names it.
    """
    device, precision = placement.device, placement.precision
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in QUANTIZED_BITS and is_quantized(name, module):
        parent, _, child = path.rpartition('.')
        half = tensor.to(PRECISIONS[precision])
        _check_finite(half, tensor, noun)
        linear = quantize_linear(module, half, device, precision)
        setattr(model.get_submodule(parent), child, linear)
        return
    requires_grad = getattr(module, leaf).requires_grad
    # always a copy: the file may be memory-mapped, and may change later
    weight = tensor.to(device=device, dtype=storage_dtype(name, precision), copy=True)
    _check_finite(weight, tensor, noun)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=requires_grad))


def _check_finite(weight: Tensor, original: Tensor, noun: str) -> None:
    """Check a weight as it is stored; one pass over it.

    Raises:
        CheckpointError: it is NaN or infinite in the file, or became infinite in the precision.
    """
    if all_finite(weight):
        return
    if all_finite(original.double()):
        raise CheckpointError(
            f'{noun} overflows as {str(weight.dtype).removeprefix("torch.")}: its largest number '
            f'is {float(original.double().abs().max()):.3g}; choose the precision bf16 or fp32'
        )
    raise CheckpointError(
        f'{noun} has NaN or infinite numbers: the file is damaged, or its training diverged; '
        'download it again, or take an earlier checkpoint'
    )


def _finish(model: LISA, device: str | torch.device) -> LISA:
    """Tie weights and compute buffers of a model that has its weights; return it in eval mode.

    Raises:
        CheckpointError: weights are tied that differ; or there are no finite rotary positions.
    """
    if model.config.llama.tie_word_embeddings:
        head, embeddings = model.llm.lm_head.weight, model.llm.model.embed_tokens.weight
        if not head.is_meta and not torch.equal(head, embeddings):
            raise CheckpointError(
                'config.json: tie_word_embeddings is true, but the weights lm_head and '
                'embed_tokens differ: set it to false, or get the config of these weights'
            )
        model.llm.lm_head.weight = embeddings
    with torch.device(device):
        model.llm.model.rotary_emb = LlamaRotaryEmbedding(model.llm.config)
        if not all_finite(model.llm.model.rotary_emb.inv_freq):
            rope = model.llm.config.rope_parameters
            raise CheckpointError(f'config.json: {rope} gives no finite rotary positions')
        positions = model.clip.embeddings.num_positions
        model.clip.embeddings.position_ids = torch.arange(positions)[None]
    return model.eval()
