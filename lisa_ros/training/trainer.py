# SPDX-License-Identifier: Apache-2.0
"""The training loop: optimizer steps, moving average of the weights, validation, save and resume.

A `TrainingTask` defines the model, the batches and the losses, a `TrainerConfig` the number of
steps and the learning rate. A run is a folder:

    last.pt      state to resume from: trained weights, optimizers, step
    curves.csv   losses (smoothed) and validation metrics; curves.png is its plot
    The task adds its own files: images at each validation, and the exported weights.

Train in the same folder to resume a run. On a CPU a run that was stopped by a signal and resumed
ends with exactly the same weights as an uninterrupted one, because batches and dropout depend only
on seed and step. With `torchrun` each process draws its own batches, and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.training import plots
from lisa_ros.training.distributed import any_rank, average_gradients, init_distributed
from lisa_ros.training.interruption import stop_on_signal
from lisa_ros.training.muon import Muon
from lisa_ros.training.prefetch import prefetch_batches
from lisa_ros.training.run_state import STATE_FILE, RunState


class TrainingTask(Protocol):
    """What is trained: a model with its batches and losses.

    The trainer calls all methods except `draw` from one thread.
    """

    module: nn.Module  # the trainer trains and saves its parameters that have requires_grad
    loss_weights: Mapping[str, float]  # factor of each loss in the sum; 0: only logged

    def draw(self, step: int, batch_index: int) -> Any:
        """Return a batch. It must have a method `to(device)`.

        The batch must depend only on the arguments. The trainer calls this method from another
        thread or in forked processes, where it must not use a GPU.

        Args:
            step: the training step.
            batch_index: number of the batch within the step, counted over all micro-batches and
                processes.
        """

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars with gradients."""

    def validate(self, run: Path) -> dict[str, float]:
        """Return metrics of the current weights. It may write images into the run's folder."""

    def export(self, run: Path) -> None:
        """Write the current weights into the run's folder, in the format for inference."""


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


class Trainer:
    """Trains a task in a run's folder, from step 0 or from the state saved there.

    Raises:
        DataError: a loss is not finite, or the folder contains a run of another model or seed.
    """

    def __init__(self, run: Path, config: TrainerConfig, task: TrainingTask, device: str = 'cpu'):
        self.rank, self.world_size, self.device = init_distributed(device)
        self.run, self.config, self.task = run, config, task
        run.mkdir(parents=True, exist_ok=True)
        self.trained = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
        self.optimizers = make_optimizers(config, self.trained)
        self._parameters = nn.ParameterList(self.trained.values())
        self._ema = make_ema(self._parameters, config.ema_decay) if config.ema_decay else None
        self.step = 0  # steps done
        self.best_score, self._stale_validations = float('-inf'), 0
        self.minutes = 0.0  # training time so far, without pauses between calls
        if (run / STATE_FILE).exists():
            self._resume()
        self._schedulers = make_schedulers(config, self.optimizers, self.step)

    # ---- the loop

    def train(self, until: int | None = None) -> bool:
        """Train up to step `until`, or up to the last step of the config.

        Returns:
            False if a signal stopped the training before that step.
        """
        last = min(until or self.config.steps, self.config.steps)
        start = time.monotonic() - 60 * self.minutes
        smoothed: dict[str, float] = {}
        with self._progress(last) as progress, stop_on_signal() as stop:
            for batches in self._batches(last):
                for name, value in self.train_step(batches).items():
                    smoothed[name] = 0.95 * smoothed.get(name, value) + 0.05 * value
                self.minutes = (time.monotonic() - start) / 60
                progress.update()
                if self.step % 10 == 0:
                    progress.set_postfix({n: f'{value:.3f}' for n, value in smoothed.items()})
                is_last = self.step == last
                if self.step % self.config.validate_every == 0 or is_last:
                    self._log_validation(smoothed, progress)
                ends = any_rank(
                    stop.received or self._out_of_patience(), self.world_size, self.device
                )
                if self.step % self.config.save_every == 0 or is_last or ends:
                    self.save()
                if ends:
                    self._log(progress, self._reason_to_end())
                    return self._out_of_patience() or not stop.received
        return True

    def train_step(self, batches: list[Any]) -> dict[str, float]:
        """Do one optimizer step on the micro-batches of a step; return their mean losses.

        Raises:
            DataError: the loss is not finite.
        """
        # seed by step: dropout is the same in a resumed run
        torch.manual_seed(hash((self.config.seed, self.step, self.rank)))
        self.task.module.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for batch in batches:
            for name, value in self._backward(batch, len(batches)).items():
                means[name] = means.get(name, 0.0) + value / len(batches)
        average_gradients(self._parameters, self.world_size)
        torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        for optimizer, scheduler in zip(self.optimizers, self._schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if self._ema is not None:
            self._ema.update_parameters(self._parameters)
        self.step += 1
        return means

    def _backward(self, batch: Any, count: int) -> dict[str, float]:
        """Add the gradients of a batch, divided by `count` batches per step; return its losses."""
        with torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.config.bf16
        ):
            losses = self.task.losses(batch, self.step)
        total = sum(self.task.loss_weights[name] * value for name, value in losses.items())
        if not torch.isfinite(total):
            raise DataError(
                f'the loss is {total.item()} at step {self.step}; expected a finite number: '
                'choose a lower --learning-rate'
            )
        (total / count).backward()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _batches(self, last: int) -> Iterator[list[Any]]:
        """Yield the batches of each step up to `last`, drawn while the model trains."""
        config = self.config
        batch_indices = range(self.rank, config.accumulate * self.world_size, self.world_size)

        def draw(step: int) -> list[Any]:
            return [self.task.draw(step, index) for index in batch_indices]

        stream = prefetch_batches(draw, range(self.step, last), config.workers)
        with contextlib.closing(stream):
            for batches in stream:
                if isinstance(batches, Exception):
                    self.save()
                    raise batches
                yield [batch.to(self.device) for batch in batches]

    def _progress(self, last: int) -> tqdm:
        return tqdm(
            total=last, initial=self.step, desc=self.run.name, unit='step', disable=self.rank > 0
        )

    def _log(self, progress: tqdm, text: str) -> None:
        """Print a line above the progress bar, in rank 0 only."""
        if self.rank == 0:
            progress.write(text)

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self._stale_validations >= patience

    def _reason_to_end(self) -> str:
        if self._out_of_patience():
            return (
                f'done: {self.config.monitor} has not improved in '
                f'{self._stale_validations} validations'
            )
        return f'stopped after step {self.step}; run the same command again to resume'

    # ---- validation and export

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Use the moving average as the model's weights; restore the trained weights on exit."""
        ema = self.ema_state()
        trained = {name: self.trained[name].detach().clone() for name in ema}
        self._set_weights(ema)
        try:
            yield
        finally:
            self._set_weights(trained)

    def ema_state(self) -> dict[str, Tensor]:
        """Return the moving average of the trained parameters by name; empty without one."""
        if self._ema is None:
            return {}
        averages = self._ema.module.parameters()
        return {name: p.detach() for name, p in zip(self.trained, averages, strict=True)}

    @torch.no_grad()
    def _set_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self.trained[name].copy_(value)

    def _log_validation(self, losses: Mapping[str, float], progress: tqdm) -> None:
        """Validate in rank 0, add a row to the curves and print the metrics."""
        if self.rank > 0:
            return
        metrics = self._validate()
        row = {'step': self.step, 'minutes': self.minutes, **losses, **metrics}
        plots.append_curves(self.run, row)
        text = ', '.join(f'{name} {value:.3f}' for name, value in metrics.items())
        self._log(progress, f'{self.step}: {text}')

    def _validate(self) -> dict[str, float]:
        """Return the task's metrics; export the weights if the monitored one is a new best."""
        monitor = self.config.monitor
        with self.ema_weights():
            self.task.module.eval()
            with torch.no_grad():
                metrics = self.task.validate(self.run)
            if monitor in metrics:
                if metrics[monitor] > self.best_score:
                    self.best_score, self._stale_validations = metrics[monitor], 0
                    self.task.export(self.run)
                else:
                    self._stale_validations += 1
        return metrics

    # ---- saving and resuming

    def save(self) -> None:
        """Save the state to resume from; without `monitor`, also export the weights."""
        if self.rank > 0:
            return
        RunState(
            step=self.step,
            seed=self.config.seed,
            best_score=self.best_score,
            stale_validations=self._stale_validations,
            minutes=self.minutes,
            weights={name: p.detach() for name, p in self.trained.items()},
            ema_weights=self.ema_state(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
        ).save(self.run)
        if self.config.monitor is None:
            with self.ema_weights():
                self.task.export(self.run)

    def _resume(self) -> None:
        state = RunState.load(self.run, self.device)
        state.check(
            self.run,
            self.trained,
            has_ema=self._ema is not None,
            optimizers=len(self.optimizers),
            seed=self.config.seed,
        )
        self._set_weights(state.weights)
        for name, average in self.ema_state().items():
            average.copy_(state.ema_weights[name])
        try:
            for optimizer, saved in zip(self.optimizers, state.optimizers, strict=True):
                optimizer.load_state_dict(saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{self.run / STATE_FILE}: optimizers is not the state of this training '
                f'({error}); choose another --out'
            ) from error
        self.step, self.minutes = state.step, state.minutes
        self.best_score, self._stale_validations = state.best_score, state.stale_validations
        if self._ema is not None:
            self._ema.n_averaged.fill_(self.step + 1)


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
