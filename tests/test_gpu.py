"""On a GPU: every method as on the CPU, no wait for the device within a matching step, precisions and compilation."""

import pytest
import pytorch_lightning as pl
import torch
from conftest import TinyData, quiet_trainer

import dc_lightning
from dc_lightning import Evaluator, Recipe
from dc_lightning.compilation import compile_networks
from dc_lightning.evaluation import load_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NETWORK = {"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}
METHODS = {
    "DC": ("CondensationModule", {"outer_steps": 3, "inner_epochs": 1}),
    "DSA": ("CondensationModule", {"outer_steps": 3, "inner_epochs": 1, "augmentation": "siamese"}),
    "DM": ("DistributionMatching", {}),
    "IDC": ("IDC", {"outer_steps": 3, "network_images": 30, "batch_network": 8}),
    "DREAM": ("DREAM", {"outer_steps": 3, "network_images": 30, "batch_network": 8, "interval": 2}),
}


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
    trainer.fit(method, datamodule=TinyData(batch_real=8))
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


@pytest.mark.parametrize("recipe", ["dc", "dsa", "idc"])
def test_networks_are_trained_and_tested_there(recipe, tmp_path):
    method = condense(tmp_path, "IDC", "gpu")
    chosen: Recipe = load_recipe(recipe).with_epochs(3)
    (score,) = Evaluator(method.data, torch.device("cuda", 0)).score([method.synthetic_set(3)], [NETWORK], 2, chosen)
    assert len(score.accuracies) == 2
