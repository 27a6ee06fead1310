# SPDX-License-Identifier: Apache-2.0
"""How right and how fast points, centroids and boxes of things are.

    python benchmarks/geometry.py --assets-cache FOLDER [--scenes N] [--model M]
    python benchmarks/geometry.py --osd FOLDER [--picture docs/object_cloud.jpg]
    python benchmarks/geometry.py --timing

Rendered: scenes of the test split at 640 x 480 with depth made worse as a Kinect's is (noise by
distance, whole millimetres, mixed pixels and holes at jumps, single holes) and the truth masks
with edges off by up to two pixels. A centroid's truth is the mean of the thing's own visible
surface in the depth as rendered; a box's is that of the mesh, in its pose. With --model also the
model's own masks of "segment the <name>". FOLDER is what `scenes.prepare_assets` makes;
MUJOCO_GL=egl where there is no display.

OSD: real Kinect frames; the labels dilated by three pixels are the masks, and no point may be
farther than 3 cm from the points of the label itself (its largest piece).
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.depth_filter import depth_noise_std
from lisa_ros.geometry.object_3d import Object3D, localize_object
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.geometry.rgbd import depth_to_cloud, depth_to_points
from lisa_ros.perception import overlay  # found by the line above

CUBOIDS = (
    'cereal', 'popcorn', 'macaroni', 'butter', 'cream_cheese', 'chocolate_pudding', 'sponge',
    'yellow_book', 'black_book',
)  # fmt: skip
CANS = ('soda_can', 'alphabet_soup', 'candle')
LEAST = 300  # visible pixels of a thing that counts
SIZE = 640, 480

# ---------------------------------------------------------------- rendered scenes


@dataclass(frozen=True)
class Case:
    """One visible thing of a scene, in the camera's optical frame."""

    name: str
    kind: str
    mask: np.ndarray  # (H, W) bool, the truth
    box: Box
    whole: bool  # nothing hides a part of it


def worse(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rendered depth as a Kinect would have measured it, (H, W) float32, NaN where not."""
    around = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth, around), cv2.dilate(depth, around)
    jumps = far - near > 0.015
    mixed = jumps & (rng.random(depth.shape) < 0.5)
    share = rng.random(depth.shape)
    seen = np.where(mixed, near + share * (far - near), depth)
    seen = seen + depth_noise_std(seen) * rng.standard_normal(depth.shape)
    seen = np.rint(seen * 1000) / 1000
    lost = rng.random(depth.shape) < np.where(jumps, 0.25, 0.01)
    return np.where(lost, np.nan, seen).astype(np.float32)


def off(mask: np.ndarray, rng: np.random.Generator, most: float = 2.0) -> np.ndarray:
    """Return the mask with its edge moved in and out by up to `most` pixels, in waves."""
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outer = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    waves = cv2.resize(rng.uniform(-most, most, (16, 20)), mask.shape[::-1])
    signed = np.where(mask, inner - 0.5, 0.5 - outer)
    return signed > waves


def truth_box(placed, boxes: dict, pose: np.ndarray, cache: Path) -> Box:
    """Return the box of a placed mesh in the optical frame that is `pose` in the world."""
    from lisa_ros.tabletop import scene_sampling

    low, high = np.array(boxes[placed.thing.name])
    if placed.thing.name in CANS:
        low, high = can_box(cache, placed.thing.name, low, high)
    scale = scene_sampling._scale(placed.thing, placed.size, boxes[placed.thing.name])
    turn = scene_sampling._rotation(placed.quaternion)
    middle = turn @ ((low + high) / 2 * scale) + placed.position
    into = pose[:3, :3].T
    return Box(into @ (middle - pose[:3, 3]), into @ turn, (high - low) * scale)


@functools.cache
def shell(cache: Path, name: str) -> np.ndarray:
    """Return points of a mesh's surface, evenly spread, (n, 3) in its own units."""
    lines = [line.split() for line in (cache / f'{name}_0.obj').read_text().splitlines()]
    points = np.array([line[1:4] for line in lines if line[0] == 'v'], float)
    faces = [
        [int(corner.split('/')[0]) - 1 for corner in line[1:4]] for line in lines if line[0] == 'f'
    ]
    corners = points[np.array(faces)]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(area), 20000, p=area / area.sum())
    return (corners[chosen] * rng.dirichlet([1, 1, 1], 20000)[..., None]).sum(axis=1)


def can_box(cache: Path, name: str, low: np.ndarray, high: np.ndarray) -> tuple:
    """Return the box of a can's shell: a label's flap stands out of that of the soup's mesh."""
    size = high - low
    axis = int(np.argmax([abs(3 * size[i] - size.sum()) for i in range(3)]))
    flat = [i for i in range(3) if i != axis]
    points = shell(cache, name)
    around = points[np.abs(points[:, axis] - (low + high)[axis] / 2) < 0.3 * size[axis]][:, flat]
    middle, radius, near = around.mean(axis=0), 0.0, np.ones(len(around), bool)
    for _ in range(5):
        design = np.column_stack([2 * around[near], np.ones(near.sum())])
        answer = np.linalg.lstsq(design, (around[near] ** 2).sum(axis=1), rcond=None)[0]
        middle, radius = answer[:2], np.sqrt(answer[2] + answer[:2] @ answer[:2])
        distance = np.linalg.norm(around - middle, axis=1)
        near = np.abs(distance - radius) < 0.04 * radius
    low, high = low.copy(), high.copy()
    low[flat], high[flat] = middle - radius, middle + radius
    return low, high


def cases(scene, frame, boxes: dict, pose: np.ndarray, cache: Path) -> list[Case]:
    """Return the visible things of a rendered frame."""
    from lisa_ros.tabletop import rendering

    ids = frame.ids & ~np.uint8(rendering.PART_FLAG)
    found = []
    for number, placed in enumerate(scene.placed, start=1):
        mask = ids == number
        if np.count_nonzero(mask) < LEAST:
            continue
        band = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~mask
        behind = cv2.dilate(np.where(mask, frame.depth, 0), np.ones((3, 3), np.uint8))
        hidden = band & (ids > 0) & (frame.depth < behind)
        cut = mask[[0, -1]].any() or mask[:, [0, -1]].any()
        whole = not cut and np.count_nonzero(hidden) < 0.02 * np.count_nonzero(band)
        found.append(
            Case(
                placed.thing.name,
                placed.thing.kind,
                mask,
                truth_box(placed, boxes, pose, cache),
                bool(whole),
            )
        )
    return found


def rendered(cache: Path, count: int):
    """Yield colour, depth as rendered, camera, up and cases of scenes of the test split."""
    from lisa_ros.tabletop import rendering, scene_sampling

    renderer = rendering.Renderer(cache, *SIZE)
    for number in range(count):
        rng = scene_sampling.scene_rng('test', number)
        scene = scene_sampling.draw_scene(rng, renderer.boxes)
        renderer.set_scene(scene)
        pose = scene_sampling.camera_matrix(*scene_sampling.draw_camera(rng))
        frame = renderer.frame(pose)
        camera = Camera(frame.k, SIZE)
        yield (
            frame.colour,
            frame.depth,
            camera,
            pose[2, :3],
            cases(scene, frame, renderer.boxes, pose, cache),
        )


# ---------------------------------------------------------------- errors


def angle_between(found: np.ndarray, truth: np.ndarray, *, round_about: int | None) -> float:
    """Return by how much the axes of two boxes differ [degrees], whichever axis is called which.

    For a can only its own axis counts, column `round_about` of the truth.
    """
    cosines = np.abs(found.T @ truth)
    best = cosines.max(axis=0)
    best = best.min() if round_about is None else best[round_about]
    return float(np.degrees(np.arccos(min(1.0, best))))


def extents_off(found: Box, truth: Box) -> np.ndarray:
    """Return the differences of the sizes along the true axes, (3,) [mm]."""
    cosines = np.abs(found.rotation.T @ truth.rotation)
    order = cosines.argmax(axis=0)
    if len(set(order)) < 3:  # 45 degrees off: any order is as wrong
        order = np.arange(3)
    return 1000 * (found.extent[order] - truth.extent)


def can_axis(box: Box) -> int:
    """Return which axis of a can's true box is the can's: the one whose size is no other's."""
    return int(np.argmax(np.abs(3 * box.extent - box.extent.sum())))


def errors(case: Case, found: Object3D, depth: np.ndarray, camera: Camera) -> dict[str, float]:
    """Return how far a thing is from the truth [mm, degrees]."""
    surface = depth_to_points(depth, camera)[case.mask].mean(axis=0, dtype=np.float64)
    is_can = case.name in CANS
    sizes = extents_off(found.box, case.box)
    return {
        'centroid': 1000 * float(np.linalg.norm(found.centroid - surface)),
        'centre': 1000 * float(np.linalg.norm(found.box.centre - case.box.centre)),
        'axes': angle_between(
            found.box.rotation,
            case.box.rotation,
            round_about=can_axis(case.box) if is_can else None,
        ),
        'size': float(np.abs(sizes).mean()),
        'worst size': float(np.abs(sizes).max()),
    }


GROUPS = {
    'all': lambda case: True,
    'boxes, whole': lambda case: case.whole and case.name in CUBOIDS,
    'boxes, partly hidden': lambda case: not case.whole and case.name in CUBOIDS,
    'cans, whole': lambda case: case.whole and case.name in CANS,
    'cans, partly hidden': lambda case: not case.whole and case.name in CANS,
}


def table(title: str, rows: list[tuple[Case, dict[str, float]]]) -> None:
    """Print medians and 90th percentiles."""
    print(f'\n{title}: median / 90th percentile')
    names = ('centroid', 'centre', 'axes', 'size', 'worst size')
    units = ('mm', 'mm', 'deg', 'mm', 'mm')
    head = [f'{name} [{unit}]' for name, unit in zip(names, units, strict=True)]
    print(f'{"":22}{"n":>5}' + ''.join(f'{text:>19}' for text in head))
    for group, belongs in GROUPS.items():
        values = [error for case, error in rows if belongs(case)]
        if not values:
            continue
        line = f'{group:22}{len(values):5}'
        for name in names:
            some = [value[name] for value in values]
            means_nothing = group == 'all' and name not in ('centroid', 'centre')
            text = f'{np.median(some):.1f} / {np.quantile(some, 0.9):.1f}'
            line += f'{"" if means_nothing else text:>19}'
        print(line)
    good = [
        error['axes'] <= 3 and error['worst size'] <= 5
        for case, error in rows
        if case.whole and case.name in CUBOIDS + CANS
    ]
    if good:
        print(f'whole boxes and cans within 3 degrees and 5 mm on every side: {np.mean(good):.0%}')


def measure_rendered(cache: Path, count: int, model: str | None) -> None:
    """Print the tables of errors in rendered scenes."""
    lisa = None
    if model:
        from lisa_ros.perception.segmenter import Segmenter

        lisa = Segmenter.load(model)
    tables: dict[str, list] = {}
    lost = 0
    for number, (colour, depth, camera, up, seen) in enumerate(rendered(cache, count)):
        rng = np.random.default_rng(number)
        measured = worse(depth, rng)
        for case in seen:
            rough = off(case.mask, rng)
            given = {
                'truth masks, gravity known': (rough, up),
                'truth masks, gravity from the table': (rough, None),
            }
            alone = sum(other.kind == case.kind for other in seen) == 1
            if lisa is not None and alone:  # of two mugs, "the mug" may be either
                masks = lisa.segment(colour, f'segment the {case.kind}').masks
                if len(masks):
                    given[f'masks of {model}, gravity known'] = (masks[0], up)
            for title, (mask, upwards) in given.items():
                found = localize_object(colour, measured, mask, camera, upwards)
                if found is None:
                    lost += 1
                    continue
                rows = tables.setdefault(title, [])
                rows.append((case, errors(case, found, depth, camera)))
    for title, rows in tables.items():
        table(title, rows)
    print(f'\nmasks without a valid point: {lost}')


# ---------------------------------------------------------------- real frames


def label_points(points: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the points of a hand-made label without its own bleeding, (n, 3).

    Pixels beside a jump of 2 cm are left out, then pieces of less than 100 pixels and a tenth of
    the largest.
    """
    z = np.where(label, points[..., 2], np.nan)
    around = np.ones((3, 3), np.uint8)
    near = cv2.erode(np.where(np.isfinite(z), z, 9).astype(np.float32), around)
    far = cv2.dilate(np.where(np.isfinite(z), z, 0).astype(np.float32), around)
    smooth = np.isfinite(z) & (far - near < 0.02)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(smooth.astype(np.uint8))
    sizes = stats[:, cv2.CC_STAT_AREA].copy()
    sizes[0] = 0
    return points[(sizes >= min(100, 0.1 * sizes.max()))[labels] & smooth]


def read_osd(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colour, depth and labels of a frame; see the README of the data."""
    colour = cv2.imread(str(folder / f'{name}_color.jpg'), cv2.IMREAD_COLOR)[..., ::-1]
    depth = cv2.imread(str(folder / f'{name}_depth.png'), cv2.IMREAD_UNCHANGED)
    labels = cv2.imread(str(folder / f'{name}_label.png'), cv2.IMREAD_UNCHANGED)
    metres = np.where(depth > 0, depth * np.float32(0.001), np.float32(np.nan))
    return np.ascontiguousarray(colour), metres, labels


OSD = Camera(np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]), SIZE)


def farthest(points: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """Return how far (M, 3) points are from the nearest of the label's at most [m].

    And how many are beyond 3 cm. Some 1500 of the label's points do for most; those that are far
    from them are held against all.
    """
    everything, reference = reference, reference[:: -(-len(reference) // 1500)]
    squares = (reference**2).sum(axis=1)
    nearest = []
    for part in np.array_split(points, len(points) // 2000 + 1):
        distances = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ reference.T
        nearest.append(np.sqrt(np.maximum(distances.min(axis=1), 0)))
    away = np.concatenate(nearest)
    for i in np.flatnonzero(away > 0.02):
        away[i] = np.linalg.norm(everything - points[i], axis=1).min()
    return float(away.max(initial=0)), int((away > 0.03).sum())


def measure_osd(folder: Path) -> None:
    """Print how many objects have no point beyond 3 cm, with and without our cleaning."""
    held = frames = objects = 0
    raw_held, worst, kept = 0, [], []
    names = sorted(path.name.removesuffix('_color.jpg') for path in folder.glob('*_color.jpg'))
    for name in names:
        colour, depth, labels = read_osd(folder, name)
        points = depth_to_points(depth, OSD)
        all_held = True
        for number in np.unique(labels[labels >= 2]):
            label = labels == number
            reference = label_points(points, label)
            mask = cv2.dilate(label.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
            found = localize_object(colour, depth, mask, OSD)
            if found is None or not len(reference):
                continue
            objects += 1
            far, count = farthest(found.points, reference)
            raw_held += not farthest(points[mask & np.isfinite(depth)], reference)[1]
            held += not count
            all_held &= not count
            own = label & np.isfinite(depth)
            inside = own[found.pixels[:, 1], found.pixels[:, 0]]
            kept.append(np.count_nonzero(inside) / np.count_nonzero(own))
            worst.append((far, count, f'{name} {number}'))
        frames += all_held
    print(f'\nOSD, labels dilated by 3 pixels: {objects} objects in {len(names)} frames')
    print(f'no point beyond 3 cm of the label: {held} objects, all objects of {frames} frames')
    print(f'the same without cleaning: {raw_held} objects')
    low, middle = np.quantile(kept, (0.05, 0.5))
    print(
        f"share of the label's points that is kept: median {middle:.3f}, 5th percentile {low:.3f}"
    )
    for far, count, name in sorted(worst, reverse=True)[: max(5, objects - held)]:
        print(f'  {name:14} farthest {100 * far:5.1f} cm, {count} points beyond 3 cm')


# ---------------------------------------------------------------- time


def measure_time() -> None:
    """Print medians of 50 runs."""
    rng = np.random.default_rng(0)
    for size in ((640, 480), (1280, 720)):
        k = np.array([[size[0], 0, size[0] / 2], [0, size[0], size[1] / 2], [0, 0, 1.0]])
        camera = Camera(k, size)
        depth = worse(table_with_box(camera), rng)
        image = rng.integers(0, 255, (*depth.shape, 3), np.uint8)
        u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        mask = (np.abs(u - size[0] / 2) < size[0] / 10) & (np.abs(v - size[1] / 2) < size[1] / 7)
        points = np.empty((*depth.shape, 3), np.float32)
        cloud = np.empty((*depth.shape, 4), np.float32)
        runs = {
            'scene_points': lambda d=depth, c=camera, o=points: depth_to_points(d, c, o),
            'scene_cloud': lambda i=image, d=depth, c=camera, o=cloud: depth_to_cloud(i, d, c, o),
            f'thing, {mask.sum()} px': lambda i=image, d=depth, m=mask, c=camera: localize_object(
                i, d, m, c
            ),
        }
        for name, run in runs.items():
            run()
            times = []
            for _ in range(50):
                began = time.perf_counter()
                run()
                times.append(1000 * (time.perf_counter() - began))
            middle, slowest = np.median(times), max(times)
            print(f'{size[0]} x {size[1]}  {name:18} {middle:6.1f} ms, worst {slowest:.1f}')


def table_with_box(camera: Camera) -> np.ndarray:
    """Return the depth of a table seen at 45 degrees with a box in the middle, (H, W) float32."""
    rays = camera.rays()
    table = 0.6 / (rays[..., 1] + 1.0)
    box = (np.abs(rays[..., 0]) < 0.1) & (np.abs(rays[..., 1]) < 0.08)
    return np.where(box, table - 0.06, np.clip(table, 0, 5)).astype(np.float32)


# ---------------------------------------------------------------- a picture


def turned(points: np.ndarray, box: Box, yaw: float, pitch: float) -> np.ndarray:
    """Return (n, 3) points as a level camera sees them, turned and looking down [degrees].

    x right, y down, z away; level by the third axis of the box.
    """
    up = box.rotation[:, 2]
    away = np.array([0, 0, 1.0]) - up[2] * up
    away /= np.linalg.norm(away)
    level = points @ np.stack([np.cross(away, up), -up, away], axis=1)
    y, p = np.radians((yaw, pitch))
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    return level @ (about_x @ about_y).T


def side_view(
    things: list[Object3D], yaw: float, pitch: float, size: tuple[int, int]
) -> np.ndarray:
    """Return the things' points with their boxes, seen from beside, (H, W, 3) uint8 RGB."""
    corners = np.concatenate([found.box.corners() for found in things])
    level = things[0].box
    flat = turned(corners, level, yaw, pitch)[:, :2]
    low, high = flat.min(axis=0), flat.max(axis=0)
    scale = 0.86 * min(np.array(size) / (high - low))
    shift = np.array(size) / 2 - scale * (low + high) / 2
    picture = np.full((size[1], size[0], 3), (24, 27, 34), np.uint8)
    points = np.concatenate([found.points for found in things])
    colours = np.concatenate([found.colours for found in things])
    seen = turned(points, level, yaw, pitch)
    for i in np.argsort(-seen[:, 2]):  # the nearest last
        u, v = np.rint(seen[i, :2] * scale + shift).astype(int)
        cv2.circle(picture, (u, v), max(1, round(0.0012 * scale)), colours[i].tolist(), cv2.FILLED)
    for number, found in enumerate(things):
        ends = turned(found.box.corners(), level, yaw, pitch)[:, :2] * scale + shift
        for one in range(8):
            for bit in (1, 2, 4):
                if one & bit == 0:
                    line = [tuple(int(x) for x in np.rint(ends[i])) for i in (one, one | bit)]
                    cv2.line(picture, *line, overlay.colour(number), 2, cv2.LINE_AA)
    return picture


def draw(folder: Path, out: Path, name: str) -> None:
    """Write a real frame with its masks and, beside it, the things' clouds from two sides."""
    colour, depth, labels = read_osd(folder, name)
    shown = np.stack([labels == number for number in np.unique(labels[labels >= 2])])
    grown = [cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0 for mask in shown]
    things = [found for mask in grown if (found := localize_object(colour, depth, mask, OSD))]
    rows, columns = np.nonzero(np.any(grown, axis=0))
    part = np.s_[
        max(0, rows.min() - 40) : rows.max() + 40, max(0, columns.min() - 60) : columns.max() + 60
    ]
    left = overlay.overlay(colour[part], np.stack(grown)[(slice(None), *part)], opacity=0.25)
    height = left.shape[0]
    views = [side_view(things, yaw, pitch, (560, height)) for yaw, pitch in ((35, 20), (-45, 35))]
    sheet = np.concatenate([left, *views], axis=1)
    cv2.imwrite(str(out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 76])


def main() -> None:
    """Measure and print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--assets-cache', type=Path)
    parser.add_argument('--scenes', type=int, default=200)
    parser.add_argument('--model')
    parser.add_argument('--osd', type=Path)
    parser.add_argument('--picture', type=Path)
    parser.add_argument('--frame', default='learn13')
    parser.add_argument('--timing', action='store_true')
    options = parser.parse_args()
    if options.timing:
        measure_time()
    if options.osd and not options.picture:
        measure_osd(options.osd)
    if options.osd and options.picture:
        draw(options.osd, options.picture, options.frame)
    if options.assets_cache:
        measure_rendered(options.assets_cache, options.scenes, options.model)


if __name__ == '__main__':
    main()
