# SPDX-License-Identifier: Apache-2.0
"""Images of one pixel, of one row and of extreme aspect ratio: answered, or refused by name."""

import dataclasses

import golden
import numpy as np
import pytest
from PIL import Image

from lisa_ros.datasets.annotations import AnnotatedImage, AnnotatedQuery, Polygon
from lisa_ros.errors import ImageError
from lisa_ros.evaluation.benchmarks import DatasetOptions, Mode, evaluate_dataset
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.object_3d import localize_object
from lisa_ros.model.image_processing import ClipPreprocessing, resize_for_clip
from lisa_ros.perception.mask_refinement import refine_mask_logits
from lisa_ros.perception.overlay import contact_sheet, overlay

SHAPES = [(1, 1), (1, 2), (2, 2), (3, 3), (1, 3000), (3000, 1), (3, 5000), (5000, 3), (7, 1300)]
EVALUATED = [(1, 1), (2, 1), (3, 5000), (5000, 3)]
RNG = np.random.default_rng(0)


def noise(shape):
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def lisa():
    segmenter = golden.segmenter(256, 'llava_v1')
    return dataclasses.replace(
        segmenter, options=dataclasses.replace(segmenter.options, max_new_tokens=8, refine=True)
    )


@pytest.mark.parametrize('shape', EVALUATED, ids=str)
def test_an_image_of_any_shape_is_evaluated_with_its_overlay(shape, lisa, tmp_path):
    Image.fromarray(noise(shape)).save(tmp_path / 'odd.png')
    region = Polygon('all', np.zeros((1, 2)), np.ones(shape, bool))
    query = AnnotatedQuery('the cup', False, (region,))
    image = AnnotatedImage(tmp_path / 'odd.png', (query,))
    options = DatasetOptions(Mode.TEACHER_FORCED, overlays=tmp_path)
    (case,) = evaluate_dataset(lisa, [image], options)
    assert case.status in ('FOUND', 'NOT_FOUND'), case.reason
    assert case.present
    assert case.image.is_file()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_masks_of_any_shape_are_refined_drawn_and_located(shape):
    image, camera = noise(shape), Camera(np.diag([500.0, 500, 1]), shape[::-1])
    for logits in (np.full(shape, 5.0), RNG.normal(size=shape), np.full(shape, -5.0)):
        logits = logits.astype(np.float32)  # noqa: PLW2901
        refined = refine_mask_logits(image, logits, max(shape) / 64)
        assert refined.shape == shape
        drawn = overlay(image, refined[None] > 0, ['0.5'], ['a query', 'an answer'])
        assert max(drawn.shape) < 6000
        sheet = contact_sheet([image, drawn], ['one', 'two'], width=100)
        assert sheet.shape[1] == 216 + 8
        assert sheet.shape[0] < 2000
        localize_object(image, np.ones(shape, np.float32), logits > 0, camera)


def test_clip_sees_the_middle_of_a_long_image():
    image = noise((4, 20_000))
    preprocessing = ClipPreprocessing.of_size(28)
    resized = resize_for_clip(image, preprocessing)
    assert resized.shape == (28, 28, 3)
    nearby = resize_for_clip(image[:, 10_000 - 64 : 10_000 + 64], preprocessing)
    np.testing.assert_array_equal(resized, nearby)
    whole = resize_for_clip(np.ascontiguousarray(image.swapaxes(0, 1)), preprocessing)
    assert whole.shape == (28, 28, 3)


def test_an_image_with_a_side_that_opencv_cannot_handle_is_refused(lisa):
    with pytest.raises(ImageError, match='40000 x 2 pixels; expected sides of at most 32,767'):
        lisa.segment(np.zeros((2, 40_000, 3), np.uint8), 'a cup')
