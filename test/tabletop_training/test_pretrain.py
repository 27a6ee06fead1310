# SPDX-License-Identifier: Apache-2.0
"""A pretraining run: its losses, its warm-ups, its folder, and runs of earlier versions."""

import csv
import math
import shutil
from dataclasses import replace

import pytest
import torch

from lisa_ros import cli
from lisa_ros.errors import QueryError
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.training.tabletop import pretrain, saved_runs
from lisa_ros.training.tabletop.pretrain import PretrainTask
from lisa_ros.training.trainer import Trainer

LOSSES = (
    'pixel_class', 'patch_class', 'patch_names', 'category_presence', 'object_layout', 'ce', 'bce',
    'dice',
)  # fmt: skip


def test_losses_fall_and_are_written_to_the_curves(trained, make_task, tmp_path):
    curves = (trained.folder / 'curves.csv').read_text().splitlines()
    assert curves[0].startswith(','.join(('step', 'minutes', *LOSSES)))
    task = make_task()
    trainer = Trainer(tmp_path / 'run', replace(task.config.trainer, steps=20), task)
    trainer.train(until=2)  # after warm-up the learning rate is at its peak
    batch = task.draw(0, 0)
    first = trainer.train_step([batch])
    for _ in range(4):
        last = trainer.train_step([batch])
    assert last['ce'] < first['ce']
    assert last['pixel_class'] < first['pixel_class']
    assert all(math.isfinite(value) for value in last.values())


def test_number_warmup_has_no_mask_losses(make_task):
    task = make_task(number_warmup_steps=2)
    losses = task.losses(task.draw(3, 0), 3)
    vision_losses = set(task.losses(task.draw(1, 0), 1))
    assert set(losses) == vision_losses | {'ce', 'numbers', 'attention', 'name_tokens'}
    assert float(losses['numbers'].detach()) > 1
    assert 'dice' in task.losses(task.draw(4, 0), 4)


def test_a_start_model_keeps_its_encoders_during_warmup(trained, config, scene_folder, tmp_path):
    config = replace(config, init_from=trained.model, vision_warmup_steps=0)
    task = PretrainTask(tmp_path, scene_folder, config)
    batch = replace(task.draw(5, 0), attention_targets=None)
    encoders = {
        'pixel_class': task.lisa.sam.vision_encoder,
        'patch_class': task.lisa.clip,
        'object_layout': task.lisa.clip,
    }
    for step, is_trained in ((1, False), (2, True)):  # two steps of warm-up
        losses = task.losses(batch, step)
        for name, encoder in encoders.items():
            task.module.zero_grad()
            losses[name].backward(retain_graph=True)
            weight = next(encoder.parameters())
            assert (weight.grad is not None) == is_trained, (name, step)


def test_packed_conversations_give_the_same_numbers(trained):
    batch = trained.task.draw(5, 0).inputs
    lisa = trained.task.lisa.eval()
    with torch.no_grad():
        rows, packed = lisa(batch), lisa(batch, packed=True)
    assert len(batch.input_ids) > len(batch.sam_pixels)  # several about one image
    assert float(packed.ce_loss) == pytest.approx(float(rows.ce_loss), abs=1e-5)
    assert torch.allclose(packed.mask_logits, rows.mask_logits, atol=1e-4)
    assert packed.seg_query.tolist() == rows.seg_query.tolist()
    for row, states, packed_states in zip(
        batch.attention_mask, rows.llm_states, packed.llm_states, strict=True
    ):
        count = int(row.sum()) + lisa.config.image_tokens - 1
        assert torch.allclose(states[:count], packed_states[:count], atol=1e-4)


def test_packed_conversations_must_start_alike(trained):
    batch = trained.task.draw(0, 0).inputs
    assert batch.image_index[0] == batch.image_index[1]
    ids = batch.input_ids.clone()
    ids[1, 1] += 1  # before the image
    with pytest.raises(QueryError, match='differ before the image'):
        trained.task.lisa(replace(batch, input_ids=ids), packed=True)


def test_the_exported_model_answers(trained, train_set):
    options = InferenceOptions(max_new_tokens=8)
    segmenter = Segmenter.load(trained.model, device='cpu', options=options)
    assert segmenter.backend.template == 'plain'
    image = train_set.images[0]
    result = segmenter.segment(image, 'segment the mug')
    assert result.token_ids
    assert result.mask_logits.shape[1:] == image.shape[:2]


def test_the_command_trains_with_its_options(scene_folder, tmp_path, capsys):
    options = {
        '--steps': 2,
        '--vision-warmup-steps': 1,
        '--batch-size': 2,
        '--queries-per-image': 1,
        '--threads': 1,
        '--warmup-steps': 1,
    }
    command = ['train', '--scenes', str(scene_folder), '--out', str(tmp_path / 'run')]
    command += [text for name, value in options.items() for text in (name, str(value))]
    assert cli.main([*command, '--exclude-categories', 'use', 'knowledge', 'two_step']) == 0
    assert (tmp_path / 'run' / 'model' / 'model.safetensors').is_file()
    curves = (tmp_path / 'run' / 'curves.csv').read_text().splitlines()
    assert curves[-1].startswith('2.0000,')
    assert cli.main(['train', '--scenes', str(scene_folder)]) == 1
    assert '--out' in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on_under_the_new_loss_names(
    trained, config, scene_folder, tmp_path
):
    run = tmp_path / 'run'
    shutil.copytree(trained.folder, run)
    with (run / 'curves.csv').open(newline='') as file:
        header, values = csv.reader(file)
    old_names = {new: old for old, new in saved_runs.PRETRAIN_COLUMNS.items()}
    with (run / 'curves.csv').open('w', newline='') as file:
        csv.writer(file).writerows([[old_names.get(name, name) for name in header], values])
    assert 'pixels' in (run / 'curves.csv').read_text()
    longer = replace(config, trainer=replace(config.trainer, steps=7))
    assert pretrain.train(run, scene_folder, longer)
    with (run / 'curves.csv').open(newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0] == header
    assert rows[1] == values
    assert [row[0] for row in rows[1:]] == ['6.0000', '7.0000']


def test_the_columns_of_a_run_of_today_stay(trained, tmp_path):
    saved_runs.rename_columns(tmp_path, saved_runs.PRETRAIN_COLUMNS)  # no run yet
    (tmp_path / 'curves.csv').touch()  # a run that was stopped before its first row
    saved_runs.rename_columns(tmp_path, saved_runs.PRETRAIN_COLUMNS)
    assert (tmp_path / 'curves.csv').read_bytes() == b''
    shutil.copy(trained.folder / 'curves.csv', tmp_path)
    saved_runs.rename_columns(tmp_path, saved_runs.PRETRAIN_COLUMNS)
    expected = (trained.folder / 'curves.csv').read_bytes()
    assert (tmp_path / 'curves.csv').read_bytes() == expected
