"""Gains over random images and losses against the whole set: numbers computed by hand."""

import pytest

from dc_lightning.evaluation import Score
from dc_lightning.evaluation.fairness import fairness, label_robust_score


def score(network, accuracy, recipe="DC"):
    return Score(network, [accuracy - 0.1, accuracy + 0.1], [0, 1], 1, [], recipe)


def test_scores_by_hand():
    # a = 0.5 * 0.2 - 0.5 * 0.3 = -0.05; (0.951229 - 0.367879) / 2.350402
    assert label_robust_score(0.2, 0.3) == pytest.approx(24.8192, abs=1e-3)
    assert label_robust_score(1, -1) == pytest.approx(100)
    assert label_robust_score(-1, 1) == pytest.approx(0)
    assert label_robust_score(0.2, 0.3, weight=1) == pytest.approx(
        36.3138, abs=1e-3
    )  # (1.221403 - 0.367879) / 2.350402


def test_every_network_and_recipe_that_all_have():
    own = [score("ConvNet", 0.7), score("MLP", 0.6), score("ConvNet", 0.8, "IDC")]
    random, whole = [score("ConvNet", 0.5), score("MLP", 0.4)], [score("ConvNet", 0.9)]
    (found,) = fairness(own, random, whole)
    assert (found.network, found.recipe) == ("ConvNet", "DC")
    assert (found.hlr, found.ior) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found.lrs == pytest.approx(label_robust_score(0, 0))
    assert found.lrs_random == pytest.approx(label_robust_score(0, 0.4))
    assert found.lrs_whole_set == pytest.approx(label_robust_score(0.4, 0))
    assert found.lrs_random < found.lrs < found.lrs_whole_set
    assert found.to_dict()["network"] == "ConvNet"
