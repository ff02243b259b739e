"""No work lost: whatever kills a run, resuming it ends with the same bits as never having been killed."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from children import RUN, child, context, run
from conftest import some_slow
from curves import read_curves

import dc_lightning.evaluation.evaluator
import dc_lightning.files
from dc_lightning.cli import main
from dc_lightning.methods.base import Condenser
from dc_lightning.synthetic import load_synthetic

ARGS = (
    "fit --data conftest.TinyData --model.network MLP --model.ipc 2 --model.outer_steps 3 --model.inner_epochs 1 "
    "--model.lr_images 5 --model.lr_images_cooldown 0.5 --model.pixels unit --trainer.max_epochs 12 "
    "--trainer.accelerator cpu --evaluation.num_networks 2 --evaluation.every_n 4 --evaluation.recipe.epochs 4 "
    "--checkpoint.every_n 4 --checkpoint.last_every_seconds 0"
).split()


def outcome(folder):
    """Images, accuracies and curves of a run that has ended."""
    curves, events = read_curves(folder / RUN)
    results = json.loads((folder / RUN / "results.json").read_text())
    grids = [image.step for image in events.Images("synthetic images")]
    return (
        load_synthetic(folder / RUN / "synthetic.pt")[0].images,
        results["columns"],
        results["history"],
        curves,
        grids,
    )


def assert_same(first, second):
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(ARGS, folder) == 0
    found = outcome(folder)
    pixels = load_synthetic(folder / RUN / "synthetic.pt")[0].denormalised()
    assert ((pixels - 0.5).abs() > 0.5 - 1e-5).double().mean() > 0.1  # many at a bound, which a resume must find again
    assert [step for step, _ in found[3]["matching_loss"]] == list(range(1, 13))
    assert [step for step, _ in found[3]["accuracy/MLP"]] == found[4] == [0, 4, 8, 12]
    return found


AUTO = [*ARGS, "--ckpt_path", "auto"]


MOMENTS = [("inside an evaluation", count) for count in (1, 4, 7, 10)]  # of ten networks
MOMENTS += [  # of 38: the start, every step, and the end
    (where, count) for where in ("inside a checkpoint write", "after a checkpoint write") for count in (1, 4, 9, 20, 38)
]


FAST = [("inside an evaluation", 7), ("inside a checkpoint write", 1), ("inside a checkpoint write", 9)]
FAST += [("after a checkpoint write", 4), ("after a checkpoint write", 38)]


@pytest.mark.parametrize(("where", "count"), some_slow(MOMENTS, FAST))
def test_killed_at_each_moment(where, count, whole, tmp_path):
    assert run(ARGS, tmp_path, where, count) == -signal.SIGKILL
    assert run(AUTO, tmp_path) == 0
    if (tmp_path / "lightning_logs/version_1").exists():  # nothing had been saved: a new run
        assert (where, count) == ("inside a checkpoint write", 1)
        (tmp_path / RUN).rename(tmp_path / "killed")
        (tmp_path / "lightning_logs/version_1").rename(tmp_path / RUN)
    assert_same(outcome(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_run_is_resumed_with_the_same_bits(tmp_path):
    """Killed between two steps of one outer iteration."""
    compiled = [*AUTO, "--compile", "true"]
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    assert run(compiled, folders[0]) == 0
    assert run(compiled, folders[1], "after a checkpoint write", 9) == -signal.SIGKILL
    assert run(compiled, folders[1]) == 0
    assert_same(outcome(folders[1]), outcome(folders[0]))


@pytest.mark.slow
def test_curves_are_read_in_order_whatever_their_files_are_called(whole, tmp_path):
    """By TensorBoard in the order of their names: the second, the host, and the process number as text."""
    assert run(ARGS, tmp_path, "after a checkpoint write", 20) == -signal.SIGKILL
    (events,) = (tmp_path / RUN).glob("events*")
    _, _, _, _, *host, _, _ = events.name.split(".")
    events.rename(events.with_name(".".join(["events.out.tfevents", str(int(time.time()) + 4), *host, "99999", "0"])))
    assert run(AUTO, tmp_path) == 0
    assert_same(outcome(tmp_path), whole)


@pytest.mark.slow
def test_soak_a_dozen_kills_at_random_moments(tmp_path):
    long = [*ARGS, "--trainer.max_epochs", "400", "--evaluation.every_n", "20"]
    (tmp_path / "whole").mkdir()
    assert run(long, tmp_path / "whole") == 0
    moments, steps, last = random.Random(0), set(), tmp_path / RUN / "checkpoints/last.ckpt"
    assert run(long, tmp_path, "after a checkpoint write", 1) == -signal.SIGKILL
    for _ in range(12):
        before = last.stat().st_mtime_ns
        process = context.Process(target=child, args=([*long, "--ckpt_path", "last"], str(tmp_path), "", 0))
        process.start()
        deadline = time.monotonic() + 60
        while last.stat().st_mtime_ns == before:  # it is at work from here on
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.add(torch.load(last, weights_only=True)["global_step"])
    assert len(steps) > 5  # it was killed at work, not at its start
    assert run([*long, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("network", some_slow(range(1, 11), [6]))
def test_a_signal_inside_every_evaluation(network, whole, tmp_path):
    """Of iterations 0, 4, 8, of the end, and of the random images: two networks each, and one of either signal."""
    signum = signal.SIGTERM if network % 2 else signal.SIGINT
    code = run(ARGS, tmp_path, f"signal {int(signum)}", network)
    assert code == 128 + signum
    assert run([*ARGS, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), whole)


@pytest.mark.parametrize("signum", some_slow([signal.SIGTERM, signal.SIGINT], [signal.SIGINT]))
def test_signals_inside_an_evaluation_save_first(signum, whole, tmp_path):
    args = [*ARGS, "--evaluation.recipe.epochs", "100000"]
    process = context.Process(target=child, args=(args, str(tmp_path), "", 0))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / RUN / "images").exists():  # written just before the first evaluation
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signum)
    process.join(60)
    assert process.exitcode == 128 + signum
    assert run([*ARGS, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), whole)


def test_a_full_disk_keeps_the_older_checkpoint_and_says_how_to_resume(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    replace, left = os.replace, [7]

    def full(source, target):
        if str(target).endswith(".ckpt"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(dc_lightning.files.os, "replace", full)
    assert main(ARGS) == 2
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert "lightning_logs/version_0/checkpoints/last.ckpt" in shown.splitlines()[-1]
    monkeypatch.setattr(dc_lightning.files.os, "replace", replace)
    assert main(shown.splitlines()[-1].split()[1:]) == 0
    assert_same(outcome(tmp_path), whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_really_is_full(whole, small_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(small_disk)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    filler = Path("filler")
    filler.write_bytes(bytes(2980 * 1024))
    assert main(ARGS) == 2
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    filler.unlink()
    assert main(shown.splitlines()[-1].split()[1:]) == 0
    assert_same(outcome(small_disk), whole)


def test_last_asks_for_a_checkpoint_and_auto_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    assert main([*ARGS, "--ckpt_path", "last"]) == 2
    assert "no checkpoints/last.ckpt below" in capsys.readouterr().err
    assert main([*ARGS, "--ckpt_path", "auto", "--trainer.max_epochs", "1"]) == 0


class Forgetful(torch.nn.Sequential):
    """A network that draws by itself."""

    def __init__(self, channels, num_classes, image_size):
        pixels = channels * image_size[0] * image_size[1]
        layers = [torch.nn.Flatten(), torch.nn.Linear(pixels, 16), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
        super().__init__(*layers, torch.nn.Linear(16, num_classes))


BATCH_NORM = '{"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "normalization": "batch"}}'


@pytest.mark.parametrize(
    ("network", "count"),
    some_slow(list(itertools.product(["test_resume.Forgetful", BATCH_NORM], [5, 9, 16])), [(BATCH_NORM, 9)]),
)
def test_networks_with_a_state_or_draws_of_their_own(network, count, tmp_path):
    """Killed between two steps of one outer iteration."""
    args = [*ARGS, "--model.network", network, "--evaluation.networks", "MLP", "--evaluation.every_n", "0"]
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    assert run(args, folders[0]) == 0
    assert run(args, folders[1], "after a checkpoint write", count) == -signal.SIGKILL
    assert run([*args, "--ckpt_path", "last"], folders[1]) == 0
    assert_same(outcome(folders[1]), outcome(folders[0]))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil-was-here",))


def test_a_checkpoint_that_would_run_code_or_is_cut_short_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    short = [*ARGS, "--trainer.max_epochs", "1", "--evaluation.every_n", "0"]
    assert main(short) == 0
    last = RUN / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    for share in (0.2, 0.9):
        last.write_bytes(content[: int(share * len(content))])
        assert main([*short, "--ckpt_path", str(last)]) == 2
        assert "is damaged" in capsys.readouterr().err
    torch.save({"state_dict": {"images": Evil()}}, last)
    assert main([*short, "--ckpt_path", str(last)]) == 2
    assert "run code" in capsys.readouterr().err
    assert not Path("evil-was-here").exists()


def test_a_resume_on_other_data_names_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    short = [*ARGS, "--trainer.max_epochs", "1", "--evaluation.every_n", "0"]
    assert main(short) == 0
    last = str(RUN / "checkpoints" / "last.ckpt")
    assert main([*short, "--data", "Digits", "--ckpt_path", last]) == 2
    assert "dataset was TinyData and is Digits" in capsys.readouterr().err


def test_a_resume_does_not_make_starting_images_again(tmp_path, monkeypatch):
    """They may take minutes of clustering, and those of the checkpoint take their place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    short = [*ARGS, "--evaluation.every_n", "0", "--trainer.max_epochs"]
    assert main([*short, "1"]) == 0
    monkeypatch.setattr(Condenser, "starting_images", lambda *_: pytest.fail("made again"))
    assert main([*short, "2", "--ckpt_path", "last"]) == 0


def test_the_configuration_of_a_resumed_run_starts_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    short = [*ARGS, "--trainer.max_epochs", "1", "--evaluation.every_n", "0"]
    assert main(short) == 0
    config = str(RUN / "config.yaml")
    assert main(["fit", "--config", config, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    before = (RUN / "results.json").read_bytes()
    assert main(["evaluate", "--config", config, "--synthetic", str(RUN / "synthetic.pt")]) == 0
    assert (RUN / "results.json").read_bytes() == before
    assert json.loads(Path("lightning_logs/version_1/results.json").read_text())["kind"] == "evaluation"
