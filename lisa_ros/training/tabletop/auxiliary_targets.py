# SPDX-License-Identifier: Apache-2.0
"""Targets of the auxiliary losses about the objects of an image: presence, layout, neighbours.

Letters: K object categories, MAX_OBJECTS the number of object ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.scene_graph import (
    MIN_VISIBLE_AREA,
    RELATIONS,
    SUPERLATIVES,
    SceneGraph,
    SceneObject,
    nearest_in_relation,
    on_side,
)

CATEGORY_INDEX = {name: i + 1 for i, name in enumerate(OBJECT_CATEGORIES)}  # 0 is "no object"
COLOUR_INDEX = {name: i + 1 for i, name in enumerate(COLOURS)}  # 0 is "no named colour"
MAX_OBJECTS = 16  # object ids are smaller


def class_indices(scene_object: SceneObject) -> tuple[int, int]:
    """Return CATEGORY_INDEX and COLOUR_INDEX of an object; colour 0 if it has no name."""
    colour = scene_object.apparent_colour
    return CATEGORY_INDEX[scene_object.category], COLOUR_INDEX.get(colour or '', 0)


@dataclass(frozen=True)
class ObjectTargets:
    """What the auxiliary heads predict of one image. Rows of objects are their ids."""

    category_present: np.ndarray  # (K,) float, 1 visible, 0 absent, nan hardly visible
    measures: np.ndarray  # (MAX_OBJECTS, 4) float, right, away, height, longest [m]; nan: none
    # (MAX_OBJECTS, relations, 2) long, CATEGORY_INDEX and COLOUR_INDEX of the nearest object in
    # each relation, 0 where there is none, IGNORE_INDEX where it is ambiguous or hardly visible
    neighbours: np.ndarray
    # (MAX_OBJECTS, 2 * superlatives) float, 1 if the superlative applies among all objects (first
    # half) or among those of its category (second half), 0 if not, nan where it is ambiguous
    is_superlative: np.ndarray


def object_targets(scene_graph: SceneGraph) -> ObjectTargets:
    """Return the targets of an image that shows these objects."""
    category_present = np.zeros(len(OBJECT_CATEGORIES), np.float32)
    measures = np.full((MAX_OBJECTS, 4), np.nan, np.float32)
    neighbours = np.full((MAX_OBJECTS, len(RELATIONS), 2), IGNORE_INDEX, np.int64)
    is_superlative = np.full((MAX_OBJECTS, 2 * len(SUPERLATIVES)), np.nan, np.float32)
    # the largest object of a category decides whether the category is visible
    for scene_object in sorted(scene_graph.objects, key=lambda o: o.area):
        number = scene_object.id
        visible = scene_object.area >= MIN_VISIBLE_AREA
        category_present[CATEGORY_INDEX[scene_object.category] - 1] = 1 if visible else np.nan
        measures[number] = (
            scene_object.right,
            scene_object.away,
            scene_object.height,
            scene_object.longest,
        )
        same_category = tuple(
            o for o in scene_graph.objects if o.category == scene_object.category
        )
        is_superlative[number] = [
            *_superlatives(scene_object, scene_graph.objects),
            *_superlatives(scene_object, same_category),
        ]
        neighbours[number] = [
            _neighbour(scene_graph, relation, scene_object) for relation in RELATIONS
        ]
    return ObjectTargets(category_present, measures, neighbours, is_superlative)


def _superlatives(scene_object: SceneObject, group: tuple[SceneObject, ...]) -> list[float]:
    """Return whether each superlative applies to an object of a group: 1, 0, or nan if unclear."""
    others = [o for o in group if o.id != scene_object.id]
    values = []
    for measure, margin in SUPERLATIVES.values():
        leads = [measure(scene_object) - measure(other) for other in others]
        visible_leads = [
            lead
            for lead, other in zip(leads, others, strict=True)
            if other.area >= MIN_VISIBLE_AREA
        ]
        if min(visible_leads, default=0) <= -margin:  # behind an object that is visible
            values.append(0.0)
        elif leads and min(leads) >= margin:
            values.append(1.0)
        else:
            values.append(np.nan)
    return values


def _neighbour(scene_graph: SceneGraph, relation: str, anchor: SceneObject) -> tuple[int, int]:
    """Return category and colour index of the nearest object in a relation to the anchor."""
    neighbour = nearest_in_relation(scene_graph.objects, relation, anchor)
    if neighbour is not None and neighbour.area >= MIN_VISIBLE_AREA:
        return class_indices(neighbour)
    others = (o for o in scene_graph.objects if o.id != anchor.id)
    if not any(on_side(other, relation, anchor) for other in others):
        return 0, 0
    return IGNORE_INDEX, IGNORE_INDEX
