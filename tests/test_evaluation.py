import gc
import weakref
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TinyData, assert_golden, assert_golden_summary, fill_golden, normal
from torch.utils.data import DataLoader, TensorDataset

from dc_lightning import Evaluator, InputError, Recipe, SyntheticSet, load_recipe
from dc_lightning.augmentation import OperationPerImage
from dc_lightning.data import MNIST, SVHN, Digits, FashionMNIST
from dc_lightning.evaluation import Score, training
from dc_lightning.evaluation.baselines import random_set, whole_set
from dc_lightning.evaluation.evaluator import Group
from dc_lightning.evaluation.pools import POOLS, pool
from dc_lightning.evaluation.training import Batches, Job, train_and_test
from dc_lightning.networks import NETWORKS, make_network

CPU = torch.device("cpu")


def score(sets, data, networks, count, recipe, seed=0, group=None):
    return Evaluator(data, CPU, seed, group or Group()).score(sets, networks, count, recipe)


noted = []


def golden_network(channels, num_classes, image_size):
    network = fill_golden(NETWORKS[GOLDEN_NAME[0]](channels, num_classes, image_size))
    network.register_forward_hook(lambda module, inputs, outputs: noted.append((module.training, inputs[0], outputs)))
    return network


GOLDEN_NAME = [""]


@pytest.mark.parametrize("entry", GOLDEN["evaluation"], ids=lambda entry: entry["model"])
def test_training_by_the_recipe_is_that_of_the_authors_code(entry):
    channels, size = entry["channels"], entry["size"]
    GOLDEN_NAME[0] = entry["model"]
    noted.clear()
    images, labels = normal(2000, 20, channels, size, size), torch.arange(10).repeat_interleave(2)
    test_images = normal(4000, 64, channels, size, size)

    class Data(TinyData):
        def test_dataloader(self):
            labels = torch.tensor(np.random.RandomState(5).randint(0, 10, 64))
            return DataLoader(TensorDataset(test_images, labels), batch_size=64)

    data = Data(channels=channels, classes=10, size=(size, size))
    data.setup()
    synthetic = SyntheticSet(images, labels, data.mean, data.std, data.class_names)
    job = Job("test_evaluation.golden_network", Recipe(epochs=entry["epochs_argument"]), 0)
    accuracy, trained = train_and_test(synthetic, job, data, CPU)
    steps = [(inputs, outputs) for is_training, inputs, outputs in noted if is_training]
    assert len(steps) == entry["epochs_argument"] + 1
    inputs, outputs = steps[-1]
    rows = (inputs[:, None] - images[None]).abs().flatten(2).amax(2).argmin(1)  # the batch is shuffled
    right = (outputs.argmax(1) == labels[rows]).double().mean()
    assert float(right) == pytest.approx(entry["train_acc_last_epoch"])
    assert accuracy == pytest.approx(entry["test_acc"])
    assert_golden(trained.eval()(test_images[:2]).detach(), entry["logits"])
    if "first_weight" in entry:
        assert_golden_summary(next(trained.parameters()), entry["first_weight"])


def test_the_recipe_against_a_plain_loop(tiny_data):
    """Learning rate and momentum drop where the authors' code drops them, weight decay is on, batches are epochs."""
    recipe, seed = Recipe(epochs=6, batch_size=7), 11
    synthetic = random_set(tiny_data, 4, 0)
    accuracy, trained = train_and_test(synthetic, Job("MLP", recipe, seed), tiny_data, CPU)
    network = make_network("MLP", tiny_data, seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    batches = Batches(synthetic.images, synthetic.labels, 7, 7, seed).rows()
    for epoch in range(7):
        for _ in range(2):
            rows = next(batches)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(synthetic.images[rows]), synthetic.labels[rows]).backward()
            optimizer.step()
        if epoch == 6 // 2 + 1:
            optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9, weight_decay=5e-4)
    for a, b in zip(trained.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    images, labels = next(iter(tiny_data.test_dataloader()))
    assert accuracy == pytest.approx(float((network(images).argmax(1) == labels).float().mean()))


def test_batches_are_whole_epochs():
    images, labels = torch.arange(5.0).view(5, 1, 1, 1), torch.arange(5) + 10
    batches = Batches(images, labels, batch_size=2, epochs=3, seed=0)
    assert len(batches) == 9
    seen = [tuple(part.flatten().tolist() for part in batch) for batch in batches]
    assert [len(rows) for _, _, rows in seen] == [2, 2, 1] * 3
    assert all(pixels == rows and targets == [row + 10 for row in rows] for pixels, targets, rows in seen)
    rows = torch.tensor([row for _, _, batch in seen for row in batch]).view(3, 5)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(5).expand(3, 5))
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("together", [1, 100, 2**21])
def test_batches_are_augmented_each_with_its_own_mean(together, monkeypatch):
    """As many at once as there is room for: nothing is lost, mixed up, or filled with the mean of another batch."""
    monkeypatch.setattr(training, "_TOGETHER", together)
    images, labels = torch.randn(5, 2, 3, 3), torch.arange(5)

    def stamp(images, generator, mean):
        return torch.cat([images.flatten(1), mean], dim=1)

    for batch, targets, rows in Batches(images, labels, 2, 4, 0, OperationPerImage([stamp, stamp])):
        assert torch.equal(batch[:, :-2], images[rows].flatten(1))
        assert torch.equal(targets, rows)
        torch.testing.assert_close(batch[:, -2:], images[rows].mean(dim=(0, 2, 3)).expand(len(rows), 2))


def test_pools():
    assert pool("S", "VGG11BN") == ["VGG11"]
    assert pool("S", "ResNet18BN_AP") == ["ResNet18"]
    assert pool("SS", "VGG11BN") == ["VGG11BN"]
    assert pool("M", "MLP") == ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"]
    assert pool("LeNet", "MLP") == ["LeNet"]
    assert pool(["LeNet", "my.BNet"], "MLP") == ["LeNet", "my.BNet"]
    assert pool("S", "my.BNet") == ["my.BNet"]
    for names in POOLS.values():
        for name in names:
            assert name in NETWORKS
    with pytest.raises(InputError, match="S, SS, M"):
        pool("Q", "MLP")
    with pytest.raises(InputError, match="empty"):
        pool([], "MLP")


def test_where_augmentation_applies():
    recipe = Recipe()
    assert recipe.augmentation_spec("ConvNet", MNIST()) == ["crop", "scale", "rotate"]
    assert recipe.augmentation_spec("ConvNetBN", MNIST()) == ["crop", "noise"]
    assert recipe.augmentation_spec("ConvNet", Digits()) == []
    assert Recipe(augmentation=[]).augmentation_spec("ConvNet", MNIST()) == []
    with pytest.raises(InputError, match="flip"):
        Recipe(augmentation=["flip"])


def test_dsas_recipe_is_for_every_network_with_the_strategy_of_the_dataset():
    recipe = load_recipe("dsa")
    for data, strategy in (
        (MNIST(), "color_crop_cutout_scale_rotate"),
        (SVHN(), "color_crop_cutout_scale_rotate"),
        (FashionMNIST(), "color_crop_cutout_flip_scale_rotate"),
    ):
        for network in ("ConvNet", "ConvNetBN", "MLP"):
            assert recipe.epochs_for(network, data) == 1000
            assert recipe.augmentation_names(network, data) == [f"siamese({strategy})"]
            assert recipe.make_augmentation(network, data).strategy == strategy
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.01, 0.9, 5e-4, 256)
    assert recipe.drops(1000) == [502]
    assert load_recipe("dc") == Recipe()


def test_a_recipe_of_ones_own_is_read_and_an_unknown_setting_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "evaluation: {recipe: {name: mine, milestones: [0.5, 0.8], lr_factor: 2e-1, fresh_momentum: false}}"
    )
    assert load_recipe(str(path)).drops(10) == [7, 10]
    path.write_text("evaluation: {recipe: {speed: 3}}")
    with pytest.raises(InputError, match=r"mine\.yaml' holds no evaluation\.recipe that is understood: .*speed"):
        load_recipe(str(path))
    path.write_text("epochs: 3")
    with pytest.raises(InputError, match="there is no key 'evaluation'"):
        load_recipe(str(path))
    with pytest.raises(InputError, match=r"no 'evaluation/idcc\.yaml'"):
        load_recipe("idcc")


seen_by_count = []


def count(images, generator, mean):
    """An operation that leaves images as they are."""
    seen_by_count.append(len(images))
    return images


def test_augmented_training_takes_its_own_epochs(tiny_data):
    recipe = Recipe(epochs=2, epochs_augmented=5, augmentation=["test_evaluation.count"])
    seen_by_count.clear()
    (found,) = score([random_set(tiny_data, 1, 0)], tiny_data, ["MLP"], 1, recipe)
    assert (found.epochs, found.augmentation) == (5, ["test_evaluation.count"])
    assert sum(seen_by_count) == 6 * 3  # every image in every epoch


class CutMix:
    """Somebody's own augmentation of images and labels: one box, labels mixed by its area."""

    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self, classes):
        self.classes = classes

    def __call__(self, images, labels, generator):
        order = torch.randperm(len(images), generator=generator)
        mixed = images.clone()
        mixed[:, :, :3] = images[order][:, :, :3]
        one_hot = torch.nn.functional.one_hot(labels, self.classes).float()
        self.seen.append(0.5 * one_hot + 0.5 * one_hot[order])
        return mixed, self.seen[-1]


def test_a_recipe_takes_an_augmentation_of_labels_and_a_loss_and_says_so(tiny_data):
    cutmix = {"class_path": "test_evaluation.CutMix", "init_args": {"classes": 3}}
    recipe = Recipe(name="mixed", epochs_augmented=4, augmentation=cutmix, loss="conftest.smooth_loss")
    CutMix.seen.clear()
    (found,) = score([random_set(tiny_data, 2, 0)], tiny_data, ["MLP"], 1, recipe)
    assert len(CutMix.seen) == 5
    assert (found.recipe, found.augmentation) == ("mixed", ["test_evaluation.CutMix(classes=3)"])
    assert found.to_dict()["loss"] == "conftest.smooth_loss"


def test_soft_labels_train_by_their_probabilities(tiny_data):
    """One-hot probabilities are hard labels; halves between classes are others."""
    hard = random_set(tiny_data, 2, 0)
    one_hot = torch.nn.functional.one_hot(hard.labels, 3).float()
    recipe = Recipe(epochs=20)
    _, expected = train_and_test(hard, Job("MLP", recipe, 0), tiny_data, CPU)
    for labels, same in ((one_hot, True), ((one_hot + 1 / 3) / 2, False)):
        _, network = train_and_test(replace(hard, labels=labels), Job("MLP", recipe, 0), tiny_data, CPU)
        close = [
            torch.allclose(a, b, atol=1e-5) for a, b in zip(network.parameters(), expected.parameters(), strict=True)
        ]
        assert all(close) is same


def test_scores_are_repeatable_recorded_and_pooled(tiny_data):
    sets = [random_set(tiny_data, 2, seed) for seed in (0, 1)]
    recipe = Recipe(epochs=30)
    first = score(sets, tiny_data, ["MLP", "ConvNetD1"], 2, recipe, 5)
    again = score(sets, tiny_data, ["MLP", "ConvNetD1"], 2, recipe, 5)
    assert first == again
    assert [len(score.accuracies) for score in first] == [4, 4]
    assert len({seed for score in first for seed in score.seeds}) == 8
    alone, _ = train_and_test(sets[1], Job("MLP", recipe, first[0].seeds[2]), tiny_data, CPU)
    assert alone == first[0].accuracies[2]


def test_shares_of_the_work_add_up(tiny_data):
    sets, recipe = [random_set(tiny_data, 1, 0)], Recipe(epochs=3)
    shares = []
    for rank in range(2):
        score(sets, tiny_data, ["MLP"], 3, recipe, group=Group(rank, 2, lambda t: shares.append(t) or t))
    (whole,) = score(sets, tiny_data, ["MLP"], 3, recipe)
    assert sum(shares).tolist() == whole.accuracies


def test_more_data_scores_better(tiny_data):
    recipe = Recipe(epochs=100)
    (whole,) = score([whole_set(tiny_data)], tiny_data, ["MLP"], 1, recipe)
    assert whole.mean > 0.9


def test_score_statistics():
    found = Score("MLP", [0.5, 0.7], [1, 2], 3, [])
    assert found.mean == pytest.approx(0.6)
    assert found.std == pytest.approx(0.1)
    assert found.to_dict()["n"] == 2


def test_random_set_has_its_budget(tiny_data):
    synthetic = random_set(tiny_data, 3, 0)
    assert synthetic.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(synthetic.images, random_set(tiny_data, 3, 0).images)
    assert not torch.equal(synthetic.images, random_set(tiny_data, 3, 1).images)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TinyData(classes=4), "classes 4 against 3"),
        (TinyData(channels=3), "channels 3 against 1"),
        (TinyData(size=(8, 6)), r"image size \(8, 6\) against \(6, 6\)"),
    ],
)
def test_a_set_of_other_data_is_refused(tiny_data, other, message):
    other.setup()
    with pytest.raises(InputError, match=message):
        score([random_set(other, 1, 0)], tiny_data, ["MLP"], 1, Recipe())


def test_a_set_of_other_classes_is_refused(tiny_data):
    other = TinyData()
    other.setup()
    other.class_names = ("cat", "dog", "eel")
    with pytest.raises(InputError, match=r"names of the classes .*cat"):
        score([random_set(other, 1, 0)], tiny_data, ["MLP"], 1, Recipe())


def test_another_normalisation_is_translated(tiny_data):
    other = TinyData(mean=[0.0], std=[1.0])
    other.setup()
    recipe = Recipe(epochs=5)
    (ours,) = score([random_set(tiny_data, 1, 0)], tiny_data, ["MLP"], 2, recipe)
    (theirs,) = score([random_set(other, 1, 0)], tiny_data, ["MLP"], 2, recipe)
    assert ours.accuracies == theirs.accuracies


def test_the_images_of_a_training_are_freed_with_it(tiny_data):
    """And not when Python's collector comes by: a whole training set a network adds up."""
    synthetic = random_set(tiny_data, 4, 0)
    images = weakref.ref(synthetic.images)
    gc.collect()
    gc.disable()
    try:
        train_and_test(synthetic, Job("MLP", Recipe(epochs=1), 0), tiny_data, CPU)
        del synthetic
        assert images() is None
    finally:
        gc.enable()


def test_one_setting_shortens_a_recipe_that_always_augments(tiny_data):
    for name in ("dsa", "idc"):
        recipe = load_recipe(name)
        assert recipe.epochs_for("ConvNet", tiny_data) == 1000
        assert replace(recipe, epochs=20).epochs_for("ConvNet", tiny_data) == 20
    assert Recipe(epochs=20, augmentation="siamese").epochs_for("ConvNet", tiny_data) == 1000
