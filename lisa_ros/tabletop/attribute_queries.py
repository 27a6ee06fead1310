# SPDX-License-Identifier: Apache-2.0
"""Queries by name, colour, size, material or part, and for several objects.

Each function returns a query, or None if the random draw does not fit the scene. `present` selects
whether the query asks for visible or for absent objects.
"""

from __future__ import annotations

from lisa_ros.english import plural
from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import COUNT_WORDS, identification, join_words
from lisa_ros.tabletop.objects import COLOURS, OBJECTS, PART_FLAG, SIZES
from lisa_ros.tabletop.queries import TabletopQuery, mask_query, text_query
from lisa_ros.tabletop.scene_graph import (
    MIN_VISIBLE_AREA,
    SceneGraph,
    SceneObject,
    instance_ids,
    matches_phrase,
)
from lisa_ros.tabletop.templates import NAME_TEMPLATES, PhraseSampler

COLOURED_CATEGORIES = sorted({model.category for model in OBJECTS.values() if model.colours})
_MATERIALS = sorted({model.material for model in OBJECTS.values() if model.material})
# Categories of unknown material that look as if they could be of this one.
_MAYBE_OF_MATERIAL = {
    'glass': ('ketchup', 'barbecue sauce', 'salad dressing', 'water bottle'),
    'wood': ('toy brick',),
    'cardboard': ('book',),
}
_WITHOUT_HANDLE = ('bowl', 'plate', 'ramekin', 'book', 'sponge', 'candle')


def explicit(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a category by name."""
    if not present:
        category = sampler.choice(scene.absent_categories)
        text = sampler.fill_template(NAME_TEMPLATES, f'the {category}')
        return text_query('explicit', text, f'There is no {category} here.')
    category = sampler.choice(scene.visible_categories)
    if category is None:
        return None
    objects = scene.of_category(category)
    text = sampler.fill_template(NAME_TEMPLATES, f'the {category}')
    if len(objects) == 1:
        return mask_query('explicit', text, objects, 'Sure, [SEG].')
    count = COUNT_WORDS[len(objects)]
    return mask_query('explicit', text, objects, f'I see {count}, [SEG]. Which one?')


def attributes(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for objects by colour, size or material."""
    if sampler.chance(0.6):
        return name_with_attributes(sampler, scene, present)
    if sampler.chance(0.5):
        return by_material(sampler, scene, present)
    return by_colour(sampler, scene, present)


def name_with_attributes(
    sampler: PhraseSampler, scene: SceneGraph, present: bool
) -> TabletopQuery | None:
    """Ask for "the red mug", "the small mug"."""
    if not present:
        return _absent_colour(sampler, scene)
    target = sampler.choice([o for o in scene.visible if o.colour or o.size])
    if target is None:
        return None
    name = sampler.choice(
        [
            f'{adjectives} {target.category}'
            for adjectives in (target.colour, target.size, f'{target.size} {target.colour}')
            if adjectives and 'None' not in adjectives
        ]
    )
    is_only_one = len(scene.of_category(target.category)) == 1
    if name.startswith(tuple(SIZES)) and is_only_one and sampler.chance(0.8):
        return None  # people seldom say "big" or "small" without a second object to compare
    objects = [o for o in scene.visible if matches_phrase(o, name)]
    text = sampler.fill_template(NAME_TEMPLATES, f'the {name}')
    return mask_query('attributes', text, objects, 'Sure, [SEG].')


def _absent_colour(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for a category in a colour that it does not have here."""
    # About half of these categories are present in another colour.
    candidates = [o.category for o in scene.objects if o.colour]
    use_candidate = candidates and sampler.chance(0.6)
    category = sampler.choice(candidates if use_candidate else COLOURED_CATEGORIES)
    present_colours = {o.colour for o in scene.objects if o.category == category}
    colours = [colour for colour in COLOURS if colour not in present_colours]
    if not colours:
        return None
    name = f'{sampler.choice(colours)} {category}'
    text = sampler.fill_template(NAME_TEMPLATES, f'the {name}')
    return text_query('attributes', text, f'There is no {name} here.')


def by_colour(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for "the red thing", if no other object is partly red."""
    unambiguous = []
    for colour in COLOURS:
        if any(colour in OBJECTS[o.model].partial_colours for o in scene.objects):
            continue
        objects = [o for o in scene.objects if o.apparent_colour == colour]
        if bool(objects) == present and all(o.area >= MIN_VISIBLE_AREA for o in objects):
            unambiguous.append((colour, objects))
    if not unambiguous:
        return None
    colour, objects = sampler.choice(unambiguous)
    noun = 'thing' if len(objects) < 2 else 'things'
    text = sampler.fill_template(NAME_TEMPLATES, f'the {colour} {noun}')
    if not objects:
        return text_query('attributes', text, f'There is nothing {colour} here.')
    return mask_query('attributes', text, objects, f'{identification(scene, objects)}, [SEG].')


def by_material(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for "the metal thing"."""
    by_material: dict[str, list[SceneObject]] = {name: [] for name in _MATERIALS}
    for obj in scene.objects:
        if OBJECTS[obj.model].material:
            by_material[OBJECTS[obj.model].material].append(obj)
    unambiguous = [
        (name, objects)
        for name, objects in by_material.items()
        if not any(scene.contains(category) for category in _MAYBE_OF_MATERIAL.get(name, ()))
        and bool(objects) == present
        and len(objects) <= 3
        and all(o.area >= MIN_VISIBLE_AREA for o in objects)
    ]
    if not unambiguous:
        return None
    name, objects = sampler.choice(unambiguous)
    noun = 'thing' if len(objects) < 2 else 'things'
    phrase = sampler.choice((f'the {name} {noun}', f'the {noun} made of {name}'))
    text = sampler.fill_template(NAME_TEMPLATES, phrase)
    if not objects:
        return text_query('attributes', text, f'There is nothing made of {name} here.')
    return mask_query('attributes', text, objects, f'{identification(scene, objects)}, [SEG].')


def part(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for a handle or a cork."""
    if not present:
        without_handle = [
            o
            for o in scene.visible
            if o.category in _WITHOUT_HANDLE or o.supercategory in ('food', 'drink', 'toy')
        ]
        owner = sampler.choice(
            [o for o in without_handle if not o.part and len(scene.of_category(o.category)) == 1]
        )
        if owner is None:
            return None
        text = sampler.fill_template(NAME_TEMPLATES, f'the handle of the {owner.category}')
        return text_query('part', text, f'The {owner.category} has no handle.')
    owner = sampler.choice([o for o in scene.visible if o.part_area >= MIN_VISIBLE_AREA // 2])
    if owner is None:
        return None
    text = sampler.fill_template(NAME_TEMPLATES, f'the {owner.part} of the {scene.name(owner)}')
    turn = Turn(text, 'Sure, [SEG].')
    return TabletopQuery('part', (turn,), ((owner.id + PART_FLAG,),), referents=(owner,))


def several(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for all objects of a category, or for two or three names of which some can be absent."""
    if sampler.chance(0.4):
        return _all_of_category(sampler, scene)
    targets: list[tuple[str, tuple[SceneObject, ...]]] = []  # (name, its object or nothing)
    for _ in range(2 + int(sampler.chance(0.3))):
        target = sampler.choice(scene.visible)
        if target is not None and sampler.chance(0.85):
            targets.append((scene.name(target), (target,)))
        else:
            targets.append((sampler.choice(scene.absent_categories), ()))
    if len({name for name, _ in targets}) < len(targets):
        return None
    text = sampler.fill_template(NAME_TEMPLATES, join_words([f'the {n}' for n, _ in targets]))
    masks = tuple(instance_ids(objects) for _, objects in targets if objects)
    sentences = [f'Sure, {join_words(["[SEG]"] * len(masks))}.'] if masks else []
    sentences += [f'There is no {name} here.' for name, objects in targets if not objects]
    return TabletopQuery('several', (Turn(text, ' '.join(sentences)),), masks)


def _all_of_category(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for "all the mugs", if there are at least two."""
    category = sampler.choice(
        [c for c in scene.visible_categories if len(scene.of_category(c)) > 1]
    )
    if category is None:
        return None
    phrase = sampler.choice((f'all the {plural(category)}', f'the {plural(category)}'))
    text = sampler.fill_template(NAME_TEMPLATES, phrase)
    return mask_query('several', text, scene.of_category(category), 'Sure, [SEG].')
