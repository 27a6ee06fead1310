# SPDX-License-Identifier: Apache-2.0
"""Random queries about a scene, for training and for test sets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ParamSpec

import numpy as np

from lisa_ros.results import Turn
from lisa_ros.tabletop.attribute_queries import attributes, explicit, part, several
from lisa_ros.tabletop.dialogue import dialogue
from lisa_ros.tabletop.queries import IMPLICIT, TabletopQuery
from lisa_ros.tabletop.reasoning_queries import knowledge, need_query, two_step, use
from lisa_ros.tabletop.relation_queries import relations, spatial_relation
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.tabletop.single_turn import CATEGORY_SAMPLERS, sample_single_turn
from lisa_ros.tabletop.templates import NoHeldOutTemplate, PhraseSampler

_DIALOGUE_RATE = 0.3
_FORCED_MASK_RATE = 0.3  # of single turns that ask for an absent name
_MAX_TRIES = 24
_MAX_MEASURED_TRIES = 30


def sample_query(
    rng: np.random.Generator, scene: SceneGraph, excluded: tuple[str, ...] = ()
) -> TabletopQuery:
    """Return a training query: a single turn, or a dialogue of two to four turns.

    Args:
        rng: the generator of all random draws.
        scene: the objects of the view.
        excluded: query categories to leave out, see `queries.CATEGORIES`.
    """
    sampler = PhraseSampler(rng, excluded=excluded)
    if 'dialogue' not in excluded and sampler.chance(_DIALOGUE_RATE):
        return dialogue(sampler, scene, 2 + int(sampler.rng.choice(3, p=(0.6, 0.25, 0.15))))
    query = sample_single_turn(sampler, scene)
    return force_mask_on_absent(query) if sampler.chance(_FORCED_MASK_RATE) else query


def force_mask_on_absent(query: TabletopQuery) -> TabletopQuery:
    """Return a query for an absent object with the answer "Sure, [SEG]." and an empty mask.

    A model that wrongly answers with [SEG] then learns to predict an empty mask. Other queries are
    returned unchanged.
    """
    if query.present or query.category not in ('explicit', 'attributes'):
        return query
    turn = Turn(query.turns[0].query, 'Sure, [SEG].')
    return TabletopQuery(query.category, (turn,), ((),), forced_mask=True)


def sample_reasoning_present(rng: np.random.Generator, scene: SceneGraph) -> TabletopQuery | None:
    """Return a training query of an IMPLICIT category for a visible object; None if none fits."""
    sampler = PhraseSampler(rng)
    sample = CATEGORY_SAMPLERS[sampler.choice(IMPLICIT)].sample
    return _first_fit(sample, sampler, scene, True)


def sample_reasoning(rng: np.random.Generator, scene: SceneGraph) -> TabletopQuery:
    """Return a training query of an IMPLICIT category, for a visible or an absent object.

    If none fits, return a query of any category.
    """
    sampler = PhraseSampler(rng)
    category_sampler = CATEGORY_SAMPLERS[sampler.choice(IMPLICIT)]
    present = not sampler.chance(category_sampler.absent_rate)
    query = _first_fit(category_sampler.sample, sampler, scene, present)
    return query or sample_single_turn(sampler, scene)


def sample_measured(rng: np.random.Generator, scene: SceneGraph) -> TabletopQuery:
    """Return a training query whose answer states a position or a size.

    If none fits, return a query of any category.
    """
    sampler = PhraseSampler(rng)
    options = (
        lambda: relations(sampler, scene, True),
        lambda: relations(sampler, scene, True),
        lambda: two_step(sampler, scene),
        lambda: spatial_relation(sampler, scene),
    )
    for _ in range(_MAX_MEASURED_TRIES):
        query = sampler.choice(options)()
        if query is not None and any(c.isdigit() for c in query.turns[0].answer_raw):
            return query
    return sample_single_turn(sampler, scene)


def make_test_queries(rng: np.random.Generator, scene: SceneGraph) -> list[TabletopQuery]:
    """Return the test queries of a scene, in held-out phrases."""
    sampler = PhraseSampler(rng, held_out=True)
    queries: list[TabletopQuery | None] = []
    for sample in (explicit, attributes, use, knowledge):
        queries += [_first_fit(sample, sampler, scene, present) for present in (True, False)]
    queries += [
        _first_fit(sample, sampler, scene, True) for sample in (relations, relations, part)
    ]
    queries += [_first_fit(sample, sampler, scene) for sample in (two_step, several)]
    for _ in range(4):
        turn_count = 2 + int(sampler.rng.integers(3))
        conversation = _first_fit(dialogue, sampler, scene, turn_count)
        if conversation is not None and conversation.present:
            queries.append(conversation)
            break
    return [query for query in queries if query is not None]


def make_object_test_queries(
    rng: np.random.Generator, scene: SceneGraph, model: str
) -> list[TabletopQuery]:
    """Return test queries by name and by use for one object model.

    The list is empty if the object is hidden or the scene has a second one of its category.
    """
    sampler = PhraseSampler(rng, held_out=True)
    targets = [o for o in scene.visible if o.model == model]
    if not targets or sum(o.category == targets[0].category for o in scene.objects) > 1:
        return []
    target_alone = SceneGraph(tuple(targets))
    queries = [
        _first_fit(explicit, sampler, target_alone, True),
        _first_fit(need_query, sampler, target_alone, True, 'use'),
    ]
    return [query for query in queries if query is not None]


_Arguments = ParamSpec('_Arguments')


def _first_fit(
    sample: Callable[_Arguments, TabletopQuery | None],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> TabletopQuery | None:
    """Return the first query of up to _MAX_TRIES draws; None if no draw fits the scene."""
    for _ in range(_MAX_TRIES):
        with contextlib.suppress(NoHeldOutTemplate):
            query = sample(*args, **kwargs)
            if query is not None:
                return query
    return None
