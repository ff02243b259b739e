import shutil

import pytest
import torch
from conftest import GOLDEN, assert_golden, assert_golden_summary, golden_case
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from dc_lightning import CondensationModule
from dc_lightning.compilation import compile_networks
from dc_lightning.matching.batch_norm import freeze_batch_norm
from dc_lightning.matching.distances import DISTANCES
from dc_lightning.matching.gradients import network_gradient
from dc_lightning.networks import NETWORKS

CASES = [(entry, name) for entry in GOLDEN["gradient_matching"] for name in ("ours", "mse", "cos")]


def matched(network, real, synthetic, method):
    """Losses of three classes, and the derivative of their sum with respect to the synthetic images."""
    synthetic.requires_grad_()
    losses = [method.loss(network, real[c], synthetic[2 * c : 2 * c + 2], c) for c in range(3)]
    return [loss.item() for loss in losses], torch.autograd.grad(sum(losses), synthetic)[0]


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize(
    ("entry", "name"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v['model']}{v['size']}"
)
def test_distances_and_image_gradients_are_those_of_the_authors_code(entry, name, chunk):
    method = CondensationModule(distance=name, real_chunk_size=chunk)
    losses, derivative = matched(*golden_case(entry), method)
    assert_golden(losses, entry[name]["distance_per_class"])
    assert_golden_summary(derivative, entry[name]["image_grad"])


@pytest.fixture
def compilation():
    compile_networks()
    counters["stats"].clear()
    yield
    compile_networks(False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("model", ["MLP", "ConvNet", "ConvNetBN"])
def test_compiled_networks_give_the_distances_of_the_authors_code(model, compilation):
    entry = next(entry for entry in GOLDEN["gradient_matching"] if entry["model"] == model)
    losses, derivative = matched(*golden_case(entry), CondensationModule())
    assert_golden(losses, entry["ours"]["distance_per_class"])
    assert_golden_summary(derivative, entry["ours"]["image_grad"])
    assert counters["stats"]["unique_graphs"] > 0


class Backwards(nn.Module):
    """Uses its layers in another order than it registers them; one is never used, one is kept as it is."""

    def __init__(self, channels, num_classes, image_size):
        super().__init__()
        self.linear, self.unused = nn.Linear(6, num_classes), nn.BatchNorm1d(3)
        self.last, self.middle, self.first = (
            nn.BatchNorm1d(6, momentum=None),
            nn.BatchNorm2d(6),
            nn.BatchNorm2d(channels),
        )
        self.conv = nn.Conv2d(channels, 6, 3)

    def train(self, mode=True):
        super().train(mode)
        self.middle.eval()
        return self

    def forward(self, images):
        maps = self.middle(torch.tanh(self.conv(self.first(images))))
        return self.linear(self.last(maps.mean(dim=(2, 3))))


@pytest.mark.parametrize("make", [NETWORKS["ConvNetBN"], Backwards])
def test_batch_norm_statistics_in_chunks_are_those_of_all_images_together(make):
    """Fresh ones, and with some from before."""
    torch.manual_seed(0)
    whole, chunks = (make(1, 3, (16, 16)).double() for _ in range(2))
    chunks.load_state_dict(whole.state_dict())
    for size in (12, 11):
        real = 1 + torch.randn(size, 1, 16, 16, dtype=torch.float64)
        freeze_batch_norm(whole, real)
        freeze_batch_norm(chunks, real, chunk_size=5)
        for key, expected in whole.state_dict().items():
            torch.testing.assert_close(chunks.state_dict()[key], expected, rtol=1e-9, atol=1e-9)
    modes = [[module.training for module in network.modules()] for network in (whole, chunks)]
    assert modes[0] == modes[1]
    torch.testing.assert_close(chunks(real), whole(real), rtol=1e-7, atol=1e-7)  # no hook is left


class Smooth(nn.Module):
    """Tiny and twice differentiable everywhere."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

    def forward(self, images):
        return self.linear(torch.tanh(self.conv(images)).flatten(1))


@pytest.mark.parametrize("name", DISTANCES)
def test_the_derivative_of_the_whole_matching_step_is_right(name):
    torch.manual_seed(0)
    network = Smooth().double()
    real = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    synthetic = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    real_gradient = network_gradient(network, real, 1)

    def loss(images):
        return DISTANCES[name](network_gradient(network, images, 1, create_graph=True), real_gradient)

    assert torch.autograd.gradcheck(loss, synthetic)
    value, expected = CondensationModule(distance=name).loss(network, real, synthetic, 1), loss(synthetic)
    assert torch.equal(value, expected)
    derivatives = [torch.autograd.grad(found, synthetic)[0] for found in (value, expected)]
    torch.testing.assert_close(*derivatives, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ConvNetW32", "MLP"])
def test_class_by_class_is_the_same_as_one_backward_over_the_sum(name):
    torch.manual_seed(0)
    network = NETWORKS[name](1, 3, (8, 8)).double()
    real = torch.randn(3, 5, 1, 8, 8, dtype=torch.float64)
    synthetic = torch.randn(6, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    total = 0
    for label in range(3):
        gradients = []
        for images in (synthetic[2 * label : 2 * label + 2], real[label]):
            loss = cross_entropy(network(images), torch.full((len(images),), label))
            gradients.append(torch.autograd.grad(loss, list(network.parameters()), create_graph=True))
        total = total + DISTANCES["ours"](gradients[0], [g.detach() for g in gradients[1]])
    (joint,) = torch.autograd.grad(total, synthetic)
    losses, derivative = matched(network, real, synthetic.detach(), CondensationModule())
    torch.testing.assert_close(derivative, joint, rtol=1e-9, atol=1e-12)
    assert sum(losses) == pytest.approx(total.item())


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_do_not_change_the_gradient(chunk):
    torch.manual_seed(0)
    network, images = NETWORKS["ConvNetW32"](1, 3, (8, 8)).double(), torch.randn(7, 1, 8, 8, dtype=torch.float64)
    whole = network_gradient(network, images, 2)
    parts = network_gradient(network, images, 2, chunk_size=chunk)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_batch_norm_keeps_its_statistics_and_the_rest_trains():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    images = 5 + torch.randn(20, 1, 4, 4)
    expected = 0.9 * network[1].running_mean + 0.1 * network[0](images).mean((0, 2, 3))
    freeze_batch_norm(network, images)
    torch.testing.assert_close(network[1].running_mean, expected)
    assert (network[1].training, network[2].training) == (False, True)
    before = network[1].running_mean.clone()
    network_gradient(network, images, 0)
    assert torch.equal(network[1].running_mean, before)
