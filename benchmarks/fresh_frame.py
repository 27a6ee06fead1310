# SPDX-License-Identifier: Apache-2.0
"""How long an answer takes about a picture that the model has not seen, by stage.

    python benchmarks/fresh_frame.py [--model M] [--device D] [--frames N]

Every frame is another one (the exam's pictures, brought to the size of a camera's), so nothing
comes from a cache; beside it the same question about the last frame again, whose picture is
known. Medians, in milliseconds.
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


def pictures(count: int, size: tuple[int, int]) -> list[tuple[np.ndarray, str]]:
    """Return RGB pictures of `size` (width, height), each with a question that is about it."""
    drawn: dict[str, tuple[np.ndarray, str]] = {}
    for question in read_test_set(TEST_SETS / 'test.zip'):
        if question.targets and question.category == 'use' and question.image.name not in drawn:
            data = np.frombuffer(question.image.read_bytes(), np.uint8)
            colour = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
            drawn[question.image.name] = (cv2.resize(colour, size), question.text)
        if len(drawn) == count:
            break
    return list(drawn.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='lisa-tabletop')
    parser.add_argument('--device', default=None)
    parser.add_argument('--frames', type=int, default=30)
    options = parser.parse_args()
    lisa = Segmenter.load(options.model, device=options.device)
    shown = pictures(options.frames + 3, (640, 480))
    fresh, again, stages = [], [], []
    for i, (image, text) in enumerate(shown):
        began = time.perf_counter()
        result = lisa.segment(image, text)
        between = time.perf_counter()
        lisa.segment(image, text)
        if i >= 3:  # the first ones warm up
            fresh.append(between - began)
            again.append(time.perf_counter() - between)
            stages.append(result.timings)
    print(f'{len(fresh)} frames of 640 x 480 on {lisa.device}, median and slowest [ms]')
    for name in stages[0]:
        values = [1000 * s.get(name, 0.0) for s in stages]
        print(f'  {name:12}{np.median(values):8.1f}{max(values):8.1f}')
    print(f'fresh frame   {1000 * np.median(fresh):8.1f}{1000 * max(fresh):8.1f}')
    print(f'known frame   {1000 * np.median(again):8.1f}{1000 * max(again):8.1f}')
    print(f'known / fresh {np.median(again) / np.median(fresh):8.2f}')


if __name__ == '__main__':
    main()
