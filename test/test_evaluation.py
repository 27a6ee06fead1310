# SPDX-License-Identifier: Apache-2.0
"""Labelled pictures are asked in both modes; reports tell all, twice the same, and compare."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from golden import segmenter
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets.lisa_templates import validation_question
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import QueryError
from lisa_ros.evaluation import benchmarks, report, tabletop
from lisa_ros.evaluation.cases import case_of, draw
from lisa_ros.model.lisa import LisaBatch
from lisa_ros.perception.prompts import training_ids
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import TEST_SETS
from lisa_ros.results import Turn

EXAM = TEST_SETS / 'test.zip'


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """Four rendered tables as a folder of pictures with masks, and one in ReasonSeg's form."""
    folder = tmp_path_factory.mktemp('tables')
    questions = [q for q in tabletop.read_test_set(EXAM) if q.category == 'explicit' and q.targets]
    for number, question in enumerate(questions[:4]):
        (folder / f't{number}.jpg').write_bytes(question.image.read_bytes())
        ids = tabletop._read(question.ids, 0)
        (folder / f't{number}').mkdir()
        mask = np.isin(ids, question.targets).astype(np.uint8) * 255
        name = question.text.removesuffix('.').removesuffix('?').split(' the ')[-1]
        name = name.replace(' in this image', '')
        Image.fromarray(mask).save(folder / f't{number}' / f'{name}.png')
    Image.new('RGB', (320, 240), (90, 60, 40)).save(folder / 'empty.png')
    shapes = [
        {'label': 'target', 'points': [[10, 10], [60, 10], [60, 50]]},
        {'label': 'ignore', 'points': [[100, 100], [160, 100], [160, 150]]},
    ]
    texts = {'text': ['Where is the wall?', 'What is brown?'], 'is_sentence': True}
    (folder / 'empty.json').write_text(json.dumps({**texts, 'shapes': shapes}))
    return folder


def run(labelled, out, *more):
    return cli.main(['evaluate', 'pictures', str(labelled), '--out', str(out), *more])


@pytest.fixture(scope='module')
def reports(labelled, tmp_path_factory):
    """The same run twice, and one of the other mode."""
    out = tmp_path_factory.mktemp('reports')
    for name, *more in (('a',), ('b',), ('forced', '--mode', 'teacher_forced')):
        assert run(labelled, out / name, *more) == 0
    return out


# ---- the given answer


def test_a_given_answers_mask_is_that_of_the_forward_pass():
    lisa = segmenter(256)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    result = lisa.teacher_forced(image, ' What is it in this image?', '[SEG] and [SEG].')
    assert result.masks.shape == (2, 60, 80)
    turns = [Turn(' What is it in this image?', '[SEG] and [SEG].')]
    ids, labels = training_ids(lisa.tokenizer, lisa.template, turns)
    picture = lisa._picture
    batch = LisaBatch(
        clip_pixels=torch.from_numpy(benchmarks_clip(lisa, image))[None],
        sam_pixels=torch.from_numpy(picture.sam.pixels)[None],
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.bool),
        image_index=torch.tensor([0]),
    )
    with torch.inference_mode():
        out = lisa.model(batch)
        wanted = lisa.model.postprocess(out.mask_logits, picture.sam.resized, (60, 80))
    # rows of another length add up in another order: the golden parity's tolerance
    np.testing.assert_allclose(result.mask_logits, wanted.numpy(), atol=1e-3)


def benchmarks_clip(lisa, image):
    from lisa_ros.model.image_processing import clip_pixels

    return clip_pixels(image, lisa.clip_recipe)


def test_no_threshold_is_put_to_a_given_answer():
    lisa = segmenter(256)
    image = np.zeros((40, 40, 3), np.uint8)
    strict = Segmenter(
        lisa.model, lisa.tokenizer, lisa.clip_recipe, template=lisa.template,
        confidence_threshold=1.0,
    )  # fmt: skip
    assert len(strict.teacher_forced(image, 'What?').masks) == 1


def test_questions_are_those_of_the_original_evaluation(labelled):
    """utils/dataset.py, ValDataset: the space after the picture is theirs."""
    empty, table, *_ = sorted(read_folder(labelled), key=lambda one: one.path.stem)
    assert (
        validation_question(empty.queries[0])
        == ' Where is the wall? Please output segmentation mask.'
    )
    name = table.queries[0].text
    wanted = f' What is {name} in this image? Please output segmentation mask.'
    assert validation_question(table.queries[0]) == wanted


# ---- reports


def test_a_run_tells_its_figures_and_the_same_ones_twice(reports, labelled):
    plain = json.loads((reports / 'a' / 'report.json').read_text())
    assert (reports / 'a' / 'report.json').read_bytes() == (
        reports / 'b' / 'report.json'
    ).read_bytes()
    assert plain['mode'] == 'generate'
    assert plain['figures']['all']['count'] == 6
    assert {case['sort'] for case in plain['cases']} == {'long', 'short'}
    assert plain['figures']['short']['count'] == 4
    ious = [case['iou'] for case in plain['cases']]
    assert plain['figures']['all']['giou'] == pytest.approx(np.mean(ious))
    low, high = plain['figures']['all']['giou_interval']
    assert low <= plain['figures']['all']['giou'] <= high
    for case in plain['cases']:
        assert Image.open(reports / 'a' / case['picture']).size == (320, 240)
    rows = list(csv.DictReader((reports / 'a' / 'cases.csv').open()))
    assert [float(row['iou']) for row in rows] == pytest.approx(ious, abs=1e-6)
    timings = json.loads((reports / 'a' / 'timings.json').read_text())
    assert timings['cases'].keys() == {case['name'] for case in plain['cases']}
    assert timings['machine']['torch'] == torch.__version__
    # a mask comes before its answer's last word (answers without one may be quicker than either),
    # and every stage has a share of the answer
    whole, mask = (
        timings['delays']['to the answer [s]'],
        timings['delays']['to the first mask [s]'],
    )
    assert 0 < mask['p50'] <= mask['p99'] < whole['p99']
    assert {'clip [s]', 'tokens [s]', 'sam [s]'} < timings['delays'].keys()
    for stage, spent in timings['delays'].items():
        assert spent['p99'] <= whole['p99'], stage


def test_the_mode_is_named_and_gives_a_mask_to_every_question(reports):
    plain = json.loads((reports / 'forced' / 'report.json').read_text())
    assert plain['mode'] == 'teacher_forced'
    assert all(len(case['scores']) == 1 for case in plain['cases'])
    assert plain['figures']['all']['t_acc'] is None  # masks were forced
    assert 'teacher_forced' in (reports / 'forced' / 'report.html').read_text()


def test_only_the_first_query_is_asked_where_that_is_wanted(labelled, tmp_path, capsys):
    assert run(labelled, tmp_path, '--first-only', '--json') == 0
    assert json.loads(capsys.readouterr().out)['figures']['all']['count'] == 5


def test_a_query_is_put_in_words_of_ones_own(labelled, tmp_path, capsys):
    assert run(labelled, tmp_path, '--ask', 'find the {}', '--json') == 0
    short = json.loads(capsys.readouterr().out)['figures']['short']
    assert short['giou'] > 0.2  # lisa-tabletop has learnt these words, and not LISA's
    cases = json.loads((tmp_path / 'report.json').read_text())['cases']
    assert all(case['query'].startswith('find the ') for case in cases)
    assert run(labelled, tmp_path, '--limit', '1', '--ask', 'a {x} of {} or {') == 0
    assert run(labelled, tmp_path, '--ask', 'find it') == 1
    assert 'has no {} for what is asked for' in capsys.readouterr().err


def test_published_figures_stand_beside_ours(labelled, tmp_path):
    folder = tmp_path / 'ReasonSeg' / 'val'
    shutil.copytree(labelled, folder)
    page = tmp_path / 'out' / 'report.html'
    assert run(folder, tmp_path / 'out', '--first-only') == 0
    assert 'published: LISA-7B (fine-tuned)' in page.read_text()
    assert '52.9 %' in page.read_text()
    for other in (['--limit', '1'], ['--ask', 'find the {}', '--first-only'], []):
        assert run(folder, tmp_path / 'out', *other) == 0
        assert 'published:' not in page.read_text()  # the paper asked otherwise
    assert benchmarks.published('refer:data/refer_seg/refcocog:val:google') == {}
    assert benchmarks.published('refer:data/refer_seg/refcoco+:testA')['LISA-7B'] == (None, 67.4)
    assert benchmarks.published(str(labelled)) == {}


def test_hostile_files_are_named_and_the_rest_is_told(labelled, tmp_path, capsys):
    folder = tmp_path / 'hostile'
    shutil.copytree(labelled, folder)
    target = {'label': 'target', 'points': [[10, 10], [60, 10], [60, 50]]}
    labels = {'text': ['What is it?'], 'is_sentence': True}

    def add(name, shapes, size=(320, 240)):
        Image.new('RGB', size, (90, 60, 40)).save(folder / f'{name}.jpg')
        (folder / f'{name}.json').write_text(json.dumps({**labels, 'shapes': shapes}))

    add('outside', [{'label': 'target', 'points': [[900, 9], [990, 9], [990, 90]]}])
    add('ignored', [{**target, 'label': 'ignore'}])
    add('nothing', [target])
    (folder / 'nothing.jpg').write_bytes(b'')
    add('vast', [target], (8000, 5000))
    add('cut', [target])
    whole = (folder / 'cut.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])  # its head is sound
    (folder / 'alone.json').write_text(json.dumps({**labels, 'shapes': [target]}))
    assert run(folder, tmp_path / 'out') == 1
    assert 'alone.json: no picture' in capsys.readouterr().err
    assert run(folder, tmp_path / 'out', '--skip-broken', '--json') == 0
    told = json.loads(capsys.readouterr().out)
    assert told['figures']['all']['count'] == 7  # the six of before, and the vast one
    assert len(told['broken']) == 5
    for name in ('outside', 'ignored', 'nothing', 'cut', 'alone'):
        (one,) = [text for text in told['broken'] if f'{name}.' in text.split(':')[0]]
        assert one in report.read(tmp_path / 'out')['broken']
    assert 'What could not be used (5)' in (tmp_path / 'out' / 'report.html').read_text()


# ---- the page


def test_the_page_needs_nothing_beside_it(reports):
    page = (reports / 'a' / 'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)
    assert 'http' not in page
    assert page.count('<figure') == 6
    assert 'name="viewport"' in page


class Elements(HTMLParser):
    """Which elements a page has, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_words_of_people_and_models_cannot_break_the_page(reports, tmp_path):
    evil = '</script><script>alert(1)</script>"\'&'
    result = segmenter(256).segment(np.zeros((9, 9, 3), np.uint8), 'x')
    for name in ('a', 'b'):
        picture = tmp_path / name / 'pictures' / 'x.jpg'
        draw(picture, np.zeros((9, 9, 3), np.uint8), result, np.zeros((9, 9)))
        case = case_of(evil, 0, evil, evil, result, np.zeros((9, 9)), picture)
        case = replace(case, query=evil, answer=evil)
        run_of = report.Run(evil, 'generate', {evil: evil}, [case], [evil])
        report.write(run_of, tmp_path / name)
    report.compare(tmp_path / 'a', tmp_path / 'b', tmp_path / 'c')
    known = {'src', 'alt', 'loading', 'id', 'class', 'value', 'style'}
    for name in ('a', 'c'):
        seen = Elements((tmp_path / name / 'report.html').read_text()).seen
        assert [tag for tag, _ in seen].count('script') == 2  # the data and our own
        pictures = [given for tag, given in seen if tag == 'img']
        assert pictures
        assert all(given['alt'] == evil and given.keys() <= known for given in pictures)
        (page,) = [given for tag, given in seen if tag == 'figure']
        assert page.keys() == {'id'}


@pytest.mark.parametrize('width', [360, 1400])
def test_a_browser_opens_the_page_without_an_error_or_a_request(reports, width, tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('needs Chromium')
    given = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--no-first-run',
        '--enable-logging=stderr',
        f'--user-data-dir={tmp_path}', f'--window-size={width},2000',
    ]  # fmt: skip
    address = (reports / 'a' / 'report.html').as_uri()
    shown = subprocess.run(
        [*given, '--dump-dom', address], capture_output=True, text=True, check=True
    )
    assert '6 of 6' in shown.stdout  # the script has run to its end
    assert 'CONSOLE' not in shown.stderr
    subprocess.run([*given, f'--screenshot={tmp_path}/page.png', address], check=True)
    assert Image.open(tmp_path / 'page.png').size[0] == width


# ---- two runs


def test_two_runs_are_held_against_each_other(reports, tmp_path, capsys):
    given = ['evaluate', 'compare', str(reports / 'a'), str(reports / 'forced')]
    assert cli.main([*given, '--out', str(tmp_path)]) == 0
    plain = json.loads((tmp_path / 'compare.json').read_text())
    one, other = (report.read(reports / name) for name in ('a', 'forced'))
    row = plain['figures']['all']
    wanted = [other['names'][n]['iou'] - one['names'][n]['iou'] for n in one['names']]
    assert row['difference'] == pytest.approx(np.mean(wanted))
    assert row['count'] == 6
    assert [change for _, change in plain['changes']] == pytest.approx(sorted(wanted))
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<img') == 12
    assert 'The modes differ' in page
    assert 'Left out, without a truth or a counterpart: 0 of A and 0 of B.' in page
    assert 'report.html' in capsys.readouterr().out


def test_runs_without_a_common_question_are_not_compared(reports, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(reports / 'a', other)
    plain = json.loads((other / 'report.json').read_text())
    for case in plain['cases']:
        case['name'] += '?'
    (other / 'report.json').write_text(json.dumps(plain))
    given = ['evaluate', 'compare', str(reports / 'a')]
    assert cli.main([*given, str(other), '--out', str(tmp_path / 'out')]) == 1
    assert 'no question with a truth in common' in capsys.readouterr().err
    assert cli.main([*given, str(tmp_path), '--out', str(tmp_path / 'out')]) == 1
    assert 'no evaluation here' in capsys.readouterr().err
    for case in plain['cases']:
        del case['iou']
    (other / 'report.json').write_text(json.dumps(plain))
    assert cli.main([*given, str(other), '--out', str(tmp_path / 'out')]) == 1
    assert "no evaluation here (KeyError('iou'))" in capsys.readouterr().err


def test_runs_that_asked_in_other_words_are_compared(labelled, reports, tmp_path):
    assert run(labelled, tmp_path / 'b', '--ask', 'find the {}') == 0
    given = ['evaluate', 'compare', str(reports / 'a'), str(tmp_path / 'b')]
    shutil.rmtree(tmp_path / 'b' / 'pictures')  # pictures may have been thrown away
    assert cli.main([*given, '--out', str(tmp_path / 'c')]) == 0
    plain = json.loads((tmp_path / 'c' / 'compare.json').read_text())
    assert plain['figures']['all']['count'] == 6
    both = [
        report.read(folder)['figures']['short']['giou']
        for folder in (reports / 'a', tmp_path / 'b')
    ]
    assert plain['figures']['short']['giou'] == pytest.approx(both)
    assert plain['figures']['short']['difference'] == pytest.approx(both[1] - both[0])


def test_what_is_ignored_is_drawn_as_it_is(tmp_path):
    result = segmenter(256).teacher_forced(np.full((20, 20, 3), 200, np.uint8), 'x')
    result = replace(result, masks=np.ones((1, 20, 20), bool))
    truth = np.zeros((20, 20), np.uint8)
    truth[:10], truth[15:] = 1, 255
    draw(tmp_path / 'a.jpg', np.full((20, 20, 3), 200, np.uint8), result, truth)
    shown = np.asarray(Image.open(tmp_path / 'a.jpg')).astype(int)
    assert shown[3, 10, 1] > shown[3, 10, 0] + 40  # green: found
    assert shown[12, 10, 0] > shown[12, 10, 2] + 40  # red: wrongly
    assert np.ptp(shown[18, 10]) < 12  # neither


def test_a_question_that_does_not_fit_is_refused():
    lisa = segmenter(256)
    with pytest.raises(QueryError, match='shorten them'):
        lisa.teacher_forced(np.zeros((9, 9, 3), np.uint8), 'what is it ' * 2000)


def test_a_folder_that_cannot_be_made_is_told_before_the_model_is_loaded(
    labelled, tmp_path, capsys
):
    (tmp_path / 'file').write_text('')
    assert run(labelled, tmp_path / 'file', '--model', 'nowhere') == 1
    assert 'cannot be made' in capsys.readouterr().err
