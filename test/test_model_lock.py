# SPDX-License-Identifier: Apache-2.0
"""Sessions that share one model take turns, and a standing query makes room for all of them."""

import threading
import time
from dataclasses import replace

import pytest
from test_scheduler import found

from lisa_ros.results import Status
from lisa_ros.session.model_lock import ModelLock
from lisa_ros.session.request import Request
from lisa_ros.session.scheduler import RequestScheduler


class Model:
    """Answers when it is let; notes who asked in which order."""

    def __init__(self):
        self.asked, self.go, self.busy = [], threading.Semaphore(0), threading.Lock()

    def segment_for(self, name):
        def segment(frame, request, dialogue):
            assert self.busy.acquire(blocking=False), 'two sessions use the model at once'
            try:
                self.asked.append((name, request.text, frame.stamp))
                while not self.go.acquire(timeout=0.01):
                    if request.cancelled.is_set():
                        return replace(found(request.text), status=Status.CANCELLED)
                return found(request.text)
            finally:
                self.busy.release()

        return segment


@pytest.fixture
def cameras():
    """Three started sessions with one model; names to sessions, and the model."""
    model, turns, ended = Model(), ModelLock(), []
    sessions = {
        name: RequestScheduler(
            model.segment_for(name),
            lambda request, frame, result, name=name: ended.append((name, request.text)),
            turns=turns,
            watch_rate=100.0,
        )
        for name in 'abc'
    }
    for session in sessions.values():
        session.start()
        session.add_image(1, 'picture')
    yield sessions, model, ended
    for session in sessions.values():
        session.close(0)
    assert all(session.close() for session in sessions.values())


def wait(done):
    until = time.monotonic() + 10
    while not done():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_camera_that_asks_all_the_time_does_not_starve_the_others(cameras):
    sessions, model, ended = cameras
    for i in range(6):  # they come before the others', and would all be answered first
        sessions['a'].goal(Request(f'a{i}', patient=True))
    wait(lambda: model.asked)
    for i in range(2):
        sessions['b'].goal(Request(f'b{i}', patient=True))
        sessions['c'].goal(Request(f'c{i}', patient=True))
    time.sleep(0.1)  # b and c wait for their turn
    model.go.release(10)
    wait(lambda: len(ended) == 10)
    order = ''.join(name for name, *_ in model.asked)
    assert order[0] == 'a'
    assert sorted(order[1:4]) == sorted(order[4:7]) == ['a', 'b', 'c']
    assert order[7:] == 'aaa'


def test_the_frame_is_that_of_when_the_model_is_free(cameras):
    sessions, model, ended = cameras
    sessions['a'].command('first')
    wait(lambda: model.asked)
    sessions['b'].command('second')
    time.sleep(0.05)
    sessions['b'].offer_image(2, 'picture')
    model.go.release(2)
    wait(lambda: len(ended) == 2)
    assert model.asked == [('a', 'first', 1), ('b', 'second', 2)]


def test_a_standing_query_of_one_camera_makes_room_for_another_s_command(cameras):
    sessions, model, ended = cameras
    sessions['a'].watch('the mug')
    wait(lambda: model.asked)
    sessions['b'].command('stop that')
    wait(lambda: len(model.asked) > 1 and model.asked[1][0] == 'b')
    model.go.release(1)
    wait(lambda: ('b', 'stop that') in ended)
    wait(lambda: len(model.asked) > 2)  # the standing query goes on
    assert model.asked[2][:2] == ('a', 'the mug')


def test_what_is_asked_again_is_asked_once_and_makes_room(cameras):
    sessions, model, _ = cameras
    sessions['a'].ask_again('the mug')
    wait(lambda: model.asked)
    sessions['a'].command('the bowl')
    wait(lambda: len(model.asked) == 2)
    assert [text for _, text, _ in model.asked] == ['the mug', 'the bowl']
    model.go.release(2)
    wait(lambda: len(model.asked) == 3)  # it made room, and is asked now
    wait(lambda: not sessions['a'].busy)
    sessions['a'].offer_image(2, 'picture')
    time.sleep(0.1)
    assert [text for _, text, _ in model.asked] == ['the mug', 'the bowl', 'the mug']


def test_a_stop_ends_what_is_asked_again(cameras):
    sessions, model, _ = cameras
    sessions['a'].ask_again('the mug')
    wait(lambda: model.asked)
    assert sessions['a'].stop()
    wait(lambda: not sessions['a'].busy)
    sessions['a'].offer_image(2, 'picture')
    time.sleep(0.1)
    assert len(model.asked) == 1


def test_who_becomes_urgent_while_waiting_is_seen():
    """Nobody tells the turns that a session has got a request meanwhile."""
    turns, urgent = ModelLock(), {'a': False, 'b': True}
    played, inside = [], threading.Event()
    over = threading.Event()

    def play(name):
        with turns.acquire(lambda: urgent[name], lambda: None):
            played.append(name)

    def hold():
        with turns.acquire(lambda: True, lambda: None):
            inside.set()
            over.wait(10)

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    assert inside.wait(10)
    for name in 'ab':
        threads.append(threading.Thread(target=play, args=name))
        threads[-1].start()
        wait(lambda: len(turns._waiting) == len(threads) - 1)
    urgent['a'] = True  # a is first now; b is woken by the end of the turn, and it alone
    real, turns._changed.notify_all = turns._changed.notify_all, lambda: None
    over.set()
    threads[0].join(10)
    turns._changed.notify_all = real
    for thread in threads:
        thread.join(10)
    assert played == ['a', 'b']


def test_a_request_without_a_frame_does_not_hold_the_model(cameras):
    sessions, model, ended = cameras
    blind = RequestScheduler(
        model.segment_for('blind'), lambda *_: None, turns=sessions['a']._turns, image_timeout=5.0
    )
    blind.start()
    blind.submit_command('what do you see?')
    model.go.release(1)
    sessions['a'].command('the mug')
    wait(lambda: ended == [('a', 'the mug')])
    assert blind.close()
