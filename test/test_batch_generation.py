# SPDX-License-Identifier: Apache-2.0
"""Rows of a batch are answered as each of them alone."""

import pytest
import torch
from counting_model import counting_model

from lisa_ros.model import batch_generation
from lisa_ros.model.batch_generation import BatchPrompt, generate_batch
from lisa_ros.model.drafts import NO_DRAFTS, Drafts
from lisa_ros.model.generation import generate, prefill
from lisa_ros.model.key_values import KeyValues

STOP = 2
LENGTHS = (9, 4, 15, 7, 30)


@pytest.fixture(scope='module')
def model():
    return counting_model(key_value_heads=2)


@pytest.fixture(scope='module')
def prompts():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn((length, 32), generator=generator) for length in LENGTHS]


def alone(model, embeddings, limit=12):
    """Return the tokens of an answer that is generated alone."""
    read = prefill(model, embeddings, None, NO_DRAFTS, limit)
    return list(generate(model, read, stop_id=STOP, max_new_tokens=limit))


def together(model, prompts, **options):
    """Return the tokens of each answer of a batch."""
    answers = [[] for _ in prompts]
    for steps in generate_batch(model, prompts, stop_id=STOP, **options):
        for step in steps:
            answers[step.number] += step.tokens
    return answers


def check(answers, expected):
    for own, other in zip(answers, expected, strict=True):
        assert [token.token_id for token in own] == [token.token_id for token in other]
        for token, reference in zip(own, other, strict=True):
            assert token.probability == pytest.approx(reference.probability, abs=1e-4)
            torch.testing.assert_close(token.state, reference.state, atol=1e-4, rtol=1e-3)


def test_prompts_of_other_lengths_have_their_own_answers(model, prompts):
    expected = [alone(model, embeddings) for embeddings in prompts]
    assert len({tuple(token.token_id for token in answer) for answer in expected}) > 1
    check(together(model, [BatchPrompt(e, 12) for e in prompts]), expected)


@pytest.mark.parametrize('known', [(0, 3, 14, 1, 0), (8, 0, 2, 6, 29)])
def test_known_beginnings_are_not_read_again(model, prompts, known):
    expected = [alone(model, embeddings) for embeddings in prompts]
    batch = []
    for embeddings, count in zip(prompts, known, strict=True):
        cache = prefill(model, embeddings[:count]).key_values if count else None
        batch.append(BatchPrompt(embeddings, 12, cache))
    check(together(model, batch), expected)
    for prompt, count in zip(batch, known, strict=True):
        assert prompt.known is None or prompt.known.length == count


@pytest.mark.parametrize(('usual', 'grows'), [(12, False), (3, True)])
def test_only_an_unusually_long_answer_needs_more_memory(
    model, prompts, usual, grows, monkeypatch
):
    expected = [alone(model, embeddings) for embeddings in prompts]
    copies, copy = [], KeyValues.copy
    monkeypatch.setattr(batch_generation, '_USUAL_ANSWER', usual)
    monkeypatch.setattr(KeyValues, 'copy', lambda own, *a: copies.append(a) or copy(own, *a))
    check(together(model, [BatchPrompt(e, 12) for e in prompts]), expected)
    assert bool(copies) == grows


@pytest.mark.parametrize('right', [0, 3, 12])
def test_drafts_save_passes_and_change_nothing(model, prompts, right):
    expected = [alone(model, embeddings) for embeddings in prompts]
    batch = []
    for place, (embeddings, answer) in enumerate(zip(prompts, expected, strict=True)):
        ids = [token.token_id for token in answer]
        kept = right if place % 2 else len(ids)  # some rows have better drafts than others
        draft = [*ids[:kept], *((token + 1) % 40 for token in ids[kept:]), STOP]
        batch.append(BatchPrompt(embeddings, 12, None, Drafts((tuple(draft),), (1.0,), 30)))
    model.passes = 0
    check(together(model, batch), expected)
    assert model.passes == max(1, 12 - right)


def test_answers_end_at_their_own_limits_and_when_they_are_done(model, prompts):
    expected = [alone(model, embeddings) for embeddings in prompts]
    limits = (1, 12, 5, 3, 12)
    batch = [BatchPrompt(e, limit) for e, limit in zip(prompts, limits, strict=True)]
    answers = together(model, batch)
    check(answers, [answer[:limit] for answer, limit in zip(expected, limits, strict=True)])

    seen = [0] * len(prompts)

    def is_done(number):
        seen[number] += 1
        return number == 4 and seen[number] == 2

    answers = together(model, [BatchPrompt(e, 12) for e in prompts], is_done=is_done)
    check(answers, [*expected[:4], expected[4][:2]])


def test_an_answer_ends_with_its_stop_token(model, prompts):
    expected = [alone(model, embeddings) for embeddings in prompts]
    stop = expected[1][3].token_id
    answers = [[] for _ in prompts]
    batch = [BatchPrompt(embeddings, 12) for embeddings in prompts]
    for steps in generate_batch(model, batch, stop_id=stop):
        for step in steps:
            answers[step.number] += [token.token_id for token in step.tokens]
    for own, reference in zip(answers, expected, strict=True):
        ids = [token.token_id for token in reference]
        assert own == (ids[: ids.index(stop) + 1] if stop in ids else ids)


def test_nan_in_one_row_ends_that_row(model, prompts):
    broken = torch.full_like(prompts[1], torch.nan)
    batch = [BatchPrompt(embeddings, 12) for embeddings in (prompts[0], broken, prompts[2])]
    answers, errors = [[] for _ in batch], {}
    for steps in generate_batch(model, batch, stop_id=STOP):
        for step in steps:
            answers[step.number] += step.tokens
            if step.error:
                errors[step.number] = (str(step.error), step.is_last)
    check(answers[::2], [alone(model, embeddings) for embeddings in prompts[:3:2]])
    assert answers[1] == []
    assert list(errors) == [1]
    assert 'NaN' in errors[1][0]
    assert errors[1][1]
