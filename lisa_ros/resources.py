# SPDX-License-Identifier: Apache-2.0
"""Paths of the files in this package: weights, samples, test sets and Fast DDS profiles."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files('lisa_ros')))

WEIGHTS = _PACKAGE / 'weights'  # a folder for each bundled model
DEFAULT_MODEL = 'lisa-tabletop'  # a folder of WEIGHTS
SAMPLE = _PACKAGE / 'samples' / 'tabletop'  # bag, ground truth and commands of the demo
TEST_SETS = _PACKAGE / 'samples' / 'test_sets'  # SPLIT.zip
SELF_TEST = _PACKAGE / 'samples' / 'self_test'  # an annotated image
FASTDDS_PROFILE = _PACKAGE / 'ros' / 'fastdds.xml'  # both of `ros.fastdds`
FASTDDS_LOCALHOST_PROFILE = FASTDDS_PROFILE.with_name('fastdds_localhost.xml')
SOURCE_ROOT = _PACKAGE.parent  # the checkout, if the package runs from one
