# SPDX-License-Identifier: Apache-2.0
"""Evaluations run with any Backend: a scripted one gives answers, fails once, or returns NaN."""

import json

import numpy as np
import pytest
import scripted_backend
from bag_kinds import TOPIC, write
from PIL import Image

from lisa_ros import cli
from lisa_ros.errors import SettingsError
from lisa_ros.evaluation.answering import answer_query, teacher_forced_answer
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages import bag as bags
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SAMPLE
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
    assert (failed['status'], failed['iou'], failed['reason']) == ('FAILED', None, reason)
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
