# SPDX-License-Identifier: Apache-2.0
"""The request scheduler without ROS: order of requests, frames, dialogues, errors."""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.perception.backend import Capabilities, InferenceOptions
from lisa_ros.results import Dialogue, Done, Segmentation, Status, Token, unanswered
from lisa_ros.ros.configuration import session_options
from lisa_ros.session.client_turns import ClientTurns
from lisa_ros.session.dialogue_history import DialogueStore
from lisa_ros.session.frame_buffer import FrameBuffer, SyncedMessages
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.request import (
    CancelReason,
    PreviousAnswer,
    Request,
    RequestClient,
    RequestKind,
)
from lisa_ros.session.scheduler import Activity, RequestScheduler
from lisa_ros.settings import Settings

MS = 1_000_000  # ns
OPTIONS = session_options(Settings())


def found_result(text):
    masks = np.ones((1, 2, 2), bool)
    return Segmentation(
        text, f'Sure, {text}.', f'Sure, {text} [SEG].', masks, masks * 5.0,
        np.ones(1, np.float32), Status.FOUND,
    )  # fmt: skip


class Log:
    """Collects error lines."""

    def __init__(self):
        self.lines = []

    def error(self, message):
        self.lines.append(message)


class FrameImage(np.ndarray):
    """An image of the size of `found_result`'s masks, which knows its `frame`."""


class Passthrough:
    """Decodes nothing: the model gets a black image with the frame."""

    def rgb_image(self, frame):
        image = np.zeros((2, 2, 3), np.uint8).view(FrameImage)
        image.frame = frame
        return image


class Model:
    """A backend that answers at once, or when `go` is set; it records its calls."""

    capabilities = Capabilities(yes_no=True)

    def __init__(self, blocking=False):
        self.texts, self.frames, self.dialogues, self.queries = [], [], [], []
        self.started, self.go = threading.Semaphore(0), threading.Event()
        self.threads = set()
        if not blocking:
            self.go.set()

    def stream(self, image, query, options, cancel):
        self.texts.append(query.text)
        self.frames.append(image.frame)
        self.dialogues.append(query.dialogue)
        self.queries.append((query, options))
        self.threads.add(threading.current_thread().name)
        self.started.release()
        while not self.go.wait(0.005):
            if cancel.is_set():
                yield Done(replace(found_result(query.text), status=Status.CANCELLED))
                return
        if query.text == 'user error':
            raise ImageError('encoding rgb9 is not supported')
        if query.text == 'bug':
            raise ZeroDivisionError('oops')
        yield Token('Sure')
        yield Done(found_result(query.text))


class Listener:
    """Collects the results of requests; `wait(n)` waits for n of them."""

    def __init__(self):
        self.ends, self.calls, self.threads = [], [], set()
        self.begun = []
        self.changed = threading.Condition()

    def started(self, request, frame):
        self.begun.append((request, frame))
        self.record(('started', request.text, frame.stamp))

    def event(self, request, event):
        self.record(('event', request.text, event.text))

    def record(self, call):
        with self.changed:
            self.calls.append(call)
            self.threads.add(threading.current_thread().name)
            self.changed.notify_all()

    def finished(self, request, frame, result):
        self.record(('finished', request.text, result.status))
        with self.changed:
            self.ends.append((request.text, frame, result))
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ends) >= count, 5), self.ends
        return [(text, result.status) for text, _, result in self.ends]


@dataclass
class FixedClock:
    time_ns: int

    def now_ns(self):
        return self.time_ns

    def steady(self):
        return self.time_ns / 1e9

    def has_ended(self):
        return False


def make_scheduler(model, listener, log, *, dialogues=None, clock=None, **options):
    """Return an inference thread and a scheduler with options, both started."""
    inference = InferenceThread(model, Passthrough(), InferenceOptions(), log)
    inference.start()
    scheduler = RequestScheduler(
        inference,
        listener,
        replace(OPTIONS, **options),
        dialogues=dialogues,
        clock=clock,
        log=log,
    )
    scheduler.start()
    return inference, scheduler


@pytest.fixture
def run():
    """Start a scheduler with a model; it is closed at the end of the test."""
    started = []

    def start(model=None, listener=None, **options):
        listener, log, model = listener or Listener(), Log(), model or Model()
        inference, scheduler = make_scheduler(model, listener, log, **options)
        started.append((inference, scheduler, model))
        return scheduler, model, listener, log

    yield start
    for inference, scheduler, model in started:
        model.go.set()
        assert scheduler.close(5)
        assert inference.close(5)


def goal(text, listener, client='', **fields):
    return Request(text, RequestKind.GOAL, listener, client=RequestClient(client), **fields)


def wait(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


# ---- one request


def test_a_command_is_answered_about_the_newest_image(run):
    scheduler, model, listener, _ = run()
    scheduler.add_image(1, 'old')
    scheduler.add_image(2, 'new')
    scheduler.submit_command('the mug')
    assert listener.wait(1) == [('the mug', Status.FOUND)]
    assert model.frames[0].image == 'new'
    assert model.threads == {'lisa-inference'}


def test_a_listener_follows_its_request_in_order_on_the_delivery_thread(run):
    scheduler, _, listener, _ = run()
    scheduler.add_image(7, 'image')
    scheduler.submit_command('the mug')
    listener.wait(1)
    assert listener.calls == [
        ('started', 'the mug', 7),
        ('event', 'the mug', 'Sure'),
        ('finished', 'the mug', Status.FOUND),
    ]
    assert listener.threads == {'lisa-delivery'}


def test_the_model_does_not_wait_for_a_slow_listener(run):
    """The second request is answered while the first result is still being published."""
    gate, listener = threading.Event(), Listener()
    collect, listener.finished = listener.finished, lambda *end: gate.wait(10) and collect(*end)
    scheduler, model, _, _ = run(listener=listener)
    scheduler.add_image(1, 'image')
    scheduler.submit_command('one')
    wait(lambda: model.texts == ['one'])
    scheduler.submit_goal(goal('two', listener))
    wait(lambda: model.texts == ['one', 'two'])
    assert not listener.ends
    gate.set()
    assert [text for text, _ in listener.wait(2)] == ['one', 'two']


def test_results_that_are_not_delivered_hold_the_model_back(run):
    """Otherwise a listener that is slower than the model makes the queue grow without end."""
    gate, listener = threading.Event(), Listener()
    collect, listener.finished = listener.finished, lambda *end: gate.wait(10) and collect(*end)
    scheduler, model, _, _ = run(listener=listener, watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.set_standing_query('watched')
    wait(lambda: model.texts == ['watched'])
    for stamp in range(2, 5):
        scheduler.add_image(stamp, 'image')
        time.sleep(0.02)
    assert model.texts == ['watched']  # background work waits for each delivery
    for number in range(12):
        scheduler.submit_goal(goal(str(number), listener))
    wait(lambda: len(model.texts) == 2)
    time.sleep(0.05)
    assert model.texts == ['watched', '0']  # one result is delivered, one waits
    gate.set()
    listener.wait(14)
    assert model.texts[:13] == ['watched', *map(str, range(12))]
    wait(lambda: model.texts[13:] == ['watched'])


@pytest.mark.parametrize('masks', [np.ones(3, bool), None])
def test_a_result_that_breaks_the_protocol_fails_its_request_only(run, masks):
    class BrokenModel(Model):
        def stream(self, image, query, options, cancel):
            result = found_result(query.text)
            yield Done(replace(result, masks=masks) if query.text == 'broken' else result)

    scheduler, _, listener, log = run(BrokenModel())
    scheduler.add_image(1, 'image')
    scheduler.submit_command('broken')
    assert listener.wait(1) == [('broken', Status.FAILED)]
    assert listener.ends[0][2].reason.startswith('the model returned masks (N, H, W) ')
    assert not log.lines
    scheduler.submit_command('fine')
    assert listener.wait(2)[1] == ('fine', Status.FOUND)


def test_a_scheduler_that_never_started_delivers_the_ends_of_its_requests():
    listener, log = Listener(), Log()
    inference = InferenceThread(Model(), Passthrough(), InferenceOptions(), log)
    scheduler = RequestScheduler(inference, listener, OPTIONS, log=log)
    scheduler.submit_command('the mug')
    assert scheduler.close(1)
    assert listener.wait(1) == [('the mug', Status.CANCELLED)]
    assert inference.close(1)


def test_a_listener_is_called_without_the_lock_after_close(run):
    scheduler, _, listener, log = run()
    assert scheduler.close(5)
    collect, other_threads = listener.finished, []

    def finished(request, frame, result):
        other = threading.Thread(target=lambda: other_threads.append(scheduler.is_busy))
        other.start()
        other.join(5)
        collect(request, frame, result)

    listener.finished = finished
    scheduler.submit_command('too late')
    assert listener.wait(1) == [('too late', Status.CANCELLED)]
    assert other_threads == [False]
    assert log.lines == []


def test_a_call_after_delivery_comes_after_the_results_that_are_on_their_way(run):
    gate, listener = threading.Event(), Listener()
    collect, listener.finished = listener.finished, lambda *end: gate.wait(10) and collect(*end)
    scheduler, model, _, _ = run(listener=listener)
    scheduler.add_image(1, 'image')
    scheduler.submit_command('one')
    wait(lambda: model.texts == ['one'])
    wait(lambda: not scheduler.is_busy)
    scheduler.call_after_delivery(lambda: listener.record('called'))
    scheduler.submit_command('two')
    gate.set()
    listener.wait(2)
    calls = listener.calls
    assert calls.index(('finished', 'one', Status.FOUND)) < calls.index('called')
    assert calls.index('called') < calls.index(('started', 'two', 1))


def test_a_command_waits_for_the_first_image(run):
    scheduler, model, listener, _ = run()
    scheduler.submit_command('the mug')
    time.sleep(0.05)
    assert model.texts == []
    assert scheduler.seconds_waiting > 0
    scheduler.add_image(1, 'first')
    assert listener.wait(1) == [('the mug', Status.FOUND)]


def test_without_any_image_the_command_fails_after_the_timeout(run):
    scheduler, model, listener, _ = run(image_timeout=0.1)
    scheduler.submit_command('the mug')
    assert listener.wait(1) == [('the mug', Status.FAILED)]
    assert 'no image within 0.1 s' in listener.ends[0][2].reason
    assert model.texts == []


def test_the_image_is_frozen_when_the_request_starts(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'at the start')
    scheduler.submit_command('the mug')
    assert model.started.acquire(timeout=5)
    scheduler.add_image(2, 'later')
    model.go.set()
    listener.wait(1)
    assert listener.ends[0][1].stamp == 1


def test_a_new_command_supersedes_the_waiting_one_but_not_the_running_one(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    scheduler.submit_command('waits')
    scheduler.submit_command('replaces')
    assert listener.wait(1) == [('waits', Status.SUPERSEDED)]
    assert listener.ends[0][2].reason == "superseded by 'replaces' before it started"
    model.go.set()
    assert listener.wait(3)[1:] == [('runs', Status.FOUND), ('replaces', Status.FOUND)]
    assert model.texts == ['runs', 'replaces']
    assert (scheduler.counters.superseded, scheduler.counters.cancelled) == (1, 0)
    assert listener.threads == {'lisa-delivery'}


def test_what_runs_and_what_waits_can_be_cancelled(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    running = scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    waiting = scheduler.submit_command('waits')
    assert scheduler.cancel(waiting)
    assert scheduler.cancel(running)
    assert listener.wait(2) == [('waits', Status.CANCELLED), ('runs', Status.CANCELLED)]
    assert not scheduler.cancel(waiting)
    assert not scheduler.cancel(running)
    assert scheduler.counters.cancelled == 2


@pytest.mark.parametrize(
    ('reason', 'text'),
    [
        (CancelReason.CANCELLED, 'cancelled during the answer'),
        (CancelReason.STOPPED, 'stopped'),
        (CancelReason.SHUTDOWN, 'shutting down'),
        (CancelReason.CLIENT_LIMIT, 'its client has too many goals, see goals_per_client'),
    ],
)
def test_a_running_request_that_is_cancelled_says_why(run, reason, text):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    running = scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    assert scheduler.cancel(running, reason)
    assert listener.wait(1) == [('runs', Status.CANCELLED)]
    assert listener.ends[0][2].reason == text


def test_cancelling_one_request_leaves_the_other(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    assert scheduler.cancel(scheduler.submit_command('waits'))
    model.go.set()
    assert listener.wait(2) == [('waits', Status.CANCELLED), ('runs', Status.FOUND)]


def test_a_failing_model_fails_its_request_only(run):
    scheduler, _, listener, log = run()
    scheduler.add_image(1, 'image')
    for number, text in enumerate(('user error', 'bug', 'fine'), 1):
        scheduler.submit_command(text)
        listener.wait(number)
    statuses = [status for _, status in listener.wait(3)]
    assert statuses == [Status.FAILED, Status.FAILED, Status.FOUND]
    assert listener.ends[0][2].reason == 'encoding rgb9 is not supported'
    assert listener.ends[1][2].reason == 'internal error: ZeroDivisionError: oops'
    assert len(log.lines) == 1  # a user's error has no traceback, a bug has one
    assert 'Traceback' in log.lines[0]


def test_a_failing_listener_does_not_end_the_scheduler(run):
    done, listener = threading.Semaphore(0), Listener()

    def fail(request, frame, result):
        done.release()
        raise RuntimeError('publisher is gone')

    listener.finished = fail
    scheduler, _, _, log = run(listener=listener)
    scheduler.add_image(1, 'image')
    for _ in range(2):
        scheduler.submit_command('the mug')
        assert done.acquire(timeout=5)
    assert scheduler.close(5)
    assert 'publisher is gone' in log.lines[0]


@pytest.mark.parametrize('text', ['', '  \n'])
def test_an_empty_command_fails_at_once_and_disturbs_nothing(run, text):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(7, 'image')
    scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    scheduler.submit_command('waits')
    scheduler.submit_command(text)
    assert listener.wait(1) == [(text, Status.FAILED)]
    assert 'empty' in listener.ends[0][2].reason
    assert listener.ends[0][1].stamp == 7
    model.go.set()
    assert len(listener.wait(3)) == 3


def test_a_request_with_its_own_frame_does_not_wait_for_a_camera(run):
    scheduler, _, listener, _ = run(image_timeout=30.0)
    scheduler.submit_command('the mug')  # there is no image yet
    scheduler.submit_goal(goal('the bowl', listener, frame=SyncedMessages(1, 'its own')))
    assert listener.wait(1) == [('the bowl', Status.FOUND)]
    scheduler.add_image(2, 'the camera')
    assert listener.wait(2)[1] == ('the mug', Status.FOUND)


def test_region_and_explanation_are_for_the_model(run):
    scheduler, model, listener, _ = run()
    scheduler.submit_goal(
        goal('the mug', listener, frame=SyncedMessages(1, 'image'), explain=True)
    )
    listener.wait(1)
    query, options = model.queries[0]
    assert (query.text, query.explain, query.region) == ('the mug', True, None)
    assert options == InferenceOptions()


def test_a_yes_no_question_is_not_asked_again(run):
    scheduler, model, listener, _ = run()
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('the mug', listener))
    scheduler.submit_goal(goal('is it red?', listener, yes_no=True))
    listener.wait(2)
    scheduler.requery()
    listener.wait(3)
    asked = [(query.text, query.yes_no) for query, _ in model.queries]
    assert asked == [('the mug', False), ('is it red?', True), ('the mug', False)]


def test_closing_cancels_all_and_ends_the_threads():
    model, listener = Model(blocking=True), Listener()
    inference, scheduler = make_scheduler(model, listener, Log())
    scheduler.add_image(1, 'image')
    scheduler.submit_command('runs')
    assert model.started.acquire(timeout=5)
    scheduler.submit_command('waits')
    assert scheduler.close(5)
    scheduler.submit_command('too late')
    assert {status for _, status in listener.wait(3)} == {Status.CANCELLED}
    assert inference.close(5)
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {'lisa-inference', 'lisa-delivery'}


def test_a_model_that_does_not_stop_keeps_the_scheduler_open_for_a_later_close():
    model, listener = Model(blocking=True), Listener()
    answer = model.stream
    model.stream = lambda image, query, options, cancel: answer(
        image, query, options, threading.Event()
    )
    inference, scheduler = make_scheduler(model, listener, Log())
    scheduler.add_image(1, 'image')
    scheduler.submit_command('uncancellable')
    assert model.started.acquire(timeout=5)
    assert not scheduler.close(0.05)
    assert not inference.close(0.05)
    model.go.set()
    assert scheduler.close(5)
    assert listener.wait(1) == [('uncancellable', Status.CANCELLED)]
    assert listener.ends[0][2].masks.any()  # what was ready is kept
    assert inference.close(5)


# ---- matching of messages


def test_depth_and_camera_info_are_those_nearest_to_the_image(run):
    scheduler, _, _, _ = run()
    for k in range(5):
        scheduler.add_depth(k * 33 * MS + 4 * MS, f'depth {k}')
        scheduler.add_camera_info(k * 33 * MS, f'info {k}')
        scheduler.add_image(k * 33 * MS, f'image {k}')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth, frame.camera_info) == ('image 4', 'depth 4', 'info 4')


def test_the_newest_image_with_depth_is_taken_while_the_next_depth_is_on_its_way(run):
    scheduler, _, _, _ = run(depth_tolerance=0.01)
    for k in range(3):
        scheduler.add_image(k * 33 * MS, f'image {k}')
        if k < 2:
            scheduler.add_depth(k * 33 * MS, f'depth {k}')
    assert scheduler.newest_frame().image == 'image 1'
    scheduler.add_depth(2 * 33 * MS, 'depth 2')
    assert scheduler.newest_frame().image == 'image 2'


def test_no_older_image_is_asked_about_when_depth_comes_late(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    for k in range(10):
        scheduler.add_image(k * 33 * MS, f'image {k}')
    scheduler.set_standing_query('watch this')
    listener.wait(1)
    scheduler.submit_goal(goal('once', listener))
    listener.wait(2)
    assert [frame.image for frame in model.frames] == ['image 9'] * 2
    previous = PreviousAnswer(model.frames[0].arrival, 0.0)
    again = goal('again', listener, previous=previous, is_continuous=True)
    scheduler.submit_goal(again)
    scheduler.add_depth(7 * 33 * MS, 'depth 7')
    assert scheduler.newest_frame().image == 'image 7'
    time.sleep(0.1)
    assert len(model.frames) == 2
    scheduler.add_image(10 * 33 * MS, 'image 10')
    scheduler.add_depth(10 * 33 * MS, 'depth 10')
    listener.wait(4)
    assert {frame.image for frame in model.frames[2:]} == {'image 10'}


def test_a_fresh_image_without_depth_is_better_than_one_that_is_too_old(run):
    clock = SetClock(10.0)
    scheduler, model, listener, _ = run(clock=clock)
    for k in range(7):
        clock.now = clock.time = 10.0 + k / 15
        scheduler.add_image(round(clock.now * 1e9), f'image {k}')
    scheduler.add_depth(round(10.0 * 1e9), 'depth 0')
    assert scheduler.newest_frame().image == 'image 0'
    for max_age, image in ((0.3, 'image 6'), (0.0, 'image 0')):
        scheduler.submit_goal(goal(image, listener, max_age=max_age))
    assert [status for _, status in listener.wait(2)] == [Status.FOUND] * 2
    assert [frame.image for frame in model.frames] == model.texts


def test_the_depth_of_another_image_is_not_taken(run):
    """At 30 Hz the frame before is well within the tolerance."""
    scheduler, _, _, _ = run(depth_tolerance=0.05)
    for k in range(4):
        scheduler.add_image(k * 33 * MS, f'image {k}')
        if k < 3:
            scheduler.add_depth(k * 33 * MS, f'depth {k}')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 2', 'depth 2')
    scheduler.add_depth(3 * 33 * MS, 'depth 3')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 3', 'depth 3')


def test_an_image_long_ago_is_not_taken_for_its_depth(run):
    scheduler, _, _, _ = run()
    scheduler.add_depth(1, 'depth')
    scheduler.add_image(1, 'with depth')
    scheduler.add_image(500 * MS + 1, 'half a second later')
    assert scheduler.newest_frame().image == 'with depth'
    scheduler.add_image(501 * MS + 1, 'more than that')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('more than that', None)


def test_of_equal_stamps_the_newest_message_is_taken(run):
    scheduler, _, _, _ = run()
    for which in ('old', 'new'):
        scheduler.add_depth(1, f'{which} depth')
        scheduler.add_camera_info(1, f'{which} info')
        scheduler.add_image(1, f'{which} image')
    assert scheduler.newest_frame() == SyncedMessages(1, 'new image', 'new depth', 'new info')


@pytest.mark.parametrize(
    ('stamps', 'moments'),
    [
        ([5, 5, 5], [5, 5.1, 5.2]),  # [s]; the images arrive every 0.1 s
        ([-5, -5], [-5, -4.9]),
        ([5, 5.1, 5.2], [5, 5.1, 5.2]),
        ([5, 5, 5.05, 5.3], [5, 5.1, 5.1 + 1e-9, 5.3]),  # the stamp is coarse
        ([5, 5, 4], [5, 5.1, 4]),  # time went back
    ],
)
def test_each_image_has_a_moment_of_its_own(stamps, moments):
    frames = FrameBuffer(8)
    for number, (stamp, moment) in enumerate(zip(stamps, moments, strict=True)):
        frames.add_image(seconds(stamp), number, 100 + number / 10)
        newest = frames.newest_frame(0.01)
        assert (newest.stamp, newest.image) == (seconds(stamp), number)
        assert newest.moment == pytest.approx(round(moment * 1e9), abs=2)
        assert newest.is_stamp_repeated == (stamp != moment)


def test_a_camera_whose_stamp_does_not_change_is_named(run):
    clock = SetClock()
    scheduler, _, listener, _ = run(clock=clock)
    for _ in range(3):
        scheduler.add_image(seconds(980.0), 'image')
        clock.advance(0.1)
    scheduler.submit_goal(goal('the mug', listener, max_age=0.5))
    listener.wait(1)
    reason = listener.ends[0][2].reason
    assert 'its stamp does not change: stamp each image' in reason
    assert 'synchronize' not in reason


def test_a_frame_without_depth_says_how_far_the_nearest_is(run):
    scheduler, _, _, _ = run(depth_tolerance=0.01)
    scheduler.add_image(seconds(10), 'image')
    assert scheduler.newest_frame().depth_gap is None  # there is no depth at all
    scheduler.add_depth(seconds(8), 'early')
    assert scheduler.newest_frame().depth_gap == -2
    scheduler.add_depth(seconds(10.5), 'late')
    assert scheduler.newest_frame().depth_gap == 0.5
    scheduler.add_depth(seconds(10.505), 'later')
    assert scheduler.newest_frame().depth_gap == 0.5
    scheduler.add_image(seconds(10.5), 'with depth')
    frame = scheduler.newest_frame()
    assert (frame.depth, frame.depth_gap) == ('late', None)


def test_depth_that_stopped_does_not_hold_the_image_back(run):
    scheduler, _, _, _ = run(frames_kept=4)
    scheduler.add_depth(0, 'depth 0')
    for k in range(10):
        scheduler.add_image(k * 33 * MS, f'image {k}')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 9', None)


def test_a_jump_back_in_time_drops_the_older_messages(run):
    scheduler, _, _, _ = run()
    for k in (100, 101, 102, 0):
        scheduler.add_depth(k * 33 * MS, f'depth {k}')
        scheduler.add_image(k * 33 * MS, f'image {k}')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 0', 'depth 0')


@pytest.mark.parametrize('depth_delay', [0, 2, 4])  # [frames]
@pytest.mark.parametrize(
    'order',
    [
        [1, 0, 3, 2, 5, 4, 7, 6, 9, 8],  # pairs are exchanged
        [0, 1, 2, 3, 5, 6, 7, 4, 8, 9],  # one is late
        [2, 1, 0, 5, 4, 3, 8, 7, 6, 9],
    ],
)
def test_messages_out_of_order_keep_their_depth(order, depth_delay):
    frames = FrameBuffer(8)
    for number, k in enumerate(order):
        frames.add_image(k * 33 * MS, k, number / 30)
        if number >= depth_delay:
            depth = order[number - depth_delay]
            frames.add_depth(depth * 33 * MS, depth)
            frame = frames.newest_frame(0.01)
            assert frame.depth == frame.image
            assert frame.image >= max(order[: number + 1]) - depth_delay - 3
    assert frames.newest_frame(0.01, prefers_depth=False).image == 9


def test_a_clock_that_is_set_back_a_little_starts_again_at_the_second_image():
    frames = FrameBuffer(8)
    for number, k in enumerate([20, 21, 22, 10, 11]):  # back by 0.4 s
        frames.add_image(k * 33 * MS, k, number / 30)
    assert frames.newest_frame(0.01).image == 11
    frames.add_image(int(10.5 * 33) * MS, 'late', 1)
    frames.add_image(12 * 33 * MS, 12, 1)
    assert frames.newest_frame(0.01).image == 12


def test_a_standing_query_goes_on_after_the_clock_is_set_back_a_little(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.set_standing_query('the mug')
    for count, moment in enumerate([9.0, 8.7, 8.8, 8.9], 1):
        scheduler.add_image(seconds(moment), count)
        if count != 2:  # it may be out of order: the next one shows whether it is
            listener.wait(count - (count > 2))
    assert [frame.image for frame in model.frames] == [1, 3, 4]


def test_a_short_recording_in_a_loop_starts_again_at_its_first_image():
    frames = FrameBuffer(8)
    for number in range(6):
        image = number % 2
        frames.add_image(image * 500 * MS, image, number / 2)
        assert frames.newest_frame(0.01).image == image


def test_an_image_that_is_later_than_all_that_are_kept_is_dropped():
    frames = FrameBuffer(4)
    for number, k in enumerate([10, 11, 12, 13, 2, 14, 12.5]):
        frames.add_image(int(k * 33) * MS, k, number / 30)
    frames.add_depth(2 * 33 * MS, 'of the dropped')
    assert frames.newest_frame(0.01).depth is None
    frames.add_depth(int(12.5 * 33) * MS, 'late')
    assert (frames.newest_frame(0.01).image, frames.newest_frame(0.01).depth) == (12.5, 'late')


def test_a_command_that_waits_for_the_first_image_gets_its_depth_and_camera_info(run):
    """They arrive a moment later: answered at once, it would have no 3D position."""
    scheduler, model, listener, _ = run()
    scheduler.submit_command('the mug')
    scheduler.add_image(1, 'image')
    time.sleep(0.01)
    assert model.texts == []
    scheduler.add_depth(1, 'depth')
    scheduler.add_camera_info(1, 'info')
    listener.wait(1)
    assert model.frames == [SyncedMessages(1, 'image', 'depth', 'info')]
    # After a jump back in time, as when a bag restarts, there is a first image again.
    scheduler.add_image(0, 'image')
    scheduler.submit_command('the bowl')
    scheduler.add_depth(0, 'depth')
    listener.wait(2)
    assert model.frames[1].depth == 'depth'


def test_a_camera_without_depth_delays_only_the_first_answer(run):
    scheduler, _, listener, _ = run()
    scheduler.add_image(1, 'image')
    start = time.monotonic()
    scheduler.submit_command('one')
    listener.wait(1)
    assert 0.05 < time.monotonic() - start < 2
    scheduler.add_image(2, 'image')
    start = time.monotonic()
    scheduler.submit_command('two')
    listener.wait(2)
    assert time.monotonic() - start < 0.09


# ---- dialogue


def ask(scheduler, listener, *texts):
    for text in texts:
        scheduler.submit_command(text)
        listener.wait(scheduler.counters.commands)


def test_a_command_may_refer_to_the_turn_before(run):
    scheduler, model, listener, _ = run(dialogue_turns=1)
    scheduler.add_image(1, 'image')
    ask(scheduler, listener, 'one', 'bug', 'two', 'three')
    queries = [[turn.query for turn in dialogue.turns] for dialogue in model.dialogues]
    assert queries == [[], ['one'], ['one'], ['two']]  # a failure is no turn


def test_the_dialogue_is_bounded_and_can_be_off(run):
    scheduler, model, listener, _ = run(dialogue_turns=2)
    scheduler.add_image(1, 'image')
    ask(scheduler, listener, 'one', 'two', 'three', 'four')
    assert [turn.query for turn in model.dialogues[-1].turns] == ['two', 'three']
    scheduler.set_options(replace(OPTIONS, dialogue_turns=0))
    ask(scheduler, listener, 'five')
    assert model.dialogues[-1] == Dialogue()


def test_a_reset_also_drops_the_answer_that_is_running(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('one')
    assert model.started.acquire(timeout=5)
    scheduler.reset_dialogue()
    model.go.set()
    listener.wait(1)
    scheduler.submit_command('two')
    listener.wait(2)
    assert model.dialogues[-1] == Dialogue()


def test_a_command_with_its_own_frame_needs_no_image_and_adds_no_turn(run):
    scheduler, model, listener, _ = run()
    own = Listener()
    scheduler.submit_command('self test', SyncedMessages(5, 'own'), own)
    own.wait(1)
    assert model.frames[0].image == 'own'
    assert listener.ends == []
    scheduler.add_image(1, 'image')
    scheduler.submit_command('two')
    listener.wait(1)
    assert model.dialogues[-1] == Dialogue()


def test_goals_of_one_dialogue_see_its_turns_only(run):
    scheduler, model, listener, _ = run(dialogue_turns=1)
    scheduler.add_image(1, 'image')
    for text, dialogue in (('a1', 'a'), ('b1', 'b'), ('a2', 'a'), ('c', None), ('a3', 'a')):
        scheduler.submit_goal(goal(text, listener, dialogue=dialogue))
    listener.wait(5)
    scheduler.submit_command('command')
    listener.wait(6)
    queries = [[turn.query for turn in dialogue.turns] for dialogue in model.dialogues]
    assert queries == [[], [], ['a1'], [], ['a1', 'a2'], []]


def test_dialogues_outlive_a_scheduler_that_was_given_them(run):
    dialogues = DialogueStore(max_dialogues=2)
    for text in ('one', 'two'):
        scheduler, model, listener, _ = run(dialogues=dialogues)
        scheduler.add_image(1, 'image')
        scheduler.submit_goal(goal(text, listener, dialogue='a'))
        listener.wait(1)
        scheduler.close()
    assert [turn.query for turn in model.dialogues[0].turns] == ['one']
    for key in ('b', 'c'):  # of three, the least recently used one is dropped
        dialogues.append(key, dialogues.get(key)[1], found_result('x'))
    assert not dialogues.get('a')[0].turns
    assert dialogues.get('b')[0].turns


# ---- goals wait in their order, commands supersede one another


def test_goals_are_answered_in_the_order_they_came_and_none_supersedes_another(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    for text in ('one', 'two', 'three'):
        assert scheduler.submit_goal(goal(text, listener))
    assert model.started.acquire(timeout=5)
    scheduler.submit_command('a command')
    assert scheduler.submit_goal(goal('four', listener))
    scheduler.submit_command('a newer command')  # in the place of the older one
    model.go.set()
    ends = listener.wait(6)
    assert ends[0] == ('a command', Status.SUPERSEDED)
    assert model.texts == ['one', 'a newer command', 'two', 'three', 'four']  # they take turns
    assert scheduler.counters.superseded == 1
    assert scheduler.counters.cancelled == 0


def test_a_continuous_goal_goes_on_while_the_queue_is_full(run):
    scheduler, model, listener, _ = run(Model(blocking=True), goals_kept=1, watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('runs', listener))
    assert model.started.acquire(timeout=5)
    assert scheduler.submit_goal(goal('waits', listener))
    assert not scheduler.accepts_goals
    previous = PreviousAnswer(0, 0.0)
    again = goal('again', listener, previous=previous, is_continuous=True)
    assert scheduler.submit_goal(again)
    assert scheduler.counters.rejected == 0
    model.go.set()
    assert {text for text, _ in listener.wait(3)} == {'runs', 'waits', 'again'}


def test_goals_beyond_the_limit_are_rejected(run):
    scheduler, model, listener, _ = run(Model(blocking=True), goals_kept=2)
    scheduler.add_image(1, 'image')
    assert scheduler.submit_goal(goal('one', listener))
    assert model.started.acquire(timeout=5)
    assert scheduler.submit_goal(goal('two', listener))
    assert scheduler.submit_goal(goal('three', listener))
    assert not scheduler.accepts_goals
    assert not scheduler.submit_goal(goal('four', listener))
    assert scheduler.counters.rejected == 1
    scheduler.submit_command('a command')  # does not count as a goal
    model.go.set()
    assert [text for text, _ in listener.wait(4)] == ['one', 'a command', 'two', 'three']


def test_a_goal_that_waits_or_runs_is_cancelled_alone(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    goals = [goal(text, listener) for text in ('one', 'two', 'three')]
    for request in goals:
        assert scheduler.submit_goal(request)
    assert model.started.acquire(timeout=5)
    assert scheduler.cancel(goals[1])
    assert listener.wait(1) == [('two', Status.CANCELLED)]
    assert scheduler.cancel(goals[0])
    assert listener.wait(2)[1] == ('one', Status.CANCELLED)
    assert not scheduler.cancel(goals[0])
    model.go.set()
    assert listener.wait(3)[2] == ('three', Status.FOUND)


def test_stop_ends_commands_at_once_and_names_them_but_not_goals(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('mug')
    assert model.started.acquire(timeout=5)
    scheduler.submit_command('bowl')
    assert scheduler.submit_goal(goal('a goal', listener))
    assert scheduler.stop() == ["the running command 'mug'", "the waiting command 'bowl'"]
    assert sorted(listener.wait(2)) == [('bowl', Status.CANCELLED), ('mug', Status.CANCELLED)]
    assert model.started.acquire(timeout=5)
    assert scheduler.stop() == []  # the goal runs, and goes on
    model.go.set()
    assert listener.wait(3)[2] == ('a goal', Status.FOUND)


def test_stop_ends_goals_if_asked(run):
    scheduler, model, listener, _ = run(Model(blocking=True), stop_ends_goals=True)
    scheduler.add_image(1, 'image')
    assert scheduler.submit_goal(goal('one', listener))
    assert model.started.acquire(timeout=5)
    assert scheduler.submit_goal(goal('two', listener))
    assert scheduler.stop() == ["the running goal 'one'", "the waiting goal 'two'"]
    assert sorted(listener.wait(2)) == [('one', Status.CANCELLED), ('two', Status.CANCELLED)]


def test_the_activity_names_what_is_answered_watched_and_how_much_waits(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    assert scheduler.activity() == Activity('', '', 0)
    scheduler.add_image(1, 'image')
    scheduler.submit_command('mug')
    assert model.started.acquire(timeout=5)
    assert scheduler.set_standing_query('the bowl')
    assert scheduler.submit_goal(goal('a goal', listener))
    assert scheduler.activity() == Activity('mug', 'the bowl', 1)
    scheduler.stop()
    model.go.set()
    listener.wait(2)
    wait(lambda: scheduler.activity() == Activity('', '', 0))


def test_an_image_that_is_too_old_is_stale_unless_it_is_the_goals_own(run):
    scheduler, model, listener, _ = run(clock=FixedClock(5_000 * MS))
    scheduler.add_image(4_000 * MS, 'image')
    scheduler.submit_goal(goal('old', listener, max_age=0.5))
    scheduler.submit_goal(goal('fresh', listener, max_age=1.5))
    scheduler.submit_goal(goal('any', listener))
    own = SyncedMessages(1, 'image')
    scheduler.submit_goal(goal('own', listener, max_age=0.5, frame=own))
    statuses = dict(listener.wait(4))
    assert statuses.pop('old') is Status.STALE_INPUT
    assert set(statuses.values()) == {Status.FOUND}
    (reason,) = (result.reason for text, _, result in listener.ends if text == 'old')
    assert reason == 'the newest image is 1.00 s old, max_age allows 0.5 s'
    assert 'old' not in model.texts
    assert (scheduler.counters.stale, scheduler.counters.answered) == (1, 3)


def test_the_next_answer_to_a_continuous_goal_waits_for_a_newer_frame_and_its_rate(run):
    scheduler, model, listener, _ = run(goals_kept=1, watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    previous = PreviousAnswer(arrival=1, started_at=time.monotonic())
    assert scheduler.submit_goal(goal('again', listener, previous=previous))
    time.sleep(0.15)
    assert model.texts == []
    assert not scheduler.is_busy
    assert scheduler.accepts_goals  # it takes no goal's place while it waits
    scheduler.submit_goal(goal('other', listener))  # and blocks no other goal
    assert listener.wait(1) == [('other', Status.FOUND)]
    scheduler.set_options(replace(OPTIONS, watch_rate=1 / 3600))
    scheduler.add_image(2, 'newer')
    time.sleep(0.05)
    assert model.texts == ['other']
    scheduler.set_options(replace(OPTIONS, watch_rate=1000.0))
    assert listener.wait(2)[1] == ('again', Status.FOUND)
    assert model.frames[1].stamp == 2
    assert scheduler.counters.last_seconds < 0.1  # without the time that it waited
    waiting = goal('cancelled', listener, previous=PreviousAnswer(2, 0.0))
    assert scheduler.submit_goal(waiting)
    assert scheduler.cancel(waiting)
    assert listener.wait(3)[2] == ('cancelled', Status.CANCELLED)


def test_two_cameras_on_one_topic_do_not_keep_a_command_waiting_for_depth(run):
    """Time goes back at every second image, and each of them would be a first one."""
    scheduler, _, listener, _ = run()
    scheduler.submit_command('the mug')
    start = time.monotonic()
    while not listener.ends and time.monotonic() - start < 2:
        for stamp in (5_000 * MS, 1_000 * MS):
            scheduler.add_image(stamp, 'image')
        time.sleep(0.01)
    assert 0.09 < time.monotonic() - start < 1
    assert listener.wait(1) == [('the mug', Status.FOUND)]
    scheduler.add_image(0, 'image')  # the wait is over: the next command is answered at once
    start = time.monotonic()
    scheduler.submit_command('the bowl')
    listener.wait(2)
    assert time.monotonic() - start < 0.09


# ---- background work: a standing query, or the last query again


def test_a_standing_query_runs_on_every_new_frame_until_it_is_stopped(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.set_standing_query('the mug')
    for stamp in (1, 2, 3):
        scheduler.add_image(stamp * MS, f'image {stamp}')
        listener.wait(stamp)
    assert [frame.image for frame in model.frames] == ['image 1', 'image 2', 'image 3']
    scheduler.set_standing_query('the bowl')  # about the newest frame, known to the other query
    listener.wait(4)
    assert model.texts == ['the mug'] * 3 + ['the bowl']
    assert scheduler.stop() == ["the standing query 'the bowl'"]
    scheduler.add_image(9 * MS, 'image 9')
    scheduler.submit_command('a command')
    listener.wait(5)
    assert model.texts[4:] == ['a command']


def test_a_goal_preempts_a_standing_query_which_runs_again(run):
    scheduler, model, listener, _ = run(Model(blocking=True), watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.set_standing_query('the mug')
    assert model.started.acquire(timeout=5)
    scheduler.submit_goal(goal('now', listener))
    assert model.started.acquire(timeout=5)
    model.go.set()
    # The preempted request does not end: it runs again with the same frame.
    assert listener.wait(2) == [('now', Status.FOUND), ('the mug', Status.FOUND)]
    assert model.texts == ['the mug', 'now', 'the mug']
    assert (scheduler.counters.preempted, scheduler.counters.cancelled) == (1, 0)
    scheduler.add_image(2, 'image')
    assert listener.wait(3)[2] == ('the mug', Status.FOUND)


def test_a_stopped_standing_query_has_no_result_and_does_not_run_again(run):
    scheduler, model, listener, _ = run(Model(blocking=True), watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.set_standing_query('the mug')
    assert model.started.acquire(timeout=5)
    assert scheduler.stop() == ["the standing query 'the mug'"]
    wait(lambda: not scheduler.is_busy)
    model.go.set()
    scheduler.add_image(2, 'image')
    scheduler.submit_command('the bowl')
    assert listener.wait(1) == [('the bowl', Status.FOUND)]
    assert (scheduler.counters.preempted, scheduler.counters.cancelled) == (0, 1)


def test_a_standing_query_keeps_to_its_rate(run):
    scheduler, model, listener, _ = run(watch_rate=0.01)
    scheduler.set_standing_query('the mug')
    scheduler.add_image(1, 'image')
    listener.wait(1)
    scheduler.add_image(2, 'image')
    time.sleep(0.1)
    assert model.texts == ['the mug']
    scheduler.set_options(replace(OPTIONS, watch_rate=1000.0))  # at once
    listener.wait(2)


def test_a_requery_follows_the_turns_of_the_last_query_and_adds_none(run):
    scheduler, model, listener, _ = run(dialogue_turns=3, watch_rate=1000.0)
    scheduler.add_image(1, 'first')
    ask(scheduler, listener, 'the mug', 'the other one')
    scheduler.add_image(2, 'second')
    scheduler.requery()
    listener.wait(3)
    assert model.texts == ['the mug', 'the other one', 'the other one']
    assert [turn.query for turn in model.dialogues[2].turns] == ['the mug']
    scheduler.submit_command('the bowl')
    listener.wait(4)
    assert [turn.query for turn in model.dialogues[3].turns] == ['the mug', 'the other one']


def test_after_stop_there_is_no_requery(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'first')
    ask(scheduler, listener, 'the mug')
    scheduler.stop()
    scheduler.add_image(2, 'second')
    scheduler.requery()  # of a tracker that has not stopped yet
    ask(scheduler, listener, 'the bowl')
    scheduler.add_image(3, 'third')
    scheduler.requery()
    listener.wait(3)
    assert model.texts == ['the mug', 'the bowl', 'the bowl']


def again(goal, request, frame):
    """Return the next request of a continuous goal, as the action server makes it."""
    previous = PreviousAnswer(frame.arrival, frame.frozen_at, request.turns, request.ticket)
    return replace(goal, previous=previous)


class Finding(Model):
    """Finds nothing in the first images, see `absent`."""

    absent = 0

    def stream(self, image, query, options, cancel):
        for event in super().stream(image, query, options, cancel):
            is_absent = isinstance(event, Done) and len(self.texts) <= self.absent
            absent = Done(unanswered(query.text, Status.NOT_FOUND, ''))
            yield absent if is_absent else event


def test_the_last_answer_to_a_continuous_goal_is_its_turn(run):
    model = Finding()
    model.absent = 1
    scheduler, _, listener, _ = run(model, watch_rate=1000.0)
    first = goal('the mug', listener, dialogue='d', is_continuous=True)
    request = first
    for number in range(1, 4):
        scheduler.add_image(number, 'image')
        scheduler.submit_goal(request)
        listener.wait(number)
        request = again(first, *listener.begun[-1])
    scheduler.submit_goal(goal('the other mug', listener, dialogue='d'))
    listener.wait(4)
    dialogue = model.dialogues[-1]
    assert [(turn.query, turn.answer_raw) for turn in dialogue.turns] == [
        ('the mug', 'Sure, the mug [SEG].')
    ]
    assert dialogue.shown.all()
    scheduler.add_image(5, 'image')
    scheduler.submit_goal(request)  # after a turn of another goal its own stays
    listener.wait(5)
    scheduler.submit_goal(goal('it', listener, dialogue='d'))
    listener.wait(6)
    queries = [turn.query for turn in model.dialogues[-1].turns]
    assert queries == ['the mug', 'the other mug']


def test_a_continuous_goal_forgets_its_turns_when_the_dialogue_is_reset(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('secret', listener, dialogue='d'))
    listener.wait(1)
    first = goal('the mug', listener, dialogue='d', is_continuous=True)
    scheduler.submit_goal(first)
    listener.wait(2)
    scheduler.reset_dialogue()
    request = first
    for number in range(3, 6):
        scheduler.add_image(number, 'image')
        request = again(first, *listener.begun[-1])
        scheduler.submit_goal(request)
        listener.wait(number)
    counts = [len(dialogue.turns) for dialogue in model.dialogues]
    assert counts == [0, 1, 0, 0, 0]
    scheduler.submit_goal(goal('it', listener, dialogue='d'))
    listener.wait(6)
    assert [turn.query for turn in model.dialogues[-1].turns] == ['the mug']


def test_all_answers_to_a_continuous_goal_follow_the_turns_of_its_first(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('the red mug', listener, dialogue='d'))
    listener.wait(1)
    asked = [goal('the other mug', listener, dialogue='d', is_continuous=True)]
    for number in range(2, 22):
        scheduler.submit_goal(asked[-1])
        listener.wait(number)
        scheduler.add_image(number, 'image')
        request, frame = listener.begun[-1]
        asked.append(again(asked[0], request, frame))
    assert model.texts[1:] == 20 * ['the other mug']
    for dialogue in model.dialogues[1:]:
        assert [turn.query for turn in dialogue.turns] == ['the red mug']
    scheduler.submit_goal(goal('it', listener, dialogue='d'))
    listener.wait(22)
    assert [turn.query for turn in model.dialogues[-1].turns] == ['the red mug', 'the other mug']


def test_two_requeries_run_once(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'first')
    ask(scheduler, listener, 'the mug')
    model.go.clear()
    scheduler.requery()
    scheduler.requery()
    scheduler.add_image(2, 'second')
    model.go.set()
    listener.wait(2)
    time.sleep(0.1)
    assert model.texts == ['the mug', 'the mug']


def test_a_requery_never_follows_the_answer_to_another_query(run):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'first')
    ask(scheduler, listener, 'the mug')
    model.go.clear()
    scheduler.add_image(2, 'second')
    scheduler.requery()
    wait(lambda: len(model.texts) == 2)
    scheduler.submit_command('the bowl')
    wait(lambda: len(model.texts) == 3)
    scheduler.requery()  # of the tracker, which still tracks the mug
    model.go.set()
    listener.wait(2)
    scheduler.add_image(3, 'third')
    time.sleep(0.1)
    assert model.texts == ['the mug', 'the mug', 'the bowl']
    scheduler.requery()
    listener.wait(3)
    assert [text for text, *_ in listener.ends] == ['the mug', 'the bowl', 'the bowl']


@pytest.mark.parametrize('end', ['cancelled', 'failed'])
def test_a_requery_asks_what_was_answered_last(run, end):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.add_image(1, 'first')
    ask(scheduler, listener, 'the mug')
    if end == 'failed':
        ask(scheduler, listener, 'user error')
    else:
        model.go.clear()
        request = goal('the bowl', listener)
        scheduler.submit_goal(request)
        wait(lambda: len(model.texts) == 2)
        scheduler.cancel(request)
        listener.wait(2)
        model.go.set()
    scheduler.add_image(2, 'second')
    scheduler.requery()
    listener.wait(3)
    assert listener.ends[-1][0] == 'the mug'


def test_without_a_query_there_is_no_requery(run):
    scheduler, model, listener, _ = run()
    scheduler.add_image(1, 'image')
    scheduler.submit_command('self test', SyncedMessages(5, 'own'))
    listener.wait(1)
    scheduler.requery()
    time.sleep(0.05)
    assert model.texts == ['self test']


# ---- length, turns, stop


def run_busy(run):
    """Start a scheduler whose model answers the command "first" until `model.go` is set."""
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('first')
    assert model.started.acquire(timeout=5)
    return scheduler, model, listener


def test_a_command_that_is_too_long_fails_and_is_not_kept_whole(run):
    scheduler, _, listener, _ = run(max_command_chars=200)
    scheduler.add_image(1, 'image')
    scheduler.submit_command('a' * 201)
    ((text, _, result),) = (listener.wait(1), listener.ends)[1]
    assert result.status is Status.FAILED
    assert 'max_command_chars allows 200' in result.reason
    assert max(len(text), len(result.query)) < 150
    scheduler.submit_command('a' * 200)
    assert listener.wait(2)[1][1] is Status.FOUND
    assert not scheduler.set_standing_query('a' * 201)
    assert scheduler.stop() == []


def test_a_burst_of_commands_gets_an_answer_each(run):
    scheduler, model, listener = run_busy(run)
    for number in range(300):
        scheduler.submit_command(f'command {number}')
    model.go.set()
    statuses = dict(listener.wait(301))
    assert len(statuses) == 301
    assert statuses.pop('first') is statuses.pop('command 299') is Status.FOUND
    assert set(statuses.values()) == {Status.SUPERSEDED}


def test_new_clients_do_not_delay_a_command():
    """Each goal is of a client of its own, as of `ros2 action send_goal` in a loop."""
    turns, listener = ClientTurns(), Listener()
    command = Request('command', RequestKind.COMMAND, listener)
    goals = [goal(str(number), listener, client=str(number)) for number in range(10)]
    assert turns.next([command]) is command
    # each goal comes after the one before it was answered, or has given up; the command waits
    order = [turns.next([command, request]).text for request in goals]
    assert order[:3] == ['0', 'command', '2']


def test_a_client_that_becomes_known_after_its_turn_has_had_it():
    turns, listener = ClientTurns(), Listener()
    first, *waiting = [goal(text, listener, client='unknown') for text in ('a1', 'a2', 'a3', 'b')]
    assert turns.next([first]) is first
    for request in (first, *waiting):
        request.client.identify(request.text[0])
    assert turns.next(waiting).text == 'b'


def test_a_client_may_become_known_after_its_goal(run):
    scheduler, model, listener, _ = run(Model(blocking=True))
    scheduler.add_image(1, 'image')
    scheduler.submit_command('first')
    assert model.started.acquire(timeout=5)
    requests = [goal(text, listener) for text in ('a 1', 'a 2', 'a 3', 'b')]
    for request in requests:
        scheduler.submit_goal(request)
    for request in requests:
        request.client.identify(request.text[0])
    model.go.set()
    listener.wait(5)
    assert model.texts == ['first', 'a 1', 'b', 'a 2', 'a 3']


def test_clients_take_turns_whatever_the_number_of_their_goals(run):
    scheduler, model, listener = run_busy(run)
    for number in range(5):
        scheduler.submit_goal(goal(f'greedy {number}', listener, client='greedy'))
    for number in range(2):
        scheduler.submit_goal(goal(f'modest {number}', listener, client='modest'))
    scheduler.submit_command('last')
    model.go.set()
    listener.wait(9)
    assert model.texts == [
        'first', 'greedy 0', 'modest 0', 'last', 'greedy 1', 'modest 1',
        'greedy 2', 'greedy 3', 'greedy 4',
    ]  # fmt: skip


def test_continuous_goals_leave_room_for_other_goals(run):
    scheduler, _, listener, _ = run(goals_kept=1, watch_rate=0.001)
    scheduler.add_image(1, 'image')
    for number in range(5):
        previous = PreviousAnswer(1, time.monotonic())
        again = goal(f'again {number}', listener, previous=previous, is_continuous=True)
        scheduler.submit_goal(again)
    assert scheduler.submit_goal(goal('other', listener))
    assert listener.wait(1) == [('other', Status.FOUND)]


def test_stop_ends_continuous_goals_and_no_others(run):
    model = Model(blocking=True)
    scheduler, _, listener, _ = run(model)
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('running', listener, is_continuous=True))
    assert model.started.acquire(timeout=5)
    scheduler.submit_goal(goal('waiting', listener, is_continuous=True))
    scheduler.submit_goal(goal('once', listener))
    assert scheduler.stop() == [
        "the running continuous goal 'running'",
        "the waiting continuous goal 'waiting'",
    ]
    listener.wait(2)
    model.go.set()
    ends = {text: result for text, _, result in (listener.wait(3), listener.ends)[1]}
    assert ends['running'].status is ends['waiting'].status is Status.CANCELLED
    assert ends['waiting'].reason == 'stopped'
    assert ends['once'].status is Status.FOUND


def test_stop_between_two_answers_ends_a_continuous_goal(run):
    """Its next request comes after "stop": the client has just got an answer."""
    scheduler, model, listener, _ = run()
    scheduler.add_image(1, 'image')
    scheduler.submit_goal(goal('once', listener, is_continuous=True))
    frame = (listener.wait(1), listener.ends[0][1])[1]
    assert scheduler.stop() == []
    previous = PreviousAnswer(frame.arrival, frame.frozen_at)
    assert scheduler.submit_goal(goal('again', listener, previous=previous, is_continuous=True))
    assert listener.wait(2)[1] == ('again', Status.CANCELLED)
    assert listener.ends[1][2].reason == 'stopped'
    assert model.texts == ['once']
    scheduler.submit_goal(goal('new', listener, is_continuous=True))
    assert listener.wait(3)[2] == ('new', Status.FOUND)


def test_an_answer_that_is_complete_when_it_is_stopped_ends_as_cancelled(run):
    """The model looks at the cancellation before each token, not after the last."""
    model = Model()
    scheduler, _, listener, _ = run(model)
    answer = model.stream

    def stopped_at_its_end(image, query, options, cancel):
        for event in answer(image, query, options, cancel):
            if isinstance(event, Done):
                assert scheduler.stop()
            yield event

    model.stream = stopped_at_its_end
    scheduler.add_image(1, 'image')
    scheduler.submit_command('the mug')
    assert listener.wait(1) == [('the mug', Status.CANCELLED)]
    assert listener.ends[0][2].reason == 'stopped'


def test_a_standing_answer_that_is_complete_when_it_is_preempted_is_delivered(run):
    model = Model()
    scheduler, _, listener, _ = run(model)
    answer = model.stream

    def preempted_at_its_end(image, query, options, cancel):
        for event in answer(image, query, options, cancel):
            if isinstance(event, Done) and query.text == 'watched':
                scheduler.submit_command('urgent')
                assert cancel.is_set()
            yield event

    model.stream = preempted_at_its_end
    scheduler.set_standing_query('watched')
    scheduler.add_image(1, 'image')
    assert listener.wait(2) == [('watched', Status.FOUND), ('urgent', Status.FOUND)]
    assert model.texts == ['watched', 'urgent']


# ---- freshness


class SetClock:
    """A clock that a test sets: the time of stamps, and the steady time."""

    def __init__(self, now=1000.0, steady=None):
        self.now, self.time = now, now if steady is None else steady
        self.is_over = False  # the simulation has gone

    def now_ns(self):
        return int(self.now * 1e9)

    def steady(self):
        return self.time

    def has_ended(self):
        return self.is_over

    def advance(self, seconds):
        self.now += seconds
        self.time += seconds


def seconds(value):
    return int(value * 1e9)


@pytest.mark.parametrize(
    ('stamp', 'limits', 'wait_s', 'reason'),
    [
        # the camera has died, whatever its clock says
        (1000.0, {'max_image_age': 3.0}, 7.7, 'came 7.70 s ago, max_image_age allows 3 s'),
        (1020.0, {'max_age': 0.5}, 3.0, 'came 3.00 s ago, max_age allows 0.5 s: check the camera'),
        (0.0, {'max_age': 0.5}, 3.0, 'came 3.00 s ago, max_age allows 0.5 s: check the camera'),
        (5e8, {'max_image_age': 3.0}, 4.0, 'came 4.00 s ago'),
        # the camera works, and its clock is wrong
        (1020.0, {'max_age': 0.5}, 0.0, "20.00 s ahead of the node's clock, max_age allows 0.5 s"),
        (1020.0, {'max_image_age': 3.0}, 0.1, 'synchronize the clocks'),
        (980.0, {'max_image_age': 3.0}, 0.1, '20.10 s old, max_image_age allows 3 s: synchronize'),
        (5e8, {'max_age': 0.5}, 0.0, 'for a bag, set use_sim_time'),
        # fresh
        (1000.0, {'max_age': 0.5, 'max_image_age': 0.1}, 0.4, None),
        (1000.1, {'max_age': 0.5}, 0.0, None),
        (0.0, {'max_age': 0.5}, 0.4, None),
        (1020.0, {'max_image_age': 0.0}, 60.0, None),
        (5e8, {'max_image_age': 3.0}, 1.0, None),
    ],
)
def test_the_age_of_an_image_is_judged_by_its_arrival_and_its_stamp(
    run, stamp, limits, wait_s, reason
):
    clock = SetClock()
    scheduler, _, listener, _ = run(clock=clock, max_image_age=limits.get('max_image_age', 3.0))
    scheduler.add_image(seconds(stamp), 'image')
    clock.advance(wait_s)
    scheduler.submit_goal(goal('the mug', listener, max_age=limits.get('max_age', 0.0)))
    ((_, status),) = listener.wait(1)
    assert status is (Status.FOUND if reason is None else Status.STALE_INPUT)
    assert (reason or '') in listener.ends[0][2].reason


def test_a_simulation_without_a_clock_is_named(run):
    clock = SetClock(now=0.0, steady=50.0)
    scheduler, _, listener, _ = run(clock=clock)
    for _ in range(2):  # the stamp of a paused simulation does not change
        scheduler.add_image(seconds(1.79e9), 'image')
        clock.time += 0.1
    scheduler.submit_goal(goal('the mug', listener, max_age=0.5))
    listener.wait(1)
    assert 'use_sim_time is on, but /clock has no message' in listener.ends[0][2].reason


def test_a_paused_simulation_can_be_asked_and_a_dead_camera_in_it_cannot(run):
    clock = SetClock(now=30.0)
    scheduler, _, listener, _ = run(clock=clock)
    scheduler.add_image(seconds(29.9), 'image')
    time.sleep(0.05)  # real time goes on, that of the simulation does not
    scheduler.submit_command('paused')
    assert listener.wait(1)[0] == ('paused', Status.FOUND)
    clock.advance(3.5)
    scheduler.submit_command('dead')
    assert listener.wait(2)[1] == ('dead', Status.STALE_INPUT)


def test_the_last_image_of_a_simulation_that_has_ended_is_refused(run):
    clock = SetClock(now=30.0)
    scheduler, _, listener, _ = run(clock=clock, max_image_age=0.2)
    scheduler.add_image(seconds(29.9), 'image')
    clock.is_over = True
    scheduler.submit_command('at once')  # the image is still new
    assert listener.wait(1)[0] == ('at once', Status.FOUND)
    time.sleep(0.25)
    scheduler.submit_command('too late')
    assert listener.wait(2)[1] == ('too late', Status.STALE_INPUT)
    reason = listener.ends[1][2].reason
    assert 'the simulation has ended: nobody publishes /clock' in reason
    assert 'max_image_age allows 0.2 s: start it again' in reason
    clock.is_over = False  # a paused one publishes on /clock again, or is still there
    scheduler.submit_command('paused')
    assert listener.wait(3)[2] == ('paused', Status.FOUND)
    clock.is_over = True
    scheduler.add_image(seconds(29.9), 'new image')
    scheduler.submit_command('new')
    assert listener.wait(4)[3] == ('new', Status.FOUND)


@pytest.mark.parametrize('stamps', [(0, 0, 0), (7, 7, 7), (seconds(9), seconds(8), seconds(9))])
def test_each_image_is_a_new_frame_whatever_its_stamp(run, stamps):
    scheduler, model, listener, _ = run(watch_rate=1000.0)
    scheduler.set_standing_query('the mug')
    for count, stamp in enumerate(stamps, 1):
        scheduler.add_image(stamp, f'image {count}')
        assert len(listener.wait(count)) == count
    assert [frame.image for frame in model.frames] == ['image 1', 'image 2', 'image 3']
    time.sleep(0.05)
    assert len(model.frames) == 3
    scheduler.stop()
    previous = PreviousAnswer(model.frames[-1].arrival, time.monotonic())
    scheduler.submit_goal(goal('again', listener, previous=previous))
    scheduler.add_image(stamps[-1], 'image 4')
    assert listener.wait(4)[3] == ('again', Status.FOUND)


def test_unstamped_depth_belongs_to_the_unstamped_image_of_its_time(run):
    clock = SetClock()
    scheduler, _, _, _ = run(clock=clock)
    scheduler.add_image(0, 'image 1')
    scheduler.add_depth(0, 'depth 1')
    clock.advance(0.2)
    scheduler.add_image(0, 'image 2')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 1', 'depth 1')
    scheduler.add_depth(0, 'depth 2')
    frame = scheduler.newest_frame()
    assert (frame.image, frame.depth) == ('image 2', 'depth 2')


def test_a_requery_about_a_stale_frame_is_not_asked_for_ever(run):
    clock = SetClock()
    scheduler, _, listener, _ = run(clock=clock, watch_rate=1000.0)
    scheduler.add_image(seconds(1000.0), 'image')
    scheduler.submit_command('the mug')
    listener.wait(1)
    clock.advance(10.0)
    scheduler.add_image(seconds(1000.1), 'image of long ago')
    scheduler.requery()
    assert listener.wait(2)[1] == ('the mug', Status.STALE_INPUT)
    scheduler.add_image(seconds(1000.2), 'another')
    time.sleep(0.05)
    assert len(listener.ends) == 2
