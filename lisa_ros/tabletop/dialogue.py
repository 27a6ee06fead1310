# SPDX-License-Identifier: Apache-2.0
"""Random dialogues: follow-up turns that refer to earlier ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lisa_ros.results import SEG, Turn
from lisa_ros.tabletop.answer_text import identification, position_text, relation_text
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.queries import TabletopQuery, mask_query, text_query
from lisa_ros.tabletop.reasoning_queries import reason_text
from lisa_ros.tabletop.relation_queries import sample_relation
from lisa_ros.tabletop.scene_graph import (
    COMPARATIVES,
    MIN_VISIBLE_AREA,
    SceneGraph,
    SceneObject,
    find_superlative,
    nearest_in_relation,
)
from lisa_ros.tabletop.single_turn import sample_single_turn
from lisa_ros.tabletop.templates import (
    COLOUR_TEMPLATES,
    FOLLOW_UP_TEMPLATES,
    OTHER_ONE_TEMPLATES,
    PURPOSE_TEMPLATES,
    RELATION_TEMPLATES,
    WHICH_ONE_TEMPLATES,
    PhraseSampler,
)

_FOLLOW_UP_RATE = 0.75  # the other later turns are queries that could stand alone


def dialogue(sampler: PhraseSampler, scene: SceneGraph, turn_count: int) -> TabletopQuery:
    """Return a dialogue of `turn_count` turns.

    A later turn refers to earlier ones, or starts a new topic without saying so, as people do.
    """
    conversation = sample_single_turn(sampler, scene)
    for _ in range(turn_count - 1):
        turn = follow_up(sampler, scene, conversation) if sampler.chance(_FOLLOW_UP_RATE) else None
        conversation = _append(conversation, turn or sample_single_turn(sampler, scene))
    return conversation


def _append(conversation: TabletopQuery, turn: TabletopQuery) -> TabletopQuery:
    """Return the dialogue with one more turn."""
    return TabletopQuery(
        'dialogue',
        conversation.turns + turn.turns,
        conversation.targets + turn.targets,
        conversation.measured_targets + turn.measured_targets,
        conversation.listed_names
        + tuple(
            dataclasses.replace(listed, turn=listed.turn + len(conversation.turns))
            for listed in turn.listed_names
        ),
        referents=turn.referents,
        expected_phrases=turn.expected_phrases,
        first_target=len(conversation.targets),
    )


def follow_up(
    sampler: PhraseSampler, scene: SceneGraph, conversation: TabletopQuery
) -> TabletopQuery | None:
    """Return a turn that depends on the dialogue so far; None if none fits."""
    # Options that occur several times are drawn more often.
    options: list[Callable[[], TabletopQuery | None]] = []
    if (
        SEG in conversation.turns[-1].answer_raw
    ):  # after "what colour is ...?" it would ask for a colour
        options.append(lambda: _next_name(sampler, scene))
    if conversation.referents:
        same_category = scene.of_category(conversation.referents[0].category)
        is_one_category = len({o.category for o in conversation.referents}) == 1
        if is_one_category and 'use' not in sampler.excluded:
            options.append(lambda: _purpose(sampler, conversation.referents))
        if len(conversation.referents) == 1:
            options += _options_about_one(sampler, scene, conversation)
        elif len(conversation.referents) == len(same_category) > 1:
            options += [lambda: _which_one(sampler, scene, same_category)] * 5
    option = sampler.choice(options)
    return option and option()


def _options_about_one(
    sampler: PhraseSampler, scene: SceneGraph, conversation: TabletopQuery
) -> list[Callable[[], TabletopQuery | None]]:
    """Return the follow-ups after a turn about a single object."""
    last, (referent,) = conversation.turns[-1], conversation.referents
    options: list[Callable[[], TabletopQuery | None]] = []
    options += [lambda: _relation_to_it(sampler, scene, referent)] * 2
    others = [o for o in scene.of_category(referent.category) if o.id != referent.id]
    # after a comparison "the other one" is the object that it was compared with
    is_comparison = ' one of ' in last.query
    is_named = referent.category in last.query or referent.category in last.answer_raw
    if len(others) == 1 and is_named and not is_comparison:
        options += [lambda: _other_one(sampler, scene, others[0])] * 4
    # not in held-out dialogues, which stay as they were drawn for the test set in the package
    if not sampler.held_out and _is_named_and_only_one(scene, referent, last):
        count = int(sampler.chance(0.4)) if SEG in last.answer_raw else 3
        options += [lambda: _no_other_one(sampler, referent)] * count
    if referent.colour and not last.answer_raw.endswith(f'{referent.colour}.'):
        options.append(lambda: _colour_of_it(sampler, referent))
    return options


def _is_named_and_only_one(scene: SceneGraph, referent: SceneObject, last: Turn) -> bool:
    """Return whether the last turn named the object's category and the scene has no other one."""
    text = last.query if SEG in last.answer_raw else last.query + last.answer_raw
    category = referent.category
    is_named = category in text and f' of the {category}' not in text and ' one of ' not in text
    return is_named and sum(o.category == category for o in scene.objects) == 1


def _next_name(sampler: PhraseSampler, scene: SceneGraph) -> TabletopQuery | None:
    """Ask "and the bowl?"."""
    if sampler.chance(0.4):
        category = sampler.choice(scene.absent_categories)
        query = sampler.fill_template(FOLLOW_UP_TEMPLATES, f'the {category}')
        return text_query('dialogue', query, f'There is no {category} here.')
    target = sampler.choice(scene.visible)
    if target is None:
        return None
    query = sampler.fill_template(FOLLOW_UP_TEMPLATES, f'the {scene.name(target)}')
    return mask_query('dialogue', query, [target], 'Sure, [SEG].')


def _purpose(sampler: PhraseSampler, referents: tuple[SceneObject, ...]) -> TabletopQuery:
    """Ask "what is it for?"."""
    reason = reason_text(OBJECT_CATEGORIES[referents[0].category])
    turn = Turn(sampler.fill_template(PURPOSE_TEMPLATES), f'{reason}.')
    return TabletopQuery(
        'dialogue', (turn,), (), referents=referents, expected_phrases=((reason,),)
    )


def _relation_to_it(
    sampler: PhraseSampler, scene: SceneGraph, referent: SceneObject
) -> TabletopQuery | None:
    """Ask "what is left of it?"."""
    relation = sample_relation(sampler)
    target = nearest_in_relation(scene.objects, relation, referent)
    if target is None or target.area < MIN_VISIBLE_AREA:
        return None
    measurement = relation_text(scene.name(referent), referent, relation, target)
    answer = f'{measurement} {identification(scene, [target])}, [SEG].'
    query = sampler.fill_template(RELATION_TEMPLATES[relation], 'it')
    return mask_query('dialogue', query, [target], answer)


def _other_one(sampler: PhraseSampler, scene: SceneGraph, target: SceneObject) -> TabletopQuery:
    """Ask "no, the other one"."""
    return _adjective_query(scene, sampler.fill_template(OTHER_ONE_TEMPLATES), 'other', target)


def _no_other_one(sampler: PhraseSampler, referent: SceneObject) -> TabletopQuery:
    """Ask "the other one" where the category has only one object."""
    query = sampler.fill_template(OTHER_ONE_TEMPLATES)
    return text_query('dialogue', query, f'There is no other {referent.category} here.')


def _colour_of_it(sampler: PhraseSampler, referent: SceneObject) -> TabletopQuery:
    """Ask "what colour is it?"."""
    turn = Turn(sampler.fill_template(COLOUR_TEMPLATES, 'it'), f'It is {referent.colour}.')
    return TabletopQuery('dialogue', (turn,), (), referents=(referent,))


def _which_one(
    sampler: PhraseSampler, scene: SceneGraph, same_category: tuple[SceneObject, ...]
) -> TabletopQuery | None:
    """Answer "Which one?" with "the red one" or "the smaller one"."""
    word = sampler.choice((*COMPARATIVES, *COLOURS, *COLOURS))
    if word in COLOURS:
        matches = [o for o in same_category if o.colour == word]
        target = matches[0] if len(matches) == 1 else None
    else:
        target = find_superlative(same_category, COMPARATIVES[word])
    if target is None:
        return None
    return _adjective_query(scene, sampler.fill_template(WHICH_ONE_TEMPLATES, word), word, target)


def _adjective_query(
    scene: SceneGraph, query: str, adjective: str, target: SceneObject
) -> TabletopQuery:
    """Return a query for "the <adjective> one"."""
    measurement = f'The {adjective} one {position_text(target)}.'
    answer = f'{measurement} {identification(scene, [target])}, [SEG].'
    return mask_query('dialogue', query, [target], answer)
