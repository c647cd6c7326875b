"""Ranking metrics and RMSE with weights equal scikit-learn's, ties and repeated records included."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, root_mean_squared_error

from consilience.domains.metrics import ranking_scores, squared_error_scores


@pytest.mark.parametrize("levels", [3, 1000])
def test_weighted_scores_equal_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    truth, score = rng.random(80) < 0.3, rng.integers(levels, size=80) / levels
    weight = rng.integers(0, 4, size=(5, 80)).astype(float)
    found = ranking_scores(truth, score, weight)
    for draw, own in enumerate(weight):
        assert found["roc_auc"][draw] == pytest.approx(roc_auc_score(truth, score, sample_weight=own))
        expected = average_precision_score(truth, score, sample_weight=own)
        assert found["average_precision"][draw] == pytest.approx(expected)
        rmse = root_mean_squared_error(truth.astype(float), score, sample_weight=own)
        assert squared_error_scores(truth.astype(float), score, weight)["rmse"][draw] == pytest.approx(rmse)


def test_a_draw_with_one_class_has_no_score() -> None:
    truth, score = np.array([True, True, False]), np.array([0.9, 0.1, 0.5])
    found = ranking_scores(truth, score, np.array([[1.0, 1, 0], [1, 1, 1]]))
    assert np.isnan(found["roc_auc"][0]) and np.isnan(found["average_precision"][0])
    assert found["roc_auc"][1] == 0.5
