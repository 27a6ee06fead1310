# SPDX-License-Identifier: Apache-2.0
"""What a training adds to weights that stand: a small file beside a large one.

`model_additions.safetensors` lies beside `model.safetensors`, and `load` puts it on top:

    NAME.up (rows, r), NAME.down (r, columns)   their product is added to NAME (LoRA, 2106.09685)
    NAME                                        stands in NAME's place: vectors, small tables

So a further training of a model of 24 MB is kept, sent and versioned in less than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lisa_ros.errors import CheckpointError
from lisa_ros.model.weight_files import WeightFiles

FILE = 'model_additions.safetensors'
_MATRICES = (nn.Linear, nn.Conv2d, nn.Embedding)
_WHOLE = 'position_embedding'  # tables of places are small, and no two rows are alike
_UNDER, _UP, _DOWN = (f'.parametrizations.weight.{end}' for end in ('original', '0.up', '0.down'))


class _LowRank(nn.Module):
    """A matrix of low rank, added to one that stands."""

    def __init__(self, up: Tensor, down: Tensor):
        super().__init__()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(
    module: nn.Module, rank: int, stand: tuple[str, ...], given: dict[str, Tensor]
) -> None:
    """Let a module's matrices stand, each with an addition to be trained; all else is trained.

    Args:
        module: whose `weight`s of linear, convolution and embedding layers become sums. It
            computes what it did before.
        rank: of the additions; matrices that have no more rows or columns are trained whole.
        stand: how names of parts begin that have no addition and are not trained at all.
        given: additions that are in the weights already, as `read` returns them: they go on.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(stand))
    for name, layer in list(module.named_modules()):
        if name.startswith(stand):
            continue
        if not isinstance(layer, _MATRICES) or name.endswith(_WHOLE):
            continue
        weight = layer.weight
        rows, columns = weight.shape[0], weight[0].numel()
        if min(rows, columns) <= rank:
            continue
        up, down = (given.get(f'{name}.weight.{end}') for end in ('up', 'down'))
        if up is None:
            up, down = torch.zeros(rows, rank), torch.randn(rank, columns) / columns**0.5
        else:
            with torch.no_grad():
                weight -= (up @ down).view_as(weight)
        parametrize.register_parametrization(layer, 'weight', _LowRank(up, down))
        layer.parametrizations.weight.original.requires_grad_(False)


def lora_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return what was added so far, and every other tensor that is trained, float32."""
    found = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        for inner, outer in ((_UP, '.weight.up'), (_DOWN, '.weight.down')):
            if name.endswith(inner):
                name = name[: -len(inner)] + outer  # noqa: PLW2901
        found[name] = parameter.detach().float().cpu().contiguous()
    idle = [n.removesuffix('.up') for n, t in found.items() if n.endswith('.up') and not t.any()]
    return {n: t for n, t in found.items() if n.rpartition('.')[0] not in idle}


def save_lora(added: dict[str, Tensor], folder: Path) -> None:
    """Write additions into a model's folder, in float16."""
    halves = {name: tensor.half() for name, tensor in added.items()}
    save_file(halves, folder / FILE, metadata={'format': 'pt'})


def load_lora(folder: Path) -> dict[str, Tensor]:
    """Return the additions in a model's folder, float32; empty if there are none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    return {name: tensor.float() for name, tensor in WeightFiles([path]).tensors()}


class WeightsWithLora:
    """A folder's weights with the additions that lie beside them, as `Files` gives weights.

    Raises:
        CheckpointError: the additions are another model's.
    """

    def __init__(self, files: WeightFiles, folder: Path):
        self._files, self._added = files, load_lora(folder)
        shapes = files.shapes()
        for name, tensor in self._added.items():
            whole = name.removesuffix('.up').removesuffix('.down')
            if whole not in shapes:
                raise CheckpointError(f'{folder / FILE}: there is no {whole} to add to')
            if name.endswith('.down'):
                continue
            shape, wanted = tuple(tensor.shape), shapes[whole]
            if name.endswith('.up'):
                down = self._added.get(f'{whole}.down')
                shape = (*shape, *(down.shape if down is not None else ()))
                # rows, r, r, columns: a convolution's filters are rows, flat
                wanted = (wanted[0], shape[1], shape[1], math.prod(wanted[1:]))
            if shape != wanted:
                raise CheckpointError(f'{folder / FILE}: {name} is {shape}, expected {wanted}')

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape."""
        return self._files.shapes()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight with what was added to it, those in float32."""
        for name, tensor in self._files.tensors():
            up, whole = self._added.get(f'{name}.up'), self._added.get(name)
            if up is not None:
                low = up @ self._added[f'{name}.down']
                yield name, tensor.float() + low.view_as(tensor)
            else:
                yield name, tensor if whole is None else whole
