# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros calibrate`: fit the scores of a model to a test set."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from lisa_ros.errors import DataError, SettingsError, raise_error
from lisa_ros.files.output import check_output_file
from lisa_ros.optional_packages import install_command


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'calibrate', help='fit the confidence scores of a model to a test set'
    )
    parser.add_argument(
        'folder', type=Path, metavar='MODEL', help='model in lisa_ros format; it is changed'
    )
    parser.add_argument(
        '--test-set',
        type=Path,
        required=True,
        help='folder or zip of the test set to fit to; not the test split: figures measured on '
        'data that was used for the fit are too good',
    )
    parser.add_argument(
        '--plot',
        type=Path,
        metavar='PNG',
        help='file for a reliability plot (default: none is drawn)',
    )
    parser.add_argument(
        '--refine',
        action='store_true',
        help='also enable mask refinement in the model (default: do not change it)',
    )
    parser.add_argument('--device', help='cpu, cuda (default: the GPU if there is one)')
    parser.set_defaults(run=calibrate)


def calibrate(options: argparse.Namespace) -> None:
    """Fit score calibration and confidence threshold to a test set; store both in the model."""
    from lisa_ros.evaluation import calibration, report, tabletop
    from lisa_ros.perception import mask_scores
    from lisa_ros.perception.backend import InferenceOptions
    from lisa_ros.perception.segmenter import Segmenter

    calibration.read_config(options.folder)  # fail early: the test set takes minutes
    if options.plot and importlib.util.find_spec('matplotlib') is None:
        raise SettingsError(f'--plot needs matplotlib: {install_command("train")}')
    check_output_file(options.folder / 'config.json', calibration.CONFIG_CURE)
    plot = options.plot and calibration.check_plot(options.plot)
    queries = tabletop.check_test_set(tabletop.read_test_set(options.test_set), raise_error)
    _check_categories(options.test_set, {query.category for query in queries})
    segmenter = Segmenter.load(
        str(options.folder),
        device=options.device,
        precision='fp32',
        options=InferenceOptions(confidence_threshold=0.0, refine=options.refine or None),
    )
    cases = list(tabletop.run_test_set(segmenter, queries))
    failed = report.failed_queries(cases)
    if failed:
        raise DataError(
            f'{options.folder} is not calibrated: {len(failed)} of {len(cases)} queries failed; '
            f'the first is {failed[0]}'
        )
    weights = calibration.fit_weights(cases)
    curve = calibration.fit_isotonic_curve(cases, weights)
    cases = [
        replace(
            case,
            scores=tuple(mask_scores.score(f, weights, curve) for f in case.score_features),
        )
        for case in cases
    ]
    presence_cases = [case for case in cases if case.category in tabletop.PRESENCE]
    threshold = calibration.best_threshold(
        [case.score or 0.0 for case in presence_cases],
        [bool(case.present) for case in presence_cases],
    )
    calibration.save_calibration(options.folder, weights, curve, threshold, refine=options.refine)
    outcomes = calibration.scored_outcomes(cases)
    if plot:
        calibration.plot_reliability(
            outcomes, plot, f'{options.folder.name}: calibration of scores'
        )
    error = calibration.expected_calibration_error(outcomes)
    print(f'{len(outcomes)} masks, calibration error {error:.3f}, threshold {threshold:.2f}')


def _check_categories(test_set: Path, categories: Collection[str]) -> None:
    """Check that a test set has queries to choose the confidence threshold by.

    Raises:
        DataError: it has none, as the one of the split `unseen`.
    """
    from lisa_ros.evaluation.tabletop import PRESENCE

    if not set(PRESENCE) & set(categories):
        raise DataError(
            f'{test_set}: has queries of {", ".join(sorted(categories)) or "no category"}, none '
            f'of {", ".join(PRESENCE)}, which the confidence threshold is fitted to: use the test '
            'set of another split, which `lisa-ros scenes --split val` writes'
        )
