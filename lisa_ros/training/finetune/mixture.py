# SPDX-License-Identifier: Apache-2.0
"""Draws samples from several data sets at given rates, as the original mixes them.

The original draws semantic segmentation, referring expressions, question-answer dialogues and
reasoning segmentation at 9 : 3 : 3 : 1 (train_ds.py, `--sample_rates`), with replacement and
without epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import SettingsError
from lisa_ros.training.finetune.batches import Sample


class Sampler(Protocol):
    """Draws samples from one data set."""

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return a sample. It depends on the random numbers of `rng` alone."""


@dataclass(frozen=True)
class Mixture:
    """Samplers by name with their rates, which need not sum to one.

    Raises:
        SettingsError: names of samplers and rates differ, a rate is negative, or all are 0.
    """

    samplers: Mapping[str, Sampler]
    rates: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the rates."""
        if self.samplers.keys() != self.rates.keys():
            raise SettingsError(
                f'rates are given for {", ".join(self.rates) or "nothing"}, but the data sets are '
                f'{", ".join(self.samplers) or "none"}: give one rate for each data set'
            )
        are_rates = all(0 <= rate < math.inf for rate in self.rates.values())  # not NaN
        if not are_rates or not any(self.rates.values()):
            raise SettingsError(
                f'rates are {", ".join(map(str, self.rates.values())) or "none"}; expected '
                'numbers of 0 or more, at least one above 0'
            )

    def draw(self, step: int, batch_index: int, count: int) -> list[Sample]:
        """Return `count` samples, always the same for a step and batch index.

        Args:
            step: training step.
            batch_index: number of the micro-batch, see `trainer.TrainingTask.draw`.
            count: how many samples.
        """
        rng = np.random.default_rng((self.seed, step, batch_index))
        names, rates = list(self.rates), np.array(list(self.rates.values()))
        chosen = rng.choice(len(names), size=count, p=rates / rates.sum())
        return [self.samplers[names[index]].draw(rng) for index in chosen]
