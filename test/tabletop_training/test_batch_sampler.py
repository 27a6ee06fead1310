# SPDX-License-Identifier: Apache-2.0
"""Which queries the batches of a run ask."""

from dataclasses import replace

import numpy as np
import pytest
from tabletop_graph import TABLE

from lisa_ros.errors import SettingsError
from lisa_ros.tabletop.queries import IMPLICIT
from lisa_ros.training.tabletop.batch_sampler import fixed_reasoning_pair, sample_queries
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig

STEP = 99  # after all warm-ups


def test_fixed_reasoning_pairs_are_the_same_each_time(train_set):
    pairs = [fixed_reasoning_pair(0, n % 3, train_set.scene_graphs) for n in range(12)]
    assert pairs[:3] * 4 == pairs
    assert all(query.category in IMPLICIT for _, (query,) in pairs)


def test_measured_per_image_queries_have_numbers_in_their_answers(config):
    config = replace(config, measured_per_image=2, queries_per_image=3)
    for seed in range(20):
        queries = sample_queries(config, np.random.default_rng(seed), TABLE, STEP)
        answers = [query.turns[-1].answer_raw for query in queries]
        assert len(answers) == 3
        assert all(any(c.isdigit() for c in answer) for answer in answers[:2]), answers


@pytest.mark.parametrize(('measured', 'reasoning'), [(1, 1), (0, 2), (2, 5), (5, 1)])
def test_reasoning_per_image_queries_need_reasoning(config, measured, reasoning):
    config = replace(
        config,
        measured_per_image=measured,
        reasoning_per_image=reasoning,
        queries_per_image=3,
    )
    for seed in range(20):
        queries = sample_queries(config, np.random.default_rng(seed), TABLE, STEP)
        assert len(queries) == 3
        reasoning_queries = queries[measured : measured + reasoning]
        assert all(query.category in IMPLICIT for query in reasoning_queries)


@pytest.mark.parametrize(
    'options',
    [
        {'reasoning_per_image': 1, 'exclude_categories': ('use',)},
        {'measured_per_image': 1, 'exclude_categories': ('relations', 'use')},
    ],
)
def test_categories_that_an_option_needs_cannot_be_excluded(options):
    with pytest.raises(SettingsError, match='cannot be excluded'):
        PretrainConfig(**options)


def test_an_unknown_category_is_an_error_that_names_it():
    with pytest.raises(SettingsError, match="unknown query category 'poetry'"):
        PretrainConfig(exclude_categories=('poetry',))


def test_name_noise_has_its_rate_but_not_in_number_warmup(config):
    fractions = {}
    for rate, number_warmup_steps in ((0.0, 0), (0.5, 0), (1.0, 0), (1.0, 100)):
        options = replace(
            config,
            measured_per_image=3,
            queries_per_image=3,
            name_noise_rate=rate,
            number_warmup_steps=number_warmup_steps,
        )
        queries = [
            query
            for seed in range(20)
            for query in sample_queries(options, np.random.default_rng(seed), TABLE, STEP)
        ]
        is_noisy = [bool(query.corrupted_answer) for query in queries]
        fractions[rate, number_warmup_steps] = np.mean(is_noisy)
    assert fractions[0.0, 0] == fractions[1.0, 100] == 0
    assert fractions[1.0, 0] > 0.5
    assert 0.3 < fractions[0.5, 0] / fractions[1.0, 0] < 0.7
