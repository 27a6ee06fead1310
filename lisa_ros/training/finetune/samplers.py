# SPDX-License-Identifier: Apache-2.0
"""Draws training samples from data sets, with the original's question and answer templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np

from lisa_ros.datasets.annotations import AnnotatedQuery, ImageWithQueries, read_image
from lisa_ros.datasets.json_io import read_or_skip
from lisa_ros.datasets.lisa_templates import (
    EXPLANATORY_QUESTIONS,
    LONG_QUESTIONS,
    SHORT_QUESTIONS,
    TEACHER_FORCED_ANSWER,
    validation_question,
)
from lisa_ros.datasets.llava import TextDialogue
from lisa_ros.errors import DataError, ErrorHandler, raise_error
from lisa_ros.perception.prompts import ANSWER_TEMPLATES
from lisa_ros.results import Turn
from lisa_ros.training.finetune.batches import Sample
from lisa_ros.training.finetune.mixture import Sampler

_MOST_BROKEN_DRAWS = 100  # in a row; then the data set is not there any more


class AnswerForm(Enum):
    """What an answer consists of."""

    MASK = 'mask'
    MASK_AND_EXPLANATION = 'mask and explanation'
    EXPLANATION = 'explanation'


class AnnotatedImageSampler:
    """Samples annotated images with the original's questions about them.

    If the answer is a mask, the question is made from the query and a template; names ("the red
    mug") and sentences have different templates. If it contains an explanation, the question
    starts with the query as it is.

    All queries in a sample that have an explanation get the same answer form: with probability
    `words_only` the explanation alone, else with equal probability the mask, or the mask and the
    explanation. The others get the mask.
    """

    def __init__(
        self,
        images: Sequence[ImageWithQueries],
        max_queries: int = 3,
        words_only: float = 0.1,
        on_error: ErrorHandler = raise_error,
    ):
        self.images, self._max_queries, self._words_only = images, max_queries, words_only
        self._on_error = on_error

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return an image with up to `max_queries` dialogues of one turn.

        Raises:
            DataError: the image or its annotations cannot be read, and `on_error` raised it; or
                none of many draws could be used.
        """
        return _first_usable(partial(self._draw, rng), self._on_error)

    def _draw(self, rng: np.random.Generator) -> Sample:
        image, queries = self._draw_image(rng)
        count = min(self._max_queries, len(queries))
        chosen = [queries[i] for i in rng.choice(len(queries), count, replace=False)]
        has_explanation = any(query.explanation for query in chosen)
        form = self._draw_form(rng) if has_explanation else AnswerForm.MASK
        forms = [form if query.explanation else AnswerForm.MASK for query in chosen]
        pairs = list(zip(chosen, forms, strict=True))
        turns = [_turn(rng, query, own) for query, own in pairs]
        with_masks = [query for query, own in pairs if own is not AnswerForm.EXPLANATION]
        return _sample(image.path, [[turn] for turn in turns], with_masks)

    def _draw_image(
        self, rng: np.random.Generator
    ) -> tuple[ImageWithQueries, tuple[AnnotatedQuery, ...]]:
        """Return a random image that has queries. A label map without known classes has none."""
        for _ in range(1000):
            image = self.images[rng.integers(len(self.images))]
            queries = image.queries
            if queries:
                return image, queries
        raise DataError(
            f'{image.path} and 999 other draws have no annotations; annotate the images, or '
            'remove this data set from --data'
        )

    def _draw_form(self, rng: np.random.Generator) -> AnswerForm:
        if rng.random() < self._words_only:
            return AnswerForm.EXPLANATION
        return (AnswerForm.MASK, AnswerForm.MASK_AND_EXPLANATION)[rng.integers(2)]


class DialogueSampler:
    """Samples dialogues without masks, so that the model does not lose its dialogue skills."""

    def __init__(self, dialogues: Sequence[TextDialogue], on_error: ErrorHandler = raise_error):
        self.dialogues, self._on_error = dialogues, on_error

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return an image with its dialogue.

        Raises:
            DataError: the image cannot be read, and `on_error` raised it; or none of many draws
                could be used.
        """
        return _first_usable(partial(self._draw, rng), self._on_error)

    def _draw(self, rng: np.random.Generator) -> Sample:
        dialogue = self.dialogues[rng.integers(len(self.dialogues))]
        return _sample(dialogue.path, [dialogue.turns], [])


def make_sampler(
    data: Sequence[ImageWithQueries] | Sequence[TextDialogue],
    max_queries: int = 3,
    words_only: float = 0.1,
    on_error: ErrorHandler = raise_error,
) -> Sampler:
    """Return the sampler for a data set.

    Args:
        data: as `datasets.registry.read_dataset` returns it.
        max_queries: queries about each image, at most.
        words_only: see `AnnotatedImageSampler`.
        on_error: called for each item that cannot be read when it is drawn; if it returns, another
            one is drawn.
    """
    if isinstance(data[0], TextDialogue):
        return DialogueSampler(data, on_error)
    return AnnotatedImageSampler(data, max_queries, words_only, on_error)


def _first_usable(draw: Callable[[], Sample], on_error: ErrorHandler) -> Sample:
    """Return the first sample that can be read."""
    for _ in range(_MOST_BROKEN_DRAWS):
        sample = read_or_skip(draw, on_error)
        if sample is not None:
            return sample
    raise DataError(f'{_MOST_BROKEN_DRAWS} draws in a row cannot be read; copy the data set again')


def _turn(rng: np.random.Generator, query: AnnotatedQuery, form: AnswerForm) -> Turn:
    """Return the turn of a query: its question and its answer in the given form."""

    def pick(templates: Sequence[str]) -> str:
        return templates[rng.integers(len(templates))]

    if form is AnswerForm.EXPLANATION:
        return Turn(query.text, query.explanation)
    if form is AnswerForm.MASK_AND_EXPLANATION:
        question = f'{query.text} {pick(EXPLANATORY_QUESTIONS)}'
        return Turn(question, f'{pick(ANSWER_TEMPLATES)} {query.explanation}')
    if query.is_sentence:
        return Turn(pick(LONG_QUESTIONS).format(query.text), pick(ANSWER_TEMPLATES))
    return Turn(pick(SHORT_QUESTIONS).format(query.text.lower()), pick(ANSWER_TEMPLATES))


def longest_turn(query: AnnotatedQuery) -> Turn:
    """Return the longest turn of a query whose answer has a mask and no explanation."""
    templates = LONG_QUESTIONS if query.is_sentence else SHORT_QUESTIONS
    return Turn(max(templates, key=len).format(query.text), max(ANSWER_TEMPLATES, key=len))


def validation_sample(image: ImageWithQueries) -> Sample:
    """Return an image with all its queries, asked as in the original's validation."""
    queries = image.queries  # each access of `queries` may read a label map
    turns = [Turn(validation_question(query), TEACHER_FORCED_ANSWER) for query in queries]
    return _sample(image.path, [[turn] for turn in turns], queries)


def _sample(
    path: Path, dialogues: Sequence[Sequence[Turn]], queries: Sequence[AnnotatedQuery]
) -> Sample:
    """Return a sample. Its n-th [SEG] has the mask of the n-th query."""
    image = read_image(path)
    height, width = image.shape[:2]
    for query in queries:
        query.check(height, width)
    masks = [query.ground_truth(height, width) for query in queries]
    return Sample(
        image,
        tuple(tuple(turns) for turns in dialogues),
        np.stack(masks) if masks else np.zeros((0, height, width), np.uint8),
        str(path),
    )
