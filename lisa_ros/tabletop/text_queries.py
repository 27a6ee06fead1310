# SPDX-License-Identifier: Apache-2.0
"""Questions that are answered with text, without a mask."""

from __future__ import annotations

from lisa_ros.english import plural
from lisa_ros.results import Turn
from lisa_ros.tabletop.answer_text import COUNT_WORDS, join_names, list_left_to_right
from lisa_ros.tabletop.attribute_queries import COLOURED_CATEGORIES
from lisa_ros.tabletop.objects import OBJECT_CATEGORIES
from lisa_ros.tabletop.queries import TabletopQuery, text_query
from lisa_ros.tabletop.reasoning_queries import reason_text
from lisa_ros.tabletop.scene_graph import MIN_VISIBLE_AREA, SceneGraph
from lisa_ros.tabletop.templates import (
    COLOUR_TEMPLATES,
    COUNT_TEMPLATES,
    GENERAL_KNOWLEDGE_TEMPLATES,
    LIST_TEMPLATES,
    PRESENCE_TEMPLATES,
    PhraseSampler,
)


def question(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery:
    """Ask what is on the table, for a count, a colour, or whether an object is present."""
    topic = sampler.choice(('list', 'list', 'count', 'colour', 'presence'))
    query = None
    if topic == 'count':
        query = _count(sampler, scene)
    elif topic == 'colour':
        query = _colour(sampler, scene)
    elif topic == 'presence':
        query = _presence(sampler, scene)
    return query or _list(sampler, scene)


def _count(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask "how many mugs?", if none is hidden."""
    category = sampler.choice(COLOURED_CATEGORIES)
    if any(o.area < MIN_VISIBLE_AREA for o in scene.objects if o.category == category):
        return None
    count = len(scene.of_category(category))
    verb, noun = ('is', category) if count == 1 else ('are', plural(category))
    query = sampler.fill_template(COUNT_TEMPLATES, plural(category))
    return text_query('question', query, f'There {verb} {COUNT_WORDS[count]} {noun} here.')


def _colour(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask "what colour is the mug?", if there is only one."""
    target = sampler.choice(
        [o for o in scene.visible if o.colour and len(scene.of_category(o.category)) == 1]
    )
    if target is None:
        return None
    query = sampler.fill_template(COLOUR_TEMPLATES, f'the {target.category}')
    turn = Turn(query, f'The {target.category} is {target.colour}.')
    return TabletopQuery('question', (turn,), (), referents=(target,))


def _presence(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery:
    """Ask "is there a mug?"."""
    visible = sampler.choice(scene.visible_categories if sampler.chance(0.5) else [])
    absent = sampler.choice(scene.absent_categories)
    query = sampler.fill_template(PRESENCE_TEMPLATES, f'a {visible or absent}')
    return text_query('question', query, 'Yes.' if visible else f'There is no {absent} here.')


def _list(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery:
    """Ask "what is on the table?"."""
    listed_names = list_left_to_right(scene.visible, lambda o: o.category)
    names = join_names(listed.name for listed in listed_names) if listed_names else 'nothing'
    turn = Turn(sampler.fill_template(LIST_TEMPLATES), f'I see {names}.')
    return TabletopQuery('question', (turn,), (), listed_names=listed_names)


def general_knowledge(sampler: PhraseSampler) -> TabletopQuery:
    """Ask which category has a use or a fact; the answer does not depend on a scene.

    A large language model knows this from its pre-training; lisa-tabletop learns it here.
    """
    category = OBJECT_CATEGORIES[sampler.choice(tuple(OBJECT_CATEGORIES))]
    query = sampler.fill_template(GENERAL_KNOWLEDGE_TEMPLATES, sampler.choice(category.needs))
    return text_query('general_knowledge', query, f'{reason_text(category)}.')
