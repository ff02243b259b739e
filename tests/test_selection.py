"""Herding, k-center and forgetting against versions that try everything, image by image."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TinyData
from PIL import Image

from dc_lightning import Evaluator, InputError, Recipe, load_synthetic
from dc_lightning.cli import main
from dc_lightning.data import ImageFolder
from dc_lightning.evaluation import evaluator
from dc_lightning.evaluation.baselines import WholeSet, random_set
from dc_lightning.evaluation.selection import Forgetting, herding, k_center, most_forgotten
from dc_lightning.experiments.rows import collect
from dc_lightning.matching.embeddings import embed
from dc_lightning.networks import make_network

CPU = torch.device("cpu")


def slow_herding(features, count):
    centre, chosen = features.mean(0), []
    for _ in range(count):
        unused = [row for row in range(len(features)) if row not in chosen]
        chosen.append(min(unused, key=lambda row: float((features[[*chosen, row]].mean(0) - centre).norm())))
    return chosen


def slow_k_center(features, count):
    centre = features.mean(0)
    chosen = [min(range(len(features)), key=lambda row: float((features[row] - centre).norm()))]
    while len(chosen) < count:
        unused = [row for row in range(len(features)) if row not in chosen]
        chosen.append(max(unused, key=lambda row: min(float((features[row] - features[c]).norm()) for c in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 7, 30])
def test_against_brute_force(seed, count):
    features = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert herding(features, count).tolist() == slow_herding(features, count)
    assert k_center(features, count).tolist() == slow_k_center(features, count)


def test_equal_images_are_each_taken_once():
    features = torch.zeros(5, 3)
    for method in (herding, k_center):
        assert sorted(method(features, 5).tolist()) == list(range(5))


def test_forgetting_counts_right_to_wrong_and_puts_the_never_learnt_first():
    counting = Forgetting(torch.zeros(4, dtype=torch.int64))
    history = [  # right or not, an epoch a line, an image a column
        (1, 0, 0, 1),
        (0, 1, 0, 1),
        (1, 0, 0, 1),
        (0, 0, 0, 1),
    ]
    for right in history:
        logits = torch.tensor([[float(r), 1 - float(r)] for r in right])
        order = torch.tensor([2, 0, 3, 1])
        counting(order, logits[order])
    assert counting.events().tolist() == [2, 1, 3, 0]
    assert most_forgotten(counting.events(), 2).tolist() == [2, 0]


def whole_set(data, folder, epochs=2, seed=0):
    return WholeSet(Evaluator(data, CPU, seed), Recipe(), epochs, folder)


def test_a_network_of_the_whole_set_is_trained_once(tiny_data, tmp_path, monkeypatch):
    networks, said = whole_set(tiny_data, tmp_path, 3, 5), []
    first = networks.network("MLP", 0, said.append)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("dc_lightning.evaluation.baselines.train_and_test", lambda *_: pytest.fail("trained again"))
    again = networks.network("MLP", 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert again.accuracy == first.accuracy
    assert torch.equal(again.events, first.events)
    assert all(torch.equal(again.state[name], first.state[name]) for name in first.state)
    (path,) = files
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        networks.network("MLP", 0)


@pytest.mark.parametrize("change", ["epochs", "seed", "network", "number", "data"])
def test_another_network_of_the_whole_set_is_another_file(change, tiny_data, tmp_path):
    whole_set(tiny_data, tmp_path, 1).network("MLP", 0)
    settings = {"data": tiny_data, "epochs": 1, "seed": 0} | {
        "epochs": {"epochs": 2},
        "seed": {"seed": 1},
        "data": {"data": Changed()},
    }.get(change, {})
    if change == "data":
        settings["data"].setup()
    network = {"class_path": "conftest.TinyNet", "init_args": {"width": 2}} if change == "network" else "MLP"
    whole_set(settings["data"], tmp_path, settings["epochs"], settings["seed"]).network(
        network, int(change == "number")
    )
    assert len(list(tmp_path.iterdir())) == 2


class Changed(TinyData):
    """The same name, classes and number of images; one pixel differs."""

    dataset_name = "TinyData"

    def load(self):
        (images, labels), test, names = super().load()
        images[0, 0, 0, 0] = 1 - images[0, 0, 0, 0]
        return (images, labels), test, names


@pytest.mark.parametrize("method", ["herding", "k-center", "forgetting"])
def test_selected_images_are_real_ones_of_their_class(method, tiny_data, tmp_path):
    networks = whole_set(tiny_data, tmp_path)
    chosen = networks.select(method, 3, "MLP")
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for image, label in chosen:
        real = tiny_data.real.take(tiny_data.real.rows[int(label)])
        assert (real == image).flatten(1).all(1).sum() == 1
    if method == "herding":
        network = make_network("MLP", tiny_data, 0)
        network.load_state_dict(networks.network("MLP", 0).state)
        with torch.no_grad():
            features = embed(network.eval(), tiny_data.real.take(tiny_data.real.rows[1]))
        rows = tiny_data.real.rows[1][slow_herding(features.double(), 3)]
        assert torch.equal(chosen.images[3:6], tiny_data.real.take(rows))


@pytest.mark.parametrize("method", ["random", "herding", "k-center", "forgetting"])
def test_as_many_images_of_each_class_are_selected_as_it_is_told(method, tiny_data, tmp_path):
    chosen = whole_set(tiny_data, tmp_path).select(method, [1, 0, 4], "MLP")
    assert chosen.labels.tolist() == [0, 2, 2, 2, 2]
    assert (chosen.counts, chosen.ipc, chosen.source["ipc"]) == ([1, 0, 4], 4, 4)


def test_a_class_may_be_left_out_of_images_on_disk(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (6, 6), number).save(tmp_path / "images" / name / f"{number}.png")
    data = ImageFolder(root=str(tmp_path / "images"), in_memory=False, batch_real=2)
    data.setup()
    assert random_set(data, [2, 0], 0).counts == [2, 0]


def test_what_stands_beside_an_uneven_set_has_its_budget(tmp_path, monkeypatch, tiny_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    random_set(tiny_data, [1, 2, 5], 0).save("uneven.pt")
    words = "evaluate --data conftest.TinyData --model.network MLP --trainer.accelerator cpu --synthetic uneven.pt "
    words += "--evaluation.features_network MLP --evaluation.whole_set_epochs 1 --evaluation.num_networks 1 "
    words += "--evaluation.recipe.epochs 1"
    assert main([*words.split(), "--evaluation.baselines", "[random, k-center]"]) == 0
    columns = json.loads(Path("lightning_logs/version_0/results.json").read_text())["columns"]
    assert [column["stored_images"] for column in columns] == [8, 8, 8]


def test_features_of_somebody_elses_network_are_taken_before_its_last_layer(tiny_data, tmp_path):
    assert len(whole_set(tiny_data, tmp_path).select("herding", 2, "conftest.TinyNet")) == 6


SELECT = (
    "select --data conftest.TinyData --model.network MLP --model.ipc 2 --trainer.accelerator cpu "
    "--evaluation.features_network MLP --evaluation.whole_set_epochs 2 --evaluation.num_networks 2 "
    "--evaluation.recipe.epochs 2"
).split()


def test_the_command_selects_and_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    baselines = ["--evaluation.baselines", "[random, k-center, whole set]"]
    assert main([*SELECT, "--method", "herding", *baselines]) == 0
    shown = capsys.readouterr().out
    for name in ("herding", "random", "k-center", "whole set"):
        assert name in shown
    (chosen,) = load_synthetic("lightning_logs/version_0/synthetic.pt")
    assert chosen.source["method"] == "herding"
    assert len(chosen) == 6
    assert Path("lightning_logs/version_0/synthetic.png").is_file()
    assert len(list(Path("lightning_logs/whole_set").iterdir())) == 1  # features and upper bound share it


def test_random_images_are_a_set_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = [*SELECT, "--method", "random", "--evaluation.baselines", "[]"]
    for seed in ("3", "4"):
        assert main([*words, "--seed_everything", seed]) == 0
    (first,), (other,) = (load_synthetic(f"lightning_logs/version_{version}/synthetic.pt") for version in (0, 1))
    assert (first.source["method"], first.source["seed"], len(first)) == ("random", 3, 6)
    assert not torch.equal(first.images, other.images)
    assert not Path("lightning_logs/whole_set").exists()  # nothing is trained for it
    found = collect([Path("lightning_logs")])
    rows, problems = found.rows, found.problems
    (row,) = rows
    assert (row.key.method, row.sets, len(row.accuracies), problems) == ("random", 2, 4, [])


def test_an_evaluation_that_is_stopped_continues_with_the_networks_that_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    original, done, stop_at = evaluator.train_and_test, [], [3]

    def counting(*args, **kwargs):
        if len(done) + 1 == stop_at[0]:
            raise RuntimeError("stopped")
        found = original(*args, **kwargs)
        done.append(found[0])
        return found

    monkeypatch.setattr(evaluator, "train_and_test", counting)
    words = [*SELECT, "--method", "random", "--evaluation.baselines", "[]", "--trainer.logger.version", "one"]
    words += ["--evaluation.networks", "[MLP, ConvNetD1]"]
    folder = Path("lightning_logs/one")
    with pytest.raises(RuntimeError, match="stopped"):
        main(words)
    assert len(done) == 2
    with (folder / ".evaluated/0.jsonl").open("a") as file:
        file.write('\n["cut off')
    stop_at[0] = 0
    assert main(words) == 0
    assert len(done) == 4  # two networks of two architectures
    columns = json.loads((folder / "results.json").read_text())["columns"]
    assert [a for column in columns for score in column["scores"] for a in score["accuracies"]] == done
    assert not (folder / ".evaluated").exists()
    assert main(words) == 2  # finished
    assert len(done) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "magic"], "herding"),
        (["--method", "herding", "--evaluation.features_network", "conftest.embedding"], "one logit a class"),
        (["--method", "herding", "--evaluation.baselines", "[nothing]"], "k-center"),
        (["--method", "herding", "--model.ipc", "0"], "ipc must be at least 1"),
        (["--method", "herding", "--evaluation.whole_set_epochs", "0"], "whole_set_epochs must be at least 1"),
    ],
)
def test_bad_input_gets_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    assert main([*SELECT, *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
