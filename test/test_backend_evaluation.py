# SPDX-License-Identifier: Apache-2.0
"""Evaluations run with any Backend: a scripted one gives answers, fails once, or returns NaN."""

import itertools
import json
import sys
import zipfile

import cv2
import numpy as np
import pytest
import scripted_backend
import torch
from bag_kinds import TOPIC, write
from PIL import Image
from test_datasets import write_refer

from lisa_ros import cli
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.evaluation import answering, html_plots, tabletop
from lisa_ros.evaluation.answering import answer_query, teacher_forced_answer
from lisa_ros.evaluation.bag import evaluate_offline
from lisa_ros.evaluation.command_file import Command
from lisa_ros.evaluation.frame_judge import FrameJudge
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages import bag as bags
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SAMPLE, TEST_SETS
from lisa_ros.results import Dialogue, Status

IMAGE = np.full((6, 8, 3), 255, np.uint8)


def scripted(tmp_path, **replies):
    """The model name of a backend with these replies, by the beginning of a query."""
    script = tmp_path / 'script.json'
    script.write_text(json.dumps({'': {}, **replies}))
    return f'scripted:{script}'


@pytest.fixture
def images(tmp_path):
    """Two white images, with the label "all" on all of their pixels."""
    folder = tmp_path / 'images'
    for name in ('a', 'b'):
        (folder / name).mkdir(parents=True)
        Image.fromarray(IMAGE).save(folder / f'{name}.png')
        Image.new('L', (8, 6), 255).save(folder / name / f'all of {name}.png')
    return folder


def evaluate_images(images, out, model, *arguments):
    command = ['evaluate', 'images', str(images), '--out', str(out), '--model', model]
    return cli.main([*command, '--ask', '{}', *arguments])


def test_published_figures_are_for_whole_splits_with_the_queries_of_the_paper(tmp_path):
    model = ['--model', scripted(tmp_path), '--out', str(tmp_path / 'out')]

    def published(data, *options):
        assert cli.main(['evaluate', 'images', str(data), *model, *options]) == 0
        return json.loads((tmp_path / 'out' / 'report.json').read_text())['published']

    refer = f'refer:{write_refer(tmp_path)}:val'
    assert 'LISA-7B' in published(refer)
    assert published(refer, '--first-only') == {}
    folder = tmp_path / 'ReasonSeg' / 'val'
    for name in ('a', 'b'):
        (folder / name).mkdir(parents=True)
        Image.fromarray(IMAGE).save(folder / f'{name}.png')
        Image.new('L', (8, 6), 255).save(folder / name / 'all.png')
    assert 'LISA-7B' in published(folder, '--first-only', '--skip-broken')
    model[1] = scripted(tmp_path, **{'': {'failure': 'no memory'}})
    assert published(folder, '--first-only', '--skip-broken') == {}
    model[1] = scripted(tmp_path)
    (folder / 'b.png').write_bytes(b'broken')
    assert published(folder, '--first-only', '--skip-broken') == {}


def test_images_are_answered_by_a_backend_that_is_no_lisa(images, tmp_path):
    model = scripted(tmp_path, **{'all of a': {'answer': 'All.', 'masks': 'all'}})
    assert evaluate_images(images, tmp_path / 'out', model) == 0
    found, not_found = read_report(tmp_path / 'out')['cases']
    assert (found['answer'], found['iou'], found['scores']) == ('All.', pytest.approx(1), [1.0])
    assert (not_found['status'], not_found['iou']) == ('NOT_FOUND', 0.0)
    timings = json.loads((tmp_path / 'out' / 'timings.json').read_text())
    assert timings['delays']['answer [s]']['p50'] > 0  # the backend times no stages


@pytest.mark.parametrize(
    ('reply', 'reason'),
    [
        ({'failure': 'out of memory'}, 'RuntimeError: out of memory'),
        ({'masks': 'nan'}, 'the model returned NaN'),
    ],
)
def test_a_failed_query_is_reported_and_the_run_continues(reply, reason, images, tmp_path, capsys):
    model = scripted(tmp_path, **{'all of a': reply, 'all of b': {'masks': 'all'}})
    out = tmp_path / 'out'
    assert evaluate_images(images, out, model) == 1
    printed = capsys.readouterr()
    assert f'failed: a.0: {reason}' in printed.out
    assert '1 queries failed' in printed.err
    failed, found = read_report(out)['cases']
    assert (failed['status'], failed['iou']) == ('FAILED', None)
    assert failed['reason'].startswith(reason)
    assert found['iou'] == pytest.approx(1)
    content = json.loads((out / 'report.json').read_text())  # valid JSON: without NaN
    assert (content['figures']['all']['count'], content['figures']['all']['queries']) == (1, 2)
    assert 'Queries that failed (1)' in (out / 'report.html').read_text()
    assert evaluate_images(images, out, model, '--skip-broken') == 0


def test_frames_of_a_bag_are_answered_by_a_backend_that_fails_once(tmp_path, capsys):
    frames = [f for f, _ in zip(bags.read_images(SAMPLE / 'bag', TOPIC), range(2), strict=False)]
    bag = write(tmp_path / 'bag', frames)
    (tmp_path / 'commands.yaml').write_text('- find the mug\n- {text: break, frame: 1}\n')
    model = scripted(tmp_path, find={'masks': 'all'}, **{'break': {'failure': 'broken'}})
    command = ['evaluate', 'bag', str(bag), '--commands', str(tmp_path / 'commands.yaml')]
    command += ['--every', '1', '--model', model, '--out', str(tmp_path / 'out')]
    assert cli.main(command) == 1
    assert 'queries failed' in capsys.readouterr().err
    statuses = [case['status'] for case in read_report(tmp_path / 'out')['cases']]
    assert statuses == ['FOUND', 'FOUND', 'FAILED']
    assert cli.main([*command, '--skip-broken']) == 0


class FullGpuBackend(scripted_backend.ScriptedBackend):
    """Has memory for one image at a time, once no error holds that of several."""

    def encode_images(self, images):
        raise torch.OutOfMemoryError('CUDA out of memory')

    stream_batch = encode_images

    def stream(self, *request):
        assert sys.exc_info()[0] is None
        return super().stream(*request)


def test_without_memory_for_several_images_each_is_answered_alone(tmp_path, caplog):
    frames = [f for f, _ in zip(bags.read_images(SAMPLE / 'bag', TOPIC), range(3), strict=False)]
    bag = write(tmp_path / 'bag', frames)
    segmenter = Segmenter(FullGpuBackend())
    commands = [Command(0, 'found')]
    cases = evaluate_offline(
        segmenter, bag, commands, FrameJudge(), every=1, batch_size=2, progress=False
    )
    assert [case.status for case in cases] == ['FOUND'] * 3
    assert caplog.text.count('CUDA out of memory') == 1 + 1  # message and traceback, once
    segmenter = Segmenter(FullGpuBackend({'': {}, 'batches': {}}))
    answers = answering.answer_queries(segmenter, [(IMAGE, 'a'), (IMAGE, 'b')])
    assert [answer.status for answer in answers] == [Status.NOT_FOUND] * 2


def test_tabletop_scenes_are_answered_by_a_backend_and_reported(tmp_path, capsys):
    model = scripted(tmp_path, **{'': {'masks': 'all'}})
    command = ['evaluate', 'scenes', '--limit', '9', '--json', '--model', model]
    assert cli.main([*command, '--out', str(tmp_path / 'out')]) == 0
    figures = json.loads(capsys.readouterr().out)
    content = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert content['figures']['explicit']['count'] >= figures['explicit']['count']
    shares = content['more_figures']
    assert shares['present or absent, correct'] == figures['presence_accuracy']
    assert shares['expected calibration error of the scores'] == figures['ece']
    assert all((tmp_path / 'out' / case['image']).is_file() for case in content['cases'])
    assert (tmp_path / 'out' / 'report.html').read_text().count('<figure') == 9


def zipped_test_set(tmp_path, queries):
    """A zip of two white images, each with the same queries."""
    path = tmp_path / 'test_set.zip'
    image, ids = (cv2.imencode('.png', pixels)[1].tobytes() for pixels in (IMAGE, IMAGE[..., 0]))
    images = []
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('a', 'b'):
            archive.writestr(f'{name}.png', image)
            archive.writestr(f'{name}_ids.png', ids)
            images += [{'image': f'{name}.png', 'ids': f'{name}_ids.png', 'queries': queries}]
        archive.writestr('queries.json', json.dumps(images))
    return path


QUERY = {'category': 'explicit', 'text': 'find all', 'targets': [255]}


def test_cases_of_a_zipped_test_set_have_names_of_their_own(tmp_path):
    queries = tabletop.read_test_set(zipped_test_set(tmp_path, [QUERY] * 3))
    segmenter = Segmenter(scripted_backend.ScriptedBackend())
    cases = list(tabletop.run_test_set(segmenter, queries, tmp_path / 'images'))
    names = ['a.0', 'a.1', 'a.2', 'b.0', 'b.1', 'b.2']
    assert [case.name for case in cases] == names
    assert sorted(path.stem for path in (tmp_path / 'images').iterdir()) == names


def test_cases_of_the_bundled_test_set_have_names_of_their_own():
    queries = tabletop.read_test_set(TEST_SETS / 'test.zip')[:300]
    cases = list(tabletop.run_test_set(Segmenter(scripted_backend.ScriptedBackend()), queries))
    assert len({case.group for case in cases}) > 10
    assert len(cases) == len(queries) == len({case.name for case in cases})


@pytest.mark.parametrize('kind', ['images', 'bag', 'scenes'])
def test_an_interrupted_run_leaves_no_report_of_an_earlier_model(kind, images, tmp_path):
    """Its images would show another model than its figures."""
    out, model = tmp_path / 'out', tmp_path / 'script.json'
    if kind == 'images':
        data = [str(images), '--ask', 'find {}']
    elif kind == 'bag':
        frames = bags.read_images(SAMPLE / 'bag', TOPIC)
        bag = write(tmp_path / 'bag', [frame for frame, _ in zip(frames, range(2), strict=False)])
        (tmp_path / 'commands.yaml').write_text('- find the mug\n')
        data = [str(bag), '--every', '1', '--commands', str(tmp_path / 'commands.yaml')]
    else:
        data = ['--test-set', str(zipped_test_set(tmp_path, [QUERY]))]
    command = ['evaluate', kind, *data, '--out', str(out), '--model', f'scripted:{model}']
    model.write_text(json.dumps({'': {}, 'find': {'masks': 'all'}}))
    assert cli.main(command) == 0
    files = {name: (out / name).read_bytes() for name in ('report.json', 'cases.csv')}
    model.write_text(json.dumps({'': {}, 'load': 'raise MemoryError'}))
    with pytest.raises(MemoryError):
        cli.main(command)
    assert files == {name: (out / name).read_bytes() for name in files}
    assert kind != 'bag' or (out / 'answers_bag').is_dir()  # nothing has changed
    model.write_text(json.dumps({'': {'run': 'raise SystemExit'}}))
    with pytest.raises(SystemExit):
        cli.main(command)
    names = ('report.json', 'report.html', 'timings.json', 'cases.csv')
    assert not any((out / name).exists() for name in names)


@pytest.mark.parametrize('history', [['broken'], ['found', 'broken'], ['broken', 'found']])
def test_a_query_fails_if_its_history_fails(history, tmp_path):
    replies = {**scripted_backend.REPLIES, 'broken': {'failure': 'no memory'}}
    backend = scripted_backend.ScriptedBackend(replies)
    path = zipped_test_set(tmp_path, [{**QUERY, 'history': history}])
    case, _ = tabletop.run_test_set(Segmenter(backend), tabletop.read_test_set(path))
    reason = "the earlier query 'broken' failed: RuntimeError: no memory"
    assert (case.status, case.query, case.reason) == ('FAILED', 'find all', reason)
    assert 'find all' not in [query.text for query, _ in backend.calls]


def test_a_failed_turn_of_a_bag_is_not_in_the_dialogue(tmp_path):
    (frame,) = itertools.islice(bags.read_images(SAMPLE / 'bag', TOPIC), 1)
    bag = write(tmp_path / 'bag', [frame])
    turns = ('found', 'broken', 'uncancellable')
    commands = [Command(i, text, dialogue='d', frame=0) for i, text in enumerate(turns)]
    backend = scripted_backend.ScriptedBackend(
        {**scripted_backend.REPLIES, 'broken': {'failure': 'no memory'}}
    )
    judge = FrameJudge(None, tmp_path / 'images')
    cases = list(evaluate_offline(Segmenter(backend), bag, commands, judge, progress=False))
    assert [case.status for case in cases] == ['FOUND', 'FAILED', 'NOT_FOUND']
    last_query, _ = backend.calls[-1]
    assert [turn.query for turn in last_query.dialogue.turns] == ['found']


def test_the_report_of_scenes_has_the_printed_figures(tmp_path, capsys):
    """gIoU is printed over present objects only; the report has it over all, too."""
    queries = [QUERY, {**QUERY, 'targets': []}, {**QUERY, 'category': 'use'}]
    model = scripted(tmp_path, **{'': {'masks': 'all'}})
    command = ['evaluate', 'scenes', '--test-set', str(zipped_test_set(tmp_path, queries))]
    assert cli.main([*command, '--json', '--model', model, '--out', str(tmp_path / 'out')]) == 0
    printed = json.loads(capsys.readouterr().out)
    content = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert content['figures']['explicit']['giou'] == pytest.approx(0.5)
    for category in ('explicit', 'use', 'implicit'):
        for key, label in (('giou', 'gIoU'), ('ciou', 'cIoU')):
            row = f'{label} of present objects, {category}'
            assert content['more_figures'][row] == printed[category][key] == pytest.approx(1)
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert 'gIoU of present objects, explicit' in page


def test_the_json_of_scenes_names_the_test_set_and_counts_failures(tmp_path, capsys):
    path = zipped_test_set(tmp_path, [QUERY, {**QUERY, 'text': 'break'}])
    model = scripted(tmp_path, **{'break': {'failure': 'broken'}})
    command = ['evaluate', 'scenes', '--test-set', str(path), '--json', '--model', model]
    assert cli.main(command) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed['test_set'], printed['failed']) == (str(path), 2)
    assert 'split' not in printed


def test_failed_queries_are_not_in_the_plot_of_times():
    assert html_plots.latency([{}, {}]) is None
    assert html_plots.latency([{}, {'clip': 2.0}]) == html_plots.latency([{'clip': 2.0}])


def test_a_test_set_without_a_category_for_the_threshold_is_refused_before_the_model_is_loaded(
    tmp_path, capsys
):
    model = tmp_path / 'model'
    model.mkdir()
    (model / 'config.json').write_text('{"model_type": "lisa_ros"}')  # and no weights
    command = ['calibrate', str(model), '--test-set']
    unseen = zipped_test_set(tmp_path, [{**QUERY, 'category': 'unseen_objects'}])
    assert cli.main([*command, str(unseen)]) == 1
    error = capsys.readouterr().err
    assert 'has queries of unseen_objects, none of explicit, attributes' in error
    assert 'lisa-ros scenes --split val' in error
    mixed = zipped_test_set(tmp_path, [{**QUERY, 'category': 'unseen_objects'}, QUERY])
    assert cli.main([*command, str(mixed)]) == 1
    assert 'which the confidence threshold' not in capsys.readouterr().err  # the weights lack


def test_a_test_set_in_the_old_format_is_named(tmp_path):
    (tmp_path / 'exam.json').write_text('[]')
    with pytest.raises(DataError, match=r'exam\.json .*run `lisa-ros scenes` again'):
        tabletop.read_test_set(tmp_path)


def test_a_traceback_is_logged_once(caplog):
    backend = scripted_backend.ScriptedBackend({'': {'failure': 'a bug'}})
    answering._logged_places.clear()  # other tests may have logged the same one
    for _ in range(3):
        assert answer_query(Segmenter(backend), IMAGE, 'x').status is Status.FAILED
    (record,) = caplog.records
    assert record.exc_info[0] is RuntimeError
    assert 'scripted_backend.py' in caplog.text


def test_a_query_reaches_the_backend_with_its_dialogue_and_options():
    backend = scripted_backend.ScriptedBackend()
    options = InferenceOptions(max_new_tokens=7)
    segmenter = Segmenter(backend, options)
    first = answer_query(segmenter, IMAGE, 'found')
    dialogue = Dialogue().extended(first)
    answer_query(segmenter, IMAGE, 'and now?', dialogue)
    (_, first_options), (query, second_options) = backend.calls
    assert first_options == second_options == options
    assert (query.text, query.dialogue) == ('and now?', dialogue)


def test_a_failed_answer_has_the_size_of_its_image():
    backend = scripted_backend.ScriptedBackend({'': {'failure': 'broken'}})
    result = answer_query(Segmenter(backend), IMAGE, 'x')
    assert (result.status, result.reason) == (Status.FAILED, 'RuntimeError: broken')
    assert result.masks.shape == (0, 6, 8)


def test_a_backend_without_teacher_forcing_is_refused():
    segmenter = Segmenter(scripted_backend.ScriptedBackend())
    with pytest.raises(SettingsError, match='ScriptedBackend cannot be teacher forced'):
        teacher_forced_answer(segmenter, IMAGE, 'x', '[SEG].')
