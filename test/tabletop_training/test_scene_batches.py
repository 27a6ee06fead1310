# SPDX-License-Identifier: Apache-2.0
"""Batches of scenes and queries: tokens, labels and masks."""

import itertools
import os.path
import re

import numpy as np
import pytest
import torch
from tabletop_graph import TABLE, corrupted_queries

from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.results import SEG
from lisa_ros.tabletop import attribute_queries
from lisa_ros.tabletop.dialogue import dialogue
from lisa_ros.tabletop.templates import PhraseSampler
from lisa_ros.training.tabletop.attention_targets import AttentionTargetFinder
from lisa_ros.training.tabletop.batches import make_batch, make_query_batch
from lisa_ros.training.tabletop.initialization import clip_preprocessing


def test_a_batch_supervises_the_answer_and_has_the_mask_of_its_target(trained, train_set):
    tokenizer, config = trained.task.tokenizer, trained.task.lisa.config
    view = train_set.view(0)
    sampler = PhraseSampler(np.random.default_rng(0))
    query = attribute_queries.explicit(sampler, view.scene_graph, present=True)
    batch = make_batch(config, tokenizer, clip_preprocessing(config), [view], [[query]])
    assert batch.masks.shape == (1, config.sam_size, config.sam_size)
    area = (view.ids == query.targets[0][0]).mean()  # of the image, which is 3/4 of the square
    assert float(batch.masks.float().mean()) == pytest.approx(area * 0.75, rel=0.1)
    labels = batch.inputs.labels[0]
    answer = tokenizer.decode(labels[labels != IGNORE_INDEX].tolist())
    assert answer.replace(' ', '') == 'Sure,[SEG].</s>'
    row, column = batch.first_tokens[0].tolist()
    assert tokenizer.decode([int(batch.inputs.input_ids[row, column])]) == 'Sure'


def test_a_wrong_object_name_is_read_but_not_supervised(trained):
    tokenizer, config = trained.task.tokenizer, trained.task.lisa.config
    finder = AttentionTargetFinder(tokenizer)
    ids = np.zeros((config.sam_size,) * 2, np.uint8)
    ids[10:20, 30:60] = 1
    pairs = (pair for pair in corrupted_queries(99) if pair[1].corrupted_answer)
    pairs = list(itertools.islice(pairs, 40))
    assert sum(len(noisy_query.turns) > 1 for _, noisy_query in pairs) > 5
    for query, noisy_query in pairs:
        clean, noisy = (
            make_query_batch(config, tokenizer, (120, 160), [ids], [[each]])
            for each in (query, noisy_query)
        )
        input_ids, labels = noisy.inputs.input_ids[0], noisy.inputs.labels[0]
        supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]
        assert torch.equal(labels[supervised], clean.inputs.labels[0, supervised])
        assert torch.equal(labels[supervised], input_ids[supervised])
        text = tokenizer.decode(labels[supervised].tolist())
        last_sentence = text[text.rindex('It is the') :]
        assert SEG not in last_sentence
        assert last_sentence.removeprefix('It is the').split() == common_name_prefix(
            query.turns[-1].answer_raw, noisy_query.corrupted_answer
        )
        text_read = tokenizer.decode(input_ids.tolist())
        assert noisy_query.corrupted_answer.replace(', [SEG].', '') in text_read
        assert torch.equal(noisy.masks, clean.masks)
        assert torch.equal(noisy.first_tokens, clean.first_tokens)
        tokens, clean_tokens = finder.parse(noisy), finder.parse(clean)
        for group in (tokens.positions, tokens.sizes, tokens.names):
            assert all(labels[token.column] != IGNORE_INDEX for token in group)
        assert tokens.positions == clean_tokens.positions
        assert tokens.sizes == clean_tokens.sizes


def common_name_prefix(*answers):
    """The words that the names of all answers start with."""
    names = [re.findall(r'It is the (.*), ', answer)[-1].split() for answer in answers]
    return os.path.commonprefix(names)


def test_each_name_of_a_list_has_its_span_in_its_own_answer(trained):
    tokenizer, config = trained.task.tokenizer, trained.task.lisa.config
    ids, with_two_lists = np.zeros((config.sam_size,) * 2, np.uint8), 0
    for seed in range(800):
        talk = dialogue(PhraseSampler(np.random.default_rng(seed)), TABLE, 4)
        if not talk.listed_names:
            continue
        batch = make_query_batch(config, tokenizer, (120, 160), [ids], [[talk]])
        input_ids = batch.inputs.input_ids[0].tolist()
        labels = batch.inputs.labels[0].tolist()
        for name, (row, first, end) in zip(
            talk.listed_names, batch.list_spans.tolist(), strict=True
        ):
            text = tokenizer.decode(input_ids[first:end]).lower()
            assert row == 0
            assert re.fullmatch(rf'(,|and|, and)? ?the {name.name}', text), text
            assert IGNORE_INDEX not in labels[first:end]
            previous = [IGNORE_INDEX, *labels][: first + 2]
            starts = [a == IGNORE_INDEX != b for a, b in itertools.pairwise(previous)]
            assert sum(starts) == name.turn + 1
        with_two_lists += len({name.turn for name in talk.listed_names}) > 1
    assert with_two_lists > 5
