# SPDX-License-Identifier: Apache-2.0
"""The follower: late answers are carried on, frames may be skipped, nobody's tracker sleeps."""

import threading
import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from test_scheduler import found

from lisa_ros.errors import ImageError
from lisa_ros.tracking.optical_flow import FlowTracker
from lisa_ros.tracking.tracker import TrackingState
from lisa_ros.tracking.worker import RequeryPolicy, TrackerFrame, TrackingWorker, propagate_result

TEXTURE = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
TEXTURE = cv2.GaussianBlur(TEXTURE, (0, 0), 2)


@dataclass(frozen=True)
class Frame:
    stamp: int
    shift: int = 0
    broken: bool = False


def show(frame):
    if frame.broken:
        raise ImageError('a broken picture')
    return TrackerFrame(frame.stamp, np.roll(TEXTURE, frame.shift, axis=1))


def answer(shift=0):
    mask = np.zeros((1, 240, 320), bool)
    mask[0, 80:160, 100 + shift : 180 + shift] = True
    return replace(found('it'), masks=mask, mask_logits=np.where(mask, 2.0, -2.0))


class Rig:
    """A follower with the frames that it finds and what it tells."""

    def __init__(self):
        self.newest, self.told, self.reports = None, [], []
        self.wanted = True
        self.follower = TrackingWorker(
            FlowTracker(),
            newest=lambda: self.newest,
            show=show,
            tell=lambda frame, shown, result, now: self.told.append((frame, result, now)),
            wanted=lambda: self.wanted,
            report=self.reports.append,
        )
        self.follower.start()

    def see(self, frame):
        self.newest = frame
        self.follower.notify()

    def wait(self, done):
        until = time.monotonic() + 20
        while not done():
            assert time.monotonic() < until, (self.told, self.reports)
            time.sleep(0.005)

    def see_and_wait(self, frame):
        self.see(frame)
        self.wait(lambda: self.follower._stamp == frame.stamp)


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.follower.close()
    assert not made.follower._worker.is_alive()
    assert not [line for line in made.reports if 'Traceback' in line]


def test_a_late_answer_is_where_the_thing_is_now(rig):
    first = Frame(10**9)
    rig.follower.asked(first)
    for i in range(1, 11):
        rig.see_and_wait(Frame(10**9 + i * 33_000_000, shift=3 * i))
    assert rig.told == []  # nobody has answered yet
    rig.follower.answered(first, answer())
    rig.see(rig.newest)
    rig.wait(lambda: rig.told)
    frame, result, now = rig.told[0]
    assert frame is rig.newest
    truth = answer(30).masks[0]
    assert (result.masks[0] & truth).sum() / (result.masks[0] | truth).sum() > 0.9
    assert now.age == pytest.approx(0.33)
    assert now.tracked.tolist() == [True]


def test_a_broken_picture_is_told_and_the_next_is_followed(rig):
    rig.follower.asked(Frame(1))
    rig.follower.answered(Frame(1), answer())
    rig.see(Frame(2, broken=True))
    rig.wait(lambda: rig.reports)
    assert 'a broken picture' in rig.reports[0]
    rig.see(Frame(3))
    rig.wait(lambda: rig.told)


def test_nothing_is_followed_while_nobody_wants_it_and_a_listener_gets_the_last_answer(rig):
    rig.wanted = False
    rig.follower.asked(Frame(1))
    rig.follower.answered(Frame(1), answer())
    rig.see(Frame(2))
    rig.wait(lambda: not rig.follower._fresh)
    assert rig.told == []
    assert not rig.follower._begun
    rig.wanted = True
    rig.see(Frame(3))
    rig.wait(lambda: rig.told)
    assert rig.told[0][0].stamp == 3


def test_an_old_answer_is_not_dug_out_again(rig):
    rig.wanted = False
    rig.follower.answered(Frame(1), answer())
    rig.wanted = True
    rig.see(Frame(6 * 10**9))
    rig.wait(lambda: not rig.follower._fresh)
    time.sleep(0.05)
    assert rig.told == []


def test_an_answer_whose_question_nobody_heard_is_followed(rig):
    rig.follower.asked(Frame(1))
    rig.follower.answered(Frame(1), answer())
    rig.see_and_wait(Frame(2))
    rig.follower.answered(Frame(2), replace(answer(), query='another'))  # it was not told of
    rig.see(Frame(3))
    rig.wait(lambda: rig.told and rig.told[-1][1].query == 'another')


def test_a_frame_that_comes_late_changes_nothing(rig):
    rig.follower.asked(Frame(10**9))
    rig.follower.answered(Frame(10**9), answer())
    rig.see_and_wait(Frame(10**9 + 66_000_000))
    count = len(rig.told)
    rig.see(Frame(10**9 + 33_000_000))
    rig.wait(lambda: not rig.follower._fresh)
    rig.see_and_wait(Frame(10**9 + 99_000_000))
    assert len(rig.told) == count + 1
    assert rig.told[-1][2].tracked.all()


def test_what_is_told_to_stop_is_followed_no_more(rig):
    rig.follower.asked(Frame(1))
    rig.follower.answered(Frame(1), answer())
    rig.see_and_wait(Frame(2))
    rig.follower.stop()
    rig.see(Frame(3))
    rig.wait(lambda: not rig.follower._fresh)
    time.sleep(0.05)
    assert rig.told[-1][0].stamp == 2


def test_of_answers_that_wait_the_last_one_is_followed(rig):
    gate = threading.Event()
    rig.follower._show = lambda frame: gate.wait(10) and show(frame)
    for stamp in range(1, 6):
        rig.follower.asked(Frame(stamp))
        rig.follower.answered(Frame(stamp), replace(answer(), query=str(stamp)))
    assert len(rig.follower._heard) <= 2
    gate.set()
    rig.see(Frame(9))
    rig.wait(lambda: rig.told)
    assert {result.query for _, result, _ in rig.told} == {'5'}


def test_it_is_checked_after_each_frame_and_when_the_tracker_has_forgotten(rig):
    checked = []
    rig.follower._checked = checked.append
    rig.follower.asked(Frame(10**9))
    rig.follower.answered(Frame(10**9), answer())
    rig.see_and_wait(Frame(10**9 + 1))
    assert checked[-1].tracked.all()
    rig.see_and_wait(Frame(1))  # long before: another past
    rig.see(Frame(2))
    rig.wait(lambda: checked[-1] is None)
    assert rig.reports == ['time went back, so nothing is tracked until the next answer']


def test_of_many_frames_the_newest_is_followed(rig):
    gate = threading.Event()
    rig.follower._show = lambda frame: gate.wait(10) and show(frame)
    rig.follower.asked(Frame(1))
    rig.follower.answered(Frame(1), answer())
    for stamp in range(2, 50):
        rig.see(Frame(stamp))
    gate.set()
    rig.wait(lambda: rig.told)
    assert [frame.stamp for frame, *_ in rig.told][:1] == [49]


def test_the_confidence_that_is_left_falls_with_the_drift():
    result = answer()
    moved = np.roll(result.masks, 5, axis=2)
    for drift in (0.0, 0.5, 1.0):
        now = TrackingState(1, moved, np.array([True]), np.array([drift], np.float32), 0.1)
        logits = propagate_result(result, now).mask_logits[0]
        sure = 1 / (1 + np.exp(-2.0))
        inside = 1 / (1 + np.exp(-logits[moved[0]]))
        assert inside == pytest.approx(max(sure * (1 - drift), 1e-3), rel=1e-4)
        assert (logits[~moved[0]] < -20).all()


def now_with(drift, tracked=True):
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
        ('drift', None, True, 3, True),  # forgotten
        ('timer', None, True, 3, True),
        ('drift', 0.1, 'none', 3, True),  # nothing was found
    ],
)
def test_when_a_question_is_due_again(rule, drift, tracked, since, due):
    rule = RequeryPolicy(rule, period=2.0, drift=0.5)
    assert rule.due(now_with(drift, tracked), time.monotonic() - since) is due
