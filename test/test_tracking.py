# SPDX-License-Identifier: Apache-2.0
"""Masks carried by optical flow, on sequences drawn here whose truth is known; no model."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from lisa_ros.errors import ImageError, TrackingError
from lisa_ros.perception.masks import iou
from lisa_ros.tracking.optical_flow import FlowTracker

SIZE = (240, 320)  # H, W
STEP = 33_333_333  # between two frames [ns]
START = 1_790_000_000_000_000_000
GOOD = 0.75  # IoU; without following it is below 0.1, with the camera's movement below 0.5


def texture(seed, size, colour):
    """A stained surface, (h, w, 3) uint8, about a colour."""
    rng = np.random.default_rng(seed)
    sum_ = np.zeros((*size, 3))
    for sigma, weight in ((1.5, 6), (4, 12), (12, 15)):
        noise = cv2.GaussianBlur(rng.normal(size=(*size, 3)), (0, 0), sigma)
        sum_ += weight * noise / noise.std()
    return np.clip(np.array(colour) + sum_, 0, 255).astype(np.uint8)


@dataclass
class Shot:
    stamp: int
    image: np.ndarray
    depth: np.ndarray
    truth: np.ndarray  # (H, W) bool, where the thing shows


BACK = texture(1, (720, 960), (150, 120, 90))
THING = texture(2, (240, 320), (60, 110, 190))
COVER = texture(3, (240, 320), (90, 170, 70))


def shot(i, at, *, camera=0.0, cover=None, light=1.0, back=BACK):
    """Frame `i`: a round thing about (x, y), a camera that moves, something before it."""
    h, w = SIZE
    turn = np.float64([[1, 0, -200 + camera], [0, 1, -200 - 0.3 * camera], [4e-7 * camera, 0, 1]])
    image = cv2.warpPerspective(back, turn, (w, h), borderMode=cv2.BORDER_REFLECT)
    depth = np.full(SIZE, 1.0, np.float32)
    y, x = np.mgrid[:h, :w]
    truth = ((x - at[0]) / 40) ** 2 + ((y - at[1]) / 30) ** 2 < 1
    shift = np.float64([[1, 0, at[0] - 160], [0, 1, at[1] - 120]])
    thing = cv2.warpAffine(THING, shift, (w, h), borderMode=cv2.BORDER_REFLECT)
    image[truth], depth[truth] = thing[truth], 0.8
    if cover is not None:
        over = abs(x - cover) < 60
        shift = np.float64([[1, 0, cover - 160], [0, 1, 0]])
        front = cv2.warpAffine(COVER, shift, (w, h), borderMode=cv2.BORDER_REFLECT)
        image[over], depth[over] = front[over], 0.4
        truth = truth & ~over
    image = np.clip(image * light, 0, 255).astype(np.uint8)
    return Shot(START + i * STEP, image, depth, truth)


def moving(count, speed=1.5, **more):
    """The thing goes to the right, the camera to the left."""
    return [
        shot(i, (120 + speed * i, 120 + 0.4 * speed * i), camera=1.2 * i, **more)
        for i in range(count)
    ]


def begun(first, depth=False):
    tracker = FlowTracker()
    tracker.set_reference(first.stamp, first.image, first.depth if depth else None)
    return tracker


def followed(shots, depth=False):
    """A tracker that had its answer at once, and where the thing was in each frame."""
    tracker = begun(shots[0], depth)
    tracker.set_masks(shots[0].stamp, shots[0].truth[None])
    found = [tracker.state()]
    for one in shots[1:]:
        tracker.update(one.stamp, one.image, one.depth if depth else None)
        found.append(tracker.state())
    return tracker, found


@pytest.mark.parametrize('depth', [False, True])
def test_a_mask_moves_with_its_thing_and_not_with_the_camera(depth):
    shots = moving(45)
    _, found = followed(shots, depth)
    last = found[-1]
    assert iou(last.masks[0], shots[-1].truth) > GOOD
    assert iou(shots[0].truth, shots[-1].truth) < 0.1  # it has really gone somewhere else
    turned = np.roll(shots[0].truth, (-16, 53), (0, 1))  # as the camera moved
    assert iou(turned, shots[-1].truth) < 0.5
    assert last.tracked.tolist() == [True] and last.stamp == shots[-1].stamp
    assert last.age == pytest.approx(44 / 30, abs=1e-3)
    assert 0 <= last.drift[0] < 0.3 and last.drift.dtype == np.float32
    assert found[0].drift[0] < 0.01 and found[0].age == 0


def test_before_an_answer_there_is_nothing():
    first, second = moving(2)
    tracker = begun(first)
    tracker.update(second.stamp, second.image)
    assert tracker.state() is None


def test_a_late_answer_is_carried_to_where_an_early_one_is():
    shots = moving(40)
    late = begun(shots[0])
    for one in shots[1:]:
        late.update(one.stamp, one.image)
    late.set_masks(shots[0].stamp, shots[0].truth[None])
    _, found = followed(shots)
    assert np.array_equal(late.state().masks, found[-1].masks)
    assert late.state().age == found[-1].age
    assert iou(late.state().masks[0], shots[-1].truth) > GOOD


def test_a_second_question_opens_while_the_first_answer_is_followed():
    shots = moving(40)
    tracker = begun(shots[0])
    tracker.set_masks(shots[0].stamp, shots[0].truth[None])
    for one in shots[1:15]:
        tracker.update(one.stamp, one.image)
    tracker.set_reference(shots[15].stamp, shots[15].image)
    assert tracker.state().stamp == shots[15].stamp  # a begun frame is a newer frame too
    for one in shots[16:30]:
        tracker.update(one.stamp, one.image)
    assert tracker.state().age == pytest.approx(29 / 30, abs=1e-3)
    assert iou(tracker.state().masks[0], shots[29].truth) > GOOD
    tracker.set_masks(shots[15].stamp, shots[15].truth[None])
    assert tracker.state().age == pytest.approx(14 / 30, abs=1e-3)
    assert iou(tracker.state().masks[0], shots[29].truth) > GOOD


def test_a_question_about_a_frame_just_before_the_newest_one_is_taken():
    shots = moving(20)
    tracker = begun(shots[0])
    for one in shots[1:10]:
        tracker.update(one.stamp, one.image)
    tracker.set_reference(shots[6].stamp, shots[6].image)
    for one in shots[10:]:
        tracker.update(one.stamp, one.image)
    tracker.set_masks(shots[6].stamp, shots[6].truth[None])
    assert iou(tracker.state().masks[0], shots[-1].truth) > 0.9


@pytest.mark.parametrize('depth', [False, True])
def test_a_thing_that_leaves_the_picture_is_lost(depth):
    shots = [shot(i, (120 - 4 * i, 120)) for i in range(60)]
    _, found = followed(shots, depth)
    areas = np.array([one.truth.sum() for one in shots]) / shots[0].truth.sum()
    gone = int(np.argmax(areas < 0.1))
    assert gone < 45
    assert all(one.tracked[0] for one, area in zip(found, areas, strict=True) if area > 0.3)
    assert not any(one.tracked[0] for one in found[gone + 15 :])
    assert not found[-1].masks.any() and found[-1].drift[0] == 1


@pytest.mark.parametrize('depth', [False, True])
def test_a_thing_that_is_hidden_is_lost_and_what_shows_of_it_is_not(depth):
    shots = [shot(i, (160, 120), cover=-60 + 4 * i) for i in range(70)]
    _, found = followed(shots, depth)
    areas = np.array([one.truth.sum() for one in shots]) / shots[0].truth.sum()
    gone = int(np.argmax(areas < 0.1))
    assert areas.min() == 0
    half = int(np.argmax(areas < 0.6))
    assert found[half].tracked[0] and iou(found[half].masks[0], shots[half].truth) > 0.75
    assert all(
        one.tracked[0] for one, area in zip(found[:gone], areas, strict=False) if area > 0.3
    )
    assert not any(one.tracked[0] for one in found[gone + 15 :])
    assert areas[-1] > 0.4  # it comes out again, and yet only the next answer finds it
    assert found[half].drift[0] > found[0].drift[0] + 0.2


def test_depth_sees_what_has_the_same_colours():
    """What comes nearer without a seam in colour is seen by its depth alone."""
    shots = [shot(0, (160, 120)) for _ in range(30)]
    tracker = begun(shots[0], depth=True)
    tracker.set_masks(shots[0].stamp, shots[0].truth[None])
    for i, one in enumerate(shots[1:], 1):
        depth = one.depth.copy()
        depth[:, : 14 * i] = 0.4
        tracker.update(START + i * STEP, one.image, depth)
    assert not tracker.state().tracked[0]


@pytest.mark.parametrize(('frames', 'found'), [(4, True), (12, False)])
def test_what_was_hidden_for_a_moment_is_found_and_what_was_lost_is_not(frames, found):
    shots = [shot(i, (160, 120)) for i in range(20)]
    for one in shots[3 : 3 + frames]:
        one.depth[:] = 0.4
    _, seen = followed(shots, depth=True)
    assert not any(one.tracked[0] for one in seen[3 : 3 + frames])
    assert all(one.tracked[0] == found for one in seen[3 + frames :])
    assert seen[-1].masks.any() == found


def test_a_thing_that_comes_nearer_as_a_whole_is_not_hidden():
    shots = moving(40)
    for i, one in enumerate(shots):
        one.depth -= 0.008 * i
    _, found = followed(shots, depth=True)
    assert found[-1].tracked[0] and iou(found[-1].masks[0], shots[-1].truth) > GOOD


def test_holes_in_the_depth_hide_nothing():
    shots = moving(30)
    for one in shots:
        one.depth[::2] = np.nan
    shots[10].depth[:] = np.nan
    _, found = followed(shots, depth=True)
    assert iou(found[-1].masks[0], shots[-1].truth) > GOOD


@pytest.mark.parametrize('to', [0.55, 1.3])
def test_a_change_of_brightness_hides_nothing(to):
    shots = [
        shot(i, (120 + i, 120), camera=i, light=1 + (to - 1) * min(1, i / 20)) for i in range(40)
    ]
    _, found = followed(shots)
    assert found[-1].tracked[0] and iou(found[-1].masks[0], shots[-1].truth) > GOOD


def test_another_part_of_the_room_is_no_other_light():
    dark = BACK.copy()
    dark[:, :200] = dark[:, :200] * 0.25
    shots = [shot(i, (60 + 4 * i, 100), camera=4 * i, back=dark) for i in range(46)]
    assert np.median(shots[-1].image) < 0.5 * np.median(shots[0].image)
    _, found = followed(shots)
    assert all(one.tracked[0] for one in found)
    assert iou(found[-1].masks[0], shots[-1].truth) > GOOD


def test_several_things_keep_their_order():
    shots = moving(20)
    other = np.zeros(SIZE, bool)
    other[180:220, 20:80] = True
    tracker = begun(shots[0])
    tracker.set_masks(shots[0].stamp, np.stack([other, shots[0].truth]))
    for one in shots[1:]:
        tracker.update(one.stamp, one.image)
    assert tracker.state().masks.shape == (2, *SIZE) and tracker.state().masks.dtype == bool
    assert iou(tracker.state().masks[1], shots[-1].truth) > GOOD
    assert not (tracker.state().masks[0] & shots[-1].truth).any()


def test_an_empty_mask_is_lost_and_no_mask_is_no_thing():
    first, second = moving(2)
    tracker = begun(first)
    tracker.set_masks(first.stamp, np.zeros((1, *SIZE), bool))
    tracker.update(second.stamp, second.image)
    assert tracker.state().tracked.tolist() == [False] and tracker.state().drift.tolist() == [1]
    tracker.set_masks(first.stamp, np.zeros((0, *SIZE), bool))
    assert tracker.state().masks.shape == (0, *SIZE) and tracker.state().tracked.shape == (0,)
    tracker.set_masks(first.stamp, np.zeros((0, 0, 0), bool))  # as a failed answer has them
    assert tracker.state().masks.shape == (0, *SIZE)


def test_an_answer_about_an_unknown_frame_is_an_error_of_its_own():
    first, second = moving(2)
    tracker = begun(first)
    tracker.update(second.stamp, second.image)
    with pytest.raises(TrackingError, match=f'{second.stamp} ns'):
        tracker.set_masks(second.stamp, second.truth[None])


def test_masks_of_another_size_are_refused():
    first = moving(1)[0]
    tracker = begun(first)
    with pytest.raises(ImageError, match='240, 320'):
        tracker.set_masks(first.stamp, np.zeros((1, 24, 32), bool))


def test_depth_of_another_size_is_refused():
    first = moving(1)[0]
    with pytest.raises(ImageError, match='depth'):
        FlowTracker().set_reference(first.stamp, first.image, first.depth[::2])


@pytest.mark.parametrize('change', ['size', 'time'])
def test_another_size_and_an_older_frame_forget_all(change):
    shots = moving(5)
    tracker, _ = followed(shots)
    if change == 'size':
        tracker.update(shots[-1].stamp + STEP, shots[-1].image[:200, :300])
    else:
        tracker.update(shots[0].stamp - STEP, shots[0].image)
    assert tracker.state() is None
    with pytest.raises(TrackingError, match='asked about are: none'):
        tracker.set_masks(shots[0].stamp, shots[0].truth[None])


def test_the_same_frame_again_changes_nothing():
    shots = moving(5)
    tracker, found = followed(shots)
    tracker.update(shots[-1].stamp, shots[0].image)
    assert tracker.state() is found[-1]


def test_a_large_picture_is_followed_on_a_smaller_one():
    shots = moving(20)
    grown = [
        (one.stamp, cv2.resize(one.image, (1280, 960)), cv2.resize(one.truth * 1.0, (1280, 960)))
        for one in shots
    ]
    tracker = FlowTracker()
    tracker.set_reference(*grown[0][:2])
    tracker.set_masks(grown[0][0], grown[0][2][None] > 0.5)
    for stamp, image, _ in grown[1:]:
        tracker.update(stamp, image)
    assert tracker.state().masks.shape == (1, 960, 1280)
    assert iou(tracker.state().masks[0], grown[-1][2] > 0.5) > 0.9


def test_questions_that_nobody_answers_do_not_pile_up():
    shots = moving(8)
    tracker = FlowTracker()
    for one in shots:
        tracker.set_reference(one.stamp, one.image)
    with pytest.raises(TrackingError):
        tracker.set_masks(shots[0].stamp, shots[0].truth[None])
    tracker.set_masks(shots[-1].stamp, shots[-1].truth[None])
