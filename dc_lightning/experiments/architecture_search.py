"""Architecture search (section 4.3 of DC's paper): how well small proxies of a dataset rank networks.

The authors never published the code. What the paper leaves open is said where it is decided.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import cast, get_args

import torch
from pytorch_lightning import Trainer

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.errors import InputError, require_at_least, require_known, suggestion
from dc_lightning.evaluation import Evaluator, Score
from dc_lightning.evaluation.baselines import WholeSet, random_set, whole_set
from dc_lightning.evaluation.evaluator import check_fits, check_networks
from dc_lightning.evaluation.recipe import Recipe
from dc_lightning.evaluation.selection import Method, Selection
from dc_lightning.evaluation.training import Job, Report, train_and_test
from dc_lightning.experiments.tables import Matrix, as_png
from dc_lightning.networks import Activation, Normalization, Pooling
from dc_lightning.parts import Spec
from dc_lightning.run.evaluation_callback import EvaluationCallback
from dc_lightning.run.results import Evaluated
from dc_lightning.seeds import derive_generator, derive_seed
from dc_lightning.synthetic import SyntheticSet, load_synthetic

EARLY_STOPPING = "early stopping"
TRUTH = "whole set"


@dataclass(frozen=True)
class Space:
    """Networks to choose from: ConvNets of every combination, 720 in the paper, and any others.

    Args:
        width: filters of every convolution; an empty list here, or below, leaves the ConvNets out.
        depth: blocks.
        normalization: after every convolution.
        activation: after every norm.
        pooling: at the end of every block.
        networks: others, by name, import path or mapping.
        sample: so many of all, drawn by the seed of the run; None takes all.

    Raises:
        InputError: if there are fewer than two networks, or fewer than ``sample``.
    """

    width: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    depth: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    normalization: list[Normalization] = field(default_factory=lambda: list(get_args(Normalization)))
    activation: list[Activation] = field(default_factory=lambda: ["sigmoid", "relu", "leaky_relu"])
    pooling: list[Pooling] = field(default_factory=lambda: list(get_args(Pooling)))
    networks: list[Spec] = field(default_factory=list)
    sample: int | None = None

    def __post_init__(self) -> None:
        require_at_least("space.", sample=(self.sample, 2))
        count = len(self.all())
        if count < max(self.sample or 2, 2):
            raise InputError(f"The space must have {max(self.sample or 2, 2)} networks or more, but has {count}.")

    def all(self) -> list[Spec]:
        """Every network of the space."""
        names = ("width", "depth", "normalization", "activation", "pooling")
        settings = [
            dict(zip(names, values, strict=True)) for values in product(*(getattr(self, name) for name in names))
        ]
        return [*({"class_path": "ConvNet", "init_args": each} for each in settings), *self.networks]

    def drawn(self, seed: int) -> list[Spec]:
        """The networks to be ranked, in the order of `all`."""
        found = self.all()
        if self.sample is None:
            return found
        order = torch.randperm(len(found), generator=derive_generator(seed, "space"))
        return [found[place] for place in sorted(order[: self.sample].tolist())]


@dataclass(frozen=True)
class Ranking:
    """Accuracies of all networks of a space after training on one thing."""

    name: str  # of the proxy, or of the whole set
    synthetic: SyntheticSet  # what networks are trained on
    images: int  # that are stored for it
    scores: list[Score] = field(default_factory=list)  # one a network, in the order of the space
    seconds: float | None = None  # of all trainings and tests, over all processes; None where another run did some

    @property
    def accuracies(self) -> list[float]:
        """Mean accuracy of each network, in [0, 1]."""
        return [score.mean for score in self.scores]

    @property
    def images_in_words(self) -> str:
        """Stored images, and what networks train on where several are in one: ``40 in 10``."""
        in_one = self.synthetic.images_in_one
        return f"{self.images * in_one} in {self.images}" if in_one > 1 else str(self.images)

    @property
    def kilobytes(self) -> float:
        """Of the stored images: one byte a number of real ones, as in image files, four of others."""
        is_real = self.name.partition(",")[0] in (*get_args(Method), EARLY_STOPPING, TRUTH)
        return self.images * self.synthetic.images[0].numel() * (1 if is_real else 4) / 1000


@dataclass(frozen=True)
class Agreement:
    """How far a proxy's accuracies agree with those on the whole set."""

    top: int  # of how many networks, the best on the whole set
    spearman: float | None  # rank correlation, in [-1, 1]; None where all accuracies are equal
    kendall: float | None  # tau-b, likewise


def agreements(proxy: Sequence[float], truth: Sequence[float]) -> list[Agreement]:
    """Correlations of accuracies over all networks, and over the best 20, 10 and 5 by truth, where there are more."""
    from scipy.stats import kendalltau, spearmanr

    best = sorted(range(len(truth)), key=lambda place: -truth[place])
    found = []
    for top in (len(truth), *(count for count in (20, 10, 5) if count < len(truth))):
        pairs = [proxy[place] for place in best[:top]], [truth[place] for place in best[:top]]
        constant = any(len(set(values)) == 1 for values in pairs)  # SciPy would warn
        values = [None if constant else float(each(*pairs).statistic) for each in (spearmanr, kendalltau)]
        found.append(Agreement(top, *values))
    return found


class ArchitectureSearch:
    """Architecture search in the processes of a Trainer.

    Accuracies are kept beside the networks of the whole set, by what they came from: a run that is stopped continues
    network by network.

    Args:
        trainer: whose processes share the work.
        callback: its evaluation: recipe, networks of each architecture, epochs on the whole set.
        data: after its setup.
        space: see `Space`.
        proxies: see `ExperimentTrainer.architecture_search`.
        ipc: images per class of those that are selected.

    Raises:
        InputError: if a proxy is unknown or does not fit the data, or a network cannot take the images.
    """

    def __init__(
        self,
        trainer: Trainer,
        callback: EvaluationCallback,
        data: CondensationDataModule,
        space: Space,
        proxies: Sequence[str],
        ipc: int,
    ) -> None:
        self.callback, self.data, self.ipc, self.proxies = callback, data, ipc, list(proxies)
        self.networks = space.drawn(callback.seed)
        check_networks(self.networks, data)
        if len(callback.recipes) > 1:
            raise InputError(
                f"An architecture search takes one recipe, got {len(callback.recipes)}; see evaluation.other_recipes."
            )
        self.recipe = callback.recipes[0]
        self.known = Evaluated(callback.cache / "accuracies", trainer.global_rank)
        self.evaluator: Evaluator = callback.evaluator(trainer, data)
        self.whole = WholeSet(self.evaluator, self.recipe, callback.whole_set_epochs, callback.cache)
        if set(proxies) <= {EARLY_STOPPING}:
            raise InputError(
                f"proxies must name at least one set, or one of {', '.join(get_args(Method))}; {EARLY_STOPPING} is "
                f"stopped where a network has seen as many images as of the first of them. Got {self.proxies}."
            )
        if len(set(proxies)) < len(proxies):
            raise InputError(f"proxies must be named once each, got {self.proxies}.")
        names = [*get_args(Method), EARLY_STOPPING]
        self.loaded = {proxy: self._load(proxy, names) for proxy in proxies if proxy not in names}

    def _load(self, proxy: str, names: Sequence[str]) -> SyntheticSet:
        data = self.data
        if not Path(proxy).exists() and suggestion(proxy, names):
            require_known("proxy", proxy, names, ", or a set")
        sets = load_synthetic(proxy, data.mean, data.std, data.class_names)
        if len(sets) > 1:
            raise InputError(f"'{proxy}' holds {len(sets)} sets; a proxy is a file of one, such as a synthetic.pt.")
        check_fits(sets[0], data)
        return sets[0].renormalized(data.mean, data.std)

    def run(self) -> tuple[Ranking, list[Ranking]]:
        """The ranking by the whole set, and one by each proxy."""
        everything = whole_set(self.data)
        sets = {proxy: self._set(proxy) for proxy in self.proxies if proxy != EARLY_STOPPING}
        ranked = []
        for proxy in self.proxies:
            if proxy == EARLY_STOPPING:
                chosen, recipe = self._early_stopping(everything, len(next(iter(sets.values()))))
                ranked.append(self._rank(Ranking(proxy, chosen, len(everything)), recipe))
            else:
                name = f"{sets[proxy].method}, {proxy}" if proxy in self.loaded else proxy
                ranked.append(self._rank(Ranking(name, sets[proxy], len(sets[proxy].images)), self.recipe))
        return self._rank(Ranking(TRUTH, everything, len(everything)), self.whole.own_recipe), ranked

    def _set(self, proxy: str) -> SyntheticSet:
        if proxy in self.loaded:
            return self.loaded[proxy]
        if proxy == "random":
            return random_set(self.data, self.ipc, derive_seed(self.callback.seed, "proxy"))
        return self.whole.select(cast(Selection, proxy), self.ipc, self.callback.features_network)

    def _early_stopping(self, everything: SyntheticSet, count: int) -> tuple[SyntheticSet, Recipe]:
        """As many images, of the whole set in random order, as the first network sees of ``count`` images of a proxy.

        Rounded to epochs; where these are one or less, the learning rate does not drop.
        """
        seen = count * self.recipe.epochs_run(self.recipe.epochs_for(self.networks[0], self.data))
        generator = derive_generator(self.callback.seed, EARLY_STOPPING)
        rows = torch.randperm(len(everything), generator=generator)[:seen].sort().values
        source = {**everything.source, "method": EARLY_STOPPING}
        some = replace(everything, images=everything.images[rows], labels=everything.labels[rows], source=source)
        epochs = max(round(seen / len(everything)), 1)
        recipe = self.recipe.with_epochs(epochs - self.recipe.epochs_from_zero)
        return some, (recipe if epochs > 1 else replace(recipe, milestones=[]))

    def _rank(self, empty: Ranking, recipe: Recipe) -> Ranking:
        """Trains every network, or takes what is known of it, with the seconds that it took."""
        is_truth, chosen, known = empty.name == TRUTH, empty.synthetic, self.known
        spent = torch.zeros(1, dtype=torch.float64)

        def train(number: int, job: Job, report: Report) -> float:
            key = self.evaluator.identity(chosen, job)
            if key not in known:
                of_another_run = is_truth and self.whole.is_trained(job.network, number)
                started = time.monotonic()
                if is_truth:
                    known[key] = self.whole.network(job.network, number, report).accuracy
                else:
                    known[key], _ = train_and_test(chosen, job, self.data, self.evaluator.device, report=report)
                known[f"{key} seconds"] = nan if of_another_run else time.monotonic() - started
            spent.add_(known.get(f"{key} seconds", nan))
            return known[key]

        count = self.callback.whole_set_networks if is_truth else self.callback.num_networks
        scores = self.evaluator.spread(self.networks, count, recipe, train, empty.name)
        seconds = float(self.evaluator.group.reduce(spent))
        return replace(empty, scores=scores, seconds=None if isnan(seconds) else seconds)


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(truth: Ranking, proxies: Sequence[Ranking], title: str) -> Matrix:
    """Correlations, and accuracy on the whole set of the network that each proxy puts first."""
    matrix = Matrix(title, "proxy")
    for ranking in [*proxies, truth]:
        row, cells = ranking.name, matrix.cells
        if ranking is not truth:
            for found in agreements(ranking.accuracies, truth.accuracies):
                top = "all" if found.top == len(truth.scores) else f"top {found.top}"
                cells[row, f"{top}: Spearman, Kendall"] = f"{_number(found.spearman)}, {_number(found.kendall)}"
        cells[row, "accuracy of its choice"] = f"{100 * chosen_accuracy(ranking, truth):.1f}"
        cells[row, "images"] = ranking.images_in_words
        cells[row, "kB"] = f"{ranking.kilobytes:.1f}"
        cells[row, "minutes"] = _number(ranking.seconds and ranking.seconds / 60, 1)
    return matrix


def chosen_accuracy(ranking: Ranking, truth: Ranking) -> float:
    """Accuracy in [0, 1], after training on the whole set, of the first of the networks that are best by a ranking."""
    return truth.accuracies[ranking.accuracies.index(max(ranking.accuracies))]


def plot(truth: Ranking, proxies: Sequence[Ranking], title: str) -> bytes:
    """Accuracy by each proxy against that by the whole set, a point a network, as the content of a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(proxies) + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(proxies), squeeze=False)[0]
    for panel, proxy in zip(panels, proxies, strict=True):
        panel.scatter([100 * x for x in proxy.accuracies], [100 * y for y in truth.accuracies], s=10, alpha=0.7)
        spearman = agreements(proxy.accuracies, truth.accuracies)[0].spearman
        panel.set_title(f"{proxy.name}: Spearman {_number(spearman)}", fontsize=9)
        panel.set_xlabel("accuracy in % by the proxy", fontsize=8)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in % by the whole set", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return as_png(figure)
