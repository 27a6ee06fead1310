# SPDX-License-Identifier: Apache-2.0
"""The lesson of slips: a wrong name at the right place does not move the mask.

In lessons the name before [SEG] is always right, so masks come to follow it alone. In the model's
own answers it sometimes is not ("It is the ball" of a green box, "the mug" where there are two),
though the place told before it is right: then the mask goes astray with the name, or is empty. So
some answers are read with a wrong name, which is not learnt, and with the mask of what stands at
the place. Of two things that are compared the name alone says which one is meant, even where their
places are told: such answers never slip.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph

# One thing's name right behind a place; ", the" before it compares (looking.py reads it so, too).
_PLACED = re.compile(
    r'(?P<before>((?!, the ).)*\d+ \d+\. It is the )(?P<name>[^,]+)(?P<after>, \[SEG\]\.)'
)


def corrupt_object_name(
    rng: np.random.Generator, request: TabletopQuery, table: SceneGraph
) -> TabletopQuery:
    """Return a request whose last answer calls its thing what it is not.

    That is the name of another thing, a name that does not tell it from the others of its kind, or
    one of a kind that is not there. A request whose last answer has no place with one name behind
    it comes back as it is.
    """
    said = _PLACED.fullmatch(request.turns[-1].answer_raw)
    if said is None:
        return request
    (one,) = request.about
    others = [table.name_with_colour(o) for o in table.visible if o.id != one.id]
    looks = ('', *(f'{colour} ' for colour in COLOURS)) if one.colour else ()
    alike = [f'{look}{one.kind}' for look in looks]
    gone = [kind for kind in OBJECT_CATEGORIES if not table.contains(kind)]
    right = {*table.names(one), said['name']}
    wrong = [[name for name in names if name not in right] for names in (others, alike, gone)]
    ways = [names for names in wrong if names]
    names = ways[rng.integers(len(ways))]
    name = names[rng.integers(len(names))]
    return dataclasses.replace(request, slip=f'{said["before"]}{name}{said["after"]}')
