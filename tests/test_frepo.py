"""FRePo: numbers of the authors' code, the derivative by differences, what trains, resume, processes, bad input."""

import json
import signal

import pytest
import torch
from children import RUN, run
from conftest import GOLDEN_FOLDER, TinyData, assert_golden, quiet_trainer, some_slow
from sklearn.kernel_ridge import KernelRidge
from test_resume import assert_same, outcome

from dc_lightning import FRePo, InputError, load_synthetic
from dc_lightning.matching.embeddings import embed
from dc_lightning.methods.frepo import ridge_prediction, trained_prediction

GOLDEN = json.loads((GOLDEN_FOLDER / "frepo.json").read_text())
NETWORK = {"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}
ARGS = [
    *"fit --model dc_lightning.FRePo --data conftest.TinyData --data.batch_real 5 --model.ipc 2".split(),
    *"--model.factor 2 --model.outer_steps 5 --model.batch_synthetic 7 --trainer.max_epochs 3".split(),
    *"--trainer.accelerator cpu --evaluation.num_networks 1 --evaluation.every_n 2".split(),
    *"--evaluation.recipe.epochs 3 --checkpoint.every_n 2 --checkpoint.last_every_seconds 0".split(),
    *("--model.network", json.dumps(NETWORK)),
]


def centred(labels, classes=3):
    return torch.eye(classes, dtype=torch.float64)[labels] - 1 / classes


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["ridge"]))
def test_prediction_loss_and_derivative_are_those_of_the_authors(case):
    real, synthetic = (torch.tensor(GOLDEN[name], dtype=torch.float64) for name in ("real", "synthetic"))
    synthetic.requires_grad_()
    found = ridge_prediction(real, synthetic, centred(torch.arange(6) // 2), case["ridge"])
    loss = (found - centred(torch.arange(9) // 3)).square().sum(dim=1).mean() / 2
    assert_golden(found.detach(), case["predictions"])
    assert_golden(loss.detach(), case["loss"])
    assert_golden(torch.autograd.grad(loss, synthetic)[0], case["gradient"])


def test_prediction_is_that_of_kernel_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    real, synthetic = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (7, 5))
    targets = centred(torch.tensor([0, 0, 1, 2, 2]))
    strength = 0.1 * float(synthetic.square().sum(dim=1).mean())
    expected = KernelRidge(alpha=strength, kernel="linear").fit(synthetic, targets).predict(real)
    assert_golden(ridge_prediction(real, synthetic, targets, 0.1), expected)


def test_prediction_of_a_trained_layer_is_that_of_a_linear_layer_after_sgd():
    generator = torch.Generator().manual_seed(0)
    real, synthetic = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (7, 5))
    labels = torch.tensor([0, 0, 1, 2, 2])
    layer = torch.nn.Linear(4, 3, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(synthetic), labels).backward()
        optimizer.step()
    found = trained_prediction(real, synthetic, torch.eye(3)[labels], 30, 0.2, 0.9)
    assert_golden(found, layer(real).detach())


def condense(tmp_path, method, epochs=1, data=None, **settings):
    quiet_trainer(tmp_path, max_epochs=epochs, **settings).fit(method, datamodule=data or TinyData())
    return method


@pytest.mark.parametrize("changed", [{}, {"augmentation": "siamese"}, {"last_layer_steps": 4}], ids=str)
def test_the_derivative_is_that_of_differences(changed, tmp_path):
    settings = {"network": NETWORK, "ipc": 2, "factor": 2, "outer_steps": 1, "ridge": 0.1, **changed}
    differences = []

    class Differences(FRePo):
        def match(self, network, step):
            self._losses = self._losses.double()
            at, self.found = self.images.detach().clone(), super().match(network, step)
            for place in (0, 40, 100, 215):
                values = []
                for change in (1e-5, -1e-5):
                    self.images.data.view(-1)[place] += change
                    values.append(super().match(network, step)[0])
                    self.images.data.copy_(at)
                differences.append((values[0] - values[1]) / 2e-5)
            return self.found

    method = condense(tmp_path, Differences(**settings), precision="64-true")
    assert_golden(method.found[1].view(-1)[[0, 40, 100, 215]], torch.stack(differences), 1e-4)
    assert float(method.found[1].abs().min(dim=0).values.max()) > 0


def test_no_class_is_told_by_its_augmentation(tmp_path):
    different = []

    class Noted(FRePo):
        def match(self, network, step):
            images = self.images.detach()[:2]
            pairs = [torch.cat(self.augment(images, images, label, step)) for label in range(3)]
            different.append([not torch.equal(pair, pairs[0]) for pair in pairs])
            different.append(not torch.equal(pairs[0], torch.cat([images, images])))
            return super().match(network, step)

    condense(tmp_path, Noted(network=NETWORK, ipc=2, outer_steps=4, augmentation="siamese"))
    assert different[::2] == [[False] * 3] * 4
    assert any(different[1::2])


@pytest.mark.parametrize("changed", [{}, {"last_layer_steps": 20, "lr_last_layer": 0.05}], ids=str)
def test_the_error_on_real_images_falls(changed, tmp_path):
    losses = []

    class Losses(FRePo):
        def on_train_epoch_end(self):
            losses.append(float(self.matching_loss))
            super().on_train_epoch_end()

    condense(tmp_path, Losses(network=NETWORK, init="noise", lr_images=0.05, **changed), epochs=10)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_network_trains_on_the_decoded_set(tmp_path):
    batches = []

    class Noted(FRePo):
        def network_batches(self, step):
            for images, labels, seed in super().network_batches(step):
                batches.append((images, labels))
                yield images, labels, seed

    method = condense(tmp_path, Noted(network=NETWORK, ipc=2, factor=2, outer_steps=2, inner_epochs=1, lr_images=0.0))
    (images, labels), decoded = batches[0], method.synthetic_set(1).decoded()
    assert len(batches) == 1
    assert images.shape == (24, 1, 6, 6)
    for image, label in zip(images, labels, strict=True):
        same = [torch.allclose(image, other, atol=1e-5) for other in decoded[0]]
        assert int(label) in decoded[1][torch.tensor(same)].tolist()


@pytest.mark.parametrize("network", ["MLP", "ConvNetBN"])
def test_any_classifier_is_taken_and_matched_in_use(network, tmp_path):
    modes = []

    class Noted(FRePo):
        def match(self, network, step):
            modes.append(network.training)
            return super().match(network, step)

    method = condense(tmp_path, Noted(network=network, ipc=2, outer_steps=2), data=TinyData(size=(8, 8)))
    assert modes == [False, False]
    assert bool(method.images.isfinite().all())


def test_batch_norm_is_matched_with_the_statistics_of_the_set(tmp_path):
    differences = []

    class Noted(FRePo):
        def match(self, network, step):
            convolution, layer = network.features[0], network.features[1]
            seen = convolution(self.decode(self.images.detach())).detach()
            differences.append(float((seen.mean(dim=(0, 2, 3)) - layer.running_mean).abs().max()))
            differences.append(float((seen.var(dim=(0, 2, 3)) - layer.running_var).abs().max()))
            assert layer.momentum == 0.1
            return super().match(network, step)

    condense(tmp_path, Noted(network="ConvNetBN", ipc=2, outer_steps=2), data=TinyData(size=(8, 8)))
    assert max(differences) < 1e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(ARGS, folder) == 0
    return folder


@pytest.mark.parametrize("count", some_slow([3, 9], [9]))
def test_resume_after_a_kill_gives_the_same_bits(count, whole, tmp_path):
    assert run(ARGS, tmp_path, "after a checkpoint write", count) == -signal.SIGKILL
    assert run([*ARGS, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), outcome(whole))


@pytest.mark.distributed
@pytest.mark.parametrize("size", ["2", pytest.param("4", marks=pytest.mark.slow)])
def test_several_processes_give_the_same_bits(size, whole, tmp_path):
    assert run([*ARGS, "--trainer.strategy", "ddp_fork", "--trainer.devices", size], tmp_path) == 0
    found, expected = (load_synthetic(folder / RUN / "synthetic.pt")[0] for folder in (tmp_path, whole))
    assert torch.equal(found.images, expected.images)


def test_files_say_what_made_the_set(whole):
    (synthetic,) = load_synthetic(whole / RUN / "synthetic.pt")
    assert (synthetic.method, synthetic.space, synthetic.factor, len(synthetic)) == ("FRePo", "pixels", 2, 24)
    assert (synthetic.source["lr_images"], synthetic.source["ridge"]) == (0.01, 1e-6)


def test_bad_input_is_answered_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="ridge must be above 0"):
        FRePo(ridge=0)
    with pytest.raises(InputError, match="last_layer_steps must be at least 0"):
        FRePo(last_layer_steps=-1)
    with pytest.raises(InputError, match="factor must be at least 1"):
        FRePo(factor=0)
    with pytest.raises(InputError, match="factor"):
        condense(tmp_path, FRePo(network=NETWORK, factor=7))
    with pytest.raises(InputError, match="momentum_images must be below 1"):
        FRePo(momentum_images=1)
    with pytest.raises(InputError, match="Embeddings are taken before the last linear layer, but Averages has none"):
        condense(tmp_path, FRePo(network="conftest.Averages"))


def test_features_of_a_network_are_what_its_last_layer_sees(tmp_path):
    """The best last layer for the synthetic images, as the regression finds it, fits them."""
    method = condense(tmp_path, FRePo(network=NETWORK, ipc=2, outer_steps=1))
    images, labels = method.synthetic_set(1).decoded()
    with torch.no_grad():
        features = embed(method.network, images)
    assert ridge_prediction(features, features, centred(labels), 1e-6).argmax(1).tolist() == labels.tolist()
