"""What the README shows is run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dc_lightning.cli import main
from dc_lightning.evaluation.baselines import random_set

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)


def test_the_set_is_used_from_python_as_shown(tiny_data):
    random_set(tiny_data, 2, 0).save("synthetic.pt")
    (code,) = (block for block in blocks("python") if "load_synthetic" in block)
    shown = {}
    exec(code, shown)  # the README's own lines
    assert shown["images"].shape == (6, 1, 6, 6)
    assert (shown["network"](shown["images"]).argmax(1) == shown["labels"]).all()


@pytest.mark.slow
def test_the_parts_work_without_the_command_line(monkeypatch):
    (code,) = (block for block in blocks("python") if "pl.Trainer" in block)
    code = code.replace("max_epochs=100", 'max_epochs=1, accelerator="cpu"').replace(
        "num_networks=5", "num_networks=1, whole_set_epochs=1"
    )
    exec(code, {})  # the README's own lines, in short
    assert list(Path().rglob("results.json"))


@pytest.mark.parametrize("number", range(3), ids=["dataset", "method", "distance and network"])
def test_an_extension_is_one_class_and_one_yaml(number):
    parts = [block for block in blocks("python") if re.search(r"^class ", block, re.MULTILINE)]
    Path("my_parts.py").write_text("\n".join(parts))
    Path("mine.yaml").write_text(blocks("yaml")[number])
    command = "fit --config mine.yaml --trainer.accelerator cpu --trainer.max_epochs 2 --evaluation.num_networks 1 "
    command += "--evaluation.every_n 0 --evaluation.recipe.epochs 2"
    data = ["--data", "conftest.TinyData"] if number != 0 else []
    network = ["--model.network", "MLP"] if number != 2 else ["--evaluation.networks", "[MLP, my_parts.Linear]"]
    assert main([*command.split(), *data, *network]) == 0
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["images"].isfinite().all()
    method = json.loads(Path("lightning_logs/version_0/results.json").read_text())["columns"][0]["name"]
    assert method == ("PixelMeans" if number == 1 else "DC")


def test_readme_is_short():
    assert len(README.encode()) <= 12 * 1024
    assert README.index("pip install . &&") < 1500  # in the first screen


def test_every_config_named_is_there():
    for path in set(re.findall(r"configs/[\w/]+\.(?:yaml|png)", README)):
        assert (Path(__file__).parent.parent / path).is_file(), path


@pytest.mark.slow
def test_the_sweep_runs_three_trials_on_held_out_images():
    pytest.importorskip("optuna")
    script = Path(__file__).parent.parent / "configs/sweeps/optuna_sweep.py"
    words = "3 --data conftest.TinyData --model.network MLP --trainer.accelerator cpu --trainer.max_epochs 1"
    words += " --evaluation.num_networks 1 --evaluation.recipe.epochs 1 --trainer.enable_progress_bar false"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *words.split()]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "best on held-out images: " in shown.stdout, shown.stderr
    results = [json.loads(path.read_text()) for path in Path("sweep").glob("trial_*/results.json")]
    assert [content["dataset"] for content in results] == ["TinyData validation 0.1"] * 3
    assert len({content["source"]["lr_images"] for content in results}) == 3
