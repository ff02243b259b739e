import re
from dataclasses import dataclass

import pytest
import torch
from conftest import GOLDEN, assert_golden, golden_case
from torch import nn

from dc_lightning.errors import InputError
from dc_lightning.networks import NETWORKS, AveragePooling, check_network, make_network, normalises_small_maps
from dc_lightning.parts import part_name


@dataclass
class Shape:
    channels: int = 1
    num_classes: int = 10
    image_size: tuple[int, int] = (28, 28)


@pytest.mark.parametrize("entry", GOLDEN["gradient_matching"], ids=lambda e: f"{e['model']}-{e['size']}")
def test_parameters_and_logits_are_those_of_the_authors_code(entry):
    network, real, _ = golden_case(entry)
    assert [list(parameter.shape) for parameter in network.parameters()] == entry["shapes"]
    assert_golden(network(real[0, :2]).detach(), entry["logits"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (28, 28)), (1, (32, 32)), (3, (32, 32)), (1, (33, 41)), (3, (64, 48))]
)
def test_every_network_takes_every_size(name, channels, size):
    network = NETWORKS[name](channels, 7, size)
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
    factory = NETWORKS[name]
    assert factory(1, 10, (28, 28)).classifier.in_features == features_28
    assert factory(3, 10, (32, 32)).classifier.in_features == features_32


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 10), (7, 8), (8, 7), (2, 128)])
def test_average_pooling_is_that_of_torch_in_all_derivatives(size):
    torch.manual_seed(0)
    images = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    pooled = AveragePooling()(images)
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(images, 2), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(AveragePooling(), images)
    assert torch.autograd.gradgradcheck(AveragePooling(), images)


def test_average_pooling_replaces_strides():
    strides = [m.stride for m in NETWORKS["ResNet18_AP"](3, 10, (32, 32)).modules() if isinstance(m, nn.Conv2d)]
    assert set(strides) == {(1, 1)}
    assert (2, 2) in [m.stride for m in NETWORKS["ResNet18"](3, 10, (32, 32)).modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("name", ["LeNet", "ConvNetD4", "VGG11", "ResNet18_AP"])
def test_too_small_images_are_named(name):
    with pytest.raises(InputError, match=r"at least .* got 6x6"):
        check_network(name, Shape(image_size=(6, 6)))


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (make_network("ConvNetW32", Shape(image_size=(8, 8)), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_network_of_the_users_by_class_path():
    spec = {"class_path": "conftest.TinyNet", "init_args": {"width": 5}}
    assert make_network(spec, Shape(1, 3, (6, 6)), 0).conv.out_channels == 5
    assert part_name(spec) == "conftest.TinyNet(width=5)"
    check_network("conftest.TinyNet", Shape(1, 3, (6, 6)))


@pytest.mark.parametrize("spec", ["Foo", "foo.Bar", "conftest.Foo", {"name": "MLP"}, 3])
def test_unknown_networks_name_the_known(spec):
    with pytest.raises(InputError, match=r"MLP, LeNet, ConvNet|class_path"):
        make_network(spec, Shape(), 0)


def test_a_network_with_other_outputs_is_refused():
    with pytest.raises(InputError, match="one logit a class"):
        check_network("conftest.embedding", Shape(1, 3, (6, 6)))


def test_a_function_of_torchvision_is_adapted_to_channels_and_classes():
    """It takes none of our arguments but the number of classes."""
    for spec in ("torchvision.models.resnet18", {"class_path": "torchvision.models.mobilenet_v2", "init_args": {}}):
        check_network(spec, Shape(1, 7, (33, 40)))
        network = make_network(spec, Shape(1, 7, (33, 40)), 0)
        assert network(torch.zeros(2, 1, 33, 40)).shape == (2, 7)
    first, again = (make_network("torchvision.models.resnet18", Shape(), 5) for _ in range(2))
    assert torch.equal(first.conv1.weight, again.conv1.weight)


def test_a_near_name_is_suggested_and_a_failing_module_is_placed(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"Did you mean 'ConvNetD2'\?"):
        make_network("convnetd2 ", Shape(), 0)
    (tmp_path / "failing_part.py").write_text("\n\nvalue = {}['gone']\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"KeyError: 'gone' \(.*failing_part.py, line 3\)"):
        make_network("failing_part.Net", Shape(), 0)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_networks_of_libraries_by_name(name):
    first, again = (make_network(name, Shape(1, 7, (32, 32)), 5) for _ in range(2))
    assert first(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet19", "torchvision has no network 'resnet19'. Did you mean 'resnet18'"),
        ("timm:resnet10", "timm has no network 'resnet10'. Did you mean 'resnet10t'"),
        ("keras:resnet18", "from torchvision:NAME or timm:NAME, got 'keras:resnet18'"),
    ],
)
def test_unknown_networks_of_libraries_are_named(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_network(name, Shape(), 5)


def test_normalisations_of_small_maps_are_found():
    assert normalises_small_maps("ConvNet", Shape(1, 10, (8, 8)))
    assert not normalises_small_maps("ConvNetD2", Shape(1, 10, (8, 8)))
    assert not normalises_small_maps("ConvNetBN", Shape(1, 10, (8, 8)))  # which has the batch as well


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:densenet121"])
def test_images_that_are_too_small_for_a_network_of_a_library_are_enlarged(name):
    check_network(name, Shape(1, 7, (12, 12)))


def test_networks_of_a_library_that_do_not_classify_are_unknown():
    with pytest.raises(InputError, match="torchvision has no network 'fcn_resnet50'"):
        make_network("torchvision:fcn_resnet50", Shape(), 5)


def test_a_network_that_cannot_take_the_size_is_named():
    with pytest.raises(InputError, match="alexnet cannot take images of 1x8x8"):
        check_network("torchvision.models.alexnet", Shape(1, 7, (8, 8)))
