"""Runs of the command line in processes of their own, which may die at a moment that is asked for."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch._dynamo.utils import counters

import dc_lightning.files
from dc_lightning.cli import main

RUN = Path("lightning_logs/version_0")

# Its children are forked from a process that has imported everything and used nothing.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["dc_lightning.cli", "conftest"])

EVALUATION = "dc_lightning.evaluation.evaluator.train_and_test"


def child(args, folder, where, count):
    """Runs the command line, and dies at the ``count``-th time that it comes to ``where``.

    That is "inside a file write" or "after a file write", likewise of a checkpoint, "inside an evaluation", or the
    import path of a function; "signal N" gives itself that signal inside an evaluation.
    """
    os.chdir(folder)
    sys.argv = ["dc-lightning"]
    torch.set_num_threads(1)
    signum, left = signal.SIGKILL, [count]
    if where.startswith("signal"):
        signum, where = int(where.split()[1]), "inside an evaluation"
    where = {"inside an evaluation": EVALUATION}.get(where, where)

    def come_to(place):
        if place == where:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signum)

    replace = os.replace

    def noting_replace(source, target):
        kinds = ["file", *(["checkpoint"] if str(target).endswith("last.ckpt") else [])]
        for kind in kinds:
            come_to(f"inside a {kind} write")
        replace(source, target)
        for kind in kinds:
            come_to(f"after a {kind} write")

    dc_lightning.files.os.replace = noting_replace
    if "." in where:
        module, _, name = where.rpartition(".")
        function = resolve_name(where)

        def noting(*arguments, **keywords):
            come_to(where)
            return function(*arguments, **keywords)

        setattr(resolve_name(module), name, noting)
    code = main(args)
    assert "--compile" not in args or counters["stats"]["unique_graphs"] > 0
    sys.exit(code)


def run(args, folder, where="", count=0):
    """The exit code."""
    process = context.Process(target=child, args=(args, str(folder), where, count))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode
