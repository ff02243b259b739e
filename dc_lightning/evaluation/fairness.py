"""How much of an accuracy is the set's own: gains over random images and losses against the whole set, by one recipe.

Definitions of DD-Ranking (Li et al. 2025), in fractions; its code puts percents into the exponential, which is then 0
or infinite. For sets with hard labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dc_lightning.evaluation.evaluator import Score
from dc_lightning.evaluation.recipe import PLAIN


@dataclass(frozen=True)
class Fairness:
    """Of a set, tested on one architecture by one recipe.

    Args:
        network: name of the architecture.
        recipe: name of the recipe.
        hlr: hard label recovery, accuracy of the whole set minus the set's, in [-1, 1]; the smaller the better.
        ior: improvement over random, the set's accuracy minus that of random images of the same budget, in [-1, 1].
        lrs: label robust score of both, in [0, 100]; see `label_robust_score`.
        lrs_random: that of random images.
        lrs_whole_set: that of the whole set.
    """

    network: str
    recipe: str
    hlr: float
    ior: float
    lrs: float
    lrs_random: float
    lrs_whole_set: float

    def in_words(self) -> str:
        """A line for the terminal."""
        gain, loss = f"{100 * self.ior:.1f} points over random", f"{100 * self.hlr:.1f} below the whole set"
        bounds = f"random {self.lrs_random:.1f}, whole set {self.lrs_whole_set:.1f}"
        return f"{self.network}, recipe {self.recipe}: {gain}, {loss}; LRS {self.lrs:.1f} ({bounds})"


@dataclass(frozen=True)
class AugmentationFairness:
    """Of a set, tested on one architecture by one recipe with its augmentation and without.

    Args:
        network: name of the architecture.
        recipe: name of the recipe.
        ior: improvement over random with the augmentation, in [-1, 1].
        ior_plain: likewise without.
        ars: augmentation robust score of both, in [0, 100]; see `augmentation_robust_score`.
        ars_random: that of random images.
        ars_whole_set: that of the whole set; None where it was not scored.
    """

    network: str
    recipe: str
    ior: float
    ior_plain: float
    ars: float
    ars_random: float
    ars_whole_set: float | None

    def in_words(self) -> str:
        """A line for the terminal."""
        gains = f"{100 * self.ior:.1f} points over random with augmentation, {100 * self.ior_plain:.1f} without"
        whole = "" if self.ars_whole_set is None else f", whole set {self.ars_whole_set:.1f}"
        return (
            f"{self.network}, recipe {self.recipe}: {gains}; ARS {self.ars:.1f} (random {self.ars_random:.1f}{whole})"
        )


def _scaled(value: float) -> float:
    """From [-1, 1] to [0, 100]."""
    return 100 * (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """``100 (e^a - e^-1) / (e - e^-1)`` with ``a = w IOR - (1 - w) HLR``, in [0, 100] for accuracies in [0, 1]."""
    return _scaled(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(ior: float, ior_plain: float, weight: float = 0.5) -> float:
    """Likewise with ``a = w IOR + (1 - w) IOR_plain``, the gains with and without augmentation."""
    return _scaled(weight * ior + (1 - weight) * ior_plain)


def _means(scores: Sequence[Score]) -> dict[tuple[str, str], float]:
    """By architecture and recipe."""
    return {(score.network, score.recipe): score.mean for score in scores}


def fairness(own: Sequence[Score], random: Sequence[Score], whole_set: Sequence[Score]) -> list[Fairness]:
    """One for each architecture and recipe that all three were scored by."""
    found, lows, highs = [], _means(random), _means(whole_set)
    for key, mean in _means(own).items():
        if key in lows and key in highs:
            low, high = lows[key], highs[key]
            scores = [label_robust_score(each - low, high - each) for each in (mean, low, high)]
            found.append(Fairness(*key, high - mean, mean - low, *scores))
    return found


def augmentation_fairness(
    own: Sequence[Score], random: Sequence[Score], whole_set: Sequence[Score] = ()
) -> list[AugmentationFairness]:
    """One for each architecture and recipe that set and random images were scored by, with augmentation and without."""
    found, means = [], [_means(scores) for scores in (own, random, whole_set)]
    for score in own:
        keys = [(score.network, recipe) for recipe in (score.recipe, score.recipe + PLAIN)]
        here, low, high = ([each[key] for key in keys if key in each] for each in means)
        if score.augmentation and len(here) == len(low) == 2:
            gains = here[0] - low[0], here[1] - low[1]
            bound = augmentation_robust_score(high[0] - low[0], high[1] - low[1]) if len(high) == 2 else None
            ars, lowest = augmentation_robust_score(*gains), augmentation_robust_score(0, 0)
            found.append(AugmentationFairness(*keys[0], *gains, ars, lowest, bound))
    return found
