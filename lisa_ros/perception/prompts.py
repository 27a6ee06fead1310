# SPDX-License-Identifier: Apache-2.0
"""A command becomes a prompt's token ids; the model's answer becomes words for people.

The templates are those of dvlab-research/LISA (model/llava/conversation.py); the ids equal the
original's (test/test_prompts.py). What a user types is text: "[SEG]" or "</s>" in a command are
letters, unless `typed_specials` asks for the original's behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lisa_ros.errors import QueryError, SettingsError
from lisa_ros.model.lisa import IGNORED, IMAGE_TOKEN
from lisa_ros.model.tokenizer import Special, Tokenizer
from lisa_ros.results import SEG, Dialogue, Turn

IMAGE_PLACEHOLDER = '<image>'  # how the original writes the picture's place


@dataclass(frozen=True)
class Template:
    """How a dialogue is written. `{}` is where a question stands, picture included."""

    opening: str  # in front of the first question, in its instruction
    question: str  # up to where the answer begins; the answer follows after a space
    after_answer: str  # between the answer and </s>
    bos_each_turn: bool  # later turns begin with <s>, too


TEMPLATES = {
    'llava_v1': Template(
        opening='A chat between a curious human and an artificial intelligence assistant. '
        "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
        question='USER: {} ASSISTANT:',
        after_answer='',
        bos_each_turn=False,
    ),
    'llava_llama_2': Template(
        opening='<<SYS>>\nYou are a helpful language and vision assistant. You are able to '
        'understand the visual content that the user provides, and assist the user with a '
        'variety of tasks using natural language.\n<</SYS>>\n\n',
        question='[INST] {} [/INST]',
        after_answer=' ',
        bos_each_turn=True,
    ),
    # ours: no sentence about the assistant, for a small model that has nothing to learn from it
    'plain': Template(
        opening='', question='USER: {} ASSISTANT:', after_answer='', bos_each_turn=False
    ),
}


def prompt_ids(
    tokenizer: Tokenizer,
    template: str,
    text: str,
    dialogue: Dialogue | None = None,
    typed_specials: bool = False,
    max_length: int | None = None,
) -> list[int]:
    """Return the ids of a command after the dialogue so far, <s> first, ready to be answered.

    Args:
        tokenizer: the checkpoint's.
        template: a name in TEMPLATES.
        text: the command, as typed.
        dialogue: earlier turns; the oldest are left out, whole, where they do not fit. The picture
            stands in the first question that is kept.
        typed_specials: tokens written out in questions ("[SEG]") are those tokens.
        max_length: longest prompt [ids, the picture's place counting one]; no limit if None.

    Returns:
        The ids, with IMAGE_TOKEN exactly once.

    Raises:
        QueryError: the command is empty, too long by itself, or has a picture's place of its own.
        SettingsError: there is no such template.
    """
    if not text.strip():
        raise QueryError('the command is empty: say what to look for, as in "segment the red mug"')
    turns = [*(dialogue.turns if dialogue else ()), Turn(text, '')]
    for oldest in range(len(turns)):
        parts = _parts(tokenizer, template, turns[oldest:], typed_specials, answered=False)
        ids = _ids(tokenizer, parts)
        if max_length is None or len(ids) <= max_length:
            return ids
    raise QueryError(
        f'the command makes a prompt of {len(ids)} tokens, at most {max_length} fit into this '
        'model: shorten the command'
    )


def append_boxes(dialogue: Dialogue) -> Dialogue:
    """Return the dialogue with the place of each [SEG] of its answers in words behind it.

    "[SEG] (12, 40, 30, 66)": left, top, right and bottom in hundredths of the picture. Answers of
    which a mask was left out stay as they are.
    """
    turns = []
    for turn in dialogue.turns:
        before, *rest = turn.answer_raw.split(SEG)
        if len(rest) == len(turn.boxes):
            told = (f'{SEG} {box}{words}' for box, words in zip(turn.boxes, rest, strict=True))
            turn = replace(turn, answer_raw=before + ''.join(told))  # noqa: PLW2901
        turns.append(turn)
    return replace(dialogue, turns=tuple(turns))


def training_ids(
    tokenizer: Tokenizer,
    template: str,
    turns: Sequence[Turn],
    typed_specials: bool = False,
    max_length: int | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of a finished dialogue and what of it is to be learnt.

    Args:
        tokenizer: the checkpoint's.
        template: a name in TEMPLATES.
        turns: questions with answers ([SEG] written out in the answers), at least one.
        typed_specials: tokens written out in questions are those tokens, too.
        max_length: longer dialogues are cut there, as the original does.

    Returns:
        Two lists of equal length: input ids, and labels: the answers with their </s>, IGNORED
        elsewhere.

    Raises:
        QueryError: a question is empty or has a picture's place of its own.
        SettingsError: there is no such template.
    """
    if not turns or not all(turn.query.strip() for turn in turns):
        raise QueryError('a dialogue to learn from needs at least one question, and none empty')

    def ids_of(count: int, answered: bool) -> list[int]:
        parts = _parts(tokenizer, template, turns[:count], typed_specials, answered)
        return _ids(tokenizer, parts)

    ids = ids_of(len(turns), answered=True)
    labels = [IGNORED] * len(ids)
    for count in range(1, len(turns) + 1):
        start, end = len(ids_of(count, answered=False)), len(ids_of(count, answered=True))
        labels[start:end] = ids[start:end]
    return ids[:max_length], labels[:max_length]


def _parts(
    tokenizer: Tokenizer,
    template: str,
    turns: Sequence[Turn],
    typed_specials: bool,
    answered: bool,
) -> list[str | Special]:
    """Return the dialogue as text and tokens; the last turn without answer if not `answered`."""
    if template not in TEMPLATES:
        raise SettingsError(f'no template {template!r}: it is one of {", ".join(TEMPLATES)}')
    form = TEMPLATES[template]
    before, after = form.question.split('{}')
    parts: list[str | Special] = []
    for index, turn in enumerate(turns):
        if index > 0 and form.bos_each_turn:
            parts.append(Special(tokenizer.bos_token))
        if index > 0 or form.bos_each_turn:  # [INST] comes before the opening, USER: after it
            parts.append(before)
        if index == 0:
            parts.append(form.opening)
            if not form.bos_each_turn:
                parts.append(before)
            parts += [*_picture(tokenizer), '\n']
        if typed_specials and IMAGE_PLACEHOLDER in turn.query:
            raise QueryError(
                f'the command has {IMAGE_PLACEHOLDER} in it, but the picture is put into the '
                f'prompt by itself: leave {IMAGE_PLACEHOLDER} out'
            )
        parts += tokenizer.split(turn.query) if typed_specials else [turn.query]
        parts.append(after)
        if answered or index + 1 < len(turns):
            parts += [' ', *tokenizer.split(turn.answer_raw.strip()), form.after_answer]
            parts.append(Special(tokenizer.eos_token))
    return parts


def _picture(tokenizer: Tokenizer) -> list[Special]:
    """Return the picture's place, between its marks if the checkpoint was trained with them."""
    marks = [mark for mark in ('<im_start>', '<im_end>') if mark in tokenizer]
    if len(marks) < 2:
        return [Special(IMAGE_PLACEHOLDER)]
    return [Special(marks[0]), Special(IMAGE_PLACEHOLDER), Special(marks[1])]


def _ids(tokenizer: Tokenizer, parts: list[str | Special]) -> list[int]:
    place = parts.index(Special(IMAGE_PLACEHOLDER))  # a typed one is text, or was refused
    before, after = parts[:place], parts[place + 1 :]
    return [
        tokenizer.bos_token_id,
        *tokenizer.encode_parts(before),
        IMAGE_TOKEN,
        *tokenizer.encode_parts(after),
    ]


_ANOTHER = re.compile(
    r'\b(an)?others?\b(?! (side|end|half|hand|way)\b)|\b(something|anything|what|which) else\b'
)


def asks_for_other_object(query: str) -> bool:
    """Return whether a question is about something else than what was shown before."""
    return _ANOTHER.search(query.lower()) is not None
