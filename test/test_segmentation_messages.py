# SPDX-License-Identifier: Apache-2.0
"""Results as lisa_ros/msg/Segmentation and back: cropped masks, timings, errors. Needs no ROS."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.messages.image import mask_fields
from lisa_ros.messages.segmentation import (
    MessageFactory,
    mask_from_message,
    result_from_message,
)
from lisa_ros.perception.answer_phrases import object_names
from lisa_ros.results import Segmentation, Status

TYPES = (
    *('sensor_msgs/msg/Image', 'sensor_msgs/msg/RegionOfInterest', 'geometry_msgs/msg/Point'),
    *('geometry_msgs/msg/Pose', 'geometry_msgs/msg/Quaternion', 'geometry_msgs/msg/Vector3'),
    *('lisa_ros/msg/Instance', 'lisa_ros/msg/Segmentation', 'lisa_ros/msg/StageTime'),
)
FACTORY = MessageFactory(dict.fromkeys(TYPES, SimpleNamespace))
HEADER = SimpleNamespace(frame_id='camera')
MASKS = np.zeros((3, 12, 20), bool)
MASKS[0, 2:7, 4:15] = True
MASKS[0, 3:5, 6:9] = False  # a hole
MASKS[1, 11, 19] = True  # the last pixel; MASKS[2] stays empty


def result():
    logits = np.where(MASKS, np.inf, -np.inf).astype(np.float32)
    scores = np.array([0.75, 0.5, 0.25], np.float32)
    return Segmentation(
        query='find them', answer='Here.', answer_raw='[SEG] [SEG] [SEG]',
        masks=MASKS, mask_logits=logits, scores=scores, status=Status.FOUND,
        timings={'convert': 0.125, 'clip': 0.5},
    )  # fmt: skip


def test_a_result_comes_back_from_its_message():
    back = result_from_message(FACTORY.segmentation(HEADER, result()))
    np.testing.assert_array_equal(back.masks, MASKS)
    np.testing.assert_array_equal(back.mask_logits, result().mask_logits)
    np.testing.assert_array_equal(back.scores, result().scores)
    assert back.timings == {'convert': 0.125, 'clip': 0.5}
    assert (back.query, back.answer, back.status) == ('find them', 'Here.', Status.FOUND)


def test_names_that_the_model_gives_go_there_and_back():
    names = ('mug', 'pan', 'can')  # not in the order of the command
    named = dataclasses.replace(result(), query='the pan, the mug and a can', names=names)
    message = FACTORY.segmentation(HEADER, named)
    assert tuple(instance.name for instance in message.instances) == names
    back = result_from_message(message)
    assert (back.names, object_names(back)) == (names, names)


def test_masks_of_images_of_different_sizes_are_an_error():
    message = FACTORY.segmentation(HEADER, result())
    message.instances[2].image_width = 21
    with pytest.raises(ImageError, match='images of 20 x 12, 21 x 12 pixels; expected one size'):
        result_from_message(message)


@pytest.mark.parametrize('status', [0, 1 + max(Status), 255])
def test_an_unknown_status_is_an_error(status):
    message = FACTORY.segmentation(HEADER, result())
    message.status = status
    with pytest.raises(ImageError, match=f'the status {status}; expected one of 1, 2'):
        result_from_message(message)


@pytest.mark.parametrize(
    ('extent', 'size'),
    [((0.1, 0.2, 0.0), (0.1, 0.2, 0.001)), ((0, 4e-11, 0.05), (0.001, 0.001, 0.05))],
)
def test_the_box_of_a_flat_face_has_a_volume(extent, size):
    """MoveIt refuses a box with a side of 0."""
    located = SimpleNamespace(
        box=Box(np.zeros(3), np.eye(3), np.array(extent)), centroid=np.zeros(3),
        nearest=np.zeros(3), confidence=1.0,
    )  # fmt: skip
    instances = FACTORY.segmentation(HEADER, result(), [located, None, None]).instances
    assert (instances[0].box_size.x, instances[0].box_size.y, instances[0].box_size.z) == size
    assert np.isnan(instances[1].box_size.x)


def test_masks_are_cropped_to_their_boxes():
    instances = FACTORY.segmentation(HEADER, result()).instances
    sizes = [(instance.mask.width, instance.mask.height) for instance in instances]
    assert sizes == [(11, 5), (1, 1), (0, 0)]
    assert [(instance.box.width, instance.box.height) for instance in instances] == sizes
    assert {(instance.image_width, instance.image_height) for instance in instances} == {(20, 12)}
    assert all(instance.mask.header is HEADER for instance in instances)
    assert [instance.area for instance in instances] == MASKS.sum(axis=(1, 2)).tolist()


def test_a_result_without_masks_comes_back_without_masks():
    words = Segmentation(
        'q', 'no', 'no', MASKS[:0], MASKS[:0].astype(np.float32), np.zeros(0, np.float32),
        Status.SUPERSEDED,
    )  # fmt: skip
    back = result_from_message(FACTORY.segmentation(HEADER, words))
    assert (len(back.masks), back.status) == (0, Status.SUPERSEDED)


@pytest.mark.parametrize(
    ('mask', 'x'), [(np.ones((2, 3), bool), 0), (np.ones((2, 4), bool), 17)], ids=['size', 'place']
)
def test_a_mask_that_does_not_fit_its_box_or_image_is_an_error(mask, x):
    instance = SimpleNamespace(
        mask=SimpleNamespace(**mask_fields(mask)), image_height=12, image_width=20,
        box=SimpleNamespace(x_offset=x, y_offset=0, width=4, height=2),
    )  # fmt: skip
    with pytest.raises(ImageError, match='expected a mask of the size of its box'):
        mask_from_message(instance)
