"""The commands of the paper's two applications, in the processes of a Trainer."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dc_lightning.data.datamodule import CondensationDataModule
from dc_lightning.experiments import architecture_search, continual
from dc_lightning.experiments.architecture_search import ArchitectureSearch, Space, agreements
from dc_lightning.experiments.continual import Continual, Protocol
from dc_lightning.experiments.tables import Matrix, show
from dc_lightning.files import write_whole
from dc_lightning.methods.base import Condenser
from dc_lightning.parts import part_name
from dc_lightning.run.checkpoints import Interrupted
from dc_lightning.run.commands import CondensationTrainer, in_processes
from dc_lightning.run.evaluation_callback import EvaluationCallback, require_writable
from dc_lightning.run.progress import RunProgress, say
from dc_lightning.run.results import Column, write_results


class ExperimentTrainer(CondensationTrainer):
    """Lightning's Trainer with the entry points of all commands."""

    def continual(
        self,
        model: Condenser,
        datamodule: CondensationDataModule,
        protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
        output: str = "lightning_logs/continual",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Continual learning: classes, or the datasets of a stream, come one after the other; a memory of each is kept.

        Args:
            model: condenses what is kept, model.ipc images of each class.
            datamodule: the data, or a `dc_lightning.data.Stream` of several.
            protocol: what comes when, and what networks are trained on.
            output: folder of memories and networks; the same command continues one that was stopped.
            ckpt_path: not used; accepted so that the configuration of a fit can be given.
            weights_only: not used, like ckpt_path.
        """

        def work(callback: EvaluationCallback, data: CondensationDataModule) -> None:
            require_writable(Path(output), "--output")
            callback.check(self, data, model.network_spec, methods=[*protocol.memories])
            experiment = Continual(self, callback, model, data, protocol, Path(output))
            learnt, stages = experiment.run(), experiment.stage_names()
            if not self.is_global_zero:
                return
            columns = [Column(each.name, [experiment.score(each)], each.images, each.stored) for each in learnt]
            training = protocol.training + (f", distillation {protocol.distillation}" if protocol.distillation else "")
            title = f"{data.title}, {model.ipc} per class, {part_name(experiment.network)}: continual learning, "
            title += f"{training}, recipe {experiment.recipe.name}, {columns[0].scores[0].epochs} epochs"
            found = {"columns": columns, "learnt": [each.to_dict() for each in learnt], "stages": stages}
            table, plot = continual.table(learnt, title, stages), continual.plot(learnt, title, stages)
            self._publish(callback, "continual", table, plot, found)
            for logger in self.loggers:
                for each in learnt:
                    for stage, values in enumerate(each.by_stage(), 1):
                        logger.log_metrics({f"continual/{each.name}": sum(values) / len(values)}, step=stage)
                logger.save()

        with self._resumed_by("continual"):
            in_processes(self, model, datamodule, work)

    def architecture_search(
        self,
        model: Condenser,
        datamodule: CondensationDataModule,
        proxies: Sequence[str] = ("random", "early stopping"),
        space: Space = Space(),  # noqa: B008 (frozen)
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Ranks the networks of a space by proxies of the training set, and by the whole set.

        Args:
            model: its ipc, of images that are selected; nothing else of it is used.
            datamodule: the data.
            proxies: sets that `load_synthetic` reads, random, herding, k-center, forgetting, or early stopping: the
                whole set, as many images of it as a network sees of the first other proxy.
            space: the networks.
            ckpt_path: not used; accepted so that the configuration of a fit can be given.
            weights_only: not used, like ckpt_path.
        """

        def work(callback: EvaluationCallback, data: CondensationDataModule) -> None:
            require_writable(callback.cache, "--evaluation.cache")
            experiment = ArchitectureSearch(self, callback, data, space, proxies, model.ipc)
            callback.check(self, data, experiment.networks[0], methods=proxies)
            truth, ranked = experiment.run()
            if not self.is_global_zero:
                return
            all_ranked = [*ranked, truth]
            columns = [Column(each.name, each.scores, len(each.synthetic), each.images) for each in all_ranked]
            first = ranked[0].scores[0]
            title = f"{data.title}: architecture search, {len(truth.scores)} networks, recipe {first.recipe}, "
            title += f"{first.epochs} epochs; {callback.whole_set_epochs} on the whole set"
            agreed = {each.name: agreements(each.accuracies, truth.accuracies) for each in ranked}
            found = {
                "columns": columns,
                "agreement": {name: [vars(agreement) for agreement in each] for name, each in agreed.items()},
                "seconds_of": {each.name: each.seconds for each in all_ranked},
            }
            table = architecture_search.table(truth, ranked, title)
            plot = architecture_search.plot(truth, ranked, title)
            self._publish(callback, "architecture_search", table, plot, found)

        with self._resumed_by("architecture-search"):
            in_processes(self, model, datamodule, work)

    @contextmanager
    def _resumed_by(self, command: str) -> Iterator[None]:
        """Notes on what a signal raises the command that continues, whatever it has ended."""
        try:
            yield
        except Interrupted as stop:
            words = ["dc-lightning", command, "--config", str(Path(self.log_dir) / "config.yaml")]
            stop.resume_command = shlex.join(words)  # type: ignore[attr-defined]
            raise

    def _publish(
        self, callback: EvaluationCallback, name: str, table: Matrix, plot: bytes, found: dict[str, Any]
    ) -> None:
        """Writes results.json and the plot, and prints the table."""
        content = {
            "kind": table.corner,
            **found,
            "columns": [column.to_dict() for column in found["columns"]],
            "table": table.to_dict(),
            **callback.run_facts(self),
        }
        write_results(callback.folder / "results.json", content)
        if isinstance(self.progress_bar_callback, RunProgress):
            self.progress_bar_callback.close()
        show(table.markdown())
        say(f"results        {callback.folder / 'results.json'}")
        write_whole(callback.folder / f"{name}.png", plot)
        say(f"plot           {callback.folder / f'{name}.png'}")
