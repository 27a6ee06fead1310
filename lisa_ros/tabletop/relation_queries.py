# SPDX-License-Identifier: Apache-2.0
"""Queries by spatial relation, superlative or comparative.

Each function returns a query, or None if the random draw does not fit the scene.
"""

from __future__ import annotations

from collections.abc import Callable

from lisa_ros.tabletop.answer_text import (
    even_centimetres,
    identification,
    position_text,
    relation_text,
)
from lisa_ros.tabletop.queries import TabletopQuery, mask_query, text_query
from lisa_ros.tabletop.scene_graph import (
    COMPARATIVES,
    MIN_VISIBLE_AREA,
    RELATIONS,
    SAME_CATEGORY_SUPERLATIVES,
    SUPERLATIVES,
    SceneGraph,
    SceneObject,
    find_superlative,
    in_relation,
    instance_ids,
    nearest_in_relation,
    on_side,
    side_is_empty,
)
from lisa_ros.tabletop.templates import NAME_TEMPLATES, PhraseSampler

_DIRECTIONS = RELATIONS[:4]  # without "next to"


def relations(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for an object by its position or by a comparison."""
    if not present:
        return absent_relation(sampler, scene)
    sample = sampler.choice(
        (spatial_relation, spatial_relation, superlative_query, comparative_query)
    )
    return sample(sampler, scene)


def spatial_relation(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for "the thing left of the milk" or "the mug behind the milk"."""
    anchor = sampler.choice(scene.visible)
    if anchor is None:
        return None
    relation = sample_relation(sampler)
    target = nearest_in_relation(scene.objects, relation, anchor)
    noun = 'thing'
    repeated_categories = sorted(
        category
        for category in {o.category for o in scene.visible if o.id != anchor.id}
        if len(scene.of_category(category)) > 1
    )
    if repeated_categories and sampler.chance(0.5):
        noun = sampler.choice(repeated_categories)
        target = _unique_in_relation(scene, noun, relation, anchor)
    if target is None or target.area < MIN_VISIBLE_AREA:
        return None
    name = scene.name(anchor)
    text = sampler.fill_template(NAME_TEMPLATES, f'the {noun} {relation} the {name}')
    measurement = relation_text(name, anchor, relation, target)
    answer = f'{measurement} {identification(scene, [target])}, [SEG].'
    return mask_query('relations', text, [target], answer)


def _unique_in_relation(
    scene: SceneGraph, category: str, relation: str, anchor: SceneObject
) -> SceneObject | None:
    """Return the only object of a category in a relation; None if one of them is ambiguous."""
    candidates = [o for o in scene.objects if o.category == category and o.id != anchor.id]
    inside = [o for o in candidates if relation != 'next to' and in_relation(o, relation, anchor)]
    outside = [o for o in candidates if not on_side(o, relation, anchor)]
    if len(inside) != 1 or len(inside) + len(outside) != len(candidates):
        return None
    return inside[0]


def sample_relation(sampler: PhraseSampler) -> str:
    """Return a spatial relation; training samples "next to", the hardest, twice as often."""
    return sampler.choice(RELATIONS if sampler.held_out else (*RELATIONS, 'next to'))


def superlative_query(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for "the tallest thing", "the leftmost mug"."""
    word = sampler.choice(tuple(SUPERLATIVES))
    noun, objects = sampler.choice(_comparable_groups(scene))
    if noun == 'thing' and word in SAME_CATEGORY_SUPERLATIVES:
        return None
    target = find_superlative(objects, word)
    if target is None or target.area < MIN_VISIBLE_AREA:
        return None
    text = sampler.fill_template(NAME_TEMPLATES, f'the {word} {noun}')
    measurement = f'The {word} {noun} {position_text(target)}.'
    answer = f'{measurement} {identification(scene, [target])}, [SEG].'
    return mask_query('relations', text, [target], answer)


def _comparable_groups(scene: SceneGraph) -> list[tuple[str, tuple[SceneObject, ...]]]:
    """Return (noun, objects): all objects, and twice each category with more than one object."""
    groups = [('thing', scene.objects)]
    for category in sorted({o.category for o in scene.objects}):
        objects = tuple(o for o in scene.objects if o.category == category)
        if len(objects) > 1:
            groups += [(category, objects)] * 2
    return groups


def comparative_query(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for "the taller one of the milk and the bowl"."""
    if len(scene.visible) < 2:
        return None
    i, j = sampler.rng.choice(len(scene.visible), 2, replace=False)
    pair = [scene.visible[i], scene.visible[j]]
    word = sampler.choice(tuple(COMPARATIVES))
    if pair[0].category != pair[1].category and COMPARATIVES[word] in SAME_CATEGORY_SUPERLATIVES:
        return None
    target = find_superlative(pair, COMPARATIVES[word])
    if target is None:
        return None
    first, second = (scene.name(o) for o in pair)
    phrase = f'the {word} one of the {first} and the {second}'
    text = sampler.fill_template(NAME_TEMPLATES, phrase)
    first_value, second_value = (_MEASUREMENTS[word](o) for o in pair)
    measurements = f'The {first} {first_value}, the {second} {second_value}.'
    answer = f'{measurements} It is the {scene.name(target)}, [SEG].'
    measured = tuple(instance_ids([o]) for o in pair) if ' cm' in measurements else ()
    return mask_query('relations', text, [target], answer, measured_targets=measured)


# comparative -> the measurement of an object that the answer states
_MEASUREMENTS: dict[str, Callable[[SceneObject], str]] = {
    'taller': lambda o: f'{even_centimetres(o.height)} cm',
    'lower': lambda o: f'{even_centimetres(o.height)} cm',
    'bigger': lambda o: f'{even_centimetres(o.longest)} cm',
    'smaller': lambda o: f'{even_centimetres(o.longest)} cm',
    'nearer': position_text,
    'farther': position_text,
}


def absent_relation(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for an object next to an absent one, or on an empty side of a visible one."""
    relation = sampler.choice(_DIRECTIONS)
    if sampler.chance(0.5):
        category = sampler.choice(scene.absent_categories)
        text = sampler.fill_template(NAME_TEMPLATES, f'the thing {relation} the {category}')
        return text_query('relations', text, f'There is no {category} here.')
    anchor = sampler.choice([o for o in scene.visible if side_is_empty(scene, relation, o)])
    if anchor is None:
        return None
    name = scene.name(anchor)
    text = sampler.fill_template(NAME_TEMPLATES, f'the thing {relation} the {name}')
    return text_query('relations', text, f'There is nothing {relation} the {name}.')
