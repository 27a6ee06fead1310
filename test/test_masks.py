# SPDX-License-Identifier: Apache-2.0
"""Mask boxes, RLE and label images; drawings of masks, labels and captions."""

import numpy as np
import pytest

from lisa_ros.perception import masks, overlay
from lisa_ros.perception.masks import bounding_box, box_slices

SHAPE = (40, 60)


def disc(x, y, radius, shape=SHAPE):
    v, u = np.mgrid[: shape[0], : shape[1]]
    return (u - x) ** 2 + (v - y) ** 2 <= radius**2


def test_box_and_area_are_tight():
    mask = np.zeros(SHAPE, bool)
    mask[3:10, 20:25] = True
    assert bounding_box(mask) == (20, 3, 5, 7)
    assert masks.area(mask) == 35


def test_box_slices_have_a_margin_that_ends_at_the_image():
    mask = np.zeros(SHAPE, bool)
    mask[3:10, 55:60] = True
    assert mask[box_slices(mask)].shape == (7, 5)
    assert mask[box_slices(mask)].all()
    assert mask[box_slices(mask, 5)].shape == (15, 10)


@pytest.mark.parametrize(
    ('x', 'y', 'is_cut'),
    [
        (30, 20, False),
        (5, 20, False),
        (4, 20, True),
        (55, 20, True),
        (30, 4, True),
        (30, 35, True),
    ],
)
def test_a_mask_that_reaches_the_edge_of_the_image(x, y, is_cut):
    assert masks.touches_edge(disc(x, y, 4)) is is_cut


def test_an_empty_mask_has_an_empty_box():
    assert bounding_box(np.zeros(SHAPE, bool)) == (0, 0, 0, 0)
    assert masks.area(np.zeros(SHAPE, bool)) == 0


@pytest.mark.parametrize(
    'mask',
    [disc(20, 20, 8), ~disc(0, 0, 9), np.zeros(SHAPE, bool), np.ones(SHAPE, bool)],
    ids=['disc', 'corner', 'empty', 'full'],
)
def test_rle_reads_back(mask):
    encoded = masks.encode_rle(mask)
    assert encoded['size'] == [40, 60]
    assert sum(encoded['counts']) == mask.size
    assert np.array_equal(masks.decode_rle(encoded), mask)


def test_rle_counts_along_columns_and_starts_with_zeros():
    mask = np.array([[True, False], [True, True]])
    assert masks.encode_rle(mask) == {'size': [2, 2], 'counts': [0, 2, 1, 1]}


def test_iou():
    left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    left[:, :20] = right[:, 10:30] = True
    assert masks.iou(left, right) == pytest.approx(10 / 30)
    assert masks.iou(~left & left, ~right & right) == 1.0


def test_a_shared_pixel_gets_the_mask_with_the_higher_logit():
    both = np.stack([disc(20, 20, 10), disc(28, 20, 10)])
    logits = np.where(both, np.array([1.0, 3.0])[:, None, None], -9).astype(np.float32)
    labels = masks.label_image(both, logits)
    assert labels.dtype == np.uint8
    assert labels[20, 12] == 1
    assert labels[20, 24] == 2
    assert labels[0, 0] == 0


def test_no_mask_gives_black_images_of_the_image_size():
    none = np.zeros((0, *SHAPE), np.float32)
    assert not masks.label_image(none.astype(bool), none).any()
    assert masks.confidence_image(none).shape == SHAPE


def test_confidence_is_the_highest_probability_of_all_masks():
    logits = np.full((2, *SHAPE), -1000.0, np.float32)
    logits[0, 0, 0], logits[1, 0, 1], logits[1, 0, 2] = 0.0, 1000.0, 2.0
    confidence = masks.confidence_image(logits)
    assert confidence[0, :4].tolist() == [128, 255, round(255 / (1 + np.exp(-2.0))), 0]


def test_the_overlay_tints_only_the_mask_and_keeps_the_image():
    image = np.full((480, 640, 3), 100, np.uint8)
    mask = disc(300, 200, 60, (480, 640))
    drawn = overlay.overlay(image, mask[None])
    assert drawn.shape == image.shape
    assert (drawn[400:] == 100).all()
    assert (drawn[200, 300] != 100).any()
    assert (image == 100).all()


def test_a_long_caption_is_wrapped_below_the_image():
    image = np.zeros((240, 320, 3), np.uint8)
    short = overlay.overlay(image, np.zeros((0, 240, 320), bool), caption=['the mug'])
    long = overlay.overlay(
        image, np.zeros((0, 240, 320), bool), caption=['the mug', 'because ' * 60, 'x' * 400]
    )
    assert short.shape[1] == long.shape[1] == 640
    assert 480 < short.shape[0] < long.shape[0]


def test_a_label_at_the_border_is_drawn_inside():
    mask = disc(639, 0, 5, (480, 640))
    drawn = overlay.overlay(np.zeros((480, 640, 3), np.uint8), mask[None], ['the red mug 0.93'])
    assert drawn.shape == (480, 640, 3)


def test_the_contact_sheet_holds_every_image():
    images = [np.full((240, 320, 3), 40 * k + 40, np.uint8) for k in range(3)]
    sheet = overlay.contact_sheet(images, ['one', 'two', 'three'], columns=2, width=320)
    assert sheet.shape[1] == 2 * 320 + 3 * 8
    for k in range(3):
        assert (sheet == 40 * k + 40).all(axis=2).sum() >= 240 * 320
