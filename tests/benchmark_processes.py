"""Time of a matching step on one process with two threads, and on two with one thread each; bytes they exchange.

    python tests/benchmark_processes.py [rounds]

The paper's step at 1 image per class: ConvNet, ten classes, 256 real images each of 1x28x28 (random pixels: the time is
the same). The two are run in turn, so that the ratio holds where the speed of the machine drifts; one step of each run
warms up. Prints one line of JSON.
"""

import json
import statistics
import sys
import time

import pytorch_lightning as pl
import torch
import torch.multiprocessing

from dc_lightning import CondensationDataModule, CondensationModule
from dc_lightning.run.allocator import keep_freed_memory

STEPS = 3  # a run, the first of which warms up


class Noise(CondensationDataModule):
    """Random images of Fashion-MNIST's shape."""

    def load(self):
        labels = torch.arange(10).repeat(256)
        images = torch.randint(256, (2560, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return (images, labels), (images[:10], labels[:10]), [str(label) for label in range(10)]


class Stopwatch(pl.Callback):
    """Seconds of every step, and bytes that go into collectives, on rank 0."""

    def __init__(self):
        self.seconds, self.bytes = [], 0

    def on_train_start(self, trainer, module):
        reduce = trainer.strategy.reduce

        def counting(tensor, *args, **kwargs):
            self.bytes += tensor.numel() * tensor.element_size() * (trainer.world_size > 1)
            return reduce(tensor, *args, **kwargs)

        trainer.strategy.reduce = counting

    def on_train_batch_start(self, *_):
        self.begun = time.perf_counter()

    def on_train_batch_end(self, *_):
        self.seconds.append(time.perf_counter() - self.begun)


def work(rank, size, port, found):
    """One process: what Lightning's launcher would start."""
    import os

    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        RANK=str(rank),
        NODE_RANK="0",
        GROUP_RANK="0",
        LOCAL_WORLD_SIZE=str(size),
        TORCHELASTIC_RUN_ID="benchmark",
    )
    keep_freed_memory()
    torch.set_num_threads(2 // size)
    watch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(CondensationModule(outer_steps=STEPS, inner_epochs=0), datamodule=Noise())
    if rank == 0:
        found.put((watch.seconds[1:], watch.bytes // STEPS))


def measure(size):
    """Seconds of the steps after the first, and bytes a step."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    torch.multiprocessing.spawn(work, (size, port, found), nprocs=size)
    return found.get()


def main(rounds):
    """Prints medians, the ratio of every round, and the bytes."""
    seconds, ratios, exchanged = {1: [], 2: []}, [], 0
    for _ in range(rounds):
        medians = {}
        for size in (1, 2):
            steps, exchanged = measure(size)
            seconds[size] += steps
            medians[size] = statistics.median(steps)
        ratios.append(round(medians[2] / medians[1], 3))
    print(
        json.dumps(
            {
                "one process, two threads, s a step": round(statistics.median(seconds[1]), 3),
                "two processes, one thread each, s a step": round(statistics.median(seconds[2]), 3),
                "ratio of each round": ratios,
                "bytes each process gives a step": exchanged,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
