# SPDX-License-Identifier: Apache-2.0
"""The training loop: optimizer steps, moving average of the weights, validation, save and resume.

A `TrainingTask` defines the model, the batches and the losses, a `TrainerConfig` the number of
steps and the learning rate, a `RunIdentity` what a resumed run must have in common with the first
call. A run is a folder:

    last.pt      state to resume from: trained weights, optimizers, step
    curves.csv   losses (smoothed) and validation metrics; curves.png is its plot
    The task adds its own files: images at each validation, and the exported weights.

Train in the same folder to resume a run. On a CPU a run that was stopped by a signal and resumed
ends with exactly the same weights as an uninterrupted one, because batches and dropout depend only
on seed and step. With `torchrun` each process draws its own batches, and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lisa_ros.errors import DataError, OutputError
from lisa_ros.files.folder_lock import hold_folder
from lisa_ros.training import plots
from lisa_ros.training.distributed import (
    any_rank,
    are_equal,
    average_gradients,
    init_distributed,
)
from lisa_ros.training.interruption import stop_on_signal
from lisa_ros.training.optimizers import (
    clip_gradients,
    load_optimizer_state,
    make_ema,
    make_optimizers,
    make_schedulers,
)
from lisa_ros.training.prefetch import prefetch_batches
from lisa_ros.training.run_identity import RunIdentity
from lisa_ros.training.run_state import STATE_FILE, RunState
from lisa_ros.training.trainer_config import TrainerConfig


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


class Trainer:
    """Trains a task in a run's folder, from step 0 or from the state saved there.

    Raises:
        DataError: a loss is not finite, the folder contains a run of another model or seed, or
            processes of `torchrun` find states of different steps.
    """

    def __init__(
        self,
        run: Path,
        config: TrainerConfig,
        task: TrainingTask,
        device: str = 'cpu',
        identity: RunIdentity | None = None,
    ):
        self.rank, self.world_size, self.device = init_distributed(device)
        self.run, self.config, self.task = run, config, task
        self._identity = identity or RunIdentity()
        run.mkdir(parents=True, exist_ok=True)
        self.trained = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
        self.optimizers = make_optimizers(config, self.trained)
        self._parameters = nn.ParameterList(self.trained.values())
        self._ema = make_ema(self._parameters, config.ema_decay) if config.ema_decay else None
        self.step = 0  # steps done
        self.best_score, self._stale_validations = float('-inf'), 0
        self._is_validated = True  # no validation of this step is due
        self.minutes = 0.0  # training time so far, without pauses between calls
        if (run / STATE_FILE).exists():
            self._resume()
        if not are_equal(self.step, self.world_size, self.device):
            raise DataError(
                f'{run}: rank {self.rank} begins at step {self.step}, another one at another '
                f'step: copy {STATE_FILE} of rank 0 to this folder on each machine, or use a '
                'shared folder'
            )
        self._saved_at = self._state_time()
        self._schedulers = make_schedulers(config, self.optimizers, self.step)

    # ---- the loop

    def train(self, until: int | None = None) -> bool:
        """Train up to step `until`, or up to the last step of the config.

        Returns:
            False if a signal stopped the training before that step.

        Raises:
            DataError: a loss or a gradient is not finite, or the task raised it.
            OutputError: another process trains in this folder, or has done so meanwhile.
        """
        last = min(until or self.config.steps, self.config.steps)
        start = time.monotonic() - 60 * self.minutes
        smoothed: dict[str, float] = {}
        lock = hold_folder(self.run) if self.rank == 0 else contextlib.nullcontext()
        with lock, self._progress(last) as progress, stop_on_signal() as stop:
            if self.rank == 0 and self._state_time() != self._saved_at:
                raise OutputError(
                    f'{self.run}: another run has trained here since this one began to load; '
                    'start again, to go on from its last step'
                )
            if not self._is_validated:  # an earlier call ended during the validation of this step
                self._log_validation(smoothed, progress)
                self.save()
            if self._has_nothing_to_do(last, progress):
                return True
            for batches in self._batches(last):
                for name, value in self.train_step(batches).items():
                    smoothed[name] = 0.95 * smoothed.get(name, value) + 0.05 * value
                self.minutes = (time.monotonic() - start) / 60
                progress.update()
                if self.step % 10 == 0:
                    progress.set_postfix({n: f'{value:.3f}' for n, value in smoothed.items()})
                is_last = self.step == last
                validates = self.step % self.config.validate_every == 0 or is_last
                if validates:
                    self._is_validated = False
                    self._save_state()  # no step is lost if the validation fails
                    self._log_validation(smoothed, progress)
                ends = any_rank(
                    stop.received or self._out_of_patience(), self.world_size, self.device
                )
                if self.step % self.config.save_every == 0 or is_last or ends:
                    self.save()
                elif validates:
                    self._save_state()
                if ends:
                    self._log(progress, self._reason_to_end())
                    return self._out_of_patience() or not stop.received
        return True

    def train_step(self, batches: list[Any]) -> dict[str, float]:
        """Do one optimizer step on the micro-batches of a step; return their mean losses.

        Raises:
            DataError: the loss or a gradient is not finite; the weights are those before the step.
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
        clip_gradients(self._parameters, self.config.max_grad_norm, self.step)
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

    def _has_nothing_to_do(self, last: int, progress: tqdm) -> bool:
        """Return whether an earlier call has done all steps up to `last`, and say so."""
        if any_rank(self._out_of_patience(), self.world_size, self.device):
            reason = f'{self._reason_to_end()}; raise --patience'
        elif self.step >= last:
            reason = f'already done: step {self.step} of {last}; raise --steps'
        else:
            return False
        self._log(progress, f'{self.run}: {reason} to go on, or choose another --out')
        return True

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
        if self.rank == 0:
            metrics = self._validate()
            row = {'step': self.step, 'minutes': self.minutes, **losses, **metrics}
            plots.append_curves(self.run, row)
            text = ', '.join(f'{name} {value:.3f}' for name, value in metrics.items())
            self._log(progress, f'{self.step}: {text}')
        self._is_validated = True

    def _validate(self) -> dict[str, float]:
        """Return the task's metrics; export the weights if the monitored one is a new best.

        Raises:
            DataError: the monitored metric is not one of them.
        """
        monitor = self.config.monitor
        with self.ema_weights():
            self.task.module.eval()
            with torch.no_grad():
                metrics = self.task.validate(self.run)
            if monitor is None:
                return metrics
            if monitor not in metrics:
                raise DataError(
                    f'--monitor {monitor} is none of the metrics of the validation: expected one '
                    f'of {", ".join(metrics) or "none"}; all steps are saved: correct it, and '
                    'run the command again'
                )
            if metrics[monitor] > self.best_score:
                self.best_score, self._stale_validations = metrics[monitor], 0
                self.task.export(self.run)
            else:
                self._stale_validations += 1
        return metrics

    # ---- saving and resuming

    def save(self) -> None:
        """Save the state to resume from; without `monitor`, also export the weights.

        Until the export is complete, the state says that this step is not finished: the next run
        repeats its validation and the export.
        """
        if self.rank == 0 and self.config.monitor is None:
            was_validated, self._is_validated = self._is_validated, False
            self._save_state()
            with self.ema_weights():
                self.task.export(self.run)
            self._is_validated = was_validated
        self._save_state()

    def _save_state(self) -> None:
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
            is_validated=self._is_validated,
            identity=self._identity,
            monitor=self.config.monitor,
        ).save(self.run)

        self._saved_at = self._state_time()

    def _state_time(self) -> int | None:
        """Return when the state in the folder was saved [ns]; None: there is none."""
        path = self.run / STATE_FILE
        return path.stat().st_mtime_ns if path.exists() else None

    def _resume(self) -> None:
        state = RunState.load(self.run, self.device)
        state.check(
            self.run,
            self.trained,
            has_ema=self._ema is not None,
            optimizers=len(self.optimizers),
            seed=self.config.seed,
            identity=self._identity,
        )
        for change in state.identity.changes_of_data(self._identity):
            self._warn(change)
        self.best_score, self._stale_validations = self._best_of(state)
        self._identity = state.identity.resumed_by(self._identity)
        self._set_weights(state.weights)
        for name, average in self.ema_state().items():
            average.copy_(state.ema_weights[name])
        try:
            for optimizer, saved in zip(self.optimizers, state.optimizers, strict=True):
                load_optimizer_state(optimizer, saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{self.run / STATE_FILE}: optimizers is not the state of this training '
                f'({error}); choose another --out'
            ) from error
        self.step, self.minutes = state.step, state.minutes
        self._is_validated = state.is_validated
        if self._ema is not None:
            self._ema.n_averaged.fill_(self.step + 1)

    def _best_of(self, state: RunState) -> tuple[float, int]:
        """Return the best score of a saved state, and the number of validations since then.

        A score of other images or of another metric is none: the next validation is a new best.
        """
        monitor, no_best = self.config.monitor, (float('-inf'), 0)
        best = state.best_score, state.stale_validations
        reason = monitor and state.why_best_is_of_another(monitor, self._identity)
        if best == no_best or not reason:
            return best
        self._warn(f'{reason}: the next validation counts as the best so far')
        return no_best

    def _warn(self, difference: str) -> None:
        """Print how this call differs from the earlier ones, in rank 0 only."""
        if self.rank == 0:
            print(f'warning: {self.run} is resumed, but {difference}', file=sys.stderr)
