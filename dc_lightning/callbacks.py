"""Callbacks of a condensation: evaluation, checkpoints, progress."""

import io
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dc_lightning.condensation import CondensationModule
from dc_lightning.data import CondensationDataModule, to_tensor
from dc_lightning.errors import InputError
from dc_lightning.evaluation import (
    Group,
    Recipe,
    Score,
    check_fits,
    check_networks,
    evaluate_sets,
    pool,
    random_set,
    whole_set,
)
from dc_lightning.parts import Spec
from dc_lightning.results import Column, environment, now, print_table, write_results
from dc_lightning.seeds import derive_seed
from dc_lightning.synthetic import SyntheticSet, write_whole


class EvaluationCallback(Callback):
    """Trains fresh networks on the synthetic set, tests them, and writes what was found.

    It evaluates before the first iteration and after every `every_n`, if that is not 0, and always at the end. Each
    time the set that is evaluated is written first: ``synthetic.pt`` and ``synthetic.png``, and the grid of every
    evaluation under ``images/``; at the end ``results.json`` and a table.

    Args:
        networks: test networks, a list or a pool's name; see `dc_lightning.evaluation.pool`.
        num_networks: networks of each architecture, 20 in the paper.
        every_n: outer iterations between evaluations, 500 in the paper for S and SS; 0 evaluates at the end only.
        random_baseline: evaluate random real images of the same budget beside it, a new draw for every network.
        whole_set_epochs: epochs on the whole training set for the upper bound; 0 leaves it out.
        whole_set_networks: networks of each architecture for the upper bound.
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
        random_baseline: bool = True,
        whole_set_epochs: int = 0,
        whole_set_networks: int = 1,
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            *(("num_networks", num_networks, 1), ("every_n", every_n, 0)),
            *(("whole_set_epochs", whole_set_epochs, 0), ("whole_set_networks", whole_set_networks, 1)),
        ):
            if value < least:
                raise InputError(f"evaluation.{name} must be at least {least}, got {value}.")
        self.networks = networks
        self.num_networks = num_networks
        self.every_n = every_n
        self.random_baseline = random_baseline
        self.whole_set_epochs = whole_set_epochs
        self.whole_set_networks = whole_set_networks
        self.recipe = recipe
        self.seed = seed
        self.folder = Path()
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out now, not after hours, what the evaluation at the end would stumble over."""
        module = _condensation(pl_module)
        check_networks(pool(self.networks, module.network_spec), module.data)
        if trainer.is_global_zero:
            require_writable(self.folder)
        self._started = time.monotonic()
        for entry in self._history:  # the curve is cut at the iteration that the run goes on from
            if entry["iteration"] == module.resumed_at:
                self._log(trainer, entry)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates where a run goes on, if that is due."""
        self._evaluate_if_due(trainer, _condensation(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates before every ``every_n``-th outer iteration, the first included."""
        self._evaluate_if_due(trainer, _condensation(pl_module))

    def _evaluate_if_due(self, trainer: Trainer, module: CondensationModule) -> None:
        iteration = trainer.current_epoch
        done = any(entry["iteration"] == iteration for entry in self._history)
        if self.every_n and iteration % self.every_n == 0 and not done and iteration != trainer.max_epochs:
            self._evaluate(trainer, module, iteration)

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

    def check_sets(
        self, trainer: Trainer, data: CondensationDataModule, sets: list[SyntheticSet], condensed_with: Spec
    ) -> None:
        """Finds out before the evaluation of saved sets what it would stumble over."""
        for synthetic in sets:
            check_fits(synthetic, data)
        check_networks(pool(self.networks, condensed_with), data)
        if trainer.is_global_zero:
            require_writable(self.folder)

    def evaluate_saved(
        self, trainer: Trainer, data: CondensationDataModule, sets: list[SyntheticSet], condensed_with: Spec, path: str
    ) -> None:
        """Evaluates sets that were saved, several as the experiments of one table cell, and the baselines."""
        self._started = time.monotonic()
        networks = pool(self.networks, condensed_with)
        scores = self._run(trainer, data, networks, sets, self.num_networks, "evaluation")
        column = Column(str(sets[0].source.get("method", "synthetic")), scores, len(sets[0]))
        columns = [column, *self._baselines(trainer, data, networks, sets[0].ipc)]
        self._publish(trainer, columns, {"kind": "evaluation", "source": sets[0].source, "sets": len(sets)})
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
    ) -> list[Score]:
        bar = trainer.progress_bar_callback
        return evaluate_sets(
            sets,
            data,
            networks,
            count,
            self.recipe,
            self.seed,
            trainer.strategy.root_device,
            Group.of(trainer),
            bar.evaluation if isinstance(bar, RunProgress) else None,
            title,
            epochs,
        )

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
        if self.random_baseline:
            seeds = [derive_seed(self.seed, "random set", number) for number in range(self.num_networks)]
            sets = [random_set(data, ipc, seed) for seed in seeds]
            scores = self._run(trainer, data, networks, sets, 1, "random images")
            columns.append(Column("random", scores, len(sets[0])))
        if self.whole_set_epochs:
            whole, count = whole_set(data), self.whole_set_networks
            scores = self._run(trainer, data, networks, [whole], count, "whole set", self.whole_set_epochs - 1)
            columns.append(Column("whole set", scores, len(whole)))
        return columns

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
        if isinstance(trainer.progress_bar_callback, RunProgress):
            trainer.progress_bar_callback.close()

    def _write(self, trainer: Trainer, module: CondensationModule, columns: list[Column]) -> None:
        source = module.synthetic_set(trainer.current_epoch).source
        self.configuration = self.configuration or {"model": dict(module.hparams)}
        self._publish(trainer, columns, {"kind": "condensation", "source": source, "history": self._history})
        if not trainer.is_global_zero:
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {
                f"final/{column.name}/{score.network}": score.mean for column in columns for score in column.scores
            }
            trainer.logger.log_hyperparams(dict(module.hparams), final, step=trainer.current_epoch)
        print_table(columns, f"{source['dataset']}, {source['ipc']} per class, condensed with {source['network']}")
        folder = self.folder
        _say(
            f"synthetic set  {folder / 'synthetic.pt'}\nimages         {folder / 'synthetic.png'}\n"
            f"results        {folder / 'results.json'}\nTensorBoard    tensorboard --logdir {folder}"
        )


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, highlight=False, markup=False)


def _condensation(module: LightningModule) -> CondensationModule:
    assert isinstance(module, CondensationModule)
    return module


def require_writable(folder: Path) -> None:
    """Makes the folder of the results.

    Raises:
        InputError: if it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The output folder '{folder}' cannot be written ({error.strerror}); give another by trainer.logger or "
            "trainer.default_root_dir."
        ) from error


class Interrupted(BaseException):
    """A signal ended the run.

    Args:
        signum: the signal.
        whole: whether the state is that between two matching steps, and can be saved.
        saved: whether it is saved.
    """

    def __init__(self, signum: int, whole: bool, saved: bool = False) -> None:
        super().__init__(signum, whole)
        self.signum = signum
        self.whole = whole
        self.saved = saved

    def __str__(self) -> str:
        state = "saved" if self.saved else "the last checkpoint is kept, if there was one"
        return f"Stopped by {signal.Signals(self.signum).name}; {state}."


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all: a run that is killed while writing keeps the older one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue())


class Checkpoints(ModelCheckpoint):
    """Checkpoints every n outer iterations, and ``last.ckpt`` every minute, at the end, on Ctrl-C and SIGTERM.

    The first Ctrl-C ends the run after the matching step at hand, or at once within an evaluation; it saves and says
    how to go on. The second ends it at once and leaves the ``last.ckpt`` there is.

    Args:
        every_n: outer iterations between the checkpoints that are kept.
        last_every_seconds: time between writes of ``last.ckpt``, at the end of a matching step.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, every_n: int = 100, last_every_seconds: float = 60.0) -> None:
        if every_n < 1:
            raise InputError(f"checkpoint.every_n must be at least 1 (outer iterations), got {every_n}.")
        super().__init__(
            filename="iteration_{iteration:06d}",
            auto_insert_metric_name=False,
            save_top_k=-1,
            save_last=True,
            every_n_epochs=every_n,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.last_every_seconds = last_every_seconds
        self._saved_at = 0.0
        self._signum: int | None = None
        self._in_step = False
        self._stopping = False
        self._old_handlers: dict[int, Any] = {}

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        return {**super()._monitor_candidates(trainer), "iteration": torch.tensor(trainer.current_epoch + 1)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing over: the paths of a run that was moved are wrong, and nothing is ranked."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the strategy write whole files."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _WholeFiles()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C and SIGTERM, where signals can be taken."""
        self._saved_at, self._signum, self._stopping = time.monotonic(), None, False
        self._take_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes SIGTERM over again: Lightning has put a handler before ours, which waits for the other processes."""
        self._take_signals()

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                old = signal.signal(signum, self._on_signal)
                self._old_handlers.setdefault(signum, old)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        while self._old_handlers:
            signum, handler = self._old_handlers.popitem()
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._stopping:
            return
        if self._signum is None and self._in_step:
            self._signum = signum
            Console(stderr=True).print("\nStopping after this matching step; once more to stop at once.", markup=False)
        else:
            self._signum, self._stopping = signum, True
            raise Interrupted(signum, whole=not self._in_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on the state is not whole until the step ends."""
        self._in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two matching steps of one outer iteration."""
        if batch_idx + 1 < trainer.num_training_batches:
            self._in_step = False
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves between two outer iterations."""
        super().on_train_epoch_end(trainer, pl_module)
        self._in_step = False
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves before the evaluation at the end."""
        self._save_now(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what a signal interrupted between two steps, and notes on the exception how to go on."""
        if isinstance(exception, Interrupted) and exception.whole and not exception.saved and trainer.world_size == 1:
            self._save_now(trainer)
            exception.saved = True
        if self.last_model_path and Path(self.last_model_path).is_file():
            run = Path(self.last_model_path).parent.parent
            exception.how_to_go_on = (  # type: ignore[attr-defined]
                f"dc-lightning fit --config {run / 'config.yaml'} --ckpt_path {self.last_model_path}"
            )
        orderly = isinstance(exception, Interrupted) and exception.saved
        if trainer.is_global_zero and trainer.world_size > 1 and not orderly:
            # The others may wait for this process in a collective for as long as its time-out.
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGKILL)

    def _save_if_due(self, trainer: Trainer) -> None:
        due = time.monotonic() - self._saved_at >= self.last_every_seconds
        decide = trainer.strategy.reduce_boolean_decision  # of all processes: a signal may reach one alone
        if decide(due or self._signum is not None, all=False):
            stop = decide(self._signum is not None, all=False)
            self._save_now(trainer)
            if stop:
                self._stopping = True
                raise Interrupted(self._signum or signal.SIGTERM, whole=True, saved=True)

    def _save_now(self, trainer: Trainer) -> None:
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._saved_at = time.monotonic()


class RunProgress(ProgressBar):
    """One bar over all outer iterations, and one for every evaluation; plain lines where there is no terminal.

    Args:
        lines: plain lines over the whole run, where there is no terminal.
    """

    def __init__(self, lines: int = 20) -> None:
        super().__init__()
        self.lines = lines
        self._enabled = True
        self._progress: Progress | None = None
        self._run: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._line_at = 0.0

    def disable(self) -> None:
        """Lightning's, for all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Lightning's."""
        self._enabled = True

    def _bars(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.fields[note]}"),
                refresh_per_second=2,
            )
            self._progress.start()
        return self._progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        if not self._enabled:
            return
        bars = self._bars()
        if bars.console.is_terminal:
            self._run = bars.add_task(
                "outer iterations", total=trainer.max_epochs, completed=trainer.current_epoch, note=""
            )
        self._started, self._first = time.monotonic(), trainer.current_epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        if not self._enabled:
            return
        module, total = _condensation(pl_module), trainer.max_epochs or 0
        done = trainer.current_epoch + (batch_idx + 1) / module.outer_steps
        if self._run is not None and self._progress is not None:
            if time.monotonic() - self._line_at > 0.5 or done == total:  # reading the loss waits for the device
                self._line_at = time.monotonic()
                self._progress.update(self._run, completed=done, note=f"loss {float(module.matching_loss):.3f}")
        elif done == total or done % max(1, total // self.lines) == 0:
            left = (time.monotonic() - self._started) / max(done - self._first, 1) * (total - done)
            loss = float(module.matching_loss)
            self._say(f"outer iteration {int(done)}/{total}, loss {loss:.3f}, {left:.0f} s left")

    def evaluation(self, title: str, done: int, total: int) -> None:
        """Shows how far an evaluation is; see `dc_lightning.evaluation.Progress`."""
        if not self._enabled:
            return
        bars = self._bars()
        if not bars.console.is_terminal:
            if done == total:
                self._say(f"{title}: {total} networks")
        elif done == total:
            if self._evaluation is not None:
                bars.remove_task(self._evaluation)
            self._evaluation = None
        elif self._evaluation is None:
            self._evaluation = bars.add_task(title, total=total, note="")
        else:
            bars.update(self._evaluation, description=title, completed=done)

    def _say(self, line: str) -> None:
        self._bars().console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the bars, so that a table can follow."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the bars."""
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the bars."""
        self.close()
