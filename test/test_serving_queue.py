# SPDX-License-Identifier: Apache-2.0
"""A replica's queue: batches, the newest of a stream, deadlines, clients that leave, failures."""

import asyncio
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('python_multipart', reason='the extra `serve` is not installed')

from lisa_ros.errors import ModelError
from lisa_ros.perception import registry
from lisa_ros.perception.backend import Capabilities
from lisa_ros.results import Done, MaskReady, Segmentation, Status, Token
from lisa_ros.serving.batch_queue import BatchLimits
from lisa_ros.serving.model_server import ModelServer, ReplicaPlan
from lisa_ros.serving.multipart import ImageUpload
from lisa_ros.serving.problems import Problem
from lisa_ros.serving.query_format import SegmentQuery
from lisa_ros.serving.replies import Answer, ModelRequest
from lisa_ros.serving.wire_format import Served


class GatedBackend:
    """Answers each query with its text once its gate is open; notes the batches."""

    device, capabilities = 'cpu', Capabilities(batches=True)
    encode_images = clear_cache = lambda *_: None

    def __init__(self):
        self.gate, self.batches, self.ended_early = threading.Event(), [], []
        self.failure = None
        self.breaks_off = False  # each batch, once it has sent the first events
        self.memory = 100  # requests at once for which it is enough
        self.leaves = ()  # commands that a batch does not answer; with "late": until its end

    def stream_batch(self, requests, options):
        self.batches.append([request.query.text for request in requests])
        self._wait(*(request.cancel for request in requests))
        if len(requests) > self.memory or 'huge' in self.batches[-1]:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        for number, request in enumerate(requests):
            if request.query.text == 'bug':
                raise ZeroDivisionError
            if request.query.text in self.leaves:
                while request.query.text == 'late' and not request.cancel.is_set():
                    time.sleep(0.005)
                continue
            yield number, Token('It is [SEG]')
            if self.breaks_off:
                raise ModelError('the batch broke off')
            yield number, Done(self._result(request.image, request.query, request.cancel))

    def stream(self, image, query, options, cancel):
        self.batches.append([query.text])
        self._wait(cancel)
        if query.text == 'bug':
            raise ZeroDivisionError
        if query.text == 'huge':
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        result = self._result(image, query, cancel)
        yield Token('It is [SEG]')
        yield MaskReady(0, result.masks[0], result.mask_logits[0], 1.0)
        yield Token('.')
        yield Done(result)

    def _wait(self, *cancels):
        while not self.gate.wait(0.005):
            if all(cancel.is_set() for cancel in cancels):
                self.ended_early.append(self.batches[-1])
                return
        if self.failure:
            raise self.failure

    def _result(self, image, query, cancel):
        logits = np.ones((1, *image.shape[:2]), np.float32)
        status = Status.CANCELLED if cancel.is_set() else Status.FOUND
        scores = np.ones(1, np.float32)
        return Segmentation(
            query.text, query.text, 'It is [SEG].', logits > 0, logits, scores, status
        )


@pytest.fixture
def backend():
    gated = GatedBackend()
    registry.register_backend('gated', lambda name, options: gated)
    return gated


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


PNG = png()


def request(command, seconds=60.0, stream='', alone=False, number=0, **fields):
    upload = ImageUpload(SegmentQuery(command, **fields), PNG, 'image/png')
    return ModelRequest(upload, seconds, stream, alone, number)


def run(scenario, **limits):
    """Run a scenario with a server; the server is closed at its end."""

    async def main():
        plan = ReplicaPlan(Served('gated'), 'gated:', batches=BatchLimits(**limits))
        server = ModelServer(plan)
        try:
            await asyncio.wait_for(scenario(server), 60)
        finally:
            await server.close()

    asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


async def block(server, backend):
    """Let the model be busy with a request; return its call."""
    first = asyncio.create_task(server.answer(request('first')))
    await until(lambda: backend.batches)
    return first


def is_healthy(server):
    try:
        server.check_health()
    except RuntimeError:
        return False
    return True


def waiting(server):
    return server._started_queue().length


def test_requests_that_wait_are_answered_together_the_most_urgent_first(backend):
    async def scenario(server):
        first = await block(server, backend)
        calls = [
            asyncio.create_task(server.answer(request(name, seconds)))
            for name, seconds in (('late', 50), ('soon', 20), ('middle', 30))
        ]
        await until(lambda: waiting(server) == 3)
        backend.gate.set()
        replies = await asyncio.gather(first, *calls)
        assert [json.loads(reply.document)['command'] for reply in replies] == [
            *('first', 'late', 'soon', 'middle'),
        ]
        assert backend.batches == [['first'], ['soon', 'middle'], ['late']]
        assert [reply.figures.batch_size for reply in replies] == [1, 1, 2, 2]

    run(scenario, largest=2)


def test_only_requests_with_the_same_options_go_together(backend):
    async def scenario(server):
        first = await block(server, backend)
        calls = [
            asyncio.create_task(server.answer(request(name, options=options, alone=alone)))
            for name, options, alone in (
                ('a', {}, False),
                ('b', {'max_new_tokens': 3}, False),
                ('c', {}, False),
                ('d', {}, True),
            )
        ]
        await until(lambda: waiting(server) == 4)
        backend.gate.set()
        await asyncio.gather(first, *calls)
        assert sorted(map(sorted, backend.batches[1:])) == [['a', 'c'], ['b'], ['d']]

    run(scenario)


class Turnstile:
    """A gate that lets one request pass for each `release`."""

    def __init__(self):
        self._turns = threading.Semaphore(0)
        self.release = self._turns.release

    def wait(self, seconds):
        return self._turns.acquire(timeout=seconds)


def test_a_backend_without_batches_takes_one_request_at_a_time(backend):
    backend.capabilities, backend.gate = Capabilities(), Turnstile()

    async def scenario(server):
        first = await block(server, backend)
        a = asyncio.create_task(server.answer(request('a', 50)))
        older = asyncio.create_task(server.answer(request('older', stream='front')))
        await until(lambda: waiting(server) == 2)
        backend.gate.release()
        await until(lambda: backend.batches == [['first'], ['a']])
        newer = asyncio.create_task(server.answer(request('newer', stream='front')))
        assert (await older).problem is Problem.SUPERSEDED
        urgent = asyncio.create_task(server.answer(request('urgent', 30)))
        await until(lambda: waiting(server) == 2)
        backend.gate.release(3)
        replies = await asyncio.gather(first, a, urgent, newer)
        assert backend.batches == [['first'], ['a'], ['urgent'], ['newer']]
        assert {reply.figures.batch_size for reply in replies} == {1}
        assert {reply.figures.largest_batch for reply in replies} == {1}

    run(scenario)


def test_the_newest_of_a_stream_replaces_the_one_that_waits(backend):
    async def scenario(server):
        first = await block(server, backend)
        older = asyncio.create_task(server.answer(request('older', stream='front')))
        await until(lambda: waiting(server) == 1)
        other = asyncio.create_task(server.answer(request('other', stream='rear')))
        newer = asyncio.create_task(server.answer(request('newer', stream='front')))
        assert (await older).problem is Problem.SUPERSEDED
        backend.gate.set()
        replies = await asyncio.gather(first, other, newer)
        assert all(isinstance(reply, Answer) for reply in replies)

    run(scenario)


def test_an_older_request_that_is_decoded_later_does_not_replace_the_newer_one(backend):
    async def scenario(server):
        first = await block(server, backend)
        newer = asyncio.create_task(server.answer(request('newer', stream='front', number=2)))
        other = asyncio.create_task(server.answer(request('other', stream='rear', number=1)))
        await until(lambda: waiting(server) == 2)
        older = request('older', stream='front', number=1)
        assert (await server.answer(older)).problem is Problem.SUPERSEDED
        newest = asyncio.create_task(server.answer(request('newest', stream='front', number=3)))
        assert (await newer).problem is Problem.SUPERSEDED
        backend.gate.set()
        replies = await asyncio.gather(first, other, newest)
        assert all(isinstance(reply, Answer) for reply in replies)

    run(scenario)


def test_a_full_queue_refuses_with_a_time(backend):
    async def scenario(server):
        first = await block(server, backend)
        calls = [asyncio.create_task(server.answer(request(str(n)))) for n in range(2)]
        await until(lambda: waiting(server) == 2)
        refusal = await server.answer(request('more'))
        assert (refusal.problem, refusal.retry_after) == (Problem.OVERLOADED, 0)
        backend.gate.set()
        await asyncio.gather(first, *calls)

    run(scenario, places=2)


def test_a_full_queue_decodes_no_image_and_still_takes_the_newest_of_a_stream(backend):
    damaged = ModelRequest(ImageUpload(SegmentQuery('x'), PNG[:40], 'image/png'), 60.0)

    async def scenario(server):
        first = await block(server, backend)
        older = asyncio.create_task(server.answer(request('older', stream='front')))
        await until(lambda: waiting(server) == 1)
        assert (await server.answer(damaged)).problem is Problem.OVERLOADED
        newer = asyncio.create_task(server.answer(request('newer', stream='front')))
        assert (await older).problem is Problem.SUPERSEDED
        assert (await server.answer(damaged)).problem is Problem.OVERLOADED
        backend.gate.set()
        await asyncio.gather(first, newer)
        assert (await server.answer(damaged)).problem is Problem.INVALID_IMAGE

    run(scenario, places=1)


def test_a_request_whose_deadline_passes_is_not_begun(backend):
    async def scenario(server):
        first = await block(server, backend)
        late = asyncio.create_task(server.answer(request('late', 0.05)))
        await until(lambda: waiting(server) == 1)
        await asyncio.sleep(0.1)
        backend.gate.set()
        assert (await late).problem is Problem.DEADLINE
        await first
        assert backend.batches == [['first']]

    run(scenario)


def test_an_answer_that_the_deadline_cuts_off_is_refused(backend):
    async def scenario(server):
        reply = await server.answer(request('x', 0.05))
        assert reply.problem is Problem.DEADLINE
        *_, reply = [event async for event in server.stream(request('x', 0.05))]
        assert reply.problem is Problem.DEADLINE

    run(scenario)


def test_what_a_batch_leaves_is_not_begun_after_its_deadline(backend):
    backend.leaves = ('left', 'late')

    async def scenario(server):
        first = await block(server, backend)
        calls = [
            asyncio.create_task(server.answer(request(name, seconds)))
            for name, seconds in (('a', 60), ('left', 60), ('late', 4))
        ]
        await until(lambda: waiting(server) == 3)
        backend.gate.set()
        _, answer, left, late = await asyncio.gather(first, *calls)
        assert isinstance(answer, Answer)
        assert isinstance(left, Answer)
        assert late.problem is Problem.DEADLINE
        assert backend.batches == [['first'], ['late', 'a', 'left'], ['left']]

    run(scenario)


async def answered_together(server, backend, *commands):
    """Return the answers to requests that wait while the model is busy."""
    backend.gate.clear()
    backend.batches.clear()
    first = await block(server, backend)
    calls = [asyncio.create_task(server.answer(request(name))) for name in commands]
    await until(lambda: waiting(server) == len(commands))
    backend.gate.set()
    await first
    return await asyncio.gather(*calls)


def test_a_batch_that_is_too_large_for_the_memory_is_answered_in_halves(backend, caplog):
    backend.memory = 3

    async def scenario(server):
        answers = await answered_together(server, backend, *'abcdefgh')
        assert [json.loads(answer.document)['status'] for answer in answers] == ['FOUND'] * 8
        assert [len(batch) for batch in backend.batches] == [1, 8, 4, 2, 2, 4, 2, 2]
        answers = await answered_together(server, backend, *'abcd')
        assert [len(batch) for batch in backend.batches] == [1, 2, 2]
        assert answers[-1].figures.largest_batch == answers[-1].figures.batch_size == 2
        assert caplog.text.count('from now on') == 1
        server.check_health()

    run(scenario)


def test_a_request_for_which_the_memory_is_not_enough_fails_and_then_the_replica(backend):
    async def scenario(server):
        backend.gate.set()
        backend.failure = torch.OutOfMemoryError('CUDA out of memory.')
        for _ in range(3):
            server.check_health()
            document = json.loads((await server.answer(request('x'))).document)
            assert document['status'] == 'FAILED'
            assert 'lower max_batch' in document['reason']
        assert not is_healthy(server)

    run(scenario)


def test_one_request_that_is_too_large_does_not_lower_the_limit(backend):
    async def scenario(server):
        answers = await answered_together(server, backend, 'a', 'huge', 'b', 'c')
        statuses = [json.loads(answer.document)['status'] for answer in answers]
        assert statuses == ['FOUND', 'FAILED', 'FOUND', 'FOUND']
        answers = await answered_together(server, backend, *'abcd')
        assert [len(batch) for batch in backend.batches] == [1, 4]

    run(scenario)


def test_a_bug_in_a_batch_fails_the_request_at_fault_alone(backend):
    async def scenario(server):
        answers = await answered_together(server, backend, 'a', 'bug', 'b')
        statuses = [json.loads(answer.document)['status'] for answer in answers]
        assert statuses == ['FOUND', 'FAILED', 'FOUND']

    run(scenario)


def test_a_client_that_leaves_frees_its_place_or_the_model(backend):
    async def scenario(server):
        first = await block(server, backend)
        queued = asyncio.create_task(server.answer(request('queued')))
        await until(lambda: waiting(server) == 1)
        queued.cancel()
        await asyncio.wait({queued})
        assert waiting(server) == 0
        first.cancel()
        await asyncio.wait({first})
        await until(lambda: backend.ended_early == [['first']])
        backend.gate.set()
        assert isinstance(await server.answer(request('next')), Answer)

    run(scenario)


def test_one_that_leaves_does_not_end_the_others_of_its_batch(backend):
    async def scenario(server):
        first = await block(server, backend)
        calls = [asyncio.create_task(server.answer(request(name))) for name in 'ab']
        await until(lambda: waiting(server) == 2)
        first.cancel()
        await until(lambda: len(backend.batches) == 2)
        calls[0].cancel()
        await asyncio.wait({calls[0]})
        backend.gate.set()
        assert json.loads((await calls[1]).document)['status'] == 'FOUND'

    run(scenario)


def test_a_stream_of_events_ends_with_the_answer(backend):
    async def scenario(server):
        backend.gate.set()
        events = [event async for event in server.stream(request('x'))]
        names = [event.split(b'\n')[0] for event in events[:-1]]
        assert names == [b'event: token', b'event: mask', b'event: token']
        assert isinstance(events[-1], Answer)

    run(scenario)


def test_a_batch_that_breaks_off_sends_no_event_twice(backend):
    async def events_of(server, command):
        return [event async for event in server.stream(request(command))]

    async def scenario(server):
        backend.breaks_off = True
        first = await block(server, backend)
        calls = [asyncio.create_task(events_of(server, command)) for command in 'ab']
        await until(lambda: waiting(server) == 2)
        backend.gate.set()
        await first
        for events in await asyncio.gather(*calls):
            names = [event.split(b'\n')[0] for event in events[:-1]]
            assert names == [b'event: token', b'event: mask', b'event: token']
            assert isinstance(events[-1], Answer)

    run(scenario)


def test_a_stream_that_is_closed_stops_the_model(backend):
    async def scenario(server):
        events = server.stream(request('x'))
        pending = asyncio.ensure_future(anext(events))
        await until(lambda: backend.batches)
        pending.cancel()
        await asyncio.wait({pending})
        await until(lambda: backend.ended_early == [['x']])

    run(scenario)


def test_a_bug_of_the_model_fails_the_request_and_then_the_replica(backend, caplog):
    async def scenario(server):
        backend.gate.set()
        backend.failure = RuntimeError('CUDA error: device-side assert')
        for _ in range(3):
            server.check_health()
            document = json.loads((await server.answer(request('x'))).document)
            assert document['status'] == 'FAILED'
            assert 'CUDA error' in document['reason']
        with pytest.raises(RuntimeError, match='3 batches in a row failed'):
            server.check_health()
        backend.failure = None
        await server.answer(request('x'))
        await until(lambda: is_healthy(server))

    run(scenario)


def test_a_model_that_hangs_makes_the_replica_unhealthy(backend):
    async def scenario(server):
        first = await block(server, backend)
        with pytest.raises(RuntimeError, match='takes longer'):
            server.check_health()
        backend.gate.set()
        await first
        await until(lambda: is_healthy(server))

    async def main():
        server = ModelServer(ReplicaPlan(Served('gated'), 'gated:', hang_seconds=0.0))
        await asyncio.wait_for(scenario(server), 60)
        await server.close()

    asyncio.run(main())
