# SPDX-License-Identifier: Apache-2.0
"""The feature cache: same losses as with the encoders, frozen encoders, a key that must match."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lisa_ros.errors import DataError
from lisa_ros.training.tabletop.batch_sampler import sample_queries
from lisa_ros.training.tabletop.batches import make_batch
from lisa_ros.training.tabletop.feature_cache import CachedBatch, cached_view
from lisa_ros.training.tabletop.initialization import clip_preprocessing
from lisa_ros.training.tabletop.pretrain import PretrainTask
from lisa_ros.training.trainer import Trainer


@pytest.fixture
def cache_config(config, trained, tmp_path):
    """Options with a feature cache that does not exist yet."""
    return replace(config, init_from=trained.model, feature_cache=tmp_path / 'cache')


def test_a_cached_batch_has_the_losses_of_its_images(
    cache_config, config, scene_folder, train_set, tmp_path
):
    task = PretrainTask(tmp_path / 'run', scene_folder, cache_config)
    task.module.eval()
    cached = task.draw(0, 0)
    assert isinstance(cached, CachedBatch)
    cached_losses = task.losses(cached, 0)
    rng = np.random.default_rng((cache_config.trainer.seed, 0, 0))
    views, queries = [], []
    for _ in range(cache_config.batch_size):
        number = int(rng.integers(len(task.feature_cache)))
        view = cached_view(train_set, number)
        assert task.feature_cache.scene_graphs[number] == view.scene_graph
        views.append(view)
        queries.append(sample_queries(cache_config, rng, view.scene_graph, step=99))
    lisa_config = task.lisa.config
    batch = make_batch(
        lisa_config, task.tokenizer, clip_preprocessing(lisa_config), views, queries
    )
    assert torch.equal(batch.inputs.input_ids, cached.inputs.input_ids)
    assert torch.equal(batch.masks, cached.masks)
    losses = task.losses(replace(batch, attention_targets=cached.attention_targets), 99)
    for name in ('ce', 'bce', 'dice', 'prompt_mask', 'presence'):
        expected = float(losses[name].detach())
        assert float(cached_losses[name].detach()) == pytest.approx(expected, rel=1e-2)


def test_with_a_cache_the_encoders_are_frozen_and_the_rest_is_trained(
    cache_config, scene_folder, tmp_path
):
    task = PretrainTask(tmp_path / 'run', scene_folder, cache_config)
    before = {n: t.clone() for n, t in task.lisa.state_dict().items()}
    Trainer(tmp_path / 'run', cache_config.trainer, task).train(until=2)
    changed = {n for n, t in task.lisa.state_dict().items() if not torch.equal(t, before[n])}
    assert not any(name.startswith(('clip.', 'sam.vision_encoder.')) for name in changed)
    for part in ('mm_projector.', 'llm.model.layers.', 'text_hidden_fcs.', 'sam.mask_decoder.'):
        assert any(name.startswith(part) for name in changed), part


def test_a_cache_of_other_encoders_or_views_is_refused(cache_config, scene_folder, tmp_path):
    PretrainTask(tmp_path / 'run', scene_folder, cache_config)
    with pytest.raises(DataError, match=r'views 1, expected 2'):
        PretrainTask(tmp_path / 'run', scene_folder, replace(cache_config, views_per_scene=2))
    with pytest.raises(DataError, match=r'vision_encoders \w+, expected'):
        PretrainTask(tmp_path / 'run', scene_folder, replace(cache_config, init_from=None))


def test_a_cache_of_an_earlier_version_is_used(cache_config, scene_folder, tmp_path):
    """Its index was tables.json, with other keys."""
    task = PretrainTask(tmp_path / 'run', scene_folder, cache_config)
    folder = cache_config.feature_cache
    index = json.loads((folder / 'views.json').read_text())
    old_fields = {'category': 'kind', 'model': 'thing', 'image_x': 'across', 'image_y': 'down'}
    old_index = {
        'eyes': index['vision_encoders'],
        'scenes': index['scenes'],
        'views': index['views'],
        'shape': index['shape'],
        'tables': [
            [{old_fields.get(name, name): value for name, value in o.items()} for o in objects]
            for objects in index['scene_graphs']
        ],
    }
    (folder / 'views.json').unlink()
    (folder / 'tables.json').write_text(json.dumps(old_index))
    clip_file = (folder / 'clip.npy').stat()
    again = PretrainTask(tmp_path / 'run', scene_folder, cache_config)
    assert again.feature_cache.scene_graphs == task.feature_cache.scene_graphs
    assert (folder / 'clip.npy').stat() == clip_file  # not written again


def test_a_folder_of_something_else_is_left_alone(cache_config, scene_folder, tmp_path):
    cache_config.feature_cache.mkdir()
    (cache_config.feature_cache / 'notes.txt').write_text('mine')
    with pytest.raises(DataError, match='is not empty and contains no feature cache'):
        PretrainTask(tmp_path / 'run', scene_folder, cache_config)
