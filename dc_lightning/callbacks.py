"""The evaluation as a callback: on the way, at the end, and of saved sets."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from dc_lightning.checkpoints import Checkpoints
from dc_lightning.condensation import CondensationModule
from dc_lightning.data import CondensationDataModule, to_tensor
from dc_lightning.errors import InputError
from dc_lightning.evaluation import (
    Group,
    Recipe,
    Score,
    Train,
    check_fits,
    check_networks,
    evaluate_sets,
    evaluation_seed,
    pool,
    random_set,
    whole_set,
)
from dc_lightning.parts import Spec, part_name
from dc_lightning.progress import RunProgress
from dc_lightning.results import Column, Evaluated, environment, now, print_table, read_results, write_results
from dc_lightning.seeds import derive_seed
from dc_lightning.selection import Method, Selection, WholeSetNetwork, require_embed, select, whole_set_network
from dc_lightning.synthetic import SyntheticSet

Baseline = Literal[Method, "whole set"]


class EvaluationCallback(Callback):
    """Trains fresh networks on the synthetic set, tests them, and writes what was found.

    It evaluates before the first iteration and after every `every_n`, if that is not 0, and always at the end. Each
    time the set that is evaluated is written first: ``synthetic.pt`` and ``synthetic.png``, and the grid of every
    evaluation under ``images/``; at the end ``results.json`` and a table. An evaluation that is stopped goes on where
    it was.

    Args:
        networks: test networks, a list or a pool's name; see `dc_lightning.evaluation.pool`.
        num_networks: networks of each architecture, 20 in the paper.
        every_n: outer iterations between evaluations, 500 in the paper for S and SS; 0 evaluates at the end only.
        baselines: what is evaluated beside it at the end: ``random`` real images of the same budget, a new draw for
            every network; ``herding``, ``k-center``, ``forgetting`` (see `dc_lightning.selection`); ``whole set``.
        whole_set_epochs: epochs on the whole training set, for the upper bound and what herding, k-center and
            forgetting start from.
        whole_set_networks: networks of each architecture for the upper bound.
        features_network: network that herding, k-center and forgetting start from.
        cache: folder where networks that were trained on the whole set are kept; the next run reads them.
        recipe: how networks are trained.
        seed: of every draw of the evaluation.

    Raises:
        InputError: if a number is out of range.
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
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            *(("num_networks", num_networks, 1), ("every_n", every_n, 0)),
            *(("whole_set_epochs", whole_set_epochs, 1), ("whole_set_networks", whole_set_networks, 1)),
        ):
            if value < least:
                raise InputError(f"evaluation.{name} must be at least {least}, got {value}.")
        self.networks = networks
        self.num_networks = num_networks
        self.every_n = every_n
        for name in baselines:
            if name not in get_args(Baseline):
                raise InputError(
                    f"Unknown baseline '{name}' in evaluation.baselines: expected any of "
                    f"{', '.join(get_args(Baseline))}."
                )
        self.baselines = list(dict.fromkeys(baselines))
        self.features_network = features_network
        self.cache = Path(cache)
        self.whole_set_epochs = whole_set_epochs
        self.whole_set_networks = whole_set_networks
        self.recipe = recipe
        self.seed = seed
        self.folder = Path()
        self._group = Group()
        self.configuration: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self._history: list[dict[str, Any]] = []
        self._started, self._seconds_before = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was evaluated so far, and the time spent."""
        return {"history": self._history, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._history, self._seconds_before = state_dict["history"], state_dict["seconds"]

    def _seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._started if self._started else 0.0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees with the other processes on the folder of the results."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._group = Group.of(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out now, not after hours, what the evaluation at the end would stumble over."""
        module = _condensation(pl_module)
        self.check(trainer, module.data, module.network_spec)
        self._started = time.monotonic()
        for entry in self._history:  # the curve is cut at the iteration that the run goes on from
            if entry["iteration"] == module.resumed_at != trainer.max_epochs:  # the last one is evaluated anew
                self._log(trainer, entry)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates where a run goes on, if that is due."""
        self._evaluate_if_due(trainer, _condensation(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates before every ``every_n``-th outer iteration, the first included."""
        self._evaluate_if_due(trainer, _condensation(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the state saved before an evaluation, in which a signal may end the run at once."""
        if self._is_due(trainer, trainer.current_epoch + 1):
            for callback in _checkpoints(trainer):
                callback.save_next = True

    def _is_due(self, trainer: Trainer, iteration: int) -> bool:
        done = any(entry["iteration"] == iteration for entry in self._history)
        return bool(self.every_n) and iteration % self.every_n == 0 and not done and iteration != trainer.max_epochs

    def _evaluate_if_due(self, trainer: Trainer, module: CondensationModule) -> None:
        if self._is_due(trainer, trainer.current_epoch):
            self._evaluate(trainer, module, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the final images and the baselines, writes the results and prints the table.

        Here and not at the end of the training, which does not come again when a finished one is resumed.
        """
        module = _condensation(pl_module)
        synthetic, scores = self._evaluate(trainer, module, trainer.current_epoch)
        baselines = self._baselines(trainer, module.data, pool(self.networks, module.network_spec), module.ipc)
        columns = [Column("DC", scores, len(synthetic)), *baselines]
        self._write(trainer, module, columns)

    def note_configuration(self, configuration: dict[str, Any]) -> None:
        """Keeps the whole configuration of the run for results.json."""
        self.configuration = configuration

    def _settings(self) -> dict[str, Any]:
        """What was configured, as the flat table of TensorBoard's HPARAMS."""
        chosen: dict[str, Any] = {
            key: self.configuration[key] for key in ("model", "data", "evaluation") if key in self.configuration
        }
        flat = _flatten(chosen)
        flat["trainer.max_epochs"] = self.configuration.get("trainer", {}).get("max_epochs", 0)
        return flat

    def check(
        self,
        trainer: Trainer,
        data: CondensationDataModule,
        condensed_with: Spec,
        sets: Sequence[SyntheticSet] = (),
        methods: Sequence[str] = (),
    ) -> None:
        """Finds out beforehand what an evaluation would stumble over.

        Args:
            trainer: whose first process writes.
            data: to be tested on.
            condensed_with: see `pool`.
            sets: to be evaluated.
            methods: to be used to select, besides the baselines.
        """
        if (sets or methods) and trainer.is_global_zero and _is_condensation(self.folder / "results.json"):
            raise InputError(
                f"'{self.folder}' holds the results of a condensation, which would be lost; give another folder or "
                "--trainer.logger.version."
            )
        for synthetic in sets:
            check_fits(synthetic, data)
        check_networks(pool(self.networks, condensed_with), data)
        methods = sorted({*methods, *self.baselines} & set(get_args(Selection)))
        if methods:
            check_networks([self.features_network], data)
        if {"herding", "k-center"} & set(methods):
            require_embed(self.features_network, data)
        if trainer.is_global_zero:
            require_writable(self.folder)
            if methods or "whole set" in self.baselines:
                require_writable(self.cache)

    def evaluate_saved(
        self, trainer: Trainer, data: CondensationDataModule, sets: list[SyntheticSet], condensed_with: Spec, path: str
    ) -> None:
        """Evaluates sets that were saved or selected, several as the experiments of one table cell; and the baselines.

        Args:
            trainer: whose processes share the work.
            data: to be tested on.
            sets: from one method.
            condensed_with: see `pool`.
            path: where the sets are, for the title.
        """
        self._started = self._started or time.monotonic()
        networks = pool(self.networks, condensed_with)
        scores = self._run(trainer, data, networks, sets, self.num_networks, "evaluation")
        method = str(sets[0].source.get("method", "synthetic"))
        column = Column("DC" if method == "gradient matching" else method, scores, len(sets[0]))
        columns = [column, *self._baselines(trainer, data, networks, sets[0].ipc)]
        found = {"kind": "evaluation", "dataset": data.dataset_name, "ipc": sets[0].ipc}
        self._publish(trainer, columns, {**found, "sources": [synthetic.source for synthetic in sets]})
        if trainer.is_global_zero:
            print_table(columns, f"{data.dataset_name}, {sets[0].ipc} per class, {path}")
            _say(f"results        {self.folder / 'results.json'}")

    def _run(
        self,
        trainer: Trainer,
        data: CondensationDataModule,
        networks: list[Spec],
        sets: list[SyntheticSet],
        count: int,
        title: str,
        epochs: int | None = None,
        train: Train | None = None,
    ) -> list[Score]:
        bar = trainer.progress_bar_callback
        with ExitStack() as stack:
            for callback in _checkpoints(trainer):
                stack.enter_context(callback.evaluating())
            return evaluate_sets(
                sets,
                data,
                networks,
                count,
                self.recipe,
                self.seed,
                trainer.strategy.root_device,
                self._group,
                bar.evaluation if isinstance(bar, RunProgress) else None,
                title,
                epochs,
                train,
                self._evaluated(),
            )

    def _evaluated(self) -> Evaluated:
        return Evaluated(self.folder / ".evaluated", self._group.rank)

    def _evaluate(
        self, trainer: Trainer, module: CondensationModule, iteration: int
    ) -> tuple[SyntheticSet, list[Score]]:
        synthetic = module.synthetic_set(iteration)
        if trainer.is_global_zero:
            synthetic.save(self.folder / "synthetic.pt")
            synthetic.save_grid(self.folder / "synthetic.png")
            synthetic.save_grid(self.folder / "images" / f"iteration_{iteration:06d}.png")
        networks = pool(self.networks, module.network_spec)
        title = f"evaluation after {iteration} iterations"
        scores = self._run(trainer, module.data, networks, [synthetic], self.num_networks, title)
        entry = {"iteration": iteration, "scores": [score.to_dict() for score in scores]}
        self._history = [*(old for old in self._history if old["iteration"] != iteration), entry]
        self._log(trainer, entry)
        return synthetic, scores

    def _log(self, trainer: Trainer, entry: dict[str, Any]) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        iteration = entry["iteration"]
        for score in entry["scores"]:
            name = score["network"]
            metrics = {f"accuracy/{name}": score["mean"], f"accuracy_std/{name}": score["std"]}
            trainer.logger.log_metrics(metrics, step=iteration)
        grid = self.folder / "images" / f"iteration_{iteration:06d}.png"
        if grid.is_file():
            trainer.logger.experiment.add_image("synthetic images", to_tensor(Image.open(grid)), iteration)

    def _baselines(
        self, trainer: Trainer, data: CondensationDataModule, networks: list[Spec], ipc: int
    ) -> list[Column]:
        columns = []
        for name in self.baselines:
            if name == "random":
                seeds = [derive_seed(self.seed, "random set", number) for number in range(self.num_networks)]
                sets = [random_set(data, ipc, seed) for seed in seeds]
                scores = self._run(trainer, data, networks, sets, 1, "random images")
            elif name == "whole set":
                sets = [whole_set(data)]
                scores = self._run(
                    *(trainer, data, networks, sets, self.whole_set_networks, name, self.whole_set_epochs - 1),
                    train=lambda _, *job: self._whole_set_network(trainer, data, *job).accuracy,
                )
            else:
                sets = [self.select(trainer, data, name, ipc)]
                scores = self._run(trainer, data, networks, sets, self.num_networks, name)
            columns.append(Column(name, scores, len(sets[0])))
        return columns

    def _whole_set_network(
        self,
        trainer: Trainer,
        data: CondensationDataModule,
        network: Spec,
        seed: int,
        report: Callable[[float], None] | None = None,
    ) -> WholeSetNetwork:
        device = trainer.strategy.root_device
        return whole_set_network(
            network, data, self.recipe, self.whole_set_epochs, seed, device, self.cache, progress=report
        )

    def select(self, trainer: Trainer, data: CondensationDataModule, method: Method, ipc: int) -> SyntheticSet:
        """Selects real images; all but random ones by a network of the whole set, trained unless the cache has it.

        Args:
            trainer: whose processes and device are used; the first process trains.
            data: whose training images are selected from.
            method: see `dc_lightning.selection`.
            ipc: images per class.
        """
        self._started = self._started or time.monotonic()
        if method == "random":
            chosen = random_set(data, ipc, derive_seed(self.seed, "random set", 0))
            chosen.source.update(seed=self.seed)
            return chosen
        network, device = self.features_network, trainer.strategy.root_device
        seed = evaluation_seed(self.seed, network, 0)  # the first of the networks of the upper bound
        bar = trainer.progress_bar_callback

        def report(share: float) -> None:
            if isinstance(bar, RunProgress):
                bar.evaluation(f"{part_name(network)} on the whole set, for {method}", share, 1)

        with ExitStack() as stack:
            for callback in _checkpoints(trainer):
                stack.enter_context(callback.evaluating())
            data.move(device)
            if trainer.is_global_zero:
                self._whole_set_network(trainer, data, network, seed, report)
            self._group.reduce(torch.zeros(1))  # the others wait, and read what the first has trained
            trained = self._whole_set_network(trainer, data, network, seed)
            report(1.0)
            chosen = select(method, ipc, network, trained, data, device)
        chosen.source.update(seed=self.seed, epochs=self.whole_set_epochs)
        return chosen

    def _publish(self, trainer: Trainer, columns: list[Column], content: dict[str, Any]) -> None:
        self.results = {
            **content,
            "columns": [column.to_dict() for column in columns],
            "seed": self.seed,
            "configuration": self.configuration,
            "finished": now(),
            "seconds": round(self._seconds(), 1),
            "processes": trainer.world_size,
            "device": str(trainer.strategy.root_device),
            **environment(),
        }
        if trainer.is_global_zero:
            write_results(self.folder / "results.json", self.results)
            self._evaluated().remove()
        if isinstance(trainer.progress_bar_callback, RunProgress):
            trainer.progress_bar_callback.close()

    def _write(self, trainer: Trainer, module: CondensationModule, columns: list[Column]) -> None:
        source = module.synthetic_set(trainer.current_epoch).source
        self.configuration = self.configuration or {"model": dict(module.hparams)}
        found = {"kind": "condensation", "dataset": source["dataset"], "ipc": source["ipc"], "source": source}
        self._publish(trainer, columns, {**found, "history": self._history})
        if not trainer.is_global_zero:
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {
                f"final/{column.name}/{score.network}": score.mean for column in columns for score in column.scores
            }
            trainer.logger.log_hyperparams(self._settings(), final, step=trainer.current_epoch)
        print_table(
            columns, f"{source['dataset']}, {source['ipc']} per class, condensed with {part_name(source['network'])}"
        )
        folder = self.folder
        _say(
            f"synthetic set  {folder / 'synthetic.pt'}\nimages         {folder / 'synthetic.png'}\n"
            f"results        {folder / 'results.json'}\nTensorBoard    tensorboard --logdir {folder}"
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, int | float | bool) else str(value)
    return flat


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, highlight=False, markup=False)


def _checkpoints(trainer: Trainer) -> list[Checkpoints]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]


def _condensation(module: LightningModule) -> CondensationModule:
    assert isinstance(module, CondensationModule)
    return module


def _is_condensation(path: Path) -> bool:
    try:
        return read_results(path).get("kind") == "condensation"
    except (OSError, InputError):
        return False


def require_writable(folder: Path) -> None:
    """Makes the folder of the results.

    Raises:
        InputError: if it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"The output folder '{folder}' cannot be written ({error.strerror}); give another by "
            "--trainer.default_root_dir."
        ) from error
