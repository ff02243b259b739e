"""Gains over random images and losses against the whole set: numbers computed by hand."""

import json
import math
from dataclasses import replace

import pytest

from dc_lightning.cli import main
from dc_lightning.data import FashionMNIST
from dc_lightning.evaluation import Score, load_recipe
from dc_lightning.evaluation.fairness import (
    augmentation_fairness,
    augmentation_robust_score,
    fairness,
    label_robust_score,
)


def score(network, accuracy, recipe="DC"):
    augmentation = ["siamese"] if recipe == "DSA" else []
    return Score(network, [accuracy - 0.1, accuracy + 0.1], [0, 1], 1, augmentation, recipe)


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


def test_the_gains_with_and_without_augmentation():
    # a = 0.5 * 0.3 + 0.5 * 0.1 = 0.2; (1.221403 - 0.367879) / 2.350402
    assert augmentation_robust_score(0.3, 0.1) == pytest.approx(36.3138, abs=1e-3)
    own = [score("ConvNet", 0.8, "DSA"), score("ConvNet", 0.6, "DSA plain"), score("MLP", 0.6, "DSA")]
    random = [score("ConvNet", 0.5, "DSA"), score("ConvNet", 0.5, "DSA plain"), score("MLP", 0.4, "DSA")]
    (found,) = augmentation_fairness(own, random)
    assert (found.network, found.recipe) == ("ConvNet", "DSA")
    assert (found.ior, found.ior_plain) == (pytest.approx(0.3), pytest.approx(0.1))
    assert found.ars == pytest.approx(augmentation_robust_score(0.3, 0.1))
    assert found.ars_random == pytest.approx(100 * (1 - math.exp(-1)) / (math.e - math.exp(-1)))
    assert found.ars_whole_set is None
    whole = [score("ConvNet", 0.9, "DSA"), score("ConvNet", 0.8, "DSA plain")]
    (bounded,) = augmentation_fairness(own, random, whole)
    assert bounded.ars_whole_set == pytest.approx(augmentation_robust_score(0.4, 0.3))
    same = [replace(each, augmentation=[]) for each in own]
    assert augmentation_fairness(same, random) == []  # a recipe that has none


def test_a_plain_recipe_is_the_same_without_augmentation():
    recipe = load_recipe("dsa")
    plain = recipe.plain()
    assert (plain.name, plain.epochs_for("ConvNet", FashionMNIST())) == ("DSA plain", 1000)
    assert plain.augmentation_names("ConvNet", FashionMNIST()) == []
    assert replace(plain, name="DSA", augmentation="siamese", epochs_augmented=None) == recipe


def test_a_recipe_without_augmentation_has_nothing_to_leave_out(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = "select --method random --data conftest.TinyData --model.network MLP --trainer.accelerator cpu "
    assert main([*words.split(), "--evaluation.other_recipes", "[plain]"]) == 2
    assert "the recipe DC has no augmentation for TinyData that could be left out" in capfd.readouterr().err


def test_an_evaluation_says_both(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = "select --method random --data conftest.TinyData --model.network MLP --trainer.accelerator cpu "
    words += "--evaluation.num_networks 1 --evaluation.whole_set_epochs 1 "
    words += "--evaluation.recipe.name noisy --evaluation.recipe.epochs_augmented 2 "
    words += "--evaluation.recipe.augmentation [noise] --evaluation.other_recipes [plain]"
    assert main([*words.split(), "--evaluation.baselines", "[random, whole set]"]) == 0
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    means = [{score["recipe"]: score["mean"] for score in column["scores"]} for column in results["columns"]]
    assert [list(each) for each in means] == [["noisy", "noisy plain"]] * 3
    (found,) = results["augmentation_fairness"]
    assert found["ior"] == pytest.approx(means[0]["noisy"] - means[1]["noisy"])
    assert found["ior_plain"] == pytest.approx(means[0]["noisy plain"] - means[1]["noisy plain"])
    gains = [means[2][name] - means[1][name] for name in ("noisy", "noisy plain")]
    assert found["ars_whole_set"] == pytest.approx(augmentation_robust_score(*gains))
    assert [each["recipe"] for each in results["fairness"]] == ["noisy", "noisy plain"]
    assert f"ARS {found['ars']:.1f} (random {found['ars_random']:.1f}" in capfd.readouterr().out
