# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes as training images, and their augmentation."""

import numpy as np
import pytest
from tabletop_graph import BANANA, RED, TABLE, WHITE

from lisa_ros.errors import DataError
from lisa_ros.tabletop.objects import PART_FLAG
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.tabletop.dataset import SceneSet, SceneView, augment, with_visibility


def test_visibility_has_areas_and_positions_of_the_view():
    ids = np.zeros((100, 200), np.uint8)
    ids[20:60, 40:60] = BANANA.id
    ids[50:60, 40:60] |= PART_FLAG
    scene_graph = with_visibility(TABLE, ids)
    (banana,) = [o for o in scene_graph.objects if o.id == BANANA.id]
    assert (banana.area, banana.part_area) == (800 * 3.84, 768)
    assert (banana.image_x, banana.image_y) == (0.25, 0.5)  # the lower half is rows 40 to 59
    assert [o.area for o in scene_graph.objects if o.id != BANANA.id] == [0] * 4
    assert scene_graph.mirrored().objects[2].image_x == 0.75


def test_augmentation_keeps_image_ids_and_scene_graph_consistent():
    ids = np.zeros((240, 320), np.uint8)
    ids[60:180, 40:140] = 1
    ids[60:180, 180:300] = 2
    image = np.where(ids[..., None] > 0, 230, 20).astype(np.uint8).repeat(3, axis=2)
    scene = SceneView(image, ids, SceneGraph((RED, WHITE)))
    for seed in range(10):
        view = augment(np.random.default_rng(seed), scene)
        is_bright = view.image.mean(axis=2) > 110
        assert (is_bright == (view.ids > 0)).mean() > 0.97
        first_x, second_x = (np.argwhere(view.ids == i)[:, 1].mean() for i in (1, 2))
        first, second = view.scene_graph.objects
        assert (first_x < second_x) == (first.right < second.right)
        assert first.area == pytest.approx((view.ids == 1).sum() * 76800 / ids.size, abs=1)


def test_missing_scenes_are_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r'scenes\.json cannot be read') as error:
        SceneSet.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_image_is_an_error_that_names_it(scene_folder, tmp_path):
    text = (scene_folder / 'val' / 'scenes.json').read_text()
    (tmp_path / 'scenes.json').write_text(text)
    with pytest.raises(DataError, match=r'cannot read colour/0000\d\.jpg'):
        SceneSet.load(tmp_path)
