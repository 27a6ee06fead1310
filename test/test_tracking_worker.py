# SPDX-License-Identifier: Apache-2.0
"""The tracking worker: late answers are tracked, frames may be skipped, nothing runs unwanted."""

import threading
import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from test_scheduler import found_result

from lisa_ros.errors import ImageError, ModelError
from lisa_ros.ros.configuration import requery_policy
from lisa_ros.session.frame_buffer import FrameBuffer
from lisa_ros.settings import Settings
from lisa_ros.tracking.optical_flow import FlowTracker
from lisa_ros.tracking.requery import RequeryPolicy, RequeryRule
from lisa_ros.tracking.tracker import TrackingState
from lisa_ros.tracking.worker import TrackerFrame, TrackingWorker, propagate_result

TEXTURE = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
TEXTURE = cv2.GaussianBlur(TEXTURE, (0, 0), 2)


@dataclass(frozen=True)
class Frame:
    stamp: int
    shift: int = 0
    broken: bool = False

    @property
    def moment(self):
        return self.stamp


def answer(shift=0):
    mask = np.zeros((1, 240, 320), bool)
    mask[0, 80:160, 100 + shift : 180 + shift] = True
    return replace(found_result('it'), masks=mask, mask_logits=np.where(mask, 2.0, -2.0))


class Sink:
    """Gives the newest frame and collects what the worker publishes."""

    def __init__(self):
        self.newest, self.published, self.reports, self.requeries = None, [], [], 0
        self.is_subscribed = True
        self.gate = threading.Event()  # frames are converted while it is set
        self.gate.set()
        self.converted = []

    def newest_frame(self):
        return self.newest

    def convert(self, frame):
        assert self.gate.wait(10)
        self.converted.append(frame.stamp)
        if frame.broken:
            raise ImageError('a broken image')
        return TrackerFrame(frame.stamp, np.roll(TEXTURE, frame.shift, axis=1))

    def has_subscribers(self):
        return self.is_subscribed

    def publish(self, frame, tracker_frame, result, state):
        self.published.append((frame, result, state))

    def requery(self):
        self.requeries += 1

    def report(self, message):
        self.reports.append(message)


class FailingTracker(FlowTracker):
    """Takes new masks, and then fails, as a model that computes NaN."""

    is_broken = False  # for new masks
    has_nan = False  # in its memory: the next frame fails
    has_dropped = False  # its objects, after NaN

    def set_masks(self, stamp, masks):
        super().set_masks(stamp, masks)
        self.has_nan, self.has_dropped = False, self.is_broken
        if self.is_broken:
            raise ModelError('NaN in the tracked masks')

    def update(self, stamp, image, depth=None):
        super().update(stamp, image, depth)
        if self.has_nan:
            self.has_nan, self.has_dropped = False, True
            raise ModelError('NaN in the tracked masks')

    def state(self):
        return None if self.has_dropped else super().state()


class Rig:
    """A worker with its sink."""

    def __init__(self, sink=None):
        self.sink, self.tracker = sink or Sink(), FailingTracker()
        self.worker = TrackingWorker(self.tracker, self.sink, requery_policy(Settings()))
        self.worker.start()

    def show(self, frame):
        self.sink.newest = frame
        self.worker.notify()

    def wait(self, done):
        until = time.monotonic() + 20
        while not done():
            assert time.monotonic() < until, (self.sink.published, self.sink.reports)
            time.sleep(0.005)

    def wait_until_idle(self):
        assert self.worker.idle.wait(20)

    def show_and_wait(self, frame):
        self.show(frame)
        self.wait_until_idle()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    assert rig.worker.close()
    assert not [line for line in rig.sink.reports if 'Traceback' in line]


def test_a_late_answer_is_tracked_to_the_newest_frame(rig):
    first = Frame(10**9)
    rig.worker.on_query(first)
    for i in range(1, 11):
        rig.show_and_wait(Frame(10**9 + i * 33_000_000, shift=3 * i))
    assert rig.sink.published == []  # there is no answer yet
    rig.worker.on_answer(first, answer())
    rig.show_and_wait(rig.sink.newest)
    frame, result, state = rig.sink.published[0]
    assert frame is rig.sink.newest
    expected = answer(30).masks[0]
    assert (result.masks[0] & expected).sum() / (result.masks[0] | expected).sum() > 0.9
    assert state.age == pytest.approx(0.33)
    assert state.tracked.tolist() == [True]


def test_after_a_failed_answer_the_former_one_does_not_describe_its_masks(rig):
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    (shown,) = rig.sink.published
    assert shown[1].query == 'it'
    rig.tracker.is_broken = True
    rig.worker.on_query(Frame(3))
    two = replace(answer(), query='both', masks=np.repeat(answer().masks, 2, axis=0))
    rig.worker.on_answer(Frame(3), two)
    rig.show_and_wait(Frame(4))
    rig.show_and_wait(Frame(5))
    assert rig.sink.published == [shown]
    assert [line for line in rig.sink.reports if 'NaN in the tracked masks' in line]
    rig.tracker.is_broken = False
    rig.worker.on_answer(Frame(5), answer())
    rig.show_and_wait(Frame(6))
    assert rig.sink.published[-1][0].stamp == 6


def test_after_nan_the_last_answer_is_tracked_again(rig):
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    rig.tracker.has_nan = True
    rig.show_and_wait(Frame(3))
    rig.show_and_wait(Frame(4, shift=3))
    assert [frame.stamp for frame, _, _ in rig.sink.published] == [2, 4]
    masks = rig.sink.published[-1][1].masks[0], answer(3).masks[0]
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.9


def test_after_nan_long_after_the_answer_the_query_is_asked_again(rig):
    rig.worker.set_policy(RequeryPolicy(RequeryRule.DRIFT, period=0.0, max_drift=1.0))
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    for i in range(1, 8):
        rig.show_and_wait(Frame(i * 10**9))
    assert rig.sink.requeries == 0
    rig.tracker.has_nan = True
    rig.show_and_wait(Frame(8 * 10**9))
    assert rig.sink.requeries == 0
    rig.show_and_wait(Frame(9 * 10**9))
    assert rig.sink.requeries == 1


def test_after_nan_the_answer_to_a_slow_query_that_ran_meanwhile_is_tracked(rig):
    second = 10**9
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(7 * second))
    rig.worker.on_query(Frame(8 * second))
    rig.show_and_wait(Frame(9 * second))
    rig.tracker.has_nan = True
    for i in range(10, 16):
        rig.show_and_wait(Frame(i * second))
    published = len(rig.sink.published)
    rig.worker.on_answer(Frame(8 * second), answer())
    rig.show_and_wait(Frame(16 * second))
    assert len(rig.sink.published) == published + 1


@pytest.mark.parametrize('rule', [RequeryRule.NEVER, RequeryRule.DRIFT])
def test_after_nan_and_a_query_that_fails_tracking_goes_on(rig, rule):
    rig.worker.set_policy(RequeryPolicy(rule, period=0.0, max_drift=1.0))
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    rig.tracker.has_nan = True
    rig.worker.on_query(Frame(3))  # it ends without an answer
    rig.show_and_wait(Frame(4))
    rig.show_and_wait(Frame(5))
    assert rig.sink.published[-1][0].stamp == 5
    rig.tracker.has_nan = True
    rig.show_and_wait(Frame(9 * 10**9))
    for i in range(10, 13):
        rig.worker.on_query(Frame(i * 10**9))  # as above
        rig.show_and_wait(Frame(i * 10**9 + 1))
    assert rig.sink.published[-1][0].stamp == 5
    assert rig.sink.requeries == (0 if rule is RequeryRule.NEVER else 3)


def test_after_masks_that_are_nan_the_query_is_asked_again(rig):
    rig.worker.set_policy(RequeryPolicy(RequeryRule.DRIFT, period=0.0, max_drift=1.0))
    rig.tracker.is_broken = True
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(6 * 10**9))
    assert (rig.sink.published, rig.sink.requeries) == ([], 1)


def test_a_broken_image_is_reported_and_the_next_one_is_tracked(rig):
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show(Frame(2, broken=True))
    rig.wait(lambda: rig.sink.reports)
    assert 'a broken image' in rig.sink.reports[0]
    rig.show(Frame(3))
    rig.wait(lambda: rig.sink.published)


def test_nothing_is_tracked_without_subscribers_and_a_late_one_gets_the_last_answer(rig):
    rig.sink.is_subscribed = False
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    assert rig.sink.published == []
    assert rig.sink.converted == []
    rig.sink.is_subscribed = True
    rig.show_and_wait(Frame(3))
    assert rig.sink.published[0][0].stamp == 3


def test_an_old_answer_is_not_tracked_for_a_late_subscriber(rig):
    rig.sink.is_subscribed = False
    rig.worker.on_answer(Frame(1), answer())
    rig.wait_until_idle()
    rig.sink.is_subscribed = True
    rig.show_and_wait(Frame(6 * 10**9))
    assert rig.sink.published == []


def test_an_answer_after_a_restart_is_tracked_for_a_subscriber_that_comes_back(rig):
    start = 10**12
    rig.worker.on_query(Frame(start))
    rig.worker.on_answer(Frame(start), answer())
    rig.show_and_wait(Frame(start + 1))
    rig.sink.is_subscribed = False
    rig.show_and_wait(Frame(start + 2))
    rig.show_and_wait(Frame(1))  # a bag began again
    rig.worker.on_query(Frame(2))
    rig.worker.on_answer(Frame(2), answer())
    rig.sink.is_subscribed = True
    rig.show_and_wait(Frame(3))
    assert [frame.stamp for frame, _, _ in rig.sink.published] == [start + 1, 3]
    assert rig.sink.reports == []


def test_after_time_went_back_the_answer_does_not_come_back_when_its_time_does(rig):
    start = 10**10
    rig.worker.on_query(Frame(start))
    rig.worker.on_answer(Frame(start), answer())
    rig.show_and_wait(Frame(start + 1))
    assert len(rig.sink.published) == 1
    rig.show_and_wait(Frame(5))  # a simulation began again
    assert 'time went back' in rig.sink.reports[-1]
    for stamp in (start, start + 2):
        rig.show_and_wait(Frame(stamp))
    assert len(rig.sink.published) == 1
    rig.worker.on_answer(Frame(start + 2), answer())
    rig.show_and_wait(Frame(start + 3))
    assert len(rig.sink.published) == 2


def test_an_answer_is_tracked_without_a_notice_of_its_query(rig):
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    rig.worker.on_answer(Frame(2), replace(answer(), query='another'))  # without `on_query`
    rig.show(Frame(3))
    rig.wait(lambda: rig.sink.published and rig.sink.published[-1][1].query == 'another')


def test_a_frame_that_arrives_late_changes_nothing(rig):
    rig.worker.on_query(Frame(10**9))
    rig.worker.on_answer(Frame(10**9), answer())
    rig.show_and_wait(Frame(10**9 + 66_000_000))
    count = len(rig.sink.published)
    rig.show_and_wait(Frame(10**9 + 33_000_000))
    rig.show_and_wait(Frame(10**9 + 99_000_000))
    assert len(rig.sink.published) == count + 1
    assert rig.sink.published[-1][2].tracked.all()


def test_after_stop_nothing_is_tracked(rig):
    assert not rig.worker.stop()  # nothing was
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    assert rig.worker.stop()
    rig.show_and_wait(Frame(3))
    assert rig.sink.published[-1][0].stamp == 2
    assert not rig.worker.stop()


def test_after_close_the_worker_is_idle_whatever_comes(rig):
    rig.worker.on_query(Frame(1))
    assert rig.worker.close()
    assert rig.worker.idle.is_set()
    rig.worker.notify()
    rig.worker.on_query(Frame(2))
    rig.worker.on_answer(Frame(2), answer())
    rig.worker.stop()
    assert rig.worker.idle.is_set()


def test_of_waiting_answers_the_last_one_is_tracked(rig):
    rig.sink.gate.clear()
    for stamp in range(1, 6):
        rig.worker.on_query(Frame(stamp))
        rig.worker.on_answer(Frame(stamp), replace(answer(), query=str(stamp)))
    assert not rig.worker.idle.is_set()
    rig.sink.gate.set()
    rig.show_and_wait(Frame(9))
    assert {result.query for _, result, _ in rig.sink.published} == {'5'}
    assert len(set(rig.sink.converted) & {1, 2, 3, 4}) <= 1  # only the one at the gate


def test_a_query_is_repeated_on_drift_and_when_the_tracker_has_lost_its_reference(rig):
    rig.worker.set_policy(RequeryPolicy(RequeryRule.DRIFT, period=0.0, max_drift=0.9))
    rig.worker.on_query(Frame(10**9))
    rig.worker.on_answer(Frame(10**9), answer())
    rig.show_and_wait(Frame(10**9 + 1))
    assert rig.sink.published[-1][2].tracked.all()
    assert rig.sink.requeries == 0
    rig.show_and_wait(Frame(1))  # long before: a bag has restarted
    rig.show_and_wait(Frame(2))
    assert rig.sink.requeries == 1
    assert rig.sink.reports == ['time went back, so nothing is tracked until the next answer']


def test_a_query_is_repeated_once_a_period(rig):
    rig.worker.set_policy(RequeryPolicy(RequeryRule.TIMER, period=3600.0, max_drift=0.5))
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    rig.show_and_wait(Frame(2))
    assert rig.sink.requeries == 0
    rig.worker.set_policy(RequeryPolicy(RequeryRule.TIMER, period=0.0, max_drift=0.5))
    rig.show_and_wait(Frame(3))
    rig.show_and_wait(Frame(4))
    assert rig.sink.requeries == 2


def test_of_many_frames_the_newest_is_tracked(rig):
    rig.sink.gate.clear()
    rig.worker.on_query(Frame(1))
    rig.worker.on_answer(Frame(1), answer())
    for stamp in range(2, 50):
        rig.show(Frame(stamp))
    rig.sink.gate.set()
    rig.wait_until_idle()
    assert [frame.stamp for frame, *_ in rig.sink.published] == [49]


class StreamSink(Sink):
    """Gives the frames of a frame buffer, as the node does."""

    def __init__(self):
        super().__init__()
        self.buffer = FrameBuffer(8)

    def newest_frame(self):
        return self.buffer.newest_frame(0.01)

    def convert(self, frame):
        return TrackerFrame(frame.moment, np.roll(TEXTURE, frame.image, axis=1))


@pytest.mark.parametrize('stamp', [5 * 10**9, -5 * 10**9, 1_790_000_000 * 10**9])
def test_images_with_one_stamp_are_tracked(stamp):
    rig = Rig(StreamSink())
    rig.sink.buffer.add_image(stamp, 0, 100.0)
    first = rig.sink.newest_frame()
    rig.worker.on_query(first)
    rig.worker.on_answer(first, answer())
    for i in range(1, 11):
        rig.sink.buffer.add_image(stamp, 3 * i, 100 + i * 0.1)
        rig.worker.notify()
        rig.wait_until_idle()
    assert rig.worker.close()
    frames = [frame for frame, _, _ in rig.sink.published]
    assert [frame.image for frame in frames] == [3 * i for i in range(1, 11)]
    assert {frame.stamp for frame in frames} == {stamp}
    _, result, state = rig.sink.published[-1]
    expected = answer(30).masks[0]
    assert (result.masks[0] & expected).sum() / (result.masks[0] | expected).sum() > 0.9
    assert state.age == pytest.approx(1.0)
    assert not rig.sink.reports


def test_the_score_falls_with_the_drift():
    result = answer()
    moved = np.roll(result.masks, 5, axis=2)
    for drift in (0.0, 0.5, 1.0):
        state = TrackingState(1, moved, np.array([True]), np.array([drift], np.float32), 0.1)
        logits = propagate_result(result, state).mask_logits[0]
        probability = 1 / (1 + np.exp(-2.0))
        inside = 1 / (1 + np.exp(-logits[moved[0]]))
        assert inside == pytest.approx(max(probability * (1 - drift), 1e-3), rel=1e-4)
        assert (logits[~moved[0]] < -20).all()


def state_with(drift, tracked=True):
    if drift is None:
        return None
    if tracked == 'none':
        return TrackingState(1, np.zeros((0, 2, 2), bool), *np.zeros((2, 0), np.float32), 1.0)
    mask = np.zeros((1, 2, 2), bool)
    return TrackingState(1, mask, np.array([tracked]), np.array([drift], np.float32), 1.0)


@pytest.mark.parametrize(
    ('rule', 'drift', 'tracked', 'since', 'due'),
    [
        ('never', 1.0, False, 100, False),
        ('timer', 0.0, True, 3, True),
        ('timer', 0.0, True, 1, False),
        ('drift', 0.1, True, 3, False),
        ('drift', 0.9, True, 3, True),
        ('drift', 0.1, False, 3, True),
        ('drift', 0.9, True, 1, False),
        ('drift', None, True, 3, True),  # no reference
        ('timer', None, True, 3, True),
        ('drift', 0.1, 'none', 3, True),  # nothing was found
    ],
)
def test_when_a_query_is_due_again(rule, drift, tracked, since, due):
    policy = RequeryPolicy(RequeryRule(rule), period=2.0, max_drift=0.5)
    assert policy.is_due(state_with(drift, tracked), time.monotonic() - since) is due
