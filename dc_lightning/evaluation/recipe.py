"""How a network is trained on a synthetic set, as data: one YAML a paper in configs/evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.nn.functional import cross_entropy

from dc_lightning.augmentation import AUGMENTATIONS, Augment, Augmented, check_augmentation, make_augmentation
from dc_lightning.augmentation.cutmix import check_probability
from dc_lightning.errors import InputError, last_line, require_at_least
from dc_lightning.files import shipped
from dc_lightning.parts import Spec, find, make, part_name

PLAIN = " plain"
"""What the name of a recipe ends with that is another without its augmentation."""

LOSSES: dict[str, Any] = {"cross_entropy": cross_entropy}
"""Losses of logits and labels, ``(n, classes)`` and ``(n,)`` or ``(n, classes)``, by name."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a synthetic set; the defaults are DC's (paper, appendix A).

    DC's code numbers the epochs 0..E, so that E + 1 are run, and the learning rate drops after epoch ``share * E + 1``
    of each milestone; there it makes a new optimizer, which resets the momentum. Elsewhere E epochs are run, and the
    rate drops after ``share * E`` of them.

    Args:
        name: in results and tables.
        epochs: E without augmentation.
        epochs_augmented: E with augmentation; None takes ``epochs`` for both.
        epochs_from_zero: whether epochs are numbered as in DC's code.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images a step.
        milestones: shares of E after which the learning rate drops, in [0, 1].
        lr_factor: what it is multiplied by there.
        fresh_momentum: whether the momentum is reset there.
        augmentation: of the training images; None takes DC's of the dataset (MNIST: crop, scale, rotate; the others
            none), ``siamese`` is DSA's, ``diffaugment`` IDC's; see `make_augmentation` for these and others.
        augmentation_by_network: operations for single test networks, before all others (``get_daparam``).
        cutmix: probability that a batch is mixed by CutMix, after the augmentation.
        loss: of logits and labels, cross_entropy or an import path.

    Raises:
        InputError: if a number is out of its range, or a part is unknown.
    """

    name: str = "DC"
    epochs: int = 300
    epochs_augmented: int | None = 1000
    epochs_from_zero: bool = True
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    milestones: list[float] = field(default_factory=lambda: [0.5])
    lr_factor: float = 0.1
    fresh_momentum: bool = True
    augmentation: list[Spec] | Spec | None = None
    augmentation_by_network: dict[str, list[Spec]] = field(default_factory=lambda: {"ConvNetBN": ["crop", "noise"]})
    cutmix: float = 0.0
    loss: Spec = "cross_entropy"

    def __post_init__(self) -> None:
        place = "evaluation.recipe."
        require_at_least(place, epochs=(self.epochs, 0), epochs_augmented=(self.epochs_augmented, 0))
        require_at_least(place, batch_size=(self.batch_size, 1), lr=(self.lr, 0))
        require_at_least(place, momentum=(self.momentum, 0), weight_decay=(self.weight_decay, 0))
        if not all(0 <= share <= 1 for share in self.milestones):
            raise InputError(f"evaluation.recipe.milestones are shares of the epochs, 0 to 1, got {self.milestones}.")
        for augmentation in (self.augmentation, *self.augmentation_by_network.values()):
            check_augmentation(augmentation)
        check_probability("evaluation.recipe.cutmix", self.cutmix)
        find("loss", LOSSES, self.loss)

    def augmentation_spec(self, network: Spec, data: Augmented) -> list[Spec] | Spec:
        """The augmentation for a test network on a dataset; an empty list is none."""
        if part_name(network) in self.augmentation_by_network:
            return self.augmentation_by_network[part_name(network)]
        return list(data.augmentation) if self.augmentation is None else self.augmentation

    def augmentation_names(self, network: Spec, data: Augmented) -> list[str]:
        """Names for results: of each operation, or of the whole with its strategy."""
        spec = self.augmentation_spec(network, data)
        mixing = [f"cutmix({self.cutmix})"] if self.cutmix else []
        if isinstance(spec, str) and spec in AUGMENTATIONS:
            return [str(make_augmentation(spec, data)), *mixing]
        return [*(part_name(part) for part in ([spec] if isinstance(spec, str | dict) else spec)), *mixing]

    def make_augmentation(self, network: Spec, data: Augmented) -> Augment | None:
        """The augmentation itself; see `augmentation_spec`."""
        return make_augmentation(self.augmentation_spec(network, data), data)

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss itself."""
        return cast(Callable[[Tensor, Tensor], Tensor], make("loss", LOSSES, self.loss))

    def epochs_for(self, network: Spec, data: Augmented) -> int:
        """E for a test network on a dataset."""
        return self.epochs_of(bool(self.augmentation_spec(network, data)))

    def epochs_of(self, augmented: bool) -> int:
        """E with augmentation, or without."""
        return self.epochs_augmented if augmented and self.epochs_augmented is not None else self.epochs

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same with another E, augmented or not."""
        return replace(self, epochs=epochs, epochs_augmented=epochs)

    def plain(self) -> "Recipe":
        """The same without augmentation and CutMix, for as many epochs as with them."""
        name, epochs = self.name + PLAIN, self.epochs_of(augmented=True)
        return replace(self, name=name, augmentation=[], augmentation_by_network={}, cutmix=0.0).with_epochs(epochs)

    def drops(self, epochs: int) -> list[int]:
        """Epochs, of those that are run, before which the learning rate drops."""
        return [int(share * epochs) + (2 if self.epochs_from_zero else 0) for share in self.milestones]

    def epochs_run(self, epochs: int) -> int:
        """How many are run, where E is given."""
        return epochs + self.epochs_from_zero


def load_recipe(name: str) -> Recipe:
    """The recipe of a YAML file, by path or by its name in configs/evaluation (``dc``, ``dsa``, ``idc``).

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped(f"evaluation/{name}.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", type=Recipe)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))["evaluation"]["recipe"]
        read = parser.parse_object({"recipe": {"name": path.stem, **settings}})
        return cast(Recipe, parser.instantiate_classes(read).recipe)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ArgumentError) as error:
        said = f"there is no key {error}" if isinstance(error, KeyError) else last_line(error)
        raise InputError(f"'{path}' holds no evaluation.recipe that is understood: {said.rstrip('.')}.") from error
