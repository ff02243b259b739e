"""What the README shows is run."""

import re
import sys
from pathlib import Path

import pytest
import torch

from dc_lightning.cli import main
from dc_lightning.evaluation import random_set

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


def test_the_parts_work_without_the_command_line(monkeypatch):
    (code,) = (block for block in blocks("python") if "pl.Trainer" in block)
    code = code.replace("max_epochs=100", 'max_epochs=1, accelerator="cpu"').replace("num_networks=5", "num_networks=1")
    exec(code, {})  # the README's own lines, in short
    assert list(Path().rglob("results.json"))


@pytest.mark.parametrize("number", range(3), ids=["distance", "network", "dataset"])
def test_an_extension_is_one_class_and_one_yaml(number):
    parts = [block for block in blocks("python") if re.search(r"^class ", block, re.MULTILINE)]
    Path("my_parts.py").write_text("\n".join(parts))
    Path("mine.yaml").write_text(blocks("yaml")[number])
    tiny = ["--model.network", "MLP"] if number != 1 else []
    data = ["--data", "conftest.TinyData"] if number != 2 else []
    command = [
        "fit",
        *data,
        *tiny,
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_epochs",
        "2",
        "--config",
        "mine.yaml",
    ]
    evaluation = ["--evaluation.num_networks", "1", "--evaluation.every_n", "0", "--evaluation.recipe.epochs", "2"]
    networks = ["--evaluation.networks", "[MLP, my_parts.Linear]"] if number == 1 else []
    assert main([*command, *evaluation, *networks]) == 0
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["images"].isfinite().all()


def test_every_config_named_is_there():
    for path in set(re.findall(r"configs/[\w/]+\.yaml", README)):
        assert (Path(__file__).parent.parent / path).is_file(), path
