"""How much of an accuracy is the set's own: gains over random images and losses against the whole set, by one recipe.

Definitions of DD-Ranking (2025), in fractions; its code puts percents into the exponential, which is then 0 or
infinite. For sets with hard labels.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dc_lightning.evaluation.evaluator import Score


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

    def to_dict(self) -> dict[str, float | str]:
        """All values, for results.json."""
        return asdict(self)


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """``100 (e^a - e^-1) / (e - e^-1)`` with ``a = w IOR - (1 - w) HLR``, in [0, 100] for accuracies in [0, 1]."""
    a = weight * ior - (1 - weight) * hlr
    return 100 * (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def fairness(own: Sequence[Score], random: Sequence[Score], whole_set: Sequence[Score]) -> list[Fairness]:
    """One for each architecture and recipe that all three were scored by."""
    found = []
    for score in own:
        others = [
            next(
                (other.mean for other in scores if (other.network, other.recipe) == (score.network, score.recipe)), None
            )
            for scores in (random, whole_set)
        ]
        low, high = others
        if low is None or high is None:
            continue
        scores = [label_robust_score(mean - low, high - mean) for mean in (score.mean, low, high)]
        found.append(Fairness(score.network, score.recipe, high - score.mean, score.mean - low, *scores))
    return found
