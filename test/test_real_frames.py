# SPDX-License-Identifier: Apache-2.0
"""Images of real cameras give the same metrics from every kind of bag.

Their licences do not let us ship them. LISA_ROS_REAL_FRAMES names a folder with `osd/` (the Object
Segmentation Database of PointCloudLibrary/data: learn0_color.jpg, learn0_label.png, ...) and
`slambook2/` (color/1.png, ... of gaoxiang12/slambook2).
"""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from bag_kinds import KINDS
from PIL import Image

from lisa_ros import cli
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.messages import bag as bags

REAL = os.environ.get('LISA_ROS_REAL_FRAMES')
pytestmark = pytest.mark.skipif(
    not REAL, reason='LISA_ROS_REAL_FRAMES must name a folder with osd/ and slambook2/'
)
TABLES = [f'learn{number}' for number in range(0, 45, 6)]
COMMANDS = [
    {'text': 'segment the box', 'targets': [2], 'kind': 'box'},
    {'text': 'find the mug and the box', 'targets': [2, 3], 'kind': 'two'},
    {'text': 'find the banana', 'absent': True, 'kind': 'absent'},
]


def load_frame(number, path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB'))
    return bags.BagImage(1_700_000_000_000_000_000 + number * 100_000_000, pixels, 'camera')


@pytest.fixture(scope='module')
def data_sets(tmp_path_factory):
    """Frames and ground-truth arguments of each data set."""
    ground_truth = tmp_path_factory.mktemp('ground_truth')
    osd = Path(REAL, 'osd')
    tables = [load_frame(n, osd / f'{name}_color.jpg') for n, name in enumerate(TABLES)]
    for frame, name in zip(tables, TABLES, strict=True):
        labels = osd / f'{name}_label.png'
        (ground_truth / f'{frame.stamp}.png').write_bytes(labels.read_bytes())
    room = [load_frame(n, Path(REAL, 'slambook2', 'color', f'{n}.png')) for n in range(1, 6)]
    return {'osd': (tables, ['--ground-truth', str(ground_truth)]), 'slambook2': (room, [])}


@pytest.fixture(scope='module')
def mcap_reports(data_sets, tmp_path_factory):
    """The report of each data set from an uncompressed mcap bag."""
    return {
        name: evaluate(name, 'mcap', data_sets, tmp_path_factory.mktemp(name))
        for name in data_sets
    }


def evaluate(name, kind, data_sets, folder):
    """Write a bag of this kind, evaluate it, and return the report."""
    frames, ground_truth = data_sets[name]
    bag = KINDS[kind](folder / kind, frames)
    commands = folder / 'commands.yaml'
    commands.write_text(
        yaml.safe_dump(COMMANDS if ground_truth else [{'text': c['text']} for c in COMMANDS])
    )
    arguments = ['evaluate', 'bag', str(bag), '--commands', str(commands), '--every', '2']
    assert cli.main([*arguments, '--out', str(folder / 'out'), *ground_truth]) == 0
    return read_report(folder / 'out')


def test_every_second_frame_is_evaluated(mcap_reports):
    assert len(mcap_reports['osd']['cases']) == 3 * 4
    assert mcap_reports['osd']['figures']['all']['count'] == 3 * 4
    assert sum(case['present'] for case in mcap_reports['osd']['cases']) == 2 * 4
    assert len(mcap_reports['slambook2']['cases']) == 3 * 3
    assert mcap_reports['slambook2']['figures']['all']['count'] == 0  # it has no ground truth


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'mcap'])
@pytest.mark.parametrize('name', ['osd', 'slambook2'])
def test_every_kind_of_bag_gives_the_same_metrics(name, kind, data_sets, mcap_reports, tmp_path):
    report = evaluate(name, kind, data_sets, tmp_path)
    assert report['cases'] == mcap_reports[name]['cases']
    assert report['figures'] == mcap_reports[name]['figures']
