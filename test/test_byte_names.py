# SPDX-License-Identifier: Apache-2.0
"""Names of files that are no UTF-8, as old cameras and archives write them, cost no report."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import scripted_backend  # noqa: F401  # registers "scripted:"
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets.annotations import unique_names
from lisa_ros.evaluation.report_files import read_report

LATIN = os.fsdecode(b'caf\xe9')  # in Python 'caf\udce9'


@pytest.fixture
def data(tmp_path):
    """Two images whose names differ in a byte that is no UTF-8, each with the mask of a mug."""
    folder = tmp_path / LATIN
    for name in (LATIN, os.fsdecode(b'caf\xe8'), 'caf\\udce9'):
        try:
            (folder / name).mkdir(parents=True)
        except OSError:
            pytest.skip('this file system has UTF-8 names only')
        Image.new('RGB', (40, 30), (200, 120, 40)).save(folder / f'{name}.png')
        Image.new('L', (40, 30), 255).save(folder / name / 'mug.png')
    shutil.copy(folder / LATIN / 'mug.png', folder / LATIN / f'{LATIN}.png')
    return folder


def test_images_get_names_that_can_be_written_and_are_unique():
    paths = [Path('a', LATIN), Path('a', 'caf\\udce9'), Path('a', 'café'), Path('b', LATIN)]
    names = unique_names(paths, Path())
    assert len(set(names)) == 4
    assert names[2] == 'café'
    assert all(name.encode() for name in names)


def test_a_report_about_such_images_is_written_and_compared(data, tmp_path, capsys):
    (tmp_path / 'script.json').write_text('{"": {"masks": "all"}}')
    out = tmp_path / 'out'
    command = ['evaluate', 'images', str(data), '--model', f'scripted:{tmp_path / "script.json"}']
    assert cli.main([*command, '--out', str(out), '--skip-broken']) == 0
    capsys.readouterr().out.encode()
    content = read_report(out)
    assert len(content['names']) == len(content['cases']) >= 3
    assert all((out / case['image']).is_file() for case in content['cases'])
    assert content['settings']['data'].endswith('caf\\udce9')
    assert 'caf\\udce9' in (out / 'report.html').read_text('utf-8')
    with (out / 'cases.csv').open(encoding='utf-8') as file:
        assert len(list(csv.DictReader(file))) == len(content['cases'])
    reports = [str(out), str(shutil.copytree(out, tmp_path / os.fsdecode(b'\xe9')))]
    assert cli.main(['evaluate', 'compare', *reports, '--out', str(tmp_path / 'both')]) == 0
    assert json.loads((tmp_path / 'both' / 'compare.json').read_text())['differences']
