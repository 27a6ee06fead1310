# SPDX-License-Identifier: Apache-2.0
"""The Muon optimizer (Keller Jordan, 2024): it orthogonalizes the momentum of matrices.

`torch.optim.Muon` is the same, but its Newton-Schulz iteration always runs in bfloat16. On a CPU
without bfloat16 instructions this takes ten times as long as the rest of a step. Therefore the
precision is a parameter here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # coefficients of the quintic Newton-Schulz iteration


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum. Its updates are as large as AdamW's (arXiv 2502.16982)."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        precision: torch.dtype = torch.bfloat16,
    ):
        """Create the optimizer.

        Args:
            parameters: the matrices to train, tensors of two dimensions.
            lr: learning rate; use the same as for AdamW.
            weight_decay: decoupled weight decay, as in AdamW.
            momentum: momentum of the gradients.
            precision: dtype of the Newton-Schulz iteration.
        """
        defaults = {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum}
        super().__init__(parameters, defaults)
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the matrices from their gradients; skip those that have none."""
        for group in self.param_groups:
            lr, momentum = group['lr'], group['momentum']
            for matrix in group['params']:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state['momentum_buffer'] = torch.zeros_like(matrix.grad)
                buffer = state['momentum_buffer'].lerp_(matrix.grad, 1 - momentum)
                update = orthogonalize(matrix.grad.lerp(buffer, momentum), self._precision)
                matrix.mul_(1 - lr * group['weight_decay'])
                matrix.add_(update, alpha=-lr * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalize(matrix: Tensor, precision: torch.dtype, steps: int = 5) -> Tensor:
    """Approximate the nearest orthogonal matrix (m, n) by Newton-Schulz iteration.

    Its singular values are near 1.
    """
    x = matrix.to(precision)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if is_tall else x).to(matrix.dtype)
