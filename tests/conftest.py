import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dc_lightning.data import CondensationDataModule, RealImages, _ImagesInMemory

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dev.json").read_text())


def normal(seed, *shape):
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape), dtype=torch.float32)


def fill_golden(network):
    """The parameters that the golden values were computed with."""
    for number, (name, parameter) in enumerate(network.named_parameters()):
        z = np.random.RandomState(number).standard_normal(tuple(parameter.shape))
        z = z / math.sqrt(math.prod(parameter.shape[1:])) if parameter.dim() > 1 else 0.1 * z + name.endswith("weight")
        parameter.data = torch.tensor(z, dtype=torch.float32)
    return network


def assert_golden(actual, expected):
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    worst = (np.abs(actual - expected) / (np.abs(expected) + 1e-3)).max()
    assert worst < 2e-3, f"off by {worst:.2g}: {actual} against {expected}"


def assert_golden_summary(tensor, expected):
    flat = tensor.detach().double().numpy().ravel()
    at = flat[np.linspace(0, len(flat) - 1, 5).astype(int)]
    assert_golden(at, expected["at"])
    assert_golden([flat.sum(), np.linalg.norm(flat)], [expected["sum"], expected["norm"]])


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


class ScaledError:
    """A distance of somebody else's."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, first, second):
        return self.factor * sum((a - b).square().sum() for a, b in zip(first, second, strict=True))


def real_images(images, labels, classes, batch_real=8):
    return RealImages(_ImagesInMemory(images), labels, classes, batch_real)


@pytest.fixture
def tiny_data():
    data = TinyData()
    data.setup()
    return data
