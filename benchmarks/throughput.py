# SPDX-License-Identifier: Apache-2.0
"""Measure how many questions a second a model answers, by the number that are asked at once.

    python benchmarks/throughput.py --size small [--device D] [--batches 1 2 4] [--json] [--out F]

Random weights of a size, images that no batch has seen, one question about each, and a forced
reply of 5 tokens with [SEG] as the third (see latency.py). A second row asks further questions
about one known image. Batch sizes take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import endurance_report as report
import torch
from latency import Bench, add_model_arguments
from tqdm import tqdm

from lisa_ros import native_settings
from lisa_ros.perception.backend import BatchRequest, InferenceOptions, Query
from lisa_ros.results import Done

IMAGES = ('new images', 'one known image')
TOKENS = 5  # of a reply


class BatchBench:
    """Asks batches of a Bench."""

    def __init__(self, size: str, device: str, precision: str):
        self._bench = Bench(size, device, precision)
        self._known = self._bench.new_image()
        self._numbers = iter(range(100_000, 10**9))  # texts of one length in tokens

    def seconds(self, count: int, images: str) -> float:
        """Return how long a batch takes [s].

        Args:
            count: of questions.
            images: of IMAGES.
        """
        bench = self._bench
        reply = bench.reply(TOKENS)
        is_new = images == IMAGES[0]
        requests = []
        for _ in range(count):
            text, ids = bench.ask(next(self._numbers))
            image = bench.new_image() if is_new else self._known
            requests.append(BatchRequest(image, Query(text), threading.Event()))
        bench.language_model.force(reply, len(ids) - 1 + bench.config.image_tokens)
        bench.synchronize()
        start = time.perf_counter()
        options = InferenceOptions(max_new_tokens=TOKENS)
        events = [event for _, event in bench.backend.stream_batch(requests, options)]
        bench.synchronize()
        seconds = time.perf_counter() - start
        results = [event.result for event in events if isinstance(event, Done)]
        assert len(results) == count
        assert all(list(r.token_ids) == reply and len(r.masks) == 1 for r in results), results
        return seconds

    def forget(self) -> None:
        """Drop what is known of earlier prompts, and read the known image."""
        self._bench.backend.clear_cache()
        self.seconds(1, IMAGES[1])


def measure(bench: BatchBench, batches: list[int], rounds: int) -> dict[str, dict[int, float]]:
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
    parser.add_argument('--json', action='store_true', help='print JSON (default: a table)')
    parser.add_argument('--out', type=Path, help='folder for JSON and plot (default: none)')
    options = parser.parse_args()
    precision = options.precision or ('fp32' if options.device == 'cpu' else 'bf16')
    torch.set_num_threads(options.threads)
    native_settings.apply()
    bench = BatchBench(options.size, options.device, precision)
    times = measure(bench, sorted(options.batches), options.rounds)
    device = report.machine() if options.device == 'cpu' else torch.cuda.get_device_name()
    result = {
        'seconds': times,
        'size': options.size,
        'device': device,
        'precision': precision,
        'threads': options.threads,
        'torch': torch.__version__,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for images, by_count in times.items():
            for count, seconds in by_count.items():
                rate = count / seconds
                print(f'{images:18}{count:4} at once{1000 * seconds:10.0f} ms{rate:10.2f} /s')
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f'throughput_{options.size}_{precision}.json'
        path.write_text(json.dumps(result, indent=2), encoding='utf-8')
        plot(times, path.with_suffix('.png'), f'{options.size}, {precision}, {device}')


if __name__ == '__main__':
    main()
