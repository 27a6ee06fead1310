# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden import cases, new_ids, of_case, picture, segmenter

from lisa_ros.errors import QueryError
from lisa_ros.model import generation
from lisa_ros.model.image_processing import clip_pixels
from lisa_ros.model.lisa import IMAGE_TOKEN

CASE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]


@pytest.fixture(scope='module')
def lisa():
    return segmenter(256)


@pytest.fixture
def prompt(lisa) -> generation.Prefill:
    pixels = torch.from_numpy(clip_pixels(picture(CASE['image']), lisa.clip_recipe))
    ids = torch.from_numpy(of_case(256, CASE, 'input_ids')).long()
    with torch.inference_mode():
        places = lisa.model.embed(ids, lisa.model.encode_clip(pixels[None])[0])
    return generation.prefill(lisa.model, places)


def write(lisa, prompt, limit=512, **more) -> list[generation.GeneratedToken]:
    stop = lisa.tokenizer.eos_token_id
    return list(
        generation.generate(lisa.model, prompt, stop_id=stop, max_new_tokens=limit, **more)
    )


@pytest.mark.parity
def test_cached_steps_have_the_ids_and_states_of_the_uncached_original(lisa, prompt):
    steps = write(lisa, prompt)
    assert [step.token_id for step in steps] == new_ids(256, CASE)
    seg = lisa.model.config.seg_token_id
    states = torch.stack([step.state for step in steps if step.token_id == seg])
    wanted = torch.from_numpy(of_case(256, CASE, 'seg_hidden'))
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=0)


def test_writing_ends_with_the_stop_token(lisa, prompt):
    steps = write(lisa, prompt)
    stop = lisa.tokenizer.eos_token_id
    assert [step.token_id == stop for step in steps] == [False] * (len(steps) - 1) + [True]
    assert all(0.9 < step.probability <= 1 for step in steps)


@pytest.mark.parametrize('limit', [0, 1, 3])
def test_writing_ends_at_the_limit(limit, lisa, prompt):
    steps = write(lisa, prompt, limit)
    assert [step.token_id for step in steps] == new_ids(256, CASE)[:limit]


def test_a_cancel_is_asked_for_before_every_token(lisa, prompt):
    answers = iter([False, False, True])
    steps = write(lisa, prompt, cancelled=lambda: next(answers))
    assert len(steps) == 2
    assert next(answers, None) is None


@pytest.mark.parametrize('ids', [[1, 5, 6], [1, IMAGE_TOKEN, 5, IMAGE_TOKEN]])
def test_a_prompt_needs_exactly_one_picture(ids, lisa):
    tokens = torch.zeros(lisa.model.config.image_tokens, 64)
    with pytest.raises(QueryError, match=f'has {ids.count(IMAGE_TOKEN)} places'):
        lisa.model.embed(torch.tensor(ids), tokens)


@pytest.mark.parametrize('count', [4, 256, 576])
def test_the_picture_takes_as_many_places_as_it_has_tokens(count, lisa):
    tokens = torch.randn(count, 64)
    places = lisa.model.embed(torch.tensor([1, 5, IMAGE_TOKEN, 6]), tokens)
    assert places.shape == (3 + count, 64)
    assert torch.equal(places[2 : 2 + count], tokens)
