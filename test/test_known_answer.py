# SPDX-License-Identifier: Apache-2.0
"""The image of the self-test, and one of the user."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from scripted_backend import ScriptedBackend

from lisa_ros.errors import DataError
from lisa_ros.evaluation.known_answer import KnownAnswer
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SELF_TEST

BLACK = np.zeros((20, 30, 3), np.uint8)
BOX = [[10, 5], [20, 5], [20, 15], [10, 15]]


@pytest.fixture
def folder(tmp_path):
    """A folder with an image of two queries, the first one about an absent object."""
    cv2.imwrite(str(tmp_path / 'a.png'), BLACK)
    cv2.imwrite(str(tmp_path / 'b.png'), BLACK)
    absent = {'text': ['a cup'], 'is_sentence': False, 'shapes': []}
    (tmp_path / 'a.json').write_text(json.dumps(absent))
    shape = {'label': 'nut', 'points': BOX, 'shape_type': 'polygon'}
    (tmp_path / 'b.json').write_text(json.dumps({'shapes': [shape]}))
    return tmp_path


def answer(mask):
    backend = ScriptedBackend({'': {'masks': 'all'}})
    result = Segmenter(backend).segment(np.zeros((*mask.shape, 3), np.uint8), 'the nut')
    return dataclasses.replace(result, masks=mask[None])


def test_the_bundled_model_finds_the_bundled_object():
    known = KnownAnswer.read(SELF_TEST)
    lisa = Segmenter.load('lisa-tabletop', device='cpu')
    assert known.query == 'the mug'
    assert known.error_of(lisa.segment(known.image, known.query)) == ''
    assert 'its IoU with the right one is 0.0' in known.error_of(
        lisa.segment(known.image, 'the banana')
    )
    assert known.error_of(lisa.segment(known.image, 'the bottle')) == (
        "the model does not find 'the mug' in the test image"
    )


def test_the_first_query_with_a_mask_is_asked(folder):
    known = KnownAnswer.read(folder)
    assert known.query == 'nut'
    assert known.image.shape == BLACK.shape
    right = known.ground_truth == 1
    assert known.error_of(answer(right)) == ''
    assert 'expected at least 0.5' in known.error_of(answer(np.ones_like(right)))
    assert 'expected at least 0.5' in known.error_of(answer(~right))


def test_ignored_pixels_do_not_count(folder):
    known = KnownAnswer.read(folder)
    ignored = np.where(known.ground_truth == 1, 1, 255).astype(np.uint8)
    known = dataclasses.replace(known, ground_truth=ignored)
    assert known.error_of(answer(np.ones_like(ignored) > 0)) == ''


def test_a_folder_without_a_mask_is_refused(folder):
    (folder / 'b.json').unlink()
    with pytest.raises(DataError, match='no query has a mask; draw one'):
        KnownAnswer.read(folder)
    with pytest.raises(DataError, match='nowhere'):
        KnownAnswer.read(folder / 'nowhere')
