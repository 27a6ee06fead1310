# SPDX-License-Identifier: Apache-2.0
"""The loop: going on where it stopped, stopping on a signal, accumulation, several processes."""

import importlib.util
import json
import os
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
from lisa_ros.training.trainer import Trainer, TrainerConfig

HERE = str(Path(__file__).parent)
PACE = TrainerConfig(
    steps=8,
    learning_rate=0.05,
    warmup_steps=2,
    ema_decay=0.9,
    validate_every=4,
    save_every=3,
    bf16=False,
)


@dataclass
class Lesson:
    x: torch.Tensor
    frozen: bool = False
    by: int = 0  # the process that drew it

    def to(self, device):
        return replace(self, x=self.x.to(device))


class Line:
    """Learns y = 3 x, through a dropout, from numbers drawn by step and part."""

    def __init__(self, figures=()):
        self.weights = {'square': 1.0, 'watched': 0.0}
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.module[2].bias.requires_grad_(False)
        self.figures, self.exported = list(figures), 0

    def draw(self, step, part):
        return Lesson(
            torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * step + part))
        )

    def losses(self, lesson, step):
        error = self.module(lesson.x)[:, 0] - 3 * lesson.x.sum(1)
        return {'square': error.square().mean(), 'watched': error.abs().mean()}

    def validate(self, run):
        return {'figure': self.figures.pop(0) if self.figures else 0.0}

    def export(self, run):
        self.exported += 1
        torch.save(self.module.state_dict(), run / 'model.pt')


class Uneven(Line):
    """Without dropout; of odd parts the first layer learns nothing."""

    def __init__(self):
        super().__init__()
        self.module[1].p = 0.0

    def draw(self, step, part):
        lesson = super().draw(step, part)
        lesson.frozen = part % 2 == 1
        return lesson

    def losses(self, lesson, step):
        hidden = self.module[0](lesson.x)
        guess = self.module[2](hidden.detach() if lesson.frozen else hidden)[:, 0]
        return {'square': (guess - 3 * lesson.x.sum(1)).square().mean()}


class Signed(Line):
    """Notes which process drew each lesson."""

    def __init__(self):
        super().__init__()
        self.drawn_by = []

    def draw(self, step, part):
        return replace(super().draw(step, part), by=os.getpid())

    def losses(self, lesson, step):
        self.drawn_by.append(lesson.by)
        return super().losses(lesson, step)


class Layered(Line):
    """With a matrix in a layer, which Muon may have."""

    def __init__(self):
        super().__init__()
        inner = nn.ModuleDict({'layers': nn.ModuleList([nn.Linear(8, 8)])})
        self.module = nn.ModuleList([*self.module, inner])

    def losses(self, lesson, step):
        first, dropout, last, inner = self.module
        hidden = dropout(first(lesson.x))
        error = last(hidden + inner['layers'][0](hidden))[:, 0] - 3 * lesson.x.sum(1)
        return {'square': error.square().mean()}


def weights(loop):
    return torch.cat([p.detach().flatten() for p in loop.pupil.module.parameters()])


@pytest.mark.parametrize('stop', [1, 3, 5])
def test_a_run_goes_on_where_it_stopped_as_if_it_had_not(tmp_path, stop):
    whole = Trainer(tmp_path / 'whole', PACE, Line())
    whole.train()
    first = Trainer(tmp_path / 'parts', PACE, Line())
    first.train(until=stop)
    then = Trainer(tmp_path / 'parts', PACE, Line())
    assert then.step == stop
    then.train()
    assert torch.equal(weights(whole), weights(then))
    for name, value in whole.average.items():
        assert torch.equal(value, then.average[name])


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import PACE, Line
from dataclasses import replace
from lisa_ros.training.trainer import Loop
from lisa_ros.training.muon import Muon

class Slow(Line):
    def losses(self, lesson, step):
        time.sleep(0.05)
        return super().losses(lesson, step)

pace = replace(PACE, steps=40, save_every=1000, workers=int(sys.argv[2]))
Loop(Path(sys.argv[1]), pace, Slow()).train()
"""


@pytest.mark.parametrize(
    ('number', 'workers'),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 2), (signal.SIGTERM, 2)],
)
def test_a_signal_ends_it_after_the_step_and_nothing_is_lost(tmp_path, number, workers):
    """With workers it comes to all of them, as a terminal's Ctrl-C does."""
    program = [sys.executable, '-c', PROGRAM.format(tests=HERE), tmp_path / 'run', str(workers)]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    seen = ''
    while '/40' not in seen or ' 0/40' in seen[-60:]:
        assert time.monotonic() < until
        seen += process.stderr.read(40)
    os.killpg(process.pid, number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert 'Traceback' not in rest
    step = torch.load(tmp_path / 'run' / 'last.pt', weights_only=True)['step']
    assert 0 < step < 40
    pace = replace(PACE, steps=40, save_every=1000)
    resumed, whole = (Trainer(tmp_path / name, pace, Line()) for name in ('run', 'whole'))
    assert resumed.step == step
    resumed.train()
    whole.train()
    assert torch.equal(weights(resumed), weights(whole))


def test_accumulated_parts_are_one_big_batch(tmp_path):
    class Plain(Line):
        def __init__(self):
            super().__init__()
            self.module[1].p = 0.0

    class Big(Plain):
        def draw(self, step, part):
            parts = [super(Big, self).draw(step, p).x for p in (2 * part, 2 * part + 1)]
            return Lesson(torch.cat(parts))

    two = Trainer(tmp_path / 'two', replace(PACE, accumulate=2), Plain())
    one = Trainer(tmp_path / 'one', PACE, Big())
    two.train()
    one.train()
    assert torch.allclose(weights(two), weights(one), atol=1e-5)


def test_lessons_that_processes_make_ready_are_the_same(tmp_path):
    alone, many = Line(), Signed()
    Trainer(tmp_path / 'alone', PACE, alone).train()
    Trainer(tmp_path / 'many', replace(PACE, workers=2), many).train()
    assert len(many.drawn_by) == PACE.steps
    assert len(set(many.drawn_by)) == 2
    assert os.getpid() not in many.drawn_by
    for a, b in zip(alone.module.parameters(), many.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_stay(tmp_path):
    loop = Trainer(tmp_path, PACE, Line())
    frozen = loop.pupil.module[2].bias.clone()
    before = weights(loop)
    loop.train()
    assert torch.equal(frozen, loop.pupil.module[2].bias)
    assert not torch.equal(before, weights(loop))


def test_the_best_weights_are_kept_and_a_run_that_gets_no_better_ends(tmp_path):
    pace = replace(PACE, steps=40, validate_every=2, monitor='figure', patience=2)
    loop = Trainer(tmp_path, pace, Line(figures=[0.1, 0.5, 0.4, 0.3, 0.9]))
    loop.train()
    assert loop.step == 8
    assert loop.pupil.exported == 2
    assert loop.best == 0.5


def test_the_average_is_what_is_validated_and_exported(tmp_path):
    loop = Trainer(tmp_path, PACE, Line())
    loop.train()
    kept = torch.load(tmp_path / 'model.pt', weights_only=True)
    assert torch.equal(kept['0.weight'], loop.average['0.weight'])
    assert not torch.equal(kept['0.weight'], loop.pupil.module[0].weight)


def test_curves_have_a_row_for_each_validation_even_if_resumed(tmp_path):
    Trainer(tmp_path, PACE, Line()).train(until=4)
    Trainer(tmp_path, PACE, Line()).train()
    rows = (tmp_path / 'curves.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '4.0000', '8.0000']
    if importlib.util.find_spec('matplotlib'):
        assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_muon_has_the_matrices_of_layers_and_goes_on_where_it_stopped(tmp_path):
    pace = replace(PACE, muon=True)
    whole, first = (
        Trainer(tmp_path / 'whole', pace, Layered()),
        Trainer(tmp_path / 'a', pace, Layered()),
    )
    muon, adam = whole.optimizers
    (matrix,) = (p for group in muon.param_groups for p in group['params'])
    assert matrix is whole.trained['3.layers.0.weight']
    rest = {id(p) for group in adam.param_groups for p in group['params']}
    assert rest | {id(matrix)} == {id(p) for p in whole.trained.values()}
    before = matrix.detach().clone()
    whole.train(until=1)
    # one output, so a gradient of rank one, whose nearest orthogonal matrix has norm one
    length = float((before - matrix.detach()).norm()) / (whole.learning_rate(0) * 0.2 * 8**0.5)
    assert 0.6 < length < 1.3
    whole.train()
    first.train(until=3)
    then = Trainer(tmp_path / 'a', pace, Layered())
    then.train()
    assert torch.equal(weights(whole), weights(then))
    plain = Trainer(tmp_path / 'plain', PACE, Layered())
    assert len(plain.optimizers) == 1


def test_another_training_in_the_folder_is_named(tmp_path):
    Trainer(tmp_path, PACE, Line()).train(until=1)
    other = Line()
    other.module[2].bias.requires_grad_(True)
    with pytest.raises(DataError, match='another training'):
        Trainer(tmp_path, PACE, other)
    with pytest.raises(DataError, match='begun with seed 0, not 1'):
        Trainer(tmp_path, replace(PACE, seed=1), Line())


def test_what_an_older_version_or_another_optimizer_left_is_named(tmp_path):
    Trainer(tmp_path, PACE, Layered()).train(until=1)
    with pytest.raises(DataError, match='has not the optimizers of this'):
        Trainer(tmp_path, replace(PACE, muon=True), Layered())
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    del state['seed']
    torch.save(state, tmp_path / 'last.pt')
    with pytest.raises(DataError, match='left by an older version'):
        Trainer(tmp_path, PACE, Layered())


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_while_drawing_ends_it_and_what_was_learnt_is_kept(tmp_path, workers):
    class Short(Line):
        def draw(self, step, part):
            if step == 5:
                raise DataError('picture 5 is broken')
            return super().draw(step, part)

    with pytest.raises(DataError, match=r'picture 5 is broken$'):
        Trainer(tmp_path, replace(PACE, workers=workers), Short()).train()
    assert Trainer(tmp_path, PACE, Line()).step == 5


def test_the_minutes_go_on_after_a_stop(tmp_path):
    first = Trainer(tmp_path, PACE, Line())
    first.train(until=2)
    first.minutes = 30.0
    first.save()
    then = Trainer(tmp_path, PACE, Line())
    then.train()
    assert 30 <= then.minutes < 31


def test_a_loss_that_is_no_number_is_an_error(tmp_path):
    class Broken(Line):
        def losses(self, lesson, step):
            return {'square': super().losses(lesson, step)['square'] * float('nan')}

    with pytest.raises(DataError, match='lower the rate'):
        Trainer(tmp_path, PACE, Broken()).train()


def test_two_processes_learn_the_mean_of_their_lessons(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        textwrap.dedent(
            f"""
            import json, sys
            from pathlib import Path
            sys.path.insert(0, {HERE!r})
            from test_trainer import PACE, Uneven, weights
            from lisa_ros.training.trainer import Loop
            pupil = Uneven()
            loop = Loop(Path(sys.argv[1]) / 'run', PACE, pupil)
            loop.train()
            name = f'rank{{loop.rank}}.json'
            (Path(sys.argv[1]) / name).write_text(json.dumps(weights(loop).tolist()))
            """
        )
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--standalone']
    subprocess.run([*command, program, tmp_path], check=True, timeout=120, capture_output=True)
    ranks = [json.loads((tmp_path / f'rank{r}.json').read_text()) for r in (0, 1)]
    alone = Trainer(tmp_path / 'alone', replace(PACE, accumulate=2), Uneven())
    alone.train()
    assert ranks[0] == ranks[1]
    assert torch.allclose(torch.tensor(ranks[0]), weights(alone), atol=1e-5)


@pytest.mark.parametrize('shape', [(6, 6), (4, 9), (9, 4)])
def test_muon_makes_the_steps_of_torchs_own(shape):
    """To bfloat16's precision, which torch's own iterates in."""
    ours, theirs = (
        torch.nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).view(shape))
        for _ in range(2)
    )
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.1, precision=torch.float32),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn='match_rms_adamw'),
    ]
    goal = torch.eye(*shape)
    for _ in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter - goal).square().sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert not torch.allclose(ours, torch.linspace(-1, 1, ours.numel()).view(shape), atol=0.02)
