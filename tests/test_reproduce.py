"""Tables of the paper: which cells they have, what runs them, and that nothing half-done passes for finished."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dc_lightning import load_synthetic
from dc_lightning.cli import main
from dc_lightning.experiments import paper, reproduce
from dc_lightning.experiments.paper import cells
from dc_lightning.run.results import write_results

TINY = (
    "--trainer.max_epochs 30 --trainer.accelerator cpu --data.batch_real 8 --evaluation.num_networks 1 "
    "--evaluation.recipe.epochs 2 --evaluation.whole_set_epochs 1 --checkpoint.last_every_seconds 0"
).split()
TWO_CELLS = ["reproduce", "T2", "--datasets", "Digits", "--rows", "ConvNetW32", "ConvNetW64", "--experiments", "1"]


def test_the_tables_have_the_papers_cells():
    assert len(cells("table1")) == 5 * 3 + 4 * 3 * 3
    six = ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11BN", "ResNet18BN_AP"]
    assert [cell.network for cell in cells("table2")] == six
    assert len(cells("T7")) == 18
    assert [len(cells(name)) for name in ("T2", "T3", "T4", "T5", "T6")] == [4, 4, 4, 3, 5]
    assert {cell.ipc for cell in cells("figure3")} == {10}
    assert {cell.network for cell in cells("table1", datasets=["Digits"])} == {"ConvNetD2"}  # their size
    assert {cell.name for cell in cells("figure2")} <= {cell.name for cell in cells("table1")}  # run once
    assert [cell.ipc for cell in cells("table1", "dsa", ["SVHN"], [20]) if cell.method == "dsa"] == [20]
    every = [cell for table in paper.TABLES for method in ("dc", "dsa", "dm") for cell in cells(table, method)]
    assert len({cell.name for cell in every}) == len(
        {(c.dataset, c.ipc, c.method, c.network, c.distance, c.pool) for c in every}
    )


def test_the_figures_are_those_of_the_protocols():
    assert paper.TABLE_1["FashionMNIST", 1, "DC"] == (70.5, 0.6)
    assert paper.TABLE_1["SVHN", 10, "k-center"] == (14.0, 1.3)
    assert paper.TABLE_1["CIFAR10", 50, "herding"] == (40.4, 0.6)
    assert paper.TABLE_1["FashionMNIST", 10, "DSA"] == (84.6, 0.3)
    assert paper.TABLE_1["CIFAR100", 50, "DM"] == (43.6, 0.4)
    assert ("FashionMNIST", 10, "DM") not in paper.TABLE_1  # its paper has none
    assert paper.TABLE_2["LeNet", "AlexNet"] == (84.7, 2.4)
    assert len(paper.TABLE_2) == 36


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9"], "T7"),
        (["table1", "--datasets", "ImageNet"], "FashionMNIST"),
        (["table1", "--rows", "magic"], "forgetting"),
        (["T7", "--rows", "VGG"], "VGG11BN"),
        (["table1", "--ipc", "0"], "at least 1"),
        (["table1", "--experiments", "0"], "at least 1"),
        (["table1", "--epochs", "3"], "--trainer.max_epochs"),
        (["table1", "--trainer.max_epochs"], "needs a value"),
        (["table1", "--model.ipc", "3"], "decided by the cells"),
        (["table1", "--model.init_args.ipc", "3"], "decided by the cells"),
        (["table1", "--config", "nowhere.yaml"], "no configuration file"),
        (["table1", "--dry-run", "--trainer.max_epochs", "abc"], "abc"),
        (["table1", "--dry-run", "--trainer.max_epocs", "3"], "Did you mean '--trainer.max_epochs'?"),
        (["table1", "--method", "dsaa"], "Did you mean 'dsa'?"),
        (["table1", "--modle", "my.Class"], "Did you mean '--model'?"),
        (["table1", "--model", "my.Class"], "write a YAML file that names your class"),
        ([], "TABLE"),
    ],
)
def test_bad_input_gets_one_sentence(words, said, capsys):
    assert main(["reproduce", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error:")
    assert said in shown
    assert len(shown.splitlines()) == 1


def test_a_dry_run_lists_the_cells(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main([*TWO_CELLS, "--dry-run", *TINY]) == 0
    shown = capsys.readouterr().out
    assert "Digits_ipc1_dc_ConvNetW32_W" in shown
    assert "0/1" in shown


@pytest.mark.slow
def test_an_estimate_is_by_iterations_of_the_command_itself(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    words = [*TWO_CELLS[:-3], "--experiments", "2", "--estimate", *TINY]
    assert main(words) == 0
    hours = [float(number) for number in re.findall(r"\d+\.\d\d", capsys.readouterr().out)]
    assert len(hours) == 3  # each, left, and all
    assert main([*words, "--trainer.max_epochs", "6000000"]) == 0
    longer = [float(number) for number in re.findall(r"\d+\.\d\d", capsys.readouterr().out)]
    assert longer[0] > 10  # 6 ms an iteration; the shorter run is 200,000 times as short
    assert hours[0] < 0.1
    assert longer[1:] == pytest.approx([2 * longer[0]] * 2, abs=0.02)
    assert not list(tmp_path.iterdir())


def start(folder, *more):
    path = f"{Path(__file__).parent.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = [sys.executable, "-m", "dc_lightning", *TWO_CELLS, "--output", "out", *TINY, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment, **pipes)


def wait_until_at_work(process, folder):
    """Until the checkpoint is from the middle of the run."""
    deadline = time.monotonic() + 300
    last = folder / "checkpoints/last.ckpt"
    while not last.is_file() or not torch.load(last, weights_only=True)["epoch"] > 2:
        assert time.monotonic() < deadline, "it hangs"
        assert process.poll() is None, "it ended before"
        time.sleep(0.1)


def children(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


@pytest.mark.slow
def test_a_table_that_is_killed_is_resumed_and_ends_the_same(tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole = start(folders[0])
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output

    process, second = start(folders[1]), folders[1] / "out/Digits_ipc1_dc_ConvNetW64_W/seed_0"
    wait_until_at_work(process, second)
    for pid in [process.pid, *children(process)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    first = folders[1] / "out/Digits_ipc1_dc_ConvNetW32_W/seed_0/results.json"
    done_before = first.stat().st_mtime_ns
    assert not reproduce.is_finished(second)
    again = start(folders[1])
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "Digits_ipc1_dc_ConvNetW32_W, seed 0: is there" in output
    assert first.stat().st_mtime_ns == done_before
    iterations = [int(number) for number in re.findall(r"outer iteration (\d+)/30", output)]
    assert min(iterations) > 2  # it did not start anew
    for cell in ("ConvNetW32", "ConvNetW64"):
        ours, theirs = (folder / f"out/Digits_ipc1_dc_{cell}_W/seed_0" for folder in folders)
        assert torch.equal(*(load_synthetic(path / "synthetic.pt")[0].images for path in (ours, theirs)))
        columns = [json.loads((path / "results.json").read_text())["columns"] for path in (ours, theirs)]
        assert columns[0] == columns[1]
        assert [score["network"] for score in columns[0][0]["scores"]] == [f"ConvNetW{w}" for w in (32, 64, 128, 256)]
        for name in ("config.yaml", "synthetic.png"):
            assert (ours / name).is_file()
    report = ["report", str(folders[1] / "out"), "--output", str(tmp_path / "report")]
    assert main(report) == 0
    assert "30 iterations, batch_real 8" in (tmp_path / "report/report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_run_which_saves(signum, tmp_path):
    process, first = start(tmp_path), tmp_path / "out/Digits_ipc1_dc_ConvNetW32_W/seed_0"
    wait_until_at_work(process, first)
    (child,) = children(process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signum
    assert "the same command continues" in output
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert "the run is saved" in (first / "errors.txt").read_text()


@pytest.mark.slow
def test_a_cell_at_which_another_process_is_still_at_work_is_left_alone(tmp_path):
    process = start(tmp_path, "--trainer.max_epochs", "100000")
    first = tmp_path / "out/Digits_ipc1_dc_ConvNetW32_W/seed_0"
    wait_until_at_work(process, first)
    (orphan,) = children(process)
    process.kill()
    process.wait()  # its child has the pipe and continues
    again = start(tmp_path, "--trainer.max_epochs", "100000", "--rows", "ConvNetW32")
    output, _ = again.communicate(timeout=300)
    os.kill(orphan, signal.SIGKILL)
    process.stdout.close()
    assert again.returncode == 1
    assert "another process is at work on it" in output


@pytest.fixture
def fake_runs(tmp_path, monkeypatch):
    """Cells that are run by a function of the test's; gives what it was asked to run."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def run(command, errors):
        asked.append(command)
        errors.write_text("")
        folder = errors.parent
        if "ConvNetW64" in command and not (tmp_path / "repaired").exists():
            errors.write_text("warning\nerror: there is a hole in the bucket.\n")
            return 2
        score = {"network": "ConvNet", "accuracies": [0.5], "seeds": [1], "epochs": 300, "augmentation": []}
        write_results(folder / "results.json", {"columns": [{"name": "DC", "scores": [score]}]})
        return 0

    monkeypatch.setattr(reproduce, "_subprocess", run)
    return asked


def test_a_failed_cell_is_named_at_the_end_and_does_not_stop_the_rest(fake_runs, tmp_path, capsys):
    words = ["reproduce", "T2", "--experiments", "1", "--output", "out", "--trainer.max_epochs", "3"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "1 of 4 failed" in shown.err
    assert "MNIST_ipc1_dc_ConvNetW64_W, seed 0: exit code 2: error: there is a hole" in shown.err.splitlines()[-1]
    assert len(fake_runs) == 4
    assert all("--trainer.max_epochs 3" in " ".join(command) for command in fake_runs)
    (tmp_path / "repaired").touch()
    assert main(words) == 0
    assert len(fake_runs) == 5  # the failed one alone is run again


def test_a_half_written_result_is_run_again(fake_runs, tmp_path):
    words = ["reproduce", "T2", "--experiments", "1", "--output", "out", "--rows", "ConvNetW32"]
    assert main(words) == 0
    results = tmp_path / "out/MNIST_ipc1_dc_ConvNetW32_W/seed_0/results.json"
    whole = results.read_text()
    for broken in ("", whole[:50], '{"format": "something else", "columns": []}'):
        results.write_text(broken)
        before = len(fake_runs)
        assert main(words) == 0
        assert len(fake_runs) == before + 1


def test_other_settings_in_the_same_folder_are_named(fake_runs, capsys):
    words = ["reproduce", "T2", "--experiments", "1", "--output", "out", "--rows", "ConvNetW32"]
    assert main([*words, "--trainer.max_epochs", "200"]) == 0
    assert main([*words, "--trainer.max_epochs", "200", "--trainer.devices", "2", "--data.root", "elsewhere"]) == 0
    assert main(words) == 1
    assert "trainer.max_epochs was 200, is not given" in capsys.readouterr().err
    assert len(fake_runs) == 1


def test_a_checkpoint_is_resumed(fake_runs, tmp_path):
    words = ["reproduce", "T2", "--experiments", "1", "--output", "out", "--rows", "ConvNetW32"]
    last = tmp_path / "out/MNIST_ipc1_dc_ConvNetW32_W/seed_0/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert main(words) == 0
    assert fake_runs[0][-2:] == ["--ckpt_path", str(last.relative_to(tmp_path))]


def test_a_changed_configuration_file_is_another_setting(fake_runs, tmp_path, capsys):
    words = [
        "reproduce",
        "T2",
        "--experiments",
        "1",
        "--output",
        "out",
        "--rows",
        "ConvNetW32",
        "--config",
        "mine.yaml",
    ]
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 3}")
    assert main(words) == 0
    assert main(words) == 0
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 4}")
    assert main(words) == 1
    assert "mine.yaml" in capsys.readouterr().err
    assert fake_runs[0][1:5:2] == ["--config", "--config"]  # the method's and this, before what the cell decides
    assert fake_runs[0][4] == "mine.yaml"


def test_a_dataset_of_ones_own_has_all_cells():
    assert len(cells("table1", "dc", ["my.Data"])) == 12
    assert len(cells("figure2", "dc", ["my.Data"])) == 1


def test_the_configuration_of_a_cell_does_not_overwrite_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])
    words = [
        "fit",
        "--data",
        "conftest.TinyData",
        "--model.network",
        "MLP",
        "--trainer.logger.version",
        "seed_0",
        *TINY,
    ]
    assert main([*words, "--trainer.max_epochs", "1"]) == 0
    folder = tmp_path / "lightning_logs/seed_0"
    before = (folder / "results.json").read_bytes()
    given = ["--config", str(folder / "config.yaml"), "--synthetic", str(folder / "synthetic.pt")]
    assert main(["evaluate", *given]) == 2
    assert "holds the results of another run" in capsys.readouterr().err
    assert (folder / "results.json").read_bytes() == before
    assert main(["evaluate", *given, "--trainer.logger.version", "again"]) == 0


def test_what_bears_on_speed_alone_may_change_between_two_runs(fake_runs):
    words = ["reproduce", "table1", "--datasets", "SVHN", "--ipc", "10", "--rows", "DC", "--experiments", "1"]
    assert main(words) == 0
    assert main([*words, "--compile", "true", "--model.real_chunk_size", "8", "--checkpoint.every_n", "5"]) == 0
    assert main([*words, "--trainer.max_epochs", "8"]) == 1


def test_selections_and_the_upper_bound_are_cells_too(fake_runs):
    assert main(["reproduce", "table1", "--datasets", "SVHN", "--ipc", "10", "--experiments", "2"]) == 0
    kinds = [command[0] for command in fake_runs]
    assert kinds == ["fit"] * 2 + ["select"] * 6
    seeds = [command[command.index("--seed_everything") + 1] for command in fake_runs]
    assert seeds == ["0", "1"] * 4
    whole = [command for command in fake_runs if "[whole set]" in command]
    methods = [command[command.index("--method") + 1] for command in whole]
    assert methods == ["herding"] * 2 + ["k-center"] * 2 + ["forgetting"] * 2
    assert sum("[random, whole set]" in command for command in fake_runs) == 2
