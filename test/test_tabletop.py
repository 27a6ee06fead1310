# SPDX-License-Identifier: Apache-2.0
"""The small model that we ship, with its real weights, on scenes that it has not seen."""

import json

import cv2
import numpy as np
import pytest

from lisa_ros import cli
from lisa_ros.evaluation import scenes
from lisa_ros.results import Done, MaskReady, Status, Token
from lisa_ros.segmenter import OWN_MODELS, Segmenter

EXAM = scenes.OWN_EXAMS / 'test.zip'


@pytest.fixture(scope='module')
def lisa():
    return Segmenter.load('lisa-tabletop', device='cpu')


@pytest.fixture(scope='module')
def graded(lisa):
    """Every 25th scene of the exam: 20 scenes, 80 questions."""
    questions = [q for q in scenes.read_exam(EXAM) if q.sort in ('explicit', 'implicit')]
    names = sorted({q.picture.name for q in questions})[::25]
    return list(scenes.sit(lisa, [q for q in questions if q.picture.name in names]))


@pytest.fixture(scope='module')
def picture():
    question = scenes.read_exam(EXAM)[0]
    data = np.frombuffer(question.picture.read_bytes(), np.uint8)
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def test_it_is_small_and_half_precision():
    files = list((OWN_MODELS / 'lisa-tabletop').iterdir())
    assert sum(file.stat().st_size for file in files) < 25e6


def test_it_finds_what_is_named_and_what_is_needed(graded):
    figures = scenes.report(graded)
    assert figures['explicit']['count'] == figures['implicit']['count'] == 20
    # A coarse net for broken weights or pixels: docs/lisa-tabletop.md has the figures of all 500.
    assert figures['explicit']['giou'] > 0.5
    assert figures['implicit']['giou'] > 0.45
    assert figures['presence_accuracy'] > 0.7


def test_it_answers_in_the_form_of_lisa(lisa, graded):
    for one in graded:
        if one.found:
            assert one.answer.startswith('Sure')
    assert any(not one.found and one.answer.startswith('There is no') for one in graded)


def test_a_reason_comes_with_what_is_needed(graded):
    reasons = [g.answer for g in graded if g.question.sort == 'implicit' and g.found]
    assert reasons
    assert all(reason.startswith('Sure. The ') for reason in reasons)


def test_two_things_are_two_masks_in_the_order_asked(lisa, graded, monkeypatch):
    monkeypatch.setattr(lisa, 'confidence_threshold', 0.0)  # every [SEG] with its mask
    known = [g for g in graded if g.question.sort == 'explicit' and g.overlap.iou > 0.6]
    assert known
    question = known[0].question
    data = np.frombuffer(question.picture.read_bytes(), np.uint8)
    colour = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    result = lisa.segment(colour, 'find the mug and the plate')
    assert result.masks.shape == (result.answer_raw.count('[SEG]'), *colour.shape[:2])


def test_a_typed_seg_makes_no_mask(lisa, picture, monkeypatch):
    assert not lisa.segment(picture, 'Explain the token [SEG]').masks.any()
    monkeypatch.setattr(lisa, 'confidence_threshold', 0.0)
    every = lisa.segment(picture, 'Explain the token [SEG]')  # none but those of the answer
    assert len(every.masks) == every.token_ids.count(lisa.tokenizer.seg_token_id)


def test_masks_below_the_model_s_own_threshold_are_left_out(lisa, graded, monkeypatch):
    assert 0 < lisa.model.config.confidence_threshold < 1
    monkeypatch.setattr(lisa, 'confidence_threshold', 1.0)
    question = next(g.question for g in graded if g.found)
    data = np.frombuffer(question.picture.read_bytes(), np.uint8)
    colour = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    result = lisa.segment(colour, question.text)
    assert result.status is Status.NOT_FOUND
    assert len(result.masks) == 0


def test_a_mask_comes_before_the_words_after_it(lisa, graded):
    question = next(g.question for g in graded if g.question.sort == 'implicit' and g.found)
    data = np.frombuffer(question.picture.read_bytes(), np.uint8)
    colour = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    events = list(lisa.stream(colour, question.text))
    kinds = [type(event) for event in events]
    place = kinds.index(MaskReady)
    assert events[place - 1].token_id == lisa.tokenizer.seg_token_id
    assert Token in kinds[place:]
    assert isinstance(events[-1], Done)
    assert events[-1].result.status is Status.FOUND
    assert np.array_equal(events[place].mask, events[-1].result.masks[0])


def test_the_same_question_gives_the_same_bits(lisa, picture):
    one, two = (lisa.segment(picture, 'what is on the table?') for _ in range(2))
    assert one.token_ids == two.token_ids
    assert np.array_equal(one.mask_logits, two.mask_logits)
    assert one.answer.startswith('I see')


def test_evaluate_scenes_prints_one_json_object(capsys):
    assert cli.main(['evaluate', 'scenes', '--split', 'test', '--limit', '8', '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {'model', 'split', 'explicit', 'implicit', 'presence_accuracy'} <= figures.keys()
    assert figures['explicit'].keys() == {'giou', 'ciou', 'count'}
    assert figures['explicit']['count'] == figures['implicit']['count'] == 2
