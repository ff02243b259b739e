"""Sets to share: every format keeps what it says it keeps, and comes back; sets that ship."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from dc_lightning import InputError, SyntheticSet, load_synthetic
from dc_lightning.cli import main
from dc_lightning.synthetic import export, ready_sets
from dc_lightning.synthetic.formats import faithfulness
from dc_lightning.synthetic.ready import ready_set

FILES = {"parquet": "data/train-00000-of-00001.parquet", "npz": "", "safetensors": ""}


@pytest.fixture
def synthetic():
    images = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    names = ("cat", "a/dog", "10")
    source = {"method": "test", "dataset": "Pets", "ipc": 2}
    labels = torch.arange(3).repeat_interleave(2)
    return SyntheticSet(images, labels, (0.3, 0.4, 0.5), (0.2, 0.3, 0.25), names, source, space="pixels", factor=2)


@pytest.mark.parametrize("to", FILES)
def test_formats_keep_every_bit_and_their_meaning(to, synthetic, tmp_path):
    said = export(synthetic, tmp_path / "out", to)
    assert "every bit" in said
    (found,) = load_synthetic(tmp_path / "out" / FILES[to])
    assert torch.equal(found.images, synthetic.images)
    assert torch.equal(found.labels, synthetic.labels)
    for name in ("mean", "std", "class_names", "source", "space", "factor", "formation", "method"):
        assert getattr(found, name) == getattr(synthetic, name), name
    with pytest.raises(InputError, match="is there already"):
        export(synthetic, tmp_path / "out", to)


@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_a_file_of_bytes_holds_what_png_files_hold(space, synthetic, tmp_path):
    synthetic = replace(synthetic, space=space)
    assert "lie outside [0, 1]" in export(synthetic, tmp_path / "out.pt", "8-bit")
    (found,) = load_synthetic(tmp_path / "out.pt")
    assert (found.space, found.factor, found.source["stored_as"]) == ("pixels", 2, "8-bit images")
    torch.testing.assert_close(found.images, synthetic.rounded_pixels())
    assert torch.equal(found.labels, synthetic.labels)
    assert torch.load(tmp_path / "out.pt")["images"].dtype == torch.uint8


@pytest.mark.parametrize("to", ["npz", "safetensors"])
def test_soft_labels_are_kept(to, synthetic, tmp_path):
    soft = SyntheticSet(
        synthetic.images, torch.full((6, 3), 1 / 3), synthetic.mean, synthetic.std, synthetic.class_names
    )
    export(soft, tmp_path / "out", to)
    assert torch.equal(load_synthetic(tmp_path / "out")[0].labels, soft.labels)


def test_parquet_opens_in_datasets_and_its_card_is_one_of_a_hub(synthetic, tmp_path):
    export(synthetic, tmp_path / "out", "parquet", "81.0 ± 0.5 % (ConvNet, n=3, recipe IDC)")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/data/*.parquet"), split="train")
    assert table.features["label"].names == ["cat", "a/dog", "10"]
    assert isinstance(table[3]["image"], Image.Image)
    assert table[3]["image"].size == (5, 4)
    shown = np.asarray(table[3]["image"]).transpose(2, 0, 1) / 255
    assert np.abs(shown - synthetic.images[3].clamp(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(np.array(table[3]["pixels"], dtype=np.float32), synthetic.images[3].numpy())
    whole = datasets.load_dataset(str(tmp_path / "out"), split="train")  # as a hub would, by the card
    assert len(whole) == 6
    assert torch.equal(load_synthetic(tmp_path / "out")[0].images, synthetic.images)
    (tmp_path / "out/data/b.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="does not say how its images are normalised"):
        load_synthetic(tmp_path / "out")
    header, text = (tmp_path / "out/README.md").read_text().split("---\n")[1:3]
    assert yaml.safe_load(header)["task_categories"] == ["image-classification"]
    assert "# Pets, condensed by test" in text
    assert "81.0 ± 0.5 %" in text
    assert "holds 4 training images" in text


def test_other_files_of_these_kinds_are_named(synthetic, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "b.safetensors")
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(str(tmp_path / "c.parquet"))
    for name, said in {
        "a.npz": "has the arrays x",
        "b.safetensors": "no synthetic set",
        "c.parquet": "column pixels",
    }.items():
        with pytest.raises(InputError, match=said):
            load_synthetic(tmp_path / name)
    export(synthetic, tmp_path / "d.npz", "npz")
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_synthetic(tmp_path / "d.npz")
    with pytest.raises(InputError, match=r"Unknown format 'parket': expected one of .* Did you mean 'parquet'"):
        export(synthetic, tmp_path / "e", "parket")
    soft = SyntheticSet(
        synthetic.images, torch.full((6, 3), 1 / 3), synthetic.mean, synthetic.std, synthetic.class_names
    )
    with pytest.raises(InputError, match="hard labels only"):
        export(soft, tmp_path / "f", "parquet")


def test_published_files_of_idc_are_pixels_of_a_factor_that_must_be_said(tmp_path):
    images, labels = torch.rand(4, 1, 6, 6), torch.arange(2).repeat_interleave(2)
    torch.save([images, labels], tmp_path / "data.pt")
    with pytest.raises(InputError, match=r"form of IDC's files.* give the factor, 2 for IDC"):
        load_synthetic(tmp_path / "data.pt", (0.3,), (0.2,))
    (found,) = load_synthetic(tmp_path / "data.pt", (0.3,), (0.2,), factor=2)
    assert (found.space, found.factor, len(found)) == ("pixels", 2, 16)
    assert torch.equal(found.images, images)


def test_published_files_of_mtt_are_two_whose_space_must_be_said(tmp_path):
    images, logits = torch.randn(4, 3, 6, 6), torch.randn(4, 5)
    torch.save(images, tmp_path / "images_best.pt")
    with pytest.raises(InputError, match=r"a single tensor; give the images of a set"):
        load_synthetic(tmp_path / "images_best.pt", (0.5,) * 3, (0.2,) * 3)
    torch.save(torch.arange(4), tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match=r"give the space, .* and for whitened \(ZCA\) ones the file"):
        load_synthetic(tmp_path / "images_best.pt", (0.5,) * 3, (0.2,) * 3)
    (found,) = load_synthetic(tmp_path / "images_best.pt", (0.5,) * 3, (0.2,) * 3, space="normalised")
    assert torch.equal(found.decoded()[0], images)
    torch.save(logits, tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match="if they are logits, say so"):
        load_synthetic(tmp_path / "images_best.pt", (0.5,) * 3, (0.2,) * 3, space="normalised")
    (soft,) = load_synthetic(tmp_path / "images_best.pt", (0.5,) * 3, (0.2,) * 3, space="normalised", labels="logits")
    torch.testing.assert_close(soft.labels, logits.softmax(1))


def test_whitened_images_are_turned_back_by_their_transform(tmp_path):
    """ZCA as kornia has it: the covariance's inverse root, with a small number added to its eigenvalues."""
    real = torch.randn(60, 1, 3, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 0.4
    flat = real.flatten(1)
    mean = flat.mean(0, keepdim=True)
    u, s, _ = torch.linalg.svd((flat - mean).T @ (flat - mean) / (len(flat) - 1))
    matrix = u @ torch.diag((s + 0.1).rsqrt()) @ u.T
    torch.save(((flat - mean) @ matrix).view_as(real)[:4].float(), tmp_path / "images_best.pt")
    torch.save(torch.arange(4), tmp_path / "labels_best.pt")
    torch.save(torch.tensor(0.02), tmp_path / "lr_best.pt")
    torch.save({"mean_vector": mean, "transform_matrix": matrix}, tmp_path / "zca.pt")
    torch.save({"mean": mean[:, :4], "matrix": matrix[:4, :4]}, tmp_path / "other.pt")
    torch.save({"mean": mean}, tmp_path / "half.pt")
    given = {"mean": (0.5,), "std": (0.2,), "space": "pixels"}
    (found,) = load_synthetic(tmp_path / "images_best.pt", **given, whitening=tmp_path / "zca.pt")
    torch.testing.assert_close(found.images, real[:4].float(), atol=1e-5, rtol=1e-5)
    assert found.source["learned_lr"] == pytest.approx(0.02)
    for name, said in {"other": "these have 9 numbers each, its mean has 4", "half": "is no ZCA transform"}.items():
        with pytest.raises(InputError, match=said):
            load_synthetic(tmp_path / "images_best.pt", **given, whitening=tmp_path / f"{name}.pt")


def test_evaluate_takes_what_a_file_does_not_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    torch.save([torch.rand(3, 1, 6, 6), torch.arange(3)], "data.pt")
    words = ["evaluate", "--data", "conftest.TinyData", "--synthetic", "data.pt", "--evaluation.num_networks", "1"]
    words += ["--evaluation.networks", "MLP", "--evaluation.recipe.epochs", "1", "--trainer.accelerator", "cpu"]
    words += ["--evaluation.baselines", "[]"]
    assert main(words) == 2
    assert "give the factor" in capsys.readouterr().err
    assert main([*words, "--factor", "2"]) == 0
    assert "12 images in 3" in capsys.readouterr().out


def test_without_a_library_a_sentence_says_what_to_install(synthetic, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"needs safetensors; install it by pip install 'dc_lightning\[hub\]'"):
        export(synthetic, tmp_path / "out", "safetensors")


def test_export_says_how_far_files_of_8_bits_are_from_the_set(synthetic):
    inside = SyntheticSet(torch.rand(2, 1, 4, 4), torch.arange(2), (0.5,), (0.5,), ("a", "b"), space="pixels")
    assert faithfulness(inside) == "8 bits move its pixels by at most 0.002"
    assert "lie outside [0, 1]" in faithfulness(synthetic)


def test_sets_that_ship_are_found_by_name_and_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(ready_sets()) >= 6
    (by_short_name,), (by_name,) = load_synthetic("FashionMNIST/ipc10"), load_synthetic("fashion_mnist_dc_ipc10/seed_1")
    assert (len(by_short_name.images), by_short_name.source["seed"]) == (100, 0)
    assert by_name.source["seed"] == 1
    best = ready_set("FashionMNIST/ipc10")
    assert best.score["mean"] == max(
        ready.score["mean"] for ready in ready_sets() if ready.results["ipc"] == 10 and ready.name.endswith("/seed_0")
    )
    assert torch.equal(load_synthetic(best.path.parent)[0].images, by_short_name.images)  # the folder of a run
    assert main(["sets"]) == 0
    listed = capsys.readouterr().out
    assert "fashion_mnist_dc_ipc10/seed_0: DC, 82.5 ± 0.3 % (ConvNet, n=20, recipe DC)" in listed
    assert "fashion_mnist_idc_i_ipc10/seed_0: IDC-I, 84.5 ± 0.3 % (ConvNet, n=3, recipe IDC)" in listed
    assert "fashion_mnist_idc_ipc1/seed_0: IDC, 78.8 ± 0.4 % (ConvNet, n=20, recipe IDC, 4 images in one)" in listed
    scored = "FRePo, 87.8 ± 0.5 % (ConvNet, n=5, recipe DC, 4 images in one)"
    assert f"fashion_mnist_frepo_f2_ipc10/seed_0 = FashionMNIST/ipc10: {scored}" in listed
    assert main(["export", "fashion_mnist_dc_ipc1/seed_0", "out", "--to", "parquet"]) == 0
    assert "Score: 70.8 ± 0.8 %" in Path("out/README.md").read_text()
    assert main(["export", "fashion_mnist_dc_ipc1/seed_0", "folder"]) == 0
    assert "as files it is another set" in capsys.readouterr().out
    with pytest.raises(InputError, match="Did you mean 'FashionMNIST/ipc1"):
        load_synthetic("FashionMNIST/ipc11")


def test_sets_that_ship_are_package_data():
    """What an installation would hold, as setup.cfg names it."""
    code = (
        "import json; from setuptools import Distribution; d = Distribution(); d.parse_config_files(); "
        "command = d.get_command_obj('build_py'); command.ensure_finalized(); "
        "print(json.dumps([name for entry in command._get_data_files() for name in entry[3]]))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    names = json.loads(done.stdout.splitlines()[-1])
    assert "results/fashion_mnist_dc_ipc10/seed_0/synthetic.pt" in names
    assert "results/fashion_mnist_dc_ipc10/seed_0/results.json" in names
