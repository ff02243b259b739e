"""A method of somebody else's: one class in a file, one YAML; it works like ours, and is called by its own name."""

import json
import signal
from pathlib import Path

import pytest
import torch
from children import run
from conftest import some_slow
from curves import read_curves
from test_resume import assert_same, outcome

from dc_lightning import load_synthetic
from dc_lightning.cli import main

CONFIG = Path(__file__).parent / "pixel_matching.yaml"
FIT = ["fit", "--config", str(CONFIG)]
RUN = Path("lightning_logs/version_0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(FIT, folder) == 0
    return folder


def test_its_name_and_settings_are_everywhere(whole):
    results = json.loads((whole / RUN / "results.json").read_text())
    (synthetic,) = load_synthetic(whole / RUN / "synthetic.pt")
    for source in (synthetic.source, results["source"]):
        assert source["method"] == "PixelMatching"
        assert source["class"] == "pixel_matching.PixelMatching"
        assert (source["weight"], source["steps"], source["lr_images"], source["ipc"]) == (0.25, 2, 2.0, 2)
    assert [column["name"] for column in results["columns"]] == ["PixelMatching", "random"]
    score = results["columns"][0]["scores"][0]
    assert (score["recipe"], score["epochs"], score["loss"]) == ("pixels", 6, "conftest.smooth_loss")
    assert "final/PixelMatching/MLP" in read_curves(whole / RUN)[0]


def test_it_learns(whole):
    losses = [value for _, value in read_curves(whole / RUN)[0]["matching_loss"]]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("count", some_slow([5, 12], [12]))
def test_resume_after_a_kill_gives_the_same_bits(count, whole, tmp_path):
    """Within an outer iteration too."""
    assert run(FIT, tmp_path, "after a checkpoint write", count) == -signal.SIGKILL
    assert run([*FIT, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), outcome(whole))


@pytest.mark.distributed
def test_two_processes_give_the_same(whole, tmp_path):
    assert run([*FIT, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"], tmp_path) == 0
    found, expected = (load_synthetic(folder / RUN / "synthetic.pt")[0] for folder in (tmp_path, whole))
    torch.testing.assert_close(found.images, expected.images, atol=1e-5, rtol=0)


def test_its_set_is_evaluated_and_reported_under_its_name_beside_no_papers_figure(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = ["evaluate", "--config", str(CONFIG), "--synthetic", str(RUN / "synthetic.pt")]
    assert main(words) == 0
    again = json.loads(Path("lightning_logs/version_1/results.json").read_text())
    first = json.loads((RUN / "results.json").read_text())
    assert again["columns"] == first["columns"]
    results = json.loads((RUN / "results.json").read_text())
    results["dataset"] = results["source"]["dataset"] = "FashionMNIST"  # as if it were a row of the papers
    results["source"]["network"] = results["columns"][0]["scores"][0]["network"] = "ConvNet"
    other = json.loads(
        json.dumps(results).replace('"weight": 0.25', '"weight": 0.75').replace('"seed": 0', '"seed": 1')
    )
    for name, content in (("one", results), ("other", other)):
        Path("reported", name).mkdir(parents=True)
        Path("reported", name, "results.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["report", "reported", "--output", "report"]) == 0
    text = Path("report/report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| PixelMatching")]
    assert len(rows) == 2  # settings of its own keep them apart
    assert all("(" not in row for row in rows)
    assert "weight 0.25" in text
    assert "weight 0.75" in text
    assert "DC" not in "".join(rows)


def test_a_table_is_reproduced_with_it(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    assert main(["reproduce", "T5", "--method", str(CONFIG), "--datasets", "Digits", "--dry-run"]) == 0
    assert "Digits_ipc1_pixel_matching_ConvNetNP_P" in capsys.readouterr().out.replace("\n", "")
