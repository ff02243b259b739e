"""Training images that are held out: to test on in place of the test set, and to choose an iteration by."""

import json
import shutil
import signal

import pytest
import torch
from children import RUN, run
from conftest import TinyData, quiet_trainer, some_slow
from test_resume import assert_same, outcome

from dc_lightning import CondensationModule, EvaluationCallback, InputError, load_synthetic
from dc_lightning.cli import main
from dc_lightning.data import Stream
from dc_lightning.data.datamodule import hold_out
from dc_lightning.evaluation import Recipe
from dc_lightning.experiments.rows import collect

ARGS = (
    "fit --data conftest.TinyData --data.validation 0.25 --model.network MLP --model.outer_steps 2 "
    "--model.inner_epochs 1 --model.lr_images 30 --trainer.max_epochs 6 --trainer.accelerator cpu "
    "--evaluation.num_networks 2 --evaluation.every_n 2 --evaluation.recipe.epochs 4 --checkpoint.every_n 2 "
    "--checkpoint.last_every_seconds 0 --evaluation.choose_iteration true"
).split()


def set_up(**settings):
    data = TinyData(**settings)
    data.setup()
    return data


def test_a_share_of_every_class_is_held_out_and_seen_by_nothing_else():
    labels = torch.arange(5).repeat_interleave(torch.tensor([20, 11, 2, 40, 3]))
    kept, held = hold_out(labels, 0.1)
    assert torch.bincount(labels[held]).tolist() == [2, 1, 1, 4, 1]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(76))
    assert all(torch.equal(*pair) for pair in zip(hold_out(labels, 0.1), (kept, held), strict=True))
    with pytest.raises(InputError, match="two training images of every class, but class 1 has one"):
        hold_out(torch.tensor([0, 0, 1]), 0.5)
    whole, part = set_up(), set_up(validation=0.25)
    assert part.real.counts() == [9, 9, 9]
    assert torch.equal(part.test_labels, whole.test_labels)
    kept, held = hold_out(whole.real.labels, 0.25)
    assert torch.equal(part.real.labels, whole.real.labels[kept])
    judged = part.held_out()
    assert (part.title, judged.title) == ("TinyData", "TinyData validation 0.25")
    assert judged.real is part.real
    assert judged.held_out() is judged
    assert part.fingerprint != judged.fingerprint
    held_images = torch.cat([judged.denormalize(images) for images, _ in judged.test_dataloader()])
    torch.testing.assert_close(held_images, whole.denormalize(whole.real.take(held)))
    some = part.of_classes([2, 0]).held_out()
    assert some.test_labels.tolist() == [0] * 3 + [1] * 3
    with pytest.raises(InputError, match=r"from 0 to below 1, got 1\.0"):
        TinyData(validation=1.0)
    with pytest.raises(InputError, match="TinyData has no training images held out to test on"):
        whole.held_out()


def test_every_dataset_of_a_stream_is_judged_by_its_own_held_out_images():
    stream = Stream([TinyData(validation=0.25), TinyData(validation=0.5)])
    stream.setup()
    judged = stream.held_out()
    assert [len(stage.test_labels) for stage in judged.stages] == [9, 18]
    assert (len(stream.test_labels), len(judged.test_labels)) == (15, 9)


def test_a_set_is_scored_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = "select --method random --data conftest.TinyData --data.validation 0.25 --evaluation.split validation "
    words += "--model.network MLP --trainer.accelerator cpu --evaluation.num_networks 1 --evaluation.recipe.epochs 1"
    assert main(words.split()) == 0
    results = json.loads((tmp_path / RUN / "results.json").read_text())
    assert (results["dataset"], results["test_images"]) == ("TinyData validation 0.25", 9)
    assert load_synthetic(str(tmp_path / RUN / "synthetic.pt"))[0].source["validation"] == 0.25


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(ARGS, folder) == 0
    return folder


def test_the_iteration_that_is_best_on_them_is_taken_and_tested_on_the_test_set(whole):
    results = json.loads((whole / RUN / "results.json").read_text())
    entries = results["history"]
    assert [(entry["iteration"], entry["split"]) for entry in entries] == [(n, "validation") for n in (0, 2, 4, 6)]
    means = [entry["scores"][0]["mean"] for entry in entries]
    best = entries[means.index(max(means))]["iteration"]
    assert best < 6, "this rate should spoil the images"
    assert (results["dataset"], results["test_images"]) == ("TinyData", 15)
    (synthetic,) = load_synthetic(whole / RUN / "synthetic.pt")
    source = synthetic.source
    assert (source["iteration"], source["max_epochs"], source["chosen_by"]) == (best, 6, "validation")
    assert results["checksum"] == synthetic.checksum
    module = CondensationModule(network="MLP", outer_steps=2, inner_epochs=1, lr_images=30)
    if best:
        quiet_trainer(whole, max_epochs=best).fit(module, datamodule=TinyData(validation=0.25))
        assert torch.equal(synthetic.images, module.images)
    data = set_up(validation=0.25)
    evaluated = EvaluationCallback(num_networks=2, recipe=Recipe(epochs=4))
    scores = evaluated.evaluator(quiet_trainer(whole), data).score([synthetic], ["MLP"], 2, evaluated.recipes[0])
    assert scores[0].accuracies == results["columns"][0]["scores"][0]["accuracies"]


@pytest.mark.parametrize("count", some_slow([3, 9, 14], [9]))
def test_a_run_that_was_killed_chooses_the_same(count, whole, tmp_path):
    assert run(ARGS, tmp_path, "after a checkpoint write", count) == -signal.SIGKILL
    assert run([*ARGS, "--ckpt_path", "auto"], tmp_path) == 0
    assert_same(outcome(tmp_path), outcome(whole))


@pytest.mark.parametrize(
    "words",
    [
        ["--evaluation.num_networks", "1"],
        ["--evaluation.recipe.lr", "0.1"],
        ["--evaluation.choose_iteration", "false"],
        ["--evaluation.split", "validation", "--evaluation.choose_iteration", "false"],
    ],
)
def test_a_resumed_run_is_evaluated_as_before(words, whole, tmp_path, monkeypatch, capfd):
    shutil.copytree(whole / RUN, tmp_path / RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    longer = [*ARGS, "--trainer.max_epochs", "8", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")]
    code = main([*longer, *words])
    assert (code, "was evaluated in another way" in capfd.readouterr().err) == (
        (0, False) if "--evaluation.split" in words else (2, True)
    )


def test_a_report_pools_runs_whatever_iteration_each_has_chosen(whole, tmp_path):
    path = whole / RUN / "results.json"
    content = json.loads(path.read_text())
    content["source"] |= {"iteration": 4, "seed": 1}
    (tmp_path / "results.json").write_text(json.dumps(content))
    rows = [row for row in collect([path, tmp_path]).rows if row.key.method == "DC"]
    assert len(rows) == 1
    assert rows[0].sets == 2
    assert {"6 iterations", "chosen_by validation"} <= set(rows[0].departures)
    assert rows[0].key.held_out == 0.25


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--evaluation.every_n", "0"], "evaluation.choose_iteration compares evaluations of a run; give"),
        (["--evaluation.split", "validation"], "chooses by the images that evaluation.split validation would test on"),
        (["--data.validation", "0"], "TinyData has no training images held out to test on; give data.validation"),
        (["--evaluation.split", "training"], "split"),
    ],
)
def test_one_sentence_for_settings_that_do_not_go_together(words, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    assert main([*ARGS, *words]) == 2
    assert sentence in capfd.readouterr().err
    assert not list(tmp_path.glob("lightning_logs/*"))
