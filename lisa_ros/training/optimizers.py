# SPDX-License-Identifier: Apache-2.0
"""Optimizers of the training loop, their learning rates, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from lisa_ros.errors import DataError
from lisa_ros.training.muon import Muon
from lisa_ros.training.trainer_config import TrainerConfig, has_fast_bf16

_OPTIONS = ('weight_decay', 'betas')  # of a group, from TrainerConfig; so is the learning rate


def make_optimizers(
    config: TrainerConfig, trained: Mapping[str, nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Return [AdamW]; with `config.muon` [Muon for the matrices of layers, AdamW for the rest]."""
    muon_parameters = {
        n: p for n, p in trained.items() if config.muon and p.ndim == 2 and '.layers.' in n
    }
    adamw_parameters = [p for n, p in trained.items() if n not in muon_parameters]
    adamw = torch.optim.AdamW(
        [
            {
                'params': [p for p in adamw_parameters if p.ndim > 1],
                'weight_decay': config.weight_decay,
            },
            {'params': [p for p in adamw_parameters if p.ndim <= 1], 'weight_decay': 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over the weights: saves a tenth of a step on a CPU
    )
    if not muon_parameters:
        return [adamw]
    muon = Muon(
        list(muon_parameters.values()),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        precision=torch.bfloat16 if has_fast_bf16() else torch.float32,
    )
    return [muon, adamw]


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an earlier call of a run; options that may change in it stay as they are.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not the state of this optimizer.
    """
    current = [
        {name: group[name] for name in _OPTIONS if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, current, strict=True):
        group.update(options)


def make_schedulers(
    config: TrainerConfig, optimizers: Iterable[torch.optim.Optimizer], step: int
) -> list[LambdaLR]:
    """Return the learning rate schedules of the optimizers, to continue at a step."""
    schedulers = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['initial_lr'] = config.learning_rate  # LambdaLR multiplies it by the factor
        schedulers.append(LambdaLR(optimizer, config.lr_factor, last_epoch=step - 1))
    return schedulers


def clip_gradients(parameters: nn.ParameterList, max_norm: float, step: int) -> None:
    """Scale the gradients down to an L2 norm.

    Args:
        parameters: with their gradients.
        max_norm: largest norm of all gradients together.
        step: for the message.

    Raises:
        DataError: a gradient is not finite; a step with it would make the weights NaN.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    if torch.isfinite(norm):
        return
    # the norm of finite gradients may overflow: they are 0 now, and do no harm
    if not all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None):
        raise DataError(
            f'the loss is finite at step {step}, but its gradient is not; expected finite '
            'numbers: choose a lower --learning-rate'
        )


def make_ema(parameters: nn.ParameterList, decay: float) -> AveragedModel:
    """Return an exponential moving average that starts with the present parameters.

    The decay rises from 0.1 to `decay`, so that the initial weights soon lose their influence.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        count = int(count)
        current_decay = min(decay, count / (count + 9))
        torch._foreach_lerp_(averages, current, 1 - current_decay)

    ema = AveragedModel(parameters, multi_avg_fn=update)
    ema.n_averaged.fill_(1)
    return ema
