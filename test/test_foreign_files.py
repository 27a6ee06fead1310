# SPDX-License-Identifier: Apache-2.0
"""Files of other people are checked before they are used, and nothing in them leads elsewhere."""

import base64
import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets import registry
from lisa_ros.datasets.json_io import read_json
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.evaluation import report
from lisa_ros.evaluation.cases import Mode, case_from_result
from lisa_ros.evaluation.command_file import read_commands
from lisa_ros.evaluation.comparison import ComparedRun, compare
from lisa_ros.evaluation.csv_cells import text_cell
from lisa_ros.evaluation.error_overlay import overlay_path, write_error_overlay
from lisa_ros.evaluation.ground_truth import InstanceFolder, open_ground_truth
from lisa_ros.evaluation.report_files import read_cases, read_report, write_csv
from lisa_ros.files.text import read_text, read_yaml, unique_keys
from lisa_ros.perception.overlay import contact_sheet, overlay
from lisa_ros.results import Segmentation, Status
from lisa_ros.training.plots import append_curves
from lisa_ros.training.run_state import RunState
from lisa_ros.training.tabletop.dataset import SceneSet
from lisa_ros.voice.vocabulary import Vocabulary

SHAPE = (6, 8)


def result(query='the mug', answer='Sure.'):
    logits = np.ones((1, *SHAPE), np.float32)
    return Segmentation(query, answer, answer, logits > 0, logits, np.ones(1), Status.FOUND)


def write_report(folder, names=('a', 'b'), **texts):
    """Write a report with a case and an overlay for each name."""
    cases = []
    for name in names:
        path = overlay_path(folder / 'images', name, 0)
        write_error_overlay(path, np.zeros((*SHAPE, 3), np.uint8), result(), np.ones(SHAPE))
        case = case_from_result(
            result(**texts), np.ones(SHAPE), group=name, number=0, category='short',
            expression='the mug', image=path,
        )  # fmt: skip
        cases.append(case)
    report.write(report.Run('a run', Mode.GENERATE, {'model': 'x'}, cases), folder)
    return folder


def change(path, keys, value):
    """Set a value in a JSON file."""
    content = part = json.loads(path.read_text())
    *outer, last = keys
    for key in outer:
        part = part[key]
    part[last] = value
    path.write_text(json.dumps(content))


def remove(path, keys):
    content = part = json.loads(path.read_text())
    *outer, last = keys
    for key in outer:
        part = part[key]
    del part[last]
    path.write_text(json.dumps(content))


# ---- paths in a report


def compare_two(first, second, out):
    return compare([ComparedRun('first', first), ComparedRun('second', second)], out, 'two runs')


@pytest.fixture
def reports(tmp_path):
    secret = tmp_path / 'secret.jpg'
    Image.new('RGB', (8, 6), (1, 2, 3)).save(secret)
    folders = [write_report(tmp_path / name) for name in ('first', 'second')]
    return *folders, secret


def leading_out(folder, secret):
    """Return names that lead out of a report's folder."""
    (folder / 'link.jpg').symlink_to(secret)
    (folder / 'up').symlink_to(secret.parent)
    (folder / 'loop').symlink_to(folder / 'loop')
    return [
        str(secret), '/etc/passwd', '../secret.jpg', 'images/../../secret.jpg', 'link.jpg',
        'up/secret.jpg', '..\\secret.jpg', 'C:\\secret.jpg', '\\\\host\\share\\x.jpg', '', ' ',
        'images/\0.jpg', f'images/../../{secret.parent.name}/secret.jpg', 'up/../secret.jpg',
    ]  # fmt: skip


def test_an_image_outside_of_the_report_is_refused(reports, tmp_path, capsys):
    first, second, secret = reports
    for name in leading_out(second, secret):
        change(second / 'report.json', ('cases', 1, 'image'), name)
        with pytest.raises(
            DataError, match=r'report\.json: cases\[1\]\.image is .*; expected the'
        ):
            compare_two(first, second, tmp_path / 'out')
        command = ['evaluate', 'compare', str(first), str(second), '--out', str(tmp_path / 'out')]
        assert cli.main(command) == 1
        assert 'Traceback' not in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_only_images_of_the_report_are_embedded(reports, tmp_path):
    first, second, secret = reports
    content = base64.b64encode(secret.read_bytes()).decode()
    (second / 'notes.txt').write_text('a password')
    for name in ('notes.txt', 'missing.jpg', 'images'):
        change(second / 'report.json', ('cases', 0, 'image'), name)
        compare_two(first, second, tmp_path / 'out')
        page = (tmp_path / 'out' / 'report.html').read_text()
        assert page.count('<img') == 3
        assert base64.b64encode(b'a password').decode() not in page
        assert content not in page
    shutil.rmtree(second / 'images')
    second.joinpath('images').symlink_to(tmp_path)
    change(second / 'report.json', ('cases', 0, 'image'), 'images/secret.jpg')
    with pytest.raises(DataError, match=r'cases\[0\]\.image'):
        read_report(second)


def test_a_comparison_does_not_overwrite_a_report(reports):
    first, second, _ = reports
    before = (first / 'report.html').read_bytes()
    with pytest.raises(DataError, match='give another --out'):
        compare_two(first, second, first)
    assert (first / 'report.html').read_bytes() == before


def test_memory_that_is_no_number_is_unknown(reports, tmp_path):
    first, second, _ = reports
    conditions = {'peak memory [MiB]': 'much', 'load time [s]': float('inf')}
    change(first / 'timings.json', ('conditions',), conditions)
    row, _ = compare_two(first, second, tmp_path / 'out')['runs']
    assert row['peak_memory'] is row['load_seconds'] is None


# ---- values in a report

VALUES = [
    (('cases', 0, 'iou'), 'good', 'cases[0].iou', 'a number or null'),
    (('cases', 0, 'iou'), float('nan'), 'cases[0].iou', 'a number or null'),
    (('cases', 0, 'iou'), True, 'cases[0].iou', 'a number or null'),
    (('cases', 0, 'iou'), 10**400, 'cases[0].iou', 'a number or null'),
    (('cases', 1, 'scores'), 'x', 'cases[1].scores', 'a list'),
    (('cases', 1, 'scores'), [None], 'cases[1].scores[0]', 'a number'),
    (('cases', 1, 'name'), 3, 'cases[1].name', 'a text'),
    (('cases', 1, 'name'), 'a.0', 'cases[1].name', 'as that of another case'),
    (('cases', 1, 'found'), 1, 'cases[1].found', 'true or false'),
    (('cases', 1, 'union'), None, 'cases[1]', 'both intersection and union'),
    (('cases', 1, 'image'), ['x'], 'cases[1].image', 'a text or null'),
    (('cases',), {'a': 1}, 'cases', 'a list'),
    (('cases', 0), 7, 'cases[0]', 'an object'),
    (('title',), None, 'title', 'a text'),
    (('settings',), [], 'settings', 'an object'),
    (('settings', 'model'), ['x'], 'settings.model', 'a text, a number'),
    (('figures',), {}, 'figures.all', 'an object'),
    (('figures', 'all', 'giou'), 'x', 'figures.all.giou', 'a number or null'),
    (('figures', 'all', 'giou_interval'), 'x', 'figures.all.giou_interval', 'a list'),
    (('figures', 'all', 'giou_interval'), [0.1], 'figures.all.giou_interval', 'both ends'),
    (('broken',), [3], 'broken[0]', 'a text'),
]


@pytest.mark.parametrize(('keys', 'value', 'key', 'expected'), VALUES)
def test_the_error_of_a_wrong_value_names_file_and_key(keys, value, key, expected, reports):
    first, _, _ = reports
    change(first / 'report.json', keys, value)
    with pytest.raises(DataError) as caught:
        read_report(first)
    message = str(caught.value)
    assert f'{first}/report.json: {key}' in message
    assert expected in message
    assert len(message) < 500


def test_missing_keys_and_files_of_a_report_are_named(reports, tmp_path):
    first, second, _ = reports
    remove(first / 'timings.json', ('cases', 'a.0'))
    with pytest.raises(DataError, match=r"timings\.json: lacks the case 'a\.0'"):
        read_cases(read_report(first), first, '')
    change(first / 'timings.json', ('machine',), 'x')
    with pytest.raises(DataError, match=r"timings\.json: machine is 'x'; expected an object"):
        read_report(first)
    remove(second / 'report.json', ('cases', 0, 'status'))
    with pytest.raises(DataError, match=r'cases\[0\]\.status is missing; expected a text'):
        read_report(second)
    (second / 'timings.json').unlink()
    with pytest.raises(DataError, match=r'no evaluation here \(timings\.json: no such file'):
        read_report(second)
    (tmp_path / 'list.json').write_text('[' * 100_000)
    with pytest.raises(DataError, match='nested too deeply'):
        read_json(tmp_path / 'list.json')


# ---- CSV

FORMULAS = (
    '=1+1', '+1', '-1', '@SUM(A1)', '\t=1', '\r=1', '\n=1', ' =1', '=HYPERLINK("http://x")',
    '\uff1d1', "=cmd|'/c calc'!A1", '-2+3+cmd', ' \t @x',
)  # fmt: skip


@pytest.mark.parametrize('text', FORMULAS)
def test_a_text_is_no_formula_of_a_spreadsheet(text, tmp_path):
    write_report(tmp_path, (text.strip() or 'x',), query=text, answer=text)
    with (tmp_path / 'cases.csv').open(newline='', encoding='utf-8') as file:
        (row,) = csv.DictReader(file)
    for key in ('name', 'answer'):
        assert row[key].startswith("'"), key
    assert row['answer'] == f"'{text}"
    assert float(row['iou']) == pytest.approx(1)
    assert [row['found'], row['present'], row['score']] == ['1', '1', '1.0000']


def test_numbers_and_plain_texts_of_a_csv_file_stay_as_they_are(tmp_path):
    write_report(tmp_path, answer='It is the red mug; not "the bowl", a-b=c.')
    lines = (tmp_path / 'cases.csv').read_text(encoding='utf-8').splitlines()
    assert lines[1].startswith(
        '"a.0","short","the mug","It is the red mug; not ""the bowl"", a-b=c.","FOUND",1,1,'
    )
    assert ',0.999999' in lines[1] or ',1.000000' in lines[1]
    assert text_cell('the mug') == 'the mug'


def test_a_stage_that_did_not_run_has_no_time_in_a_csv_file(tmp_path):
    """A later query reuses the features of its image; "0.0000" would count in a mean."""
    case = case_from_result(
        result(), None, group='a', number=0, category='short', expression='the mug'
    )
    later = replace(case, name='later', timings={'decode': 0.25})
    write_csv(tmp_path / 'cases.csv', [replace(case, timings={'clip': 0.5}), later])
    with (tmp_path / 'cases.csv').open(newline='', encoding='utf-8') as file:
        times = [(row['clip [s]'], row['decode [s]']) for row in csv.DictReader(file)]
    assert times == [('0.5000', ''), ('', '0.2500')]


def test_a_foreign_table_of_curves_is_refused(tmp_path):
    row = {'step': 2, 'minutes': 1.0, 'loss': 0.5}
    append_curves(tmp_path, {**row, 'step': 1})
    append_curves(tmp_path, row)
    before = (tmp_path / 'curves.csv').read_text()
    assert before.splitlines()[1:] == ['1.0000,1.0000,0.5000', '2.0000,1.0000,0.5000']
    for content, message in (
        (before.replace('0.5000', '=1+1', 1), "line 2 has 'loss' '=1[+]1'; expected a number"),
        (before.replace('loss', '=loss'), 'has the columns'),
        (before.replace('1.0000', 'x', 1), "line 2 has 'step' 'x'"),
        ('a,b\n1,2\n', "line 2 has 'step'|expected"),
    ):
        (tmp_path / 'curves.csv').write_text(content)
        with pytest.raises((DataError, KeyError), match=f'{message}|step'):
            append_curves(tmp_path, {**row, 'step': 3})


# ---- texts, JSON and YAML


@pytest.mark.parametrize(
    ('raw', 'encoding'),
    [
        ('红杯子'.encode('gbk'), 'GBK'),
        ('café'.encode('cp1252'), 'GBK'),
        ('a'.encode('utf-16'), 'UTF-16'),
    ],
)
def test_every_reader_refuses_what_is_not_utf_8(raw, encoding, tmp_path):
    readers = {
        'labels.txt': lambda path: registry.read_dataset(
            f'cocostuff:{tmp_path}:{tmp_path}:{path}'
        ),
        'llava.json': lambda path: registry.read_dataset(f'llava:{path}:{tmp_path}'),
        'coco.json': lambda path: registry.read_dataset(f'coco:{path}:{tmp_path}'),
        'commands.yaml': read_commands,
        'objects.json': lambda path: InstanceFolder(path.parent),
        'vocabulary.yaml': Vocabulary.load,
        'scenes.json': lambda path: SceneSet.load(path.parent),
    }
    for name, read in readers.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises((DataError, SettingsError)) as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert f'{name}: is not UTF-8' in message, name
        assert f'iconv -f {encoding} -t UTF-8' in message, name


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / 'a.json').write_bytes('{"name": "红杯子"}'.encode('utf-8-sig'))
    assert read_json(tmp_path / 'a.json') == {'name': '红杯子'}
    (tmp_path / 'commands.yaml').write_bytes('- find the café\n'.encode('utf-8-sig'))
    assert read_commands(tmp_path / 'commands.yaml')[0].text == 'find the café'
    (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbf0: a')
    assert read_text(tmp_path / 'a.txt') == '0: a'


@pytest.mark.parametrize(
    ('read', 'content', 'message'),
    [
        (read_json, '{"6": 1, "6": 2}', "the key '6' occurs twice"),
        (read_json, '{"a": 1', 'cannot be read as JSON'),
        (read_yaml, 'text: a\ntext: b\n', "the key 'text' occurs twice"),
        (read_yaml, '1: a\n0x1: b\n', 'the key 1 occurs twice'),
        (read_yaml, '=: a\n"=": b\n', "the key '=' occurs twice"),
        (read_yaml, '~: a\nb: c\nnull: d\n', 'the key None occurs twice'),
        (read_yaml, 'a: &a {b: 1}\nc: {<<: *a, <<: *a}\n', "the key '<<' occurs twice"),
        (read_yaml, 'a: [', 'cannot be read as YAML'),
        (read_yaml, '[' * 500, 'nested too deeply'),
        (read_yaml, '!!python/object/apply:os.system [echo]', 'cannot be read as YAML'),
        (read_commands, 'a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n', 'holds dict'),
        (
            read_commands,
            '- &a [x, x, x, x, x, x, x, x, x]\n'
            + ''.join(
                f'- &{b} [{", ".join([f"*{a}"] * 9)}]\n'
                for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
            ),
            'command 1: is',  # and not 9**9 words
        ),
    ],
)
def test_ambiguous_and_endless_files_are_refused_in_one_line(read, content, message, tmp_path):
    (tmp_path / 'file').write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / 'file')
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_number_and_a_text_are_two_keys_of_yaml(tmp_path):
    content = '1: a\n"1": b\nmore: {true: c, "true": d, ~: e, "~": f}\n'
    (tmp_path / 'a.yaml').write_text(content)
    more = {True: 'c', 'true': 'd', None: 'e', '~': 'f'}
    assert read_yaml(tmp_path / 'a.yaml') == {1: 'a', '1': 'b', 'more': more}


def test_a_merged_mapping_may_be_changed_in_yaml(tmp_path):
    (tmp_path / 'a.yaml').write_text('a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3, "<<": 4}\n')
    expected = {'a': {'x': 1, 'y': 2}, 'b': {'x': 1, 'y': 3, '<<': 4}}
    assert read_yaml(tmp_path / 'a.yaml') == expected


def test_a_mapping_that_merges_another_one_may_be_merged_before_it_is_read(tmp_path):
    content = 'a: &a {x: 0, y: 2}\no:\n  b: &b {<<: *a, x: 1}\nc: {<<: *b}\n'
    (tmp_path / 'a.yaml').write_text(content)
    merged = {'x': 1, 'y': 2}
    assert read_yaml(tmp_path / 'a.yaml') == {
        'a': {'x': 0, 'y': 2},
        'o': {'b': merged},
        'c': merged,
    }


def test_the_key_of_a_default_value_is_text_in_yaml(tmp_path):
    (tmp_path / 'a.yaml').write_text('=: 1\nb: 2\n')
    assert read_yaml(tmp_path / 'a.yaml') == {'=': 1, 'b': 2}


class CountedKey(str):
    """A key that counts how often it is compared."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other):
        CountedKey.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_many_keys_of_which_the_last_occurs_twice_are_compared_once():
    count = 5000
    pairs = [(CountedKey(n), n) for n in [*range(count), count - 1]]
    with pytest.raises(ValueError, match="the key '4999' occurs twice"):
        unique_keys(pairs)
    assert CountedKey.comparisons < 10 * count


# ---- missing or not allowed


@pytest.fixture
def private(tmp_path):
    """A function that makes a path unreadable; root takes another user meanwhile."""
    changed = []

    def hide(path, mode=0):
        changed.append(path)
        path.chmod(mode)
        if os.geteuid() == 0:
            for folder in (tmp_path, *tmp_path.parents):
                if folder.stat().st_mode & 0o777 == 0o700:
                    folder.chmod(0o755)
            os.seteuid(65534)

    yield hide
    if os.getuid() == 0:
        os.seteuid(0)
    for path in changed:
        path.chmod(0o755)


READERS = {
    'folder': lambda path: registry.read_dataset(path),
    'labels of a folder': lambda path: registry.read_dataset(path.parent),
    'refer': lambda path: registry.read_dataset(f'refer:{path}'),
    'ade20k': lambda path: registry.read_dataset(f'ade20k:{path}'),
    'coco': lambda path: registry.read_dataset(f'coco:{path}/x.json:{path}'),
    'llava': lambda path: registry.read_dataset(f'llava:{path}/x.json:{path}'),
    'ground truth': lambda path: open_ground_truth(str(path), path),
    'commands': read_commands,
    'report': read_report,
}


@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('mode', [0, 0o444])  # 444: names can be listed, and no file opened
def test_what_may_not_be_read_is_not_called_missing(kind, mode, private, tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    if kind == 'labels of a folder':
        Image.new('RGB', (8, 6)).save(tmp_path / 'data.png')  # and its masks
    private(folder, mode)
    with pytest.raises(DataError, match=r'permission denied for user .*chmod'):
        READERS[kind](folder)


def test_an_image_that_may_not_be_read_is_not_called_missing(private, tmp_path):
    Image.new('RGB', (8, 6)).save(tmp_path / 'a.png')
    shape = {'label': 'mug', 'points': [[1, 1], [5, 1], [5, 4]]}
    (tmp_path / 'a.json').write_text(json.dumps({'shapes': [shape]}))
    private(tmp_path / 'a.png')
    with pytest.raises(DataError, match=r'a\.png cannot be read as an image: permission denied'):
        registry.read_dataset(tmp_path)


# ---- states of trainings


def save_state(folder, **changes):
    state = {
        'step': 3, 'seed': 0, 'best': float('-inf'), 'worse': 0, 'minutes': 1.0,
        'trained': {'w': torch.zeros(2)}, 'average': {}, 'optimizers': [{}], **changes,
    }  # fmt: skip
    torch.save(state, folder / 'last.pt')


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'step': 'x'}, 'step'),
        ({'minutes': float('nan')}, 'minutes'),
        ({'trained': [1]}, 'trained'),
        ({'trained': {'w': 3}}, 'trained.w'),
        ({'optimizers': [3]}, 'optimizers[0]'),
    ],
)
def test_the_error_of_a_wrong_training_state_names_the_key(changes, key, tmp_path):
    save_state(tmp_path)
    assert RunState.load(tmp_path, 'cpu').step == 3
    save_state(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        RunState.load(tmp_path, 'cpu')
    assert f'last.pt: {key} is ' in str(caught.value)


def test_a_damaged_training_state_has_a_cure(tmp_path):
    save_state(tmp_path)
    content = (tmp_path / 'last.pt').read_bytes()
    for damaged in (b'', content[: len(content) // 2], b'not a state'):
        (tmp_path / 'last.pt').write_bytes(damaged)
        with pytest.raises(DataError, match=r'last\.pt: cannot be read as .*choose another --out'):
            RunState.load(tmp_path, 'cpu')


# ---- images of odd shapes


@pytest.mark.parametrize('shape', [(1, 1), (1, 3000), (3000, 1), (5000, 3), (3, 5000), (2, 20000)])
def test_an_overlay_of_an_odd_image_can_be_drawn(shape, tmp_path):
    image, mask = np.full((*shape, 3), 90, np.uint8), np.ones((1, *shape), bool)
    drawn = overlay(image, mask, ['1'], ['the mug', 'It is the mug.'])
    assert drawn.shape[0] >= shape[0]
    assert drawn.nbytes < 2e9
    assert contact_sheet([image, image], ['the mug']).nbytes < 2e8
    logits = mask.astype(np.float32)
    answer = Segmentation('x', 'x', 'x', mask, logits, np.ones(1), Status.FOUND)
    write_error_overlay(tmp_path / 'a.jpg', image, answer, np.ones(shape))
    assert max(Image.open(tmp_path / 'a.jpg').size) <= 480


# ---- what a terminal shows


ESCAPE = '\x1b[2J\n\u202e'  # clears the screen, begins a line, and turns the text around


def test_foreign_names_send_nothing_to_the_terminal(tmp_path, capsys):
    """Names of files and categories, and a report of other people, are printed escaped."""
    folders = [write_report(tmp_path / name) for name in ('first', 'second')]
    for folder in folders:
        path = folder / 'report.json'
        change(path, ['title'], f'a run{ESCAPE}')
        for number in range(2):
            change(path, ['cases', number, 'category'], f'short{ESCAPE}')
    command = ['evaluate', 'compare', *map(str, folders), '--out', str(tmp_path / 'out')]
    assert cli.main(command) == 0
    figures = {f'short{ESCAPE}': {'count': 1, 'giou': 0.5, 'giou_interval': None}}
    figures[f'short{ESCAPE}'] |= {'ciou': None, 'p@0.5': None}
    summary = {'title': f'x{ESCAPE}', 'mode': 'generate', 'figures': figures, 'broken': []}
    report.print_summary({**summary, 'failed': [f'image{ESCAPE}.0: no memory']}, tmp_path)
    printed = capsys.readouterr().out
    assert printed.count(r'\x1b[2J\n\u202e') >= 5
    assert all(line.isprintable() for line in printed.split('\n'))
