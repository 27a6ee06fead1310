# SPDX-License-Identifier: Apache-2.0
"""LLaMA read part by part: the states of transformers' own forward pass."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lisa_ros.model.language_model import LanguageModel

SIZES = {
    'hidden_size': 48,
    'intermediate_size': 96,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'vocab_size': 50,
}


@pytest.fixture(scope='module', params=[4, 2], ids=['heads', 'grouped heads'])
def llm(request):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=request.param)
    config._attn_implementation = 'sdpa'
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'norm' in name:
                weight.normal_(1, 0.3)
    return model


@pytest.fixture(scope='module')
def embeddings():
    return torch.randn((1, 20, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('parts', [[20], [12, 8], [7, 1, 1, 11], [1] * 20], ids=str)
@pytest.mark.parametrize('capacity', [20, 9])
@torch.inference_mode()
def test_the_states_are_those_of_transformers(parts, capacity, llm, embeddings):
    model, expected = LanguageModel(llm), llm.model(inputs_embeds=embeddings).last_hidden_state
    key_values = model.new_cache(capacity)
    states = [model.read(part, key_values) for part in embeddings.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(states, dim=1), expected, atol=2e-6, rtol=1e-5)
    assert key_values.length == 20
    scores = model.scores(states[-1])
    torch.testing.assert_close(scores, llm.lm_head(expected[:, -parts[-1] :]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rows_of_different_positions_and_masks(llm, embeddings):
    """Two rows: the second sees nothing of its first five positions."""
    model, rows = LanguageModel(llm), embeddings.expand(2, -1, -1)
    mask = torch.ones((20, 20), dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
    mask[1, :, 5:, :5] = False
    positions = torch.stack([torch.arange(20), torch.arange(20) - 5]).clamp(min=0)
    states = model.read(rows, model.new_cache(20, rows=2), positions=positions, mask=mask)
    for row, part in zip(states, (embeddings, embeddings[:, 5:]), strict=True):
        expected = llm.model(inputs_embeds=part).last_hidden_state[0]
        torch.testing.assert_close(row[-len(expected) :], expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('parts', [[12, 8], [19, 1], [5, 1, 14], [5, 6, 1, 8]], ids=str)
@torch.inference_mode()
def test_a_mask_counts_for_the_last_positions(parts, llm, embeddings):
    """The last three positions do not see each other; all else is as usual."""
    model, key_values = LanguageModel(llm), LanguageModel(llm).new_cache(30)
    states = []
    for part in embeddings.split(parts, dim=1):
        start, count = key_values.length, part.shape[1]
        others = torch.randn(1, 3, 48)
        mask = torch.cat([torch.ones(3, start + count), torch.eye(3)], dim=1).bool()
        positions = torch.tensor([[*range(start, start + count), *[start + count] * 3]])
        rows = torch.cat([part, others], dim=1)
        read = model.read(rows, key_values, positions=positions, mask=mask)
        for index in range(3):  # each is the next position of a text of its own
            text = torch.cat([embeddings[:, : start + count], others[:, index : index + 1]], dim=1)
            expected = llm.model(inputs_embeds=text).last_hidden_state[0, -1]
            torch.testing.assert_close(read[0, count + index], expected, atol=2e-6, rtol=1e-5)
        key_values.keep(start + count, [])
        states.append(read[:, :count])
    expected = llm.model(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(torch.cat(states, dim=1), expected, atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_a_cache_forgets_and_moves_positions(llm, embeddings):
    model, other = LanguageModel(llm), torch.randn(1, 3, 48)
    key_values = model.new_cache(30)
    model.read(torch.cat([embeddings[:, :9], other, embeddings[:, 9:12]], dim=1), key_values)
    key_values = key_values.copy(9, 25)  # without the others
    model.read(
        torch.cat([other[:, :1], embeddings[:, 9:12]], dim=1),
        key_values,
        positions=torch.tensor([[9, 9, 10, 11]]),
        mask=torch.tensor(
            [
                [*[True] * 9, True, False, False, False],
                [*[True] * 9, False, True, False, False],
                [*[True] * 9, False, True, True, False],
                [*[True] * 9, False, True, True, True],
            ]
        ),
    )
    key_values.keep(9, [10, 11, 12])
    states = model.read(embeddings[:, 12:], key_values)
    expected = llm.model(inputs_embeds=embeddings).last_hidden_state[:, 12:]
    torch.testing.assert_close(states, expected, atol=2e-6, rtol=1e-5)
    assert key_values.capacity == 25
    assert key_values.bytes == 25 * key_values.bytes_per_position
    assert key_values.bytes_per_position == 3 * 2 * llm.config.num_key_value_heads * 12 * 4


@pytest.mark.parametrize('last', [0, 1, 3, 5, 11, 12, None])
@pytest.mark.parametrize('known', [0, 8])
@pytest.mark.parametrize('masked', [0, 3])
@torch.inference_mode()
def test_the_last_states_alone_are_those_of_all(last, known, masked, llm, embeddings):
    """The cache, and what is read after it, are the same, too."""
    if last is not None and last < masked:
        pytest.skip('the states of masked positions are needed')
    model, states, following = LanguageModel(llm), [], []
    for count in (None, last):
        key_values = model.new_cache(20)
        if known:
            model.read(embeddings[:, :known], key_values, last=0)
        mask = torch.cat([torch.ones(masked, known + 12 - masked), torch.eye(masked)], dim=1)
        states.append(
            model.read(
                embeddings[:, known : known + 12],
                key_values,
                mask=mask.bool() if masked else None,
                last=count,
            )
        )
        assert key_values.length == known + 12
        following.append(model.read(embeddings[:, :4], key_values))
    expected = states[0] if last is None else states[0][:, 12 - last :]
    torch.testing.assert_close(states[1], expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(following[1], following[0], atol=2e-6, rtol=1e-5)
