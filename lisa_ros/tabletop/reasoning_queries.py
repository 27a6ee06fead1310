# SPDX-License-Identifier: Apache-2.0
"""Queries that need reasoning: uses, general knowledge, and two steps.

Each function returns a query, or None if the random draw does not fit the scene.
"""

from __future__ import annotations

from lisa_ros.tabletop.answer_text import (
    accepted_identifications,
    accepted_name_lists,
    identification,
    join_names,
    list_left_to_right,
    position_text,
    relation_text,
)
from lisa_ros.tabletop.objects import ALTERNATIVES, OBJECT_CATEGORIES, ObjectCategory
from lisa_ros.tabletop.queries import TabletopQuery, mask_query, text_query
from lisa_ros.tabletop.relation_queries import sample_relation
from lisa_ros.tabletop.scene_graph import (
    MIN_VISIBLE_AREA,
    SAME_CATEGORY_SUPERLATIVES,
    SUPERLATIVES,
    SceneGraph,
    SceneObject,
    find_superlative,
    nearest_in_relation,
)
from lisa_ros.tabletop.templates import (
    NAME_TEMPLATES,
    NEED_TEMPLATES,
    QUESTION_TEMPLATES,
    RELATION_TEMPLATES,
    SUPERCATEGORY_PHRASES,
    PhraseSampler,
)


def use(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for an object by its use."""
    # held-out queries keep the share of the test set in the package
    if sampler.chance(0.2 if sampler.held_out else 0.5):
        return supercategory_use(sampler, scene, present)
    return need_query(sampler, scene, present, 'use')


def knowledge(sampler: PhraseSampler, scene: SceneGraph, present: bool) -> TabletopQuery | None:
    """Ask for an object by a fact of general knowledge."""
    return need_query(sampler, scene, present, 'knowledge')


def need_query(
    sampler: PhraseSampler, scene: SceneGraph, present: bool, query_category: str
) -> TabletopQuery | None:
    """Ask for a category by one of its uses or facts.

    Args:
        sampler: samples the phrases.
        scene: the objects of the view.
        present: whether to ask for a visible or for an absent category.
        query_category: "use" or "knowledge".
    """
    name = sampler.choice(scene.visible_categories if present else scene.absent_categories)
    if name is None:
        return None
    category = OBJECT_CATEGORIES[name]
    phrase = sampler.choice(category.uses if query_category == 'use' else category.facts)
    if any(scene.contains(other) for other in ALTERNATIVES.get(phrase, ())):
        return None
    templates = QUESTION_TEMPLATES if phrase.startswith('what') else NEED_TEMPLATES
    text = sampler.fill_template(templates, phrase)
    reason = reason_text(category)
    if not present:
        answer = f'{reason}, but there is no {category.name} here.'
        return text_query(query_category, text, answer)
    return mask_query(
        query_category,
        text,
        scene.of_category(category.name),
        f'{reason}, [SEG].',
        expected_phrases=((reason,),),
    )


def reason_text(category: ObjectCategory) -> str:
    """Return "The pan fries food", without a full stop."""
    return f'The {category.name} {category.purpose}'


def supercategory_use(
    sampler: PhraseSampler, scene: SceneGraph, present: bool
) -> TabletopQuery | None:
    """Ask with "I am thirsty" for all drinks, at most three."""
    supercategory = sampler.choice(tuple(SUPERCATEGORY_PHRASES))
    objects = [o for o in scene.objects if o.supercategory == supercategory]
    hidden = any(o.area < MIN_VISIBLE_AREA for o in objects)
    if bool(objects) != present or hidden or len(objects) > 3:
        return None
    phrases = SUPERCATEGORY_PHRASES[supercategory]
    text = sampler.fill_template(phrases.templates, training_only=phrases.training_only)
    if not objects:
        return text_query('use', text, 'There is nothing like that here.')
    listed_names = list_left_to_right(objects, scene.name_with_colour)
    predicate = f'is {phrases.singular}' if len(listed_names) == 1 else f'are {phrases.plural}'

    def statement(names: str) -> str:
        return f'{names[0].upper()}{names[1:]} {predicate}'

    answer = f'{statement(join_names(listed.name for listed in listed_names))}, [SEG].'
    return mask_query(
        'use',
        text,
        objects,
        answer,
        expected_phrases=(tuple(map(statement, accepted_name_lists(scene, objects))),),
        listed_names=listed_names,
    )


def two_step(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for a visible object in relation to one that must be inferred first, or the like."""
    anchor = sampler.choice([o for o in scene.visible if len(scene.of_category(o.category)) == 1])
    # superlatives of a supercategory are mostly ambiguous: training tries them more often
    more = () if sampler.held_out else ('superlative', 'superlative')
    step = sampler.choice(('relation', 'relation', 'superlative', 'colour', *more))
    if step == 'relation':
        return anchor and _relation_to_inferred(sampler, scene, anchor)
    if step == 'superlative':
        return _superlative_of_supercategory(sampler, scene)
    return _coloured_use(sampler, scene)


def _relation_to_inferred(
    sampler: PhraseSampler, scene: SceneGraph, anchor: SceneObject
) -> TabletopQuery | None:
    """Ask for "the drink next to the thing that can be read"."""
    relation = sample_relation(sampler)
    target = nearest_in_relation(scene.objects, relation, anchor)
    if target is None or target.area < MIN_VISIBLE_AREA:
        return None
    category = OBJECT_CATEGORIES[anchor.category]
    use_supercategory = target.supercategory and sampler.chance(0.3)
    noun = target.supercategory if use_supercategory else 'thing'
    text = sampler.fill_template(
        NAME_TEMPLATES, f'the {noun} {relation} the thing that {category.purpose}'
    )
    if sampler.chance(0.4):
        phrase = sampler.choice([n for n in category.needs if n.startswith('something')])
        text = sampler.fill_template(RELATION_TEMPLATES[relation], phrase)
    reason = reason_text(category)
    measurement = relation_text(category.name, anchor, relation, target)
    answer = f'{reason}. {measurement} {identification(scene, [target])}, [SEG].'
    expected = (reason,), accepted_identifications(scene, target)
    return mask_query('two_step', text, [target], answer, expected_phrases=expected)


def _superlative_of_supercategory(
    sampler: PhraseSampler, scene: SceneGraph
) -> TabletopQuery | None:
    """Ask for "the tallest drink"."""
    word = sampler.choice([w for w in SUPERLATIVES if w not in SAME_CATEGORY_SUPERLATIVES])
    supercategory = sampler.choice(tuple(SUPERCATEGORY_PHRASES))
    target = find_superlative([o for o in scene.objects if o.supercategory == supercategory], word)
    if target is None or target.area < MIN_VISIBLE_AREA:
        return None
    text = sampler.fill_template(NAME_TEMPLATES, f'the {word} {supercategory}')
    measurement = f'The {word} {supercategory} {position_text(target)}.'
    answer = f'{measurement} {identification(scene, [target])}, [SEG].'
    expected = (accepted_identifications(scene, target),)
    return mask_query('two_step', text, [target], answer, expected_phrases=expected)


def _coloured_use(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask for "something red to drink from", if there are mugs of several looks."""
    target = sampler.choice(
        [o for o in scene.visible if o.colour and len(scene.of_category(o.category)) > 1]
    )
    if target is None:
        return None
    objects = [o for o in scene.of_category(target.category) if o.colour == target.colour]
    category = OBJECT_CATEGORIES[target.category]
    phrase = sampler.choice([u for u in category.uses if u.startswith('something')])
    text = sampler.fill_template(
        NEED_TEMPLATES, phrase.replace('something', f'something {target.colour}', 1)
    )
    reason = f'The {target.colour} {category.name} {category.purpose}'
    return mask_query(
        'two_step', text, objects, f'{reason}, [SEG].', expected_phrases=((reason,),)
    )
