# SPDX-License-Identifier: Apache-2.0
"""Runs a fine-tuning: estimates memory, profiles a step, trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lisa_ros.datasets.annotations import ImageWithQueries
from lisa_ros.datasets.json_io import read_or_skip
from lisa_ros.errors import DataError, ErrorHandler, SettingsError, raise_error
from lisa_ros.training.distributed import init_distributed
from lisa_ros.training.finetune import memory_estimate
from lisa_ros.training.finetune.base_checkpoint import BaseCheckpoint
from lisa_ros.training.finetune.batches import FinetuneBatch
from lisa_ros.training.finetune.config import FinetuneConfig
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.finetune.task import FinetuneTask
from lisa_ros.training.trainer import Trainer

_LISTED = 20  # items named in an error; the others are counted


@dataclass(frozen=True)
class StepProfile:
    """What a training step takes."""

    seconds: float  # all micro-batches; without the optimizer, a small part
    peak_memory: int | None  # on the GPU with gradients, before AdamW's state [bytes]; None: CPU


def finetune(
    run: Path,
    base: BaseCheckpoint,
    mixture: Mixture,
    validation: Sequence[ImageWithQueries] = (),
    config: FinetuneConfig | None = None,
    device: str = 'cpu',
    on_error: ErrorHandler = raise_error,
) -> bool:
    """Fine-tune in the folder of a run, or resume it; first print its memory and time.

    Args:
        run: the folder, see `trainer` and `FinetuneTask`.
        base: the model to start from.
        mixture: the data to train on.
        validation: images to validate on; without them the last weights are exported.
        config: options.
        device: cpu or cuda.
        on_error: called for each query that is too long, and for each item that cannot be read
            when it is drawn; if it returns, other items are drawn.

    Returns:
        False if a signal stopped it before its last step.

    Raises:
        SettingsError: `patience` is set, but there is nothing to validate on.
        CheckpointError, DataError: see `FinetuneTask` and `Trainer`; or an item cannot be used,
            and `on_error` raised it.
    """
    config = config or FinetuneConfig()
    if not validation:
        if config.trainer.patience is not None:
            raise SettingsError('--patience needs images to validate on: give --val')
        config = replace(config, trainer=replace(config.trainer, monitor=None))
    *_, device = init_distributed(device)
    task = FinetuneTask(base, mixture, validation, config, device, on_error)
    _report(task.long_queries(), on_error)
    shape = memory_estimate.StepShape(
        precision=config.precision,
        rank=config.rank,
        batch_size=config.batch_size,
        queries_per_image=config.queries_per_image,
        bf16=config.trainer.bf16,
    )
    print(memory_estimate.format_table(task.lisa.config, shape))
    profile = profile_step(task)
    memory = ''
    if profile.peak_memory is not None:
        memory = f', peak memory {profile.peak_memory / 1e9:.2f} GB before AdamW'
    print(f'a step takes about {profile.seconds:.1f} s{memory}')
    return Trainer(run, config.trainer, task, device, task.identity).train()


def _report(errors: Sequence[DataError], on_error: ErrorHandler) -> None:
    """Report items that cannot be used; if `on_error` raises, raise one error that names all."""
    refused = []
    for error in errors:
        read_or_skip(partial(on_error, error), refused.append)
    if refused:
        more = f'; and {len(refused) - _LISTED} more' if len(refused) > _LISTED else ''
        listed = '; '.join(map(str, refused[:_LISTED]))
        raise DataError(f'{listed}{more}; --skip-broken leaves them out')


def profile_step(task: FinetuneTask) -> StepProfile:
    """Measure forward and backward pass of a batch; the weights do not change."""
    device = task.device
    batch = task.draw(0, 0).to(device)
    task.module.train()
    if device.type == 'cuda':
        _forward_backward(task, batch)  # the first pass selects kernels and allocates memory
        torch.cuda.reset_peak_memory_stats()
    seconds = _forward_backward(task, batch) * task.config.trainer.accumulate
    peak_memory = torch.cuda.max_memory_allocated() if device.type == 'cuda' else None
    return StepProfile(seconds, peak_memory)


def _forward_backward(task: FinetuneTask, batch: FinetuneBatch) -> float:
    """Run both passes, discard the gradients, return the time [s]."""
    start = time.perf_counter()
    with torch.autocast(task.device.type, torch.bfloat16, task.config.trainer.bf16):
        losses = task.losses(batch, 0)
    sum(task.loss_weights[name] * loss for name, loss in losses.items()).backward()
    if task.device.type == 'cuda':
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    task.module.zero_grad(set_to_none=True)
    return seconds
