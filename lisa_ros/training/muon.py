# SPDX-License-Identifier: Apache-2.0
"""Muon (Keller Jordan, 2024): a matrix learns along the nearest orthogonal one to its gradient.

As `torch.optim.Muon`, whose iteration runs in bfloat16 alone: on a CPU without instructions for it
that takes ten times as long as the rest of a step. Here the precision is given.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic Newton-Schulz iteration


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, its steps as long as AdamW's (arxiv.org/abs/2502.16982)."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        precision: torch.dtype = torch.bfloat16,
    ):
        """Take matrices to train.

        Args:
            parameters: of two dimensions each.
            lr: serves AdamW as well.
            weight_decay: decoupled, as AdamW's.
            momentum: of the gradients.
            precision: of the iteration.
        """
        given = {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum}
        super().__init__(parameters, given)
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make a step along the gradients that are there."""
        for group in self.param_groups:
            rate, keep = group['lr'], group['momentum']
            for matrix in group['params']:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state['momentum_buffer'] = torch.zeros_like(matrix.grad)
                moving = state['momentum_buffer'].lerp_(matrix.grad, 1 - keep)
                update = orthogonal(matrix.grad.lerp(moving, keep), self._precision)
                matrix.mul_(1 - rate * group['weight_decay'])
                matrix.add_(update, alpha=-rate * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor, precision: torch.dtype, steps: int = 5) -> Tensor:
    """Return about the orthogonal matrix nearest to one, (m, n), singular values near 1."""
    x = matrix.to(precision)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if turned else x).to(matrix.dtype)
