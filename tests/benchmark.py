"""Times every part of a run against a plain version of the same mathematics, alternating in one run.

    python tests/benchmark.py [--ipc 1 10 50] [--rounds 3] [--compile] [--options [NAME ...]] [--output benchmark.json]

The plain version, in this file, is what anybody would write from the paper: PyTorch's own layers, class by class, whole
batches, augmentation image by image with SciPy. Ours is what a run does. Each has a process of its own, since memory
allocation is set for a whole process; they take turns. ConvNet, images of 1x28x28 (random pixels: the time is the
same), 256 real images a class, on a GPU where there is one. All get the same inputs, and what they come to is
compared: how far apart the images or weights are moved, relative to how far they are moved. With --compile ours is also
timed with compiled networks; with --options a matching step of every method and with every option by itself, with the
number of times that the host waits for a GPU in it, and the parts of a round of IDC and DREAM; names choose some of
these, and an empty --ipc leaves out the rest. Then what Lightning costs: the time between two matching steps with
progress bar, TensorBoard and checkpoints on. Prints tables, and writes JSON.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from scipy.ndimage import rotate as scipy_rotate
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dc_lightning import (
    DREAM,
    IDC,
    Checkpoints,
    CondensationDataModule,
    CondensationModule,
    Condenser,
    DistributionMatching,
    EvaluationCallback,
    FRePo,
    Recipe,
    RunProgress,
    SyntheticSet,
)
from dc_lightning.augmentation import make_augmentation
from dc_lightning.compilation import compile_networks, compiled, replay_graphs
from dc_lightning.evaluation.training import Batches, Job, train_and_test
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.networks import AveragePooling, make_network
from dc_lightning.run.allocator import keep_freed_memory
from dc_lightning.run.results import environment
from dc_lightning.seeds import derive_seed

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

CLASSES, REAL, SHAPE = 10, 256, (1, 28, 28)
IDC_REAL, OF_A_CLASS = 64, 6000  # IDC's real batch, and Fashion-MNIST's images, among which DREAM chooses
SEED, EPOCHS = 7, 10  # of an evaluation
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# float32, added in another order, and trained on from there; a GPU's convolutions take TF32, of three digits
TOLERANCES = {"ours": 0.1, "compiled": 0.1} if ON_GPU else {"ours": 1e-4, "compiled": 2e-2}


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
    return make_network("ConvNet", Case.shape, seed).to(DEVICE)


def plain_gradient(network, images, label, create_graph=False):
    loss = cross_entropy(network(images), torch.full((len(images),), label, device=DEVICE))
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)


def plain_distance(synthetic, real):
    total = 0.0
    for first, second in zip(synthetic, real, strict=True):
        if first.dim() > 1:
            a, b = first.flatten(1), second.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def plain_matching_step(network, real, images, lr, momentum):
    """The images after one update."""
    images, derivatives = images.clone().requires_grad_(), []
    optimizer = torch.optim.SGD([images], lr=lr, momentum=momentum)
    for label, synthetic in enumerate(images.split(len(images) // CLASSES)):
        target = plain_gradient(network, real.take(real.rows[label]), label)
        ours = plain_gradient(network, synthetic, label, create_graph=True)
        derivatives += torch.autograd.grad(plain_distance(ours, target), synthetic)
    images.grad = torch.cat(derivatives)
    optimizer.step()
    return images.detach()


def plain_augmentation(images, random):
    """Image by image, as the authors' code does it."""
    images, mean = images.cpu().numpy().copy(), images.mean(dim=(0, 2, 3)).cpu().numpy()
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
    return torch.from_numpy(images).to(DEVICE)


def plain_training(network, images, labels, batches, **sgd):
    optimizer = torch.optim.SGD(network.parameters(), **sgd)
    for rows in batches:
        optimizer.zero_grad()
        rows = rows.to(DEVICE)
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()


def plain_idc_training(module, network):
    """On real images, after a round."""
    optimizer = torch.optim.SGD(network.parameters(), **module.sgd)
    for number in range(module.network_steps):
        images, labels = module.network_batch(0, number)
        images = module.network_augmentation.batch(images, module.derived_seed("network augmentation", 0, number))
        images, labels = module.mix(images, labels, module.generator("cutmix", 0, number))
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()


def plain_accuracy(network, images, labels):
    with torch.no_grad():
        batches = zip(images.split(256), labels.split(256), strict=True)
        right = [network(batch.to(DEVICE)).argmax(1) == wanted.to(DEVICE) for batch, wanted in batches]
    return float(torch.cat(right).float().mean())


class Noise(CondensationDataModule):
    """Random images of Fashion-MNIST's shape; as many to test as a quarter of its test set."""

    def __init__(self, of_a_class=REAL, **kwargs):
        super().__init__(**kwargs)
        self.of_a_class = of_a_class

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (CLASSES * self.of_a_class, *SHAPE), dtype=torch.uint8, generator=generator)
        labels = torch.arange(CLASSES).repeat(self.of_a_class)
        return (images, labels), (images[:2500], labels[:2500]), [str(label) for label in range(CLASSES)]


def moved(network, start):
    pairs = zip(network.parameters(), start.parameters(), strict=True)
    return [after.detach().cpu() - before.detach().cpu() for after, before in pairs]


@dataclass(frozen=True)
class Way:
    """How a process does what is timed: the plain version, or ours with options."""

    plain: bool = False
    keep_freed_memory: bool = True
    compile: bool = False
    graphs: bool = False
    own_pooling: bool = True
    precision: str = "32-true"
    tf32: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    method: type[Condenser] = CondensationModule


WAYS = {"plain": Way(plain=True, keep_freed_memory=False), "ours": Way()}
COMPILED = Way(compile=True)
ON_ONE = {"without TF32": Way(tf32=False)} if ON_GPU else {"--keep_freed_memory false": Way(keep_freed_memory=False)}
OPTIONS = ON_ONE | {
    "PyTorch's average pooling": Way(own_pooling=False),
    "--compile true": COMPILED,
    "--model.real_chunk_size": Way(model={"real_chunk_size": 64 if ON_GPU else REAL}),
    "--trainer.precision bf16-mixed": Way(precision="bf16-mixed"),
    "DSA": Way(model={"augmentation": "siamese"}),
    "DM": Way(method=DistributionMatching),
    "IDC": Way(method=IDC),
    "DREAM": Way(method=DREAM, model={"batch_network": 64}),
    "FRePo": Way(method=FRePo),
}
PLAIN_IDC = Way(plain=True, keep_freed_memory=False, method=IDC)
GRAPHS = {
    "": Way(graphs=True),
    "DM, ": Way(graphs=True, method=DistributionMatching),
    "IDC, ": Way(graphs=True, method=IDC),
}
OPTIONS |= {f"{method}--cuda_graphs true": way for method, way in GRAPHS.items() if ON_GPU}


class Case:
    """What is timed, at one number of images per class; every part gives lists of tensors to compare."""

    shape = types.SimpleNamespace(channels=SHAPE[0], num_classes=CLASSES, image_size=SHAPE[1:])

    def __init__(self, ipc: int, way: Way) -> None:
        self.data, self.way = Noise(OF_A_CLASS, batch_real=IDC_REAL) if issubclass(way.method, IDC) else Noise(), way
        self.data.setup()
        inner = {"inner_epochs": 1} if way.method is CondensationModule else {}
        self.module = way.method(ipc=ipc, **inner, **way.model)
        self.trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision=way.precision,
            logger=False,
            enable_checkpointing=False,
            max_epochs=0,
        )
        self.trainer.datamodule, self.module.trainer = self.data, self.trainer
        self.trainer.strategy.connect(self.module)
        self.module.setup("fit")
        self.module.to(DEVICE)
        self.module._losses = self.module._losses.to(DEVICE)
        self.data.real = self.data.real.to(DEVICE)
        self.trainer.strategy.optimizers = [self.module.configure_optimizers()]
        self.images, self.labels = self.module.images.detach().clone(), self.module.labels
        seed = derive_seed(self.module.seed, "network", 0)
        self.network = plain_network(seed) if way.plain else our_network(seed)
        self.real = self.data.real.take(self.data.real.rows[3])
        self.inner_order = torch.randperm(len(self.images), generator=self.module.generator("inner", 0)).split(256)

    def real_gradient(self):
        """Of one class."""
        if self.way.plain:
            return [plain_gradient(self.network, self.real, 3)]
        options = {"chunk_size": self.module.chunk_size, "forward": compiled(self.network)}
        return [network_gradient(self.network, self.real, 3, **options)]

    def matching_step(self):
        """Of ten classes, with the update of the images."""
        module = self.module
        if self.way.plain:
            after = plain_matching_step(
                self.network, self.data.real, self.images, module.lr_images, module.momentum_images
            )
            return [[after - self.images]]
        module.optimizers().optimizer.state.clear()
        module._unregistered["network"] = self.network
        with self.trainer.precision_plugin.train_step_context():
            module.training_step(self.data.real, module.outer_steps - 1)  # no inner loop follows the last step
        after = module.images.detach().clone()
        module.images.data.copy_(self.images)
        return [[after - self.images]]

    def inner_epoch(self):
        """One epoch of a fresh network."""
        trained = copy.deepcopy(self.network)
        if self.way.plain:
            plain_training(trained, self.images, self.labels, self.inner_order, lr=self.module.lr_network)
        else:
            self.module.train_network(trained, 0)
        return [moved(trained, self.network)]

    def evaluation(self):
        """Ten epochs of a fresh network and 2,500 test images."""
        if self.way.plain:
            trained = plain_network(SEED)
            order = list(Batches(self.images, self.labels, 256, EPOCHS, SEED).rows())
            drop = (EPOCHS // 2 + 1) * len(self.inner_order)
            for batches, lr in ((order[:drop], 0.01), (order[drop:], 0.001)):
                plain_training(trained, self.images, self.labels, batches, lr=lr, momentum=0.9, weight_decay=5e-4)
            accuracy = plain_accuracy(trained, *map(torch.cat, zip(*self.data.test_dataloader(), strict=True)))
        else:
            recipe, data = Recipe(epochs=EPOCHS - 1), self.data
            synthetic = SyntheticSet(self.images.cpu(), self.labels.cpu(), data.mean, data.std, data.class_names)
            accuracy, trained = train_and_test(synthetic, Job("ConvNet", recipe, SEED), data, DEVICE)
        return [moved(trained, our_network(SEED)), [torch.tensor([accuracy, 1 - accuracy])]]


class Round(Case):
    """Parts of a round of IDC or DREAM: all ten classes, and what the network learns between two rounds.

    The plain version draws, decodes and augments by the same code.
    """

    def __init__(self, ipc: int, way: Way) -> None:
        super().__init__(ipc, way)
        module = self.module
        assert isinstance(module, IDC)
        module._unregistered["network"] = self.network
        module.prepare_network(self.network, 0)
        self.batches = [module.real_batch(label, 0) for label in range(CLASSES)]
        self.targets = self.real_gradients()

    def gradient(self, images, label, create_graph=False):
        """Of the network, for images of a class."""
        if self.way.plain:
            return plain_gradient(self.network, images, label, create_graph)
        if create_graph:
            return network_gradient(self.network, images, label, create_graph=True)
        options = {"chunk_size": self.module.chunk_size, "forward": self.module.forward_of(self.network)}
        return network_gradient(self.network, images, label, **options)

    def augmented(self):
        """Real and synthetic batches, decoded and augmented."""
        module, found = self.module, []
        for label, real in enumerate(self.batches):
            synthetic = module.synthetic_batch(module.images_of(label), label, 0)
            found.append(list(module.augment(real, synthetic, label, 0)))
        return found

    def real_gradients(self):
        """Of the real batches."""
        return [self.gradient(real, label) for label, real in enumerate(self.batches)]

    def synthetic_side(self):
        """Gradients of the synthetic batches, and the derivative of their distances from the real ones."""
        module, found = self.module, []
        for label, target in enumerate(self.targets):
            stored = module.images_of(label).requires_grad_()
            synthetic = module.synthetic_batch(stored, label, 0)
            gradient = self.gradient(synthetic, label, create_graph=True)
            value = sum((a - b).abs().sum() for a, b in zip(gradient, target, strict=True) if a.dim() > 2)
            found.append(list(torch.autograd.grad(value, stored)))
        return found

    def network_training(self):
        """On real images, after a round."""
        start = copy.deepcopy(self.network)
        if self.way.plain:
            plain_idc_training(self.module, self.network)
        else:
            self.module.train_network(self.network, 0)
            self.module._network_optimizer.state.clear()
        trained = moved(self.network, start)
        self.network.load_state_dict(start.state_dict())
        return [trained]

    def choice(self):
        """DREAM's choice of the 128 real images of one class, which ten rounds share."""
        assert isinstance(self.module, DREAM)
        return [[self.module.representatives(self.network, 3, 128, SEED).float()]]


ROUND = ("augmented", "real_gradients", "synthetic_side", "network_training")


def augment(count: int, way: Way) -> int:
    """MNIST's augmentation, for some epochs, whose number is given back; tests compare what it does.

    Ours takes all epochs of an evaluation, of which the first pay for the others; SciPy takes as long in each of some.
    """
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if way.plain:
        random, epochs = np.random.RandomState(0), max(1, 2048 // count)
        for _ in range(epochs):
            plain_augmentation(images, random)
    else:
        epochs = Recipe().epochs_of(augmented=True) + 1
        augmentation = make_augmentation(["crop", "scale", "rotate"], Noise())
        for _ in Batches(images, torch.zeros(count, device=DEVICE), 256, epochs, SEED, augmentation):
            pass
    return epochs


def serve(asked: Connection, way: Way) -> None:
    """A process that does what it is asked in one way, and answers with seconds and what it came to."""
    if way.keep_freed_memory:
        keep_freed_memory()
    if not way.own_pooling:
        AveragePooling.forward = lambda self, images: avg_pool2d(images, 2)  # type: ignore[method-assign]
    compile_networks(way.compile)
    replay_graphs(way.graphs)
    torch.backends.cudnn.allow_tf32 = way.tf32
    case = functools.cache(lambda ipc: (Round if issubclass(way.method, IDC) else Case)(ipc, way))
    while question := asked.recv():
        part, number = question
        if part == "augmentation":
            took, epochs = seconds(functools.partial(augment, number, way))
            asked.send((took / epochs, []))
        elif part == "host_waits":
            asked.send((host_waits(case(number).matching_step), []))
        else:
            took, found = seconds(getattr(case(number), part))
            asked.send((took, [torch.cat([t.flatten().float() for t in tensors]).cpu().numpy() for tensors in found]))


@contextlib.contextmanager
def processes(ways: dict[str, Way]) -> Iterator[dict[str, Connection]]:
    """One process a way, to be asked through these."""
    context, pipes, started = multiprocessing.get_context("spawn"), {}, []
    for name, way in ways.items():
        pipes[name], theirs = context.Pipe()
        started.append(context.Process(target=serve, args=(theirs, way), daemon=True))
        started[-1].start()
        theirs.close()
    yield pipes
    for pipe, process in zip(pipes.values(), started, strict=True):
        pipe.send(None)
        process.join()


def alternate(pipes: dict[str, Connection], part: str, number: int, rounds: int, warm_up: int = 2) -> dict[str, Any]:
    """Seconds of each way, in turn, and how far what each came to last is from what the first one did."""
    found: dict[str, list[float]] = {name: [] for name in pipes}
    results = {}
    for turn in range(rounds + warm_up):
        for name, pipe in pipes.items():
            pipe.send((part, number))
            took, results[name] = pipe.recv()
            if turn >= warm_up:
                found[name].append(took)
    expected = results.pop(next(iter(pipes)))
    apart = {
        name: max((relative(a, b) for a, b in zip(expected, result, strict=True)), default=0.0)
        for name, result in results.items()
    }
    return {"seconds": found, "difference": apart}


def relative(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(expected - found) / np.linalg.norm(expected))


def gigaflop(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def seconds(function):
    begun = time.perf_counter()
    found = function()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - begun, found


def host_waits(function):
    """How often the host waits for the GPU meanwhile."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


class Idle(CondensationModule):
    """Matches nothing, and notes when its steps begin and end."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.times, self.bar_is_open = [], True

    def training_step(self, batch, batch_idx):
        self.bar_is_open &= self.trainer.progress_bar_callback._run is not None
        begun = time.perf_counter()
        super().training_step(batch, batch_idx)
        self.times.append((begun, time.perf_counter()))

    def match(self, network, step):
        return torch.zeros(()), torch.zeros_like(self.images)


@contextlib.contextmanager
def terminal():
    """Prints to a terminal that shows nothing."""
    reader, writer = os.openpty()

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while os.read(reader, 1 << 16):
                pass

    threading.Thread(target=read, daemon=True).start()
    os.environ["TERM"] = "xterm"
    with os.fdopen(writer, "w") as file, contextlib.redirect_stdout(file):
        yield


def overhead(iterations=1000):
    """Seconds of Lightning's between two matching steps, everything on that is on by default."""
    with tempfile.TemporaryDirectory() as folder, terminal():
        module = Idle(network="ConvNetD1")
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=iterations,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            log_every_n_steps=1,
            enable_model_summary=False,
            callbacks=[
                RunProgress(),
                Checkpoints(),
                EvaluationCallback(num_networks=1, every_n=0, recipe=Recipe(epochs=1)),
            ],
        )
        trainer.fit(module, datamodule=Noise(batch_real=1))
    assert module.bar_is_open, "the progress bar was not open"
    between = [begun - ended for (_, ended), (begun, _) in itertools.pairwise(module.times)]
    return statistics.fmean(between), statistics.median(between)


def convolution_rate():
    """GFLOP/s of the largest convolution of the ConvNet, forward and backward, the best of several batches."""
    best, weight = 0.0, torch.randn(128, 128, 3, 3, device=DEVICE, requires_grad=True)
    for count in (32, 64, 128, *[1024][:ON_GPU]):
        images = torch.randn(count, 128, 16, 16, device=DEVICE, requires_grad=True)
        flop = 3 * 2 * count * 16 * 16 * 128 * 128 * 9

        def step(images=images):
            return torch.autograd.grad(conv2d(images, weight, padding=1).sum(), [images, weight])

        step()
        best = max(best, *(flop / seconds(step)[0] / 1e9 for _ in range(5)))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ipc", type=int, nargs="*", default=[1, 10, 50])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with compiled networks")
    each = "also a matching step with every option by itself, or with those that are named"
    parser.add_argument("--options", nargs="*", metavar="NAME", help=f"{each}: {', '.join(OPTIONS)}")
    parser.add_argument("--output", default="benchmark.json")
    options = parser.parse_args()
    chosen = {} if options.options is None else {name: OPTIONS[name] for name in options.options or OPTIONS}
    keep_freed_memory()  # for the rate of the convolution
    rate, rows = convolution_rate(), []
    ways = WAYS | ({"compiled": COMPILED} if options.compile else {})
    with processes(ways | chosen | ({"plain IDC": PLAIN_IDC} if "IDC" in chosen else {})) as pipes:
        in_turn = {name: pipes[name] for name in ways}
        for ipc in options.ipc:
            case = Case(ipc, WAYS["plain"])
            for part in (*["real_gradient"][: ipc == options.ipc[0]], "matching_step", "inner_epoch", "evaluation"):
                found = alternate(in_turn, part, ipc, options.rounds)
                rows.append({"part": part, "ipc": ipc, **found, "gflop": gigaflop(getattr(case, part))})
        plain_and_ours = {name: pipes[name] for name in WAYS}
        for ipc in options.ipc:
            found = alternate(plain_and_ours, "augmentation", CLASSES * ipc, 3 * options.rounds)
            rows.append({"part": "augmentation", "ipc": ipc, **found})
        content = {"convolution_gflop_per_second": rate, "parts": rows, **environment()}
        save(options.output, content)
        if chosen:
            content["options"] = options_one_by_one({name: pipes[name] for name in ("ours", *chosen)}, options.rounds)
            save(options.output, content)
            content["round"] = parts_of_a_round(pipes, options.rounds)
    mean, median = overhead()
    content["lightning"] = {"mean_seconds_between_steps": mean, "median_seconds_between_steps": median}
    save(options.output, content)
    show(rows, list(ways), rate)
    show_options(content.get("options", []))
    show_round(content.get("round", []))
    print(f"Lightning between two matching steps: {1000 * mean:.2f} ms on average, median {1000 * median:.2f} ms")
    apart = [
        f"{row['part']} at ipc {row['ipc']}, {way}"
        for row in [*rows, *content.get("round", [])]
        for way, difference in row["difference"].items()
        if not difference <= TOLERANCES[way]
    ]
    if apart:
        sys.exit(f"Different results: {', '.join(apart)}")


def save(path: str, found: dict[str, Any]) -> None:
    """Writes what there is so far: the later parts take minutes."""
    with open(path, "w") as file:
        json.dump(found, file, indent=2)


def options_one_by_one(in_turn: dict[str, Connection], rounds: int) -> list[dict[str, Any]]:
    """A matching step at ten images a class with each option, beside the default."""
    found = alternate(in_turn, "matching_step", 10, rounds)
    rows = []
    for name, pipe in in_turn.items():
        took = {way: found["seconds"][way] for way in ("ours", name)}
        rows.append({"option": name, "seconds": took, "difference": found["difference"].get(name, 0.0)})
        if ON_GPU:
            pipe.send(("host_waits", 10))
            rows[-1]["host_waits"] = pipe.recv()[0]
    return rows


def parts_of_a_round(pipes: dict[str, Connection], rounds: int) -> list[dict[str, Any]]:
    """Of IDC beside the plain version, and DREAM's choice."""
    of_idc = {way: pipes[name] for way, name in (("plain", "plain IDC"), ("ours", "IDC")) if name in pipes}
    of_dream = {"ours": pipes["DREAM"]} if "DREAM" in pipes else {}
    asked = [*((of_idc, part, 1) for part in ROUND), (of_dream, "choice", 10)]
    return [{"part": part, "ipc": ipc, **alternate(ways, part, ipc, rounds, 1)} for ways, part, ipc in asked if ways]


def ratios(seconds, base, way):
    """As many times as fast as the base: the median, the least and the most."""
    found = sorted(a / b for a, b in zip(seconds[base], seconds[way], strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f}, {found[-1]:.2f})"


def show(rows, ways, rate):
    if not rows:
        return
    title = (
        f"convolution: {rate:.0f} GFLOP/s, {torch.get_num_threads()} threads; medians; ratios to plain (least, most)"
    )
    table = Table("part", "ipc", "plain", title=title)
    for way in ways[1:]:
        for name in (way, "ratio", "GFLOP/s", "of the rate", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["part"].replace("_", " "), str(row["ipc"]), f"{statistics.median(row['seconds']['plain']):.4f}"]
        for way in ways[1:]:
            if way not in row["seconds"]:
                continue
            took = statistics.median(row["seconds"][way])
            cells += [f"{took:.4f}", ratios(row["seconds"], "plain", way)]
            if "gflop" in row:
                speed = row["gflop"] / took
                cells += [f"{speed:.0f}", f"{100 * speed / rate:.0f} %", f"{row['difference'][way]:.0e}"]
        table.add_row(*cells)
    Console(width=170).print(table)


def show_options(rows):
    if not rows:
        return
    names = ("option or method", "ours", "with it", "as fast", "difference", "host waits")
    table = Table(*names, title="a matching step of ten classes, ipc 10")
    for row in rows:
        name = row["option"]
        medians = [f"{statistics.median(row['seconds'][way]):.4f}" for way in ("ours", name)]
        cells = [ratios(row["seconds"], "ours", name), f"{row['difference']:.0e}", str(row.get("host_waits", ""))]
        table.add_row(name, *medians, *cells)
    Console(width=170).print(table)


def show_round(rows):
    if not rows:
        return
    names = ("part", "plain", "ours", "ratio", "difference")
    table = Table(*names, title="a round of IDC: ten classes, factor 2, 64 real images, ipc 1")
    for row in rows:
        took = {way: f"{statistics.median(found):.4f}" for way, found in row["seconds"].items()}
        cells = [took.get("plain", ""), took["ours"]]
        if "plain" in took:
            cells += [ratios(row["seconds"], "plain", "ours"), f"{row['difference']['ours']:.0e}"]
        table.add_row(row["part"].replace("_", " "), *cells)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
