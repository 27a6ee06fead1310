# SPDX-License-Identifier: Apache-2.0
"""Decoding by replays of one captured step. A recorder of kernels stands for CUDA graphs."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from lisa_ros.errors import ModelError
from lisa_ros.model import captured_decoding
from lisa_ros.model.captured_decoding import CapturedDecoder
from lisa_ros.model.drafts import Drafts
from lisa_ros.model.generation import generate, prefill
from lisa_ros.model.language_model import LanguageModel

STOP = -1  # no token: each answer goes on to its limit
WAITS = {'_local_scalar_dense', 'is_nonzero', 'nonzero', 'lift_fresh'}  # a capture forbids them


class Recording(TorchDispatchMode):
    """Runs kernels and notes each one with its memory, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in WAITS, f'{name} waits for the device, or copies from the host'
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """Captures on a CPU."""

    def capture(self, step):
        recording = Recording()
        with recording:
            step()
        return recording


@pytest.fixture(scope='module')
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        initializer_range=0.3,
    )
    return LanguageModel(LlamaForCausalLM(config).eval())


@pytest.fixture
def decoder(model) -> CapturedDecoder:
    return CapturedDecoder(model, Recorder(), (32, 64))


def answer(model, length=11, limit=20, drafts=Drafts(), decoder=None):  # noqa: B008  frozen
    """Return tokens, their prompt, and its cache."""
    embeddings = model.embed(torch.arange(3, 3 + length)).detach()
    prompt = prefill(model, embeddings, drafts=drafts, max_new_tokens=limit)
    options = {'stop_id': STOP, 'max_new_tokens': limit, 'decoder': decoder}
    return list(generate(model, prompt, **options)), prompt.key_values


@pytest.mark.parametrize('length', [1, 11, 30, 31, 32, 50])
def test_tokens_states_and_cache_are_those_of_the_plain_path(model, decoder, length):
    expected, plain_cache = answer(model, length)
    tokens, cache = answer(model, length, decoder=decoder)
    assert [token.token_id for token in tokens] == [token.token_id for token in expected]
    for token, other in zip(tokens, expected, strict=True):
        assert token.probability == pytest.approx(other.probability, abs=1e-5)
        torch.testing.assert_close(token.state, other.state, atol=1e-4, rtol=1e-4)
    assert cache.length == plain_cache.length
    own, other = (c.copy(c.length, c.length)._storage for c in (cache, plain_cache))
    torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_an_answer_goes_on_when_the_memory_is_full(model, decoder):
    expected, _ = answer(model, length=50, limit=40)
    tokens, cache = answer(model, length=50, limit=40, decoder=decoder)
    assert [token.token_id for token in tokens] == [token.token_id for token in expected]
    assert cache.length > 64


def test_drafts_are_read_first(model, decoder):
    expected, _ = answer(model)
    ids = tuple(token.token_id for token in expected)
    drafts = Drafts((ids[:8],), (1.0,), 4)
    tokens, _ = answer(model, drafts=drafts, decoder=decoder)
    assert tuple(token.token_id for token in tokens) == ids


def test_an_answer_that_is_closed_early_leaves_its_cache_right(model, decoder):
    embeddings = model.embed(torch.arange(3, 14)).detach()
    expected, _ = answer(model)
    prompt = prefill(model, embeddings, max_new_tokens=20)
    steps = generate(model, prompt, stop_id=STOP, max_new_tokens=20, decoder=decoder)
    begun = [next(steps).token_id for _ in range(5)]
    steps.close()
    assert begun == [token.token_id for token in expected[:5]]
    assert prompt.key_values.length == 11 + 4  # all but the last token
    rest, _ = answer(model, decoder=decoder)  # nothing of the closed answer is left
    assert [token.token_id for token in rest] == [token.token_id for token in expected]


def test_a_second_thread_decodes_without_the_captured_step(model, decoder):
    expected, _ = answer(model)
    prompt = prefill(model, model.embed(torch.arange(3, 14)).detach(), max_new_tokens=20)
    held = decoder.decode(5, prompt.key_values)
    next(held)
    results = []
    thread = threading.Thread(target=lambda: results.append(answer(model, decoder=decoder)[0]))
    thread.start()
    thread.join()
    held.close()
    assert [token.token_id for token in results[0]] == [token.token_id for token in expected]


def test_nan_ends_one_answer_and_not_the_next(model, decoder):
    expected, _ = answer(model)
    embeddings = model.embed(torch.arange(3, 14)).detach()
    prompt = prefill(model, embeddings, max_new_tokens=20)
    poisoned = prompt.key_values.copy(11, 40)
    poisoned._storage[..., 3, :] = torch.nan
    with pytest.raises(ModelError, match='NaN'):
        list(decoder.decode(5, poisoned))
    tokens, _ = answer(model, decoder=decoder)
    assert [token.token_id for token in tokens] == [token.token_id for token in expected]


def test_a_replay_that_computes_something_else_is_refused(model):
    class Broken(Recorder):
        def capture(self, step):
            recording = super().capture(step)
            recording.calls = recording.calls[: len(recording.calls) // 2]
            return recording

    with pytest.raises(RuntimeError, match='differs'):
        CapturedDecoder(model, Broken(), (32,))


def test_without_a_gpu_nothing_is_captured(model):
    assert captured_decoding.captured_decoder(model) is None
