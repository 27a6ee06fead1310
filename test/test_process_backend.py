# SPDX-License-Identifier: Apache-2.0
"""A model in a process of its own: what it answers, what ends it, how it comes back."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import psutil
import pytest
from scripted_backend import ScriptedBackend

from lisa_ros import errors
from lisa_ros.errors import (
    CheckpointError,
    DeviceMemoryError,
    ImageError,
    SettingsError,
    WorkerError,
)
from lisa_ros.perception import registry, worker_supervisor
from lisa_ros.perception.backend import (
    STOP_GRACE,
    BatchRequest,
    InferenceOptions,
    LoadOptions,
    Query,
    SupervisedBackend,
)
from lisa_ros.perception.health import HealthState
from lisa_ros.perception.process_backend import ProcessBackend
from lisa_ros.perception.process_memory import GpuMemory
from lisa_ros.perception.request_limits import RequestLimits
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.shared_channel import Channel, SharedMemory
from lisa_ros.perception.stopping import timed_out
from lisa_ros.perception.worker import Worker, describe_exit
from lisa_ros.perception.worker_messages import Cancel
from lisa_ros.results import Dialogue, Done, MaskReady, Status, Token, Turn, unanswered
from lisa_ros.stop_signals import STOP_SIGNALS

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
LISA_ERRORS = [name for name in dir(errors) if name.endswith('Error')]
IMPORTS = 'import ctypes, os, signal, time\nfrom lisa_ros import errors\n'
NAMED = """
class NamedError(errors.ImageError):
    def __init__(self, file, line):
        super().__init__(f'{file}:{line}: not an image')
raise NamedError('mug.png', 3)
"""
GPU = """
import itertools, sys, types
allocated = itertools.count(100)
cuda = types.SimpleNamespace(
    is_available=lambda: True,
    is_initialized=lambda: True,
    device_count=lambda: 2,  # the model is on the second
    memory_allocated=lambda device: device and next(allocated),
    memory_reserved=lambda device: 1000 * device,
)
sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)
"""
STATEMENTS = {  # what the model does before it answers, by query
    'hold': 'ctypes.PyDLL(None).sleep(30)',  # holds the GIL: no thread of the process runs
    'stop': 'os.kill(os.getpid(), signal.SIGSTOP)',
    'endless': 'while True: pass',
    'os._exit': 'os._exit(7)',
    'sys.exit': 'raise SystemExit(3)',
    'interrupt': 'raise KeyboardInterrupt',
    'generator': 'raise GeneratorExit',
    'killed': 'os.kill(os.getpid(), signal.SIGKILL)',
    'segfault': 'ctypes.string_at(0)',
    'leaves a process': 'os.fork() or time.sleep(30); os._exit(5)',  # it holds the socket
    'eat': 'eaten = b"1" * (1 << 30); time.sleep(30)',
    'end of file': 'raise EOFError("weights.bin is truncated")',
    'own error': NAMED,
    'unpicklable': 'error = RuntimeError(open(os.devnull))\nraise error',
    **{name: f'raise errors.{name}("what came: the cure")' for name in LISA_ERRORS},
}
REPLIES = {
    'batches': {},
    '': {'answer': 'There.', 'masks': 'bright all'},
    'nan': {'masks': 'nan'},
    'one': {'masks': 'bright'},
    'flip': {'masks': 'bright all', 'flip': True},
    'none': {},
    'fail': {'failure': 'broken'},
    'memory': {'run': 'import torch; raise torch.OutOfMemoryError("CUDA out of memory.")'},
    'cancellable': {'hang': True},
    'hang': {'hang': True, 'uncancellable': True},
    'late': {'masks': 'bright', 'then': 'import time; time.sleep(30)'},
    **{name: {'run': IMPORTS + statement} for name, statement in STATEMENTS.items()},
}


class Log:
    """Collects lines."""

    def __init__(self):
        self.lines = []
        self.info = self.error = self.lines.append


@pytest.fixture
def make(tmp_path):
    """Make backends that are closed at the end."""
    backends, script = [], tmp_path / 'script.json'

    def make(load='', **arguments):
        script.write_text(json.dumps({'load': IMPORTS + load, **REPLIES}))
        backends.append(
            ProcessBackend(f'scripted:{script}', LoadOptions(), log=Log(), **arguments)
        )
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A backend whose process a test may kill."""
    script = tmp_path_factory.mktemp('scripted') / 'script.json'
    script.write_text(json.dumps(REPLIES))
    backend = ProcessBackend(f'scripted:{script}', LoadOptions(), log=Log())
    yield backend
    backend.close()


def ask(backend, text='', timeout=None, cancel=None):
    query = Query(text or 'segment the mug')
    options = InferenceOptions(answer_timeout=timeout)
    return list(backend.stream(IMAGE, query, options, cancel or threading.Event()))


def children():
    """Return the process ids of the living children; one may end between two lines."""
    living = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process.pid)
    return living


def wait(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fields(event):
    values = dict(vars(event.result if isinstance(event, Done) else event))
    durations = ('timings', 'time_to_first_mask')
    return {name: value for name, value in values.items() if name not in durations}


def assert_same(events, expected):
    """Compare events bit for bit, without their durations."""
    assert [type(event) for event in events] == [type(event) for event in expected]
    for event, other in zip(map(fields, events), map(fields, expected), strict=True):
        for name, value in event.items():
            if not isinstance(value, np.ndarray):
                assert value == other[name], name
                continue
            assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
            assert value.tobytes() == other[name].tobytes(), name
            assert value.flags.writeable


def assert_answers(backend):
    """Check that the next answer is right, even if the process is just being replaced."""
    assert_same(ask(backend, timeout=30), ask(ScriptedBackend(REPLIES)))


# ---- the same answers as in this process


def test_it_is_a_supervised_backend(shared):
    assert isinstance(shared, SupervisedBackend)
    assert not isinstance(ScriptedBackend(), SupervisedBackend)
    assert (shared.device, shared.capabilities) == ('cpu', ScriptedBackend(REPLIES).capabilities)
    assert shared.memory > 10 << 20


@pytest.mark.parametrize('text', ['', 'none', 'nan', 'one', 'flip'])
@pytest.mark.parametrize('region', [None, (3, 5, 20, 30)], ids=['whole', 'region'])
def test_the_events_are_those_of_the_backend_bit_for_bit(shared, text, region):
    query, options = Query(text or 'mug', region=region), InferenceOptions()
    events, expected = (
        list(stream_in_region(backend, IMAGE, query, options, threading.Event()))
        for backend in (shared, ScriptedBackend(REPLIES))
    )
    assert_same(events, expected)


def test_large_and_strided_images_and_dialogues_arrive_whole(shared):
    large = np.random.default_rng(1).integers(0, 256, (1200, 1600, 3), np.uint8)
    dialogue = Dialogue((Turn('mug?', '[SEG].', ((1, 2, 3, 4),)),), large[None, ..., 0] > 9)
    query = Query('mug', dialogue, explain=True)
    for image in (large, large[::-1, ::2], np.asfortranarray(IMAGE), IMAGE):
        events, expected = (
            list(backend.stream(image, query, InferenceOptions(), threading.Event()))
            for backend in (shared, ScriptedBackend(REPLIES))
        )
        assert_same(events, expected)


def test_results_stay_as_they_are_when_the_next_answer_comes(shared):
    first = ask(shared)[-1].result
    before = first.mask_logits.copy()
    ask(shared, 'nan')
    assert np.array_equal(first.mask_logits, before)


def test_the_memory_shrinks_when_the_images_do():
    memory = SharedMemory.create()
    reader = SharedMemory(os.dup(memory.descriptor))
    sizes = [40 << 20] + 20 * [1000] + [3 << 20] + 20 * [2 << 20] + [50 << 20]
    kept = []
    for number, size in enumerate(sizes):
        memory.clear()
        array = np.full(size, number + 1, np.uint8)
        (copy,) = reader.read(memory.write([memoryview(array)]))
        assert np.array_equal(np.frombuffer(copy, np.uint8), array)
        kept.append(os.fstat(memory.descriptor).st_blocks * 512 >> 20)
    assert kept[0] == kept[5] == 40  # a larger image may come again soon
    assert kept[20] == 1
    assert kept[21] == kept[41] == 3  # less than half would be free
    assert kept[42] == 50


def test_a_message_that_nobody_waits_for_may_be_read_late():
    memory = SharedMemory.create()
    reader = SharedMemory(os.dup(memory.descriptor))
    spans = memory.write([memoryview(bytes(40 << 20))])
    reader.read(spans)
    for _ in range(20):
        memory.clear()
    assert len(reader.read(spans)[0]) == 40 << 20


def test_cancels_leave_the_images_of_a_batch_that_is_not_read_yet():
    here, there = Pipe()
    memories = [SharedMemory.create() for _ in range(2)]
    copies = [SharedMemory(os.dup(memory.descriptor)) for memory in memories]
    worker = Worker(os.getpid(), Channel(here, *memories))
    images = [np.full((300, 500, 3), number, np.uint8) for number in range(1, 17)]
    for message in ([], images, *map(Cancel, range(12))):  # the first: what came before
        worker.send(message)
    child = Channel(there, *reversed(copies))
    child.receive()
    for received, sent in zip(child.receive(), images, strict=True):
        np.testing.assert_array_equal(received, sent)


def test_lisa_answers_in_a_process_as_here():
    from lisa_ros.segmenter import Segmenter

    image = np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)
    options = InferenceOptions(max_new_tokens=24, confidence_threshold=1e-6)
    here = Segmenter.load('lisa-tabletop', device='cpu', threads=1, options=options)
    backend = ProcessBackend('lisa-tabletop', LoadOptions(device='cpu', threads=1))
    there = Segmenter(backend, options)
    try:
        expected = list(here.stream(image, 'segment the red mug'))
        assert any(isinstance(event, MaskReady) for event in expected)
        assert_same(list(there.stream(image, 'segment the red mug')), expected)
        there.encode_images([image, image[:60]])
        there.clear_cache()
        with pytest.raises(ImageError, match='uint8'):
            there.stream(image.astype(np.float32), 'segment the red mug')
        with pytest.raises(errors.QueryError):
            there.stream(image, '')
    finally:
        backend.close()


# ---- errors


@pytest.mark.parametrize('name', LISA_ERRORS)
def test_an_error_that_a_user_can_fix_keeps_type_and_message(shared, name):
    with pytest.raises(errors.LisaError, match=r'^what came: the cure$') as raised:
        ask(shared, name)
    assert type(raised.value) is getattr(errors, name)
    assert raised.value.__cause__ is None


def test_an_error_that_cannot_be_pickled_keeps_its_kind_and_message(shared):
    with pytest.raises(ImageError, match=r'^mug\.png:3: not an image$'):
        ask(shared, 'own error')
    with pytest.raises(RuntimeError, match=r'^RuntimeError: <_io.TextIOWrapper'):
        ask(shared, 'unpicklable')


def test_a_bug_keeps_its_type_and_the_traceback_of_the_process(shared):
    reloads = shared.health.reloads
    with pytest.raises(RuntimeError, match=r'^broken$') as raised:
        ask(shared, 'fail')
    assert "raise RuntimeError(reply['failure'])" in str(raised.value.__cause__)
    with pytest.raises(EOFError, match='truncated'):  # not taken for the end of the parent
        ask(shared, 'end of file')
    assert_answers(shared)
    assert shared.health.reloads == reloads


@pytest.mark.parametrize(
    ('load', 'error', 'message'),
    [
        ('raise errors.CheckpointError("no config.json")', CheckpointError, '^no config.json$'),
        ('raise ZeroDivisionError', ZeroDivisionError, '^$'),
        ('os._exit(9)', WorkerError, 'exited with status 9 while it loaded scripted:'),
        ('ctypes.string_at(0)', WorkerError, r'died of signal 11 \(SIGSEGV\) while it loaded'),
        ('raise SystemExit(4)', WorkerError, 'exited with status 4 while it loaded'),
    ],
)
def test_an_error_of_loading_is_raised_at_once_and_leaves_no_process(make, load, error, message):
    before = children()
    with pytest.raises(error, match=message):
        make(load)
    assert children() == before


def test_a_model_that_eats_memory_while_it_loads_is_ended(make):
    with pytest.raises(WorkerError, match=r'allows 300 MiB: raise it.* while it loaded'):
        make(STATEMENTS['eat'], memory_limit=300 << 20)


def test_the_memory_of_a_gpu_arrives_with_the_model_and_with_each_answer(make):
    """With a stand-in for torch: PyTorch asks a driver for these numbers."""
    backend = make(GPU)
    assert backend.gpu_memory == GpuMemory(100, 1000)
    assert (backend.device, backend.capabilities) == ('cpu', ScriptedBackend(REPLIES).capabilities)
    assert_answers(backend)
    assert backend.gpu_memory.allocated > 100


def test_an_unknown_scheme_needs_no_process():
    with pytest.raises(SettingsError, match='is not a registered scheme'):
        ProcessBackend('unknown:x', LoadOptions())


@pytest.mark.parametrize('module', ['__main__', __name__])
def test_a_loader_that_the_process_cannot_import_is_refused_with_the_cure(module, monkeypatch):
    def loader(rest, options):
        return ScriptedBackend()

    if module == '__main__':
        monkeypatch.setattr(sys.modules['__main__'], 'loader', loader, raising=False)
        loader.__module__, loader.__qualname__ = '__main__', 'loader'
    registry.register_backend('local', loader)
    with pytest.raises(SettingsError, match=r'function of a module.*isolation to thread'):
        ProcessBackend('local:x', LoadOptions())


# ---- batches


def stream_batch(backend, *texts, timeout=None, cancels=()):
    """Yield the events of a batch; `cancels`: pairs of a query and its cancel."""
    cancels = dict(cancels)
    requests = [
        BatchRequest(IMAGE, Query(text), cancels.get(text) or threading.Event()) for text in texts
    ]
    return backend.stream_batch(requests, InferenceOptions(answer_timeout=timeout))


def by_request(events, count):
    parts = [[] for _ in range(count)]
    for number, event in events:
        parts[number].append(event)
    return parts


def test_a_batch_has_the_events_of_the_model(shared):
    assert shared.capabilities.batches
    texts = ('segment the mug', 'one', 'none', 'flip', 'one')
    parts = by_request(stream_batch(shared, *texts), len(texts))
    expected = by_request(stream_batch(ScriptedBackend(REPLIES), *texts), len(texts))
    for own, other in zip(parts, expected, strict=True):
        assert_same(own, other)
    assert_answers(shared)


def test_a_cancel_of_a_batch_is_forwarded_for_its_request(shared):
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    start = time.monotonic()
    parts = by_request(
        stream_batch(shared, 'one', 'cancellable', cancels=[('cancellable', cancel)]), 2
    )
    assert 0.2 <= time.monotonic() - start < 5
    assert [part[-1].result.status for part in parts] == [Status.FOUND, Status.CANCELLED]


def test_a_batch_that_is_given_up_is_cancelled_in_the_model(shared):
    hanging = stream_batch(shared, 'one', 'cancellable')
    assert next(hanging)[0] == 0
    hanging.close()
    assert_answers(shared)


def test_a_process_that_dies_ends_the_batch_and_the_next_one_is_answered(shared):
    events = stream_batch(shared, 'late', 'killed')
    with pytest.raises(WorkerError, match='signal 9'):
        list(events)
    assert_answers(shared)


def test_memory_that_is_not_enough_is_an_error_without_pytorch(shared):
    with pytest.raises(DeviceMemoryError, match='CUDA out of memory'):
        list(stream_batch(shared, 'one', 'memory'))
    with pytest.raises(DeviceMemoryError):
        ask(shared, 'memory')
    assert_answers(shared)


def test_an_exception_of_the_model_ends_the_batch(shared):
    with pytest.raises(RuntimeError, match='broken'):
        list(stream_batch(shared, 'one', 'fail'))
    assert_answers(shared)


def test_a_batch_that_hangs_times_out_with_what_was_ready(shared):
    parts = by_request(stream_batch(shared, 'late', 'hang', timeout=0.5), 2)
    ends = [part[-1].result for part in parts]
    assert {end.status for end in ends} == {Status.TIMED_OUT}
    assert 'has not returned for 1 s' in ends[0].reason
    assert_answers(shared)


# ---- cancel and time


def test_a_cancel_is_forwarded_at_once(shared):
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    start = time.monotonic()
    assert ask(shared, 'cancellable', cancel=cancel)[-1].result.status is Status.CANCELLED
    assert time.monotonic() - start < 1.0


def test_an_answer_that_is_given_up_does_not_disturb_the_next_one(shared):
    def stream(text):
        return shared.stream(IMAGE, Query(text), InferenceOptions(), threading.Event())

    for count in (0, 1, 2):
        events = stream('mug')
        for _ in range(count):
            next(events)
        del events
        assert_answers(shared)
    hanging = stream('cancellable')
    del hanging  # its cancel reaches the model
    assert_answers(shared)


@pytest.mark.parametrize('text', ['hang', 'hold', 'stop', 'endless'])
def test_a_model_that_hangs_is_ended_and_the_next_answer_is_right(shared, text):
    before, start = children(), time.monotonic()
    result = ask(shared, text, timeout=0.2)[-1].result
    assert 0.2 + STOP_GRACE <= time.monotonic() - start < 1.2
    assert result.status is Status.TIMED_OUT
    assert result.reason.startswith('the model has not returned for 0.7 s (answer_timeout: 0.2 s)')
    assert result.masks.shape == (0, 48, 64)
    assert 'has not returned for 0.7 s' in shared.health.failure.cause
    assert_answers(shared)
    assert set(children()).isdisjoint(before)


def test_the_masks_that_were_ready_are_kept(shared):
    *events, done = ask(shared, 'late', timeout=0.2)
    assert [type(event) for event in events] == [Token, MaskReady]
    assert (done.result.status, done.result.answer) == (Status.TIMED_OUT, 'Sure.')
    assert np.array_equal(done.result.masks, events[1].mask[None])
    assert done.result.scores.tolist() == [1.0]


def test_a_cancelled_answer_whose_process_is_ended_is_cancelled(shared):
    cancel = threading.Event()
    cancel.set()
    assert ask(shared, 'hang', timeout=0.1, cancel=cancel)[-1].result.status is Status.CANCELLED


def test_a_cancelled_answer_whose_backend_is_closed_is_cancelled(make):
    cancel, backend = threading.Event(), make()
    events = backend.stream(IMAGE, Query('hang'), InferenceOptions(), cancel)
    cancel.set()
    threading.Timer(0.1, backend.close).start()
    (done,) = events
    assert done.result.status is Status.CANCELLED
    assert ask(backend, cancel=cancel)[-1].result.status is Status.CANCELLED
    with pytest.raises(WorkerError, match='the node is stopping'):
        ask(backend)


def test_interrupt_ends_an_answer_that_has_no_limit(shared):
    events = shared.stream(IMAGE, Query('hang'), InferenceOptions(), threading.Event())
    threading.Timer(0.1, shared.interrupt, ('the node is deactivated',)).start()
    with pytest.raises(WorkerError, match='was ended: the node is deactivated; it is being'):
        list(events)
    assert_answers(shared)
    reloads = shared.health.reloads
    shared.interrupt('nothing runs')
    assert_answers(shared)
    assert shared.health.reloads == reloads


# ---- death


@pytest.mark.parametrize(
    ('text', 'cause'),
    [
        ('os._exit', 'exited with status 7'),
        ('sys.exit', 'exited with status 3'),
        ('interrupt', 'exited with status 1'),
        ('generator', 'exited with status 1'),
        ('killed', 'died of signal 9 (SIGKILL; the kernel sends it when memory runs out)'),
        ('segfault', 'died of signal 11 (SIGSEGV)'),
        ('leaves a process', 'exited with status 5'),
    ],
)
def test_a_model_that_dies_ends_one_request_with_the_cause(shared, text, cause):
    with pytest.raises(WorkerError) as raised:
        ask(shared, text, timeout=30)
    assert str(raised.value) == f'the model process {cause}; it is being loaded again'
    assert shared.health.failure.cause == f'the model process {cause}'
    assert_answers(shared)
    assert (shared.health.state, shared.health.cause) == (HealthState.OK, '')


def test_a_model_that_eats_memory_is_ended(make):
    backend = make(memory_limit=400 << 20)
    assert_answers(backend)
    with pytest.raises(WorkerError, match='MiB, worker_memory_limit allows 400 MiB: raise it'):
        ask(backend, 'eat', timeout=30)
    assert_answers(backend)


def test_a_process_that_dies_between_requests_is_replaced_at_once(shared):
    (pid,) = children()
    reloads = shared.health.reloads
    psutil.Process(pid).kill()
    assert_answers(shared)  # at once: it may be asked before anybody has seen its death
    psutil.Process(children()[0]).kill()
    wait(lambda: shared.health.reloads == reloads + 2)  # without a request, too
    assert_answers(shared)


LIBRARY = """
import os, pathlib
from scripted_backend import ScriptedBackend
pathlib.Path(__file__).with_name(f'imported.{os.getpid()}').touch()
class Backend(ScriptedBackend):
    pass
"""
LOADER = """
def load(name, options):
    from slow_library import Backend
    return Backend()
"""


def test_a_standby_has_imported_the_libraries_and_loads_the_model_next(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'slow_library.py').write_text(LIBRARY)
    (tmp_path / 'slow_loader.py').write_text(LOADER)
    before = children()
    monkeypatch.setitem(registry._loaders, 'slow', importlib.import_module('slow_loader').load)
    backend = ProcessBackend('slow:x', LoadOptions(), has_standby=True, log=Log())
    wait(lambda: len(list(tmp_path.glob('imported.*'))) == 2)
    model, standby = (pid for pid in children() if pid not in before)
    os.kill(model, signal.SIGKILL)
    assert ask(backend, timeout=30)[-1].result.answer == 'Sure.'
    wait(lambda: len(list(tmp_path.glob('imported.*'))) == 3)  # the next one is ready
    assert {model, standby} & set(children()) == {standby}
    backend.close()
    wait(lambda: set(children()) <= set(before))


def test_a_standby_that_cannot_be_started_does_not_end_the_model(make, monkeypatch):
    start, starts = worker_supervisor.Worker.start, []

    def refuse_the_second():
        starts.append(len(starts))
        if len(starts) == 2:
            raise BlockingIOError('Resource temporarily unavailable')
        return start()

    monkeypatch.setattr(worker_supervisor.Worker, 'start', refuse_the_second)
    backend = make('', has_standby=True)
    lines = backend._supervisor._log.lines
    wait(lambda: any('no standby for' in line for line in lines))
    with pytest.raises(WorkerError):
        ask(backend, 'os._exit')
    assert_answers(backend)  # another process has loaded it
    assert len(starts) >= 3


def test_a_standby_of_another_node_that_cannot_load_is_replaced(make, monkeypatch):
    def adopt(fingerprint):
        worker = worker_supervisor.Worker.start()
        worker.kill('was ended')
        return worker

    monkeypatch.setattr(worker_supervisor.Worker, 'adopt', adopt)
    backend = make('', has_standby=True)
    assert_answers(backend)
    assert any('another process loads' in line for line in backend._supervisor._log.lines)


def test_a_standby_that_ends_is_replaced(make, monkeypatch):
    monkeypatch.setattr(worker_supervisor, '_STANDBY_PERIOD', 0.1)
    monkeypatch.setattr(worker_supervisor, '_WATCH_PERIOD', 0.05)
    backend = make('', has_standby=True)
    wait(lambda: backend._supervisor._standby)
    standby = backend._supervisor._standby
    os.kill(standby.pid, signal.SIGKILL)
    wait(lambda: backend._supervisor._standby is not standby)
    lines = backend._supervisor._log.lines
    assert any('the standby of' in line and 'signal 9' in line for line in lines)
    assert_answers(backend)
    assert backend.health.reloads == 0


def test_without_a_living_standby_another_process_loads_the_model(make):
    before = set(children())
    backend = make('', has_standby=True)
    wait(lambda: len(set(children()) - before) == 2)
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: backend.health.state is HealthState.OK and len(set(children()) - before) == 2)
    assert_answers(backend)
    backend.close()
    wait(lambda: set(children()) <= before)


def test_signals_for_the_whole_group_do_not_end_the_model(shared):
    (pid,) = children()
    for number in STOP_SIGNALS:
        psutil.Process(pid).send_signal(number)
    assert_answers(shared)
    assert children() == [pid]


def test_a_model_that_cannot_be_loaded_again_is_dead_until_a_request_finds_it(
    make, tmp_path, monkeypatch
):
    monkeypatch.setattr(worker_supervisor, 'RELOAD_DELAYS', (0.0, 0.1))
    gone = tmp_path / 'gone'
    backend = make(f'if os.path.exists({str(gone)!r}): raise errors.CheckpointError("no weights")')
    gone.touch()
    with pytest.raises(WorkerError, match='status 7; it is being loaded again'):
        ask(backend, 'os._exit')
    assert backend.health.state is HealthState.RELOADING
    wait(lambda: backend.health.state is HealthState.DEAD)
    assert 'could not be loaded again: no weights. The next request' in backend.health.cause
    assert sum('no weights' in line for line in backend._supervisor._log.lines) == 2
    with pytest.raises(WorkerError, match='no weights'):
        ask(backend, timeout=10)
    gone.unlink()
    assert_answers(backend)
    assert backend.health.state is HealthState.OK


def test_a_request_does_not_wait_for_ever_for_a_model_that_loads(make, tmp_path):
    slow = tmp_path / 'slow'
    backend = make(f'time.sleep(2 * os.path.exists({str(slow)!r}))')
    slow.touch()
    with pytest.raises(WorkerError):
        ask(backend, 'os._exit')
    with pytest.raises(WorkerError, match=r'is being loaded again, and not ready after 0.2 s'):
        ask(backend, timeout=0.2)
    cancel = threading.Event()
    cancel.set()
    (done,) = ask(backend, cancel=cancel)
    assert done.result.status is Status.CANCELLED
    assert 'while the model was being loaded again' in done.result.reason
    parts = by_request(stream_batch(backend, 'one', 'none', cancels=[('one', cancel)]), 2)
    assert [part[-1].result.status for part in parts] == [Status.CANCELLED, Status.NOT_FOUND]
    assert len(parts[0]) == 1
    assert_answers(backend)


def test_the_reason_of_a_late_answer_names_the_limit_of_the_user():
    """The process of the model had less: a part was spent on loading it again."""
    late = Done(unanswered('mug', Status.TIMED_OUT, timed_out(0.8).reason))
    done = RequestLimits.of(30.0).with_limit(late)
    assert done.result.reason == timed_out(30.0).reason
    answered = Done(unanswered('mug', Status.NOT_FOUND, ''))
    assert RequestLimits.of(30.0).with_limit(answered) is answered


def test_nothing_is_left_after_close(make):
    descriptors, threads = psutil.Process().num_fds(), threading.active_count()
    before = children()
    backend = make()
    ask(backend)
    with pytest.raises(WorkerError):
        ask(backend, 'killed')
    assert_answers(backend)
    backend.close()
    with pytest.raises(WorkerError, match='was ended'):
        ask(backend)
    assert (children(), threading.active_count()) == (before, threads)
    assert psutil.Process().num_fds() <= descriptors + 1  # the last channel, until it is freed


PARENT = """
import sys, threading, time
sys.path[:0] = sys.argv[1:2]
import numpy, scripted_backend
from lisa_ros.perception.backend import *
from lisa_ros.perception.process_backend import ProcessBackend

backend = ProcessBackend(sys.argv[2], LoadOptions())
print(backend._supervisor._worker.pid, flush=True)
image = numpy.zeros((4, 4, 3), numpy.uint8)
list(backend.stream(image, Query('hold'), InferenceOptions(), threading.Event()))
"""


def test_the_process_ends_with_its_parent_even_while_it_hangs(tmp_path):
    script = tmp_path / 'script.json'
    script.write_text(json.dumps(REPLIES))
    folder = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, '-c', PARENT, folder, f'scripted:{script}'], stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)  # it hangs, and holds the GIL
        parent.kill()
        parent.stdout.read()  # its end: the child has ended, too
    wait(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize(
    ('status', 'words'),
    [
        (0, 'exited with status 0'),
        (-6, 'died of signal 6 (SIGABRT)'),
        (-40, 'died of signal 40 (unknown)'),
    ],
)
def test_the_end_of_a_process_is_told_in_words(status, words):
    assert describe_exit(status) == words


def test_a_child_ends_although_its_supervisor_is_closed_when_it_has_just_loaded(make, monkeypatch):
    supervisor = worker_supervisor.WorkerSupervisor
    note_loaded, loaded = supervisor._note_loaded, []

    def close_and_note(self, worker, *reply):
        loaded.append(worker)
        self.close(timeout=0)
        note_loaded(self, worker, *reply)

    monkeypatch.setattr(supervisor, '_note_loaded', close_and_note)
    make()
    (worker,) = loaded
    wait(lambda: worker.wait(0))
