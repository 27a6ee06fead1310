# SPDX-License-Identifier: Apache-2.0
"""Pictures of real cameras give the same figures out of every kind of bag.

They are not ours to ship: LISA_ROS_REAL_FRAMES names a folder with `osd/` (the Object Segmentation
Database of PointCloudLibrary/data: learn0_color.jpg, learn0_label.png, ...) and `slambook2/`
(color/1.png, ... of gaoxiang12/slambook2).
"""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from bag_kinds import KINDS
from PIL import Image

from lisa_ros import cli
from lisa_ros.evaluation import report
from lisa_ros.messages import bag as bags

REAL = os.environ.get('LISA_ROS_REAL_FRAMES')
pytestmark = pytest.mark.skipif(
    not REAL, reason='LISA_ROS_REAL_FRAMES names no folder with osd/ and slambook2/'
)
TABLES = [f'learn{number}' for number in range(0, 45, 6)]
COMMANDS = [
    {'text': 'segment the box', 'targets': [2], 'kind': 'box'},
    {'text': 'find the mug and the box', 'targets': [2, 3], 'kind': 'two'},
    {'text': 'find the banana', 'absent': True, 'kind': 'absent'},
]


def frame(number, path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert('RGB'))
    return bags.BagImage(1_700_000_000_000_000_000 + number * 100_000_000, pixels, 'camera')


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Frames and arguments that name their truth, by set."""
    truth = tmp_path_factory.mktemp('truth')
    tables = [frame(n, Path(REAL, 'osd', f'{one}_color.jpg')) for n, one in enumerate(TABLES)]
    for one, name in zip(tables, TABLES, strict=True):
        labels = Path(REAL, 'osd', f'{name}_label.png')
        (truth / f'{one.stamp}.png').write_bytes(labels.read_bytes())
    room = [frame(n, Path(REAL, 'slambook2', 'color', f'{n}.png')) for n in range(1, 6)]
    return {'osd': (tables, ['--truth', str(truth)]), 'slambook2': (room, [])}


@pytest.fixture(scope='module')
def plain(sets, tmp_path_factory):
    """What a plain mcap gives, by set."""
    return {name: asked(name, 'mcap', sets, tmp_path_factory.mktemp(name)) for name in sets}


def asked(name, kind, sets, folder):
    frames, truth = sets[name]
    bag = KINDS[kind](folder / kind, frames)
    commands = folder / 'commands.yaml'
    commands.write_text(
        yaml.safe_dump(COMMANDS if truth else [{'text': c['text']} for c in COMMANDS])
    )
    given = ['evaluate', 'bag', str(bag), '--commands', str(commands), '--every', '2']
    assert cli.main([*given, '--out', str(folder / 'out'), *truth]) == 0
    return report.read(folder / 'out')


def test_every_second_frame_was_asked_about(plain):
    assert len(plain['osd']['cases']) == 3 * 4
    assert plain['osd']['figures']['all']['count'] == 3 * 4
    assert sum(case['present'] for case in plain['osd']['cases']) == 2 * 4
    assert len(plain['slambook2']['cases']) == 3 * 3
    assert plain['slambook2']['figures']['all']['count'] == 0  # nobody knows its truth


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'mcap'])
@pytest.mark.parametrize('name', ['osd', 'slambook2'])
def test_figures_are_the_same_out_of_every_kind_of_bag(name, kind, sets, plain, tmp_path):
    found = asked(name, kind, sets, tmp_path)
    assert found['cases'] == plain[name]['cases']
    assert found['figures'] == plain[name]['figures']
