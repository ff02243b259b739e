import pytest
import torch
from conftest import GOLDEN, assert_golden, fill_golden, normal
from torch import nn

from dc_lightning import networks
from dc_lightning.errors import InputError
from dc_lightning.matching import freeze_batch_norm, has_batch_norm
from dc_lightning.parts import check_network, find_network, make_network, part_name


@pytest.mark.parametrize("entry", GOLDEN["gradient_matching"], ids=lambda e: f"{e['model']}-{e['size']}")
def test_parameters_and_logits_are_those_of_the_authors_code(entry):
    channels, size = entry["channels"], entry["size"]
    network = fill_golden(getattr(networks, entry["model"])(channels, 10, (size, size)))
    assert [list(parameter.shape) for parameter in network.parameters()] == entry["shapes"]
    if has_batch_norm(network):
        freeze_batch_norm(network, normal(3000, 48, channels, size, size))
    assert_golden(network(normal(1000, 3, 8, channels, size, size)[0, :2]).detach(), entry["logits"])


@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (28, 28)), (1, (32, 32)), (3, (32, 32)), (1, (33, 41)), (3, (64, 48))]
)
def test_every_network_takes_every_size(name, channels, size):
    network = getattr(networks, name)(channels, 7, size)
    assert network(torch.randn(2, channels, *size)).shape == (2, 7)
    assert network.embed(torch.randn(2, channels, *size)).shape == (2, network.classifier.in_features)


# The sizes of the reference's classifiers for its own image sizes.
@pytest.mark.parametrize(
    ("name", "features_28", "features_32"),
    [
        ("ConvNet", 128 * 4 * 4, 128 * 4 * 4),
        ("ConvNetD4", 128 * 2 * 2, 128 * 2 * 2),
        ("ConvNetNP", 128 * 32 * 32, 128 * 32 * 32),
        ("LeNet", 84, 84),
        ("AlexNet", 192 * 4 * 4, 192 * 4 * 4),
        ("VGG11", 512, 512),
        ("ResNet18", 512, 512),
        ("ResNet18BN_AP", 512 * 3 * 3, 512 * 4 * 4),
    ],
)
def test_classifier_sizes(name, features_28, features_32):
    factory = getattr(networks, name)
    assert factory(1, 10, (28, 28)).classifier.in_features == features_28
    assert factory(3, 10, (32, 32)).classifier.in_features == features_32


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 10), (7, 8), (8, 7), (2, 128)])
def test_average_pooling_is_that_of_torch_in_all_derivatives(size):
    torch.manual_seed(0)
    images = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    pooled = networks.AveragePooling()(images)
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(images, 2), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(networks.AveragePooling(), images)
    assert torch.autograd.gradgradcheck(networks.AveragePooling(), images)


def test_average_pooling_replaces_strides():
    strides = [m.stride for m in networks.ResNet18_AP(3, 10, (32, 32)).modules() if isinstance(m, nn.Conv2d)]
    assert set(strides) == {(1, 1)}
    assert (2, 2) in [m.stride for m in networks.ResNet18(3, 10, (32, 32)).modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("name", ["LeNet", "ConvNetD4", "VGG11", "ResNet18_AP"])
def test_too_small_images_are_named(name):
    with pytest.raises(InputError, match=r"at least .* got 6x6"):
        check_network(name, 1, 10, (6, 6))


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (make_network("ConvNetW32", 1, 10, (8, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_network_of_the_users_by_class_path():
    spec = {"class_path": "conftest.TinyNet", "init_args": {"width": 5}}
    assert find_network(spec)(1, 3, (6, 6)).conv.out_channels == 5
    assert part_name(spec) == "conftest.TinyNet(width=5)"
    check_network("conftest.TinyNet", 1, 3, (6, 6))


@pytest.mark.parametrize("spec", ["Foo", "foo.Bar", "conftest.Foo", {"name": "MLP"}, 3])
def test_unknown_networks_name_the_known(spec):
    with pytest.raises(InputError, match=r"MLP, LeNet, ConvNet|class_path"):
        find_network(spec)


def test_a_network_with_other_outputs_is_refused():
    with pytest.raises(InputError, match="one logit a class"):
        check_network("conftest.embedding", 1, 3, (6, 6))
