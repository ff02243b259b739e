"""The commands that score sets without a fit: their work runs in the processes of a Trainer, outside its loops."""

from collections.abc import Callable
from typing import Any

import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.evaluation.selection import Method
from dc_lightning.files import write_whole
from dc_lightning.methods.base import Condenser
from dc_lightning.parts import Spec
from dc_lightning.run.checkpoints import Checkpoints
from dc_lightning.run.evaluation_callback import EvaluationCallback
from dc_lightning.run.folder import run_folder
from dc_lightning.run.progress import RunProgress, say
from dc_lightning.run.results import OF_A_RUN, length_of
from dc_lightning.synthetic import SyntheticSet, load_synthetic
from dc_lightning.synthetic.reading import Labels
from dc_lightning.synthetic.synthetic_set import Space


class CondensationTrainer(Trainer):
    """Lightning's Trainer with the entry points of further commands; its processes share their work."""

    @property
    def log_dir(self) -> str:
        """See `run_folder`."""
        return str(run_folder(self))

    def evaluate(
        self,
        model: Condenser,
        datamodule: CondensationDataModule,
        synthetic: str | list[str],
        experiment: int | None = None,
        space: Space | None = None,
        factor: int | None = None,
        labels: Labels | None = None,
        whitening: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Scores saved synthetic sets by the recipes of the evaluation, several as the experiments of one table cell.

        Args:
            model: names the condensing network, for the pools S and SS, where the set does not.
            datamodule: the data that the set was made for.
            synthetic: what `load_synthetic` reads, or a list of such paths.
            experiment: number of one set in an authors' file; None takes all of them.
            space: of the images, normalised or pixels, where a file does not say it.
            factor: training images along each side of a stored one, likewise.
            labels: what soft labels are, probabilities or logits, likewise.
            whitening: file of the ZCA transform of whitened images, likewise; see `unwhitened`.
            ckpt_path: not used; accepted so that the configuration of a fit can be given.
            weights_only: not used, like ckpt_path.
        """
        paths = [synthetic] if isinstance(synthetic, str) else synthetic

        def work(callback: EvaluationCallback, data: CondensationDataModule) -> None:
            given = {"space": space, "factor": factor, "labels": labels, "whitening": whitening}
            sets = _load(paths, experiment, data, {key: value for key, value in given.items() if value is not None})
            if self.is_global_zero and "learned_lr" in sets[0].source:
                rate = sets[0].source["learned_lr"]
                say(f"made with a learned rate of {rate:.4g}; evaluation.recipe.lr is {callback.recipes[0].lr:.4g}")
            condensed_with: Spec = sets[0].source.get("network", model.network_spec)
            class_path = f"{type(model).__module__}.{type(model).__qualname__}"
            used = {"model": {"class_path": class_path, "init_args": {"network": condensed_with}}}
            callback.configuration = {**callback.configuration, **used}  # nothing else of the model
            if self.is_global_zero and (path := callback.folder / "config.yaml").is_file():
                saved = {**yaml.safe_load(path.read_text(encoding="utf-8")), **used}
                write_whole(path, yaml.safe_dump(saved, sort_keys=False, allow_unicode=True).encode())
            callback.check(self, data, condensed_with, sets)
            callback.evaluate_saved(self, data, sets, condensed_with, ", ".join(paths))

        in_processes(self, model, datamodule, work)

    def select(
        self,
        model: Condenser,
        datamodule: CondensationDataModule,
        method: Method,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Selects real images, model.ipc of each class, and scores them by the recipes of the evaluation.

        Args:
            model: its ipc, and its network for the pools S and SS; nothing else of it is used.
            datamodule: the data to select from.
            method: random, herding, k-center or forgetting.
            ckpt_path: not used; accepted so that the configuration of a fit can be given.
            weights_only: not used, like ckpt_path.
        """

        def work(callback: EvaluationCallback, data: CondensationDataModule) -> None:
            callback.check(self, data, model.network_spec, methods=[method])
            chosen = callback.select(self, data, method, model.ipc)
            chosen.source["dataset"] = data.dataset_name
            path = callback.folder / "synthetic.pt"
            if self.is_global_zero:
                chosen.save(path)
                chosen.save_grid(path.with_suffix(".png"))
            callback.evaluate_saved(self, data, [chosen], model.network_spec, str(path))

        in_processes(self, model, datamodule, work)


def _load(
    paths: list[str], experiment: int | None, data: CondensationDataModule, unsaid: dict[str, Any]
) -> list[SyntheticSet]:
    unsaid = {"background": getattr(data, "background", "white"), **unsaid}
    sets = [found for path in paths for found in load_synthetic(path, data.mean, data.std, data.class_names, **unsaid)]
    if experiment is not None:
        if not 0 <= experiment < len(sets):
            raise InputError(
                f"experiment must be in 0..{len(sets) - 1}, as '{', '.join(paths)}' has {len(sets)} synthetic sets; "
                f"got {experiment}."
            )
        sets = [sets[experiment]]
    counts = {tuple(found.counts) if found.labels.dim() == 1 else (len(found.labels),) for found in sets}
    methods = {found.method for found in sets}
    if len(counts) > 1:
        largest = sorted({found.ipc for found in sets})
        several = largest if len(largest) > 1 else sorted(list(each) for each in counts)
        raise InputError(f"Sets that are evaluated together must have one number of images per class; got {several}.")
    if len(methods) > 1:
        raise InputError(
            f"Sets that are evaluated together must be made by one method, got {', '.join(sorted(methods))}; evaluate "
            "each by itself."
        )
    if differing := _differing(sets):
        raise InputError(
            f"Sets that are evaluated together must be made in one way, but they differ in {', '.join(differing)}; "
            "evaluate each by itself."
        )
    return sets


def _differing(sets: list[SyntheticSet]) -> list[str]:
    """In what sets differ that are not experiments of one table cell; what a file does not say is not judged."""
    made = []
    for found in sets:
        passed = {*OF_A_RUN, "experiment", "file", "folder", "learned_lr"}
        said: dict[str, Any] = {name: str(value) for name, value in found.source.items() if name not in passed}
        said["iterations"] = length_of(found.source)
        said |= {name: getattr(found, name) for name in ("factor", "formation", "space")}
        made.append({**said, "soft labels": found.labels.dim() == 2})
    names = dict.fromkeys(name for each in made for name in each)
    return [name for name in names if len({each[name] for each in made if name in each}) > 1]


def in_processes(
    trainer: Trainer,
    model: Condenser,
    data: CondensationDataModule,
    work: Callable[[EvaluationCallback, CondensationDataModule], None],
) -> None:
    """Runs work in every process of a Trainer's strategy, with the data to be tested on, and signals taken over."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callback = next(part for part in callbacks if isinstance(part, EvaluationCallback))
    checkpoints = next(part for part in callbacks if isinstance(part, Checkpoints))
    module: Any = model  # what Lightning hands to callbacks

    def in_this_process() -> None:
        trainer.strategy.setup_environment()
        if trainer.local_rank == 0:
            data.prepare_data()
        trainer.strategy.barrier("data")
        data.setup()
        for part in callbacks:
            if isinstance(part, EvaluationCallback | SaveConfigCallback | RunProgress):
                part.setup(trainer, module, "evaluate")
        checkpoints.take_signals()
        work(callback, callback.tested_on(data))
        checkpoints.give_signals_back()
        trainer.strategy.barrier("end")

    launcher = trainer.strategy.launcher
    try:
        if launcher is None:
            in_this_process()
        else:
            launcher.launch(in_this_process)  # without the Trainer, whose module it would send back
    except BaseException as error:
        if isinstance(trainer.progress_bar_callback, RunProgress):
            trainer.progress_bar_callback.close()
        checkpoints.on_exception(trainer, None, error)
        raise
