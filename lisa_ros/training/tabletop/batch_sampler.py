# SPDX-License-Identifier: Apache-2.0
"""Samples the training batches of a run: which scenes, which queries.

A batch depends only on the seed, the step and its index in the step. A resumed run therefore gets
the same batches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop import query_sampling
from lisa_ros.tabletop.answer_noise import corrupt_object_name
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.tabletop import dataset
from lisa_ros.training.tabletop.attention_targets import AttentionTargetFinder
from lisa_ros.training.tabletop.batches import QueryBatch, make_batch
from lisa_ros.training.tabletop.dataset import SceneSet
from lisa_ros.training.tabletop.feature_cache import FeatureCache
from lisa_ros.training.tabletop.initialization import clip_preprocessing
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig
from lisa_ros.training.tabletop.vocabulary import has_number_tokens

_PAIR_SEED = 239  # reasoning pairs have seeds of their own; ReasonSeg trains on 239 pairs


class BatchSampler:
    """Samples batches from scenes, or from a cache of their vision features."""

    def __init__(
        self,
        config: PretrainConfig,
        lisa_config: LisaConfig,
        tokenizer: Tokenizer,
        scenes: SceneSet | FeatureCache,
    ):
        self.config, self.lisa_config, self.tokenizer = config, lisa_config, tokenizer
        self.scenes = scenes
        self._preprocessing = clip_preprocessing(lisa_config)
        # without number tokens, the vocabulary is older than answers with positions
        self._target_finder = (
            AttentionTargetFinder(tokenizer) if has_number_tokens(tokenizer) else None
        )

    def draw(self, step: int, batch_index: int) -> QueryBatch:
        """Return the batch of a step; `batch_index` counts micro-batches and processes.

        Runs on the CPU, also in worker processes. It includes the attention targets, which are
        found by parsing the answers, so that no GPU waits for that.
        """
        rng = np.random.default_rng((self.config.trainer.seed, step, batch_index))
        if isinstance(self.scenes, FeatureCache):
            batch = self._cached_batch(self.scenes, rng, step)
        else:
            batch = self._rendered_batch(self.scenes, rng, step)
        if self._target_finder is None or self.config.is_vision_warmup(step):
            return batch
        side = round(self.lisa_config.image_tokens**0.5)
        return dataclasses.replace(batch, attention_targets=self._target_finder.find(batch, side))

    def _cached_batch(
        self, cache: FeatureCache, rng: np.random.Generator, step: int
    ) -> QueryBatch:
        """Return a batch of cached views."""
        views, queries = [], []
        for position in range(self.config.batch_size):
            if self._is_pair(position):
                index, view_queries = self._random_pair(rng, cache.scene_graphs)
            else:
                index = int(rng.integers(len(cache)))
                view_queries = sample_queries(self.config, rng, cache.scene_graphs[index], step)
            views.append(index)
            queries.append(view_queries)
        return cache.make_batch(self.lisa_config, self.tokenizer, views, queries)

    def _rendered_batch(self, scenes: SceneSet, rng: np.random.Generator, step: int) -> QueryBatch:
        """Return a batch of augmented views; the images of fixed pairs are not augmented."""
        views, queries = [], []
        for position in range(self.config.batch_size):
            if self._is_pair(position):
                index, view_queries = self._random_pair(rng, scenes.scene_graphs)
                view = scenes.view(index)
            else:
                view = dataset.augment(rng, scenes.view(int(rng.integers(len(scenes)))))
                view_queries = sample_queries(self.config, rng, view.scene_graph, step)
            views.append(view)
            queries.append(view_queries)
        return make_batch(self.lisa_config, self.tokenizer, self._preprocessing, views, queries)

    def _is_pair(self, position: int) -> bool:
        """Return whether this position of a batch holds a fixed reasoning pair: the first half."""
        return bool(self.config.fixed_reasoning_pairs) and position < self.config.batch_size // 2

    def _random_pair(
        self, rng: np.random.Generator, scene_graphs: list[SceneGraph]
    ) -> tuple[int, list[TabletopQuery]]:
        number = int(rng.integers(self.config.fixed_reasoning_pairs))
        return fixed_reasoning_pair(self.config.trainer.seed, number, scene_graphs)


def sample_queries(
    config: PretrainConfig, rng: np.random.Generator, scene_graph: SceneGraph, step: int
) -> list[TabletopQuery]:
    """Return the queries of a step about one image."""
    count, number_warmup = config.queries_per_image, config.is_number_warmup(step)
    measured = count if number_warmup else min(config.measured_per_image, count)
    reasoning = min(config.reasoning_per_image, count - measured)
    queries = [
        *(query_sampling.sample_measured(rng, scene_graph) for _ in range(measured)),
        *(query_sampling.sample_reasoning(rng, scene_graph) for _ in range(reasoning)),
        *(
            query_sampling.sample_query(rng, scene_graph, config.exclude_categories)
            for _ in range(count - measured - reasoning)
        ),
    ]
    # a wrong name trains the mask only, and number warm-up has no mask losses
    rate = 0.0 if number_warmup else config.name_noise_rate
    return [
        corrupt_object_name(rng, query, scene_graph) if rate and rng.random() < rate else query
        for query in queries
    ]


def fixed_reasoning_pair(
    seed: int, number: int, scene_graphs: list[SceneGraph]
) -> tuple[int, list[TabletopQuery]]:
    """Return a scene index and one reasoning query about it, the same for each (seed, number)."""
    rng = np.random.default_rng((seed, _PAIR_SEED, number))
    while True:
        index = int(rng.integers(len(scene_graphs)))
        query = query_sampling.sample_reasoning_present(rng, scene_graphs[index])
        if query is not None:
            return index, [query]
