# SPDX-License-Identifier: Apache-2.0
"""The session without ROS: what is answered, about which frame, and what survives."""

import threading
import time

import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.results import Dialogue, Segmentation, Status, Turn
from lisa_ros.session.dialogue_history import DialogueStore
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request
from lisa_ros.session.scheduler import RequestScheduler

MS = 1_000_000  # ns


def found(text):
    masks = np.ones((1, 2, 2), bool)
    return Segmentation(
        text, f'Sure, {text}.', f'Sure, {text} [SEG].', (1, 2), masks, masks * 5.0,
        np.ones(1, np.float32), Status.FOUND,
    )  # fmt: skip


class Model:
    """Answers at once, or when `go` is set; notes what it was asked."""

    def __init__(self, blocking=False):
        self.asked, self.frames, self.dialogues = [], [], []
        self.started, self.go = threading.Semaphore(0), threading.Event()
        self.threads = set()
        if not blocking:
            self.go.set()

    def __call__(self, frame, request, dialogue):
        self.asked.append(request.text)
        self.frames.append(frame)
        self.dialogues.append(dialogue)
        self.threads.add(threading.current_thread().name)
        self.started.release()
        while not self.go.wait(0.005):
            if request.cancelled.is_set():
                return Segmentation(
                    request.text, '', '', (), np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2)),
                    np.zeros(0), Status.CANCELLED, 'cancelled',
                )  # fmt: skip
        if request.text == 'user error':
            raise ImageError('encoding rgb9 is not supported')
        if request.text == 'bug':
            raise ZeroDivisionError('oops')
        return found(request.text)


class Ends:
    """Collects the ends of requests; `wait(n)` waits for n of them."""

    def __init__(self):
        self.all, self.changed = [], threading.Condition()

    def __call__(self, request, frame, result):
        with self.changed:
            self.all.append((request.text, frame, result))
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.all) >= count, 5), self.all
        return [(text, result.status) for text, _, result in self.all]


@pytest.fixture
def run():
    """Start a session with a model; it is closed at the end of the test."""
    sessions = []

    def start(model=None, **options):
        ends, reports = Ends(), []
        model = model or Model()
        options = {'report': reports.append, **options}
        session = RequestScheduler(model, ends, **options)
        sessions.append((session, model))
        session.start()
        return session, model, ends, reports

    yield start
    for session, model in sessions:
        model.go.set()
        assert session.close(5)


def test_a_command_is_answered_about_the_newest_image(run):
    session, model, ends, _ = run()
    session.offer_image(1, 'old')
    session.offer_image(2, 'new')
    session.command('the mug')
    assert ends.wait(1) == [('the mug', Status.FOUND)]
    assert model.frames[0].image == 'new'
    assert model.threads == {'lisa-session'}


def test_a_command_waits_for_the_first_image(run):
    session, model, ends, _ = run()
    session.command('the mug')
    time.sleep(0.05)
    assert model.asked == []
    assert session.seconds_waiting > 0
    session.offer_image(1, 'first')
    assert ends.wait(1) == [('the mug', Status.FOUND)]


def test_without_any_image_the_command_fails_in_time(run):
    session, model, ends, _ = run(image_timeout=0.1)
    session.command('the mug')
    assert ends.wait(1) == [('the mug', Status.FAILED)]
    assert 'no image within 0.1 s' in ends.all[0][2].reason
    assert model.asked == []


def test_the_image_is_frozen_when_the_request_starts(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'at the start')
    session.command('the mug')
    assert model.started.acquire(timeout=5)
    session.offer_image(2, 'later')
    model.go.set()
    ends.wait(1)
    assert ends.all[0][1].stamp == 1


def test_a_new_command_supersedes_the_waiting_one_but_not_the_running_one(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    session.command('runs')
    assert model.started.acquire(timeout=5)
    session.command('waits')
    session.command('replaces')
    assert ends.wait(1) == [('waits', Status.CANCELLED)]
    assert "superseded by 'replaces'" in ends.all[0][2].reason
    model.go.set()
    assert ends.wait(3)[1:] == [('runs', Status.FOUND), ('replaces', Status.FOUND)]
    assert model.asked == ['runs', 'replaces']
    assert (session.counts.superseded, session.counts.cancelled) == (1, 0)


def test_cancel_stops_what_runs_and_what_waits(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    session.command('runs')
    assert model.started.acquire(timeout=5)
    session.command('waits')
    assert session.cancel()
    assert sorted(ends.wait(2)) == [('runs', Status.CANCELLED), ('waits', Status.CANCELLED)]
    assert not session.cancel()


def test_cancelling_one_leaves_the_other(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    session.command('runs')
    assert model.started.acquire(timeout=5)
    assert session.cancel(session.command('waits'))
    model.go.set()
    assert ends.wait(2) == [('waits', Status.CANCELLED), ('runs', Status.FOUND)]


def test_a_failing_model_fails_its_request_only(run):
    session, _, ends, reports = run()
    session.offer_image(1, 'image')
    for number, text in enumerate(('user error', 'bug', 'fine'), 1):
        session.command(text)
        ends.wait(number)
    assert [status for _, status in ends.wait(3)] == [Status.FAILED, Status.FAILED, Status.FOUND]
    assert ends.all[0][2].reason == 'encoding rgb9 is not supported'
    assert ends.all[1][2].reason == 'internal error: ZeroDivisionError: oops'
    assert len(reports) == 1  # a user's error has no traceback, a bug keeps its own
    assert 'Traceback' in reports[0]


def test_a_failing_listener_does_not_end_the_session():
    reports, done = [], threading.Semaphore(0)

    def listener(request, frame, result):
        done.release()
        raise RuntimeError('publisher is gone')

    session = RequestScheduler(Model(), listener, report=reports.append)
    session.start()
    session.add_image(1, 'image')
    for _ in range(2):
        session.submit_command('the mug')
        assert done.acquire(timeout=5)
    assert session.close(5)
    assert 'publisher is gone' in reports[0]


@pytest.mark.parametrize('text', ['', '  \n'])
def test_an_empty_command_fails_at_once_and_disturbs_nothing(run, text):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(7, 'image')
    session.command('runs')
    assert model.started.acquire(timeout=5)
    session.command('waits')
    session.command(text)
    assert ends.wait(1) == [(text, Status.FAILED)]
    assert 'empty' in ends.all[0][2].reason
    assert ends.all[0][1].stamp == 7
    model.go.set()
    assert len(ends.wait(3)) == 3


def test_depth_and_camera_info_are_those_nearest_to_the_image(run):
    session, _, _, _ = run()
    for k in range(5):
        session.offer_depth(k * 33 * MS + 4 * MS, f'depth {k}')
        session.offer_camera_info(k * 33 * MS, f'info {k}')
        session.offer_image(k * 33 * MS, f'image {k}')
    frame = session.newest_frame()
    assert (frame.image, frame.depth, frame.camera_info) == ('image 4', 'depth 4', 'info 4')


def test_the_newest_image_with_depth_is_taken_while_its_own_depth_is_on_the_way(run):
    session, _, _, _ = run(depth_tolerance=0.01)
    for k in range(3):
        session.offer_image(k * 33 * MS, f'image {k}')
        if k < 2:
            session.offer_depth(k * 33 * MS, f'depth {k}')
    assert session.newest_frame().image == 'image 1'
    session.offer_depth(2 * 33 * MS, 'depth 2')
    assert session.newest_frame().image == 'image 2'


def test_depth_that_is_another_image_s_is_not_taken(run):
    """At 30 Hz the frame before is well within the tolerance."""
    session, _, _, _ = run(depth_tolerance=0.05)
    for k in range(4):
        session.offer_image(k * 33 * MS, f'image {k}')
        if k < 3:
            session.offer_depth(k * 33 * MS, f'depth {k}')
    frame = session.newest_frame()
    assert (frame.image, frame.depth) == ('image 2', 'depth 2')
    session.offer_depth(3 * 33 * MS, 'depth 3')
    frame = session.newest_frame()
    assert (frame.image, frame.depth) == ('image 3', 'depth 3')


def test_a_request_with_a_frame_of_its_own_waits_for_no_camera(run):
    session, _, ends, _ = run(image_timeout=30.0)
    session.command('the mug')  # there is no image yet
    session.goal(Request('the bowl', frame=SyncedMessages(1, 'its own'), patient=True))
    assert ends.wait(1) == [('the bowl', Status.FOUND)]
    session.offer_image(2, 'the camera')
    assert ends.wait(2)[1] == ('the mug', Status.FOUND)


def test_what_is_asked_again_follows_the_turns_it_had_and_is_none_itself(run):
    session, model, ends, _ = run(dialogue_turns=3)
    session.offer_image(1, 'first')
    turns = Dialogue((Turn('the mug', 'Sure, [SEG].'),))
    session.ask_again('the other one', turns)
    ends.wait(1)
    assert model.dialogues == [turns]
    session.command('the bowl')
    ends.wait(2)
    assert model.dialogues[1] == Dialogue()


def test_to_ask_again_twice_is_to_ask_once(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'first')
    session.ask_again('the mug')
    assert model.started.acquire(timeout=5)
    session.ask_again('the mug')
    session.offer_image(2, 'second')
    model.go.set()
    ends.wait(1)
    time.sleep(0.1)
    assert model.asked == ['the mug']


def test_an_image_long_ago_is_not_taken_for_its_depth(run):
    session, _, _, _ = run()
    session.offer_depth(0, 'depth')
    session.offer_image(0, 'with depth')
    session.offer_image(500 * MS, 'half a second later')
    assert session.newest_frame().image == 'with depth'
    session.offer_image(501 * MS, 'more than that')
    frame = session.newest_frame()
    assert (frame.image, frame.depth) == ('more than that', None)


def test_of_equal_stamps_the_newest_message_is_taken(run):
    session, _, _, _ = run()
    for which in ('old', 'new'):
        session.offer_depth(0, f'{which} depth')
        session.offer_camera_info(0, f'{which} info')
        session.offer_image(0, f'{which} image')
    assert session.newest_frame() == SyncedMessages(0, 'new image', 'new depth', 'new info')


def test_depth_that_stopped_does_not_hold_the_image_back(run):
    session, _, _, _ = run(frames_kept=4)
    session.offer_depth(0, 'depth 0')
    for k in range(10):
        session.offer_image(k * 33 * MS, f'image {k}')
    frame = session.newest_frame()
    assert (frame.image, frame.depth) == ('image 9', None)


def test_a_jump_back_in_time_begins_anew(run):
    session, _, _, _ = run()
    for k in (100, 101, 102, 0):
        session.offer_depth(k * 33 * MS, f'depth {k}')
        session.offer_image(k * 33 * MS, f'image {k}')
    frame = session.newest_frame()
    assert (frame.image, frame.depth) == ('image 0', 'depth 0')


def ask(session, ends, *texts):
    for text in texts:
        session.command(text)
        ends.wait(len(ends.all) + 1 if not ends.all else session.counts.commands)


def test_a_command_may_refer_to_the_turn_before(run):
    session, model, ends, _ = run(dialogue_turns=1)
    session.offer_image(1, 'image')
    ask(session, ends, 'one', 'bug', 'two', 'three')
    queries = [[turn.query for turn in dialogue.turns] for dialogue in model.dialogues]
    assert queries == [[], ['one'], ['one'], ['two']]  # a failure is no turn


def test_the_dialogue_is_bounded_and_can_be_off(run):
    session, model, ends, _ = run(dialogue_turns=2)
    session.offer_image(1, 'image')
    ask(session, ends, 'one', 'two', 'three', 'four')
    assert [turn.query for turn in model.dialogues[-1].turns] == ['two', 'three']
    session.dialogue_turns = 0
    ask(session, ends, 'five')
    assert model.dialogues[-1] == Dialogue()


def test_a_reset_also_keeps_out_the_answer_on_its_way(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    session.command('one')
    assert model.started.acquire(timeout=5)
    session.reset_dialogue()
    model.go.set()
    ends.wait(1)
    session.command('two')
    ends.wait(2)
    assert model.dialogues[-1] == Dialogue()


def test_a_request_with_its_own_frame_needs_no_image_and_is_no_turn(run):
    session, model, ends, _ = run()
    request = session.command('self test', SyncedMessages(5, 'own'), tag='mine')
    ends.wait(1)
    assert (model.frames[0].image, request.tag) == ('own', 'mine')
    session.offer_image(1, 'image')
    session.command('two')
    ends.wait(2)
    assert model.dialogues[-1] == Dialogue()


def test_closing_cancels_all_and_ends_the_thread():
    model, ends = Model(blocking=True), Ends()
    session = RequestScheduler(model, ends)
    session.start()
    session.add_image(1, 'image')
    session.submit_command('runs')
    assert model.started.acquire(timeout=5)
    session.submit_command('waits')
    assert session.close(5)
    session.submit_command('too late')
    assert {status for _, status in ends.wait(3)} == {Status.CANCELLED}
    assert 'lisa-session' not in {thread.name for thread in threading.enumerate()}


# ---- goals wait in their order, commands supersede one another, a standing query makes room


def goal(text, **more):
    return Request(text, patient=True, **more)


def test_goals_are_answered_in_the_order_they_came_and_none_supersedes_another(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    for text in ('one', 'two', 'three'):
        assert session.goal(goal(text))
    assert model.started.acquire(timeout=5)
    session.command('a command')
    assert session.goal(goal('four'))
    session.command('a newer command')  # in the place of the older one
    model.go.set()
    told = ends.wait(6)
    assert told[0] == ('a command', Status.CANCELLED)
    assert model.asked == ['one', 'two', 'three', 'a newer command', 'four']
    assert session.counts.superseded == 1
    assert session.counts.cancelled == 0


def test_there_is_room_for_so_many_goals_and_no_more(run):
    session, model, ends, _ = run(Model(blocking=True), goals_kept=2)
    session.offer_image(1, 'image')
    assert session.goal(goal('one'))
    assert model.started.acquire(timeout=5)
    assert session.goal(goal('two'))
    assert session.goal(goal('three'))
    assert not session.has_room
    assert not session.goal(goal('four'))
    assert session.counts.rejected == 1
    session.command('a command')  # takes no goal's room
    model.go.set()
    assert [text for text, _ in ends.wait(4)] == ['one', 'two', 'three', 'a command']


def test_a_goal_that_waits_or_runs_is_cancelled_alone(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    goals = [goal(text) for text in ('one', 'two', 'three')]
    for one in goals:
        assert session.goal(one)
    assert model.started.acquire(timeout=5)
    assert session.cancel(goals[1])
    assert ends.wait(1) == [('two', Status.CANCELLED)]
    assert session.cancel(goals[0])
    assert ends.wait(2)[1] == ('one', Status.CANCELLED)
    assert not session.cancel(goals[0])
    model.go.set()
    assert ends.wait(3)[2] == ('three', Status.FOUND)


def test_stop_ends_commands_at_once_and_leaves_goals_alone(run):
    session, model, ends, _ = run(Model(blocking=True))
    session.offer_image(1, 'image')
    session.command('running')
    assert model.started.acquire(timeout=5)
    session.command('waiting')
    assert session.goal(goal('a goal'))
    assert session.stop()
    assert sorted(ends.wait(2)) == [('running', Status.CANCELLED), ('waiting', Status.CANCELLED)]
    assert model.started.acquire(timeout=5)
    assert not session.stop()  # the goal runs, and is none of its business
    model.go.set()
    assert ends.wait(3)[2] == ('a goal', Status.FOUND)


def test_a_frame_that_is_too_old_is_stale_and_one_of_the_goals_own_is_not(run):
    session, model, ends, _ = run(now=lambda: 5_000 * MS)
    session.offer_image(4_000 * MS, 'image')
    session.goal(goal('old', max_age=0.5))
    session.goal(goal('fresh', max_age=1.5))
    session.goal(goal('any'))
    session.goal(goal('own', max_age=0.5, frame=SyncedMessages(1, 'picture')))
    told = dict(ends.wait(4))
    assert told.pop('old') is Status.STALE_INPUT
    assert set(told.values()) == {Status.FOUND}
    assert ends.all[0][2].reason == (
        'the newest image is 1.00 s old, at most 0.5 s were asked for'
    )
    assert 'old' not in model.asked


def test_goals_of_one_dialogue_see_its_turns_alone(run):
    session, model, ends, _ = run(dialogue_turns=1)
    session.offer_image(1, 'image')
    for text, dialogue in (('a1', 'a'), ('b1', 'b'), ('a2', 'a'), ('c', None), ('a3', 'a')):
        session.goal(goal(text, dialogue=dialogue))
    ends.wait(5)
    session.command('command')
    ends.wait(6)
    queries = [[turn.query for turn in dialogue.turns] for dialogue in model.dialogues]
    assert queries == [[], [], ['a1'], [], ['a1', 'a2'], []]


def test_dialogues_outlive_a_session_that_was_given_them(run):
    dialogues = DialogueStore(most=2)
    for text in ('one', 'two'):
        session, model, ends, _ = run(dialogues=dialogues)
        session.offer_image(1, 'image')
        session.goal(goal(text, dialogue='a'))
        ends.wait(1)
        session.close()
    assert [turn.query for turn in model.dialogues[0].turns] == ['one']
    for key in ('b', 'c'):  # of three, the one that was not used for the longest is forgotten
        dialogues.append(key, dialogues.get(key)[1], found('x'))
    assert not dialogues.get('a')[0].turns
    assert dialogues.get('b')[0].turns


def test_a_standing_query_is_asked_about_every_newest_frame_until_it_ends(run):
    session, model, ends, _ = run(watch_rate=1000.0)
    session.watch('the mug')
    for stamp in (1, 2, 3):
        session.offer_image(stamp * MS, f'image {stamp}')
        ends.wait(stamp)
    assert [frame.image for frame in model.frames] == ['image 1', 'image 2', 'image 3']
    session.watch('the bowl')  # about the newest frame, though the other was asked about it
    ends.wait(4)
    assert model.asked == ['the mug'] * 3 + ['the bowl']
    assert session.stop()
    session.offer_image(9 * MS, 'image 9')
    session.command('a command')
    ends.wait(5)
    assert model.asked[4:] == ['a command']


def test_a_standing_query_makes_room_for_a_goal_and_is_asked_again(run):
    session, model, ends, _ = run(Model(blocking=True), watch_rate=1000.0)
    session.offer_image(1, 'image')
    session.watch('the mug')
    assert model.started.acquire(timeout=5)
    session.goal(goal('now'))
    assert ends.wait(1) == [('the mug', Status.CANCELLED)]
    model.go.set()
    assert ends.wait(2)[1] == ('now', Status.FOUND)
    assert ends.wait(3)[2] == ('the mug', Status.FOUND)  # about the same frame: it had no answer
    session.offer_image(2, 'image')
    assert ends.wait(4)[3] == ('the mug', Status.FOUND)


def test_a_standing_query_keeps_to_its_rate(run):
    session, model, ends, _ = run(watch_rate=0.01)
    session.watch('the mug')
    session.offer_image(1, 'image')
    ends.wait(1)
    session.offer_image(2, 'image')
    time.sleep(0.1)
    assert model.asked == ['the mug']
