# SPDX-License-Identifier: Apache-2.0
"""Labelled images are evaluated in both modes; reports are reproducible and can be compared."""

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
from golden import backend, segmenter
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets.lisa_templates import validation_question
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import QueryError
from lisa_ros.evaluation import benchmarks, report, tabletop
from lisa_ros.evaluation.cases import Mode, case_from_result
from lisa_ros.evaluation.comparison import ComparedRun, compare
from lisa_ros.evaluation.error_overlay import write_error_overlay
from lisa_ros.evaluation.report_files import read_cases, read_report
from lisa_ros.model.image_processing import clip_pixels, sam_input
from lisa_ros.model.lisa import LisaBatch
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.prompts import training_ids
from lisa_ros.resources import TEST_SETS
from lisa_ros.results import Turn

TEST_SET = TEST_SETS / 'test.zip'


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """Four rendered tables as images with masks, and one image in ReasonSeg's format."""
    folder = tmp_path_factory.mktemp('tables')
    questions = [
        q for q in tabletop.read_test_set(TEST_SET) if q.category == 'explicit' and q.targets
    ]
    for number, question in enumerate(questions[:4]):
        (folder / f't{number}.jpg').write_bytes(question.image.read_bytes())
        ids = np.asarray(Image.open(question.ids.open('rb')))
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


def run(labelled, out, *arguments):
    return cli.main(['evaluate', 'images', str(labelled), '--out', str(out), *arguments])


@pytest.fixture(scope='module')
def reports(labelled, tmp_path_factory):
    """The same run twice, and a teacher-forced one."""
    out = tmp_path_factory.mktemp('reports')
    for name, *arguments in (('a',), ('b',), ('forced', '--mode', 'teacher_forced')):
        assert run(labelled, out / name, *arguments) == 0
    return out


# ---- teacher forcing


def test_teacher_forced_masks_equal_those_of_the_forward_pass():
    lisa = backend(256)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    result = lisa.teacher_forced(image, ' What is it in this image?', '[SEG] and [SEG].')
    assert result.masks.shape == (2, 60, 80)
    turns = [Turn(' What is it in this image?', '[SEG] and [SEG].')]
    ids, labels = training_ids(lisa.tokenizer, lisa.template, turns)
    sam = sam_input(image, lisa.model.config.sam_size)
    batch = LisaBatch(
        clip_pixels=torch.from_numpy(clip_pixels(image, lisa.clip_preprocessing))[None],
        sam_pixels=torch.from_numpy(sam.pixels)[None],
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.bool),
        image_index=torch.tensor([0]),
    )
    with torch.inference_mode():
        out = lisa.model(batch)
        expected = lisa.model.postprocess(out.mask_logits, sam.resized, (60, 80))
    # rows of another length add up in another order: the golden parity's tolerance
    np.testing.assert_allclose(result.mask_logits, expected.numpy(), atol=1e-3)


def test_teacher_forcing_ignores_the_threshold():
    image, strict = np.zeros((40, 40, 3), np.uint8), InferenceOptions(confidence_threshold=1.0)
    assert len(backend(256).teacher_forced(image, 'What?', options=strict).masks) == 1


def test_questions_are_those_of_the_original_evaluation(labelled):
    """utils/dataset.py, ValDataset: the leading space is from there."""
    empty, table, *_ = sorted(read_folder(labelled), key=lambda image: image.path.stem)
    assert (
        validation_question(empty.queries[0])
        == ' Where is the wall? Please output segmentation mask.'
    )
    name = table.queries[0].text
    expected = f' What is {name} in this image? Please output segmentation mask.'
    assert validation_question(table.queries[0]) == expected


# ---- reports


def test_a_run_writes_its_figures_and_the_same_ones_twice(reports, labelled):
    content = json.loads((reports / 'a' / 'report.json').read_text())
    assert (reports / 'a' / 'report.json').read_bytes() == (
        reports / 'b' / 'report.json'
    ).read_bytes()
    assert content['mode'] == 'generate'
    assert content['figures']['all']['count'] == 6
    assert {case['category'] for case in content['cases']} == {'long', 'short'}
    assert content['figures']['short']['count'] == 4
    ious = [case['iou'] for case in content['cases']]
    assert content['figures']['all']['giou'] == pytest.approx(np.mean(ious))
    low, high = content['figures']['all']['giou_interval']
    assert low <= content['figures']['all']['giou'] <= high
    for case in content['cases']:
        assert Image.open(reports / 'a' / case['image']).size == (320, 240)
    rows = list(csv.DictReader((reports / 'a' / 'cases.csv').open()))
    assert [float(row['iou']) for row in rows] == pytest.approx(ious, abs=1e-6)
    timings = json.loads((reports / 'a' / 'timings.json').read_text())
    assert timings['cases'].keys() == {case['name'] for case in content['cases']}
    assert timings['machine']['torch'] == torch.__version__
    assert timings['delays']['to the answer [s]']['p50'] > 0
    assert {'clip [s]', 'tokens [s]', 'sam [s]'} < timings['delays'].keys()
    # a mask is ready before its answer ends, and every stage is part of the answer
    for case in read_cases(read_report(reports / 'a'), reports / 'a', ''):
        assert bool(len(case.scores)) == (case.time_to_first_mask is not None)
        assert 0 < max(case.timings.values()) < case.total_time
        assert (case.time_to_first_mask or 0) <= case.total_time


def test_a_teacher_forced_run_names_its_mode_and_has_a_mask_for_every_query(reports):
    content = json.loads((reports / 'forced' / 'report.json').read_text())
    assert content['mode'] == 'teacher_forced'
    assert all(len(case['scores']) == 1 for case in content['cases'])
    assert content['figures']['all']['t_acc'] is None  # masks were forced
    assert 'teacher_forced' in (reports / 'forced' / 'report.html').read_text()


def test_first_only_asks_one_query_per_image(labelled, tmp_path, capsys):
    assert run(labelled, tmp_path, '--first-only', '--json') == 0
    assert json.loads(capsys.readouterr().out)['figures']['all']['count'] == 5


def test_ask_is_the_template_of_the_questions(labelled, tmp_path, capsys):
    assert run(labelled, tmp_path, '--ask', 'find the {}', '--json') == 0
    short = json.loads(capsys.readouterr().out)['figures']['short']
    assert short['giou'] > 0.2  # lisa-tabletop was trained on this template, not on LISA's
    cases = json.loads((tmp_path / 'report.json').read_text())['cases']
    assert all(case['query'].startswith('find the ') for case in cases)
    assert run(labelled, tmp_path, '--limit', '1', '--ask', 'a {x} of {} or {') == 0
    assert run(labelled, tmp_path, '--ask', 'find it') == 1
    assert 'must contain {}' in capsys.readouterr().err


def test_published_figures_are_shown_only_beside_comparable_runs(labelled, tmp_path):
    folder = tmp_path / 'ReasonSeg' / 'val'
    shutil.copytree(labelled, folder)
    page = tmp_path / 'out' / 'report.html'
    assert run(folder, tmp_path / 'out', '--first-only') == 0
    assert 'published: LISA-7B (fine-tuned)' in page.read_text()
    assert '52.9 %' in page.read_text()
    for other in (['--limit', '1'], ['--ask', 'find the {}', '--first-only'], []):
        assert run(folder, tmp_path / 'out', *other) == 0
        assert 'published:' not in page.read_text()  # the paper used other prompts
    assert benchmarks.published('refer:data/refer_seg/refcocog:val:google') == {}
    assert benchmarks.published('refer:data/refer_seg/refcoco+:testA')['LISA-7B'] == (None, 67.4)
    assert benchmarks.published(str(labelled)) == {}


def test_broken_files_are_reported_and_the_others_are_evaluated(labelled, tmp_path, capsys):
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
    add('huge', [target], (8000, 5000))
    add('cut', [target])
    whole = (folder / 'cut.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])  # its header is intact
    (folder / 'alone.json').write_text(json.dumps({**labels, 'shapes': [target]}))
    assert run(folder, tmp_path / 'out') == 1
    assert 'alone.json: there is no image' in capsys.readouterr().err
    assert run(folder, tmp_path / 'out', '--skip-broken', '--json') == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed['figures']['all']['count'] == 7  # the six from before and the huge one
    assert len(printed['broken']) == 5
    for name in ('outside', 'ignored', 'nothing', 'cut', 'alone'):
        (message,) = [text for text in printed['broken'] if f'{name}.' in text.split(':')[0]]
        assert message in read_report(tmp_path / 'out')['broken']
    assert (
        'Files or bags that could not be used (5)'
        in (tmp_path / 'out' / 'report.html').read_text()
    )


# ---- the page


def test_the_page_has_no_external_resources(reports):
    page = (reports / 'a' / 'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)
    assert 'http' not in page
    assert page.count('<figure') == 6
    assert 'name="viewport"' in page


class ElementParser(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


def test_hostile_text_is_escaped(reports, tmp_path):
    hostile = '</script><script>alert(1)</script>"\'&'
    result = segmenter(256).segment(np.zeros((9, 9, 3), np.uint8), 'x')
    for name in ('a', 'b'):
        image_path = tmp_path / name / 'images' / 'x.jpg'
        write_error_overlay(image_path, np.zeros((9, 9, 3), np.uint8), result, np.zeros((9, 9)))
        case = case_from_result(
            result,
            np.zeros((9, 9)),
            group=hostile,
            number=0,
            category=hostile,
            expression=hostile,
            image=image_path,
        )
        case = replace(case, query=hostile, answer=hostile)
        run_of = report.Run(hostile, Mode.GENERATE, {hostile: hostile}, [case], [hostile])
        report.write(run_of, tmp_path / name)
    runs = [ComparedRun(f'{hostile}{name}', tmp_path / name) for name in ('a', 'b')]
    compare(runs, tmp_path / 'c', hostile)
    known = {'src', 'alt', 'loading', 'id', 'class', 'value', 'style'}
    for name in ('a', 'c'):
        elements = ElementParser((tmp_path / name / 'report.html').read_text()).elements
        assert [tag for tag, _ in elements].count('script') == 2  # the data and the page's own
        images = [attributes for tag, attributes in elements if tag == 'img']
        assert images
        assert all(image['alt'] == hostile and image.keys() <= known for image in images)
        (page,) = [attributes for tag, attributes in elements if tag == 'figure']
        assert page.keys() == {'id'}


@pytest.mark.parametrize('width', [360, 1400])
def test_a_browser_opens_the_page_without_an_error_or_a_request(reports, width, tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('needs Chromium')
    command = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--no-first-run',
        '--enable-logging=stderr',
        f'--user-data-dir={tmp_path}', f'--window-size={width},2000',
    ]  # fmt: skip
    address = (reports / 'a' / 'report.html').as_uri()
    shown = subprocess.run(
        [*command, '--dump-dom', address], capture_output=True, text=True, check=True
    )
    assert '6 of 6' in shown.stdout  # the script ran to its end
    assert 'CONSOLE' not in shown.stderr
    subprocess.run([*command, f'--screenshot={tmp_path}/page.png', address], check=True)
    assert Image.open(tmp_path / 'page.png').size[0] == width


# ---- two runs


def test_two_runs_are_compared(reports, tmp_path, capsys):
    command = ['evaluate', 'compare', str(reports / 'a'), str(reports / 'forced')]
    assert cli.main([*command, '--out', str(tmp_path)]) == 0
    content = json.loads((tmp_path / 'compare.json').read_text())
    first, second = (read_report(reports / name) for name in ('a', 'forced'))
    (difference,) = content['differences']
    row = difference['figures']['all']
    changes = [second['names'][n]['iou'] - first['names'][n]['iou'] for n in first['names']]
    assert row['difference'] == pytest.approx(np.mean(changes))
    assert row['count'] == 6
    assert [change for _, change in difference['changes']] == pytest.approx(sorted(changes))
    assert difference['left_out'] == [0, 0]
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<img') == 12
    assert 'The modes of the runs differ' in page
    assert 'report.html' in capsys.readouterr().out


def test_runs_without_a_common_query_are_not_compared(reports, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(reports / 'a', other)
    content = json.loads((other / 'report.json').read_text())
    for case in content['cases']:
        case['name'] += '?'
    (other / 'report.json').write_text(json.dumps(content))
    timings = json.loads((other / 'timings.json').read_text())
    for key in ('cases', 'to_mask'):
        timings[key] = {f'{name}?': value for name, value in timings[key].items()}
    (other / 'timings.json').write_text(json.dumps(timings))
    command = ['evaluate', 'compare', str(reports / 'a')]
    assert cli.main([*command, str(other), '--out', str(tmp_path / 'out')]) == 1
    assert 'no query with ground truth in common' in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path), '--out', str(tmp_path / 'out')]) == 1
    assert 'no evaluation here' in capsys.readouterr().err
    for case in content['cases']:
        del case['iou']
    (other / 'report.json').write_text(json.dumps(content))
    assert cli.main([*command, str(other), '--out', str(tmp_path / 'out')]) == 1
    assert 'report.json: cases[0].iou is missing' in capsys.readouterr().err


def test_runs_with_different_question_templates_are_compared(labelled, reports, tmp_path):
    assert run(labelled, tmp_path / 'b', '--ask', 'find the {}') == 0
    command = ['evaluate', 'compare', str(reports / 'a'), str(tmp_path / 'b')]
    shutil.rmtree(tmp_path / 'b' / 'images')  # images may have been deleted
    assert cli.main([*command, '--out', str(tmp_path / 'c')]) == 0
    content = json.loads((tmp_path / 'c' / 'compare.json').read_text())
    (difference,) = content['differences']
    assert difference['figures']['all']['count'] == 6
    both = [
        read_report(folder)['figures']['short']['giou']
        for folder in (reports / 'a', tmp_path / 'b')
    ]
    assert difference['figures']['short']['giou'] == pytest.approx(both)
    assert difference['figures']['short']['difference'] == pytest.approx(both[1] - both[0])


def test_reports_of_earlier_versions_are_compared(reports, tmp_path):
    earlier = shutil.copytree(reports / 'a', tmp_path / 'earlier')
    content = json.loads((earlier / 'report.json').read_text())
    names = {
        'category': 'sort',
        'expression': 'about',
        'boundary_f': 'boundary',
        'image': 'picture',
    }
    added = {'reason', 'history', 'expected_phrases'}
    content['cases'] = [
        {names.get(key, key): value for key, value in case.items() if key not in added}
        for case in content['cases']
    ]
    (earlier / 'report.json').write_text(json.dumps(content))
    runs = [ComparedRun('earlier', earlier), ComparedRun('a', reports / 'a')]
    (difference,) = compare(runs, tmp_path / 'out', 'earlier and now')['differences']
    assert difference['figures']['all']['difference'] == 0
    assert difference['figures'].keys() == {'all', 'long', 'short'}
    cases = read_cases(read_report(earlier), earlier, 'x/')
    originals = read_cases(read_report(reports / 'a'), earlier, 'x/')
    assert cases == originals


def test_ignored_pixels_are_drawn_without_colour(tmp_path):
    result = backend(256).teacher_forced(np.full((20, 20, 3), 200, np.uint8), 'x')
    result = replace(result, masks=np.ones((1, 20, 20), bool))
    target = np.zeros((20, 20), np.uint8)
    target[:10], target[15:] = 1, 255
    write_error_overlay(tmp_path / 'a.jpg', np.full((20, 20, 3), 200, np.uint8), result, target)
    drawn = np.asarray(Image.open(tmp_path / 'a.jpg')).astype(int)
    assert drawn[3, 10, 1] > drawn[3, 10, 0] + 40  # green: true positive
    assert drawn[12, 10, 0] > drawn[12, 10, 2] + 40  # red: false positive
    assert np.ptp(drawn[18, 10]) < 12  # grey: ignored


def test_a_teacher_forced_query_that_is_too_long_is_refused():
    lisa = backend(256)
    with pytest.raises(QueryError, match='shorten them'):
        lisa.teacher_forced(np.zeros((9, 9, 3), np.uint8), 'what is it ' * 2000)


def test_an_out_folder_that_cannot_be_created_ends_before_the_model_is_loaded(
    labelled, tmp_path, capsys
):
    (tmp_path / 'file').write_text('')
    assert run(labelled, tmp_path / 'file', '--model', 'nowhere') == 1
    assert 'cannot be created' in capsys.readouterr().err
