"""Lightning's switches are obeyed or refused, a run has one folder, every logger every curve, labels are the items'."""

import csv
import inspect
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import TinyData
from curves import read_curves
from rich.console import Console

import dc_lightning
from dc_lightning import CondensationModule, InputError, SyntheticSet
from dc_lightning.cli import main
from dc_lightning.data import TorchDataset
from dc_lightning.evaluation import Score
from dc_lightning.run.results import Column, print_table

FAST = (
    "fit --data conftest.TinyData --model.network MLP --trainer.max_epochs 2 --evaluation.num_networks 1 "
    "--evaluation.recipe.epochs 2 --evaluation.every_n 0 --evaluation.baselines [] --trainer.accelerator cpu"
).split()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])


@pytest.mark.parametrize("words", ["fit --model.network LeNet", "evaluate --synthetic nothing.pt"])
def test_a_start_that_fails_leaves_no_folder(words, capsys):
    assert main([*words.split(), "--data", "conftest.TinyData", "--trainer.accelerator", "cpu"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not [path for path in Path().rglob("*") if path.is_file()]


# What each argument of the Trainer does here: words that show it, and the exit code; None is tested elsewhere or by
# the machine at hand (accelerators, several processes, profilers of a device)
SWITCHES = {
    "accelerator": (["cpu"], 0),
    "strategy": (["ddp_spawn"], 2),
    "devices": (["1"], 0),
    "num_nodes": (["1"], 0),
    "precision": (["64-true"], 0),
    "logger": (["false"], 0),
    "callbacks": (["ModelSummary"], 0),
    "fast_dev_run": (["true"], 0),
    "max_epochs": (["1"], 0),
    "min_epochs": (["1"], 0),
    "max_steps": (["3"], 2),
    "min_steps": (["3"], 2),
    "max_time": (["00:00:00:30"], 0),
    "limit_train_batches": (["0"], 2),
    "limit_val_batches": (["3"], 2),
    "limit_test_batches": (["3"], 2),
    "limit_predict_batches": (["3"], 2),
    "overfit_batches": (["5"], 2),
    "val_check_interval": (["2"], 2),
    "check_val_every_n_epoch": (["2"], 2),
    "num_sanity_val_steps": (["1"], 2),
    "log_every_n_steps": (["5"], 2),
    "enable_checkpointing": (["false"], 2),
    "enable_progress_bar": (["false"], 0),
    "enable_model_summary": (["true"], 0),
    "accumulate_grad_batches": (["2"], 2),
    "gradient_clip_val": (["1.0"], 2),
    "gradient_clip_algorithm": (["norm"], 2),
    "deterministic": (["true"], 0),
    "benchmark": (["true"], 0),
    "inference_mode": (["false"], 0),
    "use_distributed_sampler": (["false"], 0),
    "profiler": (["simple"], 0),
    "detect_anomaly": (["true"], 0),
    "barebones": (["true"], 2),
    "plugins": None,
    "sync_batchnorm": (["true"], 2),
    "reload_dataloaders_every_n_epochs": (["1"], 2),
    "default_root_dir": (["elsewhere"], 0),
    "enable_autolog_hparams": (["true"], 0),
    "model_registry": None,
}


def test_every_argument_of_the_trainer_is_known():
    assert set(SWITCHES) == set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", [name for name, case in SWITCHES.items() if case])
def test_switches_work_or_are_refused_in_a_sentence(name, capsys):
    words, code = SWITCHES[name]
    assert main([*FAST, f"--trainer.{name}", *words]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == (code == 2)
    results = [*Path().glob("**/results.json")]
    assert len(results) == (code == 0 and name != "fast_dev_run")
    if name == "default_root_dir":
        assert results == [Path("elsewhere/lightning_logs/version_0/results.json")]


def test_a_fast_dev_run_writes_nothing(capsys):
    Path("synthetic.pt").write_text("keep")
    assert main([*FAST, "--trainer.fast_dev_run", "true", "--evaluation.num_networks", "20"]) == 0
    assert [path.name for path in Path().iterdir()] == ["synthetic.pt"]
    assert Path("synthetic.pt").read_text() == "keep"
    said = capsys.readouterr().out
    assert "nothing was written" in said
    assert "(n=1)" in said


# Likewise for the callbacks: init_args, and the exit code; None has abstract methods
CALLBACKS = {
    "BackboneFinetuning": ({}, 2),
    "BaseFinetuning": None,
    "BasePredictionWriter": ({}, 2),
    "BatchSizeFinder": ({}, 2),
    "Callback": ({}, 0),
    "Checkpoint": ({}, 0),
    "DeviceStatsMonitor": ({}, 0 if find_spec("psutil") else 2),
    "EMAWeightAveraging": ({}, 2),
    "EarlyStopping": ({"monitor": "matching_loss", "patience": 0, "mode": "max"}, 0),
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, 2),
    "LambdaCallback": ({}, 0),
    "LearningRateFinder": ({}, 2),
    "LearningRateMonitor": ({}, 0),
    "ModelCheckpoint": ({"dirpath": "others"}, 0),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, 2),
    "ModelSummary": ({}, 0),
    "OnExceptionCheckpoint": ({"dirpath": "others"}, 2),
    "ProgressBar": ({}, 0),
    "RichModelSummary": ({}, 0),
    "RichProgressBar": ({}, 0),
    "SpikeDetection": ({}, 2),
    "StochasticWeightAveraging": ({"swa_lrs": 0.1}, 2),
    "TQDMProgressBar": ({}, 0),
    "ThroughputMonitor": ({"batch_size_fn": "builtins.len"}, 2),
    "Timer": ({"duration": "00:00:10:00"}, 2),
    "WeightAveraging": ({}, 2),
}


def test_every_callback_of_lightning_is_known():
    assert set(CALLBACKS) == set(pl.callbacks.__all__)


@pytest.mark.parametrize("name", [name for name, case in CALLBACKS.items() if case])
@pytest.mark.filterwarnings("ignore:.*Unable to serialize instance.*")
def test_callbacks_work_or_are_refused_in_a_sentence(name, capsys):
    arguments, code = CALLBACKS[name]
    given = json.dumps({"class_path": f"pytorch_lightning.callbacks.{name}", "init_args": arguments})
    assert main([*FAST, "--trainer.max_epochs", "5", f"--trainer.callbacks+={given}"]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == (code == 2)
    assert all(f"The callback {name} " in line for line in said)
    results = [json.loads(path.read_text()) for path in Path().glob("**/results.json")]
    assert len(results) == (code == 0)
    if name == "EarlyStopping":
        assert results[0]["source"]["iteration"] < 5
    if name == "LearningRateMonitor":
        assert read_curves("lightning_logs/version_0")[0]["lr-SGD"]
    if name == "ModelCheckpoint":
        assert list(Path("others").glob("*.ckpt"))


@pytest.mark.parametrize("epochs", ["100000", "-1"])
def test_a_run_that_time_ended_says_so_and_how_to_resume(epochs, capsys):
    long = ["--model.outer_steps", "30", "--model.inner_epochs", "1"]
    assert main([*FAST, *long, "--trainer.max_epochs", epochs, "--trainer.max_time", "00:00:00:01"]) == 0
    said = capsys.readouterr().out
    assert "Stopped by trainer.max_time after" in said
    command = next(line for line in said.splitlines() if "--ckpt_path" in line).split()
    checkpoint = torch.load(command[command.index("--ckpt_path") + 1], weights_only=True)
    done = checkpoint["epoch"]
    assert checkpoint["global_step"] == 30 * done  # the time ended within an outer iteration, which was completed
    assert len([line for line in said.splitlines() if line.startswith("outer iteration")]) < 25
    assert main([*command[1:], "--trainer.max_epochs", str(done + 3)]) == 0
    assert f"outer iteration {done + 3}/{done + 3}" in capsys.readouterr().out


def test_several_loggers_are_resumed_in_the_folder_of_the_first(capsys, monkeypatch):
    words = [*FAST, "--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "~/csv"]
    words += ["--trainer.default_root_dir", "runs"]
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    assert main(words) == 0
    assert Path("runs/lightning_logs/version_0/results.json").is_file()
    assert Path("home/csv/lightning_logs/version_0/metrics.csv").is_file()
    assert main([*words, "--trainer.max_epochs", "3", "--ckpt_path", "auto"]) == 0
    assert "outer iteration 3/3" in capsys.readouterr().out
    assert json.loads(Path("runs/lightning_logs/version_0/results.json").read_text())["source"]["iteration"] == 3
    assert [path.name for path in Path("runs/lightning_logs").iterdir()] == ["version_0"]


def test_a_bare_fit_takes_a_network_of_the_digits_size_unless_one_is_named():
    short = ["--trainer.max_epochs", "1", "--evaluation.num_networks", "1", "--evaluation.recipe.epochs", "1"]
    short += ["--evaluation.every_n", "0", "--evaluation.baselines", "[]", "--trainer.accelerator", "cpu"]
    for words, network in (([], "ConvNetD2"), (["--model.network.class_path", "conftest.TinyNet"], "conftest.TinyNet")):
        assert main(["fit", *short, *words]) == 0
        newest = max(Path().glob("**/results.json"), key=lambda path: path.stat().st_mtime_ns)
        assert json.loads(newest.read_text())["columns"][0]["scores"][0]["network"] == network


LOGGERS = {
    "none": ["--trainer.logger", "false"],
    "CSV": ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"],
    "TensorBoard and CSV": ["--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "csv"],
    "TensorBoard": [],
}


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_has_one_folder_of_its_own_and_is_resumed_there(name, capsys):
    words = [*FAST, *LOGGERS[name]]
    assert main(words) == 0
    (results,) = Path().glob("**/results.json")
    folder = results.parent
    for file in ("synthetic.pt", "synthetic.png", "checkpoints/last.ckpt", "config.yaml"):
        assert (folder / file).is_file(), file
    first = results.read_text()
    assert main(words) == 0
    assert results.read_text() == first
    assert len(list(Path().glob("**/results.json"))) == 2
    config, last = str(folder / "config.yaml"), str(folder / "checkpoints/last.ckpt")
    assert main(["fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", "4"]) == 0
    assert len(list(Path().glob("**/results.json"))) == 2
    assert json.loads(results.read_text())["source"]["iteration"] == 4
    if name == "CSV":
        rows = [*csv.DictReader(io.StringIO((folder / "metrics.csv").read_text()))]
        assert [int(row["step"]) for row in rows if row["matching_loss"]] == [1, 2, 3, 4]


def test_every_logger_gets_every_curve():
    assert main([*FAST, *LOGGERS["CSV"], "--evaluation.every_n", "1"]) == 0
    with Path("csv/lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for curve, steps in {"matching_loss": [1, 2], "accuracy/MLP": [0, 1, 2], "accuracy_std/MLP": [0, 1, 2]}.items():
        assert sorted(int(row["step"]) for row in rows if row.get(curve)) == steps
    assert any(row.get("final/DC/MLP") for row in rows)
    assert "ipc" in Path("csv/lightning_logs/version_0/hparams.yaml").read_text()


class Noted(pl.loggers.logger.DummyLogger):
    """Takes pictures, as Weights & Biases does; its folder is named by project and id; settings stay, as in MLflow."""

    name, version, save_dir = "project", "abc", "noted"
    seen: list = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.settings = {}

    def log_hyperparams(self, params):
        changed = [name for name in params if self.settings.setdefault(name, params[name]) != params[name]]
        assert not changed

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, *metrics))

    def log_image(self, key, images, step=None):
        assert all(Path(image).is_file() for image in images)
        self.seen.append((step, key))


def test_a_logger_of_another_kind():
    Noted.seen.clear()
    trainer = pl.Trainer(
        max_epochs=2,
        logger=Noted(),
        callbacks=[dc_lightning.EvaluationCallback(num_networks=1, baselines=[], recipe=dc_lightning.Recipe(epochs=1))],
        accelerator="cpu",
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(CondensationModule(network="MLP"), datamodule=TinyData())
    assert {"dataset", "lr_images", "network"} <= {*trainer.logger.settings}
    assert (2, "matching_loss") in Noted.seen
    assert (2, "synthetic images") in Noted.seen
    assert any("accuracy/MLP" in seen for seen in Noted.seen)
    assert Path("noted/project/abc/results.json").is_file()


def test_tilde_and_variables_in_paths_are_replaced_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    for given, expected in (("~/runs", "home/runs"), ("$SCRATCH/runs", "scratch/runs")):
        words = [*FAST, f"--trainer.default_root_dir={given}", "--evaluation.baselines", "[whole set]"]
        words += ["--evaluation.whole_set_epochs", "1", f"--evaluation.cache={given}/cache"]
        assert main(words) == 0
        folder = Path(expected, "lightning_logs/version_0")
        assert {path.name for path in folder.glob("**/*") if path.name in ("last.ckpt", "results.json")} == {
            "last.ckpt",
            "results.json",
        }
        assert list(Path(expected, "cache").glob("*.pt"))
        assert main([*words, "--trainer.max_epochs", "3", "--ckpt_path", "auto"]) == 0
        assert json.loads((folder / "results.json").read_text())["source"]["iteration"] == 3
    assert {path.name for path in Path().iterdir()} == {"home", "scratch"}


def test_other_commands_replace_them_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["fit", "--data", "HuggingFace", "--data.path=~/hf"]) == 2
    assert f"'{tmp_path / 'home/hf'}' is no dataset" in capsys.readouterr().err
    assert main([*FAST, "--trainer.default_root_dir=~/runs"]) == 0
    assert main(["report", "~/runs", "--output=~/report"]) == 0
    assert main(["export", "~/runs/lightning_logs/version_0", "~/images"]) == 0
    assert {path.name for path in Path("home").iterdir()} == {"runs", "report", "images"}


def contents(folder):
    """Everything below a folder, and what every file holds."""
    return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


def test_a_run_never_overwrites_the_results_of_another(capsys):
    words = [*FAST, "--trainer.logger.version", "mine"]
    assert main(words) == 0
    before = contents("lightning_logs/mine")
    score = ["evaluate", *words[1:], "--synthetic", "lightning_logs/mine/synthetic.pt"]
    for again in ([*words, "--model.ipc", "2"], score):
        assert main(again) == 2
        assert "'lightning_logs/mine' holds the results of another run" in capsys.readouterr().err
        assert contents("lightning_logs/mine") == before
    assert main([*words, "--trainer.max_epochs", "3", "--ckpt_path", "lightning_logs/mine/checkpoints/last.ckpt"]) == 0
    results = Path("lightning_logs/mine/results.json")
    assert results.read_bytes() != before[results]


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_resume_that_is_refused_leaves_the_run_as_it_was(logger, capsys):
    words = [*FAST, "--trainer.logger", logger, "--trainer.logger.save_dir", ".", "--trainer.logger.version", "mine"]
    words += ["--checkpoint.every_n", "1"]
    assert main(words) == 0
    before = contents(".")
    resume = [*words, "--ckpt_path", "lightning_logs/mine/checkpoints/iteration_000001.ckpt"]
    other_split = ["--evaluation.split", "validation", "--data.validation", "0.5"]
    no_end = ["--model.lr_images_cooldown", "0.5", "--trainer.max_epochs", "-1"]
    for refused in (["--model.ipc", "2"], other_split, no_end, ["--model.network", "Linear"]):
        assert main([*resume, *refused]) == 2
        assert "error: " in capsys.readouterr().err
        assert contents(".") == before
    assert main([*resume, "--trainer.max_epochs", "3"]) == 0
    assert contents(".").keys() > before.keys()


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_run_from_python_overwrites_nothing_and_is_resumed():
    def fit(iterations, **kwargs):
        evaluation = dc_lightning.EvaluationCallback(num_networks=1, baselines=[], recipe=dc_lightning.Recipe(epochs=1))
        trainer = pl.Trainer(
            max_epochs=iterations,
            logger=pl.loggers.TensorBoardLogger(".", version="mine"),
            callbacks=[evaluation, dc_lightning.Checkpoints()],
            accelerator="cpu",
            enable_progress_bar=False,
            log_every_n_steps=1,
        )
        trainer.fit(CondensationModule(network="MLP"), datamodule=TinyData(), **kwargs)
        return json.loads(Path("lightning_logs/mine/results.json").read_text())["source"]["iteration"]

    assert fit(1) == 1
    with pytest.raises(InputError, match="holds the results of another run"):
        fit(2)
    assert fit(2, ckpt_path="lightning_logs/mine/checkpoints/last.ckpt") == 2


class Late(Noted):
    """Knows its version when its experiment starts, as that of Weights & Biases."""

    version = None

    def __init__(self):
        super().__init__()
        self.count = len(list(Path("noted/project").glob("*"))) if Path("noted/project").exists() else 0

    @property
    def experiment(self):
        self.version = f"run{self.count}"
        return super().experiment


def test_a_logger_that_names_its_runs_late_gets_a_folder_for_each(capsys):
    words = ["evaluate", *FAST[1:], "--synthetic", "a.pt", "--trainer.logger", "test_switches.Late"]
    labels, names = torch.arange(3).repeat_interleave(2), ("class 0", "class 1", "class 2")
    SyntheticSet(torch.zeros(6, 1, 6, 6), labels, (0.5,), (0.5,), names).save(Path("a.pt"))
    for number in range(2):
        assert main(words) == 0, capsys.readouterr().err
        assert Path(f"noted/project/run{number}/results.json").is_file()


class LooksAtParameters(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        assert [name for name, _ in pl_module.named_parameters()] == ["images"]


def test_the_images_are_there_before_the_callbacks_of_the_user():
    assert main([*FAST, "--trainer.callbacks+=test_switches.LooksAtParameters"]) == 0


def test_what_a_command_does_not_use_is_refused_or_named(capsys, caplog):
    assert main(["select", *FAST[1:], "--method", "random", "--trainer.fast_dev_run", "true"]) == 2
    assert "trainer.fast_dev_run is for fit" in capsys.readouterr().err
    assert not list(Path().iterdir())
    words = ["select", *FAST[1:], "--method", "random", "--trainer.max_time", "00:00:01:00"]
    assert main([*words, "--trainer.callbacks+=test_switches.LooksAtParameters"]) == 0
    assert "select does not fit by this Trainer: not used are trainer.max_time, trainer.callbacks" in caplog.text


def test_values_that_change_nothing_are_taken():
    harmless = "limit_train_batches 1.0 limit_val_batches 1.0 num_sanity_val_steps 2 gradient_clip_val 0".split()
    words = [
        word for name, value in zip(harmless[::2], harmless[1::2], strict=True) for word in (f"--trainer.{name}", value)
    ]
    assert main([*FAST, *words]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--trainer.max_epoch", "7"],
            "unrecognized arguments: --trainer.max_epoch 7 Did you mean '--trainer.max_epochs'?",
        ),
        (["--seed", "3"], "Did you mean '--seed_everything'?"),
        (["--conf", "c.yaml"], "Did you mean '--config'?"),
        (["--epochs", "5"], "Did you mean '--model.inner_epochs' or '--trainer.max_epochs'"),
        (["--ipc", "5"], "Did you mean '--model.ipc'?"),
        (["--model.lr", "5"], "Did you mean '--model.lr_images'"),
        (["--model.ipc"], "--model.ipc needs a value."),
        (["--trainer.logger", "Foo"], "--trainer.logger: Logger (or iterable collection of loggers)"),
        (["--data", "ImageFolder", "--data.root", "x", "--data.image_size", "32x32"], "height and width to resize to"),
        (
            ["--data", "HuggingFace", "--data.path", "x", "--data.test_fraction", "abc"],
            "share of every class for testing",
        ),
        (["--data", "ImageFolder", "--data.root", "x", "--data.backgroud", "red"], "Did you mean '--data.background'?"),
        (["--data", "Digits", "--data.batch_real", "5", "--model.ipc", "2.5"], "(--model.ipc: synthetic images"),
    ],
)
def test_words_that_are_not_understood_are_answered_by_what_is(words, said, capsys):
    assert main(["fit", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_names_its_option(monkeypatch, capsys):
    Path("file").write_text("no folder")
    words = ["--evaluation.baselines", "[whole set]", "--evaluation.cache", "file/cache"]
    assert main([*FAST, *words]) == 2
    assert "give another by --evaluation.cache" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_configuration_in_another_encoding_is_named(encoding, capsys):
    Path("c.yaml").write_bytes("# é\ntrainer:\n  max_epochs: 1\n".encode(encoding))
    assert main([*FAST, "--config", "c.yaml"]) == 2
    assert "'c.yaml' is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.slow
def test_letters_that_the_locale_lacks_are_answered_by_a_sentence():
    Path("c.yaml").write_text("# é\ntrainer:\n  max_epochs: 1\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "dc_lightning", "fit", "--config", "c.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"set PYTHONUTF8=1" in done.stderr


def score(network):
    return Score(network, [0.5], [0], 1, [])


def table(encoding, width, names, title="a [bold]title[/bold]"):
    path = Path("table.txt")
    with path.open("w", encoding=encoding, errors="strict") as file:
        print_table(
            [Column(name, [score("ConvNetD1")], 10, 10) for name in names], title, Console(file=file, width=width)
        )
    return path.read_text(encoding=encoding)


def test_tables_in_files_are_whole_at_any_width():
    names = ["DC", "random", "herding", "k-center", "forgetting", "whole set"]
    found = table("utf-8", 40, names)
    assert all(name in found for name in (*names, "ConvNetD1", "50.0 ± 0.0 (n=1)", "[bold]"))
    assert "…" not in found


def test_tables_go_into_ascii():
    assert "50.0 +- 0.0 (n=1)" in table("ascii", 80, ["DC"])


class FiveBands(dc_lightning.CondensationDataModule):
    def load(self):
        images, labels = torch.rand(40, 5, 8, 8), torch.arange(40) % 2
        return (images, labels), (images, labels), ["a", "b"]


def test_more_channels_than_a_picture_has_end_no_run(tmp_path):
    words = [word if word != "conftest.TinyData" else "test_switches.FiveBands" for word in FAST]
    assert main(words) == 0
    (synthetic,) = dc_lightning.load_synthetic("lightning_logs/version_0/synthetic.pt")
    assert synthetic.grid().shape[0] == 3
    with pytest.raises(InputError, match="PNG files hold 1 or 3 channels, and this set has 5"):
        synthetic.export(tmp_path / "folder")
    two = SyntheticSet(torch.rand(2, 2, 4, 4), torch.arange(2), (0.5,) * 2, (0.5,) * 2, ("a", "b"))
    torch.testing.assert_close(two.grid()[:, 2:6, 2:6], two.unit_range_images()[0].mean(0).expand(3, -1, -1))


def test_a_method_is_loaded_from_its_checkpoint_without_a_run():
    assert main([*FAST, "--model.ipc", "3", "--model.inner_epochs", "1"]) == 0
    module = CondensationModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")
    again = CondensationModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")
    pl.Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False).fit(
        again, datamodule=TinyData()
    )
    (synthetic,) = dc_lightning.load_synthetic("lightning_logs/version_0/synthetic.pt")
    assert torch.equal(module.images.detach(), synthetic.images)
    assert module.ipc == 3


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_openmp_sleeps_while_it_waits_unless_the_environment_says_otherwise(given):
    code = "import os, sys; sys.argv[1:] = ['--version']; from dc_lightning.__main__ import run; run(); "
    code += "print(os.environ['OMP_WAIT_POLICY'])"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1] == (given or "PASSIVE")


# Labels are those of the items


class Numbered(torch.utils.data.Dataset):
    """Twelve images; targets of four classes, items with what the transform makes of them."""

    def __init__(self, target_transform=None, item=None):
        self.targets, self.target_transform, self.item = [row % 4 for row in range(12)], target_transform, item

    def __len__(self):
        return 12

    def __getitem__(self, row):
        if self.item:
            return self.item(row)
        label = self.targets[row]
        return torch.full((1, 8, 8), row / 12), self.target_transform(label) if self.target_transform else label


def image(row):
    return torch.full((1, 8, 8), row / 12)


ITEMS = {
    "mapping": lambda row: {"image": image(row), "label": row % 2},
    "img": lambda row: {"img": image(row), "label": torch.tensor(row % 2)},
    "one-hot": lambda row: (image(row), torch.eye(2)[row % 2]),
    "name": lambda row: (image(row), "ab"[row % 2]),
    "list": lambda row: [image(row), torch.tensor([row % 2])],
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ITEMS)
def test_items_are_read_where_that_is_plain(name, in_memory):
    def make():
        return Numbered(item=ITEMS[name])

    data = TorchDataset(make, make, class_names=["a", "b"], in_memory=in_memory)
    data.setup()
    assert data.real.labels.tolist() == [row % 2 for row in range(12)]
    assert data.real.take(torch.tensor([3])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("in_memory", [True, False])
def test_labels_are_those_of_the_items(in_memory):
    def make():
        return Numbered(lambda label: label // 2)

    data = TorchDataset(make, make, in_memory=in_memory)
    data.setup()
    assert data.num_classes == 2

    def wrapped():
        return Numbered(item=lambda row: (image(row), row % 3))  # it still has the targets of four classes

    data = TorchDataset(wrapped, wrapped, in_memory=in_memory)
    data.setup()
    assert data.real.labels.tolist() == [row % 3 for row in range(12)]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (lambda row: (image(row), "cat"), r"\(Tensor\(1, 8, 8\), 'cat'\)"),
        (lambda row: (image(row), None), r"\(Tensor\(1, 8, 8\), None\)"),
        (lambda row: (image(row), 1, row), r"\(Tensor\(1, 8, 8\), 1, 0\)"),
        (lambda row: (image(row), 0.5), r"\(Tensor\(1, 8, 8\), 0\.5\)"),
        (lambda row: {"pixels": 1, "label": 0}, "a mapping with the keys pixels, label"),
        (lambda row: image(row), r"Tensor\(1, 8, 8\)"),
    ],
    ids=["string", "None", "three", "float", "mapping", "image"],
)
def test_items_of_another_form_are_shown(item, shown, in_memory):
    def make():
        return Numbered(item=item)

    with pytest.raises(InputError, match=rf"must be \(image, label\) with an integer label, .*; item 0 is {shown}"):
        TorchDataset(make, make, in_memory=in_memory).setup()


def test_labels_that_start_at_one_get_a_hint():
    def make():
        return Numbered(lambda label: label + 1)

    with pytest.raises(InputError, match=r"0\.\.3, .* got 1\.\.4; a target_transform can shift them"):
        TorchDataset(make, make, class_names=list("abcd")).setup()
