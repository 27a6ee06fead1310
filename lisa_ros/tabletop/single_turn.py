# SPDX-License-Identifier: Apache-2.0
"""Random queries of one turn, of any category."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lisa_ros.tabletop.attribute_queries import attributes, explicit, part, several
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.reasoning_queries import knowledge, two_step, use
from lisa_ros.tabletop.relation_queries import relations
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.tabletop.templates import PhraseSampler
from lisa_ros.tabletop.text_queries import general_knowledge, question

_MAX_TRIES = 30


@dataclass(frozen=True)
class CategorySampler:
    """Samples queries of one category: `sample(sampler, scene, present)`, None on a misfit."""

    sample: Callable[[PhraseSampler, SceneGraph, bool], TabletopQuery | None]
    frequency: float  # probability among all single turns, before exclusions
    absent_rate: float | None  # probability of an absent target; None: `present` has no effect


CATEGORY_SAMPLERS = {
    'explicit': CategorySampler(explicit, 0.17, 0.45),
    'attributes': CategorySampler(attributes, 0.15, 0.40),
    'relations': CategorySampler(relations, 0.26, 0.12),
    'use': CategorySampler(use, 0.11, 0.42),
    'knowledge': CategorySampler(knowledge, 0.10, 0.42),
    # never absent; 0.0 instead of None, so that the random draws stay those of the test sets
    'two_step': CategorySampler(lambda sampler, scene, _: two_step(sampler, scene), 0.15, 0.0),
    'part': CategorySampler(part, 0.05, 0.25),
    'several': CategorySampler(lambda sampler, scene, _: several(sampler, scene), 0.08, None),
    'question': CategorySampler(lambda sampler, scene, _: question(sampler, scene), 0.07, None),
    'general_knowledge': CategorySampler(
        lambda sampler, _, __: general_knowledge(sampler), 0.02, None
    ),
}


def sample_single_turn(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery:
    """Return a query of one turn, of any category that the sampler does not exclude.

    If no draw fits the scene, return a question, which always fits.
    """
    weights = np.array(
        [
            category_sampler.frequency * (category not in sampler.excluded)
            for category, category_sampler in CATEGORY_SAMPLERS.items()
        ]
    )
    for _ in range(_MAX_TRIES):
        index = sampler.rng.choice(len(weights), p=weights / weights.sum())
        drawn = list(CATEGORY_SAMPLERS.values())[index]
        present = drawn.absent_rate is None or not sampler.chance(drawn.absent_rate)
        query = drawn.sample(sampler, scene, present)
        if query is not None:
            return query
    return question(sampler, scene)
