"""One thread for small images, unless a number is given or the environment decides."""

import json
from pathlib import Path

import pytest
import torch

from dc_lightning.cli import main
from dc_lightning.threads import fit_threads, use_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr("dc_lightning.threads._of_torch", 0)
    monkeypatch.setattr("dc_lightning.threads._wanted", None)
    yield
    torch.set_num_threads(before)


def test_small_images_take_one_thread_and_the_next_run_starts_anew():
    use_threads("auto")
    fit_threads((1, 28, 28))
    assert torch.get_num_threads() == 3
    fit_threads((1, 8, 8))
    assert torch.get_num_threads() == 1
    use_threads("auto")
    assert torch.get_num_threads() == 3
    use_threads(2)
    torch.set_num_threads(1)  # as Lightning does for several processes
    fit_threads((1, 28, 28))
    assert torch.get_num_threads() == 2
    use_threads("auto")
    assert torch.get_num_threads() == 3


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_threads("auto")
    fit_threads((1, 8, 8))
    assert torch.get_num_threads() == 3


def test_without_the_command_line_nothing_is_set():
    fit_threads((1, 8, 8))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("words", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_a_run_says_how_many_it_had(words, threads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    given = "select --method random --data conftest.TinyData --model.network MLP --trainer.accelerator cpu "
    given += "--evaluation.num_networks 1 --evaluation.recipe.epochs 1 --evaluation.baselines []"
    assert main([*given.split(), *words]) == 0
    results = json.loads(Path("lightning_logs/version_0/results.json").read_text())
    assert results["hardware"]["threads"] == threads


def test_a_number_that_is_none_is_refused(capsys):
    assert main(["fit", "--threads", "0"]) == 2
    assert "threads" in capsys.readouterr().err
