# SPDX-License-Identifier: Apache-2.0
"""Tokens and weights that are read again while a server answers, and what an update leaves."""

import asyncio
import threading

import pytest
import toy_served_backend
from toy_served_backend import write_model

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')
pytest.importorskip('prometheus_client', reason='the extra `serve` is not installed')

from lisa_ros.errors import SettingsError
from lisa_ros.perception.registry import register_backend
from lisa_ros.serving.http_app import HttpState
from lisa_ros.serving.model_location import locate
from lisa_ros.serving.model_server import ReplicaPlan
from lisa_ros.serving.problems import Problem
from lisa_ros.serving.ray_cluster import call_errors, problem_of
from lisa_ros.serving.tokens import TokenTable
from lisa_ros.serving.updates import Updates

LONG = 60.0  # more than anything takes on a busy machine [s]


class GatedReplicas:
    """Replicas that note each update, and end it as they are told."""

    def __init__(self, served):
        self.served, self.updates, self.failures = served, [], []
        self.gate = threading.Event()
        self.gate.set()

    def update(self, replica):
        self.updates.append(replica)
        assert self.gate.wait(LONG)
        if self.failures:
            self.served, error = self.failures.pop(0)
            raise error
        self.served = replica.served


class Server:
    """A server without HTTP and Ray whose tokens and weights are files."""

    def __init__(self, folder, model=''):
        register_backend('toy', toy_served_backend.load)
        for name, sign in (('v1', 1), ('v2', -1)):
            (folder / name).mkdir()
            write_model(folder / name, sign=sign)
        self.link, self.tokens = folder / 'current', folder / 'tokens'
        self.link.symlink_to('v1')
        self.tokens.write_text('old old-old-old-old-old\n')
        model = model or f'toy:{self.link}'
        location = locate(model)
        self.replicas = GatedReplicas(location.served)
        self.plan = ReplicaPlan(location.served, model, folder=location.folder)
        self.state = HttpState(None, tokens=TokenTable.read(self.tokens))
        self.reload = asyncio.Event()

    @property
    def clients(self):
        return [client.name for _, client in self.state.tokens.clients]

    def move(self, name):
        self.link.unlink()
        self.link.symlink_to(name)

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.005)

    async def signal(self, caplog, text):
        """Send a signal; wait until the log says a text once more."""
        count = caplog.text.count(text)
        self.reload.set()
        await self.until(lambda: caplog.text.count(text) > count)


@pytest.fixture
def run(tmp_path, caplog):
    """Return a function that runs a scenario while a server follows signals."""
    caplog.set_level('INFO')

    def run(scenario, model=''):
        async def main():
            server = Server(tmp_path, model)
            updates = Updates(
                server.replicas, server.state, server.plan, server.tokens, asyncio.Lock()
            )
            following = asyncio.create_task(updates.follow(server.reload))
            try:
                await asyncio.wait_for(scenario(server), LONG)
                assert not following.done()
            finally:
                server.replicas.gate.set()
                following.cancel()
                await asyncio.wait({following})

        asyncio.run(main())

    return run


def test_the_replicas_get_the_folder_that_the_link_leads_to(run, caplog):
    async def scenario(server):
        await server.signal(caplog, 'the weights have not changed')
        server.move('v2')
        await server.signal(caplog, 'all replicas have the weights')
        (plan,) = server.replicas.updates
        assert (plan.served.model, plan.model) == ('toy:v2', f'toy:{server.link}')
        assert plan.folder.endswith('/v2')
        await server.signal(caplog, 'the weights have not changed')

    run(scenario)


def test_a_hub_id_has_no_version_and_a_signal_reads_the_tokens_alone(run, caplog):
    async def scenario(server):
        assert not server.replicas.served.version
        server.tokens.write_text('new new-new-new-new-new\n')
        await server.signal(caplog, 'start the server again')
        assert server.clients == ['new']
        assert not server.replicas.updates
        server.replicas.served = None  # an update has left no replica
        await server.signal(caplog, 'all replicas have the weights someone/on-the-hub')
        assert len(server.replicas.updates) == 1

    run(scenario, 'someone/on-the-hub')


def test_a_hub_id_that_has_become_a_folder_is_an_update(run, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def scenario(server):
        (tmp_path / 'someone').mkdir()
        (tmp_path / 'someone/on-the-hub').symlink_to(tmp_path / 'v2')
        await server.signal(caplog, 'all replicas have the weights')
        (plan,) = server.replicas.updates
        assert plan.folder.endswith('/v2')
        assert len(plan.served.version) == 64

    run(scenario, 'toy:someone/on-the-hub')


def test_an_update_whose_earlier_weights_answer_again_changes_nothing(run, caplog):
    async def scenario(server):
        server.replicas.failures.append((server.plan.served, SettingsError('no such weights')))
        server.move('v2')
        await server.signal(caplog, 'nothing was updated: no such weights')
        server.move('v1')
        await server.signal(caplog, 'the weights have not changed')
        server.move('v2')
        await server.signal(caplog, 'all replicas have the weights')
        assert len(server.replicas.updates) == 2

    run(scenario)


def test_after_an_update_that_left_no_replica_the_next_signal_deploys_in_any_case(run, caplog):
    async def scenario(server):
        server.replicas.failures.append((None, SettingsError('no such weights')))
        server.move('v2')
        await server.signal(caplog, 'no replica answers; correct the model')
        server.move('v1')
        await server.signal(caplog, 'all replicas have the weights')
        assert [plan.served.model for plan in server.replicas.updates] == ['toy:v2', 'toy:v1']

    run(scenario)


def test_tokens_are_read_while_an_update_takes_its_time(run):
    async def scenario(server):
        server.replicas.gate.clear()
        server.move('v2')
        server.reload.set()
        await server.until(lambda: server.replicas.updates)
        server.tokens.write_text('new new-new-new-new-new\n')
        server.reload.set()
        await server.until(lambda: server.clients == ['new'])

    run(scenario)


def test_whatever_an_update_raises_the_next_signal_is_followed(run, caplog):
    async def scenario(server):
        server.replicas.failures.append((server.plan.served, ZeroDivisionError()))
        server.move('v2')
        await server.signal(caplog, 'the update has met a bug')
        unreadable = server.link / 'weights.bin'
        unreadable.symlink_to('/proc/self/mem')
        await server.signal(caplog, 'nothing was updated: ')
        unreadable.unlink()
        server.tokens.write_text('new new-new-new-new-new\n')
        await server.signal(caplog, 'all replicas have the weights')
        assert server.clients == ['new']

    run(scenario)


def test_a_token_file_that_is_damaged_leaves_the_tokens(run, caplog):
    async def scenario(server):
        server.tokens.write_bytes(b'\xff\xfe')
        await server.signal(caplog, 'the tokens stay as they were')
        assert server.clients == ['old']
        server.tokens.write_text('new new-new-new-new-new\n')
        await server.signal(caplog, 'read the tokens again')
        assert server.clients == ['new']

    run(scenario)


def test_an_exception_of_a_replica_is_a_bug_and_its_end_a_loss():
    ray = pytest.importorskip('ray', reason='the extra `serve` is not installed')
    from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

    def raised(cause):
        """Return what Ray raises for what a method of a replica has raised."""
        return ray.exceptions.RayTaskError('answer', '', cause).as_instanceof_cause()

    bug = problem_of(raised(ZeroDivisionError('division')))
    assert (bug.problem, bug.retry_after) == (Problem.INTERNAL, None)
    assert 'ZeroDivisionError' in str(bug)
    for loss in (
        ray.exceptions.ActorDiedError(),
        ray.exceptions.ActorUnavailableError('gone', None),
        raised(ray.exceptions.ActorDiedError()),
        RequestCancelledError(),
    ):
        assert isinstance(loss, call_errors())
        assert problem_of(loss) is None
    without = DeploymentUnavailableError('ModelServer')
    assert isinstance(without, call_errors())
    assert problem_of(without).problem is Problem.NOT_READY
    assert problem_of(without).retry_after > 0
    assert 'failed to deploy' in str(problem_of(without))
