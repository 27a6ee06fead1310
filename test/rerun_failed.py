# SPDX-License-Identifier: Apache-2.0
"""Run the files of failed tests once more, without other tests beside them.

Several hundred tests start processes that find each other over DDS. On two busy cores one of them
now and then waits longer than any limit. Alone it has to pass; what fails twice has failed.
"""

import json
import subprocess
import sys
from pathlib import Path

MOST_FILES = 3  # more are not chance
TESTS_FAILED = 1  # exit status of pytest
CACHE = Path('.pytest_cache/v/cache/lastfailed')


def file_of(test: str) -> str:
    return test.partition('::')[0]


def is_there(test: str) -> bool:
    return Path(file_of(test)).exists()


def main(status: int) -> int:
    """Return the exit status of the second run; that of the first one if nothing is repeated."""
    if status != TESTS_FAILED or not CACHE.exists():
        return status
    failed = [test for test in sorted(json.loads(CACHE.read_text())) if is_there(test)]
    files = sorted({file_of(test) for test in failed})
    if not 0 < len(files) <= MOST_FILES:
        return status
    print('== failed beside other tests, now once more alone:', *failed, sep='\n   ', flush=True)
    second = subprocess.run([sys.executable, '-m', 'pytest', *files], check=False).returncode
    if second == 0:
        print('== passed only alone, please report:', *failed, sep='\n   ')
    return second


if __name__ == '__main__':
    sys.exit(main(int(sys.argv[1])))
