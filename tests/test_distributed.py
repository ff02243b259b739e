"""Several processes end with what one process ends with; gloo on the CPU."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from children import RUN, context, run
from conftest import TinyData, some_slow
from test_resume import ARGS, assert_same, outcome

from dc_lightning.synthetic import load_synthetic

pytestmark = pytest.mark.distributed

SMALL = '{"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}'
SMALL_BN = (
    '{"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8, "normalization": "batch"}}'
)
FORK = ["--trainer.strategy", "ddp_fork", "--trainer.devices"]


class FailsOnRank(TinyData):
    """One process fails when it has worked for a while, in a matching step or in an evaluation."""

    def __init__(self, rank, in_evaluation=False):
        super().__init__()
        self.failing, self.in_evaluation = rank, in_evaluation

    def fail(self):
        if self.trainer.global_rank == self.failing and self.trainer.current_epoch == 4:
            raise RuntimeError(f"rank {self.failing} has a problem of its own")

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        if not self.in_evaluation:
            self.fail()
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def test_dataloader(self):
        self.fail()
        return super().test_dataloader()


class SlowToTest(TinyData):
    """The first process takes longer to test than the others wait in a collective of Lightning's."""

    seconds = 8

    def test_dataloader(self):
        if self.trainer.global_rank == 0:
            time.sleep(self.seconds)
        return super().test_dataloader()


class NotesNetworks(pl.Callback):
    """Writes down what every rank's network looks like after every step and its inner loop."""

    def on_train_batch_end(self, trainer, module, *_):
        network = module.network
        total = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
        with open(f"network_{trainer.global_rank}.txt", "a") as file:
            file.write(f"{trainer.current_epoch} {total!r}\n")


def results(folder, version=0):
    run_folder = folder / f"lightning_logs/version_{version}"
    found = json.loads((run_folder / "results.json").read_text())
    return load_synthetic(run_folder / "synthetic.pt")[0].images, found["columns"], found["history"]


@pytest.mark.parametrize("network", some_slow(["MLP", SMALL_BN], ["MLP"]), ids=["MLP", "BatchNorm"])
def test_processes_that_do_not_divide_the_classes_or_outnumber_them(network, tmp_path):
    """36 matching steps with their inner loops, an evaluation every four iterations; three classes."""
    found = {}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        devices = [*FORK, str(size)] if size > 1 else []
        notes = ["--trainer.callbacks", "test_distributed.NotesNetworks"]
        assert run([*ARGS, "--model.network", network, *devices, *notes], folder) == 0
        assert [path.name for path in (folder / "lightning_logs").iterdir()] == ["version_0"]
        found[size] = results(folder)
        networks = {path.read_text() for path in folder.glob("network_*.txt")}
        assert len(list(folder.glob("network_*.txt"))) == size
        assert len(networks) == 1
        assert len(networks.pop().splitlines()) == 36
    for size in (2, 4):
        assert float((found[size][0] - found[1][0]).abs().max()) <= 1e-5
        assert found[size][1:] == found[1][1:]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("2", "2"), ("2", "1"), ("1", "2")])
def test_killed_and_resumed(before, after, tmp_path):
    (tmp_path / "whole").mkdir()
    assert run([*ARGS, *FORK, "2"], tmp_path / "whole") == 0
    devices = [[*FORK, size] if size == "2" else [] for size in (before, after)]
    process = context.Process(target=in_a_group, args=([*ARGS, *devices[0]], str(tmp_path)))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / RUN / "checkpoints/iteration_000004.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join(60)
    assert run([*ARGS, *devices[1], "--ckpt_path", "last"], tmp_path) == 0
    found, expected = outcome(tmp_path), outcome(tmp_path / "whole")
    if before == after:
        assert_same(found, expected)
    else:  # sums over classes are rounded in another order
        assert float((found[0] - expected[0]).abs().max()) <= 1e-5
        assert found[1:3] == expected[1:3]  # accuracies
        curves, expected_curves = found[3], expected[3]
        assert curves.keys() == expected_curves.keys()
        for name, curve in curves.items():
            assert [step for step, _ in curve] == [step for step, _ in expected_curves[name]]
            assert [value for _, value in curve] == pytest.approx([v for _, v in expected_curves[name]], rel=1e-5)


@pytest.mark.parametrize(
    ("where", "count"),
    some_slow(
        [("inside an evaluation", count) for count in (1, 2, 3, 4)]  # on both processes: of five networks each
        + [("inside a checkpoint write", count) for count in (2, 9, 38)]  # on the first: of 38
        + [("after a checkpoint write", count) for count in (1, 9, 38)],
        [("inside a checkpoint write", 9)],
    ),
)
def test_two_processes_killed_there(where, count, two_processes, tmp_path):
    assert run([*ARGS, *FORK, "2"], tmp_path, where, count) != 0
    assert run([*ARGS, *FORK, "2", "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), two_processes)


def test_forked_processes_evaluate_a_saved_set(two_processes_folder, tmp_path):
    path = str(two_processes_folder / RUN / "synthetic.pt")
    same = "--data conftest.TinyData --trainer.accelerator cpu --evaluation.num_networks 2 --evaluation.recipe.epochs 4"
    words = ["evaluate", *same.split(), "--evaluation.networks", "MLP", "--synthetic", path, *FORK, "2"]
    assert run(words, tmp_path) == 0
    found = json.loads((tmp_path / RUN / "results.json").read_text())
    expected = json.loads((two_processes_folder / RUN / "results.json").read_text())
    assert found["columns"] == expected["columns"]
    assert (tmp_path / RUN / "config.yaml").is_file()


@pytest.fixture(scope="module")
def two_processes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert run([*ARGS, *FORK, "2"], folder) == 0
    return folder


@pytest.fixture(scope="module")
def two_processes(two_processes_folder):
    return outcome(two_processes_folder)


@pytest.mark.slow
def test_processes_that_find_other_checkpoints_say_so(tmp_path):
    """Two machines without a shared folder: the one has a run to resume, the other has none."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    assert run(ARGS, folders[0]) == 0
    job, port = ["dc_lightning", *ARGS, *TWO_NODES, "--ckpt_path", "auto"], free_port()
    nodes = [
        start(
            job,
            folder,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            NODE_RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE="2",
        )
        for rank, folder in enumerate(folders)
    ]
    for code, output in [finish(node) for node in nodes]:
        assert code == 2, output
        assert "must resume from one checkpoint" in output


def in_a_group(args, folder):
    from children import child

    os.setpgid(0, 0)
    child(args, folder, "", 0)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start(command, folder, **environment):
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_line(process, text, seconds=120):
    """Reads the output of a process up to a line with a text; kills it where that does not come in time."""
    killer = threading.Timer(seconds, process.kill)
    killer.start()
    try:
        assert any(text in line for line in process.stdout), f"'{text}' did not come"
    finally:
        killer.cancel()


def finish(process, timeout=180):
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"it hangs:\n{output}")
    return process.returncode, output


TWO_NODES = ["--trainer.strategy", "ddp", "--trainer.devices", "1", "--trainer.num_nodes", "2"]
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
COMPILED = ["--compile", "true"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert run(ARGS, folder) == 0
    return results(folder)


def assert_is(folder, expected):
    images, *rest = results(folder)
    assert float((images - expected[0]).abs().max()) <= 1e-5
    assert rest == list(expected[1:])


@pytest.mark.slow
def test_two_processes_from_the_command_line_and_their_evaluation(one_process, tmp_path):
    code, output = finish(start(["dc_lightning", *ARGS, *DDP], tmp_path))
    assert code == 0, output
    assert output.count("test network") == 1
    assert_is(tmp_path, one_process)
    data, path = ["--data", "conftest.TinyData", "--trainer.accelerator", "cpu"], str(RUN / "synthetic.pt")
    same = ["--evaluation.num_networks", "2", "--evaluation.recipe.epochs", "4", "--evaluation.networks", "MLP"]
    code, output = finish(start(["dc_lightning", "evaluate", *data, *same, "--synthetic", path, *DDP], tmp_path))
    assert code == 0, output
    again = json.loads((tmp_path / "lightning_logs/version_1/results.json").read_text())
    for column, expected in zip(again["columns"], one_process[1], strict=True):
        assert column["scores"][0]["accuracies"] == expected["scores"][0]["accuracies"]
    assert again["processes"] == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_networks_on_two_processes(tmp_path):
    found = {}
    job = ["dc_lightning", *ARGS, "--model.network", SMALL, "--evaluation.every_n", "0"]
    for name, options in {"one": COMPILED, "two": [*DDP, *COMPILED], "plain": []}.items():
        (tmp_path / name).mkdir()
        code, output = finish(start([*job, *options], tmp_path / name))
        assert code == 0, output
        found[name] = results(tmp_path / name)[0]
    assert not torch.equal(found["one"], found["plain"])  # it was compiled
    torch.testing.assert_close(found["two"], found["one"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["two"], found["plain"], atol=2e-3, rtol=0)


@pytest.mark.slow
def test_two_nodes_by_torchrun(one_process, tmp_path):
    port = free_port()
    launch = ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1"]
    job = ["-m", "dc_lightning", *ARGS, *TWO_NODES]
    nodes = [start([*launch, "--master_port", port, "--node_rank", str(rank), *job], tmp_path) for rank in range(2)]
    for code, output in [finish(node) for node in nodes]:
        assert code == 0, output
    assert_is(tmp_path, one_process)


@pytest.mark.slow
def test_two_nodes_by_slurm(one_process, tmp_path):
    job = ["dc_lightning", *ARGS, *TWO_NODES]
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NAME": "condense",
        "SLURM_JOB_ID": "1",
        "SLURM_NNODES": "2",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    tasks = [
        start(job, tmp_path, **common, SLURM_PROCID=str(rank), SLURM_LOCALID="0", SLURM_NODEID=str(rank))
        for rank in range(2)
    ]
    for code, output in [finish(task) for task in tasks]:
        assert code == 0, output
    assert_is(tmp_path, one_process)


@pytest.mark.slow
def test_the_warning_of_slurm_stops_after_a_whole_step(tmp_path):
    one_task = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "condense", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}
    long = [*ARGS, "--evaluation.every_n", "0", "--trainer.max_epochs", "2000"]
    process = start(["dc_lightning", *long], tmp_path, **one_task, SLURM_LOCALID="0", SLURM_NODEID="0")
    wait_for_line(process, "outer iteration 100/")
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process, timeout=180)
    assert code == 128 + signal.SIGUSR1, output
    assert "the run is saved" in output
    assert not list(tmp_path.glob("hpc_ckpt*"))


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "in_evaluation"), [("0", "true"), ("1", "false")])
def test_an_error_on_one_rank_ends_all_with_that_error(rank, in_evaluation, tmp_path):
    failing = ["--data", "test_distributed.FailsOnRank", "--data.rank", rank, "--data.in_evaluation", in_evaluation]
    code, output = finish(start(["dc_lightning", *ARGS, *DDP, *failing], tmp_path), timeout=180)
    assert code not in (0, None)
    assert f"rank {rank} has a problem of its own" in output


@pytest.mark.slow
def test_bad_input_is_said_once(tmp_path):
    code, output = finish(start(["dc_lightning", *ARGS, *DDP, "--model.network", "VGG11"], tmp_path), timeout=180)
    assert code == 2
    assert output.count("VGG11 cannot take images of 1x6x6") == 1, output


@pytest.mark.slow
def test_a_signal_to_the_first_process_stops_all_and_saves(one_process, tmp_path):
    args = [*ARGS, "--evaluation.every_n", "0", "--model.lr_images_cooldown", "0"]  # which looks ahead to the end
    process = start(["dc_lightning", *args, *DDP, "--trainer.max_epochs", "2000"], tmp_path)
    wait_for_line(process, "outer iteration 100/")
    process.send_signal(signal.SIGTERM)
    code, output = finish(process, timeout=180)
    assert code == 128 + signal.SIGTERM, output
    assert "Stopped by" in output
    saved = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] >= 99
    ahead = [*args, "--trainer.max_epochs", str(saved["epoch"] + 2)]
    assert run([*ahead, "--ckpt_path", "last"], tmp_path) == 0
    (tmp_path / "whole").mkdir()
    assert run(ahead, tmp_path / "whole") == 0
    assert_is(tmp_path, results(tmp_path / "whole"))


@pytest.mark.slow
def test_a_signal_inside_an_evaluation_of_two_processes(one_process, tmp_path):
    process = start(["dc_lightning", *ARGS, *DDP, "--evaluation.recipe.epochs", "100000"], tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / RUN / "images").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process, timeout=180)
    assert code == 128 + signal.SIGTERM, output
    assert "Resume with" in output
    assert run([*ARGS, "--ckpt_path", "last"], tmp_path) == 0
    assert_is(tmp_path, one_process)


@pytest.mark.slow
def test_an_evaluation_may_outlast_the_time_out_of_the_processes(tmp_path):
    settings = '{"start_method": "fork", "timeout": "0:00:04"}'
    strategy = f'{{"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {settings}}}'
    args = [*ARGS, "--trainer.devices", "2", "--trainer.strategy", strategy, "--data", "test_distributed.SlowToTest"]
    one = ["--evaluation.num_networks", "1", "--evaluation.every_n", "0", "--evaluation.baselines", "[]"]
    assert run([*args, *one], tmp_path) == 0  # without the longer time-out the other process gives up
