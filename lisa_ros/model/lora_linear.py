# SPDX-License-Identifier: Apache-2.0
"""LoRA (arxiv.org/abs/2106.09685) on the outputs of linear layers, as fine-tuning needs it.

The update has its own path beside the layer, so that it has dropout on its input and the layer's
weight may be quantized (bitsandbytes). `lora` adds updates to the weights themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A linear layer plus a low-rank update: base(x) + alpha / rank * B(A(dropout(x))).

    A and B are float32. B begins at zero, so that the layer first computes what its base does.

    Args:
        base: the layer to update, of any precision, quantized or not. It is not frozen here.
        rank: of the update.
        alpha: the update is multiplied by alpha / rank.
        dropout: probability of a zero in the update's input, while training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout, self.scaling = nn.Dropout(dropout), alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., rows) of an input (..., columns), in the dtype of the base."""
        output = self.base_layer(x)
        hidden = self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype)))
        return output + (self.lora_B(hidden) * self.scaling).to(output.dtype)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Return what the update adds to the base's weight, (rows, columns) float32."""
        return self.lora_B.weight @ self.lora_A.weight * self.scaling


def add_lora_layers(
    module: nn.Module, pattern: str, rank: int, alpha: float, dropout: float
) -> None:
    """Wrap linear layers of a module in `LoraLinear`.

    It does not change which parameters are trained.

    Args:
        module: its layers are replaced in place.
        pattern: regular expression for the whole name of a layer.
        rank: see `LoraLinear`.
        alpha: see `LoraLinear`.
        dropout: see `LoraLinear`.
    """
    for name, layer in list(module.named_modules()):
        if re.fullmatch(pattern, name):
            wrapped = LoraLinear(layer, rank, alpha, dropout).to(layer.weight.device)
            module.set_submodule(name, wrapped)


def state_dict_without_lora(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights under the names that they had before `add_lora_layers`."""
    return {
        name.replace('.base_layer.', '.'): tensor.detach()
        for name, tensor in module.state_dict().items()
        if '.lora_A.' not in name and '.lora_B.' not in name
    }


def lora_deltas(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name of a weight, what LoRA adds to it) for each layer of `add_lora_layers`."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLinear):
            yield f'{name}.weight', layer.delta_weight()
