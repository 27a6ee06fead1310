# SPDX-License-Identifier: Apache-2.0
"""Labelled pictures and talks become samples, asked and answered in the original's words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import Picture, Query, read_image
from lisa_ros.datasets.lisa_templates import (
    ANSWERS,
    LONG_QUESTIONS,
    SHORT_QUESTIONS,
    TEACHER_FORCED_ANSWER,
    WHY,
    validation_question,
)
from lisa_ros.datasets.llava import TextDialogue
from lisa_ros.errors import DataError
from lisa_ros.results import Turn
from lisa_ros.training.finetune.batches import Sample


class AnnotatedImageSampler:
    """A source of samples (mixture.Source): labelled pictures, asked about as the original asks.

    Names ("the red mug") are put into a question, sentences stand alone. Of a picture with an
    explanation each draw takes one of three forms for all its queries: the mask alone, the mask
    and why, or the words alone; the latter with the probability `words_only`, else either of the
    others.
    """

    def __init__(self, labelled: Sequence[Picture], queries: int = 3, words_only: float = 0.1):
        self._labelled, self._queries, self._words_only = labelled, queries, words_only

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return a picture with up to `queries` dialogues of one turn.

        Raises:
            DataError: its picture or its labels cannot be read, or nothing at all is labelled.
        """
        for _ in range(1000):  # a label map may turn out to name nothing
            one = self._labelled[rng.integers(len(self._labelled))]
            queries = one.queries
            if queries:
                break
        else:
            raise DataError(f'{one.path} and a thousand others: nothing in them is labelled')
        count = min(self._queries, len(queries))
        chosen = [queries[i] for i in rng.choice(len(queries), count, replace=False)]
        form = 'mask'
        if one.explanation:
            plain = rng.random() >= self._words_only
            form = ('mask', 'why')[rng.integers(2)] if plain else 'words'
        turns = [_turn(rng, query, form, one.explanation) for query in chosen]
        return _sample(one.path, [[turn] for turn in turns], chosen if form != 'words' else [])


class DialogueSampler:
    """A source of samples: dialogues in words, that a model may not forget how to talk."""

    def __init__(self, talks: Sequence[TextDialogue]):
        self._talks = talks

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return a picture with its dialogue.

        Raises:
            DataError: its picture cannot be read.
        """
        one = self._talks[rng.integers(len(self._talks))]
        return _sample(one.path, [one.turns], [])


def make_sampler(
    data: Sequence[Picture] | Sequence[TextDialogue], queries: int = 3, words_only: float = 0.1
):
    """Return the source of samples of a data set, of pictures or of talks (`datasets.named`)."""
    return (
        DialogueSampler(data)
        if isinstance(data[0], TextDialogue)
        else AnnotatedImageSampler(data, queries, words_only)
    )


def _turn(rng: np.random.Generator, query: Query, form: str, explanation: str) -> Turn:
    """Return a query as a question, with its answer."""

    def pick(texts: Sequence[str]) -> str:
        return texts[rng.integers(len(texts))]

    if form == 'words':
        return Turn(query.text, explanation)
    if form == 'why':
        return Turn(f'{query.text} {pick(WHY)}', f'{pick(ANSWERS)} {explanation}')
    if query.is_sentence:
        return Turn(pick(LONG_QUESTIONS).format(query.text), pick(ANSWERS))
    return Turn(pick(SHORT_QUESTIONS).format(query.text.lower()), pick(ANSWERS))


def validation_sample(one: Picture) -> Sample:
    """Return a picture with all its queries, asked as the original does in its validation."""
    queries = one.queries  # a map is read for them
    turns = [Turn(validation_question(query), TEACHER_FORCED_ANSWER) for query in queries]
    return _sample(one.path, [[turn] for turn in turns], queries)


def _sample(path: Path, dialogues: Sequence[Sequence[Turn]], asked: Sequence[Query]) -> Sample:
    """Return a picture with dialogues whose [SEG] stand for the queries, in their order."""
    picture = read_image(path)
    height, width = picture.shape[:2]
    truth = [query.truth(height, width) for query in asked]
    return Sample(
        picture,
        tuple(tuple(turns) for turns in dialogues),
        np.stack(truth) if truth else np.zeros((0, height, width), np.uint8),
        str(path),
    )
