# SPDX-License-Identifier: Apache-2.0
"""Position codes in CLIP's states: added in closed form, then by distillation."""

import pytest
import torch

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.model import checkpoint, export
from lisa_ros.training.tabletop.position_distillation import PositionDistillationTask
from lisa_ros.training.trainer import Trainer
from lisa_ros.training.trainer_config import TrainerConfig

TRAINER_CONFIG = TrainerConfig(
    steps=5,
    learning_rate=2e-4,
    warmup_steps=1,
    validate_every=5,
    save_every=5,
    max_grad_norm=5.0,
)


@pytest.fixture(scope='module')
def task(trained, train_set):
    """A task whose CLIP has the codes in closed form."""
    return PositionDistillationTask(trained.model, train_set)


def test_codes_reach_the_last_states_and_other_features_stay(task):
    pixels = task.draw(0, 0)
    with torch.no_grad():
        before = task.patch_states(task.teacher, pixels) - task.mean_state
        after = task.patch_states(task.lisa.clip, pixels) - task.mean_state
    codes_before, codes_after = (
        (states @ task.code_directions.T).flatten(0, 1) for states in (before, after)
    )
    expected = task.codes.repeat(len(pixels), 1)
    for code, expected_code in zip(codes_after.T, expected.T, strict=True):
        assert correlation(code, expected_code) > 0.8
    assert abs(correlation(codes_before[:, 0], expected[:, 0])) < 0.8
    change = ((after - before) @ task.other_directions).norm() / before.norm()
    assert float(change) < 0.5


def correlation(first, second):
    """Pearson's correlation of two vectors."""
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def test_distillation_lowers_the_loss_and_writes_the_model(task, tmp_path):
    pixels = task.draw(1, 0)

    def loss():
        with torch.no_grad():
            losses = task.losses(pixels, 0)
        return float(sum(task.loss_weights[name] * value for name, value in losses.items()))

    before = loss()
    assert Trainer(tmp_path, TRAINER_CONFIG, task).train()
    assert loss() < before
    model = checkpoint.load(tmp_path / 'model').model
    with torch.no_grad():
        states = model.clip_states(pixels)
        assert torch.allclose(states, task.patch_states(task.lisa.clip, pixels), atol=0.1)


def test_position_codes_need_a_start_model(scene_folder, tmp_path, capsys):
    command = ['train', '--scenes', str(scene_folder), '--out', str(tmp_path), '--position-codes']
    assert cli.main(command) == 1
    message = capsys.readouterr().err
    assert '--position-codes' in message
    assert '--init-from' in message


def test_codes_of_another_start_model_are_no_resumed_run(task, train_set, tmp_path):
    trainer = Trainer(tmp_path / 'run', TRAINER_CONFIG, task, identity=task.identity)
    trainer.train(until=1)
    export.save(task.lisa, task.tokenizer, task.preprocessing, tmp_path / 'other')
    other = PositionDistillationTask(tmp_path / 'other', train_set)
    with pytest.raises(DataError, match=r'frozen weights of .*other differ'):
        Trainer(tmp_path / 'run', TRAINER_CONFIG, other, identity=other.identity)
