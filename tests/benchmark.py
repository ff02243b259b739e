"""Times every part of a run against a plain version of the same mathematics, alternating in one run.

    python tests/benchmark.py [--ipc 1 10 50] [--rounds 3] [--compile] [--output benchmark.json]

The plain version, in this file, is what anybody would write from the paper: PyTorch's own layers, class by class, whole
batches, fresh memory for every large tensor, augmentation image by image with SciPy. Ours is what a run does.
ConvNet, images of 1x28x28 (random pixels: the time is the same), 256 real images a class. Both get the same inputs, and
what they come to is compared. With --compile ours is also timed with compiled networks. Then what Lightning costs: the
time between two matching steps with progress bar, TensorBoard and checkpoints on. Prints a table, and writes JSON.
"""

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import re
import statistics
import sys
import tempfile
import time

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from scipy.ndimage import rotate as scipy_rotate
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dc_lightning.allocator import keep_freed_memory
from dc_lightning.augmentation import crop, rotate, scale
from dc_lightning.checkpoints import Checkpoints
from dc_lightning.compilation import compile_networks, compiled
from dc_lightning.condensation import CondensationModule
from dc_lightning.data import CondensationDataModule
from dc_lightning.evaluation import Recipe, _Batches, train_and_test
from dc_lightning.matching import network_gradient
from dc_lightning.parts import make_network
from dc_lightning.progress import RunProgress
from dc_lightning.results import environment

CLASSES, REAL, SHAPE = 10, 256, (1, 28, 28)


def systems_allocation():
    """Fresh pages for every large tensor, as glibc does at first; it would raise the two thresholds by and by."""
    libc = ctypes.CDLL("libc.so.6")
    for name, value in ((-4, 65536), (-1, 128 * 1024), (-2, 128 * 1024)):
        libc.mallopt(name, value)


def plain_network(seed):
    """A ConvNet out of PyTorch's own layers, with the weights of ours."""
    layers = []
    for block in range(3):
        layers += [nn.Conv2d(128 if block else SHAPE[0], 128, 3, padding=1 if block else 3)]
        layers += [nn.GroupNorm(128, 128), nn.ReLU(), nn.AvgPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, CLASSES))
    for parameter, value in zip(network.parameters(), our_network(seed).parameters(), strict=True):
        parameter.data = value.data
    return network


def our_network(seed=0):
    return make_network("ConvNet", SHAPE[0], CLASSES, SHAPE[1:], seed)


def plain_gradient(network, images, label):
    labels = torch.full((len(images),), label)
    return torch.autograd.grad(cross_entropy(network(images), labels), list(network.parameters()))


def plain_distance(synthetic, real):
    total = 0.0
    for first, second in zip(synthetic, real, strict=True):
        if first.dim() > 1:
            a, b = first.flatten(1), second.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def plain_matching_class(network, real, synthetic, label):
    synthetic = synthetic.clone().requires_grad_()
    target = plain_gradient(network, real, label)
    labels = torch.full((len(synthetic),), label)
    loss = cross_entropy(network(synthetic.clone()), labels)  # no leaf: the counter of operations cannot take one
    ours = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    return torch.autograd.grad(plain_distance(ours, target), synthetic)[0]


def plain_augmentation(images, random):
    """Image by image, as the authors' code does it."""
    images, mean = images.numpy().copy(), images.mean(dim=(0, 2, 3)).numpy()
    height, width = images.shape[2:]
    for number, image in enumerate(images):
        match random.choice(["crop", "scale", "rotate"]):
            case "crop":
                padded = np.pad(image - mean[:, None, None], ((0, 0), (4, 4), (4, 4))) + mean[:, None, None]
                y, x = random.randint(0, 8, 2)
                images[number] = padded[:, y : y + height, x : x + width]
            case "scale":
                h, w = (np.array([height, width]) * random.uniform(0.8, 1.2, 2)).astype(int)
                rows, columns = np.arange(h) * height // h, np.arange(w) * width // w
                canvas = np.zeros((len(image), max(h, height), max(w, width)), image.dtype)
                top, left = (canvas.shape[1] - h) // 2, (canvas.shape[2] - w) // 2
                canvas[:, top : top + h, left : left + w] = image[:, rows][:, :, columns]
                top, left = (canvas.shape[1] - height) // 2, (canvas.shape[2] - width) // 2
                images[number] = canvas[:, top : top + height, left : left + width]
            case "rotate":
                turned = scipy_rotate(image, random.randint(-45, 45), axes=(-2, -1), cval=mean.mean())
                top, left = (turned.shape[1] - height) // 2, (turned.shape[2] - width) // 2
                images[number] = turned[:, top : top + height, left : left + width]
    return torch.from_numpy(images)


def plain_training(network, images, labels, batches, **sgd):
    optimizer = torch.optim.SGD(network.parameters(), **sgd)
    for rows in batches:
        optimizer.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


def plain_accuracy(network, images, labels):
    with torch.no_grad():
        right = [(network(images[a : a + 256]).argmax(1) == labels[a : a + 256]) for a in range(0, len(images), 256)]
    return float(torch.cat(right).float().mean())


class Noise(CondensationDataModule):
    """Random images of Fashion-MNIST's shape; as many to test as a quarter of its test set."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (CLASSES * REAL, *SHAPE), dtype=torch.uint8, generator=generator)
        labels = torch.arange(CLASSES).repeat(REAL)
        return (images, labels), (images[:2500], labels[:2500]), [str(label) for label in range(CLASSES)]


def parts(ipc):
    """Each part: what the plain version does, what ours does, each giving tensors to compare, and its name."""
    data = Noise()
    data.setup()
    module = CondensationModule(ipc=ipc, inner_epochs=1)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.datamodule, module.trainer = data, trainer
    module.setup("fit")
    images, labels, network, plain = module.images.detach(), module.labels, our_network(), plain_network(0)
    real, rows = data.real.take(data.real.rows[3]), slice(3 * ipc, 4 * ipc)
    epochs = 10
    recipe = Recipe(epochs=epochs - 1)
    inner_order = torch.randperm(len(images), generator=module._generator("inner", 0)).split(256)
    outer_order = list(_Batches(images, labels, 256, epochs, SEED).rows())

    def our_inner_epoch():
        trained = our_network()
        module.train_network(trained, 0)
        return list(trained.parameters())

    def our_evaluation():
        accuracy, trained = train_and_test(images, labels, "ConvNet", data, recipe, SEED, torch.device("cpu"))
        return [torch.tensor(accuracy), *trained.parameters()]

    def plain_evaluation():
        trained = plain_network(SEED)
        drop = (epochs // 2 + 1) * len(inner_order)
        for batches, lr in ((outer_order[:drop], 0.01), (outer_order[drop:], 0.001)):
            parameters = plain_training(trained, images, labels, batches, lr=lr, momentum=0.9, weight_decay=5e-4)
        return [torch.tensor(plain_accuracy(trained, data._test.images, data._test_labels)), *parameters]

    if ipc == 1:
        yield (
            "real gradient, 1 class",
            lambda: plain_gradient(plain, real, 3),
            lambda: network_gradient(network, real, 3, chunk_size=module.chunk_size, forward=compiled(network)),
        )
    yield (
        "matching, 1 class",
        lambda: [plain_matching_class(plain, real, images[rows], 3)],
        lambda: [module.match(network, real, images[rows], 3)[1]],
    )
    yield (
        "inner loop, 1 epoch",
        lambda: plain_training(plain_network(0), images, labels, inner_order, lr=0.01),
        our_inner_epoch,
    )
    yield f"evaluation, {epochs} epochs and 2,500 test images", plain_evaluation, our_evaluation


SEED = 7
TOLERANCE = 1e-3  # of the largest value: float32, added in another order


def gigaflop(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def seconds(function):
    begun = time.perf_counter()
    found = function()
    return time.perf_counter() - begun, found


def alternate(ways, rounds):
    """Seconds of each way, in turn, each with its own memory allocation, by name; and what each came to last."""
    found, results = {name: [] for name in ways}, {}
    for number in range(rounds + 2):
        for name, (allocation, function) in ways.items():
            allocation()
            took, results[name] = seconds(function)
            if number > 1:  # the first two warm up
                found[name].append(took)
    return found, results


def compare(plain, ours, rounds, compile_too=False):
    """Seconds of each, alternating; and how far what they come to is apart."""

    def ours_compiled():
        compile_networks()
        try:
            return ours()
        finally:
            compile_networks(False)

    ways = {"plain": (systems_allocation, plain), "ours": (keep_freed_memory, ours)}
    if compile_too:
        ways["compiled"] = keep_freed_memory, ours_compiled
    found, results = alternate(ways, rounds)
    largest = max(float(tensor.detach().abs().max()) for tensor in results["plain"])
    differences = [
        float((a - b).detach().abs().max()) / largest
        for name in ways
        for a, b in zip(results["plain"], results[name], strict=True)
    ]
    return {**found, "largest_relative_difference": max(differences)}


def time_augmentation(count, rounds):
    """Seconds of an epoch of MNIST's augmentation, alternating; each draws for itself, and tests compare them.

    Ours takes all epochs of an evaluation, of which the first pay for the others; SciPy takes as long in each of some.
    """
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    epochs, some, random = Recipe().epochs_augmented + 1, 8 * 2048 // count, np.random.RandomState(0)

    def plain():
        for _ in range(some):
            plain_augmentation(images, random)

    def ours():
        for _ in _Batches(images, torch.zeros(count), 256, epochs, SEED, [crop, scale, rotate]):
            pass

    found, _ = alternate({"plain": (systems_allocation, plain), "ours": (keep_freed_memory, ours)}, rounds)
    return {"plain": [each / some for each in found["plain"]], "ours": [each / epochs for each in found["ours"]]}


class Idle(CondensationModule):
    """Matches nothing, and notes when its steps begin and end."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.times = []

    def training_step(self, batch, batch_idx):
        begun = time.perf_counter()
        super().training_step(batch, batch_idx)
        self.times.append((begun, time.perf_counter()))

    def match(self, network, real, synthetic, label):
        return torch.zeros(()), torch.zeros_like(synthetic)


def overhead(iterations=1000):
    """Seconds of Lightning's between two matching steps, everything on that is on by default."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        module = Idle(network="ConvNetD1")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=iterations,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            log_every_n_steps=1,
            enable_model_summary=False,
            callbacks=[RunProgress(), Checkpoints()],
        )
        trainer.fit(module, datamodule=Noise(batch_real=1))
    between = [begun - ended for (_, ended), (begun, _) in itertools.pairwise(module.times)]
    return statistics.fmean(between), statistics.median(between)


def convolution_rate():
    """GFLOP/s of the largest convolution of the ConvNet, forward and backward, the best of several batches."""
    best, weight = 0.0, torch.randn(128, 128, 3, 3, requires_grad=True)
    for count in (32, 64, 128):
        images = torch.randn(count, 128, 16, 16, requires_grad=True)
        flop = 3 * 2 * count * 16 * 16 * 128 * 128 * 9

        def step(images=images):
            return torch.autograd.grad(conv2d(images, weight, padding=1).sum(), [images, weight])

        step()
        best = max(best, *(flop / seconds(step)[0] / 1e9 for _ in range(5)))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", default="benchmark.json")
    options = parser.parse_args()
    keep_freed_memory()
    rate, rows = convolution_rate(), []
    for ipc in options.ipc:
        for name, plain, ours in parts(ipc):
            work = gigaflop(plain)
            found = compare(plain, ours, options.rounds, options.compile)
            rows.append({"part": f"ipc {ipc}: {name}", **found, "gflop": work})
    apart = [row["part"] for row in rows if row["largest_relative_difference"] > TOLERANCE]
    for count in (10, 100, 256):
        found = time_augmentation(count, 3 * options.rounds)
        rows.append({"part": f"augmentation of {count} images, an epoch", **found})
    mean, median = overhead()
    show(rows, f"convolution: {rate:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(f"Lightning between two matching steps: {1000 * mean:.2f} ms on average, median {1000 * median:.2f} ms")
    lightning = {"mean_seconds_between_steps": mean, "median_seconds_between_steps": median}
    content = {"convolution_gflop_per_second": rate, "parts": rows, "lightning": lightning, **environment()}
    with open(options.output, "w") as file:
        json.dump(content, file, indent=2)
    if apart:
        sys.exit(f"Different results: {', '.join(apart)}")


def show(rows, title):
    table = Table(title=f"{title}; medians of seconds, and of ratios to plain (least, most)")
    names = ("part", "plain", "ours", "ratio", "compiled", "ratio", "GFLOP/s", "of the rate", "rel. difference")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    rate = float(re.search(r"[\d.]+", title).group())
    for row in rows:
        cells = [row["part"], f"{statistics.median(row['plain']):.4f}"]
        for way in ("ours", "compiled"):
            if way not in row:
                cells += ["", ""]
                continue
            ratios = sorted(a / b for a, b in zip(row["plain"], row[way], strict=True))
            middle = statistics.median(ratios)
            cells += [f"{statistics.median(row[way]):.4f}", f"{middle:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"]
        if "gflop" in row:
            speeds = [row["gflop"] / statistics.median(row[way]) for way in ("ours", "compiled") if way in row]
            cells += [" ".join(f"{speed:.0f}" for speed in speeds)]
            cells += [" ".join(f"{100 * speed / rate:.0f}" for speed in speeds) + " %"]
            cells += [f"{row['largest_relative_difference']:.0e}"]
        table.add_row(*cells)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
