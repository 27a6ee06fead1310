# SPDX-License-Identifier: Apache-2.0
"""Noise on object names in training answers.

In ground-truth answers the name before [SEG] is always correct, so the mask decoder learns to
follow the name alone. The model's own answers sometimes state a wrong name ("It is the ball" of a
green box, or "the mug" when there are two) after a correct position. The mask then follows the
wrong name, or is empty. So for some answers the model reads a wrong name, without token loss on
it, and keeps the target mask of the object at that position.

Answers that compare two objects are never corrupted: there only the name tells which of the two
positions is meant.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from lisa_ros.tabletop.objects import COLOURS
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph

# One object name directly after a position. ", the" before it is a comparison, see also
# training/tabletop/attention_supervision.py.
_LOCATED_NAME = re.compile(
    r'(?P<prefix>((?!, the ).)*\d+ \d+\. It is the )(?P<name>[^,]+)(?P<suffix>, \[SEG\]\.)'
)


def corrupt_object_name(
    rng: np.random.Generator, query: TabletopQuery, scene: SceneGraph
) -> TabletopQuery:
    """Return the query with a wrong object name in `corrupted_answer`.

    The wrong name is that of another object, an ambiguous or wrong one of the same category, or
    that of an absent category. A query without one located name in its last answer is returned
    unchanged.
    """
    match = _LOCATED_NAME.fullmatch(query.turns[-1].answer_raw)
    if match is None:
        return query
    (target,) = query.referents
    other_objects = [scene.name_with_colour(o) for o in scene.visible if o.id != target.id]
    adjectives = ('', *(f'{colour} ' for colour in COLOURS)) if target.colour else ()
    same_category = [f'{adjective}{target.category}' for adjective in adjectives]
    absent = scene.absent_categories
    correct = {*scene.names(target), match['name']}
    candidates = [
        [name for name in names if name not in correct]
        for names in (other_objects, same_category, absent)
    ]
    candidates = [names for names in candidates if names]
    names = candidates[rng.integers(len(candidates))]
    name = names[rng.integers(len(names))]
    return dataclasses.replace(query, corrupted_answer=f'{match["prefix"]}{name}{match["suffix"]}')
