# SPDX-License-Identifier: Apache-2.0
"""Several queries at once have the answers of each alone."""

import errno
import json
import threading
import zipfile

import numpy as np
import pytest
import torch
from scripted_backend import ScriptedBackend

from lisa_ros.errors import DeviceMemoryError
from lisa_ros.evaluation.answering import WHOLE_ANSWER, answer_queries
from lisa_ros.evaluation.tabletop import read_test_set, run_test_set
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.model.drafts import ReplyMemory
from lisa_ros.perception.backend import BatchRequest, InferenceOptions, Query
from lisa_ros.perception.device_memory import is_memory_error, memory_errors
from lisa_ros.perception.masks import iou
from lisa_ros.resources import TEST_SETS
from lisa_ros.results import MaskReady, Status, Token
from lisa_ros.segmenter import Segmenter

OPTIONS = InferenceOptions(refine=False)


@pytest.fixture(scope='module')
def segmenter():
    return Segmenter.load(device='cpu', options=OPTIONS)


@pytest.fixture(scope='module')
def requests():
    """Queries about three images, of two sizes."""
    with zipfile.ZipFile(TEST_SETS / 'test.zip') as files:
        entries = json.loads(files.read('queries.json'))[:3]
        images = [decode_rgb(files.read(entry['image']), entry['image']) for entry in entries]
    images[1] = np.ascontiguousarray(images[1][:400, 100:])
    return [
        (image, query['text'])
        for image, entry in zip(images, entries, strict=True)
        for query in entry['queries'][:4]
    ]


def alone(segmenter, requests):
    segmenter.clear_cache()
    return [segmenter.segment(image, text) for image, text in requests]


def check(results, expected):
    for result, reference in zip(results, expected, strict=True):
        assert result.query == reference.query
        assert result.token_ids == reference.token_ids, result.query
        assert (result.status, result.reason) == (reference.status, reference.reason)
        assert len(result.masks) == len(reference.masks)
        for own, other in zip(result.masks, reference.masks, strict=True):
            assert iou(own, other) >= 0.999
        np.testing.assert_allclose(result.scores, reference.scores, atol=1e-3)


@pytest.mark.parametrize('is_known', [False, True])
def test_a_batch_has_the_answers_of_its_requests(segmenter, requests, is_known):
    expected = alone(segmenter, requests)
    if not is_known:
        segmenter.clear_cache()
    mixed = list(range(0, len(requests), 2)) + list(range(1, len(requests), 2))
    results = segmenter.segment_batch([requests[n] for n in mixed])
    check(results, [expected[n] for n in mixed])
    assert all(result.timings['tokens'] > 0 for result in results)


def test_a_request_at_fault_does_not_end_the_others(segmenter, requests):
    expected = alone(segmenter, requests[:2])
    results = segmenter.segment_batch(
        [requests[0], (requests[0][0].astype(np.float32), 'the mug'), requests[1]]
    )
    check(results[::2], expected)
    assert results[1].status is Status.FAILED
    assert 'float32' in results[1].reason
    (empty,) = segmenter.segment_batch([(requests[0][0], '')])
    assert empty.status is Status.FAILED
    assert segmenter.segment_batch([]) == []


def test_a_query_that_has_no_company_is_asked_alone(segmenter, requests):
    """A stream is faster for one: its steps are captured on a GPU, and its prompt is kept."""
    (image, text), *_ = requests
    queries = [Query(text), Query('Is there a mug?', yes_no=True), Query('')]
    batch = [BatchRequest(image, query, threading.Event()) for query in queries]
    events = list(segmenter.backend.stream_batch(batch, segmenter.options))
    assert [number for number, _ in events] == [2]
    assert events[0][1].result.status is Status.FAILED
    results = segmenter.segment_batch([(image, query) for query in queries])
    check(results[:1], alone(segmenter, [(image, text)]))
    assert results[1].yes_probability is not None


def test_regions_and_dialogues_are_those_of_the_request(segmenter, requests):
    image, text = requests[0]
    queries = [Query(text, region=(0, 0, 320, 240)), Query(text), Query('and the other one?')]
    results = segmenter.segment_batch([(image, query) for query in queries])
    assert [result.masks.shape[1:] for result in results if len(result.masks)]
    assert all(r.masks.shape[1:] == image.shape[:2] for r in results if len(r.masks))


def test_a_cancel_ends_all_answers(segmenter, requests):
    cancel = threading.Event()
    cancel.set()
    results = segmenter.segment_batch(requests[:3], cancel)
    assert [result.status for result in results] == [Status.CANCELLED] * 3


def test_a_batch_that_is_too_large_for_the_memory_is_asked_in_halves(
    segmenter, requests, monkeypatch
):
    encode, counts = segmenter.backend.model.encode_clip, []

    def encode_few(pixels):
        counts.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        return encode(pixels)

    asked = requests[::4]  # one about each image
    expected = alone(segmenter, asked)
    segmenter.clear_cache()
    monkeypatch.setattr(segmenter.backend.model, 'encode_clip', encode_few)
    check(segmenter.segment_batch(asked), expected)
    assert counts == [3, 1, 1, 1]


SHORTAGES = [
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    'you tried to allocate 49152000 bytes. Error code 12 (Cannot allocate memory)',
    'could not create a primitive',
    'unable to mmap 4096 bytes from file </m/model.safetensors>: Cannot allocate memory (12)',
    'std::bad_alloc',
    'CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported',
    'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
    'cuDNN error: CUDNN_STATUS_ALLOC_FAILED',
    'CUDA driver error: out of memory',
    'HIP out of memory. Tried to allocate 2.00 GiB.',
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/opt/pytorch/c10/cuda/CUDACachingAllocator.cpp":'
    '995, please report a bug to PyTorch.',
]
OTHERS = [
    'CUDA error: no kernel image is available for execution on the device',
    'CUDA error: unspecified launch failure',
    'CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`',
    'NVML_SUCCESS == nvmlInit_v2() INTERNAL ASSERT FAILED at "CUDADriver.cpp":12',
    'the queue is out of memory slots',  # of a program that is not known
    'could not create a primitive descriptor for a convolution forward propagation primitive',
    'mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)',
]


def test_a_shortage_of_memory_has_many_names():
    errors = [*map(RuntimeError, SHORTAGES), MemoryError(), OSError(errno.ENOMEM, 'no memory')]
    errors += [torch.AcceleratorError(SHORTAGES[3]), torch.OutOfMemoryError('out of memory')]
    for error in errors:
        assert is_memory_error(error), error
        with (
            pytest.raises(DeviceMemoryError, match=r'is not enough .*: end other programs'),
            memory_errors(),
        ):
            raise error
    others = [*map(RuntimeError, OTHERS), OSError(errno.ENOENT, 'x'), ValueError('out of memory')]
    assert not [error for error in others if is_memory_error(error)]


def test_a_batch_for_which_the_cpu_has_no_memory_is_asked_in_halves(
    segmenter, requests, monkeypatch
):
    """What PyTorch raises on a CPU is a RuntimeError: the shortage is a real one."""
    encode, counts = segmenter.backend.model.encode_clip, []

    def encode_few(pixels):
        counts.append(len(pixels))
        if len(pixels) > 1:
            torch.empty(2**60, dtype=torch.uint8)
        return encode(pixels)

    expected = alone(segmenter, requests[::4])
    segmenter.clear_cache()
    monkeypatch.setattr(segmenter.backend.model, 'encode_clip', encode_few)
    check(segmenter.segment_batch(requests[::4]), expected)
    assert counts == [3, 1, 1, 1]
    monkeypatch.setattr(
        segmenter.backend.model, 'encode_clip', lambda _: torch.empty(2**60, dtype=torch.uint8)
    )
    segmenter.clear_cache()
    (failed,) = segmenter.segment_batch(requests[:1])
    assert failed.status is Status.FAILED
    assert 'the memory of the device is not enough (RuntimeError' in failed.reason


def stream_batch(segmenter, requests, cancels=None):
    """Yield the events of a batch; `cancels` by number."""
    batch = [
        BatchRequest(image, Query(text), (cancels or {}).get(number) or threading.Event())
        for number, (image, text) in enumerate(requests)
    ]
    yield from segmenter.backend.stream_batch(batch, segmenter.options)


def by_request(events, count):
    """Return the events of each request."""
    parts = [[] for _ in range(count)]
    for number, event in events:
        parts[number].append(event)
    return parts


def test_the_events_of_a_batch_are_those_of_each_stream(segmenter, requests):
    asked = requests[2:6]  # about two images
    expected = [list(segmenter.stream(image, text)) for image, text in asked]
    for cold in (True, False):
        if cold:
            segmenter.clear_cache()
        parts = by_request(stream_batch(segmenter, asked), len(asked))
        for own, other in zip(parts, expected, strict=True):
            assert [type(event) for event in own] == [type(event) for event in other]
            for event, reference in zip(own, other, strict=True):
                if isinstance(event, Token):
                    assert event == reference
                elif isinstance(event, MaskReady):
                    np.testing.assert_allclose(event.mask_logits, reference.mask_logits, atol=5e-3)
        check([part[-1].result for part in parts], [part[-1].result for part in expected])


def test_a_cancel_ends_one_answer_of_a_batch(segmenter, requests):
    expected = alone(segmenter, requests[:3])
    segmenter.clear_cache()  # without drafts an answer needs many passes
    segmenter.backend._prompts._replies = ReplyMemory((), kept=0)
    try:
        cancel, parts = threading.Event(), [[], [], []]
        for number, event in stream_batch(segmenter, requests[:3], {1: cancel}):
            parts[number].append(event)
            if len(parts[1]) == 2:
                cancel.set()
    finally:
        segmenter.backend._prompts._replies = ReplyMemory((), kept=64)
    check([parts[0][-1].result, parts[2][-1].result], expected[::2])
    cancelled = parts[1][-1].result
    assert cancelled.status is Status.CANCELLED
    assert len(parts[1]) == 3  # two tokens and the end
    assert cancelled.token_ids == expected[1].token_ids[:2]


def test_a_row_that_ends_within_a_pass_leaves_the_masks_of_the_others(segmenter, requests):
    expected = alone(segmenter, requests[:3])  # now drafts give each answer in one pass
    cancel, parts = threading.Event(), [[], [], []]
    for number, event in stream_batch(segmenter, requests[:3], {0: cancel}):
        parts[number].append(event)
        cancel.set()
    assert len(parts[0]) == 2
    assert parts[0][-1].result.status is Status.CANCELLED
    check([part[-1].result for part in parts[1:]], expected[1:])


def test_nan_in_one_request_fails_that_one_alone(segmenter, requests):
    expected = alone(segmenter, requests[:2])
    model, image = segmenter.backend.model, requests[2][0]
    word = segmenter.backend.tokenizer.encode('zzz')[-1]
    used = {
        token for _, text in requests[:2] for token in segmenter.backend.tokenizer.encode(text)
    }
    assert word not in used
    table = model.llm.get_input_embeddings().weight
    kept = table[word].clone()
    segmenter.clear_cache()
    try:
        with torch.no_grad():
            table[word] = torch.nan
        batch = [requests[0], (image, 'zzz'), requests[1]]
        parts = by_request(stream_batch(segmenter, batch), 3)
    finally:
        with torch.no_grad():
            table[word] = kept
        segmenter.clear_cache()
    check([parts[0][-1].result, parts[2][-1].result], expected)
    (failed,) = parts[1]
    assert failed.result.status is Status.FAILED
    assert 'NaN' in failed.result.reason


def test_a_backend_without_batches_is_asked_one_after_the_other(requests):
    segmenter = Segmenter(ScriptedBackend({'': {'masks': 'all'}}))
    results = segmenter.segment_batch(requests[:2])
    assert [result.query for result in results] == [text for _, text in requests[:2]]
    assert [result.status for result in results] == [Status.FOUND] * 2


def test_a_backend_that_times_no_stages_has_its_share_of_the_time(requests):
    results = answer_queries(Segmenter(ScriptedBackend({'': {'masks': 'all'}})), requests[:2])
    assert all(list(result.timings) == [WHOLE_ANSWER] for result in results)


def test_an_evaluation_in_batches_has_the_same_cases(segmenter):
    queries = read_test_set(TEST_SETS / 'test.zip')[:9]
    single = list(run_test_set(segmenter, queries))
    segmenter.clear_cache()
    batched = list(run_test_set(segmenter, queries, batch_size=4))
    for own, other in zip(batched, single, strict=True):
        assert (own.name, own.answer, own.found) == (other.name, other.answer, other.found)
        assert (
            own.overlap == pytest.approx(other.overlap, abs=2e-3) or own.overlap == other.overlap
        )
