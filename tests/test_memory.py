"""The memory of a matching step: that of one class, and of one chunk, however many there are."""

import ctypes
import multiprocessing
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from dc_lightning import CondensationModule
from dc_lightning.data import CondensationDataModule, RealImages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc"),
]
context = multiprocessing.get_context("forkserver")


class SameImages:
    """Every class has the same images: a dataset of any number of classes in no memory."""

    def __init__(self, count):
        self.images = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def take(self, rows):
        return self.images[rows % len(self.images)]

    def to(self, device):
        return self

    def __len__(self):
        return len(self.images)


class ManyClasses(CondensationDataModule):
    def __init__(self, classes, batch_real):
        super().__init__(batch_real=batch_real)
        self.num_classes, self.channels, self.image_size = classes, 1, (28, 28)
        self.class_names = tuple(map(str, range(classes)))
        self.mean, self.std = (0.0,), (1.0,)

    def load(self):
        raise NotImplementedError

    def setup(self, stage=None):
        labels = torch.arange(self.num_classes).repeat_interleave(self.batch_real)
        self.real = RealImages(SameImages(self.batch_real), labels, self.class_names, (1, 28, 28), self.batch_real)

    def move(self, device):
        pass


def read(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


class Shallow(torch.nn.Sequential):
    """One convolution: hardly any parameters a class, and quick."""

    def __init__(self, channels, num_classes, image_size):
        convolution = torch.nn.Conv2d(channels, 32, 3)
        pooled = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        super().__init__(convolution, *pooled, torch.nn.Linear(32, num_classes))


BATCH_NORM = {"class_path": "dc_lightning.networks.ConvNet", "init_args": {"width": 32, "normalization": "batch"}}


class PeakOfAStep(pl.Callback):
    """Megabytes that the step needs at most above what there is before it."""

    def on_train_batch_start(self, *_):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before = read("VmRSS")

    def on_train_batch_end(self, *_):
        self.peak = read("VmHWM") - self.before


def measure(network, classes, batch_real, chunk, found):
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back at once, and is not counted
    peak = PeakOfAStep()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[peak],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = CondensationModule(network=network, ipc=1, real_chunk_size=chunk)
    trainer.fit(module, datamodule=ManyClasses(classes, batch_real))
    found.put(peak.peak)


def peak(network, classes, batch_real, chunk):
    found = context.SimpleQueue()
    process = context.Process(target=measure, args=(network, classes, batch_real, chunk, found))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return found.get()


@pytest.mark.parametrize(
    ("network", "numbers", "images", "least"),
    [
        ("ConvNetW32", (10, 100), 1, 30),  # the derivative
        ("test_memory.Shallow", (10, 100, 300), 1, 10),
        (BATCH_NORM, (16, 100), 17, 30),  # and 16 real ones for the statistics
    ],
    ids=["ConvNet", "Shallow", "BatchNorm"],
)
def test_the_memory_of_a_step_does_not_grow_with_the_number_of_classes(network, numbers, images, least):
    """Aside from the images of each class themselves."""
    size = images * 28 * 28 * 4 / 2**20
    few, *more = (peak(network, classes, 64, 64) - classes * size for classes in numbers)
    assert few > least  # what is measured is not nothing
    assert max(more) < 1.1 * few


def test_a_batch_in_chunks_needs_the_memory_of_a_chunk():
    whole, chunks = peak("ConvNetW32", 2, 512, 512), peak("ConvNetW32", 2, 512, 32)
    assert chunks < whole / 3
