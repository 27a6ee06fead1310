# SPDX-License-Identifier: Apache-2.0
"""Files that are shipped inside the package: weights, the sample bag and the test sets."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files('lisa_ros')))

WEIGHTS = _PACKAGE / 'weights'  # a folder for each bundled model
SAMPLE = _PACKAGE / 'samples' / 'tabletop'  # bag, truth and commands of the demo
TEST_SETS = _PACKAGE / 'samples' / 'exams'  # <split>.zip
SOURCE_ROOT = _PACKAGE.parent  # the checkout, where the package runs from one
