# SPDX-License-Identifier: Apache-2.0
"""Reads and writes `last.pt` in a run's folder: all that is needed to resume the training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lisa_ros.error_text import one_line
from lisa_ros.errors import DataError
from lisa_ros.files.json_schema import (
    ANYTHING,
    INTEGER,
    NUMBER,
    TEXT,
    TRUTH,
    ListOf,
    MapOf,
    Record,
    Value,
    check_json,
    optional,
)
from lisa_ros.training.run_identity import RunIdentity

_VALIDATION_FLAGS = ('--val', '--scenes')  # of a fine-tuning, of a training from scratch
STATE_FILE = 'last.pt'

# Field of RunState -> its key in the file. Do not change the keys: old runs must load.
_KEYS = {
    'step': 'step',
    'seed': 'seed',
    'best_score': 'best',
    'stale_validations': 'worse',
    'minutes': 'minutes',
    'weights': 'trained',
    'ema_weights': 'average',
    'optimizers': 'optimizers',
}
_VALIDATED, _IDENTITY, _MONITOR = 'validated', 'identity', 'monitor'  # older files lack them
_UNKNOWN = ''
_TENSORS = MapOf(Value((Tensor,), 'a tensor'))
_SCHEMA = Record(
    {
        'step': INTEGER,
        'seed': INTEGER,
        'best': Value((float, int), 'a number', may_be_infinite=True),
        'worse': INTEGER,
        'minutes': NUMBER,
        'trained': _TENSORS,
        'average': _TENSORS,
        'optimizers': ListOf(MapOf(ANYTHING)),
    },
    {_VALIDATED: TRUTH, _MONITOR: optional(TEXT)},
)
# Versions that trained LoRA with peft named its matrices `lora_A.default.weight`.
_PEFT_NAME = re.compile(r'\.(lora_[AB])\.default\.weight$')


@dataclass(frozen=True)
class RunState:
    """The state of a training after a step."""

    step: int  # steps done
    seed: int
    best_score: float  # best value of the monitored metric so far; see `why_best_is_of_another`
    stale_validations: int  # number of validations since the best value
    minutes: float  # training time so far, without pauses between calls
    weights: Mapping[str, Tensor]  # trained parameters
    ema_weights: Mapping[str, Tensor]  # their moving average; empty without one
    optimizers: list[dict[str, Any]]  # state_dict of each optimizer
    is_validated: bool = True  # False: the validation of this step is not done yet
    identity: RunIdentity = field(default_factory=RunIdentity)  # empty in files of old versions
    monitor: str | None = _UNKNOWN  # the monitored metric; None: the last weights are exported

    def save(self, run: Path) -> None:
        """Write the state into a run's folder; if it fails, the previous file is kept."""
        temporary = run / 'last.new'
        saved = {key: getattr(self, name) for name, key in _KEYS.items()}
        saved |= {_VALIDATED: self.is_validated, _IDENTITY: self.identity.as_dict()}
        saved[_MONITOR] = self.monitor
        torch.save(saved, temporary)
        temporary.replace(run / STATE_FILE)

    @classmethod
    def load(cls, run: Path, device: str) -> RunState:
        """Read the state from a run's folder.

        Raises:
            DataError: it cannot be read, an older version wrote it without the seed or the
                optimizers, or a value in it has another type; the message names the key.
        """
        path = run / STATE_FILE
        try:
            saved = torch.load(path, weights_only=True, map_location=device)
        except Exception as error:  # a damaged archive or pickle raises many types
            raise DataError(
                f'{path}: cannot be read as the state of a training ({one_line(error)}); remove '
                'it to start from the beginning, or choose another --out'
            ) from error
        if not isinstance(saved, dict) or 'seed' not in saved or 'optimizers' not in saved:
            raise DataError(
                f'{path} was written by an older version and cannot be resumed: '
                'choose another --out'
            )
        check_json(path, saved, _SCHEMA)
        for key in ('trained', 'average'):
            saved[key] = {_PEFT_NAME.sub(r'.\1.weight', name): t for name, t in saved[key].items()}
        identity = saved.get(_IDENTITY)
        return cls(
            **{name: saved[key] for name, key in _KEYS.items()},
            is_validated=saved.get(_VALIDATED, True),
            identity=RunIdentity() if identity is None else RunIdentity.read(path, identity),
            monitor=saved.get(_MONITOR, _UNKNOWN),
        )

    def check(
        self,
        run: Path,
        weights: Mapping[str, Tensor],
        has_ema: bool,
        optimizers: int,
        seed: int,
        identity: RunIdentity,
    ) -> None:
        """Check that a training with these settings can resume from this state.

        Args:
            run: folder of the run, for error messages.
            weights: the trained parameters of the training to resume.
            has_ema: whether that training keeps a moving average.
            optimizers: number of its optimizers.
            seed: its seed.
            identity: its base and options.

        Raises:
            DataError: the state belongs to another training, or its weights are not finite.
        """
        path = run / STATE_FILE
        self.identity.check_options(path, identity)
        if len(self.optimizers) != optimizers:
            raise DataError(
                f'{path} belongs to another training: it has {len(self.optimizers)} optimizers, '
                f'expected {optimizers}; choose another --out, or the settings of that training'
            )
        saved = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        current = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if saved != current or bool(self.ema_weights) != has_ema:
            different = sorted(dict(saved.items() ^ current.items())) or ['the moving average']
            raise DataError(
                f'{path} belongs to another training: {len(different)} tensors differ in name or '
                f'shape, for example {different[0]}; choose another --out, or the settings of '
                'that training'
            )
        broken = [
            name
            for name, tensor in (*self.weights.items(), *self.ema_weights.items())
            if not torch.isfinite(tensor).all()
        ]
        if broken:
            raise DataError(
                f'{path}: {len(broken)} tensors have values that are not finite, for example '
                f'{broken[0]}: an earlier version saved them, and nothing can be learned from '
                'them; start again with a lower --learning-rate and another --out'
            )
        if self.seed != seed:
            raise DataError(
                f'{path} belongs to a run with seed {self.seed}, expected {seed}: it cannot be '
                f'resumed with other batches; use --seed {self.seed}, or another --out'
            )
        self.identity.check_base(path, identity)

    def why_best_is_of_another(self, monitor: str, identity: RunIdentity) -> str:
        """Return why the best score cannot be compared with those of a training; '' if it can.

        Args:
            monitor: metric that the training monitors.
            identity: of the training, with its data.
        """
        if self.monitor is None:
            return 'the exported weights were not chosen by a validation'
        if self.monitor not in (_UNKNOWN, monitor):
            return f'the best score is one of --monitor {self.monitor}, not of {monitor}'
        before, now = self.identity.data, identity.data
        known = (flag for flag in _VALIDATION_FLAGS if flag in before and flag in now)
        changed = [flag for flag in known if before[flag] != now[flag]]
        return f'the best score is of another {changed[0]}' if changed else ''
