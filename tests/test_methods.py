"""DSA and DM: numbers of the authors' code, in float64."""

import pytest
import pytorch_lightning as pl
import torch
from conftest import GOLDEN_DSA_DM, GoldenData, TinyData, assert_golden, assert_golden_summary, fill_golden, golden_case
from conftest import normal as golden_normal
from test_siamese import apply_golden

from dc_lightning import CondensationModule, DistributionMatching, InputError
from dc_lightning.matching.embeddings import embed
from dc_lightning.networks import NETWORKS

(DSA_TRAJECTORY,) = GOLDEN_DSA_DM["dsa_trajectory"]
(DM_TRAJECTORY,) = GOLDEN_DSA_DM["dm_trajectory"]


def case(entry):
    steps = entry["augmentation"] or [{"operation": "none"}]
    return f"{entry['model']}{entry['size']}-ipc{entry['ipc']}-{'-'.join(step['operation'] for step in steps)}"


def pairs(entry, real, synthetic):
    """Augmented real and synthetic images of each class."""
    ipc = entry["ipc"]
    for label in range(3):
        parts = real[label], synthetic[ipc * label : ipc * (label + 1)]
        if entry["augmentation"]:
            parts = tuple(apply_golden(part, entry["augmentation"][label]) for part in parts)
        yield label, *parts


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["dsa_matching"], ids=case)
def test_dsa_matches_as_the_authors_code(entry, chunk):
    network, real, synthetic = golden_case(entry)
    synthetic.requires_grad_()
    method = CondensationModule(augmentation="siamese", real_chunk_size=chunk)
    losses = [method.loss(network, *images, label) for label, *images in pairs(entry, real, synthetic)]
    assert_golden([loss.item() for loss in losses], entry["distance_per_class"])
    assert_golden_summary(torch.autograd.grad(sum(losses), synthetic)[0], entry["image_grad"])


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["distribution_matching"], ids=case)
def test_dm_matches_as_the_authors_code(entry):
    network, real, synthetic = golden_case(entry)
    features = embed(network, synthetic)
    assert features.shape[1] == entry["embedding"]["features"]
    assert_golden_summary(features, entry["embedding"])
    if entry["all_classes_in_one_batch"]:
        return  # in the next test, as the method itself passes them
    synthetic.requires_grad_()
    method = DistributionMatching()
    losses = [method.loss(network, *images, label) for label, *images in pairs(entry, real, synthetic)]
    assert_golden([loss.item() for loss in losses], entry["loss_per_class"])
    assert_golden_summary(torch.autograd.grad(sum(losses), synthetic)[0], entry["image_grad"])


SCRIPT = {"offset": 0, "entry": {}, "images": None, "pairs": [], "batches": []}


def scripted_network(channels, num_classes, image_size):
    seed = SCRIPT["entry"].get("parameter_seed", 0) + SCRIPT["offset"]
    return fill_golden(NETWORKS[SCRIPT["entry"]["model"]](channels, 10, image_size), seed)


class Scripted:
    """Applies what a golden entry says, class by class, step by step."""

    def pair(self, real, synthetic, seed):
        step = SCRIPT["pairs"].pop(0) if SCRIPT["pairs"] else None
        return tuple(apply_golden(part, step) if step else part for part in (real, synthetic))

    def batch(self, images, seed):
        stored = SCRIPT["images"]()
        rows = (images[:, None] - stored[None]).abs().flatten(2).amax(2).argmin(1)  # the batch is shuffled
        return apply_golden(stored, SCRIPT["batches"].pop(0))[rows]

    def __call__(self, images, labels, generator):
        return images


def run_scripted(tmp_path, method, entry, epochs, on_step=lambda module: None):
    data = GoldenData(entry)
    data.setup()
    SCRIPT.update(entry=entry, offset=0, images=lambda: method.images.detach())
    SCRIPT["pairs"] = [step for steps in entry["augmentation"] or [] for step in steps]
    SCRIPT["batches"] = list(entry.get("inner_augmentation", []))
    channels, size = entry["channels"], entry["size"]
    method.images = torch.nn.Parameter(golden_normal(entry["synthetic_seed"], 3 * entry["ipc"], channels, size, size))
    method.register_buffer("labels", torch.arange(3).repeat_interleave(entry["ipc"]), persistent=False)

    class Steps(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            SCRIPT["offset"] = 100 * trainer.current_epoch

        def on_train_batch_end(self, trainer, module, *_):
            data.step += 1
            on_step(module)

    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="64-true",
        callbacks=[Steps()],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(method, datamodule=data)
    assert not SCRIPT["pairs"]
    assert not SCRIPT["batches"]


@pytest.fixture
def ten_logits(monkeypatch):
    monkeypatch.setattr("dc_lightning.methods.base.check_network", lambda *_: None)


def test_a_dsa_iteration_is_that_of_the_authors_code(tmp_path, ten_logits):
    entry, losses = DSA_TRAJECTORY, [0.0]
    method = CondensationModule(
        network="test_methods.scripted_network",
        augmentation="test_methods.Scripted",
        ipc=entry["ipc"],
        outer_steps=3,
        inner_epochs=1,
        lr_network=entry["network_lr"],
        lr_images=entry["image_lr"],
        momentum_images=entry["image_momentum"],
    )
    networks = []
    original = method.train_network
    method.train_network = lambda network, step: (networks.append(network), original(network, step))
    run_scripted(
        tmp_path, method, entry, 1, lambda module: losses.append(3 * len(losses) * float(module.matching_loss))
    )
    assert_golden(torch.tensor(losses, dtype=torch.float64).diff(), entry["losses"])
    assert_golden_summary(method.images, entry["images"])
    weights = list(networks[0].parameters())
    assert_golden_summary(weights[0], entry["first_weight"])
    assert_golden_summary(weights[-2], entry["last_weight"])


def test_dm_iterations_are_those_of_the_authors_code(tmp_path, ten_logits):
    entry, losses = DM_TRAJECTORY, []
    method = DistributionMatching(
        network="test_methods.scripted_network",
        augmentation="test_methods.Scripted",
        ipc=entry["ipc"],
        lr_images=entry["image_lr"],
        momentum_images=entry["image_momentum"],
    )
    run_scripted(tmp_path, method, entry, 3, lambda module: losses.append(float(module.matching_loss)))
    assert_golden(losses, entry["shown_losses"])
    assert_golden_summary(method.images, entry["images"])


@pytest.mark.parametrize(
    "entry", [e for e in GOLDEN_DSA_DM["distribution_matching"] if e["all_classes_in_one_batch"]], ids=case
)
def test_dm_passes_all_classes_as_one_batch_where_there_is_batch_norm(entry, tmp_path, ten_logits):
    found = []
    augmentation = "test_methods.Scripted" if entry["augmentation"] else None
    method = DistributionMatching(
        network="test_methods.scripted_network", augmentation=augmentation, ipc=entry["ipc"], lr_images=0.0
    )
    script = {**entry, "augmentation": [entry["augmentation"]] if entry["augmentation"] else None}
    run_scripted(
        tmp_path, method, script, 1, lambda module: found.extend([module.matching_loss, module.images.grad.clone()])
    )
    assert_golden(3 * float(found[0]), entry["loss"])
    assert_golden_summary(found[1], entry["image_grad"])


@pytest.mark.parametrize("name", [*NETWORKS, "conftest.TinyNet", "torchvision.models.resnet18"])
def test_every_network_has_an_embedding(name):
    from dc_lightning.networks import make_network

    class Shape:
        channels, num_classes, image_size = 1, 3, (32, 32)

    network = make_network(name, Shape, 0)
    images = torch.randn(2, 1, 32, 32)
    features = embed(network, images)
    last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert features.shape == (2, last.in_features)
    network.eval()
    torch.testing.assert_close(last(embed(network, images)), network(images))


def test_a_network_without_a_linear_layer_has_no_embedding():
    with pytest.raises(InputError, match="has none that it uses"):
        embed(torch.nn.Flatten(), torch.zeros(2, 1, 4, 4))


def fit(tmp_path, method, epochs=30, **kwargs):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_model_summary=False, **settings)
    trainer.fit(method, datamodule=TinyData(size=(8, 8), **kwargs))
    return method


@pytest.mark.parametrize("network", ["ConvNetD1", "ConvNetBN"])
def test_dm_brings_the_means_together(network, tmp_path):
    method = DistributionMatching(network=network, ipc=2, init="noise", augmentation=None, lr_images=0.3)
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            losses.append(float(module.matching_loss))

    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=40, default_root_dir=tmp_path, callbacks=[Losses()], **settings)
    trainer.fit(method, datamodule=TinyData(size=(8, 8)))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_methods_say_their_names_and_settings(tmp_path):
    dc = fit(tmp_path, CondensationModule(network="MLP"), 1)
    dsa = fit(tmp_path, CondensationModule(network="MLP", augmentation="siamese"), 1)
    dm = fit(tmp_path, DistributionMatching(network="MLP"), 1)
    assert [method.name for method in (dc, dsa, dm)] == ["DC", "DSA", "DM"]
    sources = [method.synthetic_set(1).source for method in (dc, dsa, dm)]
    assert [source["method"] for source in sources] == ["DC", "DSA", "DM"]
    assert [source["lr_images"] for source in sources] == [0.01, 0.01, 1.0]
    assert sources[0]["inner_epochs"] == 1
    assert sources[2]["class"].endswith("DistributionMatching")
    assert "distance" not in sources[2]


class Packed(CondensationModule):
    """Stores four training images in one, and has settings of confusing names."""

    factor = 2

    def __init__(self, method: str = "fast", **kwargs):
        super().__init__(**kwargs)


class Grey(Scripted):
    """Another augmentation."""

    def pair(self, real, synthetic, seed):
        return real, synthetic

    def batch(self, images, seed):
        return images


def test_a_method_may_store_several_images_in_one(tmp_path):
    seen = []

    class Watched(Packed):
        def loss(self, network, real, synthetic, label):
            seen.append(len(synthetic))
            return super().loss(network, real, synthetic, label)

    method = fit(tmp_path, Watched(network="MLP", ipc=2, inner_epochs=1), 1)
    assert seen == [8] * 6
    synthetic = method.synthetic_set(1)
    assert (synthetic.factor, synthetic.ipc, len(synthetic)) == (2, 2, 24)
    decoded = torch.cat([method.decode(method.images_of(label)) for label in range(3)])
    by_class = torch.cat([synthetic.decoded()[0][synthetic.decoded()[1] == label] for label in range(3)])
    torch.testing.assert_close(by_class, decoded)


def test_arguments_of_a_method_do_not_hide_its_name(tmp_path):
    method = fit(tmp_path, Packed(network="MLP", ipc=2, inner_epochs=1), 1)
    assert method.synthetic_set(1).source["method"] == "Packed"


def test_only_the_siamese_augmentation_makes_dsa():
    assert CondensationModule(augmentation="test_methods.Grey").name == "DC"
    path = "dc_lightning.augmentation.Siamese"
    assert CondensationModule(augmentation={"class_path": path, "init_args": {"strategy": "flip"}}).name == "DSA"


def test_rates_of_dm_by_ipc():
    for ipc, rate in {1: 1.0, 10: 1.0, 50: 1.0, 100: 10.0, 1250: 10.0}.items():
        method = DistributionMatching(ipc=ipc)
        method.complete(TinyData())
        assert method.lr_images == rate


def test_an_augmentation_that_cannot_treat_both_batches_alike_is_named(tmp_path):
    with pytest.raises(InputError, match=r"pair\(real, synthetic, seed\) .* lacks pair, batch"):
        fit(tmp_path, CondensationModule(network="MLP", augmentation="conftest.ScaledError"), 1)
