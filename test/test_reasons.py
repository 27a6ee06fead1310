# SPDX-License-Identifier: Apache-2.0
"""The reason that lisa-tabletop gives on request, in a further turn."""

import threading

import pytest

from lisa_ros.evaluation.known_answer import KnownAnswer
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, Query
from lisa_ros.resources import DEFAULT_MODEL, SELF_TEST
from lisa_ros.results import Status, Token
from lisa_ros.segmenter import Segmenter

REASON = 'The mug holds a hot drink.'


@pytest.fixture(scope='module')
def segmenter():
    return Segmenter.load(DEFAULT_MODEL)


@pytest.fixture(scope='module')
def image():
    return KnownAnswer.read(SELF_TEST).image


def test_an_answer_that_only_points_gets_a_reason_on_request(segmenter, image):
    plain = segmenter.segment(image, 'the mug')
    explained = segmenter.segment(image, 'the mug', explain=True)
    assert (plain.status, plain.answer) == (Status.FOUND, 'Sure.')
    assert (explained.status, explained.answer) == (Status.FOUND, f'Sure. {REASON}')
    assert (explained.masks == plain.masks).all()
    assert explained.query == 'the mug'


def test_the_reason_is_streamed_and_the_batch_has_it_too(segmenter, image):
    query = Query('the mug', explain=True)
    events = segmenter.backend.stream(image, query, InferenceOptions(), threading.Event())
    text = ''.join(event.text for event in events if isinstance(event, Token))
    assert text.endswith(f' {REASON}')
    explaining = Segmenter(segmenter.backend, InferenceOptions(answer_style=AnswerStyle.EXPLAIN))
    for asker, question in ((segmenter, query), (explaining, Query('the mug'))):
        batched = asker.segment_batch([(image, question)] * 2)
        assert [result.answer for result in batched] == [f'Sure. {REASON}'] * 2


def test_a_reason_that_is_cut_off_is_kept_and_said_so(segmenter, image):
    short = Segmenter(segmenter.backend, InferenceOptions(max_new_tokens=5))
    result = short.segment(image, 'the mug', explain=True)
    assert result.status is Status.FOUND
    assert result.answer.startswith('Sure. The mug')
    assert result.answer != f'Sure. {REASON}'
    assert 'cut off after 5 tokens: raise max_new_tokens' in result.reason


def test_an_answer_with_a_reason_or_without_a_mask_stays_as_it_is(segmenter, image):
    for text in ('something for a hot drink', 'the candle'):
        answers = {segmenter.segment(image, text, explain=on).answer for on in (False, True)}
        assert len(answers) == 1, answers
