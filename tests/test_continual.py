"""Continual learning: stages, memories, rehearsal with distillation; killed and resumed; one process and two."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from children import RUN, run
from conftest import TinyData, some_slow

from dc_lightning import InputError, SyntheticSet
from dc_lightning.cli import main
from dc_lightning.data import Stream
from dc_lightning.evaluation import Recipe
from dc_lightning.evaluation.training import ContinuedJob, Distillation, Job, train, train_and_test
from dc_lightning.experiments import continual
from dc_lightning.experiments.continual import Learnt, Stage, stages_of
from dc_lightning.experiments.tables import Matrix, merged
from dc_lightning.networks import make_network
from dc_lightning.synthetic import load_synthetic

ARGS = (
    "continual --data conftest.TinyData --data.classes 6 --model.network MLP --model.ipc 2 --model.outer_steps 2 "
    "--model.inner_epochs 1 --trainer.max_epochs 2 --trainer.accelerator cpu --protocol.steps 3 --protocol.orders 2 "
    "--evaluation.num_networks 2 --evaluation.recipe.epochs 30 --evaluation.whole_set_epochs 1 "
    "--evaluation.features_network MLP"
).split()
CPU = torch.device("cpu")


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])


def tiny(classes=6, **kwargs):
    data = TinyData(classes=classes, **kwargs)
    data.setup()
    return data


@pytest.mark.parametrize("order", [0, 3])
def test_classes_come_in_the_order_of_numpys_permutation(order):
    np.random.seed(order)
    expected = np.random.permutation(6)
    stages = stages_of(tiny(), 3, order)
    assert [label for stage in stages for label in stage.labels] == expected.tolist()
    assert [stage.data.num_classes for stage in stages] == [2, 2, 2]


def test_a_stage_has_the_images_of_its_classes():
    data = tiny()
    found = data.of_classes([4, 1])
    assert found.class_names == ("class 4", "class 1")
    assert (found.mean, found.std) == (data.mean, data.std)
    for number, label in enumerate((4, 1)):
        assert torch.equal(found.real.take(found.real.rows[number]), data.real.take(data.real.rows[label]))
    images, labels = next(iter(found.test_dataloader()))
    everything, all_labels = next(iter(data.test_dataloader()))
    assert torch.equal(images[labels == 1], everything[all_labels == 1])
    assert data.num_classes == 6  # unchanged
    assert len(data.test_labels) == 30


def test_a_stage_of_images_on_disk_has_those_of_its_classes(tmp_path):
    from PIL import Image

    from dc_lightning.data import ImageFolder

    for label in range(4):
        for number in range(6):
            path = tmp_path / f"class{label}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (6, 6), 40 * label + number).save(path)
    data = ImageFolder(str(tmp_path), in_memory=False)
    data.setup()
    found = data.of_classes([3, 0])
    for number, label in enumerate((3, 0)):
        pixels = data.denormalize(found.real.take(found.real.rows[number])) * 255
        assert ((pixels.round() // 40) == label).all()
    for images, labels in found.test_dataloader():
        values = (data.denormalize(images) * 255).round()[:, 0, 0, 0] // 40
        assert torch.equal(values.long(), torch.tensor([3, 0])[labels])


def test_accuracy_and_forgetting_by_hand():
    after = [[0.9], [0.5, 0.8], [0.6, 0.4, 1.0]]
    learnt = Learnt("DC", [[after]], [[10, 30, 60]], 1, 1)
    assert learnt.by_stage() == [[0.9], [pytest.approx((5 + 24) / 40)], [pytest.approx((6 + 12 + 60) / 100)]]
    assert learnt.forgetting() == [pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)]
    packed = continual.table([Learnt("IDC", [[after]], None, 80, 20), learnt], "any", ["one", "two", "three"])
    assert list(dict.fromkeys(row for row, _ in packed.cells)) == ["IDC, 80 images in 20", "DC, 1 image"]
    alike = Learnt("DC", [[after]], None, 1, 1)
    assert alike.by_stage()[2] == [pytest.approx(2 / 3)]


def test_distillation_is_the_cross_entropy_of_softened_outputs():
    torch.manual_seed(0)
    network, images, logits = torch.nn.Linear(4, 5), torch.randn(3, 4), torch.randn(3, 5, requires_grad=True)
    loss = Distillation(network, [0, 3], weight=0.5, temperature=2.0)(images, logits)
    old = network(images).detach().numpy()[:, [0, 3]] / 2
    new = logits.detach().numpy()[:, [0, 3]] / 2
    wanted = np.exp(old) / np.exp(old).sum(1, keepdims=True)
    found = new - np.log(np.exp(new).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(0.5 * -(wanted * found).sum(1).mean(), rel=1e-5)
    loss.backward()
    assert network.weight.grad is None
    assert (logits.grad[:, [1, 2, 4]] == 0).all()


def test_a_strong_distillation_keeps_the_outputs_of_the_network_before():
    data = tiny(classes=3)
    labels = torch.arange(3).repeat(4)
    wrong = SyntheticSet(data.real.take(data.real.rows[0])[:12], labels, data.mean, data.std, data.class_names)
    before = make_network("MLP", data, seed=5)
    images = next(iter(data.test_dataloader()))[0]
    moved = []
    for weight in (0.0, 50.0):
        distillation = Distillation(make_network("MLP", data, seed=5), [0, 1, 2], weight)
        job = ContinuedJob("MLP", Recipe(epochs=20, augmentation=[]), 1, before, distillation)
        after = train(wrong, job, data, CPU).network
        moved.append((after(images).softmax(1) - before(images).softmax(1)).abs().mean().item())
    assert moved[1] < 0.5 * moved[0]


def learnt(folder):
    return json.loads((folder / RUN / "results.json").read_text())["learnt"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run([*ARGS, "--protocol.memories", "[condensed, random]"], folder) == 0
    return folder


def test_the_command_writes_results_a_table_and_a_plot(whole):
    results = json.loads((whole / RUN / "results.json").read_text())
    assert [column["name"] for column in results["columns"]] == ["DC", "random"]
    assert [column["stored_images"] for column in results["columns"]] == [12, 12]
    assert [len(column["scores"][0]["accuracies"]) for column in results["columns"]] == [4, 4]
    assert results["stages"] == ["2 classes", "4 classes", "6 classes"]
    rows = {row for row, _, _ in results["table"]["cells"]}
    assert rows == {"DC, 12 images", "random, 12 images"}
    assert (whole / RUN / "continual.png").stat().st_size > 5000
    assert results["columns"][1]["scores"][0]["mean"] > 1 / 3  # half of the best: six classes that are easy to tell


def test_the_last_accuracy_is_that_of_a_training_on_all_memories(whole):
    data, order = tiny(), 0
    stages = stages_of(data, 3, order)
    folders = [*(whole / "lightning_logs/continual/memories").glob("TinyData_random_*")]
    sets = [load_synthetic(folder / "synthetic.pt")[0] for folder in folders]
    assert len(sets) == 6
    images, labels = [], []
    for stage in stages:
        kept = next(each for each in sets if each.class_names == stage.data.class_names)
        images.append(kept.images)
        labels.append(torch.tensor(stage.labels)[kept.labels])
    joined = SyntheticSet(torch.cat(images), torch.cat(labels), data.mean, data.std, data.class_names)
    results = json.loads((whole / RUN / "results.json").read_text())
    score = results["columns"][1]["scores"][0]
    accuracy, _ = train_and_test(joined, Job("MLP", Recipe(epochs=30), score["seeds"][0]), data, CPU)
    assert score["accuracies"][0] == pytest.approx(accuracy)


def test_report_shows_the_table(whole, capsys):
    assert main(["report", str(whole), "--output", str(whole / "report")]) == 0
    assert "continual learning, memory" in capsys.readouterr().out
    assert "DC, 12 images" in (whole / "report" / "report.md").read_text()
    assert (whole / "report" / "continual_1.png").read_bytes() == (whole / RUN / "continual.png").read_bytes()


def test_the_same_command_trains_nothing_again(whole, monkeypatch):
    monkeypatch.chdir(whole)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    monkeypatch.setattr(continual, "train", None)
    monkeypatch.setattr(continual.Continual, "_condense", None)
    assert main([*ARGS, "--protocol.memories", "[condensed, random]", "--trainer.logger.version", "again"]) == 0
    again = json.loads((whole / "lightning_logs/again/results.json").read_text())
    assert again["learnt"] == learnt(whole)


@pytest.mark.parametrize("count", some_slow([3, 9, 21], [21]))  # first condensation, a network, a later memory
def test_killed_and_resumed(whole, tmp_path, count):
    words = [*ARGS, "--protocol.memories", "[condensed, random]", "--trainer.logger.version", "0"]
    assert run(words, tmp_path, "inside a file write", count) == -signal.SIGKILL
    assert not (tmp_path / RUN / "results.json").exists()
    assert run(words, tmp_path) == 0
    assert learnt(tmp_path) == learnt(whole)


def test_two_processes_are_as_one(whole, tmp_path):
    words = [*ARGS, "--protocol.memories", "[condensed, random]", "--trainer.strategy", "ddp_fork"]
    assert run([*words, "--trainer.devices", "2"], tmp_path) == 0
    assert learnt(tmp_path) == learnt(whole)


def test_a_rehearsal_continues_the_network_of_the_stage_before(empty_folder):
    """With a learning rate of 0 after the first stage nothing is forgotten, and nothing learnt."""
    words = [*ARGS, "--protocol.memories", "[random]", "--protocol.training", "rehearsal"]
    assert main([*words, "--evaluation.recipe.lr", "0", "--evaluation.recipe.weight_decay", "0"]) == 0
    for networks in learnt(Path())[0]["accuracies"]:
        for stages in networks:
            assert [tasks[0] for tasks in stages] == [stages[0][0]] * 3
    assert main([*words, "--evaluation.recipe.epochs", "60", "--protocol.distillation", "1"]) == 0
    found = json.loads(Path("lightning_logs/version_1/results.json").read_text())["learnt"][0]
    new = [stages[-1][-1] for networks in found["accuracies"] for stages in networks]
    assert min(new) == 1.0  # the newest classes come with all their images


def test_a_stream_of_datasets_weighs_them_alike(empty_folder):
    Path("stream.yaml").write_text(
        """
data:
  class_path: dc_lightning.data.Stream
  init_args:
    stages:
    - class_path: conftest.TinyData
    - {class_path: conftest.TinyData, init_args: {per_class: 20}}
"""
    )
    words = [ARGS[0], "--config", "stream.yaml", *ARGS[5:], "--protocol.memories", "[random]"]
    assert main([*words, "--protocol.training", "rehearsal"]) == 0
    results = json.loads((RUN / "results.json").read_text())
    assert results["stages"] == ["TinyData (1)", "TinyData (2)"]
    assert results["learnt"][0]["stored"] == 6  # of the first; the last comes with its data
    assert results["learnt"][0]["sizes"] is None
    assert [len(stage) for stage in results["learnt"][0]["by_stage"]] == [4, 4]


def test_the_datasets_of_a_stream_need_one_shape():
    stream = Stream([TinyData(), TinyData(channels=3)])
    with pytest.raises(InputError, match=r"one image shape.*TinyData has 3 classes of \(3, 6, 6\)"):
        stream.setup()
    with pytest.raises(InputError, match="two datasets or more, got 1"):
        Stream([TinyData()])


def test_tests_of_a_stage_are_labelled_among_all_classes():
    stage = Stage(tiny().of_classes([4, 1]), (4, 1))
    assert {int(label) for _, labels in stage.tests() for label in labels} == {1, 4}


def test_other_data_of_the_same_name_is_not_taken_for_what_was_kept(empty_folder):
    words = [*ARGS, "--protocol.memories", "[random]", "--protocol.orders", "1"]
    assert main(words) == 0
    assert main([*words, "--data.per_class", "13"]) == 0
    assert len(list(Path("lightning_logs/continual/memories").iterdir())) == 6
    first = tiny().fingerprint
    assert tiny().fingerprint == first
    assert tiny().of_classes([0, 1]).fingerprint != first != tiny(validation=0.2).fingerprint
    other = tiny()
    other.test_labels.copy_(other.test_labels.flip(0))
    assert other.fingerprint != first


def test_sets_of_several_images_in_one_are_kept_as_they_decode(empty_folder):
    words = ["continual", "--data", "conftest.TinyData", "--data.classes", "4", "--model", "IDC", *ARGS[5:9]]
    words += ["--model.network", "ConvNetD1", "--model.factor", "2", "--model.outer_steps", "2"]
    words += ["--trainer.accelerator", "cpu"]
    words += ["--trainer.max_epochs", "1", "--protocol.steps", "2", "--protocol.orders", "1"]
    words += ["--protocol.memories", "[condensed]", "--evaluation.num_networks", "1", "--evaluation.recipe.epochs", "2"]
    assert main(words) == 0
    found = learnt(Path())[0]
    assert (found["stored"], found["images"]) == (8, 32)


def test_a_signal_names_the_command_that_continues(empty_folder, monkeypatch, capsys):
    continual_run = continual.Continual.run

    def stopped(self):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(continual.Continual, "run", stopped)
    assert main(ARGS) == 128 + signal.SIGTERM
    command = capsys.readouterr().err.splitlines()[-1].split()
    assert command[:3] == ["dc-lightning", "continual", "--config"]
    monkeypatch.setattr(continual.Continual, "run", continual_run)
    assert main([*command[1:], "--protocol.orders", "1", "--trainer.max_epochs", "1"]) == 0


def test_dropout_draws_from_the_seed_of_its_network():
    data = tiny(classes=3)
    chosen = SyntheticSet(
        data.real.take(torch.arange(12)), data.real.labels[:12], data.mean, data.std, data.class_names
    )
    job, states = Job("test_continual.with_dropout", Recipe(epochs=5), 1), []
    for _ in range(2):
        torch.rand(7)  # another state of the global generator
        states.append(torch.cat([value.flatten() for value in train(chosen, job, data, CPU).network.parameters()]))
    assert torch.equal(*states)


def with_dropout(channels, num_classes, image_size):
    inputs = channels * image_size[0] * image_size[1]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(inputs, num_classes))


def test_tables_are_merged_where_they_do_not_contradict():
    first = Matrix("one", "memory", {("DC", "a"): "1", ("DC", "b"): "2"})
    second = Matrix("one", "memory", {("random", "a"): "3", ("random", "b"): "4"})
    again = Matrix("one", "memory", {("DC", "a"): "9", ("DC", "b"): "2"})
    longer = Matrix("one", "memory", {("DM", "a"): "1", ("DM", "c"): "2"})
    found = merged([first, second, again, longer])
    assert [sorted({row for row, _ in matrix.cells}) for matrix in found] == [["DC", "random"], ["DC"], ["DM"]]
    assert len(first.cells) == 2


BAD = {
    "no end": (["--trainer.max_epochs", "-1"], "ends after trainer.max_epochs"),
    "an end by time": (["--trainer.max_time", "00:00:01:00"], "no trainer.max_time"),
    "a rehearsal of the run": (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run is for fit"),
    "a chosen iteration": (
        ["--evaluation.choose_iteration", "true", "--evaluation.every_n", "1"],
        "end with their last iteration",
    ),
    "two networks": (["--evaluation.networks", "[MLP, ConvNetD1]"], "one test network and one recipe, got 2 and 1"),
    "steps that do not divide": (["--protocol.steps", "4"], "must divide the 6 classes"),
    "a stage of one class": (["--protocol.steps", "6"], "stages of two or more, got 6"),
    "one step": (["--protocol.steps", "1"], "protocol.steps must be at least 2"),
    "no order": (["--protocol.orders", "0"], "protocol.orders must be at least 1"),
    "distillation of nothing": (["--protocol.distillation", "1"], "needs protocol.training rehearsal"),
    "temperature": (["--protocol.temperature", "0"], "temperature must be above 0"),
    "no memory": (["--protocol.memories", "[]"], "name at least one"),
    "an unknown memory": (["--protocol.memories", "[herdin]"], "protocol.memories"),
    "an unknown training": (["--protocol.training", "replay"], "protocol.training"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name, empty_folder, capsys):
    words, sentence = BAD[name]
    assert main([*ARGS, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") <= 2


def test_an_output_folder_that_cannot_be_written(empty_folder, capsys):
    Path("file").touch()
    assert main([*ARGS, "--output", "file"]) == 2
    assert "give another by --output" in capsys.readouterr().err
