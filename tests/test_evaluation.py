import numpy as np
import pytest
import torch
from conftest import GOLDEN, TinyData, assert_golden, assert_golden_summary, fill_golden, normal
from torch.utils.data import DataLoader, TensorDataset

from dc_lightning import evaluation, networks
from dc_lightning.data import MNIST, Digits
from dc_lightning.errors import InputError
from dc_lightning.evaluation import (
    POOLS,
    Group,
    Recipe,
    Score,
    evaluate_sets,
    pool,
    random_set,
    train_and_test,
    whole_set,
)
from dc_lightning.parts import find_network

CPU = torch.device("cpu")


@pytest.mark.parametrize("entry", GOLDEN["evaluation"], ids=lambda entry: entry["model"])
def test_training_by_the_recipe_is_that_of_the_authors_code(entry, monkeypatch):
    channels, size = entry["channels"], entry["size"]
    network = fill_golden(getattr(networks, entry["model"])(channels, 10, (size, size)))
    monkeypatch.setattr(evaluation, "make_network", lambda *_: network)
    images, labels = normal(2000, 20, channels, size, size), torch.arange(10).repeat_interleave(2)
    test_images = normal(4000, 64, channels, size, size)
    train_accuracies = []

    def record(module, inputs, outputs):
        if module.training:
            rows = (inputs[0][:, None] - images[None]).abs().flatten(2).amax(2).argmin(1)  # the batch is shuffled
            train_accuracies.append(float((outputs.argmax(1) == labels[rows]).float().mean()))

    network.register_forward_hook(record)

    class Data(TinyData):
        def test_dataloader(self):
            labels = torch.tensor(np.random.RandomState(5).randint(0, 10, 64))
            return DataLoader(TensorDataset(test_images, labels), batch_size=64)

    data = Data(channels=channels, classes=10, size=(size, size))
    data.setup()
    recipe = Recipe(epochs=entry["epochs_argument"])
    accuracy, trained = train_and_test(images, labels, entry["model"], data, recipe, 0, CPU)
    assert len(train_accuracies) == entry["epochs_argument"] + 1
    assert train_accuracies[-1] == pytest.approx(entry["train_acc_last_epoch"])
    assert accuracy == pytest.approx(entry["test_acc"])
    logits = trained.eval()(test_images[:2]).detach()
    torch.testing.assert_close(logits, torch.tensor(entry["logits"]), atol=3e-4, rtol=2e-3)
    if "first_weight" in entry:
        assert_golden_summary(next(trained.parameters()), entry["first_weight"])
    assert_golden(logits.sum(1), torch.tensor(entry["logits"]).sum(1))


def test_the_recipe_against_a_plain_loop(tiny_data):
    """Learning rate and momentum drop where the authors' code drops them, weight decay is on, batches are epochs."""
    recipe, seed = Recipe(epochs=6, batch_size=7), 11
    synthetic = random_set(tiny_data, 4, 0)
    accuracy, trained = train_and_test(synthetic.images, synthetic.labels, "MLP", tiny_data, recipe, seed, CPU)
    network = evaluation.make_network("MLP", 1, 3, (6, 6), seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    batches = evaluation._Batches(synthetic.images, synthetic.labels, 7, 7, seed).rows()
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
    batches = evaluation._Batches(images, labels, batch_size=2, epochs=3, seed=0)
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
    monkeypatch.setattr(evaluation, "_TOGETHER", together)
    images, labels = torch.randn(5, 2, 3, 3), torch.arange(5)

    def stamp(images, generator, mean):
        return torch.cat([images.flatten(1), mean], dim=1)

    for batch, targets, rows in evaluation._Batches(images, labels, 2, 4, 0, [stamp, stamp]):
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
            find_network(name)
    with pytest.raises(InputError, match="S, SS, M"):
        pool("Q", "MLP")
    with pytest.raises(InputError, match="empty"):
        pool([], "MLP")


def test_where_augmentation_applies():
    recipe = Recipe()
    assert recipe.augmentation_for("ConvNet", MNIST()) == ["crop", "scale", "rotate"]
    assert recipe.augmentation_for("ConvNetBN", MNIST()) == ["crop", "noise"]
    assert recipe.augmentation_for("ConvNet", Digits()) == []
    assert Recipe(augmentation=[]).augmentation_for("ConvNet", MNIST()) == []
    with pytest.raises(InputError, match="flip"):
        Recipe(augmentation=["flip"])


seen_by_count = []


def count(images, generator, mean):
    """An operation that leaves images as they are."""
    seen_by_count.append(len(images))
    return images


def test_augmented_training_takes_its_own_epochs(tiny_data):
    recipe = Recipe(epochs=2, epochs_augmented=5, augmentation=["test_evaluation.count"])
    seen_by_count.clear()
    (score,) = evaluate_sets([random_set(tiny_data, 1, 0)], tiny_data, ["MLP"], 1, recipe, 0, CPU)
    assert (score.epochs, score.augmentation) == (5, ["test_evaluation.count"])
    assert sum(seen_by_count) == 6 * 3  # every image in every epoch


def test_scores_are_repeatable_recorded_and_pooled(tiny_data):
    sets = [random_set(tiny_data, 2, seed) for seed in (0, 1)]
    recipe = Recipe(epochs=30)
    first = evaluate_sets(sets, tiny_data, ["MLP", "ConvNetD1"], 2, recipe, 5, CPU)
    again = evaluate_sets(sets, tiny_data, ["MLP", "ConvNetD1"], 2, recipe, 5, CPU)
    assert first == again
    assert [len(score.accuracies) for score in first] == [4, 4]
    assert len({seed for score in first for seed in score.seeds}) == 8
    alone, _ = train_and_test(sets[1].images, sets[1].labels, "MLP", tiny_data, recipe, first[0].seeds[2], CPU)
    assert alone == first[0].accuracies[2]


def test_shares_of_the_work_add_up(tiny_data):
    sets, recipe = [random_set(tiny_data, 1, 0)], Recipe(epochs=3)
    shares = []
    for rank in range(2):
        evaluate_sets(sets, tiny_data, ["MLP"], 3, recipe, 0, CPU, Group(rank, 2, lambda t: shares.append(t) or t))
    (whole,) = evaluate_sets(sets, tiny_data, ["MLP"], 3, recipe, 0, CPU)
    assert sum(shares).tolist() == whole.accuracies


def test_more_data_scores_better(tiny_data):
    recipe = Recipe(epochs=100)
    (whole,) = evaluate_sets([whole_set(tiny_data)], tiny_data, ["MLP"], 1, recipe, 0, CPU)
    assert whole.mean > 0.9


def test_score_statistics():
    score = Score("MLP", [0.5, 0.7], [1, 2], 3, [])
    assert score.mean == pytest.approx(0.6)
    assert score.std == pytest.approx(0.1)
    assert score.to_dict()["n"] == 2


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
        evaluate_sets([random_set(other, 1, 0)], tiny_data, ["MLP"], 1, Recipe(), 0, CPU)


def test_a_set_of_other_classes_is_refused(tiny_data):
    other = TinyData()
    other.setup()
    other.class_names = ("cat", "dog", "eel")
    with pytest.raises(InputError, match=r"names of the classes .*cat"):
        evaluate_sets([random_set(other, 1, 0)], tiny_data, ["MLP"], 1, Recipe(), 0, CPU)


def test_another_normalisation_is_translated(tiny_data):
    other = TinyData(mean=[0.0], std=[1.0])
    other.setup()
    recipe = Recipe(epochs=5)
    (ours,) = evaluate_sets([random_set(tiny_data, 1, 0)], tiny_data, ["MLP"], 2, recipe, 0, CPU)
    (theirs,) = evaluate_sets([random_set(other, 1, 0)], tiny_data, ["MLP"], 2, recipe, 0, CPU)
    assert ours.accuracies == theirs.accuracies
