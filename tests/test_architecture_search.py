"""Architecture search: the space, rank correlations, proxies; killed and resumed."""

import json
import signal
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from children import RUN, run
from conftest import TinyData, some_slow

from dc_lightning import InputError, SyntheticSet
from dc_lightning.cli import main
from dc_lightning.evaluation import Score
from dc_lightning.experiments import architecture_search
from dc_lightning.experiments.architecture_search import Ranking, Space, agreements, chosen_accuracy
from dc_lightning.networks import make_network
from dc_lightning.parts import part_name

ARGS = (
    "architecture-search --data conftest.TinyData --model.network MLP --model.ipc 2 --trainer.accelerator cpu "
    "--evaluation.num_networks 1 --evaluation.recipe.epochs 10 --evaluation.whole_set_epochs 2 "
    "--evaluation.features_network MLP --space.width [4,8] --space.depth [1] --space.normalization [none,group] "
    "--space.activation [relu] --space.pooling [max,avg] --space.networks [MLP] --space.sample 7 --proxies"
).split()
ARGS += ["[random, herding, early stopping]"]
TRAINING = "dc_lightning.experiments.architecture_search.train_and_test"  # of a proxy's network


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])


def test_the_papers_space_has_720_networks():
    networks = Space().all()
    assert len(networks) == len({part_name(network) for network in networks}) == 720
    data = TinyData(size=(16, 16))
    data.setup()
    made = make_network(networks[-1], data, 0)
    layers = [type(layer).__name__ for layer in made.features]
    assert layers == ["Conv2d", "LeakyReLU"] * 4  # neither norm nor pooling
    assert made.features[0].out_channels == 256


def test_a_sample_is_drawn_by_the_seed():
    space = Space(sample=60)
    first, other = space.drawn(0), space.drawn(1)
    assert first == space.drawn(0) != other
    assert len({part_name(network) for network in first}) == 60
    assert all(network in space.all() for network in first)
    assert {network["init_args"]["width"] for network in first} == {32, 64, 128, 256}


def ranks(values):
    return np.array(
        [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]
    )


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_those_by_definition(seed):
    drawn = np.random.default_rng(seed)
    proxy, truth = drawn.integers(0, 12, 25) / 12, drawn.permutation(25) / 25  # the proxy has ties
    found = agreements(proxy.tolist(), truth.tolist())
    assert [each.top for each in found] == [25, 20, 10, 5]
    for each in found:
        best = np.argsort(-truth)[: each.top]
        a, b = proxy[best], truth[best]
        assert each.spearman == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
        pairs = list(combinations(range(each.top), 2))
        signs = np.array([[np.sign(x[i] - x[j]) for i, j in pairs] for x in (a, b)])
        tau = (signs[0] * signs[1]).sum() / np.sqrt((signs[0] != 0).sum() * (signs[1] != 0).sum())
        assert each.kendall == pytest.approx(tau)


def test_no_correlation_where_all_accuracies_are_equal():
    (found,) = agreements([0.1, 0.1, 0.1], [0.1, 0.2, 0.3])
    assert (found.top, found.spearman, found.kendall) == (3, None, None)


def test_the_choice_of_a_proxy_is_scored_on_the_whole_set():
    def ranking(*accuracies):
        scores = [Score(str(n), [value], [0], 1, []) for n, value in enumerate(accuracies)]
        return Ranking("any", None, 1, scores)

    assert chosen_accuracy(ranking(0.2, 0.7, 0.7), ranking(0.9, 0.5, 0.8)) == 0.5


def columns(folder):
    return json.loads((folder / RUN / "results.json").read_text())["columns"]


def test_images_in_one_are_said():
    stored = SyntheticSet(torch.zeros(10, 1, 4, 4), torch.arange(10), (0.5,), (0.5,), tuple("abcdefghij"))
    found = [Ranking(str(factor), replace(stored, factor=factor), 10).images_in_words for factor in (1, 2)]
    assert found == ["10", "40 in 10"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(ARGS, folder) == 0
    return folder


def test_the_command_writes_results_a_table_and_a_plot(whole):
    results = json.loads((whole / RUN / "results.json").read_text())
    names = ["random", "herding", "early stopping", "whole set"]
    assert [column["name"] for column in results["columns"]] == names
    assert [column["stored_images"] for column in results["columns"]] == [6, 6, 36, 36]
    assert all(len(column["scores"]) == 7 for column in results["columns"])
    storage = {row: value for row, column, value in results["table"]["cells"] if column == "kB"}
    assert storage == {"random": "0.2", "herding": "0.2", "early stopping": "1.3", "whole set": "1.3"}  # 36 bytes each
    assert [found["top"] for found in results["agreement"]["random"]] == [7, 5]
    assert all(seconds > 0 for seconds in results["seconds_of"].values())
    assert (whole / RUN / "architecture_search.png").stat().st_size > 5000
    truth = [score["mean"] for score in results["columns"][-1]["scores"]]
    assert max(truth) > 1 / 3  # a chance of one in three


def test_early_stopping_sees_as_many_images(whole, monkeypatch):
    """Eleven epochs (0..10) of six images are 66, and two epochs of 36 come nearest."""
    asked, drops = [], {}
    monkeypatch.chdir(whole)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])

    def note(synthetic, job, data, device, report=None):
        epochs = job.recipe.epochs_run(job.recipe.epochs_for(job.network, data))
        asked.append((synthetic.method, len(synthetic), epochs))
        drops.update({epochs: job.recipe.milestones} if synthetic.method == "early stopping" else {})
        return 0.5, None

    monkeypatch.setattr(architecture_search, "train_and_test", note)
    words = [*ARGS, "--evaluation.cache", "noted", "--trainer.logger.version"]
    assert main([*words, "noted"]) == 0
    assert set(asked) == {("random", 6, 11), ("herding", 6, 11), ("early stopping", 36, 2)}
    asked.clear()
    assert main([*words, "short", "--evaluation.recipe.epochs", "2"]) == 0
    assert ("early stopping", 18, 1) in asked  # three epochs of six: half of an epoch
    assert drops == {2: [0.5], 1: []}


def test_the_same_command_trains_nothing_again(whole, monkeypatch):
    monkeypatch.chdir(whole)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    monkeypatch.setattr(architecture_search, "train_and_test", None)
    assert main([*ARGS, "--trainer.logger.version", "again"]) == 0
    results = json.loads((whole / "lightning_logs/again/results.json").read_text())
    assert results["columns"] == columns(whole)
    assert results["seconds_of"]["random"] > 0  # noted when they were trained


@pytest.mark.parametrize("count", some_slow([3, 16], [16]))  # random, early stopping
def test_killed_and_resumed(whole, tmp_path, count):
    assert run(ARGS, tmp_path, TRAINING, count) == -signal.SIGKILL
    words = [*ARGS, "--trainer.logger.version", "0"]
    assert run(words, tmp_path) == 0
    assert columns(tmp_path) == columns(whole)


def test_two_processes_are_as_one(whole, tmp_path):
    assert run([*ARGS, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"], tmp_path) == 0
    assert columns(tmp_path) == columns(whole)


def test_a_saved_set_is_a_proxy(empty_folder, whole):
    words = (
        "select --data conftest.TinyData --method random --model.ipc 1 --model.network MLP --trainer.accelerator cpu"
    )
    assert main([*words.split(), "--evaluation.num_networks", "1", "--evaluation.recipe.epochs", "1"]) == 0
    assert main([*ARGS[:-1], f"[{RUN}/synthetic.pt]"]) == 0
    results = json.loads(Path("lightning_logs/version_1/results.json").read_text())
    assert results["columns"][0]["name"] == f"random, {RUN}/synthetic.pt"
    assert results["columns"][0]["stored_images"] == 3


BAD = {
    "an unknown proxy": (["--proxies", "[herdin]"], "'herding'"),
    "no proxy": (["--proxies", "[]"], "proxies must name at least one set"),
    "early stopping alone": (["--proxies", "[early stopping]"], "proxies must name at least one set"),
    "a proxy twice": (["--proxies", "[random, random]"], "once each"),
    "no such set": (["--proxies", "[nothing.pt]"], "nothing.pt"),
    "a sample of one": (["--space.sample", "1"], "space.sample must be at least 2"),
    "a sample above the space": (["--space.sample", "99"], "must have 99 networks or more, but has 9"),
    "an unknown norm": (["--space.normalization", "[batches]"], "normalization"),
    "an unknown network": (["--space.networks", "[ConvNett, MLP]", "--space.sample", "null"], "ConvNett"),
    "two recipes": (["--evaluation.other_recipes", "[dsa]"], "takes one recipe, got 2"),
    "a network too deep": (["--space.depth", "[4]"], "needs images of at least"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name, empty_folder, capsys):
    words, sentence = BAD[name]
    assert main([*ARGS, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") <= 2


def test_an_empty_space():
    with pytest.raises(InputError, match="must have 2 networks or more, but has 0"):
        Space(width=[])
