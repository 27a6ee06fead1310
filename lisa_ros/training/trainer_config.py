# SPDX-License-Identifier: Apache-2.0
"""Options of the training loop. The training commands have flags for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


def has_fast_bf16() -> bool:
    """Return whether this machine has bfloat16 instructions; without them bfloat16 is slow."""
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how fast to train."""

    steps: int  # steps of the optimizer
    learning_rate: float = 1e-3  # peak learning rate
    warmup_steps: int = 100  # the learning rate rises linearly in these first steps
    decay_fraction: float = 0.3  # the last share of the steps, in which it falls linearly to 0
    weight_decay: float = 0.0  # of parameters with two or more dimensions; 0 for the others
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    muon: bool = False  # train the matrices of transformer layers with Muon, the rest with AdamW
    accumulate: int = 1  # micro-batches in a step
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this L2 norm
    # decay of the exponential moving average of the weights, which is then validated and exported
    ema_decay: float = 0.0  # 0: no average
    validate_every: int = 250  # [steps]
    save_every: int = 100  # [steps]
    monitor: str | None = None  # export the weights that are best in this metric; None: the last
    # stop after this many validations without a new best value of `monitor`; None: do not
    patience: int | None = None
    seed: int = 0
    # matrix products in bfloat16; a CPU without instructions for it takes ten times as long
    bf16: bool = field(default_factory=has_fast_bf16)
    workers: int = 0  # number of processes that draw batches, see `prefetch`; 0: a thread

    def lr_factor(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of the peak.

        It rises linearly, stays level and falls linearly to 0.
        """
        end = (self.steps - step) / max(1.0, self.decay_fraction * self.steps)
        return min(1.0, (step + 1) / max(1, self.warmup_steps), end)
