"""IDC and DREAM: numbers of the authors' codes in float64, distributions of what is drawn, resume, processes."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import (
    GOLDEN_FOLDER,
    TinyData,
    assert_golden,
    assert_golden_summary,
    fill_golden,
    quiet_trainer,
    some_slow,
)
from conftest import normal as golden_normal
from torch.utils.data import DataLoader, TensorDataset

from dc_lightning import DREAM, IDC, DistributionMatching, Recipe, SyntheticSet
from dc_lightning.augmentation import siamese
from dc_lightning.augmentation.cutmix import box_of, cut_mix
from dc_lightning.cli import check_words
from dc_lightning.data import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST
from dc_lightning.evaluation import load_recipe
from dc_lightning.evaluation.training import Job, train_and_test
from dc_lightning.files import shipped
from dc_lightning.matching.distances import squared_error
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.networks import NETWORKS
from dc_lightning.synthetic.formation import decode, decode_bounded, images_in_one, pack
from dc_lightning.synthetic.initial import cluster_centres, nearest

GOLDEN = json.loads((GOLDEN_FOLDER / "idc_dream.json").read_text())
STATISTICS = {"fashion": FashionMNIST, "cifar10": CIFAR10}
DATASETS = {"mnist": MNIST, "fashion": FashionMNIST, "svhn": SVHN, "cifar10": CIFAR10, "cifar100": CIFAR100}


def pixels(seed, *shape):
    return (0.5 + golden_normal(seed, *shape) / 4).clamp(0, 1)


def drawn_labels(seed, count):
    return torch.tensor(np.random.RandomState(seed).randint(0, 10, count))


def normalize(entry, images):
    data = STATISTICS[entry["dataset"]]
    mean, std = (
        torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in (data.default_mean, data.default_std)
    )
    return (images - mean) / std


def golden_network(entry):
    shape = entry["channels"], 10, (entry["size"], entry["size"])
    return fill_golden(NETWORKS["ConvNet"](*shape)).train()


def settings_of(entry):
    return "-".join(str(entry[key]) for key in ("dataset", "size", "factor", "type", "metric") if key in entry)


@pytest.mark.parametrize("entry", GOLDEN["decode"], ids=lambda e: f"{e['size']}-{e['factor']}-{e['type']}")
def test_images_decode_as_in_the_authors_code(entry):
    images = pixels(2000, 3, entry["channels"], entry["size"], entry["size"])
    if entry["type"] == "bound":
        found = decode_bounded(images, entry["factor"], entry["bound"])
        assert len(found) == len(entry["targets"])
    else:
        found = decode(images, entry["factor"], entry["type"])
        assert torch.arange(3).repeat(images_in_one(entry["factor"], entry["type"])).tolist() == entry["targets"]
        stored = SyntheticSet(
            images,
            torch.arange(3),
            (0.3,) * entry["channels"],
            (0.2,) * entry["channels"],
            ("a", "b", "c"),
            space="pixels",
            factor=entry["factor"],
            formation=entry["type"],
        )
        normalised, labels = stored.decoded()
        torch.testing.assert_close(normalised, (found - 0.3) / 0.2)
        assert labels.tolist() == entry["targets"]
        assert len(stored) == len(labels)
    assert_golden_summary(found, entry["decoded"])
    assert_golden(found.flatten(1).sum(1), entry["decoded"]["image_sums"])


@pytest.mark.parametrize("entry", GOLDEN["packing"], ids=lambda e: f"{e['size']}-{e['factor']}")
def test_images_are_packed_as_in_the_authors_code(entry):
    channels, size, ipc, factor = (entry[key] for key in ("channels", "size", "ipc", "factor"))
    real = pixels(1000, 2, ipc * factor**2, channels, size, size)
    packed = torch.cat([pack(images, factor) for images in real])
    assert_golden_summary(packed, entry["packed"])
    decoded = decode(packed[:ipc], factor)
    assert_golden_summary(decoded, entry["decoded_class_0"])
    assert_golden((decoded - real[0]).abs().flatten(1).mean(1), entry["mean_absolute_difference_to_real"])


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (28, 28), (5, 4)])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_packing_keeps_the_size_and_decoding_inverts_it_for_flat_images(size, factor):
    flat = torch.rand(factor**2 * 2, 1, 1, 1).expand(-1, 3, *size)
    packed = pack(flat, factor)
    assert packed.shape == (2, 3, *size)
    if not (size[0] % factor or size[1] % factor):
        torch.testing.assert_close(decode(packed, factor), flat)


@pytest.mark.parametrize(
    ("entry", "chunk"),
    [(entry, None) for entry in GOLDEN["matching"]] + [(GOLDEN["matching"][place], 3) for place in (0, 7)],
    ids=lambda value: settings_of(value) if isinstance(value, dict) else str(value),
)
def test_losses_and_image_gradients_are_those_of_the_authors_code(entry, chunk):
    channels, size, ipc, metric = (entry[key] for key in ("channels", "size", "ipc", "metric"))
    network = golden_network(entry)
    real = pixels(1000, 2, entry["real"], channels, size, size)
    stored = pixels(2000, 2 * ipc, channels, size, size).requires_grad_()
    losses = []
    for label in range(2):
        synthetic = normalize(entry, decode(stored[ipc * label : ipc * (label + 1)], entry["factor"], entry["type"]))
        batches = normalize(entry, real[label]), synthetic
        if metric == "feature":
            losses.append(DistributionMatching(real_chunk_size=chunk).loss(network, *batches, label))
        elif metric == "mse_all":
            target, gradient = (network_gradient(network, each, label, create_graph=True) for each in batches)
            losses.append(squared_error(gradient, [tensor.detach() for tensor in target]))
        else:
            method = IDC(distance=metric, real_chunk_size=chunk)
            losses.append(method.loss(network, *batches, label))
    assert_golden([loss.item() for loss in losses], entry["loss_per_class"])
    assert_golden_summary(torch.autograd.grad(sum(losses), stored)[0], entry["image_grad"])


@pytest.mark.parametrize("entry", GOLDEN["dream"]["dream_plus_matching"], ids=settings_of)
def test_features_and_gradients_together_are_dream_plus(entry):
    shape = {"size": 28 if entry["dataset"] == "fashion" else 32, "channels": 1 if entry["dataset"] == "fashion" else 3}
    network, size, ipc = golden_network({**entry, **shape}), shape["size"], entry["ipc"]
    real = pixels(1000, 2, entry["real"], shape["channels"], size, size)
    stored = pixels(2000, 2 * ipc, shape["channels"], size, size).requires_grad_()
    losses = []
    for label in range(2):
        synthetic = normalize(entry, decode(stored[ipc * label : ipc * (label + 1)], entry["factor"]))
        batches = network, normalize(entry, real[label]), synthetic, label
        losses.append(DistributionMatching().loss(*batches) + IDC(distance="mse").loss(*batches))
    assert_golden([loss.item() for loss in losses], entry["loss_per_class"])
    assert_golden_summary(torch.autograd.grad(sum(losses), stored)[0], entry["image_grad"])


@pytest.mark.parametrize("entry", GOLDEN["boxes"], ids=str)
def test_boxes_are_those_of_the_authors_code(entry):
    box = box_of(entry["lambda"], tuple(entry["centre"]), (entry["size"], entry["size"]))
    assert [list(box[:2]), list(box[2:])] == [entry["rows"], entry["columns"]]


class Scripted:
    """What a golden entry says of CutMix, batch by batch."""

    def __init__(self, steps):
        self.steps = iter(steps)

    def __call__(self, images, labels, generator):
        step = next(self.steps)
        if step["mixup"] == "vanilla":
            return images, labels
        shares = torch.nn.functional.one_hot(labels, 10).to(images.dtype)
        return cut_mix(images, shares, (*step["rows"], *step["columns"]), torch.tensor(step["permutation"]))


class Run(IDC):
    """IDC on the images of a golden entry."""

    def __init__(self, entry, **kwargs):
        super().__init__(
            augmentation=None,
            network_augmentation=None,
            network="test_idc.scripted_network",
            network_images=1,
            **{"cutmix": 0.0, **kwargs},
        )
        self.entry, self.given = entry, []

    def real_batch(self, label, step):
        seed = 1000 + 100 * self.current_epoch + 10 * step + label
        return normalize(self.entry, pixels(seed, self.entry["real"], *self.data.shape))

    def network_batch(self, step, number):
        seed = 5000 + 100 * self.current_epoch + 10 * step
        images = normalize(self.entry, pixels(seed, 16, *self.data.shape))
        return images, drawn_labels(seed + 1000, 16)


ENTRY = [{}]


def scripted_network(channels, num_classes, image_size):
    return golden_network(ENTRY[0])


@pytest.fixture
def ten_logits(monkeypatch):
    monkeypatch.setattr("dc_lightning.methods.base.check_network", lambda *_: None)


@pytest.mark.parametrize("entry", GOLDEN["training"], ids=settings_of)
def test_networks_train_as_in_the_authors_code(entry, monkeypatch):
    method = Run(entry, cutmix=1.0)
    network, weights, number = golden_network(entry), [], iter(range(3))
    method.images = torch.nn.Parameter(torch.zeros(1))
    shape = entry["channels"], entry["size"], entry["size"]
    batches = [(normalize(entry, pixels(5000 + t, 16, *shape)), drawn_labels(6000 + t, 16)) for t in range(3)]
    monkeypatch.setattr(method, "network_batch", lambda step, _: batches[next(number)])
    monkeypatch.setattr(type(method), "current_epoch", 0)
    method.mix = Scripted(entry["steps"])
    method.prepare_network(network, 0)
    for step in range(3):
        method.train_network(network, step)
        weights.append([list(network.parameters())[place].detach().clone() for place in (0, -2)])
    for found, expected in zip(weights, entry["steps"], strict=True):
        assert_golden_summary(found[0], expected["first_weight"])
        assert_golden_summary(found[1], expected["last_weight"])


@pytest.mark.parametrize("entry", some_slow(GOLDEN["trajectory"], GOLDEN["trajectory"][:1]), ids=settings_of)
def test_two_outer_iterations_are_those_of_the_authors_code(entry, tmp_path, ten_logits):
    """One step of the image optimizer a class, clamping, networks and their momentum."""
    ENTRY[0] = entry
    data = TinyData(channels=entry["channels"], size=(entry["size"], entry["size"]))
    data.given_mean, data.given_std = (
        STATISTICS[entry["dataset"]].default_mean,
        STATISTICS[entry["dataset"]].default_std,
    )
    data.setup()
    method = Run(entry, distance=entry["metric"], outer_steps=2, lr_images=entry["lr_images"], ipc=entry["ipc"])
    start = 0.5 + golden_normal(2000, 3 * entry["ipc"], *data.shape) / 4
    method.images = torch.nn.Parameter(start)
    method.register_buffer("labels", torch.arange(3).repeat_interleave(entry["ipc"]), persistent=False)
    rounds, losses, weights = [], [], []

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rounds.append(module.images.detach().clone())
            losses.append(3 * float(module.matching_loss) * (batch_idx + 1))
            if batch_idx == 1:
                module.train_network(module.network, 1)  # ours leaves out the last one, of which nothing comes
                weights[:] = [list(module.network.parameters())[place] for place in (0, -2)]

    trainer = quiet_trainer(tmp_path, max_epochs=2, precision="64-true", callbacks=[Steps()])
    trainer.fit(method, datamodule=data)
    for images, expected in zip(rounds, entry["images_after_each_round"], strict=True):
        assert_golden_summary(images, expected)
    assert_golden_summary(method.images, entry["images"])
    by_round = [sum(entry["losses"][3 * number : 3 * number + 3]) for number in range(4)]
    assert_golden([losses[0], losses[1] - losses[0], losses[2], losses[3] - losses[2]], by_round)
    assert_golden_summary(weights[0], entry["first_weight"])
    assert_golden_summary(weights[1], entry["last_weight"])


@pytest.mark.parametrize("entry", some_slow(GOLDEN["evaluation"], GOLDEN["evaluation"][:1]), ids=settings_of)
def test_training_by_the_recipe_is_that_of_the_authors_code(entry):
    ENTRY[0] = entry
    channels, size = entry["channels"], entry["size"]
    test_images = normalize(entry, pixels(4000, 64, channels, size, size))

    class Data(TinyData):
        def test_dataloader(self):
            return DataLoader(TensorDataset(test_images, drawn_labels(4005, 64)), batch_size=64)

    data = Data(channels=channels, classes=10, size=(size, size))
    data.given_mean, data.given_std = (
        STATISTICS[entry["dataset"]].default_mean,
        STATISTICS[entry["dataset"]].default_std,
    )
    data.setup()
    stored = pixels(2000, 10, channels, size, size)
    synthetic = SyntheticSet(stored, torch.arange(10), data.mean, data.std, data.class_names, space="pixels", factor=2)
    recipe = load_recipe("idc")
    rates = [recipe.lr * recipe.lr_factor ** sum(epoch >= drop for drop in recipe.drops(6)) for epoch in range(6)]
    assert_golden(rates, entry["learning_rates"])
    assert recipe.drops(1000) == [666, 833]
    assert recipe.epochs_run(1000) == 1000
    plain = Recipe(**{**vars(recipe.with_epochs(entry["epochs"])), "augmentation": [], "cutmix": 0.0})
    accuracy, trained = train_and_test(synthetic, Job("test_idc.scripted_network", plain, 0), data, torch.device("cpu"))
    assert accuracy == pytest.approx(entry["accuracy_last"] / 100)
    assert_golden(trained(test_images[:2]).detach(), entry["logits"])
    assert_golden_summary(list(trained.parameters())[-2], entry["last_weight"])


FROM_UNIFORM = {
    "brightness": lambda images, u: siamese.brightness(images, u - 0.5),
    "saturation": lambda images, u: siamese.saturation(images, 2 * u),
    "contrast": lambda images, u: siamese.contrast(images, 0.5 + u),
    "color": lambda images, u, v, w: siamese.color(images, u - 0.5, 2 * v, 0.5 + w),
    "crop": lambda images, rows, columns: siamese.crop(images, rows.long(), columns.long()),
    "cutout": lambda images, rows, columns: siamese.cutout(images, rows.long(), columns.long()),
    "flip": lambda images, u: siamese.flip(images, u < 0.5),
    "scale": lambda images, *u: siamese.scale(images, *(1 / 1.2 + each * (1.2 - 1 / 1.2) for each in u)),
    "rotate": lambda images, u: siamese.rotate(images, (2 * u - 1) * 15),
}
DRAWS = {"color": 3, "crop": 2, "cutout": 2, "scale": 2}


def apply_golden(entry, images):
    """The operations of an entry, with what was drawn for them in the order of the authors' code."""
    names, values = entry["operation"].split("_"), list(entry["drawn"])
    if len(names) > 1:
        values = [value for _, value in values]
        choices = [name for name in names if name in ("crop", "scale", "rotate")]
        at = 3 + ("flip" in names)
        names = [name for name in ("flip", "color", choices[int(values.pop(at))], "cutout") if name in names]
    for name in names:
        drawn = [torch.tensor(values.pop(0), dtype=torch.float64).view(-1) for _ in range(DRAWS.get(name, 1))]
        images = FROM_UNIFORM[name](images, *drawn)
    assert not values
    return images


@pytest.mark.parametrize(
    "entry",
    GOLDEN["augmentation"],
    ids=lambda e: f"{e['operation']}-{'one' if e['one_draw_for_all'] else 'each'}-{e['size']}",
)
def test_augmentation_is_that_of_the_authors_code(entry):
    images = golden_normal(8000, 4, entry["channels"], entry["size"], entry["size"])
    assert_golden_summary(apply_golden(entry, images), entry["result"])


@pytest.mark.parametrize("entry", GOLDEN["settings"]["rows"], ids=lambda e: f"{e['dataset']}-{e['factor']}-{e['ipc']}")
def test_settings_are_the_authors(entry):
    data = DATASETS[entry["dataset"]]()
    data.channels, data.image_size, data.num_classes = (1 if entry["size"] == 28 else 3), (entry["size"],) * 2, 10
    method = IDC(factor=entry["factor"], ipc=entry["ipc"])
    method.complete(data)
    assert method.distance == entry["metric"]
    assert method.lr_images == pytest.approx(entry["lr_img"])
    assert method.network_images == entry["n_data"]
    assert (method.name == "IDC") == (entry["factor"] == 2)
    recipe = load_recipe("idc")
    if entry["mixup"] == "cut":
        assert set(recipe.make_augmentation("ConvNet", data).names) == set(entry["dsa_strategy"].split("_"))
    if entry["mixup_net"] == "cut":
        assert method.augmentation_spec["init_args"]["strategy"] == entry["aug_type"]
        assert method.cutmix == GOLDEN["settings"]["always"]["mix_p"]
    always = GOLDEN["settings"]["always"]
    assert (method.outer_steps, method.momentum_images) == (always["inner_loop"], always["mom_img"])
    assert method.sgd == {key: always[key] for key in ("lr", "momentum", "weight_decay")}
    assert (method.batch_network, method.batch_synthetic) == (always["batch_size"], always["batch_syn_max"])
    assert (recipe.batch_size, recipe.epochs_of(augmented=True)) == (always["batch_size"], always["epochs"])


ROWS_OF_THEIR_OWN = [row for row in GOLDEN["settings"]["rows"] if row["mixup"] != "cut"]


@pytest.mark.parametrize("entry", ROWS_OF_THEIR_OWN, ids=lambda e: f"{e['dataset']}-{e['factor']}-{e['ipc']}")
def test_words_in_the_yaml_give_the_settings_of_datasets_of_their_own(entry):
    file = f"configs/methods/{'idc' if entry['factor'] == 2 else 'idc_i'}.yaml"
    said = [line[1:] for line in shipped(file.removeprefix("configs/")).read_text().splitlines() if line[:5] == "#   -"]
    words = f"fit --config configs/base.yaml --config {file} --data {entry['dataset'].upper()}"
    config = check_words(shlex.split(" ".join([words, *said])))
    model, recipe = config["model"]["init_args"], config["evaluation"]["recipe"]
    assert model["factor"] == entry["factor"]
    assert model["augmentation"]["init_args"]["strategy"] == entry["aug_type"]
    assert (model["cutmix"] > 0) == (entry["mixup_net"] == "cut")
    assert recipe["cutmix"] == 0
    data = DATASETS[entry["dataset"]]()
    found = Recipe(augmentation=recipe["augmentation"]).make_augmentation("ConvNet", data)
    assert set(found.names) == set(entry["dsa_strategy"].split("_"))


@pytest.mark.parametrize("entry", GOLDEN["dream"]["nearest"], ids=lambda e: str(e["centres"]))
def test_the_nearest_images_are_those_of_the_authors_code(entry):
    count, width = entry["features"]
    found = nearest(golden_normal(9000, count, width), golden_normal(9100, entry["centres"], width))
    assert found.tolist() == entry["nearest"]


@pytest.mark.parametrize("entry", GOLDEN["dream"]["k_means"], ids=lambda e: str(e["clusters"]))
def test_clusters_are_those_of_the_authors_code(entry):
    (count, width), clusters = entry["features"], entry["clusters"]
    shift = 2 * golden_normal(9300, clusters, width)[torch.arange(count) % clusters]
    points = golden_normal(9200, count, width) + shift
    centres = cluster_centres(points, clusters, 0, points[:clusters].clone())
    assert_golden_summary(centres, entry["centroids"])
    assert nearest(points, centres).tolist() == entry["chosen"]
    assert torch.cdist(points, centres).argmin(1).tolist() == entry["labels"]


def test_a_choice_holds_a_chunk_of_a_class_in_memory(tiny_data):
    order = []

    class Noting(torch.nn.Sequential):
        def forward(self, images):
            order.append(("embed", len(images)))
            return super().forward(images)

    def take(rows):
        order.append(("read", len(rows)))
        return torch.zeros(len(rows), 1, 6, 6)

    tiny_data.real = SimpleNamespace(rows=[torch.arange(600)], take=take)
    method = DREAM()
    method.trainer = SimpleNamespace(datamodule=tiny_data)
    assert len(method.features(Noting(torch.nn.Flatten(), torch.nn.Linear(36, 3)), 0)) == 600
    assert order == [(what, size) for size in (256, 256, 88) for what in ("read", "embed")]


@pytest.mark.parametrize("entry", GOLDEN["dream"]["selection"], ids=settings_of)
def test_representatives_are_those_of_the_authors_code(entry):
    shape = entry["channels"], entry["size"], entry["size"]
    noise = golden_normal(9400, 48, *shape) / 8
    images = (0.5 + golden_normal(9500, 4, *shape)[torch.arange(48) % 4] / 4 + noise).clamp(0, 1)
    data = STATISTICS[entry["dataset"]]()
    data.mean, data.std = data.default_mean, data.default_std
    normalised = data.normalize(images)
    data.real = SimpleNamespace(rows=[torch.arange(48)], take=lambda rows: normalised[rows])
    method = DREAM()
    method.trainer = SimpleNamespace(datamodule=data)
    features = method.features(golden_network(entry), 0)
    assert_golden_summary(features, entry["features"])
    centres = cluster_centres(features, entry["clusters"], 0, features[: entry["clusters"]].clone())
    assert nearest(features, centres).tolist() == entry["chosen"]
