# SPDX-License-Identifier: Apache-2.0
"""Many bags are asked one after another or on Ray: every answer is there, and there once."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from bag_kinds import TOPIC, write

from lisa_ros import cli
from lisa_ros.evaluation import batch as many
from lisa_ros.evaluation import report
from lisa_ros.evaluation.command_file import read_commands
from lisa_ros.messages import bag as bags
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SAMPLE

COMMANDS = [
    {'text': 'segment the yellow mug', 'label': 'yellow mug', 'kind': 'explicit'},
    {'text': 'find the scissors', 'frame': 1, 'absent': True, 'kind': 'absent'},
]


@pytest.fixture(scope='module')
def frames():
    return [
        frame for frame, _ in zip(bags.read_images(SAMPLE / 'bag', TOPIC), range(4), strict=False)
    ]


@pytest.fixture(scope='module')
def asked(frames, tmp_path_factory):
    """Commands and three bags of three lengths."""
    folder = tmp_path_factory.mktemp('asked')
    (folder / 'commands.yaml').write_text(yaml.safe_dump(COMMANDS))
    return folder / 'commands.yaml', [write(folder / f'b{n}', frames[:n]) for n in (2, 3, 4)]


def evaluate(asked, out, *more):
    commands, found = asked
    given = ['evaluate', 'bag', *map(str, found), '--commands', str(commands), '--out', str(out)]
    return cli.main([*given, '--truth', str(SAMPLE / 'truth'), '--every', '2', *more])


@pytest.fixture(scope='module')
def first(asked, tmp_path_factory):
    """The report on all of them, asked here."""
    out = tmp_path_factory.mktemp('first')
    assert evaluate(asked, out) == 0
    return out


# ---- one after another


def test_every_bag_has_a_report_and_all_have_one(first, asked):
    whole = json.loads((first / 'report.json').read_text())
    single = {bag.name: report.read(first / bag.name) for bag in asked[1]}
    assert [len(one['cases']) for one in single.values()] == [2, 3, 3]
    assert [case['name'] for case in whole['cases']] == [
        f'{name}/{case["name"]}' for name, one in single.items() for case in one['cases']
    ]
    ious = [case['iou'] for case in whole['cases']]
    assert whole['figures']['all']['giou'] == pytest.approx(np.mean(ious))
    assert whole['by_bag'].keys() == single.keys()
    for case in whole['cases']:
        assert (first / case['picture']).is_file()
    assert 'By bag, 3' in (first / 'report.html').read_text()
    assert not list(first.glob('.part-*'))


def test_the_truth_may_be_another_one_for_each_bag(asked, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bag in asked[1]:
        shutil.copytree(SAMPLE / 'truth', tmp_path / bag.name / 'truth')
    assert evaluate(asked, tmp_path / 'out', '--truth', '{}/truth') == 0
    assert report.read(tmp_path / 'out')['cases'] == report.read(first)['cases']


def test_what_is_done_is_not_asked_again(asked, first, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    shutil.copytree(first, out)
    shutil.rmtree(out / 'b3')
    (out / '.part-b3-of_a_worker_that_died').mkdir()
    done = []
    examine = many.evaluate_bag
    monkeypatch.setattr(
        many,
        'evaluate_bag',
        lambda lisa, bag, *more, **m: done.append(bag.name) or examine(lisa, bag, *more, **m),
    )
    assert evaluate(asked, out) == 0
    assert done == ['b3']
    assert report.read(out)['cases'] == report.read(first)['cases']
    assert not list(out.glob('.part-*'))


def test_another_plan_is_not_mixed_with_what_is_there(asked, first, capsys):
    before = (first / 'report.json').read_bytes()
    assert evaluate(asked, first, '--max-new-tokens', '9') == 1
    assert 'holds an evaluation with another model' in capsys.readouterr().err
    assert (first / 'report.json').read_bytes() == before


def test_another_bag_of_the_same_name_is_not_taken_for_the_one_that_is_done(
    asked, first, tmp_path, capsys
):
    commands, found = asked
    other = shutil.copytree(found[0], tmp_path / found[0].name)
    assert evaluate((commands, [other, found[1]]), first) == 1
    assert f'is about {found[0]}, not {other}' in capsys.readouterr().err


def test_a_broken_bag_is_told_and_the_others_are_asked(asked, first, tmp_path, capsys):
    commands, found = asked
    (tmp_path / 'broken.mcap').write_bytes(b'nothing')
    more = (commands, [tmp_path / 'broken.mcap', *found])
    assert evaluate(more, tmp_path / 'out') == 1
    told = capsys.readouterr()
    assert 'broken.mcap: ' in told.out
    assert 'not every bag could be used' in told.err
    assert report.read(tmp_path / 'out')['cases'] == report.read(first)['cases']
    assert 'no rosbag2 bag' in report.read(tmp_path / 'out')['broken'][0]
    assert evaluate(more, tmp_path / 'out', '--skip-broken') == 0
    assert evaluate((commands, more[1][:1] * 2), tmp_path / 'none') == 1
    assert 'none of 2 bags could be used' in capsys.readouterr().err


def test_a_bag_over_which_workers_die_again_and_again_is_broken(asked, tmp_path):
    commands, (bag, *_) = asked
    for number in range(3):
        (tmp_path / f'.part-{bag.name}-{number}').mkdir()
    plan = many.BatchPlan({'name': 'lisa-tabletop'}, read_commands(commands))
    lisa = Segmenter.load()
    assert '3 workers died over it' in many._answer(
        lisa, many.BagJob(bag.name, bag), plan, tmp_path
    )
    assert many._answer(lisa, many.BagJob('other', bag), plan, tmp_path) == ''


@pytest.mark.parametrize(
    ('more', 'says'),
    [
        (['--workers', '2'], 'are of --ray'),
        (['--live'], '--live plays one bag'),
    ],
)
def test_options_that_do_not_go_together_are_refused(more, says, asked, tmp_path, capsys):
    assert evaluate(asked, tmp_path, *more) == 1
    assert says in capsys.readouterr().err


# ---- several frames at once


def test_frames_seen_together_are_answered_as_alone(asked, tmp_path):
    commands, found = asked
    reports = []
    for batch in ('1', '2'):
        out = tmp_path / batch
        assert evaluate((commands, found[2:]), out, '--batch', batch) == 0
        reports.append(report.read(out))
    one, other = reports
    assert [c['answer'] for c in one['cases']] == [c['answer'] for c in other['cases']]
    for first, second in zip(one['cases'], other['cases'], strict=True):
        assert first['iou'] == pytest.approx(second['iou'], abs=0.01)
        assert first['scores'] == pytest.approx(second['scores'], abs=0.01)
    asked_first = other['timings']['cases'][other['cases'][0]['name']]
    assert {'preprocess', 'clip', 'sam'} <= asked_first.keys()


def test_frames_that_are_read_ahead_come_in_their_order(frames):
    assert [f.stamp for f in bags.prefetch(frame for frame in frames)] == [f.stamp for f in frames]
    some = bags.prefetch(bags.read_images(SAMPLE / 'bag', TOPIC))
    assert next(some).stamp == frames[0].stamp
    some.close()

    def broken():
        yield frames[0]
        raise OSError('the disk is gone')

    some = bags.prefetch(broken())
    assert next(some) is frames[0]
    with pytest.raises(OSError, match='the disk is gone'):
        next(some)


# ---- on Ray


def workers():
    """The processes of Ray that hold a model."""
    running = psutil.process_iter(['cmdline'])
    return [p for p in running if (p.info['cmdline'] or [''])[0].startswith('ray::MapWorker')]


def test_all_answers_are_there_once_though_a_worker_is_killed(asked, first, tmp_path):
    pytest.importorskip('ray.data', reason='Ray Data is not installed: the extra `ray`')
    commands, found = asked
    copies = []
    for number in range(8):
        copies += [Path(shutil.copytree(found[1], tmp_path / f'c{number}'))]
    out, killed = tmp_path / 'out', []

    def kill():
        """Kill one worker as soon as the first bags are done."""
        until = time.monotonic() + 240
        while time.monotonic() < until and not killed:
            if len(list(out.glob('c*/report.json'))) >= 2:
                killed.append(workers()[0])
                killed[0].kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    assert evaluate((commands, copies), out, '--ray', '--workers', '2') == 0
    killer.join()
    assert killed
    whole, one = report.read(out), report.read(first / 'b3')
    assert [case['name'] for case in whole['cases']] == [
        f'{copy.name}/{case["name"]}' for copy in copies for case in one['cases']
    ]
    for case in whole['cases']:
        assert case['answer'] == one['names'][case['name'].partition('/')[2]]['answer']
    assert not list(out.glob('.part-*'))
    assert not psutil.wait_procs(workers(), timeout=30)[1]


def test_what_keeps_workers_from_working_is_said(asked, tmp_path, capsys):
    pytest.importorskip('ray.data', reason='Ray Data is not installed: the extra `ray`')
    assert evaluate(asked, tmp_path, '--ray', '127.0.0.1:9') == 1
    assert 'Ray at 127.0.0.1:9 cannot go on' in capsys.readouterr().err
