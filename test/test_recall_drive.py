# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks/recall_drive.py: path, odometry, rendered frames, and what it judges."""

import itertools
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisa_ros.tabletop.assets import TABLE_TEXTURES, WALL_TEXTURES, mesh_parts
from lisa_ros.tabletop.objects import OBJECTS, PART_FLAG

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
CUBE = '\n'.join(
    [f'v {x} {y} {z}' for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    + [f'f {a} {b} {c}' for a, b, c in (
        (1, 2, 4), (1, 4, 3), (5, 7, 8), (5, 8, 6), (1, 5, 6), (1, 6, 2),
        (3, 4, 8), (3, 8, 7), (1, 3, 7), (1, 7, 5), (2, 6, 8), (2, 8, 4),
    )]
)  # fmt: skip
SECONDS = 60.0


@pytest.fixture
def drive(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__('tabletop_drive')


@pytest.fixture(scope='module')
def cubes(tmp_path_factory):
    """A cache of assets in which each object is a cube, one colour everywhere."""
    cache = tmp_path_factory.mktemp('assets')
    texture = np.full((8, 8, 3), 180, np.uint8)
    for model in OBJECTS.values():
        for i, (appearance, _) in enumerate(mesh_parts(model)):
            (cache / f'{model.name}_{i}.obj').write_text(CUBE)
            if isinstance(appearance, str):
                cv2.imwrite(str(cache / f'{model.name}_{i}.png'), texture)
    for name in TABLE_TEXTURES + WALL_TEXTURES:
        cv2.imwrite(str(cache / f'{name}.png'), texture)
    boxes = {name: [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]] for name in OBJECTS}
    (cache / 'done.json').write_text(json.dumps(boxes))
    return cache


def test_the_robot_drives_forward_and_looks_at_each_table_twice(drive):
    path, step = drive.DrivenPath(SECONDS), 0.05
    poses = [path.map_to_base(i * step) for i in range(round(SECONDS / step) + 1)]
    places = [path.place(i * step) for i in range(len(poses))]
    assert list(dict.fromkeys(places)) == [(r, t) for r in (0, 1) for t in (0, 1, 2)]
    for before, after in itertools.pairwise(poses):
        moved = np.linalg.inv(before) @ after
        length = np.linalg.norm(moved[:2, 3])
        assert 1e-4 < length < 0.15
        assert math.atan2(moved[1, 3], moved[0, 3]) == pytest.approx(0, abs=0.1)
    seen = set()
    for i, (round_, table) in enumerate(places):
        optical = np.linalg.inv(path.map_to_optical(i * step)) @ drive.map_to_table(table)
        x, y, z = optical[:3, 3]
        distances = [
            np.linalg.norm(poses[i][:2, 3] - drive.map_to_table(t)[:2, 3]) for t in range(3)
        ]
        assert int(np.argmin(distances)) == table
        if math.hypot(x, y) < 0.1 * z < 0.15:  # the middle of the table is in the image's
            seen.add((round_, table))
    assert seen == set(places)


def test_the_odometry_drifts_and_the_localization_corrects_it(drive):
    path = drive.DrivenPath(SECONDS)
    odometry, count = drive.Odometry(path, 0), round(SECONDS / drive.ODOMETRY_STEP)
    true = [path.map_to_base(i * drive.ODOMETRY_STEP) for i in range(count)]
    corrected = [odometry.map_to_odom(i) @ odometry.odom_to_base(i) for i in range(count)]
    errors = [np.linalg.norm(a[:2, 3] - b[:2, 3]) for a, b in zip(true, corrected, strict=True)]
    uncorrected = odometry.map_to_odom(0) @ odometry.odom_to_base(count - 1)
    assert max(errors) < 0.12
    assert np.linalg.norm(uncorrected[:2, 3] - true[-1][:2, 3]) > 0.3
    corrections = [odometry.map_to_odom(i) for i in range(count)]
    jumps = [np.abs(b - a).max() for a, b in itertools.pairwise(corrections)]
    assert sum(jump > 1e-6 for jump in jumps) == math.ceil(SECONDS / 2) - 1


def test_two_objects_are_moved_and_all_stand_apart(drive, cubes):
    before, after = drive.draw_layouts(0, json.loads((cubes / 'done.json').read_text()))
    moved = {item.name for item in drive.ITEMS if item.moved_to is not None}
    assert len(before.objects) == len(after.objects) == 12
    assert {n for n in before.objects if before.objects[n] != after.objects[n]} == moved
    assert len(moved) == 2
    for layout in (before, after):
        positions = [layout.position(name) for name in layout.objects]
        gaps = [math.dist(a, b) for i, a in enumerate(positions) for b in positions[:i]]
        assert min(gaps) > 0.15
        assert all(drive.TABLE_HEIGHT < z < 1.1 for _, _, z in positions)


def test_rendered_depth_has_the_objects_at_their_true_places(drive, cubes, tmp_path, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'egl')  # read when MuJoCo is imported
    mujoco = pytest.importorskip('mujoco', reason='renders with MuJoCo: make setup')
    size = (160, 120)
    ride = drive.Drive(6.0, 1.0, size, 0)
    try:
        layouts = drive.render(ride, cubes, tmp_path)
    except (AttributeError, ImportError, mujoco.FatalError) as error:  # no EGL on this machine
        pytest.skip(f'MuJoCo cannot render here: {error}')
    assert len(list(tmp_path.glob('*_depth.png'))) == ride.frame_count == 7
    renderer, path = drive.Renderer(cubes, *size), drive.DrivenPath(ride.seconds)
    rays = np.linalg.inv(ride.k()) @ np.stack(
        [*np.meshgrid(np.arange(size[0]), np.arange(size[1])), np.ones(size[::-1])]
    ).reshape(3, -1)
    found = set()
    for number in range(ride.frame_count):
        (round_, table), pose = path.place(number), path.map_to_optical(number)
        scene = layouts[round_].scene(table)
        renderer.set_scene(scene)
        to_table = np.linalg.inv(drive.map_to_table(table)) @ pose
        ids = renderer.render(to_table).ids & ~np.uint8(PART_FLAG)
        _, depth = drive.read_frame(tmp_path, number)
        points = (rays * depth.ravel() / 1000).T @ to_table[:3, :3].T + to_table[:3, 3]
        for i, placed in enumerate(scene.objects, 1):
            own = points[((ids == i) & (depth > 0)).ravel()]
            if len(own) < 50:
                continue
            low, high = np.array(placed.box_min) - 0.02, np.array(placed.box_max) + 0.02
            inside = ((own > low) & (own < high)).all(axis=1)
            assert inside.mean() > 0.8, placed.model.name  # the rest: mixed pixels at edges
            found.add((round_, placed.model.name))
    assert len(found) >= 12


def test_each_fault_of_a_memory_fails_its_limit(drive, cubes):
    pytest.importorskip('lisa_ros.srv', reason='needs the built interfaces: make setup')
    pytest.importorskip('matplotlib', reason="needs the extra 'train'")
    from geometry_msgs.msg import Point
    from lisa_ros.msg import Place, Segmentation

    benchmark = __import__('recall_drive')
    layout = drive.draw_layouts(0, json.loads((cubes / 'done.json').read_text()))[-1]
    now = 100 * 10**9

    def place(name, shift=0.0):
        x, y, z = map(float, layout.position(name))
        message = Place(name=name, position=Point(x=x + shift, y=y, z=z))
        message.stamp.sec = 40
        return message

    def recalled(name, *places):
        words = ' '.join(
            f'I last saw the {name} 60 s ago at ({p.x:.2f}, {p.y:.2f}, {p.z:.2f}) m in map.'
            for p in (item.position for item in places)
        )
        return benchmark.Recalled(name, list(places), [60.0] * len(places), now, words)

    def failing(recalls=(), places=(), after=None, answers=()):
        changed = {item.name: item for item in recalls}
        all_recalls = [
            changed.get(item.name, recalled(item.name, place(item.name))) for item in drive.ITEMS
        ]
        all_places = [p for item in all_recalls for p in item.places] + list(places)
        shown = [
            benchmark.Answer('', Segmentation.FOUND, (item.name,), 40 * 10**9, True)
            for item in drive.ITEMS
        ]
        limits = benchmark.limits(
            [*shown, *answers],
            all_recalls,
            all_places,
            all_places if after is None else after,
            layout,
            180.0,
        )
        return [limit.name for limit in limits if not limit.holds]

    assert failing() == []
    far = [recalled(n, place(n, 0.2)) for n in ('milk', 'banana', 'bowl')]
    assert failing(far) == ['objects without a place within 10 cm']
    assert failing(far[:2]) == []
    assert failing([recalled('red mug', place('red mug', 0.2))]) == ['moved objects among them']
    assert failing([recalled('milk', place('milk'), place('milk', 1.0))]) == ['duplicate places']
    assert failing(places=[Place(name='lemon')]) == ['places of other names']
    newer = benchmark.Answer('', Segmentation.FOUND, ('milk',), 50 * 10**9, True)
    assert failing(answers=[newer]) == ['places with a wrong stamp or age']
    assert failing(after=[]) == ['places lost or changed by a restart']
    silent = benchmark.Answer('', -1, (), 0, False)
    assert failing(answers=[silent]) == ['commands without an answer']
