# SPDX-License-Identifier: Apache-2.0
"""The training loop: resuming, stopping on a signal, accumulation, several processes."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lisa_ros.errors import DataError
from lisa_ros.training.muon import Muon
from lisa_ros.training.trainer import Trainer
from lisa_ros.training.trainer_config import TrainerConfig

HERE = str(Path(__file__).parent)
CONFIG = TrainerConfig(
    steps=8,
    learning_rate=0.05,
    warmup_steps=2,
    ema_decay=0.9,
    validate_every=4,
    save_every=3,
    bf16=False,
)


@dataclass
class ToyBatch:
    x: torch.Tensor
    detach_first_layer: bool = False
    process: int = 0  # the process that drew it

    def to(self, device):
        return replace(self, x=self.x.to(device))


class LineTask:
    """Fits y = 3 x with a dropout layer; its batches depend only on the arguments of `draw`."""

    def __init__(self, metrics=()):
        self.loss_weights = {'square': 1.0, 'logged_only': 0.0}
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.module[2].bias.requires_grad_(False)
        self.metrics, self.exports = list(metrics), 0

    def draw(self, step, part):
        return ToyBatch(
            torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * step + part))
        )

    def losses(self, batch, step):
        error = self.module(batch.x)[:, 0] - 3 * batch.x.sum(1)
        return {'square': error.square().mean(), 'logged_only': error.abs().mean()}

    def validate(self, run):
        return {'metric': self.metrics.pop(0) if self.metrics else 0.0}

    def export(self, run):
        self.exports += 1
        torch.save(self.module.state_dict(), run / 'model.pt')


class UnevenTask(LineTask):
    """Has no dropout; batches of odd parts give the first layer no gradient."""

    def __init__(self):
        super().__init__()
        self.module[1].p = 0.0

    def draw(self, step, part):
        return replace(super().draw(step, part), detach_first_layer=part % 2 == 1)

    def losses(self, batch, step):
        hidden = self.module[0](batch.x)
        hidden = hidden.detach() if batch.detach_first_layer else hidden
        return {'square': (self.module[2](hidden)[:, 0] - 3 * batch.x.sum(1)).square().mean()}


class ProcessRecordingTask(LineTask):
    """Records which process drew each batch."""

    def __init__(self):
        super().__init__()
        self.processes = []

    def draw(self, step, part):
        return replace(super().draw(step, part), process=os.getpid())

    def losses(self, batch, step):
        self.processes.append(batch.process)
        return super().losses(batch, step)


class LayeredTask(LineTask):
    """Has a matrix in a layer, which Muon can train."""

    def __init__(self):
        super().__init__()
        inner = nn.ModuleDict({'layers': nn.ModuleList([nn.Linear(8, 8)])})
        self.module = nn.ModuleList([*self.module, inner])

    def losses(self, batch, step):
        first, dropout, last, inner = self.module
        hidden = dropout(first(batch.x))
        error = last(hidden + inner['layers'][0](hidden))[:, 0] - 3 * batch.x.sum(1)
        return {'square': error.square().mean()}


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.task.module.parameters()])


@pytest.mark.parametrize('stop', [1, 3, 5])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, stop):
    whole = Trainer(tmp_path / 'whole', CONFIG, LineTask())
    whole.train()
    first = Trainer(tmp_path / 'parts', CONFIG, LineTask())
    first.train(until=stop)
    resumed = Trainer(tmp_path / 'parts', CONFIG, LineTask())
    assert resumed.step == stop
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    for name, value in whole.ema_state().items():
        assert torch.equal(value, resumed.ema_state()[name])


def test_learning_rate_and_moving_average_follow_their_formulas(tmp_path):
    """Bit for bit: results of earlier runs stay reproducible."""
    trainer = Trainer(tmp_path, replace(CONFIG, decay_fraction=0.5), LineTask())
    average = {name: p.detach().clone() for name, p in trainer.trained.items()}
    for step in range(8):
        rates = {group['lr'] for o in trainer.optimizers for group in o.param_groups}
        assert rates == {0.05 * min(1.0, (step + 1) / 2, (8 - step) / 4)}
        trainer.train_step([trainer.task.draw(step, 0)])
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in trainer.trained.items():
            average[name].lerp_(p.detach(), 1 - decay)
    assert trainer.step == 8
    assert all(torch.equal(average[name], t) for name, t in trainer.ema_state().items())


def test_a_state_file_of_the_first_version_resumes(tmp_path):
    """That version stored rate and average itself: its optimizers have no initial rate."""
    config = replace(CONFIG, muon=True)
    whole = Trainer(tmp_path / 'whole', config, LayeredTask())
    whole.train()
    Trainer(tmp_path / 'old', config, LayeredTask()).train(until=3)
    path = tmp_path / 'old' / 'last.pt'
    state = torch.load(path, weights_only=True)
    del state['validated'], state['identity'], state['monitor']
    assert state.keys() == {
        'step', 'seed', 'best', 'worse', 'minutes', 'trained', 'average', 'optimizers',
    }  # fmt: skip
    for optimizer in state['optimizers']:
        for group in optimizer['param_groups']:
            del group['initial_lr']
            group['lr'] = 0.05  # of the last step done, not of the next
    torch.save(state, path)
    resumed = Trainer(tmp_path / 'old', config, LayeredTask())
    assert resumed.step == 3
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    for name, value in whole.ema_state().items():
        assert torch.equal(value, resumed.ema_state()[name])


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import CONFIG, LineTask
from dataclasses import replace
from lisa_ros.training.trainer import Trainer

class SlowTask(LineTask):
    def losses(self, batch, step):
        time.sleep(0.05)
        return super().losses(batch, step)

config = replace(CONFIG, steps=40, validate_every=20, save_every=1000, workers=int(sys.argv[2]))
Trainer(Path(sys.argv[1]), config, SlowTask()).train()
"""


@pytest.mark.parametrize(
    ('number', 'workers'),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 2), (signal.SIGTERM, 2)],
)
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(tmp_path, number, workers):
    """All processes receive the signal, as with Ctrl-C in a terminal."""
    program = [sys.executable, '-c', PROGRAM.format(tests=HERE), tmp_path / 'run', str(workers)]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    output = ''
    while '/40' not in output or ' 0/40' in output[-60:]:
        assert time.monotonic() < deadline
        output += process.stderr.read(40)
    os.killpg(process.pid, number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert 'Traceback' not in rest
    step = torch.load(tmp_path / 'run' / 'last.pt', weights_only=True)['step']
    assert 0 < step < 40
    config = replace(CONFIG, steps=40, validate_every=20, save_every=1000)
    resumed, whole = (Trainer(tmp_path / name, config, LineTask()) for name in ('run', 'whole'))
    assert resumed.step == step
    resumed.train()
    whole.train()
    assert torch.equal(weights(resumed), weights(whole))


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    class NoDropoutTask(LineTask):
        def __init__(self):
            super().__init__()
            self.module[1].p = 0.0

    class LargeBatchTask(NoDropoutTask):
        def draw(self, step, part):
            parts = [super(LargeBatchTask, self).draw(step, 2 * part + i).x for i in (0, 1)]
            return ToyBatch(torch.cat(parts))

    accumulated = Trainer(tmp_path / 'two', replace(CONFIG, accumulate=2), NoDropoutTask())
    large = Trainer(tmp_path / 'one', CONFIG, LargeBatchTask())
    accumulated.train()
    large.train()
    assert torch.allclose(weights(accumulated), weights(large), atol=1e-5)


def test_worker_processes_draw_the_same_batches(tmp_path):
    in_thread, in_processes = LineTask(), ProcessRecordingTask()
    Trainer(tmp_path / 'thread', CONFIG, in_thread).train()
    Trainer(tmp_path / 'processes', replace(CONFIG, workers=2), in_processes).train()
    assert len(in_processes.processes) == CONFIG.steps
    assert len(set(in_processes.processes)) == 2
    assert os.getpid() not in in_processes.processes
    for a, b in zip(in_thread.module.parameters(), in_processes.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_do_not_change(tmp_path):
    trainer = Trainer(tmp_path, CONFIG, LineTask())
    frozen = trainer.task.module[2].bias.clone()
    initial = weights(trainer)
    trainer.train()
    assert torch.equal(frozen, trainer.task.module[2].bias)
    assert not torch.equal(initial, weights(trainer))


def test_the_best_weights_are_exported_and_patience_ends_the_run(tmp_path):
    config = replace(CONFIG, steps=40, validate_every=2, monitor='metric', patience=2)
    trainer = Trainer(tmp_path, config, LineTask(metrics=[0.1, 0.5, 0.4, 0.3, 0.9]))
    assert trainer.train()
    assert trainer.step == 8
    assert trainer.task.exports == 2
    assert trainer.best_score == 0.5


def test_the_moving_average_is_validated_and_exported(tmp_path):
    trainer = Trainer(tmp_path, CONFIG, LineTask())
    trainer.train()
    exported = torch.load(tmp_path / 'model.pt', weights_only=True)
    assert torch.equal(exported['0.weight'], trainer.ema_state()['0.weight'])
    assert not torch.equal(exported['0.weight'], trainer.task.module[0].weight)


def test_curves_have_one_row_per_validation_even_if_resumed(tmp_path):
    Trainer(tmp_path, CONFIG, LineTask()).train(until=4)
    Trainer(tmp_path, CONFIG, LineTask()).train()
    rows = (tmp_path / 'curves.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '4.0000', '8.0000']
    if importlib.util.find_spec('matplotlib'):
        assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_muon_trains_the_matrices_of_layers_and_resumes(tmp_path):
    config = replace(CONFIG, muon=True)
    whole, first = (Trainer(tmp_path / name, config, LayeredTask()) for name in ('whole', 'a'))
    muon, adamw = whole.optimizers
    (matrix,) = (p for group in muon.param_groups for p in group['params'])
    assert matrix is whole.trained['3.layers.0.weight']
    rest = {id(p) for group in adamw.param_groups for p in group['params']}
    assert rest | {id(matrix)} == {id(p) for p in whole.trained.values()}
    initial = matrix.detach().clone()
    whole.train(until=1)
    # one output, so the gradient has rank one: its nearest orthogonal matrix has norm one
    rate = config.learning_rate * config.lr_factor(0)
    length = float((initial - matrix.detach()).norm()) / (rate * 0.2 * 8**0.5)
    assert 0.6 < length < 1.3
    whole.train()
    first.train(until=3)
    resumed = Trainer(tmp_path / 'a', config, LayeredTask())
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    without_muon = Trainer(tmp_path / 'adamw', CONFIG, LayeredTask())
    assert len(without_muon.optimizers) == 1


def test_a_folder_of_another_training_is_an_error(tmp_path):
    Trainer(tmp_path, CONFIG, LineTask()).train(until=1)
    other_task = LineTask()
    other_task.module[2].bias.requires_grad_(True)
    with pytest.raises(DataError, match='another training'):
        Trainer(tmp_path, CONFIG, other_task)
    with pytest.raises(DataError, match='a run with seed 0, expected 1'):
        Trainer(tmp_path, replace(CONFIG, seed=1), LineTask())


def test_a_state_without_seed_or_with_another_optimizer_is_an_error(tmp_path):
    Trainer(tmp_path, CONFIG, LayeredTask()).train(until=1)
    with pytest.raises(DataError, match='has 1 optimizers, expected 2'):
        Trainer(tmp_path, replace(CONFIG, muon=True), LayeredTask())
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    del state['seed']
    torch.save(state, tmp_path / 'last.pt')
    with pytest.raises(DataError, match='written by an older version'):
        Trainer(tmp_path, CONFIG, LayeredTask())


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_while_drawing_ends_the_run_and_keeps_its_steps(tmp_path, workers):
    class BrokenDataTask(LineTask):
        def draw(self, step, part):
            if step == 5:
                raise DataError('image 5 is broken')
            return super().draw(step, part)

    with pytest.raises(DataError, match=r'image 5 is broken$'):
        Trainer(tmp_path, replace(CONFIG, workers=workers), BrokenDataTask()).train()
    assert Trainer(tmp_path, CONFIG, LineTask()).step == 5


def test_minutes_count_on_in_a_resumed_run(tmp_path):
    Trainer(tmp_path, CONFIG, LineTask()).train(until=2)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    torch.save({**state, 'minutes': 30.0}, tmp_path / 'last.pt')
    resumed = Trainer(tmp_path, CONFIG, LineTask())
    resumed.train()
    assert 30 <= resumed.minutes < 31


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    class NanTask(LineTask):
        def losses(self, batch, step):
            return {'square': super().losses(batch, step)['square'] * float('nan')}

    with pytest.raises(DataError, match='lower --learning-rate'):
        Trainer(tmp_path, CONFIG, NanTask()).train()


class SteepTask(LineTask):
    """The loss of one step is finite, its gradient is not: a root has no slope at 0."""

    def losses(self, batch, step):
        losses = super().losses(batch, step)
        if step == 7:
            weight = self.module[0].weight
            losses['square'] = losses['square'] + (weight * 0).abs().sum().sqrt()
        return losses


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_no_weight(tmp_path):
    """Its weights were saved and exported as NaN, and no later call could go on."""
    config = replace(CONFIG, save_every=1)
    with pytest.raises(DataError, match=r'finite at step 7, but its gradient .* --learning-rate'):
        Trainer(tmp_path, config, SteepTask()).train()
    exported = torch.load(tmp_path / 'model.pt', weights_only=True)
    assert all(value.isfinite().all() for value in exported.values())
    resumed = Trainer(tmp_path, replace(config, learning_rate=0.01), LineTask())
    assert resumed.step == 7
    resumed.train()
    assert weights(resumed).isfinite().all()


def test_finite_gradients_whose_norm_overflows_change_no_weight(tmp_path):
    class LargeTask(LineTask):
        def losses(self, batch, step):
            return {'square': super().losses(batch, step)['square'] * 1e30}

    trainer = Trainer(tmp_path, CONFIG, LargeTask())
    initial = weights(trainer)
    trainer.train(until=1)
    assert torch.equal(weights(trainer), initial)


@pytest.mark.parametrize('key', ['trained', 'average'])
def test_a_state_whose_weights_are_not_finite_is_an_error(key, tmp_path):
    Trainer(tmp_path, CONFIG, LineTask()).train(until=1)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    state[key]['0.bias'][0] = float('nan')
    torch.save(state, tmp_path / 'last.pt')
    with pytest.raises(DataError, match=r'1 tensors .* not finite, for example 0\.bias.*another'):
        Trainer(tmp_path, CONFIG, LineTask())


def test_a_resumed_run_has_the_weight_decay_of_its_call(tmp_path):
    config = replace(CONFIG, muon=True, weight_decay=0.1)
    Trainer(tmp_path, config, LayeredTask()).train(until=2)
    resumed = Trainer(tmp_path, replace(config, weight_decay=0.5, betas=(0.8, 0.9)), LayeredTask())
    muon, adamw = resumed.optimizers
    assert [group['weight_decay'] for group in muon.param_groups] == [0.5]
    assert [group['weight_decay'] for group in adamw.param_groups] == [0.5, 0.0]
    assert all(group['betas'] == (0.8, 0.9) for group in adamw.param_groups)
    assert all(state['exp_avg'].any() for state in adamw.state.values())


def test_two_processes_that_find_different_states_do_not_train(tmp_path):
    """Two machines without a shared folder: rank 0 alone has the state to resume."""
    Trainer(tmp_path / '0', CONFIG, UnevenTask()).train(until=2)
    done = train_in_two_processes(tmp_path, "Path(sys.argv[1]) / os.environ['RANK']")
    assert done.returncode
    found = r'rank (0 begins at step 2|1 begins at step 0), another one at another step: copy last'
    assert re.search(found, done.stderr)  # the first of both that ends
    assert Trainer(tmp_path / '0', CONFIG, UnevenTask()).step == 2


def test_two_processes_train_on_the_mean_of_their_gradients(tmp_path):
    done = train_in_two_processes(tmp_path, "Path(sys.argv[1]) / 'run'")
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f'rank{r}.json').read_text()) for r in (0, 1)]
    single = Trainer(tmp_path / 'single', replace(CONFIG, accumulate=2), UnevenTask())
    single.train()
    assert ranks[0] == ranks[1]
    assert torch.allclose(torch.tensor(ranks[0]), weights(single), atol=1e-5)


def train_in_two_processes(tmp_path, run):
    """Train with `torchrun` in the folder that an expression names; return the ended process."""
    program = tmp_path / 'program.py'
    program.write_text(
        textwrap.dedent(
            f"""
            import json, os, sys
            from pathlib import Path
            sys.path.insert(0, {HERE!r})
            from test_trainer import CONFIG, UnevenTask, weights
            from lisa_ros.training.trainer import Trainer
            trainer = Trainer({run}, CONFIG, UnevenTask())
            trainer.train()
            name = f'rank{{trainer.rank}}.json'
            (Path(sys.argv[1]) / name).write_text(json.dumps(weights(trainer).tolist()))
            """
        )
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--standalone']
    return subprocess.run(
        [*command, program, tmp_path], check=False, timeout=120, capture_output=True, text=True
    )


@pytest.mark.parametrize('shape', [(6, 6), (4, 9), (9, 4)])
def test_muon_steps_equal_those_of_torch(shape):
    """Up to the precision of bfloat16, which torch uses for the iteration."""
    updated, reference = (
        torch.nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).view(shape))
        for _ in range(2)
    )
    optimizers = [
        Muon([updated], lr=0.02, weight_decay=0.1, precision=torch.float32),
        torch.optim.Muon([reference], lr=0.02, weight_decay=0.1, adjust_lr_fn='match_rms_adamw'),
    ]
    target = torch.eye(*shape)
    for _ in range(5):
        for parameter, optimizer in zip((updated, reference), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    assert torch.allclose(updated, reference, atol=2e-3)
    assert not torch.allclose(
        updated, torch.linspace(-1, 1, updated.numel()).view(shape), atol=0.02
    )
