# SPDX-License-Identifier: Apache-2.0
"""A small training run on scenes of rectangles, shared by the tests of tabletop training.

Rendering needs meshes and a graphics library, so these scenes are drawn: mugs are red rectangles,
bananas are yellow ones.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisa_ros.training.tabletop.dataset import SceneSet
from lisa_ros.training.tabletop.pretrain import PretrainTask
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig
from lisa_ros.training.tabletop.vocabulary import write_tokenizer
from lisa_ros.training.trainer import Trainer
from lisa_ros.training.trainer_config import TrainerConfig

OBJECTS = (
    ('mug', 'coffee_mug', 'red', (200, 20, 20)),
    ('banana', 'banana', None, (230, 220, 40)),
)
TRAINER_CONFIG = TrainerConfig(
    steps=6, warmup_steps=2, ema_decay=0.9, validate_every=6, save_every=3
)
CONFIG = PretrainConfig(
    TRAINER_CONFIG, vision_warmup_steps=2, batch_size=2, queries_per_image=2, threads=1
)
FEW_DIALOGUES = 2000  # enough for a tokenizer of all words


@dataclass(frozen=True)
class TrainedRun:
    """A finished run of six steps. Do not train it further: other tests use it, too."""

    folder: Path
    task: PretrainTask

    @property
    def model(self):
        """Folder of the exported model."""
        return self.folder / 'model'


@pytest.fixture(scope='session')
def config():
    """Options of the trained run."""
    return CONFIG


@pytest.fixture(scope='session')
def scene_folder(tmp_path_factory):
    """Scenes of rectangles, as `lisa-ros scenes` writes them: train/ and val/."""
    root = tmp_path_factory.mktemp('scenes')
    for split, count in (('train', 12), ('val', 4)):
        for folder in ('colour', 'ids'):
            (root / split / folder).mkdir(parents=True)
        scenes = []
        for number in range(count):
            image, ids, objects = draw_rectangles(np.random.default_rng((len(split), number)))
            name = f'{number:05d}'
            cv2.imwrite(str(root / split / 'colour' / f'{name}.jpg'), image[..., ::-1])
            cv2.imwrite(str(root / split / 'ids' / f'{name}.png'), ids)
            scenes.append({'name': name, 'objects': objects})
        (root / split / 'scenes.json').write_text(json.dumps({'split': split, 'scenes': scenes}))
    return root


def draw_rectangles(rng):
    """Return image, ids and objects of a scene."""
    image = np.full((240, 320, 3), 120, np.uint8)
    ids = np.zeros((240, 320), np.uint8)
    for number, (*_, ink) in enumerate(OBJECTS, 1):
        x, y = rng.integers(20, 220), rng.integers(20, 150)
        ids[y : y + 60, x : x + 70], image[y : y + 60, x : x + 70] = number, ink
    objects = [
        {
            'id': number,
            'category': category,
            'model': model,
            'colour': colour,
            'size': None,
            'area': int((ids == number).sum()),
            'part_area': 0,
            'right': 0.3 * number,
            'away': 0.5,
            'height': 0.1,
            'longest': 0.1 * number,
        }
        for number, (category, model, colour, _) in enumerate(OBJECTS, 1)
    ]
    return image, ids, objects


@pytest.fixture(scope='session')
def train_set(scene_folder):
    """The training scenes."""
    return SceneSet.load(scene_folder / 'train')


@pytest.fixture(scope='session')
def trained(scene_folder, train_set, tmp_path_factory):
    """A run of six steps from random weights."""
    folder = tmp_path_factory.mktemp('run')
    # a run that finds a tokenizer does not train one, which takes longer than the six steps
    write_tokenizer(folder / 'tokenizer', train_set.scene_graphs, dialogues=FEW_DIALOGUES)
    task = PretrainTask(folder, scene_folder, CONFIG)
    Trainer(folder, TRAINER_CONFIG, task).train()
    return TrainedRun(folder, task)


@pytest.fixture
def make_task(trained, scene_folder, tmp_path):
    """Build a task with the weights of the trained run and other options."""

    def build(**changes):
        tokenizer = tmp_path / 'tokenizer'
        shutil.copytree(trained.folder / 'tokenizer', tokenizer, dirs_exist_ok=True)
        task = PretrainTask(tmp_path, scene_folder, replace(CONFIG, **changes))
        task.module.load_state_dict(trained.task.module.state_dict())
        return task

    return build
