# SPDX-License-Identifier: Apache-2.0
"""Masks propagated by optical flow, on synthetic sequences with known masks; no neural network."""

import multiprocessing
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
GOOD_IOU = 0.75  # without tracking it is below 0.1, with the camera's motion alone below 0.5


def texture(seed, size, colour):
    """Return a textured surface of about one colour, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    stains = np.zeros((*size, 3))
    for sigma, weight in ((1.5, 6), (4, 12), (12, 15)):
        noise = cv2.GaussianBlur(rng.normal(size=(*size, 3)), (0, 0), sigma)
        stains += weight * noise / noise.std()
    return np.clip(np.array(colour) + stains, 0, 255).astype(np.uint8)


@dataclass
class Frame:
    stamp: int
    image: np.ndarray
    depth: np.ndarray
    mask: np.ndarray  # (H, W) bool, ground truth: where the object is visible


BACKGROUND = texture(1, (720, 960), (150, 120, 90))
OBJECT = texture(2, (240, 320), (60, 110, 190))
OCCLUDER = texture(3, (240, 320), (90, 170, 70))


def draw(i, centre, *, camera=0.0, occluder=None, light=1.0, background=BACKGROUND):
    """Draw frame `i`: an ellipse at `centre`, a camera that moves, an occluder at an x [px]."""
    h, w = SIZE
    view = np.float64([[1, 0, -200 + camera], [0, 1, -200 - 0.3 * camera], [4e-7 * camera, 0, 1]])
    image = cv2.warpPerspective(background, view, (w, h), borderMode=cv2.BORDER_REFLECT)
    depth = np.full(SIZE, 1.0, np.float32)
    y, x = np.mgrid[:h, :w]
    mask = ((x - centre[0]) / 40) ** 2 + ((y - centre[1]) / 30) ** 2 < 1
    shift = np.float64([[1, 0, centre[0] - 160], [0, 1, centre[1] - 120]])
    pixels = cv2.warpAffine(OBJECT, shift, (w, h), borderMode=cv2.BORDER_REFLECT)
    image[mask], depth[mask] = pixels[mask], 0.8
    if occluder is not None:
        covered = abs(x - occluder) < 60
        shift = np.float64([[1, 0, occluder - 160], [0, 1, 0]])
        pixels = cv2.warpAffine(OCCLUDER, shift, (w, h), borderMode=cv2.BORDER_REFLECT)
        image[covered], depth[covered] = pixels[covered], 0.4
        mask = mask & ~covered
    image = np.clip(image * light, 0, 255).astype(np.uint8)
    return Frame(START + i * STEP, image, depth, mask)


def moving_object(count, speed=1.5):
    """Return frames in which the object moves to the right and the camera to the left."""
    return [
        draw(i, (120 + speed * i, 120 + 0.4 * speed * i), camera=1.2 * i) for i in range(count)
    ]


def tracker_with_reference(frame, depth=False):
    tracker = FlowTracker()
    tracker.set_reference(frame.stamp, frame.image, frame.depth if depth else None)
    return tracker


def track(frames, depth=False):
    """Return a tracker that gets the first mask at once, and its state on each frame."""
    tracker = tracker_with_reference(frames[0], depth)
    tracker.set_masks(frames[0].stamp, frames[0].mask[None])
    states = [tracker.state()]
    for frame in frames[1:]:
        tracker.update(frame.stamp, frame.image, frame.depth if depth else None)
        states.append(tracker.state())
    return tracker, states


@pytest.mark.parametrize('depth', [False, True])
def test_a_mask_moves_with_its_object_and_not_with_the_camera(depth):
    frames = moving_object(45)
    _, states = track(frames, depth)
    last = states[-1]
    assert iou(last.masks[0], frames[-1].mask) > GOOD_IOU
    assert iou(frames[0].mask, frames[-1].mask) < 0.1  # the object is somewhere else
    with_camera = np.roll(frames[0].mask, (-16, 53), (0, 1))  # as the camera moved
    assert iou(with_camera, frames[-1].mask) < 0.5
    assert last.tracked.tolist() == [True] and last.stamp == frames[-1].stamp
    assert last.age == pytest.approx(44 / 30, abs=1e-3)
    assert 0 <= last.drift[0] < 0.3 and last.drift.dtype == np.float32
    assert states[0].drift[0] < 0.01 and states[0].age == 0


def test_there_is_no_state_before_the_masks():
    first, second = moving_object(2)
    tracker = tracker_with_reference(first)
    tracker.update(second.stamp, second.image)
    assert tracker.state() is None


def test_late_masks_end_where_early_masks_end():
    frames = moving_object(40)
    late = tracker_with_reference(frames[0])
    for frame in frames[1:]:
        late.update(frame.stamp, frame.image)
    late.set_masks(frames[0].stamp, frames[0].mask[None])
    _, states = track(frames)
    assert np.array_equal(late.state().masks, states[-1].masks)
    assert late.state().age == states[-1].age
    assert iou(late.state().masks[0], frames[-1].mask) > GOOD_IOU


def test_a_second_reference_is_set_while_the_first_masks_are_tracked():
    frames = moving_object(40)
    tracker = tracker_with_reference(frames[0])
    tracker.set_masks(frames[0].stamp, frames[0].mask[None])
    for frame in frames[1:15]:
        tracker.update(frame.stamp, frame.image)
    tracker.set_reference(frames[15].stamp, frames[15].image)
    assert tracker.state().stamp == frames[15].stamp  # a reference is a newer frame, too
    for frame in frames[16:30]:
        tracker.update(frame.stamp, frame.image)
    assert tracker.state().age == pytest.approx(29 / 30, abs=1e-3)
    assert iou(tracker.state().masks[0], frames[29].mask) > GOOD_IOU
    tracker.set_masks(frames[15].stamp, frames[15].mask[None])
    assert tracker.state().age == pytest.approx(14 / 30, abs=1e-3)
    assert iou(tracker.state().masks[0], frames[29].mask) > GOOD_IOU


def test_a_reference_may_be_a_little_older_than_the_newest_frame():
    frames = moving_object(20)
    tracker = tracker_with_reference(frames[0])
    for frame in frames[1:10]:
        tracker.update(frame.stamp, frame.image)
    tracker.set_reference(frames[6].stamp, frames[6].image)
    for frame in frames[10:]:
        tracker.update(frame.stamp, frame.image)
    tracker.set_masks(frames[6].stamp, frames[6].mask[None])
    assert iou(tracker.state().masks[0], frames[-1].mask) > 0.9


def visible_fractions(frames):
    return np.array([frame.mask.sum() for frame in frames]) / frames[0].mask.sum()


@pytest.mark.parametrize('depth', [False, True])
def test_an_object_that_leaves_the_image_is_lost(depth):
    frames = [draw(i, (120 - 4 * i, 120)) for i in range(60)]
    _, states = track(frames, depth)
    visible = visible_fractions(frames)
    first_invisible = int(np.argmax(visible < 0.1))
    assert first_invisible < 45
    assert all(s.tracked[0] for s, part in zip(states, visible, strict=True) if part > 0.3)
    assert not any(state.tracked[0] for state in states[first_invisible + 15 :])
    assert not states[-1].masks.any() and states[-1].drift[0] == 1


@pytest.mark.parametrize('depth', [False, True])
def test_an_occluded_object_is_lost_and_a_partly_visible_one_is_not(depth):
    frames = [draw(i, (160, 120), occluder=-60 + 4 * i) for i in range(70)]
    _, states = track(frames, depth)
    visible = visible_fractions(frames)
    first_invisible = int(np.argmax(visible < 0.1))
    assert visible.min() == 0
    half = int(np.argmax(visible < 0.6))
    assert states[half].tracked[0] and iou(states[half].masks[0], frames[half].mask) > 0.75
    before = zip(states[:first_invisible], visible, strict=False)
    assert all(state.tracked[0] for state, part in before if part > 0.3)
    assert not any(state.tracked[0] for state in states[first_invisible + 15 :])
    assert visible[-1] > 0.4  # it reappears, but only the next answer finds it
    assert states[half].drift[0] > states[0].drift[0] + 0.2


def test_depth_reveals_an_occluder_of_the_same_colours():
    """Only depth shows an occluder whose colours do not differ."""
    frames = [draw(0, (160, 120)) for _ in range(30)]
    tracker = tracker_with_reference(frames[0], depth=True)
    tracker.set_masks(frames[0].stamp, frames[0].mask[None])
    for i, frame in enumerate(frames[1:], 1):
        depth = frame.depth.copy()
        depth[:, : 14 * i] = 0.4
        tracker.update(START + i * STEP, frame.image, depth)
    assert not tracker.state().tracked[0]


@pytest.mark.parametrize(('count', 'recovers'), [(4, True), (12, False)])
def test_an_object_recovers_from_a_short_occlusion_only(count, recovers):
    frames = [draw(i, (160, 120)) for i in range(20)]
    for frame in frames[3 : 3 + count]:
        frame.depth[:] = 0.4
    _, states = track(frames, depth=True)
    assert not any(state.tracked[0] for state in states[3 : 3 + count])
    assert all(state.tracked[0] == recovers for state in states[3 + count :])
    assert states[-1].masks.any() == recovers


def test_an_object_that_comes_closer_as_a_whole_is_not_occluded():
    frames = moving_object(40)
    for i, frame in enumerate(frames):
        frame.depth -= 0.008 * i
    _, states = track(frames, depth=True)
    assert states[-1].tracked[0] and iou(states[-1].masks[0], frames[-1].mask) > GOOD_IOU


def test_invalid_depth_occludes_nothing():
    frames = moving_object(30)
    for frame in frames:
        frame.depth[::2] = np.nan
    frames[10].depth[:] = np.nan
    _, states = track(frames, depth=True)
    assert iou(states[-1].masks[0], frames[-1].mask) > GOOD_IOU


@pytest.mark.parametrize('final', [0.55, 1.3])
def test_a_change_of_brightness_occludes_nothing(final):
    light = [1 + (final - 1) * min(1, i / 20) for i in range(40)]
    frames = [draw(i, (120 + i, 120), camera=i, light=light[i]) for i in range(40)]
    _, states = track(frames)
    assert states[-1].tracked[0] and iou(states[-1].masks[0], frames[-1].mask) > GOOD_IOU


def test_a_darker_part_of_the_room_is_no_change_of_brightness():
    dark = BACKGROUND.copy()
    dark[:, :200] = dark[:, :200] * 0.25
    frames = [draw(i, (60 + 4 * i, 100), camera=4 * i, background=dark) for i in range(46)]
    assert np.median(frames[-1].image) < 0.5 * np.median(frames[0].image)
    _, states = track(frames)
    assert all(state.tracked[0] for state in states)
    assert iou(states[-1].masks[0], frames[-1].mask) > GOOD_IOU


def test_several_objects_keep_their_order():
    frames = moving_object(20)
    second = np.zeros(SIZE, bool)
    second[180:220, 20:80] = True
    tracker = tracker_with_reference(frames[0])
    tracker.set_masks(frames[0].stamp, np.stack([second, frames[0].mask]))
    for frame in frames[1:]:
        tracker.update(frame.stamp, frame.image)
    assert tracker.state().masks.shape == (2, *SIZE) and tracker.state().masks.dtype == bool
    assert iou(tracker.state().masks[1], frames[-1].mask) > GOOD_IOU
    assert not (tracker.state().masks[0] & frames[-1].mask).any()


def test_an_empty_mask_is_lost_and_no_mask_is_no_object():
    first, second = moving_object(2)
    tracker = tracker_with_reference(first)
    tracker.set_masks(first.stamp, np.zeros((1, *SIZE), bool))
    tracker.update(second.stamp, second.image)
    assert tracker.state().tracked.tolist() == [False] and tracker.state().drift.tolist() == [1]
    tracker.set_masks(first.stamp, np.zeros((0, *SIZE), bool))
    assert tracker.state().masks.shape == (0, *SIZE) and tracker.state().tracked.shape == (0,)
    tracker.set_masks(first.stamp, np.zeros((0, 0, 0), bool))  # as in a failed answer
    assert tracker.state().masks.shape == (0, *SIZE)


def test_masks_for_a_frame_that_is_no_reference_are_an_error():
    first, second = moving_object(2)
    tracker = tracker_with_reference(first)
    tracker.update(second.stamp, second.image)
    with pytest.raises(TrackingError, match=f'{second.stamp} ns'):
        tracker.set_masks(second.stamp, second.mask[None])


def test_masks_of_another_size_are_refused():
    first = moving_object(1)[0]
    tracker = tracker_with_reference(first)
    with pytest.raises(ImageError, match='240, 320'):
        tracker.set_masks(first.stamp, np.zeros((1, 24, 32), bool))


def test_depth_of_another_size_is_refused():
    first = moving_object(1)[0]
    with pytest.raises(ImageError, match='depth'):
        FlowTracker().set_reference(first.stamp, first.image, first.depth[::2])


@pytest.mark.parametrize('change', ['size', 'time'])
def test_a_frame_of_another_size_and_an_older_frame_reset_the_tracker(change):
    frames = moving_object(5)
    tracker, _ = track(frames)
    if change == 'size':
        tracker.update(frames[-1].stamp + STEP, frames[-1].image[:200, :300])
    else:
        tracker.update(frames[0].stamp - STEP, frames[0].image)
    assert tracker.state() is None
    with pytest.raises(TrackingError, match='reference frames are: none'):
        tracker.set_masks(frames[0].stamp, frames[0].mask[None])


def test_the_same_frame_again_changes_nothing():
    frames = moving_object(5)
    tracker, states = track(frames)
    tracker.update(frames[-1].stamp, frames[0].image)
    assert tracker.state() is states[-1]


def test_masks_of_a_large_image_have_its_size():
    size = (1280, 960)
    frames = [
        Frame(
            frame.stamp,
            cv2.resize(frame.image, size),
            cv2.resize(frame.depth, size),
            cv2.resize(frame.mask * 1.0, size) > 0.5,
        )
        for frame in moving_object(20)
    ]
    _, states = track(frames)
    assert states[-1].masks.shape == (1, 960, 1280)
    assert iou(states[-1].masks[0], frames[-1].mask) > 0.9


def test_references_without_masks_do_not_accumulate():
    frames = moving_object(8)
    tracker = FlowTracker()
    for frame in frames:
        tracker.set_reference(frame.stamp, frame.image)
    with pytest.raises(TrackingError):
        tracker.set_masks(frames[0].stamp, frames[0].mask[None])
    tracker.set_masks(frames[-1].stamp, frames[-1].mask[None])


def track_in_wide_images(sizes):
    """Fail if a mask is not tracked in a moving image of one of these sizes."""
    for height, width in sizes:
        image, mask = texture(5, (height, width), (120, 120, 120)), np.zeros((height, width), bool)
        mask[height // 4 : height // 2, width // 4 : width // 3] = True
        tracker = FlowTracker()
        tracker.set_reference(0, image)
        tracker.set_masks(0, mask[None])
        for shift in range(1, 13):  # more than one key frame
            tracker.update(shift * STEP, np.roll(image, shift, axis=1))
        state = tracker.state()
        assert state.drift.tolist() == [pytest.approx(0, abs=0.1)], (height, width)
        assert iou(state.masks[0], np.roll(mask, 12, axis=1)) > 0.9, (height, width)


def test_wide_and_low_images_are_tracked():
    """Of a spinning lidar, a line camera or a strip; in a process, since OpenCV may crash."""
    sizes = [(64, 1024), (128, 2048), (64, 2048), (48, 640), (33, 640), (36, 401)]
    process = multiprocessing.get_context('spawn').Process(
        target=track_in_wide_images, args=(sizes,)
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
