# SPDX-License-Identifier: Apache-2.0
"""The loop of every training here: steps, schedule, curves, keeping, stopping and going on.

What is learnt is a `Pupil`'s matter; how long and how fast is a `Pace`. A run is a folder:

    last.pt      what it takes to go on: trained weights, optimizers, step
    curves.csv   losses (smoothed) and validation figures; curves.png draws them
    and whatever the pupil writes: pictures at each validation, the weights to be used

Call again with the same folder to go on; a run that was stopped by a signal ends as if it had not
been (on a CPU bit for bit: lessons and dropout depend on seed and step alone).
With `torchrun` every process takes lessons of its own and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import csv
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lisa_ros.errors import DataError
from lisa_ros.training import plots
from lisa_ros.training.distributed import _any, _share, init_distributed
from lisa_ros.training.muon import Muon
from lisa_ros.training.prefetch import prefetch_batches


class TrainingTask(Protocol):
    """What learns: a model with its lessons and losses."""

    module: nn.Module  # all that is kept; its parameters with requires_grad are trained
    weights: dict[str, float]  # of each loss in the sum; 0: only watched

    def draw(self, step: int, part: int) -> Any:
        """Return the lesson of a step; `part` counts micro-batches and processes.

        It depends on nothing else, and is called from a thread of its own, or from processes that
        are forked for it and must not touch a GPU. It has `to(device)`.
        """

    def losses(self, lesson: Any, step: int) -> dict[str, Tensor]:
        """Return the losses by name, scalars."""

    def validate(self, run: Path) -> dict[str, float]:
        """Return figures of the weights as they are; may draw pictures into the run's folder."""

    def export(self, run: Path) -> None:
        """Write the weights as they are, to be used, into the run's folder."""


def has_fast_bf16() -> bool:
    """Return whether this machine has instructions for bfloat16; without, it is much slower."""
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how fast to learn."""

    steps: int
    learning_rate: float = 1e-3  # peak learning rate of AdamW
    warmup_steps: int = 100  # steps in which the rate rises
    decay_fraction: float = 0.3  # share of the steps in which it falls to nothing, at the end
    weight_decay: float = 0.0  # of matrices; vectors have none
    betas: tuple[float, float] = (0.9, 0.95)
    muon: bool = False  # the matrices of layers learn by Muon, and AdamW has the rest
    accumulate: int = 1  # micro-batches of a step
    max_grad_norm: float = 1.0  # most that the gradient's norm may be
    ema_decay: float = 0.0  # decay of the weights' moving average, which is what is validated
    validate_every: int = 250
    save_every: int = 100
    monitor: str | None = None  # the figure that must rise; its best weights are exported
    patience: int | None = None  # validations without a rise until the run ends
    seed: int = 0
    bf16: bool = True  # matrix products in bfloat16
    workers: int = 0  # processes that make lessons ready, as a GPU wants; 0: a thread


class Trainer:
    """One run: `train` goes on from wherever its folder stands.

    Raises:
        DataError: a loss is not a number; or the folder holds another training, or another seed's.
    """

    def __init__(self, run: Path, pace: TrainerConfig, pupil: TrainingTask, device: str = 'cpu'):
        self.rank, self.world, self.device = init_distributed(device)
        self.run, self.pace, self.pupil = run, pace, pupil
        run.mkdir(parents=True, exist_ok=True)
        self.trained = {n: p for n, p in pupil.module.named_parameters() if p.requires_grad}
        self.optimizers = self._optimizers()
        self.average = (
            {n: p.detach().clone() for n, p in self.trained.items()} if pace.ema_decay else {}
        )
        self.step, self.best, self.worse = 0, float('-inf'), 0
        self.minutes = 0.0  # spent so far, stops left out
        self._stopped = False
        if (run / 'last.pt').exists():
            self._resume()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Return AdamW, and Muon before it if it is asked for."""
        pace, trained = self.pace, self.trained
        inner = {n: p for n, p in trained.items() if pace.muon and p.ndim == 2 and '.layers.' in n}
        rest = [p for n, p in trained.items() if n not in inner]
        adam = torch.optim.AdamW(
            [
                {'params': [p for p in rest if p.ndim > 1], 'weight_decay': pace.weight_decay},
                {'params': [p for p in rest if p.ndim <= 1], 'weight_decay': 0.0},
            ],
            lr=pace.learning_rate,
            betas=pace.betas,
            fused=True,  # one pass over the weights: a tenth of a step on a CPU
        )
        if not inner:
            return [adam]
        muon = Muon(
            list(inner.values()),
            lr=pace.learning_rate,
            weight_decay=pace.weight_decay,
            precision=torch.bfloat16 if has_fast_bf16() else torch.float32,
        )
        return [muon, adam]

    # ---- the loop

    def train(self, until: int | None = None) -> bool:
        """Learn up to the pace's last step, or to step `until`; False if a signal stopped it."""
        pace, last = self.pace, min(until or self.pace.steps, self.pace.steps)
        smooth: dict[str, float] = {}
        began = time.monotonic() - 60 * self.minutes
        bar = tqdm(
            total=last, initial=self.step, desc=self.run.name, unit='step', disable=self.rank > 0
        )
        with bar, self._signals():
            for parts in self._lessons(last):
                for name, value in self.train_step(parts).items():
                    smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
                self.step += 1
                self.minutes = (time.monotonic() - began) / 60
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix({name: f'{value:.3f}' for name, value in smooth.items()})
                end = self.step == last
                if self.step % pace.validate_every == 0 or end:
                    figures = self._validate()
                    self._note({'step': self.step, 'minutes': self.minutes, **smooth, **figures})
                    told = ', '.join(f'{k} {v:.3f}' for k, v in figures.items())
                    self._say(bar, f'{self.step}: {told}')
                tired = pace.patience is not None and self.worse >= pace.patience
                over = _any(self._stopped or tired, self.world, self.device)
                if self.step % pace.save_every == 0 or end or over:
                    self.save()
                if over and tired:
                    self._say(bar, f'{pace.monitor} has not risen {self.worse} times: done')
                    return True
                if over:
                    self._say(bar, f'stopped after step {self.step}; call again to go on')
                    return self._stopped is False
        return True

    def _say(self, bar: tqdm, words: str) -> None:
        """Write a line above the bar, once for all processes."""
        if self.rank == 0:
            bar.write(words)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate: a linear start, level, and a linear end down to nothing."""
        pace = self.pace
        end = (pace.steps - step) / max(1.0, pace.decay_fraction * pace.steps)
        return pace.learning_rate * min(1.0, (step + 1) / max(1, pace.warmup_steps), end)

    def train_step(self, parts: list[Any]) -> dict[str, float]:
        """Make one step of the optimizer from the step's micro-batches; return the losses."""
        pupil, pace = self.pupil, self.pace
        torch.manual_seed(hash((pace.seed, self.step, self.rank)))  # dropout, whenever resumed
        pupil.module.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        told: dict[str, float] = {}
        kind = torch.device(self.device).type
        for lesson in parts:
            with torch.autocast(kind, torch.bfloat16, enabled=pace.bf16):
                losses = pupil.losses(lesson, self.step)
            loss = sum(pupil.weights[name] * value for name, value in losses.items())
            if not torch.isfinite(loss):
                raise DataError(f'the loss is {loss.item()} at step {self.step}: lower the rate')
            (loss / len(parts)).backward()
            for name, value in losses.items():
                told[name] = told.get(name, 0.0) + float(value.detach()) / len(parts)
        parameters = list(self.trained.values())
        _share(parameters, self.world)
        torch.nn.utils.clip_grad_norm_(parameters, pace.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = self.learning_rate(self.step)
            optimizer.step()
        if self.average:
            keep = min(pace.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), parameters, 1 - keep)
        return told

    def _lessons(self, last: int) -> Iterator[list[Any]]:
        """Yield the lessons of the steps from here on, made ready while the model learns."""
        mine = range(self.rank, self.pace.accumulate * self.world, self.world)

        def draw(step: int) -> list[Any]:
            return [self.pupil.draw(step, part) for part in mine]

        with contextlib.closing(
            prefetch_batches(draw, range(self.step, last), self.pace.workers)
        ) as made:
            for lessons in made:
                if isinstance(lessons, Exception):
                    self.save()
                    raise lessons
                yield [lesson.to(self.device) for lesson in lessons]

    # ---- stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let an interrupt or a termination end the run after the step at hand; a second, now."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            self._stopped = True
            signal.signal(number, before[number])

        self._stopped = False
        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- validating and keeping

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Put the moving average in the weights' place for a while."""
        kept = {name: self.trained[name].detach().clone() for name in self.average}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.trained[name].copy_(value)

    def _validate(self) -> dict[str, float]:
        """Return the pupil's figures; export the best weights, if it is told what is better."""
        if self.rank > 0:
            return {}
        with self.ema_weights():
            self.pupil.module.eval()
            with torch.no_grad():
                figures = self.pupil.validate(self.run)
            if self.pace.monitor in figures:
                if figures[self.pace.monitor] > self.best:
                    self.best, self.worse = figures[self.pace.monitor], 0
                    self.pupil.export(self.run)
                else:
                    self.worse += 1
        return figures

    def save(self) -> None:
        """Write all that `_resume` needs, and, unless only the best are kept, the weights."""
        if self.rank > 0:
            return
        state = {
            'step': self.step,
            'seed': self.pace.seed,
            'best': self.best,
            'worse': self.worse,
            'minutes': self.minutes,
            'trained': {name: p.detach() for name, p in self.trained.items()},
            'average': self.average,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.run / 'last.new')
        (self.run / 'last.new').replace(self.run / 'last.pt')
        if self.pace.monitor is None:
            with self.ema_weights():
                self.pupil.export(self.run)

    def _resume(self) -> None:
        state = torch.load(self.run / 'last.pt', weights_only=True, map_location=self.device)
        if len(state.get('optimizers', ())) != len(self.optimizers) or 'seed' not in state:
            raise DataError(
                f'{self.run}/last.pt is of another training: it has not the optimizers of this '
                'one, or was left by an older version; take another --out, or its settings'
            )
        kept = {name: tuple(value.shape) for name, value in state['trained'].items()}
        here = {name: tuple(value.shape) for name, value in self.trained.items()}
        if kept != here or bool(state['average']) != bool(self.average):
            other = sorted(dict(kept.items() ^ here.items())) or ['the moving average']
            raise DataError(
                f'{self.run}/last.pt is of another training: {len(other)} tensors differ in name '
                f'or shape, {other[0]} for one; take another --out, or the settings of before'
            )
        if state['seed'] != self.pace.seed:
            raise DataError(
                f'{self.run}/last.pt was begun with seed {state["seed"]}, not {self.pace.seed}: '
                'its lessons would not go on; give that seed, or another --out'
            )
        self._put(state['trained'])
        if self.average:
            self.average = state['average']
        for optimizer, kept in zip(self.optimizers, state['optimizers'], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.best, self.worse = state['step'], state['best'], state['worse']
        self.minutes = state['minutes']

    def _note(self, row: dict[str, float]) -> None:
        """Add a row to curves.csv; rows of steps that are being done again give way."""
        if self.rank > 0:
            return
        path = self.run / 'curves.csv'
        rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline='') as file:
                rows = [r for r in csv.DictReader(file) if float(r['step']) < row['step']]
        rows.append({name: f'{value:.4f}' for name, value in row.items()})
        columns = list(dict.fromkeys(name for r in rows for name in r))
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        plots.plot(path, self.run / 'curves.png')
