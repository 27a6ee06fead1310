# SPDX-License-Identifier: Apache-2.0
"""Pretraining with LoRA: updates in a file of their own, beside the start model's weights."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lisa_ros.errors import CheckpointError, DataError, SettingsError
from lisa_ros.model import checkpoint, export, lora
from lisa_ros.training.tabletop.pretrain import PretrainTask
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig
from lisa_ros.training.trainer import Trainer

LAYER = 'llm.model.layers.0.mlp.up_proj'
WEIGHTS = 'model.safetensors'


@dataclass(frozen=True)
class LoraRun:
    """A finished run with LoRA: its task, its exported model, the model it started from."""

    task: PretrainTask
    model: Path
    start: Path


@pytest.fixture(scope='module')
def lora_run(trained, config, scene_folder, tmp_path_factory):
    """A run of six steps with updates of rank 4."""
    start = tmp_path_factory.mktemp('start') / 'model'
    shutil.copytree(trained.model, start)
    run = tmp_path_factory.mktemp('lora')
    config = replace(
        config,
        trainer=replace(config.trainer, ema_decay=0.0),
        init_from=start,
        lora_rank=4,
        vision_warmup_steps=0,
    )
    task = PretrainTask(run, scene_folder, config)
    Trainer(run, config.trainer, task).train()
    return LoraRun(task, run / 'model', start)


def test_updates_of_another_start_model_are_no_resumed_run(lora_run, scene_folder, tmp_path):
    trainer = lora_run.task.config.trainer
    same = PretrainTask(tmp_path, scene_folder, lora_run.task.config)
    Trainer(tmp_path, trainer, same, identity=lora_run.task.identity).train(until=1)
    start = shutil.copytree(lora_run.model, tmp_path / 'start')
    (start / lora.FILE).unlink()
    loaded = checkpoint.load(start)
    with torch.no_grad():
        loaded.model.get_submodule(LAYER).weight *= 1.1
    export.save(loaded.model, loaded.tokenizer, loaded.clip_preprocessing, start)
    other = PretrainTask(tmp_path, scene_folder, replace(lora_run.task.config, init_from=start))
    with pytest.raises(DataError, match=f'1 frozen weights of .*start differ .*{LAYER}'):
        Trainer(tmp_path, trainer, other, identity=other.identity)


def test_updates_are_stored_beside_unchanged_weights_and_loaded_with_them(lora_run):
    model, start = lora_run.model, lora_run.start
    assert (model / WEIGHTS).read_bytes() == (start / WEIGHTS).read_bytes()
    size = (model / lora.FILE).stat().st_size
    assert 0 < size < (model / WEIGHTS).stat().st_size / 10
    loaded, before = checkpoint.load(model).model, checkpoint.load(start).model
    unchanged = {
        n for n, p in before.named_parameters() if torch.equal(p, loaded.get_parameter(n))
    }
    assert {n for n in loaded.state_dict() if n.startswith('sam.vision_encoder.')} <= unchanged
    assert f'{LAYER}.weight' not in unchanged
    # the loaded weight is the trained one, up to the rounding of its update
    trained_weight = lora_run.task.lisa.get_submodule(LAYER).weight.detach()
    update = (trained_weight - before.get_parameter(f'{LAYER}.weight')).norm()
    error = (loaded.get_parameter(f'{LAYER}.weight') - trained_weight).norm()
    assert error < 0.02 * update


def test_a_run_goes_on_with_the_updates_of_its_start_model(
    lora_run, config, scene_folder, tmp_path
):
    config = replace(config, init_from=lora_run.model, lora_rank=4)
    layer = PretrainTask(tmp_path, scene_folder, config).lisa.get_submodule(LAYER)
    updates = lora.load_lora(lora_run.model)
    assert torch.equal(layer.parametrizations.weight[0].up, updates[f'{LAYER}.weight.up'])
    merged = checkpoint.load(lora_run.model).model.get_parameter(f'{LAYER}.weight')
    assert torch.allclose(layer.weight, merged, atol=1e-6)


@pytest.mark.parametrize(
    ('updates', 'message'),
    [
        ({'llm.lm_head.weight': torch.zeros(3, 5)}, r'llm\.lm_head\.weight is \(3, 5\)'),
        ({'nothing.weight': torch.zeros(3)}, r'the model has no weight nothing\.weight'),
        ({'llm.lm_head.weight.up': torch.zeros(9, 2)}, r'lm_head\.weight\.up is \(9, 2\)'),
    ],
)
def test_updates_of_another_model_are_an_error_that_names_them(
    lora_run, tmp_path, updates, message
):
    model = tmp_path / 'model'
    shutil.copytree(lora_run.start, model)
    lora.save_lora(updates, model)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(model)


def test_lora_needs_a_start_model():
    with pytest.raises(SettingsError, match='give --init-from'):
        PretrainConfig(lora_rank=4)


def test_a_broken_file_of_updates_is_an_error_that_names_it(lora_run, tmp_path):
    shutil.copytree(lora_run.start, tmp_path / 'model')
    (tmp_path / 'model' / lora.FILE).write_bytes(b'no safetensors')
    with pytest.raises(CheckpointError, match=lora.FILE):
        checkpoint.load(tmp_path / 'model')
