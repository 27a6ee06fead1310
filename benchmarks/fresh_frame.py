# SPDX-License-Identifier: Apache-2.0
"""Measure the time to answer a query about a new image, by stage.

    python benchmarks/fresh_frame.py [--model M] [--device D] [--frames N]

Each query is about a different image of the bundled test set, scaled to 640 x 480, so its features
are not in the cache. The same query is then repeated with the same image, to measure what the
cache saves. Prints medians and maxima in milliseconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros.evaluation.tabletop import read_test_set
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import TEST_SETS

WARM_UP = 3  # number of first images that are not measured


def queries(count: int, size: tuple[int, int]) -> list[tuple[np.ndarray, str]]:
    """Return RGB images of `size` (width, height) [px], each with a query about it."""
    by_image: dict[str, tuple[np.ndarray, str]] = {}
    for query in read_test_set(TEST_SETS / 'test.zip'):
        if query.targets and query.category == 'use' and query.image.name not in by_image:
            data = np.frombuffer(query.image.read_bytes(), np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
            by_image[query.image.name] = (cv2.resize(image, size), query.text)
        if len(by_image) == count:
            break
    return list(by_image.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='lisa-tabletop', help='(default: lisa-tabletop)')
    parser.add_argument(
        '--device', default=None, help='cpu, cuda (default: the GPU if there is one)'
    )
    parser.add_argument('--frames', type=int, default=30, help='measured images (default: 30)')
    options = parser.parse_args()
    lisa = Segmenter.load(options.model, device=options.device)
    new, cached, stages = [], [], []
    for image, text in queries(options.frames + WARM_UP, (640, 480)):
        start = time.perf_counter()
        result = lisa.segment(image, text)
        middle = time.perf_counter()
        lisa.segment(image, text)
        new.append(middle - start)
        cached.append(time.perf_counter() - middle)
        stages.append(result.timings)
    new, cached, stages = new[WARM_UP:], cached[WARM_UP:], stages[WARM_UP:]
    print(f'{len(new)} images of 640 x 480 on {lisa.device}, median and maximum [ms]')
    for name in stages[0]:
        values = [1000 * timings.get(name, 0.0) for timings in stages]
        print(f'  {name:12}{np.median(values):8.1f}{max(values):8.1f}')
    print(f'new image     {1000 * np.median(new):8.1f}{1000 * max(new):8.1f}')
    print(f'cached image  {1000 * np.median(cached):8.1f}{1000 * max(cached):8.1f}')
    print(f'cached / new  {np.median(cached) / np.median(new):8.2f}')


if __name__ == '__main__':
    main()
