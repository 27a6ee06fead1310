# SPDX-License-Identifier: Apache-2.0
"""One number for how sure a mask is, and whether such numbers are honest."""

from dataclasses import dataclass

import numpy as np
import pytest

from lisa_ros.errors import DataError
from lisa_ros.evaluation import calibration
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.perception import mask_scores
from lisa_ros.results import ScoreFeatures


@dataclass(frozen=True)
class Answer:
    overlap: Overlap
    scores: tuple[float, ...]
    evidence: tuple[ScoreFeatures, ...]


def answers(count=4000, seed=0):
    """Masks that are right as often as a known logistic law of their evidence says."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        one = ScoreFeatures(*rng.uniform(0.05, 0.99, 4))
        right = rng.random() < mask_scores.score(one, LAW)
        overlap = Overlap(80, 100) if right else Overlap(10, 100)
        drawn.append(Answer(overlap, (mask_scores.score(one),), (one,)))
    return drawn


LAW = (-1.5, 0.8, 0.4, 2.0)


def test_without_calibration_the_score_is_seg_times_certainty():
    one = ScoreFeatures(text_prob=0.2, seg_prob=0.9, mean_mask_prob=0.8, predicted_iou=0.3)
    assert mask_scores.score(one) == pytest.approx(0.72)
    assert mask_scores.score(ScoreFeatures(1, 1, 0, 1), LAW) == 0  # an empty mask


def test_more_evidence_never_lowers_a_calibrated_score():
    low, high = ScoreFeatures(0.5, 0.5, 0.6, 0.4), ScoreFeatures(0.9, 0.9, 0.9, 0.9)
    assert 0 < mask_scores.score(low, LAW) < mask_scores.score(high, LAW) < 1
    assert mask_scores.score(ScoreFeatures(0, 0, 1e-9, 0), LAW) > 0  # finite at the ends
    assert mask_scores.score(ScoreFeatures(1, 1, 1, 1), LAW) < 1


def test_the_fit_finds_the_law_and_makes_scores_honest():
    learnt, fresh = answers(seed=0), answers(seed=1)
    weights = calibration.fit(learnt)
    assert weights == pytest.approx(LAW, abs=0.35)
    before = calibration.expected_error(calibration.scored_outcomes(fresh))
    scores = [(mask_scores.score(a.evidence[0], weights), calibration.is_right(a)) for a in fresh]
    after = calibration.expected_error(np.array(scores, float))
    assert after < 0.03 < before


def test_a_curve_straightens_what_the_regression_cannot():
    """Right in 30 % of cases, from some evidence on in more: no logistic law has this shape."""

    def bent(count, seed):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            one = ScoreFeatures(*rng.uniform(0.05, 0.99, 4))
            right = rng.random() < 0.3 + 1.4 * max(0, mask_scores.score(one, LAW) - 0.6)
            yield Answer(Overlap(80 if right else 10, 100), (0.5,), (one,))

    learnt, fresh = list(bent(3000, 0)), list(bent(3000, 1))
    weights = calibration.fit(learnt)
    curve = calibration.fit_isotonic_curve(learnt, weights)
    assert np.all(np.diff(np.array(curve), axis=0) >= 0)

    def error(knots):
        scores = [mask_scores.score(a.evidence[0], weights, knots) for a in fresh]
        right = [calibration.is_right(a) for a in fresh]
        return calibration.expected_error(np.array([scores, right], float).T)

    assert error(curve) < error(()) - 0.01


def test_the_error_is_the_mean_gap_by_counting():
    rows = np.array([(0.95, 1), (0.95, 0), (0.15, 0), (0.15, 0)], float)
    assert calibration.expected_error(rows) == pytest.approx((0.45 * 2 + 0.15 * 2) / 4)
    assert calibration.expected_error(np.array([(1.0, 1)], float)) == 0
    assert calibration.expected_error(np.empty((0, 2))) is None


def test_only_answers_of_one_mask_count():
    one = answers(3)[0]
    two = Answer(one.overlap, (0.5, 0.6), one.evidence * 2)
    assert calibration.scored_outcomes([one, two]).shape == (1, 2)


def test_a_fit_needs_right_and_wrong_masks():
    with pytest.raises(DataError, match='3 masks'):
        calibration.fit(answers(3))


def test_the_threshold_parts_what_is_there_from_what_is_not():
    scores = [0.9, 0.8, 0.7, 0.35, 0.3, 0.0]
    present = [True, True, True, False, False, False]
    assert 0.35 < calibration.best_threshold(scores, present) <= 0.7


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib draws it; it is in the extra [train]')
    rows = np.array([(a.scores[0], calibration.is_right(a)) for a in answers(300)], float)
    calibration.plot(rows, tmp_path / 'plot.png', 'scores')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
