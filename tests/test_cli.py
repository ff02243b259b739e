import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TinyData
from curves import read_curves
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_distributed import wait_for_line

import dc_lightning
from dc_lightning import load_recipe, load_synthetic
from dc_lightning.cli import check_words, main
from dc_lightning.evaluation.baselines import random_set
from dc_lightning.methods import CondensationModule
from dc_lightning.networks import MLP

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = (
    "--data conftest.TinyData --model.network MLP --model.ipc 2 --model.inner_epochs 1 --trainer.max_epochs 4 "
    "--trainer.accelerator cpu --evaluation.num_networks 2 --evaluation.every_n 2 --evaluation.recipe.epochs 4 "
    "--checkpoint.every_n 2"
).split()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dc-lightning"])


def fit(*args):
    return main(["fit", "--config", str(CONFIGS / "base.yaml"), *TINY, *args])


RUN = Path("lightning_logs/version_0")


def test_fit_condenses_evaluates_and_writes_everything(capsys):
    assert fit("--evaluation.whole_set_epochs", "2", "--evaluation.baselines", "[random, whole set]") == 0
    shown = capsys.readouterr().out
    for word in (
        "test network",
        "DC",
        "random",
        "whole set",
        "MLP",
        "n=2",
        "synthetic.pt",
        "results.json",
        "TensorBoard",
    ):
        assert word in shown
    results = json.loads((RUN / "results.json").read_text())
    dc, _, whole = results["columns"]
    assert [column["name"] for column in results["columns"]] == ["DC", "random", "whole set"]
    assert [column["training_images"] for column in results["columns"]] == [6, 6, 36]
    assert dc["scores"][0]["n"] == len(dc["scores"][0]["accuracies"]) == len(set(dc["scores"][0]["seeds"])) == 2
    assert whole["scores"][0]["epochs"] == 1
    assert [entry["iteration"] for entry in results["history"]] == [0, 2, 4]
    assert results["configuration"]["model"]["init_args"]["ipc"] == 2
    assert {"versions", "hardware", "seconds", "seed", "finished"} <= set(results)
    assert sorted(path.name for path in (RUN / "images").iterdir()) == [f"iteration_00000{n}.png" for n in (0, 2, 4)]
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == [
        "iteration_000002.ckpt",
        "iteration_000004.ckpt",
        "last.ckpt",
    ]
    (synthetic,) = load_synthetic(RUN / "synthetic.pt")
    assert synthetic.source["iteration"] == 4
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["images"], synthetic.images)


def test_curves_are_in_tensorboard():
    assert fit() == 0
    curves, events = read_curves(RUN)
    assert [step for step, _ in curves["matching_loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves["accuracy/MLP"]] == [0, 2, 4]
    assert [step for step, _ in curves["accuracy_std/MLP"]] == [0, 2, 4]
    assert [image.step for image in events.Images("synthetic images")] == [0, 2, 4]
    final = json.loads((RUN / "results.json").read_text())["columns"][0]["scores"][0]["mean"]
    assert curves["final/DC/MLP"][-1][1] == curves["final/accuracy"][-1][1] == pytest.approx(final)
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    first = [info.name for info in experiment.hparam_infos][:7]
    assert first == ["ipc", "network", "lr_images", "batch_real", "iterations", "method", "dataset"]
    assert [info.name.tag for info in experiment.metric_infos][:2] == ["final/accuracy", "final/random"]


def test_what_is_saved_is_what_was_evaluated():
    assert fit() == 0
    results = json.loads((RUN / "results.json").read_text())
    assert main(["evaluate", "--config", str(RUN / "config.yaml"), "--synthetic", str(RUN / "synthetic.pt")]) == 0
    again = json.loads(Path("lightning_logs/version_1/results.json").read_text())
    model = {"class_path": "dc_lightning.methods.gradient_matching.CondensationModule", "init_args": {"network": "MLP"}}
    assert again["configuration"]["model"] == model  # and not the ipc of another one
    saved = Path("lightning_logs/version_1/config.yaml")
    assert yaml.safe_load(saved.read_text())["model"] == model
    assert main(["evaluate", "--config", str(saved)]) == 0
    assert again["kind"] == "evaluation"
    for column, same in zip(results["columns"], again["columns"], strict=True):
        assert [score["accuracies"] for score in column["scores"]] == [score["accuracies"] for score in same["scores"]]


def test_one_seed_repeats_and_another_differs():
    for seed in ("1", "1", "2"):
        assert fit("--seed_everything", seed) == 0
    sets = [load_synthetic(f"lightning_logs/version_{n}/synthetic.pt")[0].images for n in range(3)]
    assert torch.equal(sets[0], sets[1])
    assert not torch.equal(sets[0], sets[2])


noted = set()


class Noting(MLP):
    """Notes in what precision it computes."""

    def forward(self, images):
        logits = super().forward(images)
        noted.add(logits.dtype)
        return logits


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)])
def test_the_precision_is_that_of_the_condensation_alone(precision, dtype):
    """Whichever command evaluates."""
    options = ["--trainer.precision", precision, "--model.network", "test_cli.Noting"]
    noted.clear()
    assert fit(*options, "--trainer.max_epochs", "1") == 0
    assert noted == {dtype, torch.float32}
    for command in (["evaluate", "--synthetic", str(RUN / "synthetic.pt")], ["select", "--method", "herding"]):
        noted.clear()
        assert main([*command, *TINY, *options, "--evaluation.features_network", "MLP"]) == 0
        assert noted == {torch.float32}


@pytest.mark.parametrize("form", ["authors", "folder"])
def test_evaluate_takes_other_peoples_sets(form, capsys):
    data = TinyData()
    data.setup()
    sets = [random_set(data, 2, seed) for seed in (0, 1)]
    if form == "authors":
        torch.save({"data": [[s.images, s.labels] for s in sets], "accs_all_exps": {}}, "other")
    else:
        sets[0].export("other")
    command = ["evaluate", *TINY, "--synthetic", "other", "--evaluation.networks", "[MLP, ConvNetD1]"]
    assert main(command) == 0
    results = json.loads((RUN / "results.json").read_text())
    assert [score["network"] for score in results["columns"][0]["scores"]] == ["MLP", "ConvNetD1"]
    assert results["columns"][0]["scores"][0]["n"] == (4 if form == "authors" else 2)
    if form == "authors":
        assert main([*command, "--experiment", "1"]) == 0
        assert json.loads(Path("lightning_logs/version_1/results.json").read_text())["sources"][0]["method"]
        assert main([*command, "--experiment", "2"]) == 2
        assert "experiment must be in 0..1" in capsys.readouterr().err


def test_a_resumed_run_stays_in_its_folder_with_the_same_bits():
    assert fit() == 0
    whole, (curves, _) = load_synthetic(RUN / "synthetic.pt")[0], read_curves(RUN)
    results = json.loads((RUN / "results.json").read_text())
    assert fit("--trainer.max_epochs", "2") == 0
    second = Path("lightning_logs/version_1")
    again = ["fit", "--config", str(second / "config.yaml"), "--trainer.max_epochs", "4"]
    assert main([*again, "--ckpt_path", str(second / "checkpoints" / "last.ckpt")]) == 0
    assert not Path("lightning_logs/version_2").exists()
    assert torch.equal(load_synthetic(second / "synthetic.pt")[0].images, whole.images)
    assert read_curves(second)[0]["matching_loss"] == curves["matching_loss"]
    resumed = json.loads((second / "results.json").read_text())
    assert resumed["columns"] == results["columns"]
    assert [entry["iteration"] for entry in resumed["history"]] == [0, 2, 4]


def test_evaluate_pools_several_sets_and_refuses_mixed_ones(tiny_data, capsys):
    for name, ipc in (("a.pt", 2), ("b.pt", 2), ("c.pt", 3)):
        random_set(tiny_data, ipc, ord(name[0])).save(name)
    packed, uneven = random_set(tiny_data, 2, 0), random_set(tiny_data, [1, 2, 2], 0)
    replace(packed, factor=2, source={**packed.source, "network": "MLP", "ipc": 3}).save("d.pt")
    uneven.save("e.pt")
    assert main(["evaluate", *TINY, "--synthetic", "[a.pt, b.pt]"]) == 0
    content = json.loads((RUN / "results.json").read_text())
    assert len(content["sources"]) == 2
    assert len(content["columns"][0]["scores"][0]["accuracies"]) == 4
    capsys.readouterr()
    assert main(["evaluate", *TINY, "--synthetic", "[a.pt, c.pt]"]) == 2
    assert "one number of images per class" in capsys.readouterr().err
    assert main(["evaluate", *TINY, "--synthetic", "[a.pt, d.pt]"]) == 2
    assert "made in one way, but they differ in ipc, factor; evaluate each" in capsys.readouterr().err
    assert main(["evaluate", *TINY, "--synthetic", "[a.pt, e.pt]"]) == 2
    assert "one number of images per class; got [[1, 2, 2], [2, 2, 2]]" in capsys.readouterr().err


def test_a_finished_run_can_be_resumed_to_be_evaluated_again():
    assert fit() == 0
    (RUN / "results.json").unlink()
    last = str(RUN / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", str(RUN / "config.yaml"), "--ckpt_path", last]) == 0
    assert (RUN / "results.json").is_file()


BAD = {
    "network": (["--model.network", "Foo"], "Unknown network 'Foo': expected one of MLP, LeNet"),
    "imported network": (["--model.network", "foo.Bar"], "cannot be imported"),
    "distance": (["--model.distance", "l2"], "Unknown distance 'l2': expected one of ours, mse, cos"),
    "dataset": (["--data", "FashionMNST"], "Unknown data 'FashionMNST': expected one of CIFAR10"),
    "near dataset": (["--data", "FashionMNST"], "Did you mean 'FashionMNIST'?"),
    "dataset path": (["--data", "dc_lightning.data.Foo"], "The data 'dc_lightning.data.Foo' cannot be imported"),
    "model": (["--model", "ConvNet"], "Unknown model 'ConvNet': expected one of"),
    "near model": (["--model", "DistributionMatch"], "Did you mean 'DistributionMatching'?"),
    "near option": (["--model.lr_imags", "0.1"], "Did you mean '--model.lr_images'?"),
    "near network": (["--model.network", "ConvNetD22"], "Did you mean 'ConvNetD2'?"),
    "siamese operation": (
        [
            "--model.augmentation",
            '{"class_path": "dc_lightning.augmentation.Siamese", "init_args": {"strategy": "flop"}}',
        ],
        "Did you mean 'flip'?",
    ),
    "recipe": (["--evaluation.other_recipes", "[dsaa]"], "Did you mean 'evaluation/dsa.yaml'?"),
    "two recipes of one name": (["--evaluation.other_recipes", "[dc]"], "need a name each"),
    "near init": (["--model.init", "rael"], "Did you mean 'real'?"),
    "near baseline": (["--evaluation.baselines", "[rando]"], "Did you mean 'random'?"),
    "loss": (
        ["--evaluation.recipe.loss", '{"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"smooth": 1}}'],
        "The loss torch.nn.CrossEntropyLoss(smooth=1) cannot be made",
    ),
    "features": (
        ["--evaluation.features_network", "test_cli.NoLinear", "--evaluation.baselines", "[herding]"],
        "has none that it uses",
    ),
    "ipc": (["--model.ipc", "0"], "ipc must be at least 1 (synthetic images per class), got 0."),
    "negative ipc": (["--model.ipc", "-3"], "got -3"),
    "no number": (["--model.ipc", "many"], "many"),
    "image size": (["--model.network", "VGG11"], "VGG11 needs images of at least 32x32 pixels, got 6x6"),
    "test network's image size": (["--evaluation.networks", "VGG11"], "VGG11 needs images of at least 32x32"),
    "pool": (["--evaluation.networks", "Q"], "Unknown pool or network 'Q'"),
    "linked from the data": (["--model.num_classes", "10"], "num_classes"),
    "seed of the model": (["--model.seed", "3"], "give seed_everything instead"),
    "seed of the evaluation": (["--evaluation.seed", "3"], "give seed_everything instead"),
    "no seed": (["--seed_everything", "true"], "seed_everything must be an integer"),
    "too few for real init": (["--model.init", "real", "--model.ipc", "20"], "0 (class 0: 12)"),
    "augmentation": (["--evaluation.recipe.augmentation", "[flip]"], "crop, scale, rotate, noise"),
    "folder": (["--trainer.logger.save_dir", "/proc/nowhere"], "cannot be written"),
    "config file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "option": (["--foo", "3"], "--foo"),
    "no number of iterations": (["--trainer.max_epochs", "abc"], "trainer.max_epochs"),
    "accelerator": (["--trainer.accelerator", "abacus"], "abacus"),
    "compiled after a fork": (["--compile", "true", "--trainer.strategy", "ddp_fork"], "take trainer.strategy ddp"),
    "momentum": (["--evaluation.recipe.momentum", "-1"], "momentum must be at least 0, got -1"),
    "negative seed": (["--seed_everything", "-1"], "seed_everything must be an integer in 0.."),
    "distance that is none": (["--model.distance", "math.pi"], "must be callable"),
    "single pixels": (["--model.network", "ResNet18"], "ResNet18 needs images of at least 9x9"),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], "There is no checkpoint at 'nowhere.ckpt'"),
    "missing data": (
        ["--data", "FashionMNIST", "--data.root", "nowhere", "--data.download", "false"],
        "nowhere/FashionMNIST/raw/train-images-idx3-ubyte",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_before_anything_starts(case, capsys):
    args, message = BAD[case]
    assert fit(*args) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in shown.err + shown.out
    assert "outer iteration" not in shown.out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04 not all of it", "damaged"), (None, "not a checkpoint of a condensation")],
)
def test_a_foreign_checkpoint_is_named(content, message, capsys):
    path = Path("x.ckpt")
    path.write_bytes(content) if content else torch.save({"state_dict": {}}, path)
    assert fit("--ckpt_path", str(path)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.ipc", "3"], "ipc was 2 and is 3"),
        (["--model.network", "ConvNetD1"], "network was MLP and is ConvNetD1"),
        (["--model.distance", "mse"], "distance was ours and is mse"),
        (["--seed_everything", "7"], "seed was 0 and is 7"),
        (["--data.batch_real", "3"], "batch_real was 8 and is 3"),
    ],
)
def test_a_resume_with_other_settings_is_refused(args, message, capsys):
    assert fit("--evaluation.every_n", "0") == 0
    assert fit("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "6", *args) == 2
    assert message in capsys.readouterr().err


def test_evaluate_refuses_a_set_of_other_data(capsys):
    data = TinyData(classes=4)
    data.setup()
    random_set(data, 1, 0).save("other.pt")
    assert main(["evaluate", *TINY, "--synthetic", "other.pt"]) == 2
    assert "classes 4 against 3" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_keeps_the_good_checkpoint(capsys):
    steps = ["--model.outer_steps", "6", "--checkpoint.last_every_seconds", "0", "--evaluation.every_n", "0"]
    assert fit(*steps, "--trainer.max_epochs", "2") == 0
    last = str(RUN / "checkpoints" / "last.ckpt")
    longer = [*steps, "--trainer.max_epochs", "20", "--ckpt_path", last]
    assert fit(*longer, "--model.lr_images", "1e38") == 2
    assert "became NaN or infinite in outer iteration 3" in capsys.readouterr().err
    assert torch.load(last, weights_only=True)["state_dict"]["images"].isfinite().all()
    kept = str(RUN / "checkpoints" / "iteration_000002.ckpt")  # the last has steps of 1e38 in it, finite or not
    assert fit(*longer[:-1], kept, "--model.lr_images", "0.05") == 0
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05


def shipped():
    return sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))


COMMANDS = {"continual": "continual", "architecture_search": "architecture_search"}  # of a folder; fit of the others


def runs_alone(path):
    return path.parent in (Path(), Path("presets"), *map(Path, COMMANDS))


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_every_shipped_config_is_understood_and_says_its_command(path):
    base = [] if runs_alone(path) else ["--config", str(CONFIGS / "base.yaml")]
    found = check_words([COMMANDS.get(path.parent.name, "fit"), *base, "--config", str(CONFIGS / path)])
    text = (CONFIGS / path).read_text()
    assert text.startswith("# ")
    command = next(line for line in text.splitlines() if line.startswith("#   dc-lightning "))
    assert str(path) in text
    if path != Path("base.yaml") and "evaluate" not in command and path.parent.name not in COMMANDS:
        assert ("configs/base.yaml" in command) is not runs_alone(path)
    given = yaml.safe_load(text)
    for key, value in (given.get("model") or {}).get("init_args", {}).items():
        assert found["model"]["init_args"][key] == value
    for key, value in ((given.get("evaluation") or {}).get("recipe") or {}).items():
        assert found["evaluation"]["recipe"][key] == value


@pytest.mark.parametrize(
    "path", [path for path in shipped() if path.parent in (Path("methods"), Path("presets"))], ids=str
)
def test_every_method_and_preset_is_made_and_scored_by_a_shipped_recipe(path):
    content = yaml.safe_load((CONFIGS / path).read_text())
    method = getattr(dc_lightning, content["model"]["class_path"].rpartition(".")[2])(**content["model"]["init_args"])
    recipe = dc_lightning.Recipe(**(content.get("evaluation") or {}).get("recipe", {}))
    assert recipe == load_recipe({"DC": "dc", "DSA": "dsa", "DM": "dsa", "FRePo": "dc"}.get(method.name, "idc"))
    if path == Path("methods/dc.yaml"):  # it shows every default
        own = {name: value for name, value in CondensationModule().hparams.items() if name != "seed"}
        assert content["model"]["init_args"] == own


def start(*args):
    command = [sys.executable, "-m", "dc_lightning", "fit", *TINY, "--evaluation.every_n", "0", *args]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(signum):
    process = start("--trainer.max_epochs", "800", "--model.outer_steps", "3")
    wait_for_line(process, "outer iteration 40/")
    process.send_signal(signum)
    rest, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + signum
    command = next(line for line in rest.splitlines() if "--ckpt_path" in line).split()
    stopped = torch.load(command[-1], weights_only=True)
    assert 39 <= stopped["epoch"] < 800
    ahead = str(stopped["epoch"] + 2)
    assert main([*command[1:], "--trainer.max_epochs", ahead]) == 0
    resumed = load_synthetic(RUN / "synthetic.pt")[0].images
    arguments = ["--model.outer_steps", "3", "--evaluation.every_n", "0", "--trainer.max_epochs", ahead]
    assert main(["fit", *TINY, *arguments]) == 0
    assert torch.equal(load_synthetic("lightning_logs/version_1/synthetic.pt")[0].images, resumed)


@pytest.mark.slow
def test_python_m_is_the_same_and_help_is_there():
    shown = subprocess.run([sys.executable, "-m", "dc_lightning", "--help"], capture_output=True, text=True, check=True)
    assert "evaluate" in shown.stdout
    process = start("--trainer.max_epochs", "1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "test network" in output


@pytest.mark.parametrize("content", ["model: {init_args: {seed: 5}}", "evaluation: {seed: 5}"])
def test_a_seed_in_a_file_is_refused(content, capsys):
    Path("seed.yaml").write_text(content)
    assert fit("--config", "seed.yaml") == 2
    assert "give seed_everything instead" in capsys.readouterr().err


def test_the_test_network_is_the_one_that_the_set_was_made_with():
    assert fit("--trainer.max_epochs", "1") == 0
    short = ["--evaluation.num_networks", "1", "--evaluation.recipe.epochs", "2"]
    data = ["--data", "conftest.TinyData", "--trainer.accelerator", "cpu"]
    assert main(["evaluate", *data, *short, "--synthetic", str(RUN / "synthetic.pt")]) == 0
    results = json.loads(Path("lightning_logs/version_1/results.json").read_text())
    assert results["columns"][0]["scores"][0]["network"] == "MLP"


def test_default_root_dir_is_where_everything_goes():
    assert fit("--trainer.max_epochs", "1", "--trainer.default_root_dir", "elsewhere") == 0
    assert Path("elsewhere/lightning_logs/version_0/results.json").is_file()
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("command", ["fit", "evaluate", "select", "continual", "architecture-search"])
def test_the_short_help_names_options_that_there_are(command, capsys):
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 45
    assert max(len(line) for line in short.splitlines()) <= 120
    named = set(re.findall(r"^  --([\w.]+)", short, re.MULTILINE))
    with pytest.raises(SystemExit):
        main([command, *TINY, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    required = {"synthetic", "method"}  # have no value yet
    for name in named - {"config", "data.root", "data", "model"}:
        place = printed
        for key in name.split("."):
            place = place.get("init_args", place)
            assert key in place or key in required, name
            place = place.get(key) or {}


def test_all_options_are_shown_on_request(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help-all"])
    assert "--evaluation.recipe.lr_factor" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version"], ["--help"], [], ["fit", "--help"], ["evalute"]])
def test_answers_need_neither_torch_nor_lightning(words):
    code = f"import sys; sys.argv = ['dc-lightning', *{words}]; from dc_lightning.__main__ import run; run()\n"
    code += "sys.exit(bool({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "dc_lightning" in shown.stdout or "dc-lightning" in shown.stdout or "Did you mean 'evaluate'" in shown.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dc_lightning {dc_lightning.__version__}\n"


def test_a_mistyped_command_is_named(capsys):
    assert main(["evalute"]) == 2
    assert "Unknown command 'evalute': expected one of fit, evaluate" in capsys.readouterr().err
    assert main(["evalute"]) == 2
    assert "Did you mean 'evaluate'?" in capsys.readouterr().err


def test_export_writes_an_image_folder_that_is_evaluated_as_another_set(capsys, tiny_data):
    assert fit("--trainer.max_epochs", "1") == 0
    assert main(["export", str(RUN / "synthetic.pt"), "out"]) == 0
    assert "6 images written to out" in capsys.readouterr().out
    (found,) = load_synthetic("out")
    assert found.source["stored_as"] == "8-bit images"
    assert main(["export", str(RUN / "synthetic.pt"), "out"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", "out"]) == 2
    assert "required: PATH" in capsys.readouterr().err


class NoLinear(torch.nn.Sequential):
    """A classifier without a linear layer."""

    def __init__(self, channels, num_classes, image_size):
        pooled = torch.nn.AdaptiveAvgPool2d(1)
        super().__init__(torch.nn.Conv2d(channels, num_classes, 3), pooled, torch.nn.Flatten())


def test_the_short_form_of_config_is_the_same(capsys):
    Path("seed.yaml").write_text("model: {init_args: {seed: 5}}")
    assert fit("-c", "seed.yaml") == 2
    assert "give seed_everything instead" in capsys.readouterr().err
    Path("length.yaml").write_text("trainer: {max_epochs: 7}")
    assert check_words(["fit", "-c", "length.yaml", "--ckpt_path", "null"])["trainer"]["max_epochs"] == 7


def test_shipped_configurations_are_found_anywhere():
    assert check_words(["fit", "--config", "configs/quickstart.yaml"])["trainer"]["max_epochs"] == 100
    assert check_words(["fit", "--config=configs/presets/fashion_mnist_dsa_ipc10.yaml"])["trainer"]["max_epochs"] == 60


def test_a_recipe_that_mixes_labels_serves_every_baseline():
    """Forgetting compares with the labels of the dataset."""
    mixing = '{"class_path": "test_evaluation.CutMix", "init_args": {"classes": 3}}'
    baselines = ["--evaluation.baselines", "[forgetting, whole set]", "--evaluation.features_network", "MLP"]
    short = ["--evaluation.whole_set_epochs", "2", "--trainer.max_epochs", "1", "--evaluation.every_n", "0"]
    epochs = ["--evaluation.recipe.epochs_augmented", "2"]
    assert fit("--evaluation.recipe.augmentation", mixing, *baselines, *short, *epochs) == 0
    columns = json.loads((RUN / "results.json").read_text())["columns"]
    assert [column["name"] for column in columns] == ["DC", "forgetting", "whole set"]


class Hasty(CondensationModule):
    """A method with a default of its own for what its parent has too."""

    def __init__(self, lr_images: float = 1.5, **kwargs):
        super().__init__(lr_images=lr_images, **kwargs)


class FewReal(TinyData):
    """Data with a default of their own."""

    def __init__(self, batch_real: int = 5):
        super().__init__(batch_real=batch_real)


def test_defaults_of_a_subclass_are_its_own():
    found = check_words(["fit", "--model", "test_cli.Hasty", "--data", "test_cli.FewReal"])
    assert found["model"]["init_args"]["lr_images"] == 1.5
    assert found["data"]["init_args"]["batch_real"] == 5
    Path("mine.yaml").write_text("model: {class_path: test_cli.Hasty}\ndata: {class_path: test_cli.FewReal}")
    for base in ([], ["--config", str(CONFIGS / "base.yaml")]):
        found = check_words(["fit", *base, "--config", "mine.yaml"])
        assert found["model"]["init_args"]["lr_images"] == 1.5
        assert found["data"]["init_args"]["batch_real"] == 5
    assert check_words(["fit", "--model.ipc", "3"])["model"]["class_path"].endswith("CondensationModule")


def test_several_recipes_score_everything(capsys):
    Path("mine.yaml").write_text("evaluation: {recipe: {name: mine, epochs: 3, loss: conftest.smooth_loss}}")
    assert fit("--evaluation.other_recipes", "[mine.yaml]", "--trainer.max_epochs", "1") == 0
    results = json.loads((RUN / "results.json").read_text())
    for column in results["columns"]:
        assert [(score["recipe"], score["epochs"]) for score in column["scores"]] == [("DC", 4), ("mine", 3)]
        assert [score["loss"] for score in column["scores"]] == ["cross_entropy", "conftest.smooth_loss"]
    assert "MLP, recipe mine" in capsys.readouterr().out
    assert {"accuracy/MLP", "accuracy/MLP/mine"} <= set(read_curves(RUN)[0])


def test_a_checkpoint_of_the_first_version_is_refused_in_a_sentence(capsys):
    torch.save({"state_dict": {"images": torch.zeros(1)}, "curve": (3, 0.5), "epoch": 3}, "old.ckpt")
    Path("old.yaml").write_text("model: {class_path: dc_lightning.condensation.CondensationModule}")
    assert main(["fit", "--config", "old.yaml", "--ckpt_path", "old.ckpt"]) == 2
    shown = capsys.readouterr().err
    assert "'old.ckpt' was written by another version of dc_lightning (format of 0.1.0" in shown
    assert len(shown.splitlines()) == 1
