# SPDX-License-Identifier: Apache-2.0
"""Cameras that share one model: they take turns, and background work gives way to all of them."""

import builtins
import re
import threading
import time
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from test_scheduler import OPTIONS, Listener, Log, Passthrough, found_result, goal, wait

from lisa_ros.perception.backend import Capabilities, InferenceOptions
from lisa_ros.perception.health import HealthState, ModelHealth
from lisa_ros.results import Done, MaskReady, Status, Token
from lisa_ros.session import inference_thread
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.request import CancelReason
from lisa_ros.session.scheduler import RequestScheduler


class Model:
    """A backend that answers once for each release of `go`; notes who asked in which order."""

    def __init__(self):
        self.calls, self.go, self.in_use = [], threading.Semaphore(0), threading.Lock()

    def stream(self, image, query, options, cancel):
        assert self.in_use.acquire(blocking=False), 'two threads use the model at once'
        try:
            self.calls.append((image.frame.image, query.text, image.frame.stamp))
            status = Status.FOUND
            while status is Status.FOUND and not self.go.acquire(timeout=0.01):
                status = Status.CANCELLED if cancel.is_set() else status
            yield Done(replace(found_result(query.text), status=status))
        finally:
            self.in_use.release()


class Cameras:
    """Three started schedulers with one model; each camera's image is its name."""

    def __init__(self, names='abc'):
        self.model, self.listener = Model(), Listener()
        self.log = Log()
        self.inference = InferenceThread(self.model, Passthrough(), InferenceOptions(), self.log)
        self.inference.start()
        self.schedulers = {}
        for name in names:
            self.add(name)
            self.add_frame(name, 1)

    def __getitem__(self, name):
        return self.schedulers[name]

    def add(self, name, **options):
        options = replace(OPTIONS, **{'watch_rate': 100.0, **options})
        scheduler = RequestScheduler(self.inference, self.listener, options, log=self.log)
        self.schedulers[name] = scheduler
        scheduler.start()

    def add_frame(self, name, stamp):
        """Add an image (the camera's name), depth and camera info with one stamp."""
        self[name].add_depth(stamp, 'depth')
        self[name].add_camera_info(stamp, 'info')
        self[name].add_image(stamp, name)

    def add_goal(self, name, text):
        assert self[name].submit_goal(goal(text, self.listener))

    def close(self):
        for scheduler in self.schedulers.values():
            scheduler.close(0)
        assert all(scheduler.close() for scheduler in self.schedulers.values())
        assert self.inference.close()
        assert self.log.lines == []


@pytest.fixture
def cameras():
    opened = Cameras()
    yield opened
    opened.close()


def texts(cameras):
    return [text for _, text, _ in cameras.model.calls]


def test_a_camera_with_many_requests_does_not_starve_the_others(cameras):
    model = cameras.model
    for i in range(6):  # before those of the other cameras
        cameras.add_goal('a', f'a{i}')
    wait(lambda: model.calls)
    for i in range(2):
        cameras.add_goal('b', f'b{i}')
        cameras.add_goal('c', f'c{i}')
    model.go.release(10)
    cameras.listener.wait(10)
    order = ''.join(name for name, *_ in model.calls)
    assert order[0] == 'a'
    assert sorted(order[1:4]) == sorted(order[4:7]) == ['a', 'b', 'c']
    assert order[7:] == 'aaa'


def test_the_frame_is_the_newest_one_when_the_model_becomes_free(cameras):
    cameras['a'].submit_command('first')
    wait(lambda: cameras.model.calls)
    cameras['b'].submit_command('second')
    cameras.add_frame('b', 2)
    cameras.model.go.release(2)
    cameras.listener.wait(2)
    assert cameras.model.calls == [('a', 'first', 1), ('b', 'second', 2)]


def test_a_standing_query_sees_the_newest_frame_when_the_model_becomes_free(cameras):
    cameras['a'].submit_command('first')
    wait(lambda: cameras.model.calls)
    cameras['b'].set_standing_query('the mug')
    for stamp in (2, 3):
        cameras.add_frame('b', stamp)
    cameras.model.go.release(2)
    cameras.listener.wait(2)
    assert cameras.model.calls == [('a', 'first', 1), ('b', 'the mug', 3)]


def test_a_command_to_another_camera_preempts_a_standing_query(cameras):
    model = cameras.model
    cameras['a'].set_standing_query('the mug')
    wait(lambda: model.calls)
    cameras['b'].submit_command('the bowl')
    wait(lambda: len(model.calls) > 1)
    assert model.calls[1][:2] == ('b', 'the bowl')
    model.go.release(1)
    cameras.listener.wait(1)
    wait(lambda: len(model.calls) > 2)  # the standing query goes on
    assert model.calls[2][:2] == ('a', 'the mug')
    assert cameras['a'].counters.preempted == 1


def test_a_command_without_an_image_does_not_preempt_until_its_image_comes(cameras):
    cameras.add('blind')
    cameras['a'].set_standing_query('the mug')
    wait(lambda: cameras.model.calls)
    cameras['blind'].submit_command('the bowl')
    time.sleep(0.1)
    assert texts(cameras) == ['the mug']
    cameras['blind'].add_image(5, 'blind')
    wait(lambda: len(cameras.model.calls) > 1)
    assert cameras.model.calls[1] == ('blind', 'the bowl', 5)


def test_standing_queries_of_several_cameras_take_turns(cameras):
    for name in 'abc':
        cameras[name].set_standing_query(f'mug of {name}')
    wait(lambda: cameras.model.calls)
    for stamp in range(2, 5):
        for name in 'abc':
            cameras.add_frame(name, stamp)
        count = len(cameras.model.calls)
        cameras.model.go.release(3)
        wait(lambda count=count: len(cameras.model.calls) >= count + 2)
        time.sleep(0.02)  # 1 / watch_rate
    cameras.model.go.release(9)
    wait(lambda: len(cameras.model.calls) >= 9)
    counts = [sum(camera == name for camera, *_ in cameras.model.calls) for name in 'abc']
    assert max(counts) - min(counts) <= 1, cameras.model.calls


def with_running_requery(cameras):
    """Return camera a, after the answer to "the mug" and while the model is asked again."""
    a = cameras['a']
    cameras.model.go.release(1)
    a.submit_command('the mug')
    cameras.listener.wait(1)
    a.requery()
    wait(lambda: len(cameras.model.calls) == 2)
    return a


def test_a_requery_runs_once_and_yields(cameras):
    a = with_running_requery(cameras)
    a.requery()  # one is pending already
    a.submit_command('the bowl')
    wait(lambda: len(cameras.model.calls) == 3)
    assert texts(cameras) == ['the mug', 'the mug', 'the bowl']
    cameras.model.go.release(1)
    cameras.listener.wait(2)
    cameras.add_frame('a', 2)
    time.sleep(0.1)  # it was preempted, and the answer has replaced what it was about
    assert texts(cameras) == ['the mug', 'the mug', 'the bowl']


def test_a_requery_that_gave_way_to_a_failure_runs_again(cameras):
    a = with_running_requery(cameras)
    request = goal('the bowl', cameras.listener)
    a.submit_goal(request)
    wait(lambda: len(cameras.model.calls) == 3)
    a.cancel(request)
    wait(lambda: len(cameras.model.calls) == 4)
    assert texts(cameras) == ['the mug', 'the mug', 'the bowl', 'the mug']


def test_stop_ends_a_requery(cameras):
    a = with_running_requery(cameras)
    assert a.stop() == ["the repeated query 'the mug'"]
    wait(lambda: not a.is_busy)
    cameras.add_frame('a', 2)
    time.sleep(0.1)
    assert len(cameras.model.calls) == 2


def test_a_request_without_a_frame_does_not_hold_the_model(cameras):
    cameras.add('blind', image_timeout=5.0)
    cameras['blind'].submit_command('what do you see?')
    cameras.model.go.release(1)
    cameras['a'].submit_command('the mug')
    assert cameras.listener.wait(1) == [('the mug', Status.FOUND)]


def test_options_apply_from_the_next_request_on(cameras):
    options = []
    answer = cameras.model.stream

    def record_options(image, query, inference_options, cancel):
        options.append(inference_options)
        return answer(image, query, inference_options, cancel)

    cameras.model.stream = record_options
    cameras.model.go.release(2)
    cameras.add_goal('a', 'first')
    cameras.listener.wait(1)
    cameras.inference.set_options(InferenceOptions(max_new_tokens=7))
    cameras.add_goal('a', 'second')
    cameras.listener.wait(2)
    assert [inference_options.max_new_tokens for inference_options in options] == [512, 7]


def test_an_idle_thread_sleeps(cameras):
    """Images without a request do not wake it: nothing polls."""

    class CountingQueue:
        polls = 0

        def due_at(self, urgency):
            self.polls += threading.current_thread().name == 'lisa-inference'
            return float('inf')

    queue = CountingQueue()
    cameras.inference.add_queue(queue)
    cameras.model.go.release(1)
    cameras['b'].submit_command('the mug')
    cameras.listener.wait(1)
    wait(lambda: not cameras['b'].is_busy)
    time.sleep(0.05)
    polls = queue.polls
    assert polls > 0
    for stamp in range(2, 50):
        cameras.add_frame('a', stamp)
    time.sleep(0.2)
    assert queue.polls == polls
    cameras.inference.remove_queue(queue)


def test_every_request_ends_exactly_once(cameras):
    """Three users submit, cancel and stop at random; then no new event wakes anybody."""
    submitted = [[], [], []]
    cameras.model.go.release(10_000)

    def act(user, random):
        for number in range(150):
            scheduler, text = cameras[random.choice('abc')], f'{user} {number}'
            draw = random.random()
            if draw < 0.4:
                submitted[user].append(scheduler.submit_command(text))
            elif draw < 0.7:
                request = goal(text, cameras.listener)
                if scheduler.submit_goal(request):
                    submitted[user].append(request)
            elif draw < 0.8:
                scheduler.set_standing_query('watched')
            elif draw < 0.85:
                scheduler.stop()
            elif submitted[user]:
                scheduler.cancel(random.choice(submitted[user]))
            time.sleep(0.001)

    users = [threading.Thread(target=act, args=(user, Random(user))) for user in range(3)]
    for user in users:
        user.start()
    stamp = 2
    while any(user.is_alive() for user in users):
        for name in 'abc':
            cameras.add_frame(name, stamp)
        stamp += 1
        time.sleep(0.005)
    for name in 'abc':
        cameras[name].stop()
    wait(lambda: not any(cameras[name].is_busy for name in 'abc'))
    assert all(cameras[name].close() for name in 'abc')
    ended = [text for text, *_ in cameras.listener.ends if text != 'watched']
    assert sorted(ended) == sorted(request.text for requests in submitted for request in requests)


# ---- backends that do not return, or raise what is no Exception

TIMEOUT = InferenceOptions(answer_timeout=0.2)
ERRORS = ('SystemExit', 'KeyboardInterrupt', 'GeneratorExit', 'MemoryError', 'StopIteration')
HUNG = 'has not returned for .* restart the node; the parameter isolation:=process'


class Hanging:
    """A backend that does what its query says; "hang" waits for `go`, whatever is cancelled."""

    def __init__(self):
        self.go, self.calls, self.interrupts = threading.Event(), [], []

    def stream(self, image, query, options, cancel):
        self.calls.append(query.text)
        if query.text in ERRORS:
            raise getattr(builtins, query.text)('the model has had enough')
        yield Token('Sure')
        if query.text == 'cooperative':
            while not cancel.is_set():
                time.sleep(0.005)
        if query.text.startswith('hang'):
            yield MaskReady(0, np.ones((2, 2), bool), np.ones((2, 2), np.float32), 0.5)
            assert self.go.wait(20)
            yield Token('late')
        while query.text == 'endless':
            yield Token('.')
            time.sleep(0.001)
        yield Done(found_result(query.text))


class Events(Listener):
    """A listener that also takes masks."""

    def event(self, request, event):
        self.record(('event', request.text, event))


class Supervised(Hanging):
    """A backend that returns when it is interrupted."""

    device, capabilities, memory, gpu_memory = 'cpu', Capabilities(), 0, None
    health = ModelHealth(HealthState.OK, 0.0)
    encode_images = clear_cache = close = lambda *_: None

    def interrupt(self, cause):
        self.interrupts.append(cause)
        self.go.set()


@pytest.fixture
def session():
    """A function that makes a started scheduler of one camera; closed at the end."""
    made = []

    def make(backend, options=TIMEOUT):
        listener, log = Events(), Log()
        inference = InferenceThread(backend, Passthrough(), options, log)
        inference.start()
        scheduler = RequestScheduler(inference, listener, OPTIONS, log=log)
        scheduler.start()
        scheduler.add_depth(1, 'depth')
        scheduler.add_camera_info(1, 'info')
        scheduler.add_image(1, 'image')
        made.append((backend, scheduler, inference))
        return scheduler, inference, listener, log

    yield make
    for backend, scheduler, inference in made:
        backend.go.set()
        assert scheduler.close()
        assert inference.close()


def test_a_backend_that_does_not_return_times_out_with_what_was_ready(session):
    backend = Hanging()
    scheduler, inference, listener, log = session(backend)
    start = time.monotonic()
    assert scheduler.submit_goal(goal('hang', listener))
    assert listener.wait(1) == [('hang', Status.TIMED_OUT)]
    assert 0.7 <= time.monotonic() - start < 1.2
    result = listener.ends[0][2]
    assert (result.answer, result.masks.shape, result.scores.tolist()) == (
        'Sure',
        (1, 2, 2),
        [0.5],
    )
    assert 'the model has not returned for 0.7 s' in result.reason
    assert inference.health.state is HealthState.HUNG
    assert inference.health.failure.cause == result.reason
    # everybody else is told, and told what to do
    assert scheduler.submit_goal(goal('waits', listener))
    scheduler.submit_command('also waits')
    assert set(listener.wait(3)[1:]) == {
        ('waits', Status.FAILED), ('also waits', Status.FAILED)
    }  # fmt: skip
    assert 'isolation:=process' in listener.ends[1][2].reason
    assert backend.calls == ['hang']
    # it returns: its late token and result are nobody's, and all is well again
    backend.go.set()
    wait(lambda: inference.health.state is HealthState.OK)
    scheduler.submit_command('works')
    assert listener.wait(4)[3] == ('works', Status.FOUND)
    assert Token('late') not in [call[2] for call in listener.calls]
    assert scheduler.counters.timed_out == 1
    assert len(log.lines) == 1
    assert re.search(HUNG, log.lines[0])


def test_a_standing_query_waits_while_the_model_hangs(session):
    backend = Hanging()
    scheduler, _, listener, _ = session(backend)
    scheduler.submit_command('hang')
    listener.wait(1)
    scheduler.set_standing_query('watched')
    scheduler.add_image(2, 'image')
    time.sleep(0.7)
    assert len(listener.ends) == 1
    backend.go.set()
    assert listener.wait(2)[1] == ('watched', Status.FOUND)


def test_a_backend_that_obeys_a_cancel_is_used_again_at_once(session):
    backend = Hanging()
    scheduler, _, listener, log = session(backend)
    scheduler.submit_command('cooperative')
    assert listener.wait(1) == [('cooperative', Status.TIMED_OUT)]
    scheduler.submit_command('next')
    assert listener.wait(2)[1] == ('next', Status.FOUND)
    assert log.lines == []


def test_endless_tokens_end(session):
    scheduler, _, listener, _ = session(Hanging())
    scheduler.submit_command('endless')
    assert listener.wait(1) == [('endless', Status.TIMED_OUT)]
    scheduler.submit_command('next')
    assert listener.wait(2)[1] == ('next', Status.FOUND)


def test_a_request_that_was_cancelled_before_the_limit_is_cancelled(session):
    scheduler, _, listener, _ = session(Hanging())
    request = scheduler.submit_command('hang')
    wait(lambda: scheduler.cancel(request))
    assert listener.wait(1) == [('hang', Status.CANCELLED)]


def test_without_a_limit_a_long_answer_is_waited_for(session):
    backend = Hanging()
    scheduler, inference, listener, _ = session(backend, InferenceOptions())
    scheduler.submit_command('hang')
    time.sleep(0.9)
    assert (inference.health.state, listener.ends) == (HealthState.BUSY, [])
    assert 0.5 < time.monotonic() - inference.health.since < 5
    backend.go.set()
    assert listener.wait(1) == [('hang', Status.FOUND)]


def test_a_supervised_backend_is_interrupted_and_nobody_is_refused(session):
    backend = Supervised()
    scheduler, _, listener, log = session(backend)
    scheduler.submit_command('hang')
    wait(lambda: backend.calls)
    scheduler.submit_command('waits')
    assert listener.wait(2) == [('hang', Status.TIMED_OUT), ('waits', Status.FOUND)]
    assert len(backend.interrupts) == 1
    assert log.lines == []


@pytest.mark.parametrize('backend', [Hanging(), Supervised()], ids=['thread', 'process'])
def test_a_job_can_be_abandoned(session, backend):
    scheduler, inference, listener, _ = session(backend, InferenceOptions())
    inference.abandon(CancelReason.SHUTDOWN)  # nothing runs
    scheduler.submit_command('hang')
    wait(lambda: backend.calls)
    assert not scheduler.close(0.05)
    start = time.monotonic()
    inference.abandon(CancelReason.SHUTDOWN)
    assert listener.wait(1) == [('hang', Status.CANCELLED)]
    assert scheduler.close(1.0)
    inference.close(10.0)  # does not wait for a backend that was given up
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize('name', ERRORS)
def test_whatever_a_backend_raises_ends_one_request(session, name):
    scheduler, inference, listener, log = session(Hanging())
    scheduler.submit_command(name)
    assert listener.wait(1) == [(name, Status.FAILED)]
    assert name in listener.ends[0][2].reason
    assert name in inference.health.failure.cause
    scheduler.submit_command('next')
    assert listener.wait(2)[1] == ('next', Status.FOUND)
    assert len(log.lines) == 1


class Raising:
    """A queue that raises an exception at the next few calls of the thread."""

    def __init__(self, error, count):
        self.error, self.count = error, count

    def due_at(self, urgency):
        if threading.current_thread().name == 'lisa-inference' and self.count:
            self.count -= 1
            raise self.error
        return float('inf')


@pytest.mark.parametrize('error', [SystemExit(1), KeyError('queue')])
def test_the_thread_survives_what_a_queue_raises(session, error):
    scheduler, inference, listener, log = session(Hanging())
    inference.add_queue(queue := Raising(error, 2))
    scheduler.submit_command('the mug')
    assert listener.wait(1) == [('the mug', Status.FOUND)]
    wait(lambda: log.lines)  # it may raise after the answer
    assert queue.count < 2
    assert type(error).__name__ in log.lines[0]


def test_a_listener_that_exits_does_not_end_the_delivery(session):
    class Exiting(Events):
        def started(self, request, frame):
            raise SystemExit(2)

    scheduler, _, listener, log = session(Hanging())
    exiting = Exiting()
    assert scheduler.submit_goal(goal('one', exiting))
    assert exiting.wait(1) == [('one', Status.FOUND)]
    scheduler.submit_command('two')
    assert listener.wait(1) == [('two', Status.FOUND)]
    assert 'SystemExit' in log.lines[0]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_thread_that_has_ended_is_reported_as_dead(session, monkeypatch):
    scheduler, inference, _, _ = session(Hanging())

    def end(self):
        raise SystemExit

    monkeypatch.setattr(inference_thread.InferenceThread, '_survive', end)
    inference.add_queue(Raising(SystemExit(), 1))
    scheduler.submit_command('the mug')
    wait(lambda: inference.health.state is HealthState.DEAD)
    assert inference.health.cause == 'the inference thread has ended: restart the node'
    scheduler.stop()
