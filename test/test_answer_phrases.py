# SPDX-License-Identifier: Apache-2.0
"""The names of an answer's objects, and the text that is spoken."""

import dataclasses

import numpy as np
import pytest

from lisa_ros.perception.answer_phrases import (
    MAX_NAME,
    labelled_name,
    object_names,
    place_in_image,
    spoken_answer,
)
from lisa_ros.resources import DEFAULT_MODEL, WEIGHTS
from lisa_ros.results import Status, answer_text, unanswered


def result(query, answer_raw, columns):
    """Return a result with a mask of one pixel in each of the columns of an image of 9 pixels."""
    masks = np.zeros((len(columns), 1, 9), bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[0, column] = True
    return dataclasses.replace(
        unanswered(query, Status.FOUND, ''),
        answer=answer_text(answer_raw),
        answer_raw=answer_raw,
        masks=masks,
        scores=np.ones(len(columns), np.float32),
    )


@pytest.mark.parametrize(
    ('query', 'answer_raw', 'names'),
    [
        ('the mug left of the bowl', 'It is the red mug, [SEG] .', ['red mug']),
        ('something for toast', 'The cream cheese goes on a bagel, [SEG].', ['cream cheese']),
        ('a warm meal', 'The soup can is a warm meal, [SEG].', ['soup can']),
        ('cut this', 'The red scissors can cut paper, [SEG].', ['red scissors']),
        ('hand me the banana', 'Sure, [SEG] .', ['banana']),
        ('Can you segment a spoon in this image?', 'Sure, it is [SEG] .', ['spoon']),
        ('x', 'Sure, the segmentation result is [SEG] .', ['x']),
        ('Please find the red bowl and the yellow mug.', 'Sure, [SEG] and [SEG] .',
         ['red bowl', 'yellow mug']),
        ('all the dishes', 'It is the pan, the mug and the bowl, [SEG], [SEG] and [SEG].',
         ['pan', 'mug', 'bowl']),
        ('show me all mugs, please', 'Sure, [SEG] and [SEG] .', ['all mugs', 'all mugs']),
        ('and the milk?', 'Sure, [SEG].', ['milk']),
        ('what?', 'It is the pan, [SEG]. It is the mug, [SEG].', ['pan', 'mug']),
        ('', '[SEG]', ['object']),
        ('我要红色的杯子', 'Sure, [SEG].', ['我要红色的杯子']),
        ('mug ' * 100, 'Sure, [SEG].', [('mug ' * 100)[:MAX_NAME].strip()]),
    ],
)  # fmt: skip
def test_each_object_has_the_name_of_the_answer_or_of_the_command(query, answer_raw, names):
    columns = range(answer_raw.count('[SEG]'))
    assert object_names(result(query, answer_raw, columns)) == tuple(names)


def test_an_answer_with_more_objects_than_masks_names_what_was_asked():
    answer = result('the dishes', 'It is the pan and the mug, [SEG] and [SEG].', [4])
    assert object_names(answer) == ('dishes',)
    assert object_names(result('the mug', 'There is no mug here.', [])) == ()


@pytest.mark.parametrize(
    ('given', 'names'),
    [
        (('mug', 'pan'), ('mug', 'pan')),  # not in the order of the command
        (('mug', ''), ('mug', 'pan and the mug')),
        (('', ''), ('pan', 'mug')),
        ((), ('pan', 'mug')),
        (('x' * 900, 'pan'), ('x' * MAX_NAME, 'pan')),
    ],
)
def test_names_that_the_model_gives_its_masks_go_first(given, names):
    answer = result('find the pan and the mug', '[{...}, {...}]', [1, 5])
    assert object_names(dataclasses.replace(answer, names=given)) == names


@pytest.mark.parametrize(
    ('label', 'name'),
    [
        ('mug', 'mug'),
        ('The red mug.', 'red mug'),
        ('"mug"', 'mug'),
        ('', ''),
        (' ', ''),
        ('1', ''),
        ('#2', ''),
        ('7up', '7up'),
        ('红色的杯子', '红色的杯子'),
        ('Find the pan and the mug', 'pan and the mug'),  # all that it says is the command
        ('pan and mug', 'pan and mug'),
        ('pick', 'pick'),
        ('mug ' * 100, ('mug ' * 100)[:MAX_NAME].strip()),
    ],
)
def test_a_label_is_a_name_if_it_says_something(label, name):
    assert labelled_name(label, 'find the pan and the mug.') == name


def test_all_usual_replies_of_the_shipped_model_are_named():
    lines = (WEIGHTS / DEFAULT_MODEL / 'replies.txt').read_text().splitlines()
    named = [line for line in lines if line.count('[SEG]') == 1 and not line.startswith('Sure')]
    names = {object_names(result('QUERY', line, [0]))[0] for line in named}
    nouns = {line.removeprefix('There is no ').removesuffix(' here.')
             for line in lines if line.startswith('There is no ')}  # fmt: skip
    assert names == nouns - {'QUERY'}


@pytest.mark.parametrize(
    ('answer_raw', 'column', 'spoken'),
    [
        ('The bowl 30 88, left of it 22 58. It is the red mug, [SEG] .', 8,
         'It is the red mug on the right.'),
        ('The farthest storage box 36 46. It is the white storage box, [SEG] .', 4,
         'It is the white storage box in the middle.'),
        ('The red drink 80 62, [SEG].', 0, 'The red drink on the left.'),
        ('Sure, [SEG] .', 0, 'Sure.'),
        ('The milk is 14 cm high, [SEG] .', 0, 'The milk is 14 cm high.'),
    ],
)  # fmt: skip
def test_positions_in_numbers_are_spoken_as_places(answer_raw, column, spoken):
    assert spoken_answer(result('', answer_raw, [column])) == spoken


def test_an_answer_without_masks_is_spoken_without_numbers():
    assert spoken_answer(result('', 'The mug 20 30. There is no bowl here.', [])) == (
        'There is no bowl here.'
    )


def test_an_empty_mask_has_a_place():
    assert place_in_image(np.zeros((4, 0), bool)) == 'on the left'
