# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import numpy as np
import pytest
from golden import DATA, SIZES, load_image, texts

from lisa_ros.errors import CheckpointError, ImageError
from lisa_ros.model.image_processing import (
    ClipPreprocessing,
    clip_pixels,
    resize_for_clip,
    sam_input,
    sam_resized_shape,
)

NAMES = ('coffee', 'chelsea', 'astronaut')


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def preprocessing(size: int) -> ClipPreprocessing:
    return ClipPreprocessing.from_dict(
        json.loads((DATA / f'clip_{size}' / 'preprocessor_config.json').read_text())
    )


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', NAMES)
def test_both_inputs_are_bit_identical_to_the_originals(size, name):
    image, golden = load_image(name), texts(size)['images'][name]
    assert digest(image) == golden['rgb_sha256']
    assert digest(resize_for_clip(image, preprocessing(size))) == golden['clip_u8_sha256']
    assert digest(clip_pixels(image, preprocessing(size))) == golden['clip_pixel_values_sha256']
    sam = sam_input(image, size)
    assert digest(sam.pixels) == golden['sam_input_sha256']
    assert list(sam.resized) == golden['sam_resized_shape'][:2]
    assert sam.original == image.shape[:2]


@pytest.mark.parity
@pytest.mark.parametrize('case', texts(256)['preprocess_shapes'], ids=lambda case: str(case['hw']))
def test_the_longer_side_is_scaled_to_sams_size(case):
    for size, expected in case['out'].items():
        assert sam_resized_shape(tuple(case['hw']), int(size)) == tuple(expected)


@pytest.mark.parametrize('shape', [(1, 1), (7, 300), (300, 7), (50, 60)])
def test_images_of_any_shape_are_accepted(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    assert clip_pixels(image, ClipPreprocessing.of_size(28)).shape == (3, 28, 28)
    assert sam_input(image, 64).pixels.shape == (3, 64, 64)


def test_sams_input_is_zero_outside_the_image():
    sam = sam_input(np.full((20, 40, 3), 255, np.uint8), 64)
    assert sam.resized == (32, 64)
    assert not sam.pixels[:, 32:].any()
    assert sam.pixels[:, :32].all()


def test_a_crop_larger_than_the_image_is_padded_with_black():
    resized = resize_for_clip(
        np.full((10, 10, 3), 255, np.uint8), ClipPreprocessing(size=10, crop=(14, 14))
    )
    assert resized.shape == (14, 14, 3)
    assert resized[2:12, 2:12].all()
    assert resized.sum() == 255 * 3 * 100


@pytest.mark.parametrize(
    ('config', 'output', 'resized'),
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
def test_all_forms_of_size_are_read(config, output, resized):
    preprocessing = ClipPreprocessing.from_dict(config)
    assert preprocessing.output == output
    assert resize_for_clip(np.zeros((50, 100, 3), np.uint8), preprocessing).shape[:2] == resized
    assert ClipPreprocessing.from_dict(preprocessing.to_dict()) == preprocessing


def test_without_a_crop_clip_gets_the_ends_of_a_wide_image():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, :10] = 255
    cropped = resize_for_clip(image, ClipPreprocessing(size=10, crop=(10, 10)))
    squeezed = resize_for_clip(image, ClipPreprocessing(size=(10, 10), crop=None))
    assert not cropped.any()
    assert squeezed[:, 0].all()


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(CheckpointError, match='shortest_edge'):
        ClipPreprocessing.from_dict({'size': {'longest_edge': 224}})


@pytest.mark.parametrize(
    ('image', 'match'),
    [
        ([[1]], 'is a list'),
        (np.zeros((4, 4), np.uint8), r'has the shape \(4, 4\)'),
        (np.zeros((4, 4, 4), np.uint8), r'\(4, 4, 4\).*alpha'),
        (np.zeros((4, 4, 3), np.float32), 'is float32'),
        (np.zeros((0, 4, 3), np.uint8), 'empty'),
    ],
)
def test_an_array_that_is_not_an_image_is_refused_with_a_remedy(image, match):
    with pytest.raises(ImageError, match=match):
        sam_input(image, 64)
    with pytest.raises(ImageError, match=match):
        clip_pixels(image, ClipPreprocessing.of_size(28))
