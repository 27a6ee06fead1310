# SPDX-License-Identifier: Apache-2.0
"""The action ~/segment over DDS: the node and its clients run in separate processes."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

import rclpy
from goal_server import GoalServer, replaced
from lisa_ros.action import Segment
from rclpy.action import ActionClient, ActionServer
from rclpy_features import needs_goal_clients
from ros_graph import DOMAIN, START, NodeProcess, Peer, environment, image, peer_of, running_node
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lisa_ros.client import LisaClient, Status
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.messages import bag
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.model import export
from lisa_ros.perception.backend import LoadOptions
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.masks import iou
from lisa_ros.resources import SAMPLE
from lisa_ros.ros import action_client
from lisa_ros.ros.goal_clients import GoalClients

pytestmark = pytest.mark.ros

FRAME = next(bag.read_images(SAMPLE / 'bag', '/camera/color/image_raw'))
MUG, BOWL = 'segment the yellow mug', 'segment the red bowl'


@pytest.fixture(scope='module')
def node_process(tmp_path_factory):
    """An active node with the model lisa-tabletop."""
    log = tmp_path_factory.mktemp('node') / 'node.log'
    parameters = {
        'threads': 1,
        'image_timeout': 2.0,
        'goals_kept': 40,
        'goals_per_client': 10,
        'camera': 'wrist',
    }
    with running_node(log, parameters) as process:
        yield process


@pytest.fixture(scope='module')
def peer(node_process):
    with peer_of(node_process) as peer:
        peer.settle(1.0)  # best effort: the node must have discovered this camera, too
        yield peer


@pytest.fixture(scope='module')
def client(peer):
    return SpinningClient(LisaClient(peer.node), peer)


class SpinningClient:
    """A LisaClient that spins the peer while it waits for a result."""

    def __init__(self, client, peer):
        self.client, self.peer = client, peer

    def ask(self, query, **goal):
        return self.client.segment_async(query, timeout=START, **goal)

    def answer(self, query, **goal):
        return self.wait(self.ask(query, **goal))

    def wait(self, future):
        self.peer.wait(future.done, START)
        return future.result(0)


def publish_image(peer, stamp=(7, 5)):
    peer.publish_image(image(FRAME.pixels, stamp=stamp))


def settle_answers(peer):
    """Wait for the answers of earlier tests: they are published after the result of the goal."""
    answers = peer.received['segmentation']
    count = -1
    while count != len(answers):
        count = len(answers)
        peer.settle(0.5)
    answers.clear()


# ---- single goals


def test_the_self_test_finds_the_bundled_object(peer):
    response = peer.call(Trigger, 'self_test')
    assert response.success, response.message
    assert 'the model answers rightly in' in response.message


def test_a_goal_is_answered_about_the_newest_image_and_published(peer, client):
    publish_image(peer)
    settle_answers(peer)
    answer = client.answer(MUG)
    assert answer.status is Status.FOUND
    assert answer.reason == ''
    assert (answer.header.stamp.sec, answer.header.frame_id) == (7, 'camera_optical')
    assert answer.masks.shape == (1, 240, 320)
    assert answer.masks[0].sum() == answer.message.instances[0].area > 500
    peer.wait(lambda: peer.received['segmentation'])
    # compared as text: a centroid without depth is NaN, which is not equal to itself
    assert str(peer.received['segmentation'][0]) == str(answer.message)


def test_feedback_has_the_text_in_order_and_the_mask_before_the_result(peer, client):
    publish_image(peer)
    feedback = []
    future = client.ask('I want to tidy my desk.', on_feedback=feedback.append)
    answer = client.wait(future)
    assert answer.status is Status.FOUND
    assert [message.stage for message in feedback[:2]] == ['queued', 'looking']
    assert all(message.stage == 'answering' for message in feedback[2:])
    texts = [message.text for message in feedback]
    assert texts == sorted(texts, key=len)
    assert texts[-1] == answer.answer
    with_masks = [(i, m.instances) for i, m in enumerate(feedback) if m.instances]
    ((index, (instance,)),) = with_masks
    assert index < len(feedback) - 1  # more text came after the mask
    np.testing.assert_array_equal(mask_from_message(instance), answer.masks[0])


def test_the_answer_to_a_goal_with_its_own_image_is_not_published(peer, client):
    publish_image(peer)
    settle_answers(peer)
    own_image = image(FRAME.pixels, stamp=(99, 0), frame='elsewhere')
    answer = client.answer(BOWL, image=own_image)
    assert answer.status is Status.FOUND
    assert (answer.header.stamp.sec, answer.header.frame_id) == (99, 'elsewhere')
    peer.settle()
    assert not peer.received['segmentation']


def test_masks_are_within_the_region(peer, client):
    publish_image(peer)
    full = client.answer(BOWL)
    box = full.message.instances[0].box
    region = RegionOfInterest(
        x_offset=min(max(0, box.x_offset - 40), 320 - 160),
        y_offset=min(max(0, box.y_offset - 30), 240 - 120),
        width=160,
        height=120,
    )
    part = client.answer(BOWL, region=region)
    assert part.status is Status.FOUND
    assert part.masks.shape == full.masks.shape
    outside = part.masks[0].copy()
    rows = slice(region.y_offset, region.y_offset + region.height)
    outside[rows, region.x_offset : region.x_offset + region.width] = False
    assert not outside.any()
    intersection = (part.masks[0] & full.masks[0]).sum()
    assert intersection / (part.masks[0] | full.masks[0]).sum() > 0.5
    invalid = client.answer(BOWL, region=RegionOfInterest(x_offset=300, width=100, height=10))
    assert invalid.status is Status.FAILED
    assert 'not within the image of 320 x 240' in invalid.reason


def test_an_explanation_is_given_on_request(peer, client):
    publish_image(peer)
    answer = client.answer('Find something to tidy my desk.', want_explanation=True)
    assert answer.status is Status.FOUND
    assert 'desk' in answer.answer
    assert answer.message.query == 'Find something to tidy my desk.'


def test_a_yes_no_question_gets_a_probability_and_no_topic(peer, client):
    publish_image(peer)
    settle_answers(peer)
    there = client.answer('is there a mug?', answer_probability=True)
    absent = client.answer('is there a banana?', answer_probability=True)
    assert (there.status, there.answer, len(there.masks)) == (Status.NOT_FOUND, 'Yes.', 0)
    assert there.yes_probability > 0.95
    assert absent.yes_probability < 0.05
    undecided = client.answer(MUG, answer_probability=True)
    assert undecided.status is Status.FAILED
    assert 'neither with yes nor with no' in undecided.reason
    assert np.isnan(undecided.yes_probability)
    assert not peer.received['segmentation']  # the tracker keeps the last answer
    assert np.isnan(client.answer(MUG).yes_probability)
    for contradiction in ('continuous', 'want_explanation'):
        refused = client.answer(MUG, answer_probability=True, **{contradiction: True})
        assert refused.status is Status.FAILED
        assert 'leave out continuous and want_explanation' in refused.reason
        assert np.isnan(refused.yes_probability)


def test_an_image_that_is_too_old_is_stale_input(peer, client):
    publish_image(peer, stamp=(7, 5))  # long before the time of the node's clock
    answer = client.answer(MUG, max_age=0.5)
    assert answer.status is Status.STALE_INPUT
    assert 'max_age allows 0.5 s' in answer.reason
    now = peer.node.get_clock().now().nanoseconds
    publish_image(peer, stamp=divmod(now, 10**9))
    assert client.answer(MUG, max_age=20.0).status is Status.FOUND


def test_a_continuous_goal_is_answered_about_newer_images_until_it_is_cancelled(peer, client):
    publish_image(peer, stamp=(20, 0))
    feedback = []
    future = client.ask(MUG, continuous=True, on_feedback=feedback.append)

    def answers():
        return [message for message in feedback if message.stage == 'answered']

    peer.wait(lambda: len(answers()) == 1, START)
    peer.settle(1.5)
    assert len(answers()) == 1  # there is no newer image
    publish_image(peer, stamp=(21, 0))
    peer.wait(lambda: len(answers()) == 2, START)
    assert [m.instances[0].mask.header.stamp.sec for m in answers()] == [20, 21]
    assert client.answer(BOWL).status is Status.FOUND  # other goals are answered in between
    future.cancel()
    last = client.wait(future)
    assert last.status is Status.CANCELLED
    assert last.header.stamp.sec == 21
    assert last.masks.any()


@pytest.mark.parametrize(
    ('goal', 'reason'),
    [
        ({'query': MUG, 'continuous': True, 'image': image(FRAME.pixels)}, 'leave out the image'),
        ({'query': ' '}, 'the query is empty'),
        ({'query': MUG, 'camera': 'head'}, "no camera 'head': this node has 'wrist'"),
        ({'query': MUG, 'max_age': -1.0}, 'max_age is -1'),
        ({'query': MUG, 'max_age': float('nan')}, 'max_age is nan'),
    ],
)
def test_an_invalid_goal_fails_with_its_reason(goal, reason, peer, client):
    publish_image(peer)
    answer = client.answer(**goal)
    assert answer.status is Status.FAILED
    assert reason in answer.reason
    assert client.answer(MUG, camera='wrist').status is Status.FOUND


def test_of_two_threads_that_wait_for_one_node_the_second_goes_on_spinning(peer):
    node = rclpy.create_node('waiting', context=peer.node.context)
    client = LisaClient(node)
    events = [threading.Event() for _ in range(2)]
    for seconds, event in zip((0.3, 1.0), events, strict=True):
        node.create_timer(seconds, event.set)
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(client.wait, event, 20) for event in events]
        assert [wait.result() for wait in waits] == [True, True]
    client.destroy()
    node.destroy_node()


# ---- dialogues


def test_goals_see_the_turns_of_their_own_dialogue_only(peer, client):
    publish_image(peer)
    alone = client.answer('and the milk?').answer
    for name in ('first', 'second'):
        client.answer(MUG, dialogue=name)
    follow_up = client.answer('and the red bowl?', dialogue='first')
    assert follow_up.status is Status.FOUND
    answer = client.answer('what is it for?', dialogue='second')
    assert 'mug' in answer.answer.lower()
    answer = client.answer('what is it for?', dialogue='first')
    assert 'bowl' in answer.answer.lower()
    assert client.answer('and the milk?').answer == alone


# ---- several goals


def test_a_cancelled_goal_stops_at_once_and_the_next_is_answered(peer, client):
    publish_image(peer)
    first = [client.ask('I want to tidy my desk.') for _ in range(6)]
    last = client.ask(MUG)
    peer.wait(lambda: first[0].done(), START)
    for future in first[1:]:
        future.cancel()
    results = [client.wait(future) for future in first]
    assert results[0].status is Status.FOUND
    assert results[-1].status is Status.CANCELLED  # the second may be answered by then
    assert client.wait(last).status is Status.FOUND


def test_a_cancelled_goal_stops_in_the_middle_of_its_answer(tmp_path):
    """lisa-tabletop with an end-of-sequence weight of zero: its answers never end."""
    backend = LisaBackend.load('lisa-tabletop', LoadOptions())
    weight = backend.model.llm.lm_head.weight
    with torch.no_grad():
        weight[backend.tokenizer.eos_token_id] = 0
    folder = tmp_path / 'endless'
    export.save(backend.model, backend.tokenizer, backend.clip_preprocessing, folder)
    process = NodeProcess(tmp_path / 'log', {'threads': 1, 'model': folder}, '-r', '__ns:=/long')
    peer = Peer('/long')
    try:
        peer.wait_until_active(process)
        peer.settle(1.0)
        publish_image(peer)
        client, feedback = SpinningClient(LisaClient(peer.node, '/long/lisa'), peer), []
        future = client.ask(MUG, on_feedback=feedback.append)
        peer.wait(lambda: any(m.stage == 'answering' for m in feedback), START)
        future.cancel()
        answer = client.wait(future)
        assert answer.status is Status.CANCELLED
        assert answer.reason == 'cancelled during the answer'
        tokens = sum(m.stage == 'answering' and not m.instances for m in feedback)
        assert tokens < 512  # max_new_tokens, the length of the answer without a cancel
        own_image = image(FRAME.pixels, stamp=(99, 0))
        second = client.ask(MUG, image=own_image)  # starts at once: the first one has ended
        second.cancel()
        assert client.wait(second).header.stamp.sec in (0, 99)
    finally:
        peer.close()
        assert process.stop() == 0
        assert 'Traceback' not in process.output(), process.output()


@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    """The peer of a second node, for tests with many clients, which answers in batches."""
    log = tmp_path_factory.mktemp('crowd') / 'node.log'
    parameters = {
        'threads': 1, 'goals_kept': 40, 'goals_per_client': 100, 'max_batch': 4,
        'diagnostics_period': 0.2,
    }  # fmt: skip
    with (
        running_node(log, parameters, '-r', '__ns:=/crowd') as process,
        peer_of(process, '/crowd') as peer,
    ):
        peer.settle(1.0)
        yield peer


@pytest.fixture(scope='module')
def crowd_client(crowd):
    return SpinningClient(LisaClient(crowd.node, '/crowd/lisa'), crowd)


def test_goals_beyond_the_limit_are_rejected(crowd, crowd_client):
    publish_image(crowd)
    futures = [crowd_client.ask(MUG) for _ in range(48)]
    outcomes = []
    for future in futures:
        crowd.wait(future.done, START)
        try:
            outcomes.append(future.result(0).status)
        except QueryError:
            outcomes.append('rejected')
    assert 1 <= outcomes.count('rejected') <= 8
    assert set(outcomes) == {'rejected', Status.FOUND}
    assert 'rejected' not in outcomes[:40]


def largest_batch(peer):
    """Return how many requests the node has answered at once."""
    values = [
        value.value
        for array in peer.received['diagnostics']
        for status in array.status
        if status.name == '/crowd/lisa: model'
        for value in status.values
        if value.key == 'requests at once, most so far'
    ]
    return int(values[-1]) if values else 0


def test_goals_at_once_have_the_masks_of_goals_one_by_one(crowd, crowd_client):
    publish_image(crowd)
    queries = [f'segment the {name}' for name in ('yellow mug', 'red bowl', 'milk', 'ketchup')]
    expected = [crowd_client.answer(query) for query in queries]
    futures = [crowd_client.ask(query) for query in queries]
    unsupported = image(FRAME.pixels, encoding='rgb9', stamp=(99, 0))
    broken = crowd_client.ask(MUG, image=unsupported)
    cancelled = crowd_client.ask('segment the desk caddy')
    cancelled.cancel()
    for future, other in zip(futures, expected, strict=True):
        answer = crowd_client.wait(future)
        assert (answer.status, answer.message.answer) == (other.status, other.message.answer)
        assert answer.masks.shape == other.masks.shape
        for own, mask in zip(answer.masks, other.masks, strict=True):
            assert iou(own, mask) >= 0.999
    assert sum(answer.status is Status.FOUND for answer in expected) >= 2
    failed = crowd_client.wait(broken)
    assert failed.status is Status.FAILED
    assert 'rgb9' in failed.message.reason
    assert crowd_client.wait(cancelled).status in (Status.CANCELLED, Status.FOUND)
    crowd.wait(lambda: largest_batch(crowd) > 1)
    assert largest_batch(crowd) <= 4


CLIENT = """
import sys, rclpy
sys.path.insert(0, {root!r})
from lisa_ros.client import LisaClient
rclpy.init()
node = rclpy.create_node('client_' + sys.argv[1])
lisa = LisaClient(node, '/crowd/lisa')
names = sys.argv[2:]
futures = [lisa.segment_async('segment the ' + name, timeout=60) for name in names]
print('sent', flush=True)
for future in futures:
    answer = future.result(100)
    print(answer.status.name, answer.message.query, len(answer.masks), flush=True)
"""


def start_client(number, *names):
    code = CLIENT.format(root=str(Path(__file__).parents[1]))
    return subprocess.Popen(
        [sys.executable, '-c', code, str(number), *names],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def test_many_clients_get_their_own_answers_while_one_is_killed(crowd, crowd_client):
    publish_image(crowd)
    names = ['yellow mug', 'red bowl', 'milk', 'desk caddy', 'ketchup']
    clients = [start_client(n, *names[n % 5 :], *names[: n % 5]) for n in range(3)]
    killed = start_client(9, *names)
    assert killed.stdout.readline() == 'sent\n'
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for number, process in enumerate(clients):
        output, _ = process.communicate(timeout=3 * START)
        lines = output.splitlines()[1:]
        expected = [*names[number % 5 :], *names[: number % 5]]
        assert [line.split()[1:-1] for line in lines] == [
            ['segment', 'the', *name.split()] for name in expected
        ], output
        assert process.returncode == 0
    publish_image(crowd)
    assert crowd_client.answer(MUG).status is Status.FOUND


def test_commands_are_still_answered_after_many_goals(crowd):
    publish_image(crowd)
    settle_answers(crowd)
    answers = crowd.ask(MUG)
    assert [answer.query for answer in answers] == [MUG]


# ---- goals and their clients

CONTINUOUS_CLIENT = """
import sys, time, rclpy
sys.path.insert(0, {root!r})
from lisa_ros.client import LisaClient
rclpy.init()
node = rclpy.create_node('greedy')
lisa = LisaClient(node, '/lisa')
query = 'segment the red bowl'
goals = [lisa.segment_async(query, continuous=True, timeout=60) for _ in range(15)]
end = time.monotonic() + 4
while time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.1)
print(sum(goal.done() for goal in goals), flush=True)
node.destroy_node()
rclpy.try_shutdown()
"""


@needs_goal_clients
def test_goals_of_a_client_that_has_left_end_and_it_cannot_have_too_many(
    node_process, peer, client
):
    publish_image(peer)
    code = CONTINUOUS_CLIENT.format(root=str(Path(__file__).parents[1]))
    greedy = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=environment()
    )
    node_process.wait_for_output('its client has too many, see goals_per_client')
    publish_image(peer)
    assert client.answer(MUG).status is Status.FOUND  # in its turn, beside ten continuous goals
    output, _ = greedy.communicate(timeout=START)
    assert output == '5\n'  # of fifteen goals, ten are kept
    node_process.wait_for_output('its client has left the ROS graph')
    peer.settle(2.5)
    settle_answers(peer)
    publish_image(peer, stamp=(50, 0))
    peer.settle(1.5)
    assert not peer.received['segmentation']  # nobody is answered any more


@needs_goal_clients
def test_the_goals_of_two_clients_take_turns(peer, client):
    other = SpinningClient(LisaClient(peer.node), peer)
    other.client.find(START)
    publish_image(peer)
    order = []

    def ask(own, query):
        future = own.ask(query)
        future.future.add_done_callback(lambda _: order.append(query))
        return future

    futures = [ask(client, f'{MUG} {number}') for number in range(8)]
    futures.append(ask(other, BOWL))
    for future in futures:
        peer.wait(future.done, START)
    other.client.destroy()
    assert order.index(BOWL) <= 4, order


@needs_goal_clients
def test_a_client_whose_gid_no_reader_has_is_gone_with_the_last_client(clients):
    """The events of Cyclone DDS have such GIDs."""
    from service_msgs.msg import ServiceEventInfo

    clients.join('planner')
    event = Segment.Impl.SendGoalService.Event()
    event.info.event_type = ServiceEventInfo.REQUEST_RECEIVED
    event.info.client_gid = [*range(1, 1 + len(event.info.client_gid))]
    event.request = [Segment.Impl.SendGoalService.Request()]
    goal_id = clients.goal_of(lambda: clients.events.publish(event))
    assert clients.of_goals.client(goal_id)
    assert clients.of_goals.gone([goal_id]) == set()
    clients.leave('planner')
    clients.wait(lambda: clients.of_goals.gone([goal_id]) == {goal_id})


@needs_goal_clients
def test_a_client_is_gone_beside_others_also_if_it_left_before_the_first_check(clients):
    short, long = clients.join('short'), clients.join('long')
    goal, other = (
        clients.goal_of(lambda c=client: c.send_goal_async(Segment.Goal(query=MUG)))
        for client in (short, long)
    )
    clients.leave('short')
    replies = 'rr/server/segment/_action/send_goalReply'
    readers = clients.nodes['server'].get_subscriptions_info_by_topic
    clients.wait(lambda: len(readers(replies, no_mangle=True)) == 1)
    assert clients.of_goals.gone([goal, other]) == {goal}
    assert clients.of_goals.name(goal) == '/short'
    clients.leave('long')
    clients.wait(lambda: clients.of_goals.gone([goal, other]) == {goal, other})


class Clients:
    """An action server, and action clients that are other participants of DDS."""

    def __init__(self):
        self.nodes, self.action_clients, self.known = {}, {}, []
        node = self._add('server')
        server = ActionServer(node, Segment, '~/segment', succeed)
        self.of_goals = GoalClients(node, server, '/server/segment', self.known.append)
        topic = '/server/segment/_action/send_goal/_service_event'
        self.events = node.create_publisher(Segment.Impl.SendGoalService.Event, topic, 10)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=node.context)
        self.executor.add_node(node)

    def join(self, name):
        """Return an action client that the server's node sees, and that sees the server."""
        client = ActionClient(self._add(name), Segment, '/server/segment')
        self.action_clients[name], names = client, self.nodes['server'].get_node_names
        self.wait(lambda: client.server_is_ready() and name in names())
        return client

    def goal_of(self, send):
        """Send a goal; return its id when its client is known."""
        count = len(self.known)
        send()
        self.wait(lambda: len(self.known) > count)
        return self.known[-1]

    def wait(self, done):
        end = time.monotonic() + START
        while not done():
            assert time.monotonic() < end
            self.executor.spin_once(0.02)

    def leave(self, name):
        node = self.nodes.pop(name)
        if name in self.action_clients:
            self.action_clients.pop(name).destroy()
        node.destroy_node()
        node.context.shutdown()

    def _add(self, name):
        context = rclpy.Context()
        context.init(domain_id=int(DOMAIN))
        self.nodes[name] = rclpy.create_node(name, context=context)
        return self.nodes[name]


def succeed(goal):
    goal.succeed()
    return Segment.Result()


@pytest.fixture
def clients():
    clients = Clients()
    yield clients
    for name in list(clients.nodes):
        clients.leave(name)


# ---- goals and commands


def test_commands_and_goals_are_both_answered(peer, client):
    publish_image(peer)
    settle_answers(peer)
    future = client.ask(BOWL)
    peer.commands.publish(String(data=MUG))
    assert client.wait(future).status is Status.FOUND
    answers = peer.received['segmentation']
    peer.wait(lambda: {answer.query for answer in answers} == {MUG, BOWL})


def test_a_standing_query_is_answered_until_stop_and_yields_to_a_goal(peer, client):
    answers = peer.received['segmentation']
    settle_answers(peer)
    peer.commands.publish(String(data=f'watch: {MUG}'))
    for second in range(20, 24):
        publish_image(peer, stamp=(second, 0))
        peer.wait(lambda s=second: any(answer.header.stamp.sec == s for answer in answers), START)
    assert {answer.query for answer in answers} == {MUG}
    assert client.answer(BOWL).status is Status.FOUND
    publish_image(peer, stamp=(30, 0))
    peer.wait(lambda: any(answer.header.stamp.sec == 30 for answer in answers), START)
    peer.commands.publish(String(data='Stop.'))
    peer.settle(0.5)
    settle_answers(peer)
    publish_image(peer, stamp=(31, 0))
    peer.settle(1.5)
    assert not answers


# ---- the client


def test_chat_with_the_node_in_a_terminal(peer, tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-m', 'lisa_ros', 'chat', '--out', str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**environment(), 'XDG_CACHE_HOME': str(tmp_path)},
    )  # fmt: skip
    publish_image(peer)
    process.stdin.write(f'{MUG}\nwhat is it for?\n/reset\n/image x\n{BOWL}\n')
    process.stdin.close()
    peer.wait(lambda: process.poll() is not None, 2 * START)
    output = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0, output
    first, second, *_, last = output.split('> ')[1:-1]
    assert first.startswith('Sure.\n  (1 found')
    assert second.startswith('The mug holds a hot drink.')
    assert '/image works with --image only' in output
    assert '(1 found' in last
    assert Image.open(tmp_path / '001.png').size[0] == 640


@pytest.mark.parametrize(
    'goal', [{'image': np.zeros((2, 2, 3), np.uint8)}, {'region': (1, 2, 3, 4)}, {'colour': 'red'}]
)
def test_an_invalid_goal_argument_is_an_error(client, goal):
    with pytest.raises(QueryError, match=r'not a valid goal.*image is a sensor_msgs/Image'):
        client.ask(MUG, **goal)


def test_a_continuous_goal_needs_segment_async(client):
    with pytest.raises(QueryError, match='use segment_async'):
        client.client.segment(MUG, continuous=True)


def test_a_missing_node_is_an_error(peer):
    client = LisaClient(peer.node, 'nobody')
    with pytest.raises(LisaError, match=r'no action nobody/segment within 0\.2 s'):
        client.segment(MUG, timeout=0.2)
    client.destroy()


def test_a_goal_is_lost_with_its_node_also_if_another_is_started_in_its_place(peer):
    first, client = GoalServer(namespace='/lost'), LisaClient(peer.node, '/lost/lisa')
    second = None
    try:
        goal = client.segment_async(MUG, timeout=START)
        peer.wait(first.has_goal.is_set, START)
        with pytest.raises(LisaError, match='if this is called in a callback'):
            goal.result(0.1)
        assert not goal.is_lost()
        second = replaced(first, namespace='/lost')
        peer.wait(goal.is_lost, START)
        with pytest.raises(LisaError, match='the node has left the ROS graph; start it again'):
            goal.result(0.1)
    finally:  # the client stays: its goal may still be accepted
        for server in filter(None, (first, second)):
            server.close()


def test_a_node_that_is_started_again_gets_time_to_find_the_client(peer, monkeypatch):
    """Fast DDS may lose the response to a client that the node has just discovered."""
    first, client = GoalServer(namespace='/again'), LisaClient(peer.node, '/again/lisa')
    second, pauses = None, []
    sleep = time.sleep  # which rclpy uses, too

    def noted_sleep(seconds):
        pauses.extend([seconds] if seconds == action_client._DISCOVERY_DELAY else [])
        sleep(seconds)

    monkeypatch.setattr(time, 'sleep', noted_sleep)
    try:
        client.find(START)
        client.find(START)
        assert len(pauses) == 1
        servers = client.servers()
        second = GoalServer(namespace='/again')
        peer.wait(lambda: client.servers() > servers, START)
        first.close()
        pauses.clear()
        sleep(action_client._LOOK_PERIOD)
        client.find(START)
        assert len(pauses) == 1
        peer.wait(lambda: not client.servers() & servers, START)
        sleep(action_client._LOOK_PERIOD)
        client.find(START)
        assert len(pauses) == 1
    finally:
        for server in filter(None, (first, second)):
            server.close()


def test_a_goal_to_a_remapped_action_is_lost_only_with_its_node(peer):
    """Beside a node that has the action's own name."""
    import rclpy

    server, context = GoalServer(namespace='/remapped'), rclpy.Context()
    remap = ['x', '--ros-args', '-r', 'lisa/segment:=/remapped/lisa/segment']
    context.init(args=remap, domain_id=int(DOMAIN))
    node = rclpy.create_node('planner', context=context)
    client = LisaClient(node)
    try:
        deadline = time.monotonic() + START
        while not node.count_publishers('/lisa/segment/_action/status'):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        goal = client.segment_async(MUG, timeout=START)
        while not server.has_goal.is_set():
            assert time.monotonic() < deadline
            goal.wait(0.1)
        assert not goal.is_lost()
        server.close()
        while not goal.is_lost():
            assert time.monotonic() < deadline
            goal.wait(0.1)
    finally:
        server.close()
        node.destroy_node()
        context.shutdown()


def test_the_client_spins_a_node_that_has_no_executor(peer, node_process):
    import rclpy

    node = rclpy.create_node('planner', context=peer.context)
    client = LisaClient(node)
    publish_image(peer)
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    executor = rclpy.executors.SingleThreadedExecutor(context=peer.context)
    rclpy.spin_once(node, executor=executor, timeout_sec=0.01)  # removes the node again
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin)
    spinner.start()
    assert client.segment(MUG, timeout=START).status is Status.FOUND
    client.destroy()
    executor.shutdown()
    spinner.join()
    node.destroy_node()


def end_of(client, goal):
    """Return the status of a goal; None if it came after deactivate and was rejected."""
    try:
        return client.wait(goal).status
    except QueryError:
        return None


def test_deactivate_ends_goals(tmp_path):
    """An inactive node rejects goals; dialogues are kept from deactivate to activate."""
    process = NodeProcess(tmp_path / 'log', {'threads': 1}, '-r', '__ns:=/other')
    peer = Peer('/other')
    try:
        peer.wait_until_active(process)
        peer.settle(1.0)
        publish_image(peer)
        client = SpinningClient(LisaClient(peer.node, '/other/lisa'), peer)
        assert client.answer(MUG, dialogue='a').status is Status.FOUND
        continuous = client.ask(MUG, continuous=True)  # no new image comes
        goals = [client.ask(MUG) for _ in range(60)]  # seconds of work
        peer.wait(goals[0].done, START)
        assert peer.change_state('deactivate')
        ends = {end_of(client, goal) for goal in goals}
        assert {Status.FOUND, Status.CANCELLED} <= ends <= {Status.FOUND, Status.CANCELLED, None}
        assert client.wait(continuous).status is Status.CANCELLED
        with pytest.raises(QueryError, match='it is not active'):
            client.answer(MUG)
        assert peer.change_state('activate')
        peer.wait_until_active(process)
        peer.settle(1.0)
        publish_image(peer)
        assert 'mug' in client.answer('what is it for?', dialogue='a').answer.lower()
    finally:
        peer.close()
        process.stop()


def test_stop_ends_a_continuous_goal(peer, client):
    settle_answers(peer)
    publish_image(peer)
    future = client.ask(MUG, continuous=True)
    peer.wait(lambda: peer.received['segmentation'], START)
    peer.commands.publish(String(data='stop'))
    answer = client.wait(future)
    assert answer.status is Status.CANCELLED
    assert answer.reason == 'stopped'
    settle_answers(peer)


def test_a_burst_of_commands_gets_one_answer_each(peer):
    """Publisher and subscriber of a client that sends bursts need the depth for them."""
    from lisa_ros.msg import Segmentation
    from rclpy.qos import QoSProfile

    answers, qos = [], QoSProfile(depth=1000)
    node = peer.node
    subscription = node.create_subscription(
        Segmentation, '/lisa/segmentation', answers.append, qos
    )
    commands = node.create_publisher(String, '/lisa/command', qos)
    publish_image(peer)
    peer.wait(lambda: commands.get_subscription_count() and subscription.get_publisher_count())
    peer.settle(0.5)
    texts = [f'segment the mug {number}' for number in range(300)]
    for text in texts:
        commands.publish(String(data=text))
    peer.wait(lambda: len(answers) >= len(texts), START, 'an answer to each command')
    peer.settle(0.5)
    assert sorted(answer.query for answer in answers) == sorted(texts)
    assert {answer.status for answer in answers} <= {1, 2, Segmentation.SUPERSEDED}
    node.destroy_subscription(subscription)
    node.destroy_publisher(commands)


def test_a_command_of_a_megabyte_fails_with_a_short_answer(peer, node_process):
    publish_image(peer)
    settle_answers(peer)
    peer.commands.publish(String(data='mug ' * 250_000))
    peer.wait(lambda: peer.received['segmentation'], START)
    (answer,) = peer.received['segmentation']
    assert answer.status == Status.FAILED
    assert 'max_command_chars allows 1000' in answer.reason
    assert len(answer.query) < 200
    assert len(node_process.output()) < 1_000_000
