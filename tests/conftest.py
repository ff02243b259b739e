import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from dc_lightning.data import CondensationDataModule, RealImages
from dc_lightning.matching.batch_norm import freeze_batch_norm, has_batch_norm
from dc_lightning.networks import NETWORKS

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((GOLDEN_FOLDER / "dev.json").read_text())
GOLDEN_DSA_DM = json.loads((GOLDEN_FOLDER / "dsa_dm.json").read_text())


def normal(seed, *shape):
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape))


def fill_golden(network, seed=0):
    """The parameters that the golden values were computed with, in float64."""
    for number, (name, parameter) in enumerate(network.named_parameters()):
        z = np.random.RandomState(seed + number).standard_normal(tuple(parameter.shape))
        z = z / math.sqrt(math.prod(parameter.shape[1:])) if parameter.dim() > 1 else 0.1 * z + name.endswith("weight")
        parameter.data = torch.tensor(z)
    return network.double()


def golden_case(entry):
    """Network in train mode, real images of three classes and synthetic ones of golden values."""
    channels, size, ipc = entry["channels"], entry["size"], entry.get("ipc", 2)
    network = fill_golden(NETWORKS[entry["model"]](channels, 10, (size, size))).train()
    if has_batch_norm(network) and not entry.get("all_classes_in_one_batch"):
        freeze_batch_norm(network, normal(3000, 48, channels, size, size))
    return network, normal(1000, 3, 8, channels, size, size), normal(2000, 3 * ipc, channels, size, size)


def assert_golden(actual, expected, tolerance=1e-7):
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    worst = (np.abs(actual - expected) / (np.abs(expected) + 1e-3)).max()
    assert worst < tolerance, f"off by {worst:.2g}: {actual} against {expected}"


def assert_golden_summary(tensor, expected, tolerance=1e-7):
    flat = tensor.detach().double().numpy().ravel()
    at = flat[np.linspace(0, len(flat) - 1, 5).astype(int)]
    assert_golden(at, expected["at"], tolerance)
    assert_golden([flat.sum(), np.linalg.norm(flat)], [expected["sum"], expected["norm"]], tolerance)


class TinyData(CondensationDataModule):
    """Three classes of 6x6 images that a linear classifier tells apart."""

    def __init__(self, batch_real=8, per_class=12, channels=1, classes=3, size=(6, 6), **kwargs):
        super().__init__(batch_real=batch_real, **kwargs)
        self.per_class, self.shape, self.classes = per_class, (channels, *size), classes

    def load(self):
        generator = torch.Generator().manual_seed(0)
        centres = torch.rand(self.classes, *self.shape, generator=generator)

        def split(count):
            labels = torch.arange(self.classes).repeat(count)
            noise = 0.1 * torch.randn(len(labels), *self.shape, generator=generator)
            return (centres[labels] + noise).clamp(0, 1), labels

        return split(self.per_class), split(5), [f"class {label}" for label in range(self.classes)]


class GoldenData(TinyData):
    """Three classes whose real images are drawn anew for every step, as the golden trajectories have them."""

    def __init__(self, entry):
        super().__init__(channels=entry["channels"], size=(entry["size"], entry["size"]))
        self.step = 0

    def setup(self, stage=None):
        super().setup(stage)
        self.real.draw = self.draw
        self.real.to = lambda device: self.real

    def draw(self, label, generator, count=None):
        if count is None:
            return normal(1000 + self.step, 3, 8, *self.shape)[label]
        return normal(3000 + self.step, 16 * 3, *self.shape)[16 * label : 16 * (label + 1)]


def quiet_trainer(folder, **settings):
    """A Trainer that writes nothing and shows nothing, on the CPU unless the settings say otherwise."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**{"accelerator": "cpu", "default_root_dir": folder, **quiet, **settings})


class TinyNet(nn.Module):
    """A network of somebody else's."""

    def __init__(self, channels, num_classes, image_size, width=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)
        self.linear = nn.Linear(width * (image_size[0] - 2) * (image_size[1] - 2), num_classes)

    def forward(self, images):
        return self.linear(torch.tanh(self.conv(images)).flatten(1))


def embedding(channels, num_classes, image_size):
    """No classifier: gives pixels."""
    return nn.Flatten()


class Averages(nn.Module):
    """A classifier without a linear layer."""

    def __init__(self, channels, num_classes, image_size):
        super().__init__()
        self.conv = nn.Conv2d(channels, num_classes, 3)

    def forward(self, images):
        return self.conv(images).mean(dim=(2, 3))


class ScaledError:
    """A distance of somebody else's."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, first, second):
        return self.factor * sum((a - b).square().sum() for a, b in zip(first, second, strict=True))


def smooth_loss(logits, labels):
    """A loss of somebody else's."""
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)


class Images:
    """Images by row number."""

    def __init__(self, images):
        self.images = images

    def take(self, rows):
        return self.images[rows]

    def to(self, device):
        return self

    def __len__(self):
        return len(self.images)


def real_images(images, labels, classes, batch_real=8):
    names = [str(label) for label in range(classes)]
    return RealImages(Images(images), labels, names, tuple(images.shape[1:]), batch_real)


def some_slow(cases, fast):
    """Cases of one kind, all but some of them marked slow."""
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)
        for case in cases
    ]


@pytest.fixture
def tiny_data():
    data = TinyData()
    data.setup()
    return data
