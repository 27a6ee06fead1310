# SPDX-License-Identifier: Apache-2.0
"""Requests that are due at once are answered in one batch, and each ends as if it were alone."""

import math
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from test_inference_thread import Events
from test_scheduler import OPTIONS, Log, Passthrough, SetClock, found_result, goal, wait

from lisa_ros.errors import WorkerError
from lisa_ros.perception.backend import Capabilities, InferenceOptions
from lisa_ros.perception.health import HealthState
from lisa_ros.results import Done, Status, Token
from lisa_ros.session.inference_batch import BatchUse
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.request import CancelReason
from lisa_ros.session.scheduler import RequestScheduler


class Held:
    """Memory of the model, which a frame of it holds."""


class Batching:
    """A backend of batches: each row has two tokens and a result, in rounds.

    A round waits for a release of `go`. Queries decide what happens: "short" ends after the first
    token; "left" has no answer in a batch; "fatal" breaks the batch in the second round, and fails
    alone; "exit" raises SystemExit at once; "hang" waits for `freed`, whatever is cancelled.
    """

    device, capabilities = 'cpu', Capabilities(batches=True)

    def __init__(self):
        self.calls, self.singles = [], []  # texts of batches, and of queries that were asked alone
        self.frames = []  # of each batch
        self.go, self.freed = threading.Semaphore(0), threading.Event()
        self.memory = math.inf  # requests at once for which it is enough
        self.held = weakref.WeakSet()

    def stream(self, image, query, options, cancel):
        self.singles.append(query.text)
        if self.memory < 1 or query.text == 'huge':
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        if query.text == 'fatal':
            raise WorkerError('the model process died of signal 11 (SIGSEGV)')
        if query.text == 'exit':
            raise SystemExit(2)
        yield Token('Sure')
        while not self.go.acquire(timeout=0.01) and not cancel.is_set():
            pass
        yield Token('.')
        status = Status.CANCELLED if cancel.is_set() else Status.FOUND
        yield Done(replace(found_result(query.text), status=status))

    def stream_batch(self, requests, options):
        texts = [request.query.text for request in requests]
        self.calls.append(texts)
        self.frames.append([request.image.frame for request in requests])
        if 'exit' in texts:
            raise SystemExit(2)
        if len(texts) > self.memory or 'huge' in texts:
            assert not self.held  # what an earlier try held is free
            held = Held()
            self.held.add(held)
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        open_rows = {n for n, text in enumerate(texts) if text != 'left'}
        for word in ('Sure', '.'):
            for number in sorted(open_rows):
                yield number, Token(word)
            self._wait_for_round(requests, texts)
            if 'fatal' in texts:
                raise WorkerError('the model process died of signal 11 (SIGSEGV)')
            for number in sorted(open_rows):
                is_cancelled = requests[number].cancel.is_set()
                if is_cancelled or word == '.' or texts[number] == 'short':
                    status = Status.CANCELLED if is_cancelled else Status.FOUND
                    open_rows.discard(number)
                    yield number, Done(replace(found_result(texts[number]), status=status))

    def _wait_for_round(self, requests, texts):
        if 'hang' in texts:
            assert self.freed.wait(20)
        while not self.go.acquire(timeout=0.01):
            if all(request.cancel.is_set() for request in requests):
                return


class Robot:
    """Cameras that share a model which answers in batches."""

    def __init__(self, names='a', max_batch=4, options=None, clock=None):
        self.model, self.listener, self.log = Batching(), Events(), Log()
        options = options or InferenceOptions()
        self.inference = InferenceThread(self.model, Passthrough(), options, self.log, max_batch)
        self.inference.start()
        self.cameras = {}
        for name in names:
            session = replace(OPTIONS, watch_rate=100.0)
            scheduler = RequestScheduler(
                self.inference, self.listener, session, clock=clock, log=self.log
            )
            self.cameras[name] = scheduler
            scheduler.start()
            self.add_frame(name, 1)

    def add_frame(self, name, stamp):
        self.cameras[name].add_depth(stamp, 'depth')
        self.cameras[name].add_camera_info(stamp, 'info')
        self.cameras[name].add_image(stamp, name)

    def ask(self, *texts, camera='a', **fields):
        """Submit goals at the same moment, each of a client of its own; return the requests."""
        clients = [fields.pop('client')] * len(texts) if 'client' in fields else texts
        requests = [
            goal(text, self.listener, client=client, **fields)
            for text, client in zip(texts, clients, strict=True)
        ]
        with self.inference.changed:  # the thread sees all of them or none
            accepted = list(map(self.cameras[camera].submit_goal, requests))
        assert all(accepted)
        return requests

    def close(self):
        self.model.freed.set()
        for scheduler in self.cameras.values():
            scheduler.close(0)
        assert all(scheduler.close() for scheduler in self.cameras.values())
        assert self.inference.close()


@pytest.fixture
def robot():
    made = []

    def make(*arguments, **options):
        made.append(Robot(*arguments, **options))
        return made[-1]

    yield make
    for own in made:
        own.close()


def told(robot, text):
    """Return the words that the listener of a request was told."""
    return [e.text for kind, query, e in robot.listener.calls if (kind, query) == ('event', text)]


def test_requests_that_are_due_at_once_are_one_batch(robot):
    own = robot()
    own.ask('one', 'two', 'three')
    wait(lambda: own.model.calls)
    assert own.inference.batch_use == BatchUse(4, 3, 3)
    own.model.go.release(2)
    assert set(own.listener.wait(3)) == {(text, Status.FOUND) for text in ('one', 'two', 'three')}
    assert (own.model.calls, own.model.singles) == ([['one', 'two', 'three']], [])
    assert len({id(frame) for frame in own.model.frames[0]}) == 1  # also for the tracker
    assert all(told(own, text) == ['Sure', '.'] for text in ('one', 'two', 'three'))
    assert own.cameras['a'].counters.answered == 3


def test_the_limit_holds_and_may_change_while_the_model_runs(robot):
    own = robot(max_batch=2)
    own.ask(*'abcde')
    wait(lambda: own.model.calls)
    own.inference.set_options(InferenceOptions(), max_batch=3)
    own.inference.set_options(InferenceOptions())  # it stays
    own.model.go.release(4)
    own.listener.wait(5)
    assert own.model.calls == [['a', 'b'], ['c', 'd', 'e']]
    own.inference.set_options(InferenceOptions(), max_batch=1)
    own.model.go.release(2)
    own.ask('f', 'g')
    own.listener.wait(7)
    assert own.model.singles == ['f', 'g']
    assert own.inference.batch_use == BatchUse(1, 1, 3)


def test_a_backend_without_batches_is_asked_one_after_the_other(robot):
    own = robot()
    own.model.capabilities = Capabilities()
    own.inference.set_options(InferenceOptions(), max_batch=4)
    own.model.go.release(3)
    own.ask('one', 'two', 'three')
    own.listener.wait(3)
    assert (own.model.calls, own.model.singles) == ([], ['one', 'two', 'three'])


def test_clients_and_cameras_take_turns_for_the_places_of_a_batch(robot):
    own = robot('ab')
    with own.inference.changed:
        own.ask('a1', 'a2', 'a3', client='greedy')
        own.ask('a4', client='modest')
        own.ask('b1', 'b2', camera='b')
    wait(lambda: own.model.calls)
    own.model.go.release(4)
    own.listener.wait(6)
    assert own.model.calls == [['a1', 'b1', 'a4', 'b2'], ['a2', 'a3']]


def test_the_newest_command_wins_while_a_batch_runs(robot):
    own = robot()
    own.ask('one', 'two')
    wait(lambda: own.model.calls)
    own.cameras['a'].submit_command('old')
    own.cameras['a'].submit_command('new')
    own.ask('three')
    own.model.go.release(4)
    ends = own.listener.wait(5)
    assert ends[0] == ('old', Status.SUPERSEDED)
    assert own.model.calls == [['one', 'two'], ['new', 'three']]


def test_turns_of_one_dialogue_are_not_in_one_batch(robot):
    own = robot()
    own.ask('first', 'and the other one?', dialogue='table')
    own.ask('someone else')
    own.model.go.release(3)
    own.listener.wait(3)
    assert own.model.calls == [['first', 'someone else']]
    assert own.model.singles == ['and the other one?']


def test_an_answer_that_ends_early_is_delivered_at_once(robot):
    own = robot()
    own.ask('short', 'long')
    own.model.go.release(1)
    assert own.listener.wait(1) == [('short', Status.FOUND)]
    assert own.cameras['a'].is_busy
    own.model.go.release(1)
    assert own.listener.wait(2)[1] == ('long', Status.FOUND)


def test_a_cancel_ends_one_answer_of_a_batch(robot):
    own = robot()
    _, second, _ = own.ask('one', 'two', 'three')
    wait(lambda: own.model.calls)
    assert own.cameras['a'].cancel(second)
    own.model.go.release(2)
    ends = own.listener.wait(3)
    assert ends[0] == ('two', Status.CANCELLED)
    assert set(ends[1:]) == {('one', Status.FOUND), ('three', Status.FOUND)}
    assert not own.cameras['a'].cancel(second)


def test_what_a_batch_leaves_is_asked_alone_next(robot):
    own = robot()
    own.ask('left', 'other')
    wait(lambda: own.model.calls)
    own.ask('later')
    own.model.go.release(4)
    own.listener.wait(3)
    assert (own.model.calls, own.model.singles) == ([['left', 'other']], ['left', 'later'])
    assert told(own, 'left') == ['Sure', '.']


def test_a_batch_that_is_too_large_for_the_memory_is_asked_in_halves(robot):
    own = robot(max_batch=8)
    own.model.memory = 3
    own.model.go.release(100)
    own.ask(*'abcdefgh')
    assert set(own.listener.wait(8)) == {(text, Status.FOUND) for text in 'abcdefgh'}
    assert [len(texts) for texts in own.model.calls] == [8, 4, 2, 2, 2, 2]
    assert own.inference.batch_use.fitting == 2
    assert len(own.log.lines) == 2  # once for each size
    assert 'CUDA out of memory' in own.log.lines[0]
    assert '4 are the limit from now on' in own.log.lines[0]
    own.log.lines.clear()


def test_later_batches_are_smaller_until_the_limit_is_set_anew(robot):
    own = robot(max_batch=4)
    own.model.memory = 3
    own.model.go.release(100)
    own.ask(*'abcd')
    own.listener.wait(4)
    own.inference.set_options(InferenceOptions(), max_batch=4)  # as before: another parameter
    own.ask(*'efg')
    own.listener.wait(7)
    own.inference.set_options(InferenceOptions(), max_batch=3)
    own.ask(*'hij')
    own.listener.wait(10)
    assert [len(texts) for texts in own.model.calls] == [4, 2, 2, 2, 3]
    assert own.model.singles == ['g']
    assert own.inference.batch_use == BatchUse(3, 3, 4)
    own.log.lines.clear()


def test_what_a_batch_cannot_answer_is_alone_in_halves_too(robot):
    own = robot(max_batch=4)
    own.model.memory = 3
    own.model.go.release(100)
    own.ask('left', 'a', 'b', 'c')
    assert set(own.listener.wait(4)) == {(text, Status.FOUND) for text in ('left', 'a', 'b', 'c')}
    assert own.model.calls[1:] == [['left', 'a'], ['b', 'c']]
    assert own.model.singles == ['left']
    own.log.lines.clear()


def test_a_request_for_which_the_memory_is_not_enough_fails_with_the_cure(robot):
    own = robot(max_batch=2)
    own.model.memory = 0
    own.ask('a', 'b')
    assert set(own.listener.wait(2)) == {('a', Status.FAILED), ('b', Status.FAILED)}
    reasons = {result.reason for *_, result in own.listener.ends}
    assert len(reasons) == 1
    assert 'end other programs that use it' in reasons.pop()
    own.log.lines.clear()


def test_one_request_that_is_too_large_does_not_lower_the_limit(robot):
    own = robot(max_batch=4)
    own.model.go.release(100)
    own.ask('a', 'huge', 'b', 'c')
    ends = dict(own.listener.wait(4))
    assert ends.pop('huge') is Status.FAILED
    assert set(ends.values()) == {Status.FOUND}
    own.ask(*'defg')
    own.listener.wait(8)
    assert own.model.calls[-1] == ['d', 'e', 'f', 'g']
    own.log.lines.clear()


@pytest.fixture
def old(robot):
    """A robot whose batch leaves some of the requests, with an image that is then too old."""

    def make(*texts):
        clock = SetClock()
        own = robot(clock=clock)
        own.add_frame('a', clock.now_ns())
        own.ask(*texts)
        wait(lambda: own.model.calls)
        clock.now = clock.time = clock.now + OPTIONS.max_image_age + 1
        return own, clock

    return make


def test_what_a_batch_leaves_is_asked_about_an_image_that_is_new_enough(old):
    own, clock = old('left', 'other')
    own.add_frame('a', clock.now_ns())
    own.model.go.release(3)
    assert own.listener.wait(2) == [('other', Status.FOUND), ('left', Status.FOUND)]
    stamps = {text: frame.stamp for text, frame, *_ in own.listener.ends}
    assert stamps == {'other': 1000 * 10**9, 'left': clock.now_ns()}
    assert [call for call in own.listener.calls if call[0] == 'started'][-1] == (
        'started', 'left', clock.now_ns()
    )  # fmt: skip


def test_what_a_batch_leaves_is_not_asked_about_an_image_that_has_become_too_old(old):
    own, _ = old('left', 'other')
    own.model.go.release(3)
    assert own.listener.wait(2) == [('other', Status.FOUND), ('left', Status.STALE_INPUT)]
    assert not own.model.singles
    assert own.cameras['a'].counters.stale == 1


def test_an_answer_that_has_begun_does_not_change_its_image(old):
    own, clock = old('fatal', 'other')
    own.add_frame('a', clock.now_ns())
    own.model.go.release(3)
    assert dict(own.listener.wait(2)) == {
        'fatal': Status.STALE_INPUT, 'other': Status.STALE_INPUT
    }  # fmt: skip
    assert {result.answer for *_, result in own.listener.ends} == {'Sure'}
    assert not own.model.singles


@pytest.mark.parametrize(
    ('culprit', 'log_lines'), [('fatal', 0), ('exit', 2)], ids=['process', 'exception']
)
def test_a_request_that_breaks_the_batch_fails_alone(robot, culprit, log_lines):
    own = robot()
    own.ask('one', culprit, 'two')
    own.model.go.release(3)
    assert set(own.listener.wait(3)) == {
        ('one', Status.FOUND), (culprit, Status.FAILED), ('two', Status.FOUND)
    }  # fmt: skip
    assert own.model.singles == ['one', culprit, 'two']
    assert told(own, 'one') == told(own, 'two') == ['Sure', '.']  # nothing twice
    assert len(own.log.lines) == log_lines
    own.log.lines.clear()


def test_a_request_of_a_broken_batch_can_be_cancelled_before_it_is_asked_again(robot):
    own = robot()
    *_, last = own.ask('fatal', 'one', 'two')
    own.model.go.release(1)
    wait(lambda: own.model.singles == ['fatal', 'one'])
    assert own.cameras['a'].cancel(last)
    own.model.go.release(1)
    assert own.listener.wait(3)[1:] == [('one', Status.FOUND), ('two', Status.CANCELLED)]
    assert own.model.singles == ['fatal', 'one']


def test_an_image_at_fault_fails_alone(robot):
    class Decoder(Passthrough):
        def rgb_image(self, frame):
            if frame.image == 'b':
                raise WorkerError('encoding rgb9 is not supported')
            return super().rgb_image(frame)

    own = robot('abc')
    own.inference._decoder = Decoder()
    with own.inference.changed:
        for name in 'abc':
            own.ask(f'mug of {name}', camera=name)
    own.model.go.release(2)
    ends = dict(own.listener.wait(3))  # each camera has a delivery thread of its own
    assert ends.pop('mug of b') is Status.FAILED
    assert ends == {'mug of a': Status.FOUND, 'mug of c': Status.FOUND}
    assert own.model.calls == [['mug of a', 'mug of c']]


def test_standing_queries_of_several_cameras_are_one_batch_and_give_way(robot):
    own = robot('ab')
    with own.inference.changed:
        for name, scheduler in own.cameras.items():
            scheduler.set_standing_query(f'mug of {name}')
    wait(lambda: own.model.calls)
    assert own.model.calls[0] == ['mug of a', 'mug of b']
    own.cameras['a'].submit_command('the bowl')
    wait(lambda: own.model.singles)  # both have ended
    assert own.model.singles == ['the bowl']
    assert [own.cameras[name].counters.preempted for name in 'ab'] == [1, 1]
    own.model.go.release(1000)
    wait(lambda: 'the bowl' in [text for text, *_ in own.listener.ends])
    for stamp in range(2, 1000):  # they are asked again, together as soon as both are due
        with own.inference.changed:
            for name in 'ab':
                own.add_frame(name, stamp)
        time.sleep(0.02)  # 1 / watch_rate
        if len(own.model.calls) > 1:
            break
    assert sorted(own.model.calls[1]) == ['mug of a', 'mug of b']


def test_the_tracked_answer_is_the_one_that_is_asked_again(robot):
    own = robot()
    own.ask('long', 'short')
    own.model.go.release(2)
    own.listener.wait(2)
    assert own.listener.ends[-1][0] == 'long'  # taken first, answered last
    own.cameras['a'].requery()
    wait(lambda: own.model.singles)
    assert own.model.singles == ['long']
    own.model.go.release(1)


def test_a_queue_that_breaks_loses_no_job_of_another(robot):
    own = robot('ab')
    broken, takes = own.cameras['b'], []
    take = broken.take

    def break_once(urgency):
        takes.append(urgency)
        if len(takes) == 1:
            raise RuntimeError('a bug')
        return take(urgency)

    broken.take = break_once
    with own.inference.changed:
        own.ask('mug of a', camera='a')
        own.ask('mug of b', camera='b')
    own.model.go.release(2)
    assert set(own.listener.wait(2)) == {('mug of a', Status.FOUND), ('mug of b', Status.FOUND)}
    assert ['a bug' in line for line in own.log.lines] == [True]
    own.log.lines.clear()


def test_the_model_is_busy_until_the_last_answer_is_passed_on(robot):
    own, states = robot(), []
    camera = own.cameras['a']
    complete = camera.complete

    def watch(job, result):
        complete(job, result)
        states.append(own.inference.health.state)

    camera.complete = watch
    own.model.go.release(3)
    own.ask('one')
    own.listener.wait(1)
    own.ask('two', 'three')
    own.listener.wait(3)
    wait(lambda: len(states) == 3)
    assert set(states) == {HealthState.BUSY}


def test_stop_ends_the_commands_of_a_batch(robot):
    own = robot()
    with own.inference.changed:
        own.cameras['a'].submit_command('the bowl')
        own.ask('the mug')
    wait(lambda: own.model.calls)
    assert own.cameras['a'].stop() == ["the running command 'the bowl'"]
    own.model.go.release(2)
    assert own.listener.wait(2) == [('the bowl', Status.CANCELLED), ('the mug', Status.FOUND)]


def test_a_batch_that_does_not_return_times_out_with_what_was_ready(robot):
    own = robot(options=InferenceOptions(answer_timeout=0.2))
    own.ask('hang', 'one')
    assert set(own.listener.wait(2)) == {('hang', Status.TIMED_OUT), ('one', Status.TIMED_OUT)}
    assert {result.answer for *_, result in own.listener.ends} == {'Sure'}
    wait(lambda: own.inference.health.state is HealthState.HUNG)
    own.ask('next')
    assert own.listener.wait(3)[2] == ('next', Status.FAILED)
    own.model.go.release(4)
    own.model.freed.set()
    wait(lambda: own.inference.health.state is HealthState.OK)
    own.ask('works')
    assert own.listener.wait(4)[3] == ('works', Status.FOUND)


def test_a_batch_can_be_abandoned(robot):
    own = robot()
    own.ask('hang', 'one')
    wait(lambda: own.model.calls)
    own.inference.abandon(CancelReason.SHUTDOWN)
    assert set(own.listener.wait(2)) == {('hang', Status.CANCELLED), ('one', Status.CANCELLED)}
    assert own.cameras['a'].close(5)


def test_what_a_batch_has_left_can_be_abandoned(robot):
    own = robot()
    own.ask('exit', 'one', 'two')
    wait(lambda: own.model.singles == ['exit', 'one'])
    own.inference.abandon(CancelReason.SHUTDOWN)
    ends = own.listener.wait(3)
    assert ends == [
        ('exit', Status.FAILED), ('one', Status.CANCELLED), ('two', Status.CANCELLED)
    ]  # fmt: skip
    own.log.lines.clear()


def test_what_a_batch_has_left_ends_with_the_thread(robot):
    own = robot()
    own.ask('left', 'one')
    wait(lambda: own.model.calls)
    closing = threading.Thread(target=own.inference.close)
    closing.start()
    wait(lambda: own.inference._closed)
    own.model.go.release(2)
    assert own.listener.wait(2) == [('one', Status.FOUND), ('left', Status.CANCELLED)]
    closing.join(20)
    assert not own.model.singles
    assert own.listener.ends[-1][-1].reason == CancelReason.SHUTDOWN.value


def test_every_request_ends_exactly_once(robot):
    """Users submit and cancel while batches of all sizes run."""
    own = robot('ab', max_batch=3)
    own.model.go.release(100_000)
    submitted = []

    def act(name):
        for number in range(100):
            text = f'{name} {number}'
            (request,) = own.ask(('left', 'short', text)[number % 3], camera=name, client=text)
            submitted.append(request.text)
            if number % 4 == 0:
                own.cameras[name].cancel(request)
            while own.cameras[name].waiting_goals > 5:
                time.sleep(0.001)

    users = [threading.Thread(target=act, args=(name,)) for name in 'ab']
    for user in users:
        user.start()
    for user in users:
        user.join()
    wait(lambda: not any(scheduler.is_busy for scheduler in own.cameras.values()))
    own.listener.wait(200)
    assert sorted(text for text, *_ in own.listener.ends) == sorted(submitted)
    assert own.inference.batch_use.largest > 1
