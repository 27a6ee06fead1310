# SPDX-License-Identifier: Apache-2.0
"""An answer that repeats itself without end is cut off, and no list of objects is."""

from dataclasses import replace

import numpy as np
import pytest

from lisa_ros.perception.answer_builder import AnswerBuilder
from lisa_ros.perception.mask_decoder import ScoredMask
from lisa_ros.perception.repetition import repeated_tail
from lisa_ros.results import ScoreFeatures, Status
from lisa_ros.segmenter import Segmenter

SEG, DOT = 1, 2


@pytest.mark.parametrize(
    ('token_ids', 'repeated'),
    [
        ([5, 6] + 23 * [DOT], 0),
        ([5, 6] + 24 * [DOT], 23),
        ([5] + 12 * [7, 8], 22),
        ([5] + 11 * [7, 8] + [7], 0),
        ([5] + 4 * [11, 12, 13, 14, 15, 16, 17, 18], 24),
        (12 * [SEG, DOT], 22),
        (list(range(10, 60)), 0),
        ([], 0),
    ],
)
def test_a_loop_is_a_short_text_many_times(token_ids, repeated):
    assert repeated_tail(token_ids) == repeated


def square(number):
    """A mask of its own for each number."""
    logits = np.full((60, 60), -5.0, np.float32)
    row, column = divmod(number, 10)
    logits[6 * row : 6 * row + 5, 6 * column : 6 * column + 5] = 5.0
    return ScoredMask(logits, 0.9, ScoreFeatures(1.0, 1.0, 1.0, 1.0))


def is_loop(masks):
    """Return whether an answer that is "[SEG] ." for each of these masks is cut off."""
    answer = AnswerBuilder('screws', (60, 60), threshold=0.5)
    for mask in masks:
        answer.token_ids.append(SEG)
        answer.add_mask(mask)
        answer.token_ids.append(DOT)
        if answer.repeated_count:
            return True
    return False


def test_a_list_of_many_objects_is_no_loop_and_one_object_again_and_again_is():
    assert not is_loop([square(number) for number in range(100)])
    assert is_loop([square(0)] * 20)
    assert is_loop([replace(square(number), score=0.1) for number in range(20)])


def answered(tokens, masks):
    """Return the result of an answer of these tokens, with a mask at each [SEG]."""
    answer, left = AnswerBuilder('screws', (60, 60), threshold=0.5), iter(masks)
    events = []
    for token in tokens:
        answer.token_ids.append(token)
        if token == SEG:
            events.append(answer.add_mask(next(left)))
        if answer.repeated_count:
            break
    result = answer.result('[SEG].', {}, None)
    assert [event.index for event in events if event is not None] == [*range(len(result.masks))]
    return result


def test_a_loop_shows_its_object_a_few_times_only():
    result = answered([5, 6, *30 * [SEG, DOT]], 30 * [square(0)])
    assert 'without end' in result.reason
    assert (result.status, len(result.masks)) == (Status.FOUND, 5)  # as found, then four repeats
    two = answered([*30 * [7, SEG, 8, SEG]], 15 * [square(0), square(1)])
    assert (two.status, len(two.masks)) == (Status.FOUND, 8)


def test_objects_that_overlap_all_stay():
    number = range(10, 40)  # each plate of a stack has a word of its own
    tokens = [token for word in number for token in (word, SEG, DOT)]
    assert len(answered(tokens, [square(0)] * 30).masks) == 30
    row = [square(index // 2) for index in range(30)]  # each object twice, in the same words
    assert len(answered(30 * [SEG, DOT], row).masks) == 30
    assert len(answered([5, *4 * [SEG, DOT]], 4 * [square(0)]).masks) == 4


def test_objects_in_a_row_that_overlap_their_neighbours_all_stay():
    """A stack of bowls in the words of LISA, and a second list of distinct objects."""
    bowls = []
    for index in range(7):
        logits = np.full((60, 60), -5.0, np.float32)
        logits[6 * index : 6 * index + 24] = 5.0
        bowls.append(replace(square(0), logits=logits))
    assert len(answered(7 * [DOT, SEG], bowls).masks) == 7
    objects = [square(index) for index in range(5)]
    result = answered(10 * [DOT, SEG], [*objects, *objects])
    assert (len(result.masks), result.reason) == (10, '')


def test_masks_that_are_left_out_are_named():
    tokens = [token for word in range(10, 16) for token in (SEG, DOT, SEG, word)]
    result = answered(tokens, 12 * [square(0)])
    assert (len(result.masks), result.status) == (10, Status.FOUND)
    assert 'that the answer repeats were left out' in result.reason


def test_given_seg_tokens_all_have_their_masks():
    answer = AnswerBuilder('screws', (60, 60), threshold=0.0)
    answer.token_ids.extend([5, *8 * [SEG]])
    assert all(answer.add_mask(square(0)) is not None for _ in range(8))


def test_an_answer_about_noise_ends_soon_and_says_why():
    """Greedy decoding of this query never ends by itself: it has 512 tokens without the rule."""
    rng = np.random.default_rng(0)
    rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    segmenter = Segmenter.load('lisa-tabletop', threads=1)
    result = segmenter.segment(noise, 'what is on the table?')
    assert result.status is Status.REPEATED
    assert 'without end' in result.reason
    assert len(result.token_ids) < 80
    assert len(result.answer_raw) < 200
