# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import numpy as np
import pytest
from golden import DATA, SIZES, picture, texts

from lisa_ros.errors import CheckpointError, ImageError
from lisa_ros.model.image_processing import (
    ClipPreprocessing,
    clip_pixels,
    clip_view,
    sam_input,
    sam_resized,
)

NAMES = ('coffee', 'chelsea', 'astronaut')


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def recipe(size: int) -> ClipPreprocessing:
    return ClipPreprocessing.from_dict(
        json.loads((DATA / f'clip_{size}' / 'preprocessor_config.json').read_text())
    )


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', NAMES)
def test_both_inputs_equal_the_originals_bit_by_bit(size, name):
    image, golden = picture(name), texts(size)['images'][name]
    assert digest(image) == golden['rgb_sha256']
    assert digest(clip_view(image, recipe(size))) == golden['clip_u8_sha256']
    assert digest(clip_pixels(image, recipe(size))) == golden['clip_pixel_values_sha256']
    sam = sam_input(image, size)
    assert digest(sam.pixels) == golden['sam_input_sha256']
    assert list(sam.resized) == golden['sam_resized_shape'][:2]
    assert sam.original == image.shape[:2]


@pytest.mark.parity
@pytest.mark.parametrize('case', texts(256)['preprocess_shapes'], ids=lambda case: str(case['hw']))
def test_the_longer_side_becomes_sams(case):
    for size, wanted in case['out'].items():
        assert sam_resized(tuple(case['hw']), int(size)) == tuple(wanted)


@pytest.mark.parametrize('shape', [(1, 1), (7, 300), (300, 7), (50, 60)])
def test_a_picture_of_any_shape_fits(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    assert clip_pixels(image, ClipPreprocessing.of_size(28)).shape == (3, 28, 28)
    assert sam_input(image, 64).pixels.shape == (3, 64, 64)


def test_around_the_picture_sam_sees_zeros():
    sam = sam_input(np.full((20, 40, 3), 255, np.uint8), 64)
    assert sam.resized == (32, 64)
    assert not sam.pixels[:, 32:].any()
    assert sam.pixels[:, :32].all()


def test_a_crop_larger_than_the_picture_is_filled_with_black():
    view = clip_view(
        np.full((10, 10, 3), 255, np.uint8), ClipPreprocessing(size=10, crop=(14, 14))
    )
    assert view.shape == (14, 14, 3)
    assert view[2:12, 2:12].all()
    assert view.sum() == 255 * 3 * 100


@pytest.mark.parametrize(
    ('config', 'output', 'seen'),
    [
        ({'size': 224, 'crop_size': 224}, (224, 224), (224, 224)),
        (
            {'size': {'shortest_edge': 60}, 'crop_size': {'height': 60, 'width': 60}},
            (60, 60),
            (60, 60),
        ),
        ({'size': {'height': 56, 'width': 56}, 'do_center_crop': False}, (56, 56), (56, 56)),
        ({'size': {'shortest_edge': 30}, 'do_center_crop': False}, None, (30, 60)),
    ],
)
def test_sizes_are_read_in_all_their_forms(config, output, seen):
    read = ClipPreprocessing.from_dict(config)
    assert read.output == output
    assert clip_view(np.zeros((50, 100, 3), np.uint8), read).shape[:2] == seen
    assert ClipPreprocessing.from_dict(read.to_dict()) == read


def test_without_a_crop_clip_sees_the_ends_of_a_wide_picture():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, :10] = 255
    cropped = clip_view(image, ClipPreprocessing(size=10, crop=(10, 10)))
    squeezed = clip_view(image, ClipPreprocessing(size=(10, 10), crop=None))
    assert not cropped.any()
    assert squeezed[:, 0].all()


def test_an_unreadable_recipe_is_refused():
    with pytest.raises(CheckpointError, match='shortest_edge'):
        ClipPreprocessing.from_dict({'size': {'longest_edge': 224}})


@pytest.mark.parametrize(
    ('image', 'match'),
    [
        ([[1]], 'not list'),
        (np.zeros((4, 4), np.uint8), r'not \(4, 4\)'),
        (np.zeros((4, 4, 4), np.uint8), r'\(4, 4, 4\).*alpha'),
        (np.zeros((4, 4, 3), np.float32), 'not float32'),
        (np.zeros((0, 4, 3), np.uint8), 'empty'),
    ],
)
def test_what_is_no_picture_is_refused_with_the_cure(image, match):
    with pytest.raises(ImageError, match=match):
        sam_input(image, 64)
    with pytest.raises(ImageError, match=match):
        clip_pixels(image, ClipPreprocessing.of_size(28))
