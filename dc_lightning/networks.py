"""The networks of the paper (section 4.1 and appendix A; ``networks.py`` of the authors' code), for any image size.

Every name below is a callable ``(channels, num_classes, image_size) -> nn.Module`` that makes a freshly initialised
network. "InstanceNorm" is GroupNorm with one channel a group, affine, as in the authors' code.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dc_lightning.errors import InputError, suggestion, with_place
from dc_lightning.parts import Spec, arguments_of, find, part_name
from dc_lightning.seeds import seeded

ImageSize = tuple[int, int]
NetworkFactory = Callable[[int, int, ImageSize], nn.Module]
Activation = Literal["relu", "sigmoid", "leaky_relu", "swish"]
Normalization = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]

_WIDEST_PRODUCT = 64  # pixels; the product's work grows with the width, PyTorch's own pooling's does not


def _padding(channels: int, image_size: ImageSize) -> int:
    """The paper pads one-channel 28x28 images by two more pixels, so that they count as 32x32."""
    return 2 if channels == 1 and tuple(image_size) == (28, 28) else 0


def _require(name: str, size: ImageSize, image_size: ImageSize, smallest: int) -> None:
    if min(size) < 1:
        raise ValueError(
            f"{name} needs images of at least {smallest}x{smallest} pixels, got {image_size[0]}x{image_size[1]}; "
            "take a shallower network (ConvNetD1, MLP) or larger images."
        )


def _normalization(kind: Normalization, channels: int, size: ImageSize) -> nn.Module | None:
    match kind:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.LayerNorm((channels, *size))
        case "group":
            return nn.GroupNorm(4, channels)
        case "none":
            return None


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "swish": nn.SiLU,
}


class AveragePooling(nn.Module):
    """2x2 average pooling, ``(n, C, H, W)`` to ``(n, C, H // 2, W // 2)``.

    On a CPU as one matrix product of the rows' pairs, ``(..., 2 W)`` to ``(..., W / 2)``: PyTorch's own pooling is not
    vectorised there and takes three times as long, a quarter of a ConvNet's gradient. A compiler does better by itself.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Means of 2x2 pixels."""
        count, channels, height, width = images.shape
        by_product = images.device.type == "cpu" and not (height % 2 or width % 2 or width > _WIDEST_PRODUCT)
        if not by_product or torch.compiler.is_compiling():
            return avg_pool2d(images, 2)
        half = torch.eye(width // 2, device=images.device, dtype=images.dtype) / 4
        pairs = images.reshape(count, channels, height // 2, 2 * width)  # two rows of pixels, one after the other
        return pairs @ half.repeat_interleave(2, dim=0).repeat(2, 1)


class Classifier(nn.Module):
    """A network in two parts, ``features`` and the last linear layer ``classifier``.

    Args:
        features: ``(n, C, H, W)`` to anything that flattens to ``(n, num_features)``.
        num_features: length of the flattened features.
        num_classes: number of classes.
    """

    def __init__(self, features: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the last layer, ``(n, C, H, W)`` to ``(n, num_features)``."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, ``(n, C, H, W)`` to ``(n, num_classes)``."""
        return self.classifier(self.embed(images))


class MLP(Classifier):
    """Two hidden layers of 128 units."""

    def __init__(self, channels: int, num_classes: int, image_size: ImageSize) -> None:
        pixels = channels * image_size[0] * image_size[1]
        hidden = [nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        super().__init__(nn.Sequential(*hidden), 128, num_classes)


class LeNet(Classifier):
    """LeNet-5 with ReLU and max pooling."""

    def __init__(self, channels: int, num_classes: int, image_size: ImageSize) -> None:
        padding = _padding(channels, image_size)
        height, width = (((s + 2 * padding - 4) // 2 - 4) // 2 for s in image_size)
        _require("LeNet", (height, width), image_size, 16)
        layers = [
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
        ]
        super().__init__(nn.Sequential(*layers), 84, num_classes)


class _Blocks(Classifier):
    """Blocks of convolution, norm, activation and perhaps 2x2 pooling, then one linear layer.

    ``shape`` is channels, number of classes, image size; ``plan`` says filters, kernel size, and whether there is a
    pooling, for every block.
    """

    def __init__(
        self,
        shape: tuple[int, int, ImageSize],
        plan: Sequence[tuple[int, int, bool]],
        normalization: Normalization,
        activation: Activation = "relu",
        pooling: Pooling = "max",
    ) -> None:
        channels, num_classes, image_size = shape
        padding = _padding(channels, image_size)  # of the first convolution, besides what keeps the size
        height, width = (side + 2 * padding for side in image_size)
        halvings = sum(pooled for _, _, pooled in plan)
        _require(type(self).__name__, (height >> halvings, width >> halvings), image_size, 2**halvings)
        layers: list[nn.Module] = []
        for filters, kernel, pooled in plan:
            layers.append(nn.Conv2d(channels, filters, kernel, padding=kernel // 2 + padding))
            if (norm := _normalization(normalization, filters, (height, width))) is not None:
                layers.append(norm)
            layers.append(_ACTIVATIONS[activation]())
            if pooled:
                layers.append(AveragePooling() if pooling == "avg" else nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            channels, padding = filters, 0
        super().__init__(nn.Sequential(*layers), channels * height * width, num_classes)


class ConvNet(_Blocks):
    """The paper's default: ``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, one linear layer.

    Args:
        channels: of the images, 1 or 3.
        num_classes: number of classes.
        image_size: height and width in pixels.
        width: filters of every convolution; a multiple of 4 for GroupNorm.
        depth: number of blocks.
        activation: after every norm.
        normalization: after every convolution.
        pooling: at the end of every block.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: ImageSize,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        normalization: Normalization = "instance",
        pooling: Pooling = "avg",
    ) -> None:
        plan = [(width, 3, pooling != "none")] * depth
        super().__init__((channels, num_classes, image_size), plan, normalization, activation, pooling)


class AlexNet(_Blocks):
    """Five convolutions, three max poolings, one linear layer; norm "none" or "batch" in the paper."""

    def __init__(
        self, channels: int, num_classes: int, image_size: ImageSize, normalization: Normalization = "none"
    ) -> None:
        plan = [(128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)]
        super().__init__((channels, num_classes, image_size), plan, normalization)


class VGG11(_Blocks):
    """Eight 3x3 convolutions, five max poolings, one linear layer; norm "instance" or "batch" in the paper."""

    def __init__(
        self, channels: int, num_classes: int, image_size: ImageSize, normalization: Normalization = "instance"
    ) -> None:
        plan = [(64, 3, True), (128, 3, True), (256, 3, False), (256, 3, True)]
        plan += [(512, 3, False), (512, 3, True)] * 2
        super().__init__((channels, num_classes, image_size), plan, normalization)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``average_pooling`` replaces the stride of 2 by a 2x2 average pooling."""

    def __init__(
        self, before: int, filters: int, stride: int, normalization: Normalization, average_pooling: bool
    ) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return _normalization(normalization, filters, (0, 0)) or nn.Identity()

        pool = AveragePooling() if average_pooling and stride == 2 else nn.Identity()
        conv_stride = 1 if average_pooling else stride
        self.conv1 = nn.Conv2d(before, filters, 3, stride=conv_stride, padding=1, bias=False)
        self.norm1 = norm()
        self.pool = pool
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = norm()
        self.shortcut = nn.Sequential()
        if stride != 1 or before != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(before, filters, 1, stride=conv_stride, bias=False), pool, norm())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.pool(torch.relu(self.norm1(self.conv1(inputs))))
        return torch.relu(self.norm2(self.conv2(outputs)) + self.shortcut(inputs))


class ResNet18(Classifier):
    """ResNet18 for small images: a 3x3 first convolution without pooling, four stages of two blocks.

    Args:
        channels: of the images.
        num_classes: number of classes.
        image_size: height and width in pixels.
        normalization: "instance" or "batch" in the paper.
        average_pooling: 2x2 average pooling instead of strided convolutions, and none at the end (``_AP``): pooling
            passes a gradient to every pixel, which is what the condensation needs.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: ImageSize,
        normalization: Normalization = "instance",
        average_pooling: bool = False,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, 64, 3, padding=1, bias=False),
            _normalization(normalization, 64, image_size) or nn.Identity(),
            nn.ReLU(inplace=True),
        ]
        before = 64
        for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers.append(_BasicBlock(before, filters, stride, normalization, average_pooling))
            layers.append(_BasicBlock(filters, filters, 1, normalization, average_pooling))
            before = filters
        rounding = 0 if average_pooling else 7  # strided convolutions with padding round up
        height, width = ((side + rounding) // 8 for side in image_size)
        name = "ResNet18_AP" if average_pooling else "ResNet18"
        if normalization == "instance":  # of a single pixel nothing is left
            _require(name, (height * width - 1,) * 2, image_size, 16 if average_pooling else 9)
        _require(name, (height, width), image_size, 8)
        if not average_pooling:
            window = min(4, height), min(4, width)  # 4x4 in the authors' code, whose last maps are 4x4
            layers.append(nn.AvgPool2d(window))
            height, width = height // window[0], width // window[1]
        super().__init__(nn.Sequential(*layers), 512 * height * width, num_classes)


NETWORKS: dict[str, NetworkFactory] = {
    "MLP": MLP,
    "LeNet": LeNet,
    "ConvNet": ConvNet,
    **{f"ConvNetD{depth}": partial(ConvNet, depth=depth) for depth in (1, 2, 3, 4)},
    **{f"ConvNetW{width}": partial(ConvNet, width=width) for width in (32, 64, 128, 256)},
    "ConvNetAS": partial(ConvNet, activation="sigmoid"),
    "ConvNetAR": partial(ConvNet, activation="relu"),
    "ConvNetAL": partial(ConvNet, activation="leaky_relu"),
    "ConvNetASwish": partial(ConvNet, activation="swish"),
    "ConvNetNN": partial(ConvNet, normalization="none"),
    "ConvNetBN": partial(ConvNet, normalization="batch"),
    "ConvNetLN": partial(ConvNet, normalization="layer"),
    "ConvNetIN": partial(ConvNet, normalization="instance"),
    "ConvNetGN": partial(ConvNet, normalization="group"),
    "ConvNetNP": partial(ConvNet, pooling="none"),
    "ConvNetMP": partial(ConvNet, pooling="max"),
    "ConvNetAP": partial(ConvNet, pooling="avg"),
    "ConvNetASwishBN": partial(ConvNet, activation="swish", normalization="batch"),
    "AlexNet": AlexNet,
    "AlexNetBN": partial(AlexNet, normalization="batch"),
    "VGG11": VGG11,
    "VGG11BN": partial(VGG11, normalization="batch"),
    "ResNet18": ResNet18,
    "ResNet18BN": partial(ResNet18, normalization="batch"),
    "ResNet18_AP": partial(ResNet18, average_pooling=True),
    "ResNet18BN_AP": partial(ResNet18, normalization="batch", average_pooling=True),
}
"""The paper's networks by name."""


class Shape(Protocol):
    """What a network must know of the data; a `CondensationDataModule` provides it."""

    num_classes: int
    channels: int
    image_size: ImageSize


def make_network(spec: Spec, shape: Shape, seed: int) -> nn.Module:
    """A freshly initialised network on the CPU, in train mode; the seed alone decides its weights.

    Args:
        spec: name of the paper's; ``torchvision:NAME`` or ``timm:NAME``, untrained, which enlarges images that are too
            small for it to 32, 64, 128, 224 or 299 pixels; import path of a callable
            ``(channels, num_classes, image_size)``, or of one that takes ``num_classes`` alone, as torchvision's
            functions do, whose first convolution is then adapted to the channels; or a mapping with such a
            ``class_path`` and further ``init_args``.
        shape: of images and logits.
        seed: of the weights.

    Raises:
        InputError: if there is no such network.
        ValueError: if the network cannot take the image size.
    """
    library, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    factory = _of_library(library, name) if colon else find("network", NETWORKS, spec)
    with seeded(seed):
        if _takes_shape(factory, arguments_of(spec)):
            made = factory(shape.channels, shape.num_classes, shape.image_size, **arguments_of(spec))
        else:
            made = factory(num_classes=shape.num_classes, **arguments_of(spec))
            _adapt_first_convolution(made, shape.channels)
        made = _for_small_images(made, shape) if colon else made
    return cast(nn.Module, made).train()


def _of_library(library: str, name: str) -> Callable[..., Any]:
    """The function of torchvision, or of timm, that makes a network of that name."""
    if library == "torchvision":
        from torchvision import models

        known = models.list_models(module=models)  # which classify
        if name not in known:
            raise InputError(f"torchvision has no network '{name}'.{suggestion(name, known)}")
        builder = cast(Callable[..., Any], models.get_model_builder(name))
        one_output: Any = {"aux_logits": False, "init_weights": True}
        return partial(builder, **one_output) if name in ("googlenet", "inception_v3") else builder
    if library != "timm":
        raise InputError(f"Networks are taken from torchvision:NAME or timm:NAME, got '{library}:{name}'.")
    try:
        import timm
    except ImportError as error:
        raise InputError(f"'timm:{name}' needs timm; install it by pip install 'dc_lightning[timm]'.") from error
    if not timm.is_model(name):
        raise InputError(f"timm has no network '{name}'.{suggestion(name, timm.list_models())}")

    def make(channels: int, num_classes: int, image_size: ImageSize) -> nn.Module:
        shape: Any = {"num_classes": num_classes, "in_chans": channels}
        try:
            return timm.create_model(name, **shape, img_size=image_size)
        except TypeError:  # only some have a size
            return timm.create_model(name, **shape)

    return make


def _takes_shape(factory: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    try:
        inspect.signature(factory).bind(1, 2, (3, 3), **arguments)
    except TypeError:
        return False
    return True


def _for_small_images(network: nn.Module, shape: Shape) -> nn.Module:
    """The network, behind the least enlargement by which it can take the images."""
    network.eval()

    def takes(size: ImageSize) -> bool:
        try:
            with torch.no_grad():
                network(torch.zeros(1, shape.channels, *size))
        except Exception:  # whatever it raises
            return False
        return True

    for side in () if takes(shape.image_size) else (32, 64, 128, 224, 299):
        if side > max(shape.image_size) and takes((side, side)):
            return nn.Sequential(nn.Upsample((side, side), mode="bilinear"), network)
    return network


def _adapt_first_convolution(network: nn.Module, channels: int) -> None:
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    name, old = found[0] if found else ("", None)
    if old is not None and old.in_channels != channels:
        kept: Any = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding")}
        network.set_submodule(name, nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **kept))


def normalises_small_maps(spec: Spec, shape: Shape) -> bool:
    """Whether a normalisation over the pixels of a map gets maps of 2x2 pixels or less, which leaves little of them."""
    sizes: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].dim() == 4:
            sizes.append(min(inputs[0].shape[2:]))

    network = make_network(spec, shape, seed=0)
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm | nn.InstanceNorm2d):
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.zeros(2, shape.channels, *shape.image_size))
    return bool(sizes) and min(sizes) <= 2


def check_network(spec: Spec, shape: Shape) -> None:
    """Makes the network and passes images, so that a misfit is found before a long run.

    Raises:
        InputError: if the network is unknown, cannot take the image size, or gives other than one logit a class.
    """
    size = f"{shape.channels}x{shape.image_size[0]}x{shape.image_size[1]}"
    try:
        with torch.no_grad():
            network = make_network(spec, shape, seed=0)
            logits = network(torch.zeros(2, shape.channels, *shape.image_size))
            network.eval()  # one image per class is matched alone, which BatchNorm in train mode refuses
            network(torch.zeros(1, shape.channels, *shape.image_size))
    except InputError:
        raise
    except Exception as error:  # whatever a network of the user's raises
        reason = str(error) if isinstance(error, ValueError) else with_place(error)
        raise InputError(
            f"The network {part_name(spec)} cannot take images of {size}: {' '.join(reason.split())}"
        ) from error
    if tuple(logits.shape) != (2, shape.num_classes):
        raise InputError(
            f"The network {part_name(spec)} must give one logit a class, (2, {shape.num_classes}) for two images of "
            f"{size}; got {tuple(logits.shape)}."
        )
