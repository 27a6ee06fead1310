# SPDX-License-Identifier: Apache-2.0
"""Turn a query and its dialogue into the token ids of a prompt.

The templates are those of dvlab-research/LISA (model/llava/conversation.py); the ids equal those
of the originals (test/test_prompts.py, test/test_family_parity.py). "[SEG]" or "</s>" typed in a
query is plain text; with `typed_specials` it is the special token, as in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lisa_ros.error_text import short_repr
from lisa_ros.errors import QueryError, SettingsError
from lisa_ros.files.text import is_encodable
from lisa_ros.model.packing import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from lisa_ros.model.tokenizer import SpecialToken, Tokenizer
from lisa_ros.perception.backend import check_query
from lisa_ros.perception.yes_no import YesNoWords
from lisa_ros.results import SEG, Dialogue, Turn

IMAGE_PLACEHOLDER = '<image>'  # how the original writes the image's position in a prompt


_YES_NO = YesNoWords()


@dataclass(frozen=True)
class Template:
    """Text around the queries and answers. `{}`: a query; the first also has the image."""

    opening: str  # before the first query
    question: str  # ends where the answer begins; the answer follows after a space
    after_answer: str  # between the answer and </s>
    bos_each_turn: bool  # later turns begin with <s>, too
    yes_no: YesNoWords = _YES_NO  # of models that are trained with it


TEMPLATES = {
    'llava_v1': Template(
        opening='A chat between a curious human and an artificial intelligence assistant. '
        "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
        question='USER: {} ASSISTANT:',
        after_answer='',
        bos_each_turn=False,
    ),
    'vicuna_v1': Template(  # of SESAME and READ
        opening='A chat between a curious user and an artificial intelligence assistant. '
        "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
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
    # for lisa-tabletop: no system message, because a small model learns nothing from it
    'plain': Template(
        opening='',
        question='USER: {} ASSISTANT:',
        after_answer='',
        bos_each_turn=False,
        # trained with "is there a mug?": "Yes." or "There is no mug here."
        yes_no=YesNoWords(('Yes',), ('No', 'There is no'), request=''),
    ),
}
# LISA's replies without reasons, from utils/utils.py of dvlab-research/LISA.
ANSWER_TEMPLATES = (
    'It is [SEG].',
    'Sure, [SEG].',
    'Sure, it is [SEG].',
    'Sure, the segmentation result is [SEG].',
    '[SEG].',
)


def named_template(name: str) -> Template:
    """Return the template of a name.

    Raises:
        SettingsError: there is no such template.
    """
    if name not in TEMPLATES:
        raise SettingsError(f'no template {name!r}: use one of {", ".join(TEMPLATES)}')
    return TEMPLATES[name]


def prompt_ids(
    tokenizer: Tokenizer,
    template: str,
    text: str,
    dialogue: Dialogue | None = None,
    typed_specials: bool = False,
    max_length: int | None = None,
) -> list[int]:
    """Return the ids of a query after its dialogue, <s> first, up to where the answer begins.

    Args:
        tokenizer: the checkpoint's.
        template: a name in TEMPLATES.
        text: the query, as typed.
        dialogue: earlier turns; the oldest whole turns are dropped until the prompt fits. The
            image is in the first query that is kept.
        typed_specials: read "[SEG]" and the like typed in queries as special tokens, not as text.
        max_length: longest prompt [ids; the image counts as one]; None: no limit.

    Returns:
        The ids, with IMAGE_TOKEN_INDEX exactly once.

    Raises:
        QueryError: the query is empty, too long by itself, or contains IMAGE_PLACEHOLDER as a
            special token.
        SettingsError: there is no such template.
    """
    check_query(text)
    turns = [*(dialogue.turns if dialogue else ()), Turn(text, '')]
    _check_characters(turns)
    for oldest in range(len(turns)):
        parts = _parts(tokenizer, template, turns[oldest:], typed_specials, answered=False)
        ids = _ids(tokenizer, parts)
        if max_length is None or len(ids) <= max_length:
            return ids
    raise QueryError(
        f'the query makes a prompt of {len(ids)} tokens, at most {max_length} fit into this '
        'model: shorten the query'
    )


def answer_ids(tokenizer: Tokenizer, template: str, beginning: str) -> list[int]:
    """Return the ids of the beginning of an answer, as they follow the prompt.

    Args:
        tokenizer: the checkpoint's.
        template: a name in TEMPLATES.
        beginning: whole words, such as "Yes".
    """
    before = named_template(template).question.split('{}')[1].lstrip()
    return tokenizer.encode(f'{before} {beginning}')[len(tokenizer.encode(before)) :]


def append_boxes(dialogue: Dialogue) -> Dialogue:
    """Return the dialogue with the box of its mask as text after each [SEG] of its answers.

    "[SEG] (12, 40, 30, 66)": left, top, right and bottom in hundredths of the image. An answer
    with another number of masks than [SEG] tokens stays unchanged.
    """
    turns = []
    for turn in dialogue.turns:
        before, *texts = turn.answer_raw.split(SEG)
        if len(texts) == len(turn.boxes):
            pairs = zip(turn.boxes, texts, strict=True)
            answer_raw = before + ''.join(f'{SEG} {box}{text}' for box, text in pairs)
            turns.append(replace(turn, answer_raw=answer_raw))
        else:
            turns.append(turn)
    return replace(dialogue, turns=tuple(turns))


def training_ids(
    tokenizer: Tokenizer,
    template: str,
    turns: Sequence[Turn],
    typed_specials: bool = False,
    max_length: int | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids and labels of a finished dialogue.

    Args:
        tokenizer: the checkpoint's.
        template: a name in TEMPLATES.
        turns: queries with answers ([SEG] written out in the answers), at least one.
        typed_specials: as in `prompt_ids`.
        max_length: longer dialogues are truncated, as in the original [ids]; None: no limit.

    Returns:
        Two lists of equal length: input ids, and labels: the answers with their </s>, IGNORE_INDEX
        elsewhere.

    Raises:
        QueryError: there is no turn, a query is empty, or one contains IMAGE_PLACEHOLDER as a
            special token.
        SettingsError: there is no such template.
    """
    if not turns or not all(turn.query.strip() for turn in turns):
        raise QueryError('a training dialogue needs at least one query, and none may be empty')
    _check_characters(turns)

    def ids_of(count: int, answered: bool) -> list[int]:
        parts = _parts(tokenizer, template, turns[:count], typed_specials, answered)
        return _ids(tokenizer, parts)

    ids = ids_of(len(turns), answered=True)
    labels = [IGNORE_INDEX] * len(ids)
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
) -> list[str | SpecialToken]:
    """Return the dialogue as text and tokens; without the last answer if not `answered`."""
    form = named_template(template)
    parts: list[str | SpecialToken] = []
    for index, turn in enumerate(turns):
        parts += _opening(tokenizer, form, is_first=index == 0)
        parts += _query(tokenizer, turn.query, typed_specials)
        parts.append(form.question.split('{}')[1])
        if answered or index + 1 < len(turns):
            parts += [' ', *tokenizer.split_special(turn.answer_raw.strip()), form.after_answer]
            parts.append(SpecialToken(tokenizer.eos_token))
    return parts


def _check_characters(turns: Sequence[Turn]) -> None:
    r"""Raise a QueryError if a text has half a character, such as \ud83d."""
    for text in (text for turn in turns for text in (turn.query, turn.answer_raw)):
        if not is_encodable(text):
            raise QueryError(
                f'the query or an answer, {short_repr(text)}, has half a character (a lone '
                'surrogate); expected text that can be written as UTF-8'
            )


def _opening(tokenizer: Tokenizer, form: Template, is_first: bool) -> list[str | SpecialToken]:
    """Return what comes before a query, with the image if it is the first one."""
    before = form.question.split('{}')[0]
    if not is_first:
        return [SpecialToken(tokenizer.bos_token), before] if form.bos_each_turn else [before]
    # [INST] comes before the opening, USER: after it
    opening = [before, form.opening] if form.bos_each_turn else [form.opening, before]
    return [*opening, *_image_tokens(tokenizer), '\n']


def _query(tokenizer: Tokenizer, query: str, typed_specials: bool) -> list[str | SpecialToken]:
    if not typed_specials:
        return [query]
    if IMAGE_PLACEHOLDER in query:
        raise QueryError(
            f'the query contains {IMAGE_PLACEHOLDER}, but the image is added to the prompt '
            f'anyway: leave {IMAGE_PLACEHOLDER} out'
        )
    return tokenizer.split_special(query)


def _image_tokens(tokenizer: Tokenizer) -> list[SpecialToken]:
    """Return the image placeholder, between marks if the checkpoint was trained with them."""
    start, end = tokenizer.image_marks[:1], tokenizer.image_marks[1:]
    return [SpecialToken(text) for text in (*start, IMAGE_PLACEHOLDER, *end)]


def _ids(tokenizer: Tokenizer, parts: list[str | SpecialToken]) -> list[int]:
    # A placeholder typed in a query is text here, or was refused.
    image = parts.index(SpecialToken(IMAGE_PLACEHOLDER))
    return [
        tokenizer.bos_token_id,
        *tokenizer.encode_parts(parts[:image]),
        IMAGE_TOKEN_INDEX,
        *tokenizer.encode_parts(parts[image + 1 :]),
    ]
