"""Datasets of the library datasets, offline: saved folders, parquet files, folders of images."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dc_lightning import InputError
from dc_lightning.cli import main
from dc_lightning.data import HuggingFace

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "emu"]


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    monkeypatch.chdir(tmp_path)


def pictures(count, channels=3):
    generator = np.random.RandomState(count)
    shape = (count, 6, 5, 3) if channels == 3 else (count, 6, 5)
    return generator.randint(0, 256, shape, dtype=np.uint8), np.arange(count) % 3


def dataset(count, channels=3, label=None):
    images, labels = pictures(count, channels)
    features = datasets.Features({"picture": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)})
    values = [NAMES[number] for number in labels] if label else labels.tolist()
    return datasets.Dataset.from_dict({"picture": [Image.fromarray(x) for x in images], "label": values}, features)


def check(data, count=12, channels=3):
    data.setup()
    images, labels = pictures(count, channels)
    expected = torch.from_numpy(images).view(count, 6, 5, -1).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(data.denormalize(data.real.take(torch.arange(count))), expected)
    assert data.real.labels.tolist() == labels.tolist()
    assert data.class_names == tuple(NAMES)
    assert data.channels == channels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_saved_folder(channels, in_memory):
    splits = datasets.DatasetDict(train=dataset(12, channels), test=dataset(6, channels))
    splits.save_to_disk("saved")
    data = HuggingFace("saved", in_memory=in_memory)
    check(data, 12, channels)
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 6


def test_parquet_files():
    Path("parquet").mkdir()
    dataset(12).to_parquet("parquet/train.parquet")
    dataset(6).to_parquet("parquet/test.parquet")
    data = HuggingFace("parquet")
    check(data)
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_by_name_and_a_set_without_a_test_split():
    dataset(15, label=datasets.Value("string")).save_to_disk("saved")
    data = HuggingFace("saved")
    data.setup()
    assert data.class_names == tuple(NAMES)
    assert data.real.counts() == [4, 4, 4]
    assert sorted(data.test_labels.tolist()) == [0, 1, 2]


def test_a_folder_of_images_is_resized():
    for split, count in (("train", 9), ("test", 3)):
        images, labels = pictures(count)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path("images", split, NAMES[label], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((8 + number, 8)).save(path)
    data = HuggingFace("images", image_size=4)
    data.setup()
    assert data.class_names == tuple(NAMES)
    assert (data.image_size, data.real.counts(), len(data.test_labels)) == ((4, 4), [3, 3, 3], 3)


def test_a_fit_by_its_yaml():
    datasets.DatasetDict(train=dataset(12), test=dataset(6)).save_to_disk("saved")
    words = "fit --config configs/data/hugging_face.yaml --data.path saved --model.network MLP --trainer.max_epochs 1"
    words += " --evaluation.num_networks 1 --evaluation.recipe.epochs 1 --trainer.accelerator cpu"
    assert main(words.split()) == 0
    results = json.loads(Path("lightning_logs/version_0/results.json").read_text())
    assert (results["dataset"], results["class_names"], results["test_images"]) == ("saved", NAMES, 6)


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(InputError, match="'nowhere' is no dataset"):
        HuggingFace("nowhere").prepare_data()
    datasets.DatasetDict(training=dataset(6)).save_to_disk("saved")
    with pytest.raises(InputError, match=r"Unknown data\.train 'train': expected one of training"):
        HuggingFace("saved").setup()
    with pytest.raises(InputError, match=r"data\.label is 'class'.*it has picture \(Image\), label \(ClassLabel\)"):
        HuggingFace("saved", train="training", label="class").setup()
    with pytest.raises(InputError, match=r"test_fraction must be between 0 and 1, got 1"):
        HuggingFace("saved", test_fraction=1.0)
    with pytest.raises(InputError, match=r"at least 1x1 pixel"):
        HuggingFace("saved", image_size=0)
    gaps = dataset(6).map(lambda item, row: {"picture": None if row == 4 else item["picture"]}, with_indices=True)
    datasets.DatasetDict(train=gaps, test=dataset(6)).save_to_disk("gaps")
    with pytest.raises(InputError, match="'picture' has no image in row 4"):
        HuggingFace("gaps").setup()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'dc_lightning\[hub\]'"):
        HuggingFace("saved").prepare_data()
