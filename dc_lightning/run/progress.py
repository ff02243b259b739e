"""The progress of a run in the terminal."""

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
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

from dc_lightning.methods.base import Condenser


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
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.fields[note]}", markup=False),
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
                "outer iterations", total=_total(trainer), completed=trainer.current_epoch, note=""
            )
        self._started, self._first = time.monotonic(), trainer.current_epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        if not self._enabled:
            return
        assert isinstance(pl_module, Condenser)
        module, total = pl_module, _total(trainer)
        done = trainer.current_epoch + (batch_idx + 1) / module.outer_steps
        if self._run is not None and self._progress is not None:
            if time.monotonic() - self._line_at > 0.5 or done == total:  # reading the loss waits for the device
                self._line_at = time.monotonic()
                self._progress.update(self._run, completed=done, note=f"loss {float(module.matching_loss):.3f}")
        elif total is None:
            if time.monotonic() - self._line_at > 30:
                self._line_at = time.monotonic()
                self._say(f"outer iteration {int(done)}, loss {float(module.matching_loss):.3f}")
        elif done == total or done % max(1, total // self.lines) == 0:
            left = (time.monotonic() - self._started) / max(done - self._first, 1) * (total - done)
            loss = float(module.matching_loss)
            self._say(f"outer iteration {int(done)}/{total}, loss {loss:.3f}, {left:.0f} s left")

    def evaluation(self, title: str, done: float, total: int) -> None:
        """Shows how far an evaluation is; see `dc_lightning.evaluation.evaluator.Progress`."""
        if not self._enabled:
            return
        bars = self._bars()
        if not bars.console.is_terminal:
            if done == total or time.monotonic() - self._line_at > 30:
                self._line_at = time.monotonic()
                now = "" if done == int(done) else f", {done % 1:.0%} of the next"
                self._say(f"{title}: {int(done)}/{total} networks{now}")
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
            self._progress = self._run = self._evaluation = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the bars."""
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the bars."""
        self.close()


def _total(trainer: Trainer) -> int | None:
    """Outer iterations of a run; None where it has no end but by time."""
    return trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None


def say(text: str) -> None:
    """Prints a line as it is, however narrow the terminal."""
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
