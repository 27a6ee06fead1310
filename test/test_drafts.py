# SPDX-License-Identifier: Apache-2.0
"""Drafts change the number of passes, never the answer."""

import pytest
import torch
from counting_model import counting_model

from lisa_ros.model.drafts import NO_DRAFTS, ROOT, Drafts, ReplyMemory
from lisa_ros.model.generation import generate, prefill

STOP = 2


@pytest.fixture(scope='module')
def model():
    return counting_model()


@pytest.fixture(scope='module')
def prompt():
    return torch.randn((9, 32), generator=torch.Generator().manual_seed(5))


def answer(model, prompt, drafts=NO_DRAFTS, limit=12):
    """Return token ids and states of an answer, and the passes it took."""
    model.passes = 0
    read = prefill(model, prompt, None, drafts, limit)
    steps = list(generate(model, read, stop_id=STOP, max_new_tokens=limit))
    return [s.token_id for s in steps], torch.stack([s.state for s in steps]), model.passes, read


def drafts_of(*replies, max_tokens=30):
    """Return drafts of replies that are equally probable."""
    return Drafts(tuple(map(tuple, replies)), (1.0,) * len(replies), max_tokens)


def test_a_tree_shares_what_replies_have_in_common():
    tree = drafts_of([5, 6, 7, STOP], [5, 8, STOP], [9, STOP]).tree()
    assert tree.tokens == (5, 6, 7, 8, 9)
    assert tree.parents == (ROOT, 0, 1, 0, ROOT)
    assert tree.depths() == [1, 2, 3, 2, 1]
    assert tree.child(ROOT, 5) == 0
    assert tree.child(0, 8) == 3
    assert tree.child(3, 7) is None
    seen = [[i for i, sees in enumerate(row) if sees] for row in tree.mask().tolist()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 3], [4]]


def test_the_most_probable_tokens_are_chosen():
    replies = (5, 6, STOP), (7, 8, STOP), (7, 9, STOP)
    assert Drafts(replies, (1.0, 0.6, 0.6), 2).tree().tokens == (7, 5)
    assert Drafts(replies, (1.0, 0.6, 0.6), 3).tree().tokens == (7, 5, 6)
    assert Drafts(replies, (1.0, 0.6, 0.6), 9).tree().parents == (ROOT, ROOT, 1, 0, 0)


def test_a_tree_continues_the_beginning_of_an_answer():
    drafts = drafts_of([5, 6, 7, STOP], [5, 8, STOP], [9, STOP])
    assert drafts.tree([5]).tokens == (6, 7, 8)
    assert drafts.tree([5, 6]).tokens == (7,)
    assert drafts.tree([5, 6, 7]).tokens == ()
    assert drafts.tree([6]).tokens == ()
    assert NO_DRAFTS.tree().tokens == ()


def test_the_answer_is_the_greedy_one_with_any_drafts(model, prompt):
    expected, states, passes, _ = answer(model, prompt)
    assert len(expected) == passes == 12
    wrong = [(token + 1) % 40 for token in expected]
    cases = {
        'all right': ([expected], 1),
        'right, then wrong': ([[*expected[:5], *wrong[5:]]], 12 - 5),
        'wrong': ([wrong], 12),
        'two branches': ([[*expected[:2], *wrong[2:]], [*expected[:7], wrong[7], STOP]], 12 - 7),
    }
    for name, (replies, count) in cases.items():
        drafts = drafts_of(*([*reply, STOP] for reply in replies))
        ids, other_states, passes, read = answer(model, prompt, drafts)
        assert (ids, passes) == (expected, count), name
        torch.testing.assert_close(other_states, states, atol=1e-5, rtol=1e-4)
        assert read.key_values.length >= 9 + 11, name


def test_drafts_follow_each_token_that_was_not_drafted(model, prompt):
    expected, states, *_ = answer(model, prompt)
    drafts = Drafts(((*expected, STOP),), (1.0,), 3)
    ids, other_states, passes, _ = answer(model, prompt, drafts)
    assert (ids, passes) == (expected, 3)  # each reads three drafts and gives four tokens
    torch.testing.assert_close(other_states, states, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('limit', [1, 3, 5])
def test_the_limit_counts_drafted_tokens(limit, model, prompt):
    expected, *_ = answer(model, prompt)
    drafts = drafts_of([*expected, STOP])
    assert answer(model, prompt, drafts, limit)[0] == expected[:limit]


def test_a_known_beginning_is_not_read_again(model, prompt):
    expected, *_ = answer(model, prompt)
    known = model.new_cache(40)
    with torch.inference_mode():
        model.read(prompt[None, :6], known)
    drafts = drafts_of([*expected[:4], STOP])
    read = prefill(model, prompt, known, drafts, 12)
    assert len(read.states) == 3
    torch.testing.assert_close(read.state(8), read.states[-1])
    steps = generate(model, read, stop_id=STOP, max_new_tokens=12)
    assert [step.token_id for step in steps] == expected


def test_replies_to_the_same_question_come_first():
    replies = ReplyMemory([[1, STOP]], kept=2)
    replies.add('a', [3, 4, STOP])
    replies.add('b', [5, STOP])
    assert replies.drafts('a', 9).tree().tokens == (3, 4, 5, 1)
    assert replies.drafts('x', 2).tree().tokens == (5, 3)
    replies.add('c', [6, STOP])  # the oldest one goes
    assert replies.drafts('a', 9).tree().tokens == (6, 5, 1)
    replies.clear()
    assert replies.drafts('c', 9).tree().tokens == (1,)
