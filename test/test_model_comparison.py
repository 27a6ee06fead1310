# SPDX-License-Identifier: Apache-2.0
"""Several models in one evaluation: each in a process of its own, all in one report."""

import csv
import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import psutil
import pytest
import scripted_backend
from bag_kinds import TOPIC, write
from PIL import Image

from lisa_ros import cli
from lisa_ros.errors import DataError, SettingsError, WorkerError
from lisa_ros.evaluation import comparison_plots, isolated_run, report, summary
from lisa_ros.evaluation.answering import answer_query
from lisa_ros.evaluation.cases import Case, Mode
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages import bag as bags
from lisa_ros.perception import registry
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SAMPLE
from lisa_ros.results import BROKEN

SIDE = 64  # of the images [px]
LABELS = ('left', 'all', 'nothing')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Three images, white on the left; each has a label of the left half and one of all."""
    folder = tmp_path_factory.mktemp('images')
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = 255
    for name in ('a', 'b', 'c'):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / f'{name}.png')
        for label, columns in (('left', SIDE // 2), ('all', SIDE)):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[:, :columns] = 255
            cv2.imwrite(str(folder / name / f'{label}.png'), mask)
    return folder


def script(folder, name, **replies):
    """The name of a model with these replies, by the beginning of a query."""
    path = folder / name
    path.write_text(json.dumps({'': {}, **replies}))
    return f'scripted:{path}'


def evaluate(images, out, models, *arguments):
    chosen = [argument for model in models for argument in ('--model', model)]
    command = ['evaluate', 'images', str(images), '--ask', '{}', '--out', str(out)]
    return cli.main([*command, *chosen, *arguments])


BRIGHT = {'left': {'masks': 'bright', 'answer': 'On the left.'}, 'all': {'masks': 'all'}}
ALL = {'': {'masks': 'all', 'answer': 'All of it.'}}


@pytest.fixture(scope='module')
def compared(images, tmp_path_factory):
    """A report of a right model, a wrong one, one that dies, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp('compared')
    models = [
        script(folder, 'right', **BRIGHT),
        script(folder, 'dying', **ALL, left={'run': 'import os; os.kill(os.getpid(), 9)'}),
        script(folder, 'wrong', **ALL),
        script(folder, 'unloadable', load='raise RuntimeError("no weights")'),
    ]
    out = folder / 'out'
    shutil.copytree(images, out / 'dying')  # of an earlier run: its report must not count
    (out / 'dying' / 'report.json').write_text('{}')
    status = evaluate(images, out, models)
    return out, status, json.loads((out / 'compare.json').read_text())


def test_a_report_has_a_row_for_each_model(compared):
    _, _, content = compared
    right, dying, wrong, unloadable = content['runs']
    assert [row['name'] for row in content['runs']] == ['right', 'dying', 'wrong', 'unloadable']
    assert right['figures']['giou'] == pytest.approx(1, abs=1e-4)
    assert wrong['figures']['giou'] == pytest.approx(0.75, abs=1e-4)
    assert right['failure'] == wrong['failure'] == ''
    for row in (right, wrong):
        assert row['seconds_to_answer']['p50'] >= row['seconds_to_mask']['p50'] > 0
        assert row['peak_memory'] > 10
        assert row['load_seconds'] >= 0
        assert (row['queries'], row['failed']) == (6, 0)
    assert dying['failure'] == (
        'its process died of signal 9 (SIGKILL; the kernel sends it when memory runs out)'
    )
    assert unloadable['failure'] == 'RuntimeError: no weights'


def test_a_model_that_fails_ends_the_command_with_1_and_loses_no_other(compared, capsys):
    out, status, _ = compared
    assert status == 1
    assert not (out / 'dying' / 'report.json').exists()
    assert len(read_report(out / 'wrong')['cases']) == 6
    assert (out / 'wrong' / 'report.html').is_file()


def test_each_model_is_compared_with_the_first_query_by_query(compared):
    _, _, content = compared
    assert content['first'] == 0
    (difference,) = content['differences']
    row = difference['figures']['all']
    assert (difference['run'], row['count']) == (2, 6)
    assert row['difference'] == pytest.approx(-0.25, abs=1e-4)
    assert (row['better'], row['worse']) == (0, 3)
    low, high = row['interval']
    assert low <= row['difference'] <= high


def test_the_page_has_the_answers_side_by_side(compared):
    out, _, _ = compared
    page = (out / 'report.html').read_text()
    assert page.count('<figure') == 6
    assert page.count('<img') == 12
    assert 'not evaluated: its process died of signal 9' in page
    assert 'not evaluated: RuntimeError: no weights' in page
    records = json.loads(re.search(r'id="cases">(.*?)</script>', page, re.S)[1])
    assert records[0]['spread'] == pytest.approx(0.5, abs=1e-3)  # of the largest difference
    assert records[0]['answer'] == 'On the left. All of it.'


def test_csv_files_have_a_row_for_each_model_and_for_each_query(compared):
    out, _, _ = compared
    with (out / 'compare.csv').open(newline='') as file:
        right, dying, *_ = csv.DictReader(file)
    assert float(right['giou']) == pytest.approx(1, abs=1e-4)
    assert dying['failure'].startswith('its process died')
    with (out / 'cases.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    left = next(row for row in rows if row['expression'] == 'left')
    assert float(left['iou of wrong']) == pytest.approx(0.5, abs=1e-4)
    assert left['status of dying'] == ''


def test_a_browser_opens_the_page_without_an_error(compared, tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('needs Chromium')
    out, _, _ = compared
    command = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
        '--enable-logging=stderr', f'--user-data-dir={tmp_path}', '--dump-dom',
        (out / 'report.html').as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '6 of 6' in shown.stdout  # the script ran to its end
    assert 'CONSOLE' not in shown.stderr


def test_failed_queries_of_one_model_are_counted(images, tmp_path, capsys):
    models = [
        script(tmp_path, 'good', **BRIGHT),
        script(tmp_path, 'broken', **ALL, left={'failure': 'no memory'}),
    ]
    assert evaluate(images, tmp_path / 'out', models, '--json') == 1
    printed = capsys.readouterr()
    good, broken = json.loads(printed.out)['runs']
    assert (good['failed'], broken['failed'], broken['queries']) == (0, 3, 6)
    assert 'broken: 3 queries failed' in printed.err
    (difference,) = json.loads((tmp_path / 'out' / 'compare.json').read_text())['differences']
    assert difference['figures']['all']['count'] == 3
    assert difference['left_out'] == [3, 3]
    assert evaluate(images, tmp_path / 'out', models, '--skip-broken') == 0


def test_a_model_does_not_leave_its_memory_to_the_next_one(images, tmp_path):
    hungry = 'import numpy, builtins; builtins.kept = numpy.ones(300 * 2**17)'  # 300 MiB
    models = [script(tmp_path, 'hungry', load=hungry), script(tmp_path, 'modest')]
    assert evaluate(images, tmp_path / 'out', models) == 0
    rows = json.loads((tmp_path / 'out' / 'compare.json').read_text())['runs']
    large, small = (row['peak_memory'] for row in rows)
    assert large - small > 250
    assert small < psutil.Process().memory_info().rss / 2**20 + 100  # not this process's peak


def test_broken_data_is_refused_before_a_model_is_loaded(images, tmp_path, capsys):
    data = shutil.copytree(images, tmp_path / 'data')
    (data / 'a.png').write_bytes(b'no image')
    models = [script(tmp_path, name) for name in ('one', 'two')]
    assert evaluate(data, tmp_path / 'out', models) == 1
    printed = capsys.readouterr()
    assert 'model 1 of 2' not in printed.err
    assert 'cannot be used' in printed.err


def test_scenes_are_answered_by_several_models_in_batches(tmp_path, capsys):
    models = ['--model', 'lisa-tabletop', '--model', script(tmp_path, 'script', **ALL)]
    command = ['evaluate', 'scenes', '--limit', '6', '--batch', '3', *models]
    assert cli.main(command) == 1
    assert 'several models need --out' in capsys.readouterr().err
    assert cli.main([*command, '--device', 'cpu', '--out', str(tmp_path / 'out')]) == 0
    content = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    tabletop, scripted = content['runs']
    assert tabletop['figures']['giou'] > scripted['figures']['giou']
    assert tabletop['tokens'] > 3
    assert scripted['tokens'] is None
    assert tabletop['peak_memory'] > scripted['peak_memory'] + 100  # torch and the weights
    assert {'clip', 'sam', 'tokens'} <= tabletop['stage_seconds'].keys()
    cases = read_report(tmp_path / 'out' / 'lisa-tabletop')['cases']
    assert all(case['tokens'] > 0 for case in cases)


def test_bags_are_answered_by_several_models(tmp_path):
    frames = [f for f, _ in zip(bags.read_images(SAMPLE / 'bag', TOPIC), range(2), strict=False)]
    bag = write(tmp_path / 'bag', frames)
    (tmp_path / 'commands.yaml').write_text('- {text: find the mug, label: yellow mug}\n')
    models = [script(tmp_path, name, **ALL) for name in ('one', 'two')]
    command = ['evaluate', 'bag', str(bag), '--commands', str(tmp_path / 'commands.yaml')]
    command += ['--every', '1', '--ground-truth', str(SAMPLE / 'truth')]
    command += ['--out', str(tmp_path / 'out'), '--model', models[0], '--model', models[1]]
    assert cli.main(command) == 0
    (difference,) = json.loads((tmp_path / 'out' / 'compare.json').read_text())['differences']
    assert difference['figures']['all']['difference'] == 0
    answers = tmp_path / 'out' / 'two' / 'answers_bag'
    (answers / '.lisa_ros_answers').unlink()  # earlier versions wrote none
    (answers / 'of_the_first_run').touch()
    assert cli.main(command) == 0
    assert answers.is_dir()
    assert not (answers / 'of_the_first_run').exists()


def test_reports_of_three_runs_are_compared(compared, tmp_path, capsys):
    out, _, _ = compared
    again = shutil.copytree(out / 'wrong', tmp_path / 'again')
    reports = [str(out / 'wrong'), str(out / 'right'), str(again)]
    assert cli.main(['evaluate', 'compare', *reports, '--out', str(tmp_path / 'both')]) == 0
    content = json.loads((tmp_path / 'both' / 'compare.json').read_text())
    changes = [difference['figures']['all']['difference'] for difference in content['differences']]
    assert changes == pytest.approx([0.25, 0], abs=1e-4)
    assert cli.main(['evaluate', 'compare', reports[0], '--out', str(tmp_path / 'one')]) == 1
    assert 'two or more reports' in capsys.readouterr().err


def test_absent_objects_that_both_runs_deny_have_no_cumulative_iou(tmp_path):
    """0.000 told of wrong masks."""
    denied = dataclasses.replace(
        case('a', 'a'), category='absent', present=False, found=False, overlap=Overlap(0, 0)
    )
    cases = [denied, dataclasses.replace(denied, name='b', group='b'), case('c', 'c')]
    for name in ('first', 'second'):
        run = report.Run('a run', Mode.GENERATE, {'model': 'x'}, cases)
        figures = report.write(run, tmp_path / name)['figures']
        assert (figures['absent']['ciou'], figures['absent']['ciou_interval']) == (None, None)
        assert figures['absent']['giou'] == 1
        assert figures['all']['ciou_interval'] == pytest.approx([0.5, 0.5])
    runs = [str(tmp_path / name) for name in ('first', 'second')]
    assert cli.main(['evaluate', 'compare', *runs, '--out', str(tmp_path / 'both')]) == 0
    content = (tmp_path / 'both' / 'compare.json').read_text()
    assert 'NaN' not in content
    (difference,) = json.loads(content)['differences']
    assert difference['figures']['absent']['ciou'] == [None, None]
    assert difference['figures']['all']['ciou'] == pytest.approx([0.5, 0.5])
    page = (tmp_path / 'both' / 'report.html').read_text()
    row = page[page.index('<td>absent</td>') :].partition('</tr>')[0]
    assert row.endswith('<td>–</td><td>–</td>'), row


def test_a_report_says_that_no_model_could_be_evaluated(images, tmp_path, capsys):
    models = [script(tmp_path, name, load='raise RuntimeError("no weights")') for name in 'ab']
    assert evaluate(images, tmp_path / 'out', models) == 1
    assert '2 of 2 models could not be evaluated' in capsys.readouterr().err
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert page.count('not evaluated: RuntimeError: no weights') == 2


def test_the_first_model_with_a_report_is_the_one_to_compare_with(images, tmp_path):
    broken = script(tmp_path, 'broken', load='raise RuntimeError("no weights")')
    models = [broken, *(script(tmp_path, name, **ALL) for name in ('one', 'two'))]
    assert evaluate(images, tmp_path / 'out', models) == 1
    content = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert content['first'] == 1
    assert [difference['run'] for difference in content['differences']] == [2]
    assert 'Difference from B' in (tmp_path / 'out' / 'report.html').read_text()


# ---- a process for each model


def fail(kind):
    raise kind('the reason')


def exit_with(status):
    os._exit(status)


@pytest.mark.parametrize(
    ('function', 'argument', 'error', 'message'),
    [
        (fail, DataError, DataError, 'the reason'),
        (fail, KeyError, WorkerError, 'KeyError'),
        (exit_with, 3, WorkerError, 'its process exited with status 3'),
    ],
)
def test_an_error_of_the_other_process_is_raised_here(function, argument, error, message):
    with pytest.raises(error, match=message):
        isolated_run.run_isolated(function, argument)


def test_a_backend_that_no_other_process_can_import_is_refused(monkeypatch):
    monkeypatch.setitem(registry._loaders, 'local', lambda name, options: None)
    with pytest.raises(SettingsError, match='define its loader as a function of a module'):
        isolated_run.run_isolated(exit_with, 0)


def test_the_process_of_a_model_imports_the_backend_of_that_model_only(
    images, tmp_path, monkeypatch
):
    module = tmp_path / 'a_backend.py'
    module.write_text('def load(name, options): pass')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry._loaders, 'gone', importlib.import_module('a_backend').load)
    module.unlink()
    models = [script(tmp_path, 'right', **BRIGHT), 'gone:model']
    assert evaluate(images, tmp_path / 'out', models) == 1
    right, gone = json.loads((tmp_path / 'out' / 'compare.json').read_text())['runs']
    assert right['figures']['giou'] == pytest.approx(1, abs=1e-4)
    assert gone['failure'] == (
        'the loader of "gone:" cannot be imported by the process of the model '
        "(ModuleNotFoundError: No module named 'a_backend'): put its module on the Python path"
    )


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_the_process_of_a_model_ends_with_the_command(number, images, tmp_path):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip('the shell that started the tests ignores this signal, as in a script with &')
    name = script(tmp_path, 'slow', **{'': {'hang': 1}})
    other = script(tmp_path, 'other')
    code = f"""
        import sys
        import scripted_backend
        from lisa_ros import cli
        sys.exit(cli.main(['evaluate', 'images', {str(images)!r}, '--out',
            {str(tmp_path / 'out')!r}, '--model', {name!r}, '--model', {other!r}]))
    """  # as the executables: without "if __name__ == '__main__'"
    program = tmp_path / 'program.py'
    program.write_text(textwrap.dedent(code))
    search_path = os.pathsep.join([str(scripted_backend.__file__.rpartition('/')[0]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, 'PYTHONPATH': search_path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    parent, children = psutil.Process(process.pid), []
    while time.monotonic() < deadline and not any('isolated_run' in ' '.join(c) for c in children):
        time.sleep(0.05)
        children = [child.cmdline() for child in parent.children()]
    spawned = [c for c in parent.children() if 'isolated_run' in ' '.join(c.cmdline())]
    assert spawned
    process.send_signal(number)
    process.wait(120)
    gone, alive = psutil.wait_procs(spawned, timeout=120)
    assert gone
    assert not alive


# ---- figures


def case(name, group, **timings):
    return Case(
        name=name,
        group=group,
        category='short',
        expression='x',
        query='x',
        answer='x',
        status='FOUND',
        present=True,
        found=True,
        overlap=Overlap(1, 2),
        boundary_f=1.0,
        scores=(1.0,),
        timings=timings,
        time_to_first_mask=0.5,
        token_count=10,
    )


def test_stages_of_a_vision_language_model_count_for_the_first_query_of_an_image():
    cases = [
        case('a.0', 'a', prompt=1.0, tokens=2.0, sam=1.0),
        case('a.1', 'a', prompt=9.0, tokens=9.0),
        case('b.0', 'b', prompt=2.0, tokens=2.0, sam=2.0),
    ]
    costs = summary.costs(cases)
    assert costs['seconds_to_answer']['p50'] == pytest.approx(5.0)
    assert costs['stage_seconds'] == {'prompt': 1.5, 'tokens': 2.0, 'sam': 1.5}
    assert costs['tokens'] == 10


@pytest.mark.parametrize('status', [status.name for status in BROKEN])
def test_failed_queries_are_counted_and_in_no_other_figure(status):
    failed = dataclasses.replace(case('c.0', 'c', prompt=60.0), status=status, token_count=900)
    costs = summary.costs([case('a.0', 'a', prompt=1.0, sam=1.0), failed])
    assert (costs['queries'], costs['failed']) == (2, 1)
    assert costs['seconds_to_answer']['p90'] == pytest.approx(2.0)
    assert costs['stage_seconds'] == {'prompt': 1.0, 'sam': 1.0}
    assert costs['tokens'] == 10
    assert summary.costs([failed])['seconds_to_answer'] is None


def test_the_time_to_a_mask_is_measured_if_the_backend_does_not():
    backend = scripted_backend.ScriptedBackend({'': {'masks': 'all', 'then': 'pass'}})
    result = answer_query(Segmenter(backend), np.zeros((6, 8, 3), np.uint8), 'x')
    assert 0 < result.time_to_first_mask <= sum(result.timings.values())


def row(name, giou, seconds, memory):
    return {
        'name': name,
        'failure': '',
        'figures': {'giou': giou, 'giou_interval': [giou - 0.05, giou + 0.05]},
        'seconds_to_answer': {'p50': seconds, 'p90': 2 * seconds},
        'peak_memory': memory,
        'peak_gpu_memory': None,
    }


def test_the_dashed_line_joins_the_models_that_no_other_one_beats():
    rows = [row('fast', 0.5, 0.1, 100), row('slow', 0.8, 4, 400), row('beaten', 0.4, 1, 100)]
    plot = comparison_plots.quality_plot([*rows, {'name': 'dead', 'failure': 'x'}])
    fast, slow, beaten = sorted(plot.dots, key=lambda dot: dot.letter)
    assert plot.front == [(fast.x, fast.y), (slow.x, fast.y), (slow.x, slow.y)]
    assert fast.x < beaten.x < slow.x
    assert slow.radius == pytest.approx(2 * fast.radius)  # area shows memory
    assert slow.x_end > slow.x
    assert all(0 <= value <= 1 for dot in plot.dots for value in (dot.x, dot.y, dot.x_end))


def test_labels_of_equal_models_do_not_overlap():
    plot = comparison_plots.quality_plot([row(name, 0.5, 1.0, 100) for name in 'abc'])
    heights = sorted(dot.label_y for dot in plot.dots)
    assert np.diff(heights).min() > 0.05
    assert comparison_plots.quality_plot([{'name': 'dead', 'failure': 'x'}]) is None
