# SPDX-License-Identifier: Apache-2.0
"""The action ~/segment over DDS: the node in its own process, clients in theirs."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

from ros_graph import START, NodeProcess, Peer, environment, image
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import String

from lisa_ros.client import LisaClient, Status
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.messages import bag
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.model import export
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SAMPLE

pytestmark = pytest.mark.ros

FRAME = next(bag.read_images(SAMPLE / 'bag', '/camera/color/image_raw'))
MUG, BOWL = 'segment the yellow mug', 'segment the red bowl'


@pytest.fixture(scope='module')
def lisa(tmp_path_factory):
    """An active node with our own model."""
    log = tmp_path_factory.mktemp('node') / 'node.log'
    given = {'threads': 1, 'image_timeout': 2.0, 'goals_kept': 40, 'camera': 'wrist'}
    process = NodeProcess(log, given)
    yield process
    assert process.stop() == 0, process.said()
    assert 'Traceback' not in process.said(), process.said()


@pytest.fixture(scope='module')
def tester(lisa):
    someone = Peer()
    someone.wait_until_active(lisa)
    someone.settle(1.0)  # best effort: the node must have found this camera, too
    yield someone
    someone.close()


@pytest.fixture(scope='module')
def client(tester):
    one = LisaClient(tester.node)
    # the tester spins its node by hand
    return Waiting(one, tester)


class Waiting:
    """A client whose goals are waited for by the tester."""

    def __init__(self, client, tester):
        self.client, self.tester = client, tester

    def ask(self, query, **goal):
        return self.client.segment_async(query, timeout=START, **goal)

    def answer(self, query, **goal):
        return self.end(self.ask(query, **goal))

    def end(self, pending):
        self.tester.wait(pending.done, START)
        return pending.result(0)


def show(tester, stamp=(7, 5)):
    tester.show(image(FRAME.pixels, stamp=stamp))


def forget(tester):
    """Let the topics tell what earlier tests asked, and forget it: a result comes before them."""
    heard = tester.heard['segmentation']
    count = -1
    while count != len(heard):
        count = len(heard)
        tester.settle(0.5)
    heard.clear()


# ---- one goal


def test_a_goal_is_answered_about_the_newest_image_and_the_topics_tell_it_too(tester, client):
    show(tester)
    forget(tester)
    answer = client.answer(MUG)
    assert answer.status is Status.FOUND
    assert answer.reason == ''
    assert (answer.header.stamp.sec, answer.header.frame_id) == (7, 'camera_optical')
    assert answer.masks.shape == (1, 240, 320)
    assert answer.masks[0].sum() == answer.message.instances[0].area > 500
    tester.wait(lambda: tester.heard['segmentation'])
    # as text: a centroid without depth is NaN, which equals nothing
    assert str(tester.heard['segmentation'][0]) == str(answer.message)


def test_feedback_has_the_words_in_order_and_the_mask_before_the_result(tester, client):
    show(tester)
    told = []
    pending = client.ask('I want to tidy my desk.', on_feedback=told.append)
    answer = client.end(pending)
    assert answer.status is Status.FOUND
    assert [one.stage for one in told[:2]] == ['queued', 'looking']
    assert all(one.stage == 'answering' for one in told[2:])
    texts = [one.text for one in told]
    assert texts == sorted(texts, key=len)
    assert texts[-1] == answer.answer
    masks = [(number, one.instances) for number, one in enumerate(told) if one.instances]
    assert [len(some) for _, some in masks] == [1]
    number, (early,) = masks[0]
    assert number < len(told) - 1  # words came after it
    np.testing.assert_array_equal(mask_from_message(early.mask), answer.masks[0])


def test_a_picture_of_the_goals_own_is_answered_and_told_to_nobody_else(tester, client):
    show(tester)
    forget(tester)
    own = image(FRAME.pixels, stamp=(99, 0), frame='elsewhere')
    answer = client.answer(BOWL, image=own)
    assert answer.status is Status.FOUND
    assert (answer.header.stamp.sec, answer.header.frame_id) == (99, 'elsewhere')
    tester.settle()
    assert not tester.heard['segmentation']


def test_only_the_region_is_looked_at(tester, client):
    show(tester)
    whole = client.answer(BOWL)
    box = whole.message.instances[0].box
    region = RegionOfInterest(
        x_offset=min(max(0, box.x_offset - 40), 320 - 160),
        y_offset=min(max(0, box.y_offset - 30), 240 - 120),
        width=160,
        height=120,
    )
    part = client.answer(BOWL, region=region)
    assert part.status is Status.FOUND
    assert part.masks.shape == whole.masks.shape
    outside = part.masks[0].copy()
    rows = slice(region.y_offset, region.y_offset + region.height)
    outside[rows, region.x_offset : region.x_offset + region.width] = False
    assert not outside.any()
    both = (part.masks[0] & whole.masks[0]).sum()
    assert both / (part.masks[0] | whole.masks[0]).sum() > 0.5
    far = client.answer(BOWL, region=RegionOfInterest(x_offset=300, width=100, height=10))
    assert far.status is Status.FAILED
    assert 'not within the picture of 320 x 240' in far.reason


def test_a_reason_is_given_where_it_is_asked_for(tester, client):
    show(tester)
    answer = client.answer('Find something to tidy my desk.', want_explanation=True)
    assert answer.status is Status.FOUND
    assert 'desk' in answer.answer
    assert answer.message.query == 'Find something to tidy my desk.'


def test_an_image_that_is_too_old_is_told(tester, client):
    show(tester, stamp=(7, 5))  # the node's clock is that of today
    answer = client.answer(MUG, max_age=0.5)
    assert answer.status is Status.STALE_INPUT
    assert 'at most 0.5 s were asked for' in answer.reason
    now = tester.node.get_clock().now().nanoseconds
    show(tester, stamp=divmod(now, 10**9))
    assert client.answer(MUG, max_age=20.0).status is Status.FOUND


def test_a_continuous_goal_is_answered_about_newer_images_until_it_is_cancelled(tester, client):
    show(tester, stamp=(20, 0))
    told = []
    pending = client.ask(MUG, continuous=True, on_feedback=told.append)

    def answers():
        return [one for one in told if one.stage == 'answered']

    tester.wait(lambda: len(answers()) == 1, START)
    tester.settle(1.5)
    assert len(answers()) == 1  # nothing new to be seen
    show(tester, stamp=(21, 0))
    tester.wait(lambda: len(answers()) == 2, START)
    assert [one.instances[0].mask.header.stamp.sec for one in answers()] == [20, 21]
    assert client.answer(BOWL).status is Status.FOUND  # others are answered in between
    pending.cancel()
    last = client.end(pending)
    assert last.status is Status.CANCELLED
    assert last.header.stamp.sec == 21
    assert last.masks.any()


@pytest.mark.parametrize(
    ('goal', 'says'),
    [
        ({'query': MUG, 'continuous': True, 'image': image(FRAME.pixels)}, 'answered once'),
        ({'query': ' '}, 'the command is empty'),
        ({'query': MUG, 'camera': 'head'}, "no camera 'head': this node has 'wrist'"),
        ({'query': MUG, 'max_age': -1.0}, 'max_age is -1'),
        ({'query': MUG, 'max_age': float('nan')}, 'max_age is nan'),
    ],
)
def test_what_is_wrong_with_a_goal_is_said(goal, says, tester, client):
    show(tester)
    answer = client.answer(**goal)
    assert answer.status is Status.FAILED
    assert says in answer.reason
    assert client.answer(MUG, camera='wrist').status is Status.FOUND


# ---- dialogues


def test_goals_of_one_dialogue_follow_one_another_and_others_do_not(tester, client):
    show(tester)
    alone = client.answer('and the milk?').answer
    for name in ('one', 'two'):
        client.answer(MUG, dialogue=name)
    follow = client.answer('and the red bowl?', dialogue='one')
    assert follow.status is Status.FOUND
    asked = client.answer('what is it for?', dialogue='two')
    assert 'mug' in asked.answer.lower()
    asked = client.answer('what is it for?', dialogue='one')
    assert 'bowl' in asked.answer.lower()
    assert client.answer('and the milk?').answer == alone


# ---- several


def test_a_cancelled_goal_stops_at_once_and_the_next_is_answered(tester, client):
    show(tester)
    first = [client.ask('I want to tidy my desk.') for _ in range(6)]
    heard = []
    last = client.ask(MUG, on_feedback=heard.append)
    tester.wait(lambda: first[0].done(), START)
    for one in first[1:]:
        one.cancel()
    ends = [client.end(one) for one in first]
    assert ends[0].status is Status.FOUND
    assert {one.status for one in ends[2:]} == {Status.CANCELLED}
    assert client.end(last).status is Status.FOUND


def test_a_cancelled_goal_stops_in_the_middle_of_its_answer(tmp_path):
    """The model is ours, but for the end of its answers, which it never says."""
    given = Segmenter.load()
    weight = given.model.llm.lm_head.weight
    with torch.no_grad():
        weight[given.tokenizer.eos_token_id] = 0
    folder = tmp_path / 'endless'
    export.save(given.model, given.tokenizer, given.clip_recipe, folder)
    process = NodeProcess(tmp_path / 'log', {'threads': 1, 'model': folder}, '-r', '__ns:=/long')
    peer = Peer('/long')
    try:
        peer.wait_until_active(process)
        peer.settle(1.0)
        show(peer)
        client, told = Waiting(LisaClient(peer.node, '/long/lisa'), peer), []
        pending = client.ask(MUG, on_feedback=told.append)
        peer.wait(lambda: any(one.stage == 'answering' for one in told), START)
        pending.cancel()
        answer = client.end(pending)
        assert answer.status is Status.CANCELLED
        assert answer.reason == 'cancelled while it was being answered'
        words = sum(one.stage == 'answering' and not one.instances for one in told)
        assert words < 512  # max_new_tokens, which an answer that is left alone comes to
        own = image(FRAME.pixels, stamp=(99, 0))
        again = client.ask(MUG, image=own)  # it begins at once: nothing is left of the other
        again.cancel()
        assert client.end(again).header.stamp.sec in (0, 99)
    finally:
        peer.close()
        assert process.stop() == 0
        assert 'Traceback' not in process.said(), process.said()


@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    """Who watches a node of its own, which may be treated roughly."""
    log = tmp_path_factory.mktemp('crowd') / 'node.log'
    process = NodeProcess(log, {'threads': 1, 'goals_kept': 40}, '-r', '__ns:=/crowd')
    someone = Peer('/crowd')
    someone.wait_until_active(process)
    someone.settle(1.0)
    yield someone
    someone.close()
    assert process.stop() == 0, process.said()
    assert 'Traceback' not in process.said(), process.said()


@pytest.fixture(scope='module')
def patient(crowd):
    return Waiting(LisaClient(crowd.node, '/crowd/lisa'), crowd)


def test_goals_beyond_the_bound_are_rejected(crowd, patient):
    show(crowd)
    asked = [patient.ask(MUG) for _ in range(48)]
    ends = []
    for one in asked:
        crowd.wait(one.done, START)
        try:
            ends.append(one.result(0).status)
        except QueryError:
            ends.append('rejected')
    assert 1 <= ends.count('rejected') <= 8
    assert set(ends) == {'rejected', Status.FOUND}
    assert 'rejected' not in ends[:40]


CLIENT = """
import sys, rclpy
sys.path.insert(0, {here!r})
from lisa_ros.client import LisaClient
rclpy.init()
node = rclpy.create_node('client_' + sys.argv[1])
lisa = LisaClient(node, '/crowd/lisa')
names = sys.argv[2:]
asked = [lisa.segment_async('segment the ' + name, timeout=60) for name in names]
print('sent', flush=True)
for name, one in zip(names, asked):
    answer = one.result(100)
    print(answer.status.name, answer.message.query, len(answer.masks), flush=True)
"""


def start(number, *names):
    code = CLIENT.format(here=str(Path(__file__).parents[1]))
    return subprocess.Popen(
        [sys.executable, '-c', code, str(number), *names],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def test_many_clients_each_get_their_own_and_a_killed_one_costs_nothing(crowd, patient):
    show(crowd)
    names = ['yellow mug', 'red bowl', 'milk', 'desk caddy', 'ketchup']
    clients = [start(n, *names[n % 5 :], *names[: n % 5]) for n in range(3)]
    victim = start(9, *names)
    assert victim.stdout.readline() == 'sent\n'
    time.sleep(0.5)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for number, one in enumerate(clients):
        said, _ = one.communicate(timeout=3 * START)
        lines = said.splitlines()[1:]
        wanted = [*names[number % 5 :], *names[: number % 5]]
        assert [line.split()[1:-1] for line in lines] == [
            ['segment', 'the', *name.split()] for name in wanted
        ], said
        assert one.returncode == 0
    show(crowd)
    assert patient.answer(MUG).status is Status.FOUND


def test_after_a_rough_treatment_the_topics_speak_on(crowd):
    show(crowd)
    forget(crowd)
    answers = crowd.ask(MUG)
    assert [one.query for one in answers] == [MUG]


# ---- commands beside it


def test_commands_and_goals_are_both_answered(tester, client):
    show(tester)
    forget(tester)
    pending = client.ask(BOWL)
    tester.commands.publish(String(data=MUG))
    assert client.end(pending).status is Status.FOUND
    heard = tester.heard['segmentation']
    tester.wait(lambda: {one.query for one in heard} == {MUG, BOWL})


def test_a_standing_query_follows_the_frames_until_stop_and_makes_room(tester, client):
    heard = tester.heard['segmentation']
    forget(tester)
    tester.commands.publish(String(data=f'watch: {MUG}'))
    for second in range(20, 24):
        show(tester, stamp=(second, 0))
        tester.wait(lambda s=second: any(one.header.stamp.sec == s for one in heard), START)
    assert {one.query for one in heard} == {MUG}
    assert client.answer(BOWL).status is Status.FOUND
    show(tester, stamp=(30, 0))
    tester.wait(lambda: any(one.header.stamp.sec == 30 for one in heard), START)
    tester.commands.publish(String(data='Stop.'))
    tester.settle(0.5)
    forget(tester)
    show(tester, stamp=(31, 0))
    tester.settle(1.5)
    assert not heard


# ---- the client


def test_a_terminal_talks_with_the_node(tester, tmp_path):
    started = subprocess.Popen(
        [sys.executable, '-m', 'lisa_ros.cli', 'chat', '--out', str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**environment(), 'XDG_CACHE_HOME': str(tmp_path)},
    )  # fmt: skip
    show(tester)
    started.stdin.write(f'{MUG}\nwhat is it for?\n/reset\n/image x\n{BOWL}\n')
    started.stdin.close()
    tester.wait(lambda: started.poll() is not None, 2 * START)
    said = started.stdout.read()
    started.stdout.close()
    assert started.returncode == 0, said
    first, second, *_, last = said.split('> ')[1:-1]
    assert first.startswith('Sure.\n  (1 found')
    assert second.startswith('The mug holds a hot drink.')
    assert '/image is for --image' in said
    assert '(1 found' in last
    assert Image.open(tmp_path / '001.png').size[0] == 640


@pytest.mark.parametrize(
    'goal', [{'image': np.zeros((2, 2, 3), np.uint8)}, {'region': (1, 2, 3, 4)}, {'colour': 'red'}]
)
def test_what_is_no_goal_is_named(client, goal):
    with pytest.raises(QueryError, match=r'that is no goal.*image is a sensor_msgs/Image'):
        client.ask(MUG, **goal)


def test_a_continuous_goal_is_not_waited_for(client):
    with pytest.raises(QueryError, match='use segment_async'):
        client.client.segment(MUG, continuous=True)


def test_a_node_that_is_not_there_is_named(tester):
    lonely = LisaClient(tester.node, 'nobody')
    with pytest.raises(LisaError, match=r'no action nobody/segment within 0\.2 s'):
        lonely.segment(MUG, timeout=0.2)
    lonely.destroy()


def test_the_client_spins_a_node_that_nobody_spins(tester, lisa):
    import rclpy

    node = rclpy.create_node('planner', context=tester.context)
    client = LisaClient(node)
    show(tester)
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    executor = rclpy.executors.SingleThreadedExecutor(context=tester.context)
    rclpy.spin_once(node, executor=executor, timeout_sec=0.01)  # which lets it go again
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    client.destroy()
    executor.shutdown()
    spinning.join()
    node.destroy_node()


def test_goals_outlive_nothing_that_stops_the_node(tmp_path):
    """Deactivate ends goals; an inactive node rejects them; a dialogue survives that."""
    process = NodeProcess(tmp_path / 'log', {'threads': 1}, '-r', '__ns:=/other')
    peer = Peer('/other')
    try:
        peer.wait_until_active(process)
        peer.settle(1.0)
        show(peer)
        client = Waiting(LisaClient(peer.node, '/other/lisa'), peer)
        assert client.answer(MUG, dialogue='a').status is Status.FOUND
        watching = client.ask(MUG, continuous=True)  # and the camera stands still
        asked = [client.ask(MUG) for _ in range(60)]  # seconds of work
        peer.wait(asked[0].done, START)
        assert peer.change('deactivate')
        ends = [client.end(one) for one in asked]
        assert {one.status for one in ends} == {Status.FOUND, Status.CANCELLED}
        assert client.end(watching).status is Status.CANCELLED
        with pytest.raises(QueryError, match='it is not active'):
            client.answer(MUG)
        assert peer.change('activate')
        peer.wait_until_active(process)
        peer.settle(1.0)
        show(peer)
        assert 'mug' in client.answer('what is it for?', dialogue='a').answer.lower()
    finally:
        peer.close()
        process.stop()
