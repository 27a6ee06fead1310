# SPDX-License-Identifier: Apache-2.0
"""LoRA (arxiv.org/abs/2106.09685) on weights: trains low-rank updates and keeps them in a file.

The update is added to the weight itself, of any linear, convolution or embedding layer, by torch's
parametrization: code that reads `layer.weight` sees the sum. `lora_linear` adds it to a layer's
output instead, for quantized weights and dropout.

The file `model_additions.safetensors` in a checkpoint's folder is applied when it is loaded:

    NAME.up (rows, r), NAME.down (r, columns)   their product is added to the weight NAME
    NAME                                        replaces the weight NAME: vectors, small tables

So a further training of a 24 MB model is stored and sent in less than 1 MB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lisa_ros.errors import CheckpointError
from lisa_ros.model.finite import all_finite
from lisa_ros.model.weight_files import WeightFiles

FILE = 'model_additions.safetensors'
_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
# Small tables whose rows all differ: trained directly, not by low-rank updates.
_TRAINED_WHOLE = 'position_embedding'
_UP, _DOWN = (f'.parametrizations.weight.0.{end}' for end in ('up', 'down'))


# ---- updates of the weight itself


class _LowRank(nn.Module):
    """Adds a matrix of low rank to a weight."""

    def __init__(self, up: Tensor, down: Tensor):
        super().__init__()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(
    module: nn.Module, rank: int, frozen: tuple[str, ...], initial: dict[str, Tensor]
) -> None:
    """Freeze the weight matrices of a module and add a trainable low-rank update to each.

    All other parameters are trained. The module still computes the same.

    Args:
        module: its linear, convolution and embedding layers get updates.
        rank: of the updates; smaller matrices are trained whole.
        frozen: prefixes of parameter names that get no update and are not trained at all.
        initial: updates to continue, as `load_lora` returns them; the weights of the module
            already include them.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    for name, layer in list(module.named_modules()):
        if name.startswith(frozen):
            continue
        if not isinstance(layer, _LAYERS) or name.endswith(_TRAINED_WHOLE):
            continue
        weight = layer.weight
        rows, columns = weight.shape[0], weight[0].numel()
        if min(rows, columns) <= rank:
            continue
        up, down = (initial.get(f'{name}.weight.{end}') for end in ('up', 'down'))
        if up is None:
            up, down = torch.zeros(rows, rank), torch.randn(rank, columns) / columns**0.5
        else:
            with torch.no_grad():
                weight -= (up @ down).view_as(weight)
        parametrize.register_parametrization(layer, 'weight', _LowRank(up, down))
        layer.parametrizations.weight.original.requires_grad_(False)


def lora_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the updates of `add_lora` and all other trained parameters, float32 on the CPU.

    Updates that are still zero are left out.
    """
    state = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = name.replace(_UP, '.weight.up').replace(_DOWN, '.weight.down')
            state[key] = parameter.detach().float().cpu().contiguous()
    zero = [n.removesuffix('.up') for n, t in state.items() if n.endswith('.up') and not t.any()]
    return {name: t for name, t in state.items() if name.rpartition('.')[0] not in zero}


# ---- the file of updates


def save_lora(updates: dict[str, Tensor], folder: Path) -> None:
    """Write updates into a checkpoint's folder, as float16."""
    halves = {name: tensor.half() for name, tensor in updates.items()}
    save_file(halves, folder / FILE, metadata={'format': 'pt'})


def load_lora(folder: Path) -> dict[str, Tensor]:
    """Return the updates in a checkpoint's folder, float32; empty if there are none.

    Raises:
        CheckpointError: the file cannot be read, or has NaN.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return {}
    updates = {name: tensor.float() for name, tensor in WeightFiles([path]).tensors()}
    for name, tensor in updates.items():
        if not all_finite(tensor):
            raise CheckpointError(f'{path}: {name} has NaN or infinite numbers: it is damaged')
    return updates


class WeightsWithLora:
    """The weights of a folder with the updates of its `model_additions.safetensors` applied.

    Has the methods of `WeightFiles`.

    Raises:
        CheckpointError: the updates belong to another model.
    """

    def __init__(self, files: WeightFiles, folder: Path):
        self._files, self._updates = files, load_lora(folder)
        shapes = files.shapes()
        for name in self._updates:
            weight = name.removesuffix('.up').removesuffix('.down')
            if weight not in shapes:
                raise CheckpointError(
                    f'{folder / FILE}: the model has no weight {weight} to add to: the file '
                    'belongs to another model'
                )
            if name.endswith('.down') and f'{weight}.up' not in self._updates:
                raise CheckpointError(f'{folder / FILE}: {name} without {weight}.up')
            if not name.endswith('.down'):
                self._check_shape(name, shapes[weight], folder / FILE)

    def _check_shape(self, name: str, expected: tuple[int, ...], path: Path) -> None:
        """Check an update against the shape of its weight.

        Raises:
            CheckpointError: it does not fit.
        """
        shape = tuple(self._updates[name].shape)
        if name.endswith('.up'):
            down = self._updates.get(f'{name.removesuffix(".up")}.down')
            shape = (*shape, *(down.shape if down is not None else ()))
            rank = shape[1] if len(shape) > 1 else 0
            # rows, r, r, columns; the filters of a convolution are flattened to rows
            expected = (*expected[:1], rank, rank, math.prod(expected[1:]))
        if shape != expected:
            raise CheckpointError(f'{path}: {name} is {shape}, expected {expected}')

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight."""
        return self._files.shapes()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight with its update applied; updated weights are float32."""
        for name, tensor in self._files.tensors():
            up, replacement = self._updates.get(f'{name}.up'), self._updates.get(name)
            if up is not None:
                update = up @ self._updates[f'{name}.down']
                yield name, tensor.float() + update.view_as(tensor)
            else:
                yield name, tensor if replacement is None else replacement
