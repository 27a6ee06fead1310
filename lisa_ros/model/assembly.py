# SPDX-License-Identifier: Apache-2.0
"""Build a LISA from weights: cast each tensor, quantize it if requested, put it in the model.

Weights stream, tensor by tensor, into a model without storage. The peak memory is about one copy
in the requested precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checkpoint_checks import check_keys, check_sizes
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.model_folder import error_summary
from lisa_ros.model.quantization import (
    QUANTIZED,
    is_quantized,
    quantize_linear,
    storage_dtype,
)
from lisa_ros.model.weight_files import WeightSource


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
    device: str | torch.device,
    precision: str,
    folder: Path,
    to_file_key: Callable[[str], str] = str,
) -> LISA:
    """Return a LISA, in eval mode, with the weights of all sources, cast as they are read.

    Args:
        config: all sizes.
        sources: later ones replace weights of the same name.
        device: of the model.
        precision: one of `quantization.PRECISIONS`.
        folder: the checkpoint's folder, for messages.
        to_file_key: maps the model's names to those in the user's files, for messages.

    Raises:
        CheckpointError: the config describes no model, or the weights do not fit it.
    """
    try:
        check_sizes(config, folder)
        with torch.device('meta'):
            model = LISA(config)
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise many types for sizes that they refuse
        raise CheckpointError(
            f'{folder}/config.json describes no model that can be built ({error_summary(error)})'
        ) from error
    shapes: dict[str, tuple[int, ...]] = {}
    for source in sources:
        shapes |= source.shapes()
    check_keys(model, shapes, folder, _tied_weights(config), to_file_key)
    for source in sources:
        for key, tensor in source.weights.tensors():
            name = source.to_model_key(key)
            if name is not None:
                _set_weight(model, name, tensor, device, precision)
    return _finish(model, device)


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


def _set_weight(
    model: LISA, name: str, tensor: Tensor, device: str | torch.device, precision: str
) -> None:
    """Set one weight of the model, in the precision of its layer."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in QUANTIZED and is_quantized(name, module):
        parent, _, child = path.rpartition('.')
        linear = quantize_linear(module, tensor, device, precision)
        setattr(model.get_submodule(parent), child, linear)
        return
    requires_grad = getattr(module, leaf).requires_grad
    # always a copy: the file may be memory-mapped, and may change later
    weight = tensor.to(device=device, dtype=storage_dtype(name, precision), copy=True)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=requires_grad))


def _finish(model: LISA, device: str | torch.device) -> LISA:
    """Tie weights and compute buffers of a model that has its weights; return it in eval mode."""
    if model.config.llama.tie_word_embeddings:
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    with torch.device(device):
        model.llm.model.rotary_emb = LlamaRotaryEmbedding(model.llm.config)
        positions = model.clip.embeddings.num_positions
        model.clip.embeddings.position_ids = torch.arange(positions)[None]
    return model.eval()
