"""Checkpoints: whole files, often enough, and before a signal ends the run."""

import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import distributed

from dc_lightning.errors import InputError
from dc_lightning.files import save_whole
from dc_lightning.methods.base import Condenser
from dc_lightning.methods.resume import require_finite
from dc_lightning.run.folder import remove_failed_start, run_folder
from dc_lightning.run.progress import say

# SIGUSR1 is POSIX
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(BaseException):
    """A signal ended the run.

    Args:
        signum: the signal.
        saved: whether the state is saved as it was; if not, an older checkpoint may be there.
        together: whether all processes end for it.
    """

    def __init__(self, signum: int, saved: bool, together: bool) -> None:
        super().__init__(signum, saved, together)
        self.signum, self.saved, self.together = signum, saved, together

    def __str__(self) -> str:
        return f"Stopped by {signal.Signals(self.signum).name}{'; the run is saved' if self.saved else ''}."


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all: a run that is killed while writing keeps the older one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_whole(path, checkpoint)


class Checkpoints(ModelCheckpoint):
    """Checkpoints every n outer iterations, and ``last.ckpt`` every minute, before evaluations, and at the end.

    The first Ctrl-C, SIGTERM or SIGUSR1 (SLURM's warning before the time is up) ends the run after the matching step at
    hand, saved, and says how to resume it; within an evaluation it ends at once, since the state was saved before. The
    second ends it at once and leaves the checkpoint there is.

    Args:
        every_n: outer iterations between the checkpoints that are kept.
        last_every_seconds: time between writes of ``last.ckpt``, at the end of a matching step.

    Attributes:
        save_next: save at the next end of a matching step, however short ago the last time was.
        resume_from: the file that the command line found to resume from.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, every_n: int = 100, last_every_seconds: float = 60.0) -> None:
        if every_n < 1:
            raise InputError(f"checkpoint.every_n must be at least 1 (outer iterations), got {every_n}.")
        if not last_every_seconds >= 0:
            raise InputError(f"checkpoint.last_every_seconds must be at least 0, got {last_every_seconds}.")
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
        self.save_next = False
        self.resume_from: str | None = None
        self._saved_at = 0.0
        self._signum: int | None = None
        self._end_is_asked = False  # by another callback, such as a timer
        self._in_steps = False  # between the first matching step and the last, evaluations left out
        self._old_handlers: dict[int, Any] = {}

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        return {**super()._monitor_candidates(trainer), "iteration": torch.tensor(trainer.current_epoch + 1)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing over: the paths of a run that was moved are wrong, and nothing is ranked."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the strategy write whole files, and removes what a killed run left half-written.

        Raises:
            InputError: on every process, if they do not resume from the same file.
        """
        self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)
        if distributed.is_available() and distributed.is_initialized():
            found: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(found, self.resume_from)  # each has looked for the newest by itself
            if len(set(found)) > 1:
                raise InputError(
                    "All processes must resume from one checkpoint, in a folder that all machines share; found "
                    f"{found}. Give its path as ckpt_path."
                )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _WholeFiles()
        if trainer.is_global_zero:
            for partial in Path(self.dirpath).glob(".*.ckpt.*"):
                partial.unlink(missing_ok=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C and SIGTERM, and saves the state that a new run starts with."""
        self._saved_at, self._signum, self._in_steps = time.monotonic(), None, False
        self._end_is_asked = False
        self.take_signals()
        if trainer.ckpt_path is None:
            self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over again from Lightning.

        Its handler of SIGTERM waits for the other processes. Under SLURM that of SIGUSR1 saves in the middle of a
        matching step, into a file that a resume would take for the end of one.
        """
        self.take_signals()
        self._in_steps = True

    def take_signals(self) -> None:
        """Takes over Ctrl-C and SIGTERM, also where there is only an evaluation: it continues where it was."""
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                old = signal.signal(signum, self._on_signal)
                self._old_handlers.setdefault(signum, old)

    def give_signals_back(self) -> None:
        """Undoes `take_signals`."""
        while self._old_handlers:
            signum, handler = self._old_handlers.popitem()
            signal.signal(signum, handler)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self.give_signals_back()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, nothing is lost if a signal ends the run at once."""
        before, self._in_steps = self._in_steps, False
        try:
            yield
        finally:
            self._in_steps = before

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is None and self._in_steps:
            self._signum = signum
            if not getattr(rank_zero_only, "rank", 0):  # by the system's write: a print may be under way
                os.write(2, b"\nStopping after this matching step; once more to stop at once.\n")
        else:
            saved = not self._in_steps
            self._signum, self._in_steps = signum, False
            raise Interrupted(signum, saved=saved, together=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two matching steps of one outer iteration, which is completed before the run ends."""
        self._end_is_asked = trainer.should_stop = self._end_is_asked or trainer.should_stop
        if batch_idx + 1 < trainer.num_training_batches:
            trainer.should_stop = False  # Lightning would count the iteration as done
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves between two outer iterations."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves before the evaluation at the end, and says where the time was up before."""
        self._save(trainer)
        self._in_steps = False
        timers = [part for part in trainer.callbacks if isinstance(part, Timer)]  # type: ignore[attr-defined]
        done, most = trainer.current_epoch, trainer.max_epochs or 0
        if trainer.is_global_zero and done != most and any((timer.time_remaining() or 1) <= 0 for timer in timers):
            say(
                f"Stopped by trainer.max_time after {done} of {most if most > 0 else 'any number of'} outer iterations."
            )
            say(f"Resume with\n  {self._resume_command(self.last_model_path)} --trainer.max_time null")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule | None, exception: BaseException) -> None:
        """Notes on the exception how to resume, and ends the other processes."""
        self.give_signals_back()
        last = next((path for path in (self.last_model_path, trainer.ckpt_path) if path and Path(path).is_file()), None)
        if last is not None and isinstance(pl_module, Condenser):
            exception.resume_command = self._resume_command(last)  # type: ignore[attr-defined]
        if isinstance(exception, InputError) and trainer.is_global_zero:
            remove_failed_start(trainer)
        together = isinstance(exception, Interrupted) and exception.together
        launcher = trainer.strategy.launcher
        if trainer.is_global_zero and not together and isinstance(launcher, _SubprocessScriptLauncher):
            # The others may wait for this process in a collective for as long as its time-out.
            launcher.kill(signal.SIGKILL)

    @staticmethod
    def _resume_command(last: str | Path) -> str:
        configuration = str(Path(last).parent.parent / "config.yaml")
        return shlex.join(["dc-lightning", "fit", "--config", configuration, "--ckpt_path", str(last)])

    def _save_if_due(self, trainer: Trainer) -> None:
        due = self.save_next or time.monotonic() - self._saved_at >= self.last_every_seconds
        decide = trainer.strategy.reduce_boolean_decision  # of all processes: a signal may reach one alone
        if decide(due or self._signum is not None, all=False):
            stop = decide(self._signum is not None, all=False)
            self._save(trainer)
            if stop:
                raise Interrupted(self._signum or signal.SIGTERM, saved=True, together=True)

    def _save(self, trainer: Trainer) -> None:
        module: Any = trainer.lightning_module
        if isinstance(module, Condenser):
            require_finite(module)  # on every process alike, as the images are
        if getattr(trainer, "fast_dev_run", False):
            return
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._saved_at, self.save_next = time.monotonic(), False
