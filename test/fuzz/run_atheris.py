# SPDX-License-Identifier: Apache-2.0
"""Run a fuzz target with coverage guidance: python test/fuzz/run_atheris.py TARGET [SECONDS].

`make fuzz TARGET=coco SECONDS=300` runs it with atheris installed. Each finding is written
to --out: copy it to test/fuzz/findings/TARGET/, where test/test_fuzz.py reads it.
"""

import argparse
import random
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

TEST = Path(__file__).parents[1]
SECONDS_PER_INPUT = 10
MEGABYTES_PER_INPUT = 1500  # by which it may raise the peak of the process
MEGABYTES = 8000  # of the process: atheris itself keeps up to 2.3 kB for each input
MAX_INPUT = 100_000  # bytes


def arguments(names):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', nargs='?', choices=names)
    parser.add_argument('seconds', type=int, nargs='?', default=60)
    parser.add_argument(
        '--out', type=Path, default=Path('fuzz'), help='folder of corpora and findings'
    )
    parser.add_argument('--list', action='store_true', help='print the names of all targets')
    given = parser.parse_args()
    if given.list or not given.target:
        print(' '.join(names))
        raise SystemExit
    return given


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    sys.path[:0] = [str(TEST), str(TEST / 'fuzz')]
    with atheris.instrument_imports(include=['lisa_ros', 'rosbags']):
        from targets import TARGETS
    given = arguments(sorted(TARGETS))
    target = TARGETS[given.target]
    corpus = given.out / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f'seed{number}').write_bytes(seed)
    scratch = Path(tempfile.mkdtemp())

    findings = {}  # input by the place where it failed

    def check(content):
        folder = scratch / 'input'
        folder.mkdir()
        peak = peak_megabytes()
        try:
            target.check(content, folder)
            growth = peak_megabytes() - peak
            if growth > MEGABYTES_PER_INPUT:
                raise MemoryError(f'one input took {growth:.0f} MB')
        except Exception as error:  # noqa: BLE001  # the run goes on, to find other places
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f'{type(error).__name__} in {Path(place.filename).name}:{place.lineno}'
            if key not in findings:
                findings[key] = given.out / f'{given.target}.finding{len(findings)}'
                findings[key].write_bytes(content)
                print(f'FINDING {findings[key]}: {key}: {error}', flush=True)
        finally:
            shutil.rmtree(folder)

    def mutate(content, max_size, seed):
        rng = random.Random(seed)
        if target.is_json and rng.random() < 0.5:
            return target.mutated(bytes(content), rng)[:max_size]
        return atheris.Mutate(content, max_size)

    options = [
        f'-max_total_time={given.seconds}',
        f'-timeout={SECONDS_PER_INPUT}',
        f'-rss_limit_mb={MEGABYTES}',
        f'-max_len={MAX_INPUT}',
        f'-artifact_prefix={given.out}/{given.target}.',
        '-print_final_stats=1',
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
