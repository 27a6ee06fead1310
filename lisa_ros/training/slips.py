# SPDX-License-Identifier: Apache-2.0
"""The lesson of slips: a wrong name at the right place does not move the mask.

In lessons the name before [SEG] is always right, so masks come to follow it alone. In its own
answers every tenth name is not ("It is the ball" of a green box, "the mug" where there are two),
though the place told before it is right: then the mask goes astray with the name, or is empty. So
some answers are read with a wrong name, which is not learnt, and with the mask of what stands at
the place. Answers that compare two things by name have no place to hold to, and are left alone.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from lisa_ros.training.referring import Table
from lisa_ros.training.requests import Request
from lisa_ros.training.things import COLOURS, KINDS

# one thing's name right behind a place
_NAMED = re.compile(r'(?P<before>.*\d+ \d+\. It is the )(?P<name>[^,]+)(?P<after>, \[SEG\]\.)')


def slip(rng: np.random.Generator, request: Request, table: Table) -> Request:
    """Return a request whose last answer names another thing, or one that there is none of.

    A request without a place and one name behind it comes back as it is.
    """
    said = _NAMED.fullmatch(request.turns[-1].answer_raw)
    if said is None or ', the ' in said['before'] or len(request.about) != 1:
        return request
    one = request.about[0]
    others = [table.look(o) for o in table.seen if o.id != one.id]
    looks = ('', *(f'{colour} ' for colour in COLOURS)) if one.colour else ()
    alike = [f'{look}{one.kind}' for look in looks]
    gone = [kind for kind in KINDS if not table.has(kind)]
    right = {*table.names(one), said['name']}
    kinds = [[name for name in names if name not in right] for names in (others, alike, gone)]
    kinds = [names for names in kinds if names]
    names = kinds[rng.integers(len(kinds))]
    wrong = names[rng.integers(len(names))]
    return dataclasses.replace(request, slip=f'{said["before"]}{wrong}{said["after"]}')
