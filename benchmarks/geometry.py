# SPDX-License-Identifier: Apache-2.0
"""Measure the accuracy and speed of 3D points, centroids and boxes of objects.

    python benchmarks/geometry.py --assets-cache CACHE [--scenes N] [--model M]
    python benchmarks/geometry.py --osd OSD [--image docs/object_cloud.jpg]
    python benchmarks/geometry.py --timing

Rendered scenes: those of the test split at 640 x 480. Depth gets the errors of a Kinect (noise by
distance, whole millimetres, mixed pixels and holes at depth edges, single holes). The masks are
the true masks with edges moved by up to two pixels; with --model also the model's masks of
"segment the <name>". The true centroid is the mean of the object's visible surface in the rendered
depth; the true box is that of the mesh in its pose. CACHE is the folder `assets` that `lisa-ros
scenes` writes. Set MUJOCO_GL=egl on a machine without a display.

OSD is a folder of real Kinect frames. The masks are the labels, dilated by three pixels. No point
may be farther than 3 cm from the points of the label (label_points says which).
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
from lisa_ros.geometry.object_3d import Object3D, localize_object
from lisa_ros.geometry.oriented_box import Box
from lisa_ros.geometry.point_cloud import depth_to_cloud
from lisa_ros.geometry.rgbd import depth_noise_std, depth_to_points
from lisa_ros.perception import overlay  # after sys.path is set

CUBOIDS = (
    'cereal', 'popcorn', 'macaroni', 'butter', 'cream_cheese', 'chocolate_pudding', 'sponge',
    'yellow_book', 'black_book',
)  # fmt: skip
CANS = ('soda_can', 'alphabet_soup', 'candle')
MIN_PIXELS = 300  # visible pixels of an object; objects with fewer are skipped
SIZE = 640, 480

# ---------------------------------------------------------------- rendered scenes


@dataclass(frozen=True)
class Case:
    """One visible object of a scene, in the camera's optical frame."""

    name: str
    category: str
    mask: np.ndarray  # (H, W) bool, the true mask
    box: Box  # the true box
    whole: bool  # fully visible


def degraded(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rendered depth with the errors of a Kinect, (H, W) float32 [m], NaN where invalid."""
    around = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth, around), cv2.dilate(depth, around)
    jumps = far - near > 0.015
    mixed = jumps & (rng.random(depth.shape) < 0.5)
    ratio = rng.random(depth.shape)
    measured = np.where(mixed, near + ratio * (far - near), depth)
    measured = measured + depth_noise_std(measured) * rng.standard_normal(depth.shape)
    measured = np.rint(measured * 1000) / 1000
    lost = rng.random(depth.shape) < np.where(jumps, 0.25, 0.01)
    return np.where(lost, np.nan, measured).astype(np.float32)


def with_wavy_edge(mask: np.ndarray, rng: np.random.Generator, most: float = 2.0) -> np.ndarray:
    """Return a mask whose edge is moved in and out by up to `most` pixels, in smooth waves."""
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outer = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    waves = cv2.resize(rng.uniform(-most, most, (16, 20)), mask.shape[::-1])
    signed = np.where(mask, inner - 0.5, 0.5 - outer)
    return signed > waves


def true_box(placed, boxes: dict, pose: np.ndarray, cache: Path) -> Box:
    """Return the box of a placed mesh in the optical frame.

    Args:
        placed: the object of the scene.
        boxes: lower and upper corner of each mesh, in its own units, by name.
        pose: (4, 4) of the optical frame in the world.
        cache: folder with the meshes.
    """
    from lisa_ros.tabletop import scene_sampling

    low, high = np.array(boxes[placed.model.name])
    if placed.model.name in CANS:
        low, high = can_box(cache, placed.model.name, low, high)
    scale = scene_sampling.mesh_scale(placed.model, placed.size, boxes[placed.model.name])
    rotation = scene_sampling.rotation_matrix(placed.quaternion)
    middle = rotation @ ((low + high) / 2 * scale) + placed.position
    to_camera = pose[:3, :3].T
    return Box(to_camera @ (middle - pose[:3, 3]), to_camera @ rotation, (high - low) * scale)


@functools.cache
def shell(cache: Path, name: str) -> np.ndarray:
    """Return 20000 points sampled uniformly on a mesh, (n, 3) in its own units."""
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
    """Return the box of a can without protruding parts: the soup's label has a loose flap."""
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
    """Return the visible objects of a rendered frame."""
    from lisa_ros.tabletop.objects import PART_FLAG

    ids = frame.ids & ~np.uint8(PART_FLAG)
    visible = []
    for number, placed in enumerate(scene.objects, start=1):
        mask = ids == number
        if np.count_nonzero(mask) < MIN_PIXELS:
            continue
        band = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~mask
        behind = cv2.dilate(np.where(mask, frame.depth, 0), np.ones((3, 3), np.uint8))
        hidden = band & (ids > 0) & (frame.depth < behind)
        cut = mask[[0, -1]].any() or mask[:, [0, -1]].any()
        whole = not cut and np.count_nonzero(hidden) < 0.02 * np.count_nonzero(band)
        visible.append(
            Case(
                placed.model.name,
                placed.model.category,
                mask,
                true_box(placed, boxes, pose, cache),
                bool(whole),
            )
        )
    return visible


def rendered(cache: Path, count: int):
    """Yield image, rendered depth, camera, up vector and cases of scenes of the test split."""
    from lisa_ros.tabletop import rendering, scene_sampling

    renderer = rendering.Renderer(cache, *SIZE)
    for number in range(count):
        rng = scene_sampling.scene_rng('test', number)
        scene = scene_sampling.draw_scene(rng, renderer.boxes)
        renderer.set_scene(scene)
        pose = scene_sampling.camera_matrix(*scene_sampling.draw_camera(rng))
        frame = renderer.render(pose)
        camera = Camera(frame.k, SIZE)
        yield (
            frame.image,
            frame.depth,
            camera,
            pose[2, :3],
            cases(scene, frame, renderer.boxes, pose, cache),
        )


# ---------------------------------------------------------------- errors


def angle_between(rotation: np.ndarray, expected: np.ndarray, *, axis: int | None) -> float:
    """Return the angle between the axes of two boxes [degrees], in any order and sign of the axes.

    For a can only its symmetry axis counts, column `axis` of the true axes.
    """
    cosines = np.abs(rotation.T @ expected)
    best = cosines.max(axis=0)
    best = best.min() if axis is None else best[axis]
    return float(np.degrees(np.arccos(min(1.0, best))))


def extent_errors(box: Box, expected: Box) -> np.ndarray:
    """Return the size errors along the true axes, (3,) [mm]."""
    cosines = np.abs(box.rotation.T @ expected.rotation)
    order = cosines.argmax(axis=0)
    if len(set(order)) < 3:  # 45 degrees off: no order of the axes is better
        order = np.arange(3)
    return 1000 * (box.extent[order] - expected.extent)


def can_axis(box: Box) -> int:
    """Return the index of a can's symmetry axis: its size differs from the other two."""
    return int(np.argmax(np.abs(3 * box.extent - box.extent.sum())))


def errors(case: Case, located: Object3D, depth: np.ndarray, camera: Camera) -> dict[str, float]:
    """Return the errors of an object [mm, degrees]."""
    surface = depth_to_points(depth, camera)[case.mask].mean(axis=0, dtype=np.float64)
    is_can = case.name in CANS
    sizes = extent_errors(located.box, case.box)
    return {
        'centroid': 1000 * float(np.linalg.norm(located.centroid - surface)),
        'centre': 1000 * float(np.linalg.norm(located.box.centre - case.box.centre)),
        'axes': angle_between(
            located.box.rotation,
            case.box.rotation,
            axis=can_axis(case.box) if is_can else None,
        ),
        'size': float(np.abs(sizes).mean()),
        'worst size': float(np.abs(sizes).max()),
    }


GROUPS = {
    'all': lambda case: True,
    'boxes, fully visible': lambda case: case.whole and case.name in CUBOIDS,
    'boxes, partly hidden': lambda case: not case.whole and case.name in CUBOIDS,
    'cans, fully visible': lambda case: case.whole and case.name in CANS,
    'cans, partly hidden': lambda case: not case.whole and case.name in CANS,
}


def table(title: str, rows: list[tuple[Case, dict[str, float]]]) -> None:
    """Print the median and the 90th percentile of each error, by group of objects."""
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
            errors_of_group = [value[name] for value in values]
            is_mixed = group == 'all' and name not in ('centroid', 'centre')
            text = f'{np.median(errors_of_group):.1f} / {np.quantile(errors_of_group, 0.9):.1f}'
            line += f'{"" if is_mixed else text:>19}'
        print(line)
    good = [
        error['axes'] <= 3 and error['worst size'] <= 5
        for case, error in rows
        if case.whole and case.name in CUBOIDS + CANS
    ]
    if good:
        print(
            'fully visible boxes and cans within 3 degrees and 5 mm on every side: '
            f'{np.mean(good):.0%}'
        )


def measure_rendered(cache: Path, count: int, model: str | None) -> None:
    """Print the tables of errors in rendered scenes."""
    lisa = None
    if model:
        from lisa_ros.perception.segmenter import Segmenter

        lisa = Segmenter.load(model)
    tables: dict[str, list] = {}
    lost = 0
    for number, (colour, depth, camera, up, visible) in enumerate(rendered(cache, count)):
        rng = np.random.default_rng(number)
        measured = degraded(depth, rng)
        for case in visible:
            rough = with_wavy_edge(case.mask, rng)
            inputs = {
                'true masks, gravity known': (rough, up),
                'true masks, gravity from the table': (rough, None),
            }
            alone = sum(other.category == case.category for other in visible) == 1
            if lisa is not None and alone:  # with two mugs, "the mug" is ambiguous
                masks = lisa.segment(colour, f'segment the {case.category}').masks
                if len(masks):
                    inputs[f'masks of {model}, gravity known'] = (masks[0], up)
            for title, (mask, upwards) in inputs.items():
                located = localize_object(colour, measured, mask, camera, upwards)
                if located is None:
                    lost += 1
                    continue
                rows = tables.setdefault(title, [])
                rows.append((case, errors(case, located, depth, camera)))
    for title, rows in tables.items():
        table(title, rows)
    print(f'\nmasks without a valid point: {lost}')


# ---------------------------------------------------------------- real frames


def label_points(points: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the points of a hand-made label without background at its edges, (n, 3) [m].

    Pixels next to a depth edge of 2 cm are left out. Then connected pieces are left out that have
    less than 100 pixels and less than a tenth of the pixels of the largest piece.
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
    """Return RGB image, depth [m] and label ids of a frame, as the README of OSD describes."""
    colour = cv2.imread(str(folder / f'{name}_color.jpg'), cv2.IMREAD_COLOR)[..., ::-1]
    depth = cv2.imread(str(folder / f'{name}_depth.png'), cv2.IMREAD_UNCHANGED)
    labels = cv2.imread(str(folder / f'{name}_label.png'), cv2.IMREAD_UNCHANGED)
    metres = np.where(depth > 0, depth * np.float32(0.001), np.float32(np.nan))
    return np.ascontiguousarray(colour), metres, labels


OSD = Camera(np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]), SIZE)


def farthest(points: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """Return the largest distance of (M, 3) points to the label [m], and how many exceed 3 cm.

    The distance of a point is that to the nearest point of the label. About 1500 points of the
    label are compared first; a point that is over 2 cm from them is compared with all.
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
    """Print how many objects have no point beyond 3 cm, with and without our depth filter."""
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
            located = localize_object(colour, depth, mask, OSD)
            if located is None or not len(reference):
                continue
            objects += 1
            far, count = farthest(located.points, reference)
            raw_held += not farthest(points[mask & np.isfinite(depth)], reference)[1]
            held += not count
            all_held &= not count
            own = label & np.isfinite(depth)
            inside = own[located.pixels[:, 1], located.pixels[:, 0]]
            kept.append(np.count_nonzero(inside) / np.count_nonzero(own))
            worst.append((far, count, f'{name} {number}'))
        frames += all_held
    print(f'\nOSD, labels dilated by 3 pixels: {objects} objects in {len(names)} frames')
    print(f'no point beyond 3 cm of the label: {held} objects, all objects of {frames} frames')
    print(f'the same without the depth filter: {raw_held} objects')
    low, middle = np.quantile(kept, (0.05, 0.5))
    print(
        f"fraction of the label's points that is kept: median {middle:.3f}, "
        f'5th percentile {low:.3f}'
    )
    for far, count, name in sorted(worst, reverse=True)[: max(5, objects - held)]:
        print(f'  {name:14} farthest {100 * far:5.1f} cm, {count} points beyond 3 cm')


# ---------------------------------------------------------------- time


def measure_time() -> None:
    """Print median and maximum of 50 runs."""
    rng = np.random.default_rng(0)
    for size in ((640, 480), (1280, 720)):
        k = np.array([[size[0], 0, size[0] / 2], [0, size[0], size[1] / 2], [0, 0, 1.0]])
        camera = Camera(k, size)
        depth = degraded(table_with_box(camera), rng)
        image = rng.integers(0, 255, (*depth.shape, 3), np.uint8)
        u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        mask = (np.abs(u - size[0] / 2) < size[0] / 10) & (np.abs(v - size[1] / 2) < size[1] / 7)
        points = np.empty((*depth.shape, 3), np.float32)
        cloud = np.empty((*depth.shape, 4), np.float32)
        runs = {
            'scene_points': lambda d=depth, c=camera, o=points: depth_to_points(d, c, o),
            'scene_cloud': lambda i=image, d=depth, c=camera, o=cloud: depth_to_cloud(i, d, c, o),
            f'object, {mask.sum()} px': lambda i=image, d=depth, m=mask, c=camera: localize_object(
                i, d, m, c
            ),
        }
        for name, run in runs.items():
            run()
            times = []
            for _ in range(50):
                start = time.perf_counter()
                run()
                times.append(1000 * (time.perf_counter() - start))
            middle, slowest = np.median(times), max(times)
            print(f'{size[0]} x {size[1]}  {name:18} {middle:6.1f} ms, worst {slowest:.1f}')


def table_with_box(camera: Camera) -> np.ndarray:
    """Return the depth of a table with a box, seen at 45 degrees, (H, W) float32 [m]."""
    rays = camera.rays()
    table = 0.6 / (rays[..., 1] + 1.0)
    box = (np.abs(rays[..., 0]) < 0.1) & (np.abs(rays[..., 1]) < 0.08)
    return np.where(box, table - 0.06, np.clip(table, 0, 5)).astype(np.float32)


# ---------------------------------------------------------------- figure of the docs


def turned(points: np.ndarray, box: Box, yaw: float, pitch: float) -> np.ndarray:
    """Return (n, 3) points in the frame of a camera with this yaw and pitch [degrees].

    x right, y down, z forward. At yaw and pitch 0 the camera is level: the third axis of the box
    is up.
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
    objects: list[Object3D], yaw: float, pitch: float, size: tuple[int, int]
) -> np.ndarray:
    """Return a drawing of the objects' points and boxes from the side, (H, W, 3) uint8 RGB."""
    corners = np.concatenate([located.box.corners() for located in objects])
    level = objects[0].box
    flat = turned(corners, level, yaw, pitch)[:, :2]
    low, high = flat.min(axis=0), flat.max(axis=0)
    scale = 0.86 * min(np.array(size) / (high - low))
    shift = np.array(size) / 2 - scale * (low + high) / 2
    image = np.full((size[1], size[0], 3), (24, 27, 34), np.uint8)
    points = np.concatenate([located.points for located in objects])
    colours = np.concatenate([located.colours for located in objects])
    view = turned(points, level, yaw, pitch)
    for i in np.argsort(-view[:, 2]):  # far to near: near points cover far ones
        u, v = np.rint(view[i, :2] * scale + shift).astype(int)
        cv2.circle(image, (u, v), max(1, round(0.0012 * scale)), colours[i].tolist(), cv2.FILLED)
    for number, located in enumerate(objects):
        ends = turned(located.box.corners(), level, yaw, pitch)[:, :2] * scale + shift
        for corner in range(8):
            for bit in (1, 2, 4):
                if corner & bit == 0:
                    line = [
                        tuple(int(x) for x in np.rint(ends[i])) for i in (corner, corner | bit)
                    ]
                    cv2.line(image, *line, overlay.colour(number), 2, cv2.LINE_AA)
    return image


def draw(folder: Path, out: Path, name: str) -> None:
    """Write a frame with its masks, and next to it the objects' clouds from two sides."""
    colour, depth, labels = read_osd(folder, name)
    shown = np.stack([labels == number for number in np.unique(labels[labels >= 2])])
    grown = [cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0 for mask in shown]
    objects = [located for mask in grown if (located := localize_object(colour, depth, mask, OSD))]
    rows, columns = np.nonzero(np.any(grown, axis=0))
    part = np.s_[
        max(0, rows.min() - 40) : rows.max() + 40, max(0, columns.min() - 60) : columns.max() + 60
    ]
    left = overlay.overlay(colour[part], np.stack(grown)[(slice(None), *part)], opacity=0.25)
    height = left.shape[0]
    views = [side_view(objects, yaw, pitch, (560, height)) for yaw, pitch in ((35, 20), (-45, 35))]
    sheet = np.concatenate([left, *views], axis=1)
    cv2.imwrite(str(out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 76])


def main() -> None:
    """Run the chosen measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--assets-cache', type=Path, help='folder `assets` of `lisa-ros scenes`')
    parser.add_argument('--scenes', type=int, default=200, help='number of scenes (default: 200)')
    parser.add_argument('--model', help='measure masks of this model, too (default: none)')
    parser.add_argument('--osd', type=Path, help='folder of OSD frames')
    parser.add_argument('--image', type=Path, help='with --osd: draw a frame into this file')
    parser.add_argument('--frame', default='learn13', help='frame to draw (default: learn13)')
    parser.add_argument('--timing', action='store_true', help='measure the time')
    options = parser.parse_args()
    if options.timing:
        measure_time()
    if options.osd and not options.image:
        measure_osd(options.osd)
    if options.osd and options.image:
        draw(options.osd, options.image, options.frame)
    if options.assets_cache:
        measure_rendered(options.assets_cache, options.scenes, options.model)


if __name__ == '__main__':
    main()
