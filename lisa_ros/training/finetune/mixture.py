# SPDX-License-Identifier: Apache-2.0
"""Several kinds of data, drawn at given rates, as LISA mixes them.

The original draws semantic segmentation, referring expressions, question-answer dialogues and
reasoning at 9 : 3 : 3 : 1 (train_ds.py, `--sample_rates`), with replacement, without an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.errors import SettingsError
from lisa_ros.training.finetune.batches import Sample

ORIGINAL_RATES = {'semantic': 9.0, 'referring': 3.0, 'question_answer': 3.0, 'reasoning': 1.0}


class Source(Protocol):
    """Data of one kind."""

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return a sample; it depends on nothing but the numbers that `rng` gives."""


@dataclass(frozen=True)
class Mixture:
    """Sources by name with their rates, which need not sum up to one.

    Raises:
        SettingsError: a source has no rate, a rate no source, or no rate is above 0.
    """

    sources: Mapping[str, Source]
    rates: Mapping[str, float]
    seed: int = 0

    def __post_init__(self):
        """Check that sources and rates fit."""
        if self.sources.keys() != self.rates.keys():
            raise SettingsError(
                f'rates are given for {", ".join(self.rates) or "nothing"}, and the data are '
                f'{", ".join(self.sources) or "none"}: give one rate for each'
            )
        if not self.rates or min(self.rates.values()) < 0 or sum(self.rates.values()) <= 0:
            raise SettingsError(
                f'rates are {", ".join(map(str, self.rates.values())) or "none"}; expected '
                'numbers of 0 or more, one of them above 0'
            )

    def draw(self, step: int, part: int, count: int) -> list[Sample]:
        """Return `count` samples, the same whenever they are asked for; see `loop.Pupil.draw`."""
        rng = np.random.default_rng((self.seed, step, part))
        names, rates = list(self.rates), np.array(list(self.rates.values()))
        chosen = rng.choice(len(names), size=count, p=rates / rates.sum())
        return [self.sources[names[index]].draw(rng) for index in chosen]
