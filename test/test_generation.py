# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden import backend, case_array, cases, generated_ids, load_image

from lisa_ros.errors import QueryError
from lisa_ros.model import generation
from lisa_ros.model.image_processing import clip_pixels
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX

CASE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]


@pytest.fixture(scope='module')
def lisa():
    return backend(256)


@pytest.fixture
def prompt(lisa) -> generation.Prefill:
    pixels = torch.from_numpy(clip_pixels(load_image(CASE['image']), lisa.clip_preprocessing))
    ids = torch.from_numpy(case_array(256, CASE, 'input_ids')).long()
    with torch.inference_mode():
        embeddings = lisa.model.embed(ids, lisa.model.encode_clip(pixels[None])[0])
    return generation.prefill(LanguageModel(lisa.model.llm), embeddings)


def generate(lisa, prompt, limit=512, **options) -> list[generation.GeneratedToken]:
    stop = lisa.tokenizer.eos_token_id
    return list(
        generation.generate(
            LanguageModel(lisa.model.llm), prompt, stop_id=stop, max_new_tokens=limit, **options
        )
    )


@pytest.mark.parity
def test_cached_generation_has_the_ids_and_states_of_the_uncached_original(lisa, prompt):
    tokens = generate(lisa, prompt)
    assert [token.token_id for token in tokens] == generated_ids(256, CASE)
    seg = lisa.model.config.seg_token_id
    states = torch.stack([token.state for token in tokens if token.token_id == seg])
    expected = torch.from_numpy(case_array(256, CASE, 'seg_hidden'))
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


def test_an_answer_ends_with_the_stop_token(lisa, prompt):
    tokens = generate(lisa, prompt)
    stop = lisa.tokenizer.eos_token_id
    assert [token.token_id == stop for token in tokens] == [False] * (len(tokens) - 1) + [True]
    assert all(0.9 < token.probability <= 1 for token in tokens)


@pytest.mark.parametrize('limit', [0, 1, 3])
def test_an_answer_ends_at_the_limit(limit, lisa, prompt):
    tokens = generate(lisa, prompt, limit)
    assert [token.token_id for token in tokens] == generated_ids(256, CASE)[:limit]


def test_cancellation_is_checked_before_each_token(lisa, prompt):
    answers = iter([False, False, True])
    tokens = generate(lisa, prompt, is_cancelled=lambda: next(answers))
    assert len(tokens) == 2
    assert next(answers, None) is None


@pytest.mark.parametrize('ids', [[1, 5, 6], [1, IMAGE_TOKEN_INDEX, 5, IMAGE_TOKEN_INDEX]])
def test_a_prompt_needs_exactly_one_image(ids, lisa):
    tokens = torch.zeros(lisa.model.config.image_tokens, 64)
    with pytest.raises(QueryError, match=f'has {ids.count(IMAGE_TOKEN_INDEX)} image placeholders'):
        lisa.model.embed(torch.tensor(ids), tokens)


@pytest.mark.parametrize('count', [4, 256, 576])
def test_the_image_takes_one_position_for_each_image_token(count, lisa):
    tokens = torch.randn(count, 64)
    embeddings = lisa.model.embed(torch.tensor([1, 5, IMAGE_TOKEN_INDEX, 6]), tokens)
    assert embeddings.shape == (3 + count, 64)
    assert torch.equal(embeddings[2 : 2 + count], tokens)
