# SPDX-License-Identifier: Apache-2.0
"""Measure how well the tracker follows masks, on rendered sequences with ground truth.

Three kinds of sequences, of scenes of the test split, 640 x 480 at 30 frames/s:

    arc       the camera moves round the table for 3 s, at changing speed
    pan       the camera looks at the table, then turns until no object is in the image
    occluder  an object flies in front of another and stays there; the camera moves a little

Each object that is completely inside the first image and has at least 600 pixels is tracked from
its true mask. IoU is measured in the arcs, between tracked and true mask, while at least half of
the object's first area is visible. An object is lost at the frame from which on less than a tenth
of that area is visible. A reported loss is false while at least three tenths are visible. Frames/s
are of `update` alone, with one OpenCV thread.

    MUJOCO_GL=egl taskset -c 0 python benchmarks/tracking.py --assets-cache CACHE [--sheet PNG]

CACHE is the folder `assets` that `lisa-ros scenes` writes. Rendering takes ten minutes;
`--frames FOLDER` keeps the images for the next run.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.perception import masks, overlay
from lisa_ros.tabletop import rendering, scene_sampling
from lisa_ros.tabletop.objects import PART_FLAG
from lisa_ros.tabletop.sample_bag import camera_path
from lisa_ros.tracking.optical_flow import FlowTracker

SIZE, RATE = (640, 480), 30
SECONDS = {'arc': 3.1, 'pan': 2.6, 'occluder': 2.2}
FIRST = {'arc': 0, 'pan': 20, 'occluder': 40}  # scene number of the first sequence of each kind
AFTER = (0.5, 1.0, 2.0, 3.0)  # times at which the IoU is reported [s]
IN_TIME = round(0.5 * RATE)  # frames within which a loss must be reported


@dataclass(frozen=True)
class Frame:
    """One frame with its ground truth."""

    stamp: int  # [ns]
    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 [m], NaN invalid
    ids: np.ndarray  # (H, W) uint8: number of the visible object, 0 background


def render(renderer: rendering.Renderer, kind: str, number: int, folder: Path) -> None:
    """Render one sequence into a folder."""
    scene = scene_sampling.draw_scene(scene_sampling.scene_rng('test', number), renderer.boxes)
    renderer.set_scene(scene)
    rng = np.random.default_rng((7, number))
    count = round(SECONDS[kind] * RATE)
    if kind == 'arc':
        poses = camera_path(count, rng.uniform(0.25, 0.75))[:: 1 if rng.random() < 0.5 else -1]
    elif kind == 'pan':
        poses = _pan(count, rng)
    else:
        poses = camera_path(count, 0.06)
    moved = _occluder(scene, poses[0], rng) if kind == 'occluder' else None
    folder.mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(poses):
        if moved:
            body, start, end = moved
            ratio = _eased((i / RATE - 0.4) / 0.8)
            mocap = renderer.model.body(body).mocapid[0]
            renderer.data.mocap_pos[mocap] = (1 - ratio) * start + ratio * end
        frame = renderer.render(pose)
        millimetres = np.clip(np.rint(frame.depth * 1000), 0, 65535).astype(np.uint16)
        quick = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        cv2.imwrite(str(folder / f'{i:03d}.colour.png'), frame.image[..., ::-1], quick)
        cv2.imwrite(str(folder / f'{i:03d}.depth.png'), millimetres, quick)
        cv2.imwrite(str(folder / f'{i:03d}.ids.png'), frame.ids % PART_FLAG, quick)
    (folder / 'done').touch()


def _eased(ratio: float) -> float:
    """Return the position, 0..1, of a smooth movement at a time 0..1."""
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, ratio)))


def _pan(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return poses, (4, 4) each, of a camera that turns by 75 degrees, starting at 0.3 s."""
    start = camera_path(3)[int(rng.integers(3))]
    sign = rng.choice([-1, 1])
    poses = []
    for i in range(count):
        angle = sign * math.radians(75) * _eased((i / RATE - 0.3) / 1.7)
        turn = np.eye(4)
        turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        pose = start.copy()
        pose[:3, :3] = turn[:3, :3] @ start[:3, :3]
        poses.append(pose)
    return poses


def _occluder(scene: scene_sampling.Scene, pose: np.ndarray, rng: np.random.Generator):
    """Return body, start and end position of an object that flies so that it hides another."""
    if len(scene.objects) < 2:
        return None  # no object can hide another
    # The broadest object occluder. Breadth is the middle extent: a bottle is not broad.
    extents = [np.sort(np.array(p.box_max) - p.box_min) for p in scene.objects]
    broadest = int(np.argmax([e[1] for e in extents]))
    hidden = int(rng.choice([i for i in range(len(extents)) if i != broadest]))
    middle = [
        (np.array(p.box_min) + p.box_max) / 2
        for p in (scene.objects[hidden], scene.objects[broadest])
    ]
    # Place it so near to the camera that its image is broader than the hidden object is long.
    needed = np.linalg.norm(extents[hidden])
    left = float(np.clip(0.75 * extents[broadest][1] / needed, 0.2, 0.75))
    occluder = scene.objects[broadest]
    cover = pose[:3, 3] + left * (middle[0] - pose[:3, 3])
    start = np.array(occluder.position)
    return (
        scene_sampling.body_name(occluder.model, occluder.size),
        start,
        start + cover - middle[1],
    )


def read_frames(folder: Path) -> Iterator[Frame]:
    """Read a rendered sequence, frame by frame."""
    for i, path in enumerate(sorted(folder.glob('*.colour.png'))):
        name = str(path).removesuffix('.colour.png')
        depth = cv2.imread(f'{name}.depth.png', cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        depth[depth == 0] = np.nan
        ids = cv2.imread(f'{name}.ids.png', cv2.IMREAD_UNCHANGED)
        colour = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        yield Frame(round(i * 1e9 / RATE), colour, depth, ids)


@dataclass
class Scores:
    """Results of all sequences together."""

    iou: dict[float, list[float]] = field(default_factory=lambda: {s: [] for s in AFTER})
    reported: dict[str, list[bool]] = field(default_factory=lambda: {'pan': [], 'occluder': []})
    false: dict[str, list[bool]] = field(default_factory=lambda: {kind: [] for kind in SECONDS})
    pairs: list[tuple[float, float]] = field(default_factory=list)  # (drift, IoU)
    seconds: float = 0.0  # wall-clock time of `update` [s]
    cpu_seconds: float = 0.0  # CPU time of `update` [s]
    frames: int = 0
    objects: int = 0


def tracked_ids(ids: np.ndarray) -> list[int]:
    """Return the numbers of the objects to track, from the ids (H, W) of the first frame."""
    inside = np.zeros(ids.shape, bool)
    inside[1:-1, 1:-1] = True
    counts = np.bincount(ids.ravel(), minlength=256)
    return [i for i in range(1, 256) if counts[i] >= 600 and not (~inside & (ids == i)).any()]


def track(folder: Path, kind: str, scores: Scores, *, with_depth: bool) -> list[np.ndarray]:
    """Track all objects of a sequence; return overlays of its start, middle and end."""
    tracker, visible, tracked, overlays = FlowTracker(), [], [], []
    count = len(list(folder.glob('*.colour.png')))
    for i, frame in enumerate(read_frames(folder)):
        depth = frame.depth if with_depth else None
        if i == 0:
            numbers = tracked_ids(frame.ids)
            if not numbers:
                return []
            first = np.stack([frame.ids == t for t in numbers])
            tracker.set_reference(frame.stamp, frame.colour, depth)
            tracker.set_masks(frame.stamp, first)
        else:
            start, cpu_start = time.perf_counter(), time.process_time()
            tracker.update(frame.stamp, frame.colour, depth)
            scores.seconds += time.perf_counter() - start
            scores.cpu_seconds += time.process_time() - cpu_start
            scores.frames += 1
        state = tracker.state()
        ground_truth = np.stack([frame.ids == t for t in numbers])
        visible.append(ground_truth.sum((1, 2)) / first.sum((1, 2)))
        tracked.append(state.tracked)
        for t in np.flatnonzero(visible[-1] >= 0.5) if kind == 'arc' else []:
            overlap = masks.iou(state.masks[t], ground_truth[t])
            scores.pairs.append((float(state.drift[t]), overlap))
            if i / RATE in AFTER:
                scores.iou[i / RATE].append(overlap)
        if i in (0, count // 2, count - 1):
            labels = ['' if is_tracked else 'lost' for is_tracked in state.tracked]
            overlays.append(overlay.overlay(frame.colour, state.masks, labels, opacity=0.3))
    scores.objects += len(numbers)
    _count_losses(np.array(visible), np.array(tracked), kind, scores)
    return overlays


def _count_losses(visible: np.ndarray, tracked: np.ndarray, kind: str, scores: Scores) -> None:
    """Count losses reported in time, and false losses.

    Args:
        visible: (frames, objects), visible fraction of each object's first area.
        tracked: (frames, objects) bool, False where the tracker reports a loss.
        kind: kind of the sequence.
        scores: counts are added here.
    """
    scores.false[kind].extend((~tracked)[visible >= 0.3].tolist())
    for share, is_tracked in zip(visible.T, tracked.T, strict=True):
        # index of the first frame from which on the object stays invisible
        gone = len(share) - int(np.argmin((share < 0.1)[::-1]))
        if kind != 'arc' and 0 < gone < len(share) - IN_TIME:
            scores.reported[kind].append(bool((~is_tracked[gone : gone + IN_TIME + 1]).any()))


def main() -> None:
    """Render missing sequences, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--assets-cache', type=Path, required=True, help='folder `assets` of `lisa-ros scenes`'
    )
    parser.add_argument('--frames', type=Path, help='folder that keeps the rendered images')
    parser.add_argument(
        '--count', type=int, default=10, help='sequences of each kind (default: 10)'
    )
    parser.add_argument('--sheet', type=Path, help='write a PNG of the tracked masks')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        frames = options.frames or Path(temporary)
        sequences = render_sequences(options.assets_cache, frames, options.count)
        sheet: list[np.ndarray] = []
        for with_depth in (False, True):
            scores = Scores()
            for kind, folder in sequences:
                overlays = track(folder, kind, scores, with_depth=with_depth)
                sheet += overlays if not with_depth else []
            report(scores, 'with depth' if with_depth else 'without depth')
    if options.sheet:
        image = overlay.contact_sheet(sheet, columns=3, width=400)
        cv2.imwrite(str(options.sheet), image[..., ::-1])


def render_sequences(cache: Path, frames: Path, count: int) -> list[tuple[str, Path]]:
    """Return kind and folder of `count` sequences of each kind; render missing ones."""
    renderer = None
    sequences = []
    for kind, first in FIRST.items():
        for number in range(first, first + count):
            folder = frames / f'{kind}-{number}'
            if not (folder / 'done').is_file():
                renderer = renderer or rendering.Renderer(cache, *SIZE)
                render(renderer, kind, number, folder)
            sequences.append((kind, folder))
    return sequences


def report(scores: Scores, title: str) -> None:
    """Print the results of one run."""
    drift, overlap = np.array(scores.pairs).T
    print(f'{title}: {scores.objects} objects, {scores.frames} frames')
    for seconds, values in scores.iou.items():
        print(f'  IoU after {seconds} s     {np.mean(values):.3f}   of {len(values)}')
    for kind, reported in scores.reported.items():
        print(f'  reported losses, {kind:10}{np.mean(reported):.2f}   of {len(reported)}')
    for kind, false in scores.false.items():
        print(f'  false losses, {kind:10}{np.mean(false):.4f} of {len(false)} frames x objects')
    print(f'  correlation of drift and IoU {np.corrcoef(drift, overlap)[0, 1]:.2f}')
    print(f'  frames/s, one core   {scores.frames / scores.seconds:.0f}')
    print(f'  frames/s of CPU time {scores.frames / scores.cpu_seconds:.0f}')


if __name__ == '__main__':
    main()
