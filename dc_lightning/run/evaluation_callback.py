"""When a run is evaluated, and what is written of it."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, get_args

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from dc_lightning.data.datamodule import CondensationDataModule, to_tensor
from dc_lightning.errors import InputError, require_at_least, require_known
from dc_lightning.evaluation import Evaluator, Recipe, Score, load_recipe
from dc_lightning.evaluation.baselines import WholeSet, random_set
from dc_lightning.evaluation.evaluator import Group, check_fits, check_networks
from dc_lightning.evaluation.fairness import augmentation_fairness, fairness
from dc_lightning.evaluation.pools import pool
from dc_lightning.evaluation.recipe import PLAIN
from dc_lightning.evaluation.selection import Method, Selection
from dc_lightning.matching.embeddings import embed
from dc_lightning.methods.base import Condenser
from dc_lightning.networks import make_network, normalises_small_maps
from dc_lightning.parts import Spec, part_name
from dc_lightning.run.checkpoints import Checkpoints
from dc_lightning.run.folder import is_resumed, run_folder, taken
from dc_lightning.run.progress import RunProgress, say
from dc_lightning.run.results import Column, Evaluated, environment, now, print_table, write_results
from dc_lightning.seeds import derive_seed
from dc_lightning.synthetic import SyntheticSet

Baseline = Literal[Method, "8-bit", "whole set"]

log = logging.getLogger(__name__)


class EvaluationCallback(Callback):
    """Trains fresh networks on the synthetic set, tests them and writes the results.

    It evaluates before the first iteration and after every `every_n`, if that is not 0, and always at the end. Each
    time the set that is evaluated is written first: ``synthetic.pt``, ``synthetic.png`` (where an image holds several,
    ``synthetic_decoded.png`` as well), and the grid of every evaluation under ``images/``; at the end ``results.json``
    and a table. An evaluation that is stopped continues where it was.

    Args:
        networks: test networks, a list or a pool's name; see `dc_lightning.evaluation.pools.pool`.
        num_networks: networks of each architecture, 20 in the paper.
        every_n: outer iterations between evaluations, 500 in the paper for S and SS; 0 evaluates at the end only.
        baselines: what is evaluated beside it at the end: ``random`` real images of the same budget, a new draw for
            every network; ``8-bit``, what image files would hold of the set; ``herding``, ``k-center``, ``forgetting``
            (see `dc_lightning.evaluation.selection`); ``whole set``.
        whole_set_epochs: epochs on the whole training set, for the upper bound and what herding, k-center and
            forgetting start from.
        whole_set_networks: networks of each architecture for the upper bound.
        features_network: network that herding, k-center and forgetting start from.
        cache: folder where networks that were trained on the whole set are kept; the next run reads them.
        recipe: how networks are trained.
        other_recipes: further ones for everything that is scored, each a name in configs/evaluation, a YAML file, or
            ``plain``: the first without its augmentation, for the augmentation robust score.
        split: what networks are tested on, the ``test`` set or ``validation``, the training images that
            ``data.validation`` holds out.
        choose_iteration: evaluate during the run on the training images that are held out, and take the images of the
            iteration that was best there (mean over the test networks, by the first recipe) as the run's.
        seed: of every draw of the evaluation.

    Attributes:
        configuration: of the whole run, for results.json.
        results: what was written there.

    Raises:
        InputError: if a number is out of range, or a name unknown.
    """

    def __init__(
        self,
        networks: str | list[Spec] = "S",
        num_networks: int = 20,
        every_n: int = 500,
        baselines: Sequence[Baseline] = ("random",),
        whole_set_epochs: int = 20,
        whole_set_networks: int = 1,
        features_network: Spec = "ConvNet",
        cache: str = "lightning_logs/whole_set",
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        other_recipes: Sequence[str] = (),
        split: Literal["test", "validation"] = "test",
        choose_iteration: bool = False,
        seed: int = 0,
    ) -> None:
        of_whole_set = {"whole_set_epochs": (whole_set_epochs, 1), "whole_set_networks": (whole_set_networks, 1)}
        require_at_least("evaluation.", num_networks=(num_networks, 1), every_n=(every_n, 0), **of_whole_set)
        if choose_iteration and not every_n:
            raise InputError("evaluation.choose_iteration compares evaluations of a run; give evaluation.every_n.")
        if choose_iteration and split == "validation":
            raise InputError(
                "evaluation.choose_iteration chooses by the images that evaluation.split validation would test on; "
                "leave one of them out."
            )
        require_known("evaluation.baselines", baselines, get_args(Baseline))
        self.networks = networks
        self.num_networks = num_networks
        self.every_n = every_n
        self.baselines = list(dict.fromkeys(baselines))
        self.features_network = features_network
        self.cache = Path(cache)
        self.whole_set_epochs = whole_set_epochs
        self.whole_set_networks = whole_set_networks
        others = [recipe.plain() if name == "plain" else load_recipe(name) for name in other_recipes]
        self.recipes = [recipe, *others]
        names = [each.name for each in self.recipes]
        if len(set(names)) < len(names):
            raise InputError(f"Recipes of one evaluation need a name each (evaluation.recipe.name), got {names}.")
        self.split, self.choose_iteration = split, choose_iteration
        self.seed = seed
        self.folder = Path()
        self.configuration: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self._group = Group()
        self._history: list[dict[str, Any]] = []
        self._best: dict[str, Any] = {}  # of the iteration that is chosen so far: accuracy, iteration, images
        self._started, self._spent = 0.0, {"all": 0.0, "evaluation": 0.0}  # seconds, those before a resume included
        self._iteration_started, self._iterations = 0.0, list[float]()

    # Lightning's hooks: when

    def state_dict(self) -> dict[str, Any]:
        """What was evaluated so far, and the time spent."""
        return {"history": self._history, "seconds": self._seconds(), "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a checkpoint."""
        self._history, self._spent = state_dict["history"], dict(state_dict["seconds"])
        self._best = state_dict.get("best", {})

    def _seconds(self) -> dict[str, float]:
        here = time.monotonic() - self._started if self._started else 0.0
        return {**self._spent, "all": self._spent["all"] + here}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees with the other processes on the folder of the results; makes the images for the callbacks after it.

        Raises:
            InputError: if the folder holds the results of another run.
        """
        self.folder = run_folder(trainer)
        if stage == "evaluate":
            self._require_free(trainer)
        if stage == "fit":
            _condenser(pl_module).setup(stage)
        if getattr(trainer, "fast_dev_run", False):
            self.num_networks, self.baselines, self.recipes = 1, [], [self.recipes[0].with_epochs(1)]
        self._group = Group.of(trainer)

    def _require_free(self, trainer: Trainer) -> None:
        """All processes refuse together."""
        is_new = self._writes(trainer) and not is_resumed(trainer)
        if said := trainer.strategy.broadcast(taken(self.folder) if is_new else ""):
            raise InputError(said)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the settings of the final evaluation before the run starts."""
        module = _condenser(pl_module)
        self._require_free(trainer)
        if (trainer.max_steps or -1) > 0 and not getattr(trainer, "fast_dev_run", False):
            raise InputError("trainer.max_steps could end within an outer iteration; give trainer.max_epochs instead.")
        split = self._followed_on(module.data).split
        other = any(entry.get("split", "test") != split for entry in self._history)
        if other or (self.choose_iteration and self._history and self._best.get("judge") != self._judge(module)):
            raise InputError(
                "The checkpoint was evaluated in another way, so that its curve and choice would mix: resume with the "
                "evaluation (split, choose_iteration, networks, num_networks, recipe) that the run began with."
            )
        self.check(trainer, self.tested_on(module.data), module.network_spec)
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs again, and evaluates if that is due, where a run is resumed, at which its curves are cut."""
        module = _condenser(pl_module)
        for entry in self._history:
            if entry["iteration"] == module.resumed_at and entry["iteration"] != trainer.max_epochs:  # that one is new
                self._log(trainer, entry)
        self._evaluate_if_due(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates before every ``every_n``-th outer iteration, the first included."""
        self._evaluate_if_due(trainer, _condenser(pl_module))
        self._iteration_started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state before an evaluation, in which a signal may end the run at once."""
        if self._iteration_started:  # not of an iteration that was resumed in the middle
            self._iterations.append(time.monotonic() - self._iteration_started)
        if self._is_due(trainer, trainer.current_epoch + 1):
            for callback in _checkpoints(trainer):
                callback.save_next = True

    def _is_due(self, trainer: Trainer, iteration: int) -> bool:
        done = any(entry["iteration"] == iteration for entry in self._history)
        return bool(self.every_n) and iteration % self.every_n == 0 and not done and iteration != trainer.max_epochs

    def _evaluate_if_due(self, trainer: Trainer, module: Condenser) -> None:
        if self._is_due(trainer, trainer.current_epoch):
            self._evaluate(trainer, module, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the final images and the baselines, writes the results and prints the table.

        Here and not at the end of the training, which does not come again when a finished one is resumed.
        """
        module = _condenser(pl_module)
        data, networks = self.tested_on(module.data), pool(self.networks, module.network_spec)
        synthetic, scores = self._evaluate(trainer, module, trainer.current_epoch)
        if self.choose_iteration:
            synthetic = self._chosen(trainer, module)
            scores = self._score(trainer, data, [synthetic], networks, "images of the chosen iteration")
        columns = [Column.of(synthetic, scores), *self._baselines(trainer, data, networks, [synthetic])]
        self.configuration = self.configuration or {"model": dict(module.hparams)}
        found = {"kind": "condensation", **_about(data, module.ipc), "checksum": synthetic.checksum}
        found |= {"source": synthetic.source, "history": self._history}
        self._publish(trainer, columns, found, f"condensed with {part_name(module.network_spec)}")
        if not trainer.is_global_zero:
            return
        final, settings = self._final(columns), self._settings(module)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, final, step=trainer.current_epoch)
            else:  # MLflow refuses what Lightning has logged with another value
                logger.log_hyperparams({name: settings[name] for name in settings if name not in module.hparams})
                logger.log_metrics(final, step=trainer.current_epoch)
                logger.save()
        if not self._writes(trainer):
            say("fast_dev_run: one matching step and one short training; nothing was written.")
            return
        say(f"synthetic set  {self.folder / 'synthetic.pt'}")
        for name in ("synthetic.png", "synthetic_decoded.png"):
            if (self.folder / name).is_file():
                say(f"images         {self.folder / name}")
        say(f"results        {self.folder / 'results.json'}")
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            say(f"TensorBoard    tensorboard --logdir {self.folder}")

    # The commands that need no fit

    def check(
        self,
        trainer: Trainer,
        data: CondensationDataModule,
        condensed_with: Spec,
        sets: Sequence[SyntheticSet] = (),
        methods: Sequence[str] = (),
    ) -> None:
        """Checks the settings of an evaluation before it starts; ``methods`` select real images besides the baselines.

        Raises:
            InputError: if there is anything.
        """
        for synthetic in sets:
            check_fits(synthetic, data)
        networks = pool(self.networks, condensed_with)
        check_networks(networks, data)
        small = [part_name(each) for each in networks if normalises_small_maps(each, data)]
        if small and trainer.is_global_zero:
            log.warning(
                f"{', '.join(dict.fromkeys(small))} normalises maps of 2x2 pixels or less, of images of "
                f"{data.image_size[0]}x{data.image_size[1]}: take a shallower network, such as ConvNetD2."
            )
        if sets and data.split == "validation" and trainer.is_global_zero:
            seen = [synthetic for synthetic in sets if synthetic.source.get("validation") != data.validation]
            if seen:
                log.warning(
                    f"{len(seen)} of {len(sets)} sets were made without data.validation {data.validation}: their "
                    "method may have seen the images that they are tested on."
                )
        plain = [recipe for recipe in self.recipes if recipe.name.endswith(PLAIN)]
        if plain and not any(self.recipes[0].augmentation_spec(network, data) for network in networks):
            raise InputError(
                f"evaluation.other_recipes plain: the recipe {self.recipes[0].name} has no augmentation for "
                f"{data.title} that could be left out."
            )
        for recipe in self.recipes:
            recipe.make_loss()
            for network in networks:
                recipe.make_augmentation(network, data)
        methods = sorted({*methods, *self.baselines} & set(get_args(Selection)))
        if methods:
            check_networks([self.features_network], data)
            embed(make_network(self.features_network, data, 0), torch.zeros(2, data.channels, *data.image_size))
        if self._writes(trainer):
            require_writable(self.folder)
            if methods or "whole set" in self.baselines:
                require_writable(self.cache, "--evaluation.cache")

    def evaluate_saved(
        self, trainer: Trainer, data: CondensationDataModule, sets: list[SyntheticSet], condensed_with: Spec, path: str
    ) -> None:
        """Evaluates sets of one method, several as the experiments of one table cell, and the baselines.

        The title of the table names the path that the sets are at.
        """
        self._started = self._started or time.monotonic()
        networks = pool(self.networks, condensed_with)
        scores = self._score(trainer, data, sets, networks, "evaluation")
        columns = [Column.of(sets[0], scores), *self._baselines(trainer, data, networks, sets)]
        found = {"kind": "evaluation", **_about(data, sets[0].ipc)}
        found["checksums"] = [synthetic.checksum for synthetic in sets]
        found["sources"] = [synthetic.source for synthetic in sets]
        self._publish(trainer, columns, found, path)
        if trainer.is_global_zero:
            say(f"results        {self.folder / 'results.json'}")

    def select(
        self, trainer: Trainer, data: CondensationDataModule, method: Method, ipc: int | Sequence[int]
    ) -> SyntheticSet:
        """Selects real images; see `WholeSet.select`."""
        self._started = self._started or time.monotonic()
        with self._evaluating(trainer):
            return self._whole_set(trainer, data, self.recipes[0]).select(method, ipc, self.features_network)

    # The evaluations

    def tested_on(self, data: CondensationDataModule) -> CondensationDataModule:
        """The data, with the held-out training images in place of the test set where `split` says so."""
        return data.held_out() if self.split == "validation" else data

    def _judge(self, module: Condenser) -> str:
        """What decides on the iteration that is chosen."""
        networks = [part_name(each) for each in pool(self.networks, module.network_spec)]
        return json.dumps([networks, self.num_networks, asdict(self.recipes[0]), self.seed, module.data.validation])

    def _followed_on(self, data: CondensationDataModule) -> CondensationDataModule:
        """Likewise, for the evaluations of a run."""
        return data.held_out() if self.choose_iteration else self.tested_on(data)

    def evaluator(self, trainer: Trainer, data: CondensationDataModule) -> Evaluator:
        """The evaluator of a Trainer's processes; it remembers what a stopped evaluation has found."""
        bar = trainer.progress_bar_callback
        keeps = self.folder != Path() and not trainer.fast_dev_run  # type: ignore[attr-defined]
        return Evaluator(
            data=data,
            device=trainer.strategy.root_device,
            seed=self.seed,
            group=self._group,
            progress=bar.evaluation if isinstance(bar, RunProgress) else None,
            known=Evaluated(self.folder / ".evaluated", self._group.rank) if keeps else None,
        )

    def _whole_set(self, trainer: Trainer, data: CondensationDataModule, recipe: Recipe) -> WholeSet:
        return WholeSet(self.evaluator(trainer, data), recipe, self.whole_set_epochs, self.cache)

    @contextmanager
    def _evaluating(self, trainer: Trainer) -> Iterator[None]:
        """Within, a signal may end the run at once; the time is that of evaluations."""
        started = time.monotonic()
        with ExitStack() as stack:
            for callback in _checkpoints(trainer):
                stack.enter_context(callback.evaluating())
            yield
        self._spent["evaluation"] += time.monotonic() - started

    def _score(
        self,
        trainer: Trainer,
        data: CondensationDataModule,
        sets: list[SyntheticSet],
        networks: list[Spec],
        title: str,
        count: int | None = None,
    ) -> list[Score]:
        count, evaluator = count or self.num_networks, self.evaluator(trainer, data)
        with self._evaluating(trainer):
            return [score for recipe in self.recipes for score in evaluator.score(sets, networks, count, recipe, title)]

    def _evaluate(self, trainer: Trainer, module: Condenser, iteration: int) -> tuple[SyntheticSet, list[Score]]:
        synthetic = module.synthetic_set(iteration)
        self._save(trainer, synthetic)
        if self._writes(trainer):
            for decoded, path in enumerate(self._grids(iteration).values()):
                if not decoded or synthetic.images_in_one > 1:
                    synthetic.save_grid(path, decoded=bool(decoded))
        networks, data = pool(self.networks, module.network_spec), self._followed_on(module.data)
        scores = self._score(trainer, data, [synthetic], networks, f"evaluation after {iteration} iterations")
        entry = {"iteration": iteration, "scores": [score.to_dict() for score in scores], "split": data.split}
        if self.choose_iteration:
            accuracy = fmean(score.mean for score in scores if score.recipe == self.recipes[0].name)
            if accuracy > self._best.get("accuracy", -1.0):
                best = {"accuracy": accuracy, "iteration": iteration, "images": synthetic.images}
                self._best = {**best, "judge": self._judge(module)}
        self._history = [*(old for old in self._history if old["iteration"] != iteration), entry]
        self._log(trainer, entry)
        return synthetic, scores

    def _save(self, trainer: Trainer, synthetic: SyntheticSet) -> None:
        if not self._writes(trainer):
            return
        synthetic.save(self.folder / "synthetic.pt")
        synthetic.save_grid(self.folder / "synthetic.png")
        if synthetic.images_in_one > 1:
            synthetic.save_grid(self.folder / "synthetic_decoded.png", decoded=True)

    def _chosen(self, trainer: Trainer, module: Condenser) -> SyntheticSet:
        """The set of the iteration that was best on the held-out images; it becomes that of the run."""
        iteration, accuracy = self._best["iteration"], self._best["accuracy"]
        found = replace(module.synthetic_set(iteration), images=self._best["images"])
        found.source.update(chosen_by="validation", chosen_of=trainer.current_epoch)
        self._save(trainer, found)
        if trainer.is_global_zero:
            say(f"iteration {iteration} of {trainer.current_epoch} chosen: {100 * accuracy:.1f} % on held-out images")
        return found

    def _log(self, trainer: Trainer, entry: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        iteration = entry["iteration"]
        for logger in trainer.loggers:
            for score in entry["scores"]:
                name = self._tag(score["network"], score["recipe"])
                metrics = {f"accuracy/{name}": score["mean"], f"accuracy_std/{name}": score["std"]}
                logger.log_metrics(metrics, step=iteration)
            for title, path in self._grids(iteration).items():
                if path.is_file() and isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(title, to_tensor(Image.open(path)), iteration)
                elif path.is_file() and hasattr(logger, "log_image"):  # Weights & Biases
                    logger.log_image(title, [str(path)], iteration)

    def _grids(self, iteration: int) -> dict[str, Path]:
        """Pictures of the images as they are stored, and as a network sees them where several are in one."""
        path = self.folder / "images" / f"iteration_{iteration:06d}.png"
        return {"synthetic images": path, "decoded images": path.with_stem(f"{path.stem}_decoded")}

    @staticmethod
    def _writes(trainer: Trainer) -> bool:
        return trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)

    def _tag(self, network: str, recipe: str) -> str:
        """Of a curve: the network's name, with the recipe's where it is not the first."""
        return network if recipe == self.recipes[0].name else f"{network}/{recipe}"

    def _baselines(
        self, trainer: Trainer, data: CondensationDataModule, networks: list[Spec], sets: list[SyntheticSet]
    ) -> list[Column]:
        columns, ipc = [], sets[0].ipc if sets[0].labels.dim() == 2 else sets[0].counts
        for name in self.baselines:
            if name == "random":
                seeds = [derive_seed(self.seed, "random set", number) for number in range(self.num_networks)]
                drawn = [random_set(data, ipc, seed) for seed in seeds]
                scores = self._score(trainer, data, drawn, networks, "random images", count=1)
                columns.append(Column.of(drawn[0], scores))
            elif name == "8-bit":
                rounded = [synthetic.as_8_bit() for synthetic in sets]
                scores = self._score(trainer, data, rounded, networks, "as 8-bit images")
                columns.append(replace(Column.of(rounded[0], scores), name=name))
            elif name == "whole set":
                with self._evaluating(trainer):
                    bounds = [self._whole_set(trainer, data, recipe) for recipe in self.recipes]
                    scores = [score for bound in bounds for score in bound.score(networks, self.whole_set_networks)]
                assert data.real is not None
                columns.append(Column(name, scores, len(data.real.labels), len(data.real.labels)))
            else:
                chosen = self.select(trainer, data, name, ipc)
                columns.append(Column.of(chosen, self._score(trainer, data, [chosen], networks, name)))
        return columns

    # Files

    def _settings(self, module: Condenser) -> dict[str, Any]:
        """What was configured, for TensorBoard's HPARAMS, in whose columns what is compared most comes first."""
        first = {
            "ipc": module.ipc,
            "network": part_name(module.network_spec),
            "lr_images": module.lr_images,
            "batch_real": module.data.batch_real,
            "iterations": module.trainer.max_epochs or 0,
            "method": module.name,
            "dataset": module.data.title,
        }
        return {**first, **{key: self.configuration.get(key, {}) for key in ("model", "data", "evaluation")}}

    def _final(self, columns: Sequence[Column]) -> dict[str, float]:
        """The accuracies of the end: of the set and of what stands beside it under one name in all runs, then each."""
        found = {}
        for place, column in enumerate(columns):
            means = [score.mean for score in column.scores if score.recipe == self.recipes[0].name]
            found[f"final/{column.name if place else 'accuracy'}"] = fmean(means)
        for column in columns:
            for score in column.scores:
                found[f"final/{column.name}/{self._tag(score.network, score.recipe)}"] = score.mean
        return found

    def run_facts(self, trainer: Trainer) -> dict[str, Any]:
        """What results.json says of every run."""
        processes = {"processes": trainer.world_size, "device": str(trainer.strategy.root_device)}
        about = {"seed": self.seed, "configuration": self.configuration, "finished": now()}
        return {**about, **processes, **environment()}

    def _publish(self, trainer: Trainer, columns: list[Column], content: dict[str, Any], what: str) -> None:
        """Writes results.json, and prints the table under the name of what was evaluated."""
        seconds, iterations = self._seconds(), self._iterations[1:] or self._iterations or [0.0]
        scores = {column.name: column.scores for column in columns[1:]}
        bounds = columns[0].scores, scores.get("random", []), scores.get("whole set", [])
        gains: dict[str, list[Any]] = {"fairness": fairness(*bounds)}
        gains["augmentation_fairness"] = augmentation_fairness(*bounds)
        self.results = {
            **content,
            "columns": [column.to_dict() for column in columns],
            **{key: [asdict(each) for each in found] for key, found in gains.items() if found},
            **self.run_facts(trainer),
            "seconds": round(seconds["all"], 1),
            "seconds_condensing": round(seconds["all"] - seconds["evaluation"], 1),
            "seconds_per_iteration": round(median(iterations), 4),
            "least_seconds_per_iteration": round(min(iterations), 4),
        }
        if self._writes(trainer):
            write_results(self.folder / "results.json", self.results)
            Evaluated(self.folder / ".evaluated", self._group.rank).remove()
        if isinstance(trainer.progress_bar_callback, RunProgress):
            trainer.progress_bar_callback.close()
        if trainer.is_global_zero:
            print_table(columns, f"{content['dataset']}, {content['ipc']} per class, {what}")
            for each in (*gains["fairness"], *gains["augmentation_fairness"]):
                say(each.in_words())


def _about(data: CondensationDataModule, ipc: int) -> dict[str, Any]:
    return {
        "dataset": data.title,
        "ipc": ipc,
        "test_images": len(data.test_labels),
        "image_shape": [data.channels, *data.image_size],
        **({"validation": data.validation} if data.validation else {}),
        "mean": list(data.mean),
        "std": list(data.std),
        "class_names": list(data.class_names),
    }


def _checkpoints(trainer: Trainer) -> list[Checkpoints]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]


def _condenser(module: LightningModule) -> Condenser:
    assert isinstance(module, Condenser)
    return module


def require_writable(folder: Path, option: str = "--trainer.default_root_dir") -> None:
    """Makes a folder to write to.

    Raises:
        InputError: if it cannot be made or written; names the option that gives another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"The output folder '{folder}' cannot be written ({error.strerror}); give another by {option}."
        ) from error
