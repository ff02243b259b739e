import bz2
import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyData
from PIL import Image
from scipy.io import savemat
from torch.utils.data import Dataset
from torchvision import datasets

from dc_lightning.cli import main
from dc_lightning.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    SVHN,
    USPS,
    Digits,
    FashionMNIST,
    ImageFolder,
    TorchDataset,
    to_tensor,
)
from dc_lightning.errors import InputError

COUNTS = {"train": 40, "test": 20}


def pixels(split, *shape):
    generator = np.random.RandomState(split == "train")
    return generator.randint(0, 256, (COUNTS[split], *shape), dtype=np.uint8), np.arange(COUNTS[split]) % 10


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes())


def make_mnist(root, monkeypatch, name):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = pixels(split, 28, 28)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def make_svhn(root, monkeypatch):
    for split in COUNTS:
        images, labels = pixels(split, 3, 32, 32)
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        entry = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        monkeypatch.setitem(datasets.SVHN.split_list, split, entry)


def make_cifar(root, monkeypatch, cls, key, meta_key):
    folder = root / cls.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        names = [name for name, _ in getattr(cls, attribute)]
        images, labels = pixels(split, 3, 32, 32)
        parts = zip(names, np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True)
        entries = [[name, write(name, {"data": x.reshape(len(x), -1), key: y.tolist()})] for name, x, y in parts]
        monkeypatch.setattr(cls, attribute, entries)
    names = [f"name {number}" for number in range(10)]
    meta = {**cls.meta, "md5": write(cls.meta["filename"], {meta_key: names})}
    monkeypatch.setattr(cls, "meta", meta)


def make_usps(root, monkeypatch):
    """Lines of a label from 1 and its pixels in [-1, 1], numbered from 1."""
    root.mkdir(exist_ok=True)
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        images, labels = pixels(split, 16, 16)
        lines = [
            " ".join([str(label + 1), *(f"{n}:{value / 127.5 - 1:.6f}" for n, value in enumerate(image.ravel(), 1))])
            for image, label in zip(images, labels, strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


MAKERS = {
    MNIST: lambda root, m: make_mnist(root, m, "MNIST"),
    FashionMNIST: lambda root, m: make_mnist(root, m, "FashionMNIST"),
    SVHN: make_svhn,
    CIFAR10: lambda root, m: make_cifar(root, m, datasets.CIFAR10, "labels", "label_names"),
    CIFAR100: lambda root, m: make_cifar(root, m, datasets.CIFAR100, "fine_labels", "fine_label_names"),
}
PAPER = {  # protocol of the paper: mean and std
    MNIST: ((0.1307,), (0.3081,)),
    FashionMNIST: ((0.2861,), (0.3530,)),
    SVHN: ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    CIFAR10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    CIFAR100: ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("cls", MAKERS, ids=lambda cls: cls.__name__)
def test_torchvisions_files_are_read_as_torchvision_reads_them(cls, tmp_path, monkeypatch):
    MAKERS[cls](tmp_path, monkeypatch)
    data = cls(str(tmp_path), download=False)
    data.prepare_data()
    data.setup()
    shape = (28, 28) if cls in (MNIST, FashionMNIST) else (3, 32, 32)
    images, labels = pixels("train", *shape)
    images = torch.tensor(images).view(len(images), -1, *shape[-2:]).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in PAPER[cls])
    assert (data.mean, data.std) == PAPER[cls]
    assert (data.num_classes, data.channels, data.image_size) == (10, images.shape[1], shape[-2:])
    torch.testing.assert_close(data.real.take(torch.arange(40)), (images - mean) / std)
    assert data.real.labels.tolist() == labels.tolist()
    reference, label = data.make_dataset(train=True)[3]
    torch.testing.assert_close(to_tensor(reference) / 255, images[3])
    assert label == labels[3]
    batches = list(data.test_dataloader())
    assert sum(len(batch[0]) for batch in batches) == 20


def test_usps_is_read_as_it_was_written(tmp_path, monkeypatch):
    make_usps(tmp_path, monkeypatch)
    data = USPS(str(tmp_path), download=False)
    data.prepare_data()
    data.setup()
    images, labels = pixels("train", 16, 16)
    found = data.denormalize(data.real.take(torch.arange(40)))[:, 0] * 255
    assert (found - torch.tensor(images)).abs().max() < 1.01  # torchvision cuts off what is below an integer
    assert data.real.labels.tolist() == labels.tolist()
    assert data.class_names == tuple("0123456789")


def test_images_are_brought_to_one_shape(tmp_path, monkeypatch):
    make_mnist(tmp_path, monkeypatch, "MNIST")
    plain, data = (MNIST(str(tmp_path), download=False, **given) for given in ({}, {"image_size": 32, "channels": 3}))
    plain.setup()
    data.setup()
    assert (data.channels, data.image_size, data.mean) == (3, (32, 32), (0.1307,) * 3)
    images = data.denormalize(data.real.take(torch.arange(8)))
    assert torch.equal(images[:, 0], images[:, 2])
    expected = torch.nn.functional.interpolate(
        plain.denormalize(plain.real.take(torch.arange(8))), size=(32, 32), mode="bilinear", antialias=True
    )
    assert (images[:, :1] - expected).abs().max() < 1.01 / 255
    with pytest.raises(InputError, match=r"data\.channels must be 3"):
        MNIST(channels=1)
    with pytest.raises(InputError, match=r"data\.image_size must be at least 1"):
        MNIST(image_size=0)


def test_the_three_digit_datasets_come_one_after_the_other(tmp_path, monkeypatch):
    """The stream of the paper from the shipped YAML, on small files of all three."""
    make_svhn(tmp_path, monkeypatch)
    make_mnist(tmp_path, monkeypatch, "MNIST")
    make_usps(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    text = (Path(__file__).parent.parent / "configs/continual/digits.yaml").read_text()
    text = text.replace("init_args: {image_size", "init_args: {root: ., download: false, image_size")
    text = text.replace(
        "class_path: dc_lightning.data.SVHN", "{class_path: dc_lightning.data.SVHN, init_args: {root: .}}"
    )
    Path("digits.yaml").write_text(text)
    words = (
        "continual --config digits.yaml --model.ipc 1 --model.network MLP --trainer.max_epochs 1 --protocol.orders 1"
    )
    words += " --evaluation.recipe.epochs 1 --evaluation.whole_set_epochs 1 --evaluation.features_network MLP"
    assert main([*words.split(), "--trainer.accelerator", "cpu"]) == 0
    results = json.loads(Path("lightning_logs/version_0/results.json").read_text())
    assert results["stages"] == ["SVHN", "MNIST", "USPS"]
    assert [column["name"] for column in results["columns"]] == ["DC", "herding"]
    assert [column["stored_images"] for column in results["columns"]] == [20, 20]  # none of the last is needed


@pytest.mark.parametrize("cls", MAKERS, ids=lambda cls: cls.__name__)
def test_missing_files_are_named_with_their_place(cls, tmp_path):
    with pytest.raises(InputError, match=r"data.download is false") as caught:
        cls(str(tmp_path), download=False).prepare_data()
    for file in cls.files:
        assert str(tmp_path / file) in str(caught.value)


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def fail(self, train, download=False):
        raise RuntimeError("no\nnetwork" if download else "not found")

    monkeypatch.setattr(FashionMNIST, "make_dataset", fail)
    with pytest.raises(InputError, match=r"could not be downloaded \(no network\)"):
        FashionMNIST(str(tmp_path)).prepare_data()


def test_digits():
    data = Digits()
    data.setup()
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, (8, 8))
    assert sum(data.real.counts()) + len(data.test_labels) == 1797
    images = data.real.take(torch.arange(len(data.real.labels)))
    assert abs(float(images.mean())) < 1e-4
    assert float(images.std()) == pytest.approx(1, abs=1e-3)


def test_draws_are_without_replacement_of_one_class_and_by_the_generator(tiny_data):
    def draw(seed, count=None):
        return tiny_data.real.draw(1, torch.Generator().manual_seed(seed), count)

    assert draw(0).shape == (8, 1, 6, 6)
    assert len(draw(0, 100)) == 12
    assert len(draw(0, 12).unique(dim=0)) == 12
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    own = tiny_data.real.take(tiny_data.real.rows[1])
    assert all((own - image).abs().flatten(1).amax(1).min() == 0 for image in draw(5))


def test_a_class_with_few_images_gives_a_warning(capsys, caplog):
    with caplog.at_level("INFO"):
        TinyData(batch_real=50).setup()
    assert "3 of 3 classes have fewer than batch_real=50 training images (the smallest 12)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_real": 0}, "batch_real"), ({"mean": [0.1]}, "go together"), ({"mean": [0.1], "std": [0.0]}, "above 0")],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        TinyData(**arguments)


def test_one_mean_a_channel():
    with pytest.raises(InputError, match="have 3, got 1 and 1"):
        TinyData(channels=3, mean=[0.1], std=[0.2]).setup()


def make_tree(root, splits=("train", "test"), classes=("cat", "dog", "eel"), count=5, size=(9, 7), mode="RGB"):
    generator = np.random.RandomState(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                image = Image.fromarray(generator.randint(0, 256, shape, dtype=np.uint8))
                image.save(root / split / name / f"{number}.png")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_image_folder(tmp_path, mode, in_memory):
    make_tree(tmp_path, mode=mode)
    data = ImageFolder(str(tmp_path), in_memory=in_memory)
    data.setup()
    assert data.channels == (3 if mode == "RGB" else 1)
    assert (data.num_classes, data.class_names, data.image_size) == (3, ("cat", "dog", "eel"), (7, 9))
    drawn = data.real.draw(1, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, data.channels, 7, 9)
    everything = data.real.take(torch.arange(15))
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(data.channels), atol=1e-3, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3)), torch.ones(data.channels), atol=1e-2, rtol=0)
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (15, data.channels, 7, 9)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_an_image_folder_without_a_test_folder_sets_a_share_of_every_class_aside(tmp_path):
    make_tree(tmp_path, splits=(".",), count=10)
    data = ImageFolder(str(tmp_path), image_size=(8, 8), channels=1, test_fraction=0.3)
    data.setup()
    assert data.real.counts() == [7, 7, 7]
    assert torch.bincount(data.test_labels).tolist() == [3, 3, 3]
    assert (data.channels, data.image_size) == (1, (8, 8))


def test_images_of_several_sizes_are_named(tmp_path):
    make_tree(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "train" / "dog" / "small.png")
    with pytest.raises(InputError, match=r"image_size"):
        ImageFolder(str(tmp_path)).setup()
    ImageFolder(str(tmp_path), image_size=(5, 5)).setup()


def test_a_class_without_an_image_is_named(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "train" / "fox").mkdir()
    with pytest.raises(InputError, match="fox"):
        ImageFolder(str(tmp_path)).setup()


def test_a_train_folder_alone_is_split(tmp_path):
    make_tree(tmp_path, splits=("train",), count=10)
    data = ImageFolder(str(tmp_path))
    data.setup()
    assert data.class_names == ("cat", "dog", "eel")
    assert data.real.counts() == [8, 8, 8]


def test_one_class_is_refused(tmp_path):
    make_tree(tmp_path, splits=(".",), classes=("cat",))
    with pytest.raises(InputError, match="at least two classes"):
        ImageFolder(str(tmp_path)).setup()


def test_a_file_that_is_no_image_is_named(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "train" / "dog" / "x.png").write_text("no image")
    with pytest.raises(InputError, match=r"x\.png' is no image"):
        ImageFolder(str(tmp_path)).setup()


def test_images_of_several_sizes_on_disk_are_named(tmp_path):
    make_tree(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "train" / "dog" / "small.png")
    data = ImageFolder(str(tmp_path), in_memory=False, mean=[0.5] * 3, std=[0.5] * 3)
    data.setup()
    with pytest.raises(InputError, match="one shape"):
        data.real.draw(1, torch.Generator())


def test_damaged_files_are_named(tmp_path, monkeypatch):
    make_mnist(tmp_path, monkeypatch, "MNIST")
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match="not complete"):
        MNIST(str(tmp_path), download=False).prepare_data()


def test_folders_that_differ_are_named(tmp_path):
    make_tree(tmp_path, splits=("train",))
    make_tree(tmp_path, splits=("test",), classes=("cat", "dog"))
    with pytest.raises(InputError, match="eel"):
        ImageFolder(str(tmp_path)).setup()


def test_no_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        ImageFolder(str(tmp_path / "nowhere")).setup()


class Pairs(Dataset):
    """Somebody's dataset: PIL images or tensors, and labels."""

    def __init__(self, labels=(0, 1, 2) * 4, kind="pil", classes=None):
        self.labels, self.kind = list(labels), kind
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        array = np.full((6, 5), 20 * index, dtype=np.uint8)
        kinds = {
            "pil": lambda: Image.fromarray(array),
            "uint8": lambda: torch.tensor(array)[None],
            "float": lambda: torch.tensor(array)[None] / 255,
            "normalised": lambda: torch.tensor(array)[None] / 10.0 - 9,
        }
        return kinds[self.kind](), self.labels[index]


@pytest.mark.parametrize("kind", ["pil", "uint8", "float"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_any_dataset(kind, in_memory):
    data = TorchDataset(lambda: Pairs(kind=kind), lambda: Pairs(kind=kind), in_memory=in_memory)
    data.setup()
    assert (data.num_classes, data.channels, data.image_size, data.dataset_name) == (3, 1, (6, 5), "Pairs")
    taken = data.real.take(torch.tensor([3]))
    torch.testing.assert_close(taken * data.std[0] + data.mean[0], torch.full((1, 1, 6, 5), 60 / 255))


def test_normalised_images_are_refused():
    with pytest.raises(InputError, match=r"floats in \[0, 1\]"):
        TorchDataset(lambda: Pairs(kind="normalised"), Pairs).setup()


def test_a_gap_in_the_classes_is_named():
    with pytest.raises(InputError, match=r"none of class 1 \(b\)"):
        TorchDataset(lambda: Pairs((0, 2)), Pairs, class_names=["a", "b", "c"]).setup()


def test_labels_beyond_the_classes_are_named():
    with pytest.raises(InputError, match=r"0\.\.1"):
        TorchDataset(Pairs, Pairs, class_names=["a", "b"]).setup()


def test_no_test_images_are_named():
    with pytest.raises(InputError, match="no images"):
        TorchDataset(Pairs, lambda: Pairs(())).setup()
