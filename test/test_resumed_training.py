# SPDX-License-Identifier: Apache-2.0
"""A resumed training has the base and options of its first call; a validation loses no step."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import DATA
from PIL import Image
from test_trainer import CONFIG, LineTask

from lisa_ros import cli
from lisa_ros.errors import DataError
from lisa_ros.training.run_identity import RunIdentity, sample_weights
from lisa_ros.training.trainer import Trainer

LORA = {'--rank': '8', '--alpha': '16'}


def train(run, identity=None, until=None, task=None, **changes):
    trainer = Trainer(run, replace(CONFIG, **changes), task or LineTask(), identity=identity)
    trainer.train(until)
    return trainer


# ---- the base, options and data of a run


def test_another_option_is_refused_with_both_values(tmp_path):
    train(tmp_path, RunIdentity(options=LORA), until=2)
    with pytest.raises(DataError, match='run with --alpha 16, and this training has --alpha 160'):
        train(tmp_path, RunIdentity(options={**LORA, '--alpha': '160'}))
    assert train(tmp_path, RunIdentity(options=LORA)).step == 8


def test_another_base_is_refused_but_not_another_precision_or_folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    w, v, noise = torch.randn(3, 64, 64, generator=generator)

    def identity(name, **tensors):
        return RunIdentity(name, sample_weights(tensors.items()))

    train(tmp_path, identity('a', w=w, v=v), until=2)
    calls = {
        3: identity('copy/of/a', w=w.bfloat16(), v=v.bfloat16()),
        4: identity('a/in/4/bits', w=w.to(torch.uint8), v=v),  # has no values of w
        5: None,
    }
    for step, current in calls.items():
        assert train(tmp_path, current, until=step).step == step
    other = identity('b', w=w + 0.01 * noise, v=v)
    with pytest.raises(DataError, match=r'from a, and 1 frozen weights of b .*for example w:'):
        train(tmp_path, other)
    assert train(tmp_path, calls[3]).step == 8


def test_other_data_are_a_warning(tmp_path, capsys):
    train(tmp_path, RunIdentity(data={'--data': 'a (1)'}), until=2)
    train(tmp_path, RunIdentity(data={'--data': 'a (1)'}), until=3)
    assert '--data was' not in capsys.readouterr().err
    assert train(tmp_path, RunIdentity(data={'--data': 'b (1)'}), until=4).step == 4
    assert '--data was a (1) and is b (1) now' in capsys.readouterr().err


def test_a_state_without_an_identity_resumes_and_gets_one(tmp_path):
    train(tmp_path, until=2)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    del state['identity'], state['validated']
    torch.save(state, tmp_path / 'last.pt')
    assert train(tmp_path, RunIdentity(options=LORA), until=3).step == 3
    with pytest.raises(DataError, match='--rank 8'):
        train(tmp_path, RunIdentity(options={'--rank': '4'}))


@pytest.mark.parametrize(
    ('identity', 'key'), [(3, 'identity'), ({'base_name': 1}, 'identity.base_name')]
)
def test_the_error_of_a_damaged_identity_names_its_key(identity, key, tmp_path):
    train(tmp_path, until=2)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    torch.save({**state, 'identity': identity}, tmp_path / 'last.pt')
    with pytest.raises(DataError, match=f'last.pt: {key} is '):
        train(tmp_path)


def test_a_finished_run_says_that_it_is_done(tmp_path, capsys):
    train(tmp_path)
    assert 'already done' not in capsys.readouterr().out
    assert train(tmp_path).task.exports == 0
    assert 'already done: step 8 of 8; raise --steps' in capsys.readouterr().out
    assert train(tmp_path, steps=9).step == 9


def test_an_export_that_failed_is_made_by_the_next_run(tmp_path):
    class FullDisk(LineTask):
        def export(self, run):
            if self.exports == 2:  # that of the last step
                raise OSError(28, 'No space left on device')
            super().export(run)

    with pytest.raises(OSError, match='No space'):
        train(tmp_path, task=FullDisk())
    finished = train(tmp_path)
    assert (finished.step, finished.task.exports) == (8, 1)
    assert train(tmp_path).task.exports == 0


def test_a_run_out_of_patience_does_no_further_step(tmp_path, capsys):
    changes = {'validate_every': 2, 'monitor': 'metric', 'patience': 1, 'steps': 40}
    assert train(tmp_path, task=LineTask([0.5, 0.4, 0.9]), **changes).step == 4
    assert train(tmp_path, task=LineTask([0.9]), **changes).step == 4
    assert 'raise --patience' in capsys.readouterr().out
    assert train(tmp_path, until=6, **{**changes, 'patience': 3}).step == 6


VALIDATED = {'validate_every': 2, 'monitor': 'metric', 'patience': 2}


@pytest.mark.parametrize('flag', ['--val', '--scenes'])
def test_a_best_score_of_other_images_does_not_count(flag, tmp_path, capsys):
    """Nothing was exported until a score on other images was better, and patience counted on."""
    train(
        tmp_path, RunIdentity(data={flag: 'easy'}), until=4, task=LineTask([0.9, 0.8]), **VALIDATED
    )
    assert capsys.readouterr().err.count('best score') == 0
    task = LineTask([0.5, 0.6])
    resumed = train(tmp_path, RunIdentity(data={flag: 'hard'}), task=task, **VALIDATED)
    assert (resumed.step, resumed.best_score, task.exports) == (8, 0.6, 2)
    assert f'the best score is of another {flag}' in capsys.readouterr().err
    again = train(
        tmp_path, RunIdentity(data={flag: 'hard'}), task=LineTask([0.55]), **VALIDATED, steps=10
    )
    assert (again.best_score, again.task.exports) == (0.6, 0)
    assert 'best score' not in capsys.readouterr().err


def test_a_best_score_of_another_metric_does_not_count(tmp_path, capsys):
    class TwoMetrics(LineTask):
        def validate(self, run):
            return {'other': 0.2, **super().validate(run)}

    train(tmp_path, until=4, task=LineTask([0.9, 0.8]), **VALIDATED)
    changes = {**VALIDATED, 'monitor': 'other'}
    resumed = train(tmp_path, until=6, task=TwoMetrics([0.1]), **changes)
    assert (resumed.best_score, resumed.task.exports) == (0.2, 1)
    assert 'one of --monitor metric, not of other' in capsys.readouterr().err


def test_weights_that_no_validation_chose_are_replaced_by_those_of_the_next(tmp_path, capsys):
    train(tmp_path, until=4, task=LineTask([0.9, 0.8]), **VALIDATED)
    train(tmp_path, until=6, validate_every=2)
    resumed = train(tmp_path, until=8, task=LineTask([0.7]), **VALIDATED)
    assert (resumed.best_score, resumed.task.exports) == (0.7, 1)
    assert 'were not chosen by a validation' in capsys.readouterr().err


def test_the_best_score_of_an_older_file_counts_as_before(tmp_path):
    train(tmp_path, RunIdentity(data={'--val': 'a'}), until=2, task=LineTask([0.9]), **VALIDATED)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    del state['monitor']
    torch.save(state, tmp_path / 'last.pt')
    resumed = train(
        tmp_path, RunIdentity(data={'--val': 'a'}), until=4, task=LineTask([0.8]), **VALIDATED
    )
    assert (resumed.best_score, resumed.task.exports) == (0.9, 0)


# ---- validation


class BrokenValidation(LineTask):
    """Its validation of step 4 fails, as with an image that has vanished."""

    def validate(self, run):
        raise DataError('image 7 is missing')


def test_a_failed_validation_loses_no_step_and_is_done_first_when_resumed(tmp_path):
    changes = {'monitor': 'metric', 'save_every': 1000}
    for _ in range(2):  # a second call fails in the same way
        with pytest.raises(DataError, match='image 7'):
            train(tmp_path / 'run', task=BrokenValidation(), **changes)
        assert torch.load(tmp_path / 'run' / 'last.pt', weights_only=True)['step'] == 4
    resumed = train(tmp_path / 'run', task=LineTask([0.7, 0.2]), **changes)
    assert (resumed.best_score, resumed.task.exports) == (0.7, 1)
    whole = train(tmp_path / 'whole', task=LineTask([0.7, 0.2]), **changes)
    for name, value in whole.ema_state().items():
        assert torch.equal(value, resumed.ema_state()[name])
    rows = (tmp_path / 'run' / 'curves.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '4.0000', '8.0000']


def test_a_failed_last_validation_is_done_by_the_next_call(tmp_path):
    changes = {'monitor': 'metric', 'validate_every': 1000}
    with pytest.raises(DataError, match='image 7'):
        train(tmp_path, task=BrokenValidation(), **changes)
    resumed = train(tmp_path, task=LineTask([0.7]), **changes)
    assert (resumed.step, resumed.best_score, resumed.task.exports) == (8, 0.7, 1)
    assert train(tmp_path, **changes).task.exports == 0


def test_an_unknown_metric_ends_the_first_validation_and_loses_no_step(tmp_path):
    with pytest.raises(DataError, match=r'--monitor val_typo .* expected one of metric;'):
        train(tmp_path, monitor='val_typo')
    assert train(tmp_path, monitor='metric').task.exports == 1


# ---- the command


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folders of one image, annotated as labelme does: `data`, `other`; `long` has a long text."""
    folder = tmp_path_factory.mktemp('data')
    shape = {'label': 'mug', 'points': [[5, 5], [30, 5], [30, 30], [5, 30]]}
    rng = np.random.default_rng(0)
    for name in ('data', 'other', 'long'):
        (folder / name).mkdir()
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / 'a.png')
        (folder / name / 'a.json').write_text(json.dumps({'shapes': [shape]}))
    shutil.copy(folder / 'long' / 'a.png', folder / 'long' / 'b.png')
    texts = {'text': ['red ' * 900 + 'mug', 'the mug'], 'is_sentence': False}
    shapes = {'shapes': [{**shape, 'label': 'target'}]}
    (folder / 'long' / 'b.json').write_text(json.dumps({**texts, **shapes}))
    return folder


def finetune(folder, run, *extra, base=None, data='data'):
    base = base or ['--model', str(DATA / 'ckpt_256'), '--vision-tower', str(DATA / 'clip_256')]
    options = [*base, '--template', 'llava_v1', '--data', str(folder / data), '--out', str(run)]
    return cli.main(
        ['finetune', *options, '--device', 'cpu', '--accumulate', '1', '--steps', '1', *extra]
    )


def test_a_fine_tuning_resumes_with_its_own_base_and_options_only(data, tmp_path, capsys):
    run = tmp_path / 'run'
    assert finetune(data, run) == 0
    exported = (run / 'model' / 'model.safetensors').read_bytes()
    copy = shutil.copytree(DATA / 'ckpt_256', tmp_path / 'copy')
    moved = ['--model', str(copy), '--vision-tower', str(DATA / 'clip_256')]
    capsys.readouterr()
    refused = {
        '--alpha 160': {'extra': ['--alpha', '160']},
        '--rank 4': {'extra': ['--rank', '4']},
        'frozen weights of': {'base': ['--model', str(run / 'model')]},
    }
    for problem, arguments in refused.items():
        assert finetune(data, run, *arguments.pop('extra', ()), '--steps', '2', **arguments) == 1
        error = capsys.readouterr().err
        assert problem in error
        assert 'another --out' in error
        assert error.count('\n') == 1
    assert finetune(data, run, data='other') == 0
    output = capsys.readouterr()
    assert '/data (1) and is ' in output.err
    assert 'already done: step 1 of 1' in output.out
    assert (run / 'model' / 'model.safetensors').read_bytes() == exported
    assert finetune(data, run, '--steps', '2', '--precision', 'bf16', base=moved) == 0
    assert torch.load(run / 'last.pt', weights_only=True)['step'] == 2


def test_a_long_query_of_the_validation_is_left_out_and_ends_no_training(data, tmp_path, capsys):
    run = tmp_path / 'run'
    command = ['--val', str(data / 'long')]
    assert finetune(data, run, *command) == 1
    assert 'its query of 3603 characters is too long' in capsys.readouterr().err
    assert finetune(data, run, *command, '--skip-broken') == 0
    assert (run / 'skipped.txt').read_text().count('\n') == 1
    assert (run / 'model' / 'model.safetensors').is_file()
