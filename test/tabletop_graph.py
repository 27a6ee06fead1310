# SPDX-License-Identifier: Apache-2.0
"""A scene graph for the tests of the generator and of its training."""

import numpy as np

from lisa_ros.tabletop import dialogue, query_sampling
from lisa_ros.tabletop.answer_noise import corrupt_object_name
from lisa_ros.tabletop.scene_graph import SceneGraph, SceneObject
from lisa_ros.tabletop.templates import PhraseSampler

# From above, the camera at the bottom:      book (hidden)
#                                     plate
#                      red mug   banana   white mug
TABLE = SceneGraph(
    (
        SceneObject(1, 'mug', 'coffee_mug', 'red', 'big', 900, 90, -0.2, 0.5, 0.12, 0.15),
        SceneObject(2, 'mug', 'porcelain_mug', 'white', 'small', 800, 80, 0.2, 0.5, 0.08, 0.10),
        SceneObject(3, 'banana', 'banana', None, None, 700, 0, 0.0, 0.5, 0.04, 0.19),
        SceneObject(4, 'plate', 'plate', 'blue', 'big', 3000, 0, -0.01, 0.8, 0.02, 0.24),
        SceneObject(5, 'book', 'black_book', None, None, 20, 0, 0.1, 1.3, 0.2, 0.24),
    )
)
RED, WHITE, BANANA, PLATE, BOOK = TABLE.objects


def corrupted_queries(count):
    """(query, the query after `corrupt_object_name`): single turns and dialogues."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        query = query_sampling.sample_measured(rng, TABLE)
        yield query, corrupt_object_name(rng, query, TABLE)
        talk = dialogue.dialogue(PhraseSampler(rng), TABLE, 3)
        yield talk, corrupt_object_name(rng, talk, TABLE)
