# SPDX-License-Identifier: Apache-2.0
"""One number for how sure a mask is, and whether such numbers are honest."""

from pathlib import Path

import numpy as np
import pytest

from lisa_ros.errors import DataError
from lisa_ros.evaluation import calibration, html_plots
from lisa_ros.evaluation.cases import Case
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.evaluation.report_files import case_to_json
from lisa_ros.perception import mask_scores
from lisa_ros.results import ScoreFeatures


def case(overlap, scores, score_features):
    """A case of which only the scores and the overlap matter."""
    text, present = 'the mug', True
    return Case(
        'a.0', 'a', 'explicit', text, text, 'Sure.', 'FOUND', present, present, overlap, None,
        scores, score_features,
    )  # fmt: skip


def answers(count=4000, seed=0):
    """Return cases whose masks are right with the probability of a known logistic function."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        features = ScoreFeatures(*rng.uniform(0.05, 0.99, 4))
        right = rng.random() < mask_scores.score(features, COEFFICIENTS)
        overlap = Overlap(80, 100) if right else Overlap(10, 100)
        drawn.append(case(overlap, (mask_scores.score(features),), (features,)))
    return drawn


COEFFICIENTS = (-1.5, 0.8, 0.4, 2.0)


def test_a_mask_is_right_from_an_iou_of_exactly_the_threshold():
    """The constant of gIoU kept it below, and the plot of a report had a third rule."""
    overlaps = {Overlap(50, 100): True, Overlap(49, 100): False, Overlap(0, 0): False}
    cases = [case(overlap, (0.75,), ()) for overlap in overlaps]
    assert [calibration.is_right(own) for own in cases] == list(overlaps.values())
    two_masks = case(Overlap(100, 100), (0.75, 0.2), ())  # no score belongs to this overlap
    rows = [case_to_json(own, Path()) for own in (*cases, two_masks)]
    (bar,) = html_plots.reliability(rows).bars
    assert bar.height == pytest.approx(1 / 3)
    assert calibration.scored_outcomes([*cases, two_masks])[:, 1].mean() == pytest.approx(1 / 3)


def test_without_calibration_the_score_is_seg_times_certainty():
    features = ScoreFeatures(text_prob=0.2, seg_prob=0.9, mean_mask_prob=0.8, predicted_iou=0.3)
    assert mask_scores.score(features) == pytest.approx(0.72)
    assert mask_scores.score(ScoreFeatures(1, 1, 0, 1), COEFFICIENTS) == 0  # an empty mask


def test_higher_features_never_lower_a_calibrated_score():
    low, high = ScoreFeatures(0.5, 0.5, 0.6, 0.4), ScoreFeatures(0.9, 0.9, 0.9, 0.9)
    assert 0 < mask_scores.score(low, COEFFICIENTS) < mask_scores.score(high, COEFFICIENTS) < 1
    assert mask_scores.score(ScoreFeatures(0, 0, 1e-9, 0), COEFFICIENTS) > 0  # finite at the ends
    assert mask_scores.score(ScoreFeatures(1, 1, 1, 1), COEFFICIENTS) < 1


def test_the_fit_recovers_the_coefficients_and_calibrates_scores():
    training, held_out = answers(seed=0), answers(seed=1)
    weights = calibration.fit_weights(training)
    assert weights == pytest.approx(COEFFICIENTS, abs=0.35)
    before = calibration.expected_calibration_error(calibration.scored_outcomes(held_out))
    scores = [
        (mask_scores.score(a.score_features[0], weights), calibration.is_right(a))
        for a in held_out
    ]
    after = calibration.expected_calibration_error(np.array(scores, float))
    assert after < 0.03 < before


def test_an_isotonic_curve_calibrates_what_the_regression_cannot():
    """The probability is 30 % up to a score of 0.6, then rises: no logistic function does that."""

    def piecewise_linear(count, seed):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            features = ScoreFeatures(*rng.uniform(0.05, 0.99, 4))
            right = rng.random() < 0.3 + 1.4 * max(
                0, mask_scores.score(features, COEFFICIENTS) - 0.6
            )
            yield case(Overlap(80 if right else 10, 100), (0.5,), (features,))

    training, held_out = list(piecewise_linear(3000, 0)), list(piecewise_linear(3000, 1))
    weights = calibration.fit_weights(training)
    curve = calibration.fit_isotonic_curve(training, weights)
    assert np.all(np.diff(np.array(curve), axis=0) >= 0)

    def error(knots):
        scores = [mask_scores.score(a.score_features[0], weights, knots) for a in held_out]
        right = [calibration.is_right(a) for a in held_out]
        return calibration.expected_calibration_error(np.array([scores, right], float).T)

    assert error(curve) < error(()) - 0.01


def test_the_error_is_the_mean_gap_by_counting():
    rows = np.array([(0.95, 1), (0.95, 0), (0.15, 0), (0.15, 0)], float)
    assert calibration.expected_calibration_error(rows) == pytest.approx((0.45 * 2 + 0.15 * 2) / 4)
    assert calibration.expected_calibration_error(np.array([(1.0, 1)], float)) == 0
    assert calibration.expected_calibration_error(np.empty((0, 2))) is None


def test_only_answers_of_one_mask_count():
    single = answers(3)[0]
    double = case(single.overlap, (0.5, 0.6), single.score_features * 2)
    assert calibration.scored_outcomes([single, double]).shape == (1, 2)


def test_a_fit_needs_right_and_wrong_masks():
    with pytest.raises(DataError, match='3 masks'):
        calibration.fit_weights(answers(3))


def test_the_threshold_parts_what_is_there_from_what_is_not():
    scores = [0.9, 0.8, 0.7, 0.35, 0.3, 0.0]
    present = [True, True, True, False, False, False]
    assert 0.35 < calibration.best_threshold(scores, present) <= 0.7


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib draws it; it is in the extra [train]')
    rows = np.array([(a.scores[0], calibration.is_right(a)) for a in answers(300)], float)
    calibration.plot_reliability(rows, tmp_path / 'plot.png', 'scores')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
