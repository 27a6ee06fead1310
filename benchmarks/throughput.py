# SPDX-License-Identifier: Apache-2.0
"""Measure how many questions a second a model answers, by the number that are asked at once.

    python benchmarks/throughput.py --size small [--device D] [--batches 1 2 4] [--json] [--out F]
    python benchmarks/throughput.py --tabletop              # lisa-tabletop and its test set

Random weights of a size, images that no batch has seen, one question about each, and a forced
reply of 5 tokens with [SEG] as the third (see latency.py). A second row asks further questions
about one known image. Batch sizes take turns. One question is asked as the node asks one.

`times_of_one` is the time of a batch over that of one question: 8 goals at once cost a GPU less
than two. `wait_over_turns` compares what the average question waits for: the end of the batch, or
its turn. Above 1, a batch answers the average question later than one after the other would.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import endurance_report as report
import numpy as np
import torch
from latency import Bench, add_model_arguments
from tqdm import tqdm

from lisa_ros import native_settings
from lisa_ros.evaluation.tabletop import read_test_set
from lisa_ros.files.text import read_bytes
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.perception.backend import BatchRequest, InferenceOptions, LoadOptions, Query
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.resources import DEFAULT_MODEL, TEST_SETS
from lisa_ros.results import Done, Segmentation

IMAGES = ('new images', 'one known image')
TOKENS = 5  # of a reply
_TABLETOP_IMAGES = 17  # the known one, and one for each question of the largest batch
_TABLETOP_QUESTIONS = 8  # of each measurement


class Asks(Protocol):
    """Asks a model batches of questions."""

    def seconds(self, count: int, images: str) -> float:
        """Return how long a batch takes [s].

        Args:
            count: of questions.
            images: of IMAGES.
        """

    def forget(self) -> None:
        """Drop what is known of earlier prompts, and read the known image."""


def answers(
    backend: LisaBackend, requests: list[BatchRequest], max_new_tokens: int
) -> list[Segmentation]:
    """Return the answers of questions that are asked at once."""
    options = InferenceOptions(max_new_tokens=max_new_tokens)
    if len(requests) == 1:
        (only,) = requests
        events = backend.stream(only.image, only.query, options, only.cancel)
    else:
        events = (event for _, event in backend.stream_batch(requests, options))
    results = [event.result for event in events if isinstance(event, Done)]
    assert len(results) == len(requests)
    return results


class RandomBench:
    """Asks batches of a Bench."""

    def __init__(self, size: str, device: str, precision: str, clock: Callable[[], float]):
        self._bench, self._clock = Bench(size, device, precision), clock
        self._known = self._bench.new_image()
        self._numbers = iter(range(100_000, 10**9))  # texts of one length in tokens

    def seconds(self, count: int, images: str) -> float:
        """Return how long a batch takes [s]; see `Asks`."""
        bench = self._bench
        reply = bench.reply(TOKENS)
        requests = []
        for _ in range(count):
            text, ids = bench.ask(next(self._numbers))
            image = bench.new_image() if images == IMAGES[0] else self._known
            requests.append(BatchRequest(image, Query(text), threading.Event()))
        bench.language_model.force(reply, len(ids) - 1 + bench.config.image_tokens)
        bench.synchronize()
        start = self._clock()
        results = answers(bench.backend, requests, TOKENS)
        bench.synchronize()
        seconds = self._clock() - start
        assert all(list(r.token_ids) == reply and len(r.masks) == 1 for r in results), results
        return seconds

    def forget(self) -> None:
        """Drop what is known of earlier prompts, and read the known image."""
        self._bench.backend.clear_cache()
        self.seconds(1, IMAGES[1])


class TabletopBench:
    """Asks batches of lisa-tabletop: questions of its test set.

    Answers have 5 to 27 tokens, so batches of all sizes ask the same questions.
    """

    def __init__(self, device: str, precision: str, clock: Callable[[], float]):
        self._clock = clock
        options = LoadOptions(device=device, precision=precision)
        self._backend = LisaBackend.load(DEFAULT_MODEL, options)
        images = list(itertools.islice(_images_with_questions(), _TABLETOP_IMAGES))
        (self._known, (self._first, *texts)), *others = images
        self._pairs = {
            IMAGES[0]: [(image, texts[0]) for image, texts in others],
            IMAGES[1]: [(self._known, text) for text in texts],
        }

    def seconds(self, count: int, images: str) -> float:
        """Return how long a batch takes on average [s]; see `Asks`."""
        batches, total = max(1, _TABLETOP_QUESTIONS // count), 0.0
        pairs = itertools.cycle(self._pairs[images])
        for _ in range(batches):
            self.forget()
            requests = [
                BatchRequest(image, Query(text), threading.Event())
                for image, text in itertools.islice(pairs, count)
            ]
            start = self._clock()
            answers(self._backend, requests, 512)
            total += self._clock() - start
        return total / batches

    def forget(self) -> None:
        """Drop what is known of earlier prompts, and read the known image."""
        self._backend.clear_cache()
        self._backend.encode_images([self._known])
        request = BatchRequest(self._known, Query(self._first), threading.Event())
        answers(self._backend, [request], 512)


def _images_with_questions() -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield images of the test set, each with its questions without earlier turns."""
    queries = read_test_set(TEST_SETS / 'test.zip')
    for group, own in itertools.groupby(queries, lambda query: query.group):
        asked = [query for query in own if not query.history]
        yield decode_rgb(read_bytes(asked[0].image), group), [query.text for query in asked]


def measure(bench: Asks, batches: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Return the median seconds of a batch, by IMAGES and batch size."""
    times: dict[tuple[str, int], list[float]] = {}
    for number in tqdm(range(rounds + 1), desc='throughput', unit='round'):
        for images in IMAGES:
            for count in batches:
                bench.forget()
                seconds = bench.seconds(count, images)
                if number:  # the first round warms up
                    times.setdefault((images, count), []).append(seconds)
    return {
        images: {count: statistics.median(times[images, count]) for count in batches}
        for images in IMAGES
    }


def ratios(times: dict[str, dict[int, float]]) -> dict[str, dict[int, dict[str, float]]]:
    """Return what a batch costs over one question, by IMAGES and batch size; needs size 1."""
    return {
        images: {
            count: {
                'times_of_one': seconds / by_count[1],
                'wait_over_turns': seconds / (by_count[1] * (count + 1) / 2),
            }
            for count, seconds in by_count.items()
        }
        for images, by_count in times.items()
    }


def plot(times: dict[str, dict[int, float]], path: Path, title: str) -> None:
    """Draw questions per second by batch size."""
    drawn, (axis,) = report.figure(1, title)
    for (images, by_count), colour in zip(times.items(), ('tab:blue', 'tab:green'), strict=True):
        counts = list(by_count)
        rates = [count / seconds for count, seconds in by_count.items()]
        axis.plot(counts, rates, 'o-', color=colour, label=images)
        for count, rate in zip(counts, rates, strict=True):
            axis.annotate(f'{rate:.3g}', (count, rate), (0, 5), textcoords='offset points')
    axis.set(xlabel='questions at once', ylabel='questions per second', ylim=(0, None))
    axis.set_xscale('log', base=2)
    axis.set_xticks(counts, list(map(str, counts)))
    report.add_legend(axis, f'{TOKENS} tokens and a mask each')
    report.save(drawn, path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument(
        '--batches', type=int, nargs='+', default=[1, 2, 4, 8, 16], help='(default: 1 2 4 8 16)'
    )
    parser.add_argument('--rounds', type=int, default=3, help='(default: 3)')
    parser.add_argument(
        '--cpu-time', action='store_true', help='of one thread: other programs do not change it'
    )
    parser.add_argument('--tabletop', action='store_true', help='lisa-tabletop in place of a size')
    parser.add_argument('--json', action='store_true', help='print JSON (default: a table)')
    parser.add_argument('--out', type=Path, help='folder for JSON and plot (default: none)')
    options = parser.parse_args()
    precision = options.precision or ('fp32' if options.device == 'cpu' else 'bf16')
    if options.cpu_time:
        options.threads = 1  # waiting threads would count
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    native_settings.apply()
    if options.tabletop:
        name, bench = DEFAULT_MODEL, TabletopBench(options.device, precision, clock)
    else:
        name, bench = options.size, RandomBench(options.size, options.device, precision, clock)
    times = measure(bench, sorted({1, *options.batches}), options.rounds)
    device = report.machine() if options.device == 'cpu' else torch.cuda.get_device_name()
    result = {
        'seconds': times,
        'ratios': ratios(times),
        'size': name,
        'device': device,
        'precision': precision,
        'threads': options.threads,
        'clock': clock.__name__,
        'torch': torch.__version__,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for images, by_count in times.items():
            for count, seconds in by_count.items():
                one, wait = result['ratios'][images][count].values()
                print(
                    f'{images:18}{count:4} at once{1000 * seconds:10.0f} ms'
                    f'{count / seconds:10.2f} /s{one:8.2f} x one{wait:8.2f} x the wait in turns'
                )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f'throughput_{name}_{precision}.json'
        path.write_text(json.dumps(result, indent=2), encoding='utf-8')
        plot(times, path.with_suffix('.png'), f'{name}, {precision}, {device}')


if __name__ == '__main__':
    main()
