# SPDX-License-Identifier: Apache-2.0
"""How well masks are carried from frame to frame: rendered sequences whose truth is known.

Three sorts of sequences, of scenes of the test split, 640 x 480 at 30 frames/s:

    arc       the camera goes round the table at changing speeds for 3 s
    pan       it looks at the table, then turns away until all things are out of the picture
    occluder  one thing flies in front of another and stays there; the camera moves a little

Every thing that is wholly in the first picture, and 600 pixels of it at least, is followed from
its true mask. IoU is that of the carried mask with the truth in the arcs, for the things that
still show a half of what they showed at first. A thing is lost from when less than a tenth of
that shows for good; a loss is false where three tenths of it show. Frames/s are of `advance`
alone, with one thread of OpenCV.

    MUJOCO_GL=egl taskset -c 0 python benchmarks/tracking.py --assets-cache CACHE [--sheet PNG]

CACHE is what `lisa-ros scenes` makes of its assets, a folder `assets`. Rendering takes ten
minutes; `--frames FOLDER` keeps the pictures for the next time.
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
from lisa_ros.tabletop.sample_bag import camera_path
from lisa_ros.tracking.optical_flow import FlowTracker

SIZE, RATE = (640, 480), 30
SECONDS = {'arc': 3.1, 'pan': 2.6, 'occluder': 2.2}
FIRST = {'arc': 0, 'pan': 20, 'occluder': 40}  # scene of the first sequence of each sort
AFTER = (0.5, 1.0, 2.0, 3.0)  # [s]
IN_TIME = round(0.5 * RATE)  # frames within which a loss is to be told


@dataclass(frozen=True)
class View:
    """One frame and its truth."""

    stamp: int  # [ns]
    colour: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 [m], NaN invalid
    ids: np.ndarray  # (H, W) uint8: the thing that shows, 0 none


def render(renderer: rendering.Renderer, sort: str, number: int, folder: Path) -> None:
    """Render one sequence into `folder`."""
    scene = scene_sampling.draw_scene(scene_sampling.scene_rng('test', number), renderer.boxes)
    renderer.set_scene(scene)
    rng = np.random.default_rng((7, number))
    count = round(SECONDS[sort] * RATE)
    if sort == 'arc':
        poses = camera_path(count, rng.uniform(0.25, 0.75))[:: 1 if rng.random() < 0.5 else -1]
    elif sort == 'pan':
        poses = _pan(count, rng)
    else:
        poses = camera_path(count, 0.06)
    moved = _occluder(scene, poses[0], rng) if sort == 'occluder' else None
    folder.mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(poses):
        if moved:
            body, start, end = moved
            ratio = _eased((i / RATE - 0.4) / 0.8)
            mocap = renderer.model.body(body).mocapid[0]
            renderer.data.mocap_pos[mocap] = (1 - ratio) * start + ratio * end
        frame = renderer.frame(pose)
        millimetres = np.clip(np.rint(frame.depth * 1000), 0, 65535).astype(np.uint16)
        quick = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        cv2.imwrite(str(folder / f'{i:03d}.colour.png'), frame.colour[..., ::-1], quick)
        cv2.imwrite(str(folder / f'{i:03d}.depth.png'), millimetres, quick)
        cv2.imwrite(str(folder / f'{i:03d}.ids.png'), frame.ids % rendering.PART_FLAG, quick)
    (folder / 'done').touch()


def _eased(ratio: float) -> float:
    """Return 0..1 for a time 0..1: a movement that starts and ends gently."""
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, ratio)))


def _pan(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return poses, (4, 4) each, of a camera that turns away by 75 degrees from 0.3 s on."""
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
    """Return the body that flies, from where and to where, so that it hides another thing."""
    if len(scene.placed) < 2:
        return None  # nothing that could hide another
    # The one that hides is the broadest: by its middle extent, a bottle is a thin thing.
    extents = [np.sort(np.array(p.high) - p.low) for p in scene.placed]
    broadest = int(np.argmax([e[1] for e in extents]))
    hidden = int(rng.choice([i for i in range(len(extents)) if i != broadest]))
    middle = [
        (np.array(p.low) + p.high) / 2 for p in (scene.placed[hidden], scene.placed[broadest])
    ]
    # So near to the camera that it looks broader than what it hides is long.
    needed = np.linalg.norm(extents[hidden])
    left = float(np.clip(0.75 * extents[broadest][1] / needed, 0.2, 0.75))
    flies = scene.placed[broadest]
    cover = pose[:3, 3] + left * (middle[0] - pose[:3, 3])
    start = np.array(flies.position)
    return scene_sampling.body_name(flies.thing, flies.size), start, start + cover - middle[1]


def views(folder: Path) -> Iterator[View]:
    """Read a rendered sequence, frame by frame."""
    for i, path in enumerate(sorted(folder.glob('*.colour.png'))):
        name = str(path).removesuffix('.colour.png')
        depth = cv2.imread(f'{name}.depth.png', cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        depth[depth == 0] = np.nan
        ids = cv2.imread(f'{name}.ids.png', cv2.IMREAD_UNCHANGED)
        colour = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        yield View(round(i * 1e9 / RATE), colour, depth, ids)


@dataclass
class Scores:
    """What all sequences together say."""

    iou: dict[float, list[float]] = field(default_factory=lambda: {s: [] for s in AFTER})
    told: dict[str, list[bool]] = field(default_factory=lambda: {'pan': [], 'occluder': []})
    false: dict[str, list[bool]] = field(default_factory=lambda: {sort: [] for sort in SECONDS})
    pairs: list[tuple[float, float]] = field(default_factory=list)  # drift and IoU
    seconds: float = 0.0  # by the clock
    busy: float = 0.0  # of the processor [s], whoever else it worked for
    frames: int = 0
    things: int = 0


def followed(ids: np.ndarray) -> list[int]:
    """Return the ids (H, W) of the things that are followed."""
    inside = np.zeros(ids.shape, bool)
    inside[1:-1, 1:-1] = True
    counts = np.bincount(ids.ravel(), minlength=256)
    return [i for i in range(1, 256) if counts[i] >= 600 and not (~inside & (ids == i)).any()]


def follow(folder: Path, sort: str, scores: Scores, *, depth: bool) -> list[np.ndarray]:
    """Follow all things of a sequence; return pictures of its start, middle and end."""
    tracker, shows, tracked, pictures = FlowTracker(), [], [], []
    count = len(list(folder.glob('*.colour.png')))
    for i, view in enumerate(views(folder)):
        known = view.depth if depth else None
        if i == 0:
            things = followed(view.ids)
            if not things:
                return []
            first = np.stack([view.ids == t for t in things])
            tracker.set_reference(view.stamp, view.colour, known)
            tracker.set_masks(view.stamp, first)
        else:
            began, busy = time.perf_counter(), time.process_time()
            tracker.update(view.stamp, view.colour, known)
            scores.seconds += time.perf_counter() - began
            scores.busy += time.process_time() - busy
            scores.frames += 1
        now = tracker.state()
        truth = np.stack([view.ids == t for t in things])
        shows.append(truth.sum((1, 2)) / first.sum((1, 2)))
        tracked.append(now.tracked)
        for t in np.flatnonzero(shows[-1] >= 0.5) if sort == 'arc' else []:
            overlap = masks.iou(now.masks[t], truth[t])
            scores.pairs.append((float(now.drift[t]), overlap))
            if i / RATE in AFTER:
                scores.iou[i / RATE].append(overlap)
        if i in (0, count // 2, count - 1):
            words = ['' if one else 'lost' for one in now.tracked]
            pictures.append(overlay.overlay(view.colour, now.masks, words, opacity=0.3))
    scores.things += len(things)
    _losses(np.array(shows), np.array(tracked), sort, scores)
    return pictures


def _losses(shows: np.ndarray, tracked: np.ndarray, sort: str, scores: Scores) -> None:
    """Count which losses were told in time and which were none, from (frames, things)."""
    scores.false[sort].extend((~tracked)[shows >= 0.3].tolist())
    for share, told in zip(shows.T, tracked.T, strict=True):
        gone = len(share) - int(np.argmin((share < 0.1)[::-1]))  # the first frame without it
        if sort != 'arc' and 0 < gone < len(share) - IN_TIME:
            scores.told[sort].append(bool((~told[gone : gone + IN_TIME + 1]).any()))


def main() -> None:
    """Render what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--assets-cache', type=Path, required=True)
    parser.add_argument('--frames', type=Path, help='folder where rendered pictures are kept')
    parser.add_argument('--count', type=int, default=10, help='sequences of each sort')
    parser.add_argument('--sheet', type=Path, help='PNG of the carried masks')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        frames = options.frames or Path(temporary)
        sequences = rendered(options.assets_cache, frames, options.count)
        sheet: list[np.ndarray] = []
        for depth in (False, True):
            scores = Scores()
            for sort, folder in sequences:
                pictures = follow(folder, sort, scores, depth=depth)
                sheet += pictures if not depth else []
            report(scores, 'with depth' if depth else 'without depth')
    if options.sheet:
        picture = overlay.contact_sheet(sheet, columns=3, width=400)
        cv2.imwrite(str(options.sheet), picture[..., ::-1])


def rendered(cache: Path, frames: Path, count: int) -> list[tuple[str, Path]]:
    """Return sort and folder of `count` sequences of each sort; render what is missing."""
    renderer = None
    sequences = []
    for sort, first in FIRST.items():
        for number in range(first, first + count):
            folder = frames / f'{sort}-{number}'
            if not (folder / 'done').is_file():
                renderer = renderer or rendering.Renderer(cache, *SIZE)
                render(renderer, sort, number, folder)
            sequences.append((sort, folder))
    return sequences


def report(scores: Scores, title: str) -> None:
    """Print the numbers of one run."""
    drift, overlap = np.array(scores.pairs).T
    print(f'{title}: {scores.things} things, {scores.frames} frames')
    for seconds, values in scores.iou.items():
        print(f'  IoU after {seconds} s     {np.mean(values):.3f}   of {len(values)}')
    for sort, told in scores.told.items():
        print(f'  lost in time, {sort:10}{np.mean(told):.2f}   of {len(told)}')
    for sort, false in scores.false.items():
        print(f'  false losses, {sort:10}{np.mean(false):.4f} of {len(false)} frames x things')
    print(f'  drift against IoU, r {np.corrcoef(drift, overlap)[0, 1]:.2f}')
    print(f'  frames/s on a core   {scores.frames / scores.seconds:.0f}')
    print(f'  by processor time    {scores.frames / scores.busy:.0f}')


if __name__ == '__main__':
    main()
