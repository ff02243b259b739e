"""On a GPU: every method as on the CPU, no wait for the device within a matching step, precisions and compilation."""

import json
import shlex

import pytest
import pytorch_lightning as pl
import torch
from conftest import TinyData, quiet_trainer

import dc_lightning
from dc_lightning import CondensationModule, Evaluator, InputError, Recipe
from dc_lightning.cli import main
from dc_lightning.compilation import compile_networks, replay_graphs
from dc_lightning.evaluation import load_recipe
from dc_lightning.evaluation.baselines import random_set
from dc_lightning.evaluation.training import Job, train_and_test

_SAID = (
    "GPU available but not used",
    "Synchronization debug mode",
    "The AccumulateGrad node",
    ".torch.jit",
    ".*TensorFloat32 tensor cores",
)  # by torch
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    *(pytest.mark.filterwarnings(f"ignore:{said}") for said in _SAID),
]

NETWORK = {"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}
METHODS = {
    "DC": ("CondensationModule", {"outer_steps": 3, "inner_epochs": 1}),
    "DSA": ("CondensationModule", {"outer_steps": 3, "inner_epochs": 1, "augmentation": "siamese"}),
    "DC, networks on real images": ("CondensationModule", {"outer_steps": 3, "network_images": 12}),
    "DM": ("DistributionMatching", {}),
    "IDC": ("IDC", {"outer_steps": 3, "network_images": 30, "batch_network": 8}),
    "DREAM": ("DREAM", {"outer_steps": 3, "network_images": 30, "batch_network": 8, "interval": 2}),
    "FRePo": ("FRePo", {"outer_steps": 3, "inner_epochs": 1}),
    "FRePo, last layer by SGD": ("FRePo", {"outer_steps": 3, "inner_epochs": 1, "last_layer_steps": 5}),
}


@pytest.fixture(autouse=True)
def float32_as_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # PyTorch's default on a GPU: three digits


class NoWait(pl.Callback):
    """Lets PyTorch raise where the host waits for the GPU within a step."""

    def on_train_batch_start(self, trainer, module, *_):
        torch.cuda.set_sync_debug_mode("error" if trainer.current_epoch else "default")

    def on_train_batch_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")


def condense(tmp_path, name, accelerator, precision="32-true", callbacks=()):
    class_name, arguments = METHODS[name]
    method = getattr(dc_lightning, class_name)(network=NETWORK, ipc=2, lr_images=0.01, **arguments)
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, accelerator=accelerator, devices=1, precision=precision, callbacks=list(callbacks)
    )
    # of twelve images of a class; a cluster of two has its centre midway, so that rounding would choose
    trainer.fit(method, datamodule=TinyData(batch_real=12 if name == "DREAM" else 8))
    return method


@pytest.mark.parametrize("name", METHODS)
def test_images_are_those_of_the_cpu(name, tmp_path):
    found, expected = (condense(tmp_path, name, device).synthetic_set(3).images for device in ("gpu", "cpu"))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "DREAM"])  # whose clusters are found on the CPU
def test_a_matching_step_never_waits_for_the_device(name, tmp_path):
    condense(tmp_path, name, "gpu", callbacks=[NoWait()])


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_gives_finite_images(name, tmp_path):
    assert bool(condense(tmp_path, name, "gpu", "bf16-mixed").synthetic_set(3).images.isfinite().all())


def test_compiled_networks_give_the_same(tmp_path):
    plain = condense(tmp_path, "DC", "gpu").synthetic_set(3).images
    compile_networks()
    try:
        found = condense(tmp_path, "DC", "gpu").synthetic_set(3).images
    finally:
        compile_networks(False)
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=1e-3)


@pytest.fixture
def graphs():
    replay_graphs()
    yield
    replay_graphs(False)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_give_the_same(name, tmp_path, request):
    plain = condense(tmp_path, name, "gpu").synthetic_set(3).images
    request.getfixturevalue("graphs")
    torch.testing.assert_close(condense(tmp_path, name, "gpu").synthetic_set(3).images, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_take_bfloat16(name, tmp_path, graphs):
    assert bool(condense(tmp_path, name, "gpu", "bf16-mixed").synthetic_set(3).images.isfinite().all())


class Waits(torch.nn.Sequential):
    """A network that reads a number from the GPU, which no graph can."""

    def __init__(self, channels, num_classes, image_size):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] * image_size[1], num_classes))

    def forward(self, images):
        return super().forward(images) * float(images.detach().mean() * 0 + 1)


def test_what_cannot_be_recorded_is_said(tmp_path, graphs):
    method = CondensationModule(network={"class_path": "test_gpu.Waits"}, ipc=2, outer_steps=2, inner_epochs=1)
    with pytest.raises(InputError, match="The loss cannot be recorded as a CUDA graph"):
        quiet_trainer(tmp_path, max_epochs=2, accelerator="gpu", devices=1).fit(method, datamodule=TinyData())


@pytest.mark.parametrize("network", ["ConvNet", "ConvNetBN"])
@pytest.mark.parametrize("recipe", ["dc", "idc"])
def test_recorded_networks_are_trained_alike(network, recipe, request):
    data = TinyData(size=(16, 16), per_class=50)
    data.setup()
    job = Job(network, load_recipe(recipe).with_epochs(3), 1)

    def trained():
        found = train_and_test(random_set(data, 30, 0), job, data, torch.device("cuda", 0))[1].state_dict()
        return {name: value.cpu() for name, value in found.items()}

    plain = trained()
    request.getfixturevalue("graphs")
    torch.testing.assert_close(trained(), plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recipe", ["dc", "dsa", "idc"])
def test_networks_are_trained_and_tested_there(recipe, tmp_path):
    method = condense(tmp_path, "IDC", "gpu")
    chosen: Recipe = load_recipe(recipe).with_epochs(3)
    (score,) = Evaluator(method.data, torch.device("cuda", 0)).score([method.synthetic_set(3)], [NETWORK], 2, chosen)
    assert len(score.accuracies) == 2


COMMANDS = {
    "fit": "fit --model.network MLP --model.ipc 2 --model.inner_epochs 1 --trainer.max_epochs 2 "
    "--evaluation.whole_set_epochs 1 --evaluation.features_network MLP "
    "--evaluation.baselines '[random, herding, k-center, forgetting, 8-bit, whole set]'",
    "fit with BatchNorm": "fit --model.ipc 2 --model.inner_epochs 1 --trainer.max_epochs 2 --model.init k-means "
    "--data.size [8,8] --model.network ConvNetBN --evaluation.networks [ConvNetD1,ConvNetBN]",
    "select": "select --method herding --model.network MLP --model.ipc 2 --evaluation.features_network MLP",
    "continual": "continual --data.classes 6 --model.network MLP --model.ipc 2 --model.outer_steps 2 "
    "--trainer.max_epochs 2 --protocol.steps 3 --protocol.orders 1 --evaluation.features_network MLP "
    "--protocol.memories [condensed,herding]",
    "architecture-search": "architecture-search --data.size [8,8] --space.width [4,8] --space.depth [1] "
    "--space.sample 3 --proxies [random] --model.ipc 1 --evaluation.whole_set_epochs 1",
}
"""Whole commands on toy data."""


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    command, *words = shlex.split(COMMANDS[name])
    small = "--evaluation.num_networks 1 --evaluation.recipe.epochs 2 --trainer.accelerator gpu --trainer.devices 1"
    assert main([command, "--data", "conftest.TinyData", *words, *small.split()]) == 0
    (file,) = tmp_path.rglob("results.json")
    scores = [score["mean"] for column in json.loads(file.read_text())["columns"] for score in column["scores"]]
    assert scores
    assert all(0 <= mean <= 1 for mean in scores)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def run(epochs, **how):
        method = CondensationModule(network=NETWORK, ipc=2, outer_steps=3, inner_epochs=2, lr_images=0.01)
        trainer = quiet_trainer(tmp_path, max_epochs=epochs, accelerator="gpu", devices=1)
        trainer.fit(method, datamodule=TinyData(batch_real=8), **how)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return method.synthetic_set(epochs).images

    torch.use_deterministic_algorithms(True)
    try:
        run(2)
        assert torch.equal(run(4, ckpt_path=tmp_path / "2.ckpt"), run(4))
    finally:
        torch.use_deterministic_algorithms(False)
