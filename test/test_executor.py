# SPDX-License-Identifier: Apache-2.0
"""The executor goes on after errors of callbacks, and services answer that they failed."""

import signal
import time

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.action', reason='needs the built interfaces: make setup')

import rclpy
from lisa_ros.action import Segment
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.action import ActionClient, ActionServer
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.serialization import serialize_message
from ros_graph import DOMAIN
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lisa_ros.ros.executor import GuardedExecutor
from lisa_ros.ros.service_guard import guard_services

pytestmark = pytest.mark.ros


class Log:
    def __init__(self):
        self.lines = []

    def error(self, message):
        self.lines.append(message)


class Graph:
    """A node under test in a guarded executor, and a peer in an executor of its own."""

    def __init__(self, context):
        self.log = Log()
        self.is_node_turn = False
        self.node = rclpy.create_node('tested', context=context)
        self.guarded = GuardedExecutor(self.log, context)
        self.guarded.add_node(self.node)
        self.peer = rclpy.create_node('peer', context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.peer)

    def spin_until(self, done, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.log.lines
            self.is_node_turn = True
            self.guarded.spin_once(0.02)
            self.is_node_turn = False
            self.executor.spin_once(0.0)

    def call(self, service_type, name, **fields):
        client = self.peer.create_client(service_type, f'tested/{name}')
        self.spin_until(client.service_is_ready)
        calls = []

        def is_answered():  # Fast DDS may drop the first answer to a new client
            if not calls or time.monotonic() - calls[-1][0] > 1:
                calls.append((time.monotonic(), client.call_async(service_type.Request(**fields))))
            return any(future.done() for _, future in calls)

        self.spin_until(is_answered)
        return next(future.result() for _, future in calls if future.done())


@pytest.fixture(scope='module')
def context():
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    yield context
    context.try_shutdown()


@pytest.fixture
def graph(context):
    graph = Graph(context)
    yield graph
    for executor, node in ((graph.guarded, graph.node), (graph.executor, graph.peer)):
        executor.shutdown()
        node.destroy_node()


def fail(error):
    def callback(*_):
        raise error

    return callback


def test_a_failing_callback_does_not_stop_the_others_and_is_logged_once(graph):
    ticks = []
    graph.node.create_timer(0.01, fail(ValueError('bad\nnumber ' + 'x' * 10_000)))
    graph.node.create_timer(0.01, lambda: ticks.append(1))
    graph.spin_until(lambda: len(ticks) > 50)
    (line,) = graph.log.lines
    assert 'a callback failed, the node goes on: ValueError: bad number xxx' in line
    assert 'test_executor.py' in line  # the traceback
    assert len(line) < 4000


@pytest.mark.parametrize(
    'error', [SystemExit(3), KeyboardInterrupt(), RuntimeError('x')], ids=repr
)
def test_no_error_of_a_callback_ends_spin(graph, error):
    ticks = []
    graph.node.create_timer(0.01, fail(error))
    graph.node.create_timer(
        0.1, lambda: ticks.append(1) or (len(ticks) > 2 and graph.guarded.stop())
    )
    graph.guarded.spin()
    assert len(ticks) == 3
    assert type(error).__name__ in graph.log.lines[0]


def test_a_failing_task_and_a_failing_coroutine_do_not_stop_the_executor(graph):
    async def coroutine():
        raise OSError('of a coroutine')

    graph.guarded.create_task(coroutine)
    graph.guarded.create_task(fail(LookupError('of a task')))
    done = graph.guarded.create_task(lambda: 'done')
    graph.spin_until(lambda: done.done() and len(graph.log.lines) == 2)
    assert any('of a coroutine' in line for line in graph.log.lines)
    assert any('of a task' in line for line in graph.log.lines)


def test_a_message_that_cannot_be_read_does_not_make_its_group_deaf(graph):
    received = []
    broken = graph.node.create_subscription(String, 'broken', received.append, 10)
    graph.node.create_subscription(String, 'sound', received.append, 10)
    broken.msg_type = int  # rclpy raises when it converts what it has received
    publishers = [graph.peer.create_publisher(String, topic, 10) for topic in ('broken', 'sound')]

    def publish():
        for publisher in publishers:
            publisher.publish(String(data='x'))
        return len(received) > 5

    graph.spin_until(publish)
    assert 'reading /broken failed, the node goes on: ' in graph.log.lines[0]


def test_malformed_messages_are_dropped(graph):
    received = []
    graph.node.create_subscription(String, 'text', received.append, 10)
    publisher = graph.peer.create_publisher(String, 'text', 10)
    good = serialize_message(String(data='a text'))
    graph.spin_until(publisher.get_subscription_count)

    def publish():
        for malformed in (
            good[:5],
            good[:4] + b'\xff' * 8,
            b'\xff' * 20,
            good[:9] + b'\xff\xfe\0',
        ):
            publisher.publish(bytes(malformed))
        publisher.publish(good)
        return any(message.data == 'a text' for message in received)

    graph.spin_until(publish)


def execute(goal):
    goal.publish_feedback(Segment.Feedback())
    goal.succeed()
    return Segment.Result()


MESSAGES = {
    'message': String,
    'answer of a service': Trigger.Response,
    'answer to a goal': Segment.Impl.SendGoalService.Response,
    'result': Segment.Impl.GetResultService.Response,
    'feedback': Segment.Impl.FeedbackMessage,
    'status of goals': Segment.Impl.GoalStatusMessage,
}


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def stop_signal(request):
    """Return a signal, and the exception that its handler raises, as those of `lisa-ros` do."""
    error = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[request.param]

    def stop(*_):
        raise error

    present = signal.signal(request.param, stop)
    yield request.param, error
    assert signal.signal(request.param, present) is stop


@pytest.mark.parametrize('message_type', MESSAGES.values(), ids=MESSAGES)
def test_a_stop_signal_while_a_message_is_read_is_not_lost_and_makes_no_group_deaf(
    graph, monkeypatch, message_type, stop_signal
):
    number, error = stop_signal
    texts, feedback = [], []
    graph.node.create_subscription(String, 'text', texts.append, 10)
    publisher = graph.peer.create_publisher(String, 'text', 10)
    graph.peer.create_service(Trigger, 'reset', lambda _, response: response)
    caller = graph.node.create_client(Trigger, 'reset')
    server = ActionServer(graph.peer, Segment, 'segment', execute)
    client = ActionClient(graph.node, Segment, 'segment')

    def exchange():
        """Let the node receive each kind of message."""
        texts.clear()
        feedback.clear()
        call = caller.call_async(Trigger.Request())
        goal = client.send_goal_async(Segment.Goal(), feedback.append)
        publisher.publish(String())
        graph.spin_until(lambda: texts and call.done() and goal.done())
        result = goal.result().get_result_async()
        graph.spin_until(lambda: result.done() and feedback)

    try:
        graph.spin_until(caller.service_is_ready)
        graph.spin_until(client.server_is_ready)
        graph.spin_until(publisher.get_subscription_count)
        exchange()
        make, due = message_type.__init__, [number]

        def make_and_stop(*args, **fields):
            make(*args, **fields)
            if due and graph.is_node_turn:  # called by C++, which converts a message
                signal.raise_signal(due.pop())

        monkeypatch.setattr(message_type, '__init__', make_and_stop)
        with pytest.raises(error):
            exchange()
        graph.is_node_turn = False
        exchange()
        assert graph.log.lines == []
    finally:
        server.destroy()
        client.destroy()


def test_the_first_signal_waits_for_a_callback_and_the_second_ends_it(graph, stop_signal):
    number, error = stop_signal
    steps = []

    def hang():
        for step in range(3):
            steps.append(step)
            signal.raise_signal(number)

    graph.node.create_timer(0.01, hang)
    with pytest.raises(error):
        graph.spin_until(lambda: False)
    assert steps == [0, 1]


def test_signals_are_left_to_a_program_that_ignores_them(graph):
    present = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        graph.node.create_timer(0.01, lambda: signal.raise_signal(signal.SIGINT))
        for _ in range(5):
            graph.guarded.spin_once(0.05)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, present)


def test_every_kind_of_service_answers_when_its_callback_fails(graph):
    async def fail_later(*_):
        raise ValueError('later')

    graph.node.create_service(Trigger, '~/now', fail(ValueError('now')))
    graph.node.create_service(Trigger, '~/later', fail_later)
    graph.node.create_service(Trigger, '~/nothing', lambda *_: None)
    graph.node.create_service(GetParameters, '~/get', fail(ValueError('x')))
    graph.node.create_service(SetParametersAtomically, '~/set', fail(ValueError('atomic')))
    guard_services(graph.node, graph.guarded.errors)
    for name in ('now', 'later'):
        response = graph.call(Trigger, name)
        assert (response.success, response.message) == (False, name)
    assert graph.call(Trigger, 'nothing').success is False
    assert list(graph.call(GetParameters, 'get', names=['a']).values) == []
    assert graph.call(SetParametersAtomically, 'set').result.reason == 'atomic'


def test_set_parameters_with_an_unknown_type_fails_for_that_parameter_only(graph):
    graph.node.declare_parameter('number', 1)
    guard_services(graph.node, graph.guarded.errors)
    good = Parameter(name='number', value=ParameterValue(type=2, integer_value=5))
    bad = Parameter(name='number', value=ParameterValue(type=200))
    absent = Parameter(name='absent', value=ParameterValue(type=2))
    results = graph.call(SetParameters, 'set_parameters', parameters=[bad, good, absent]).results
    assert [result.successful for result in results] == [False, True, False]
    assert 'number has a value of type 200; expected 0 to 9' in results[0].reason
    assert graph.node.get_parameter('number').value == 5
    atomic = graph.call(
        SetParametersAtomically, 'set_parameters_atomically', parameters=[good, bad]
    )
    assert 'type 200' in atomic.result.reason
    assert graph.log.lines == []  # the request was wrong, not the node


def test_the_executor_of_a_shut_down_context_ends():
    context = rclpy.Context()
    context.init(domain_id=int(DOMAIN))
    node = rclpy.create_node('ending', context=context)
    executor = GuardedExecutor(Log(), context)
    executor.add_node(node)
    node.create_timer(0.05, context.try_shutdown)
    executor.spin()
    with pytest.raises(ExternalShutdownException):
        executor.spin_once(1.0)
