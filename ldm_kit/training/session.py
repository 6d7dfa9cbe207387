"""Training session: sets up accelerate, locks the run's folder, writes the config, and finds where to resume."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast as broadcast_from_main

from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import checkpoint, distributed, launch, run_folder
from ldm_kit.training.accelerator import open_accelerator
from ldm_kit.training.backends import backends
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.faults import NonFiniteError
from ldm_kit.training.log import FILE, Log, LogConfig, cut_metrics
from ldm_kit.training.loop import Trainer
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.retention import CheckpointRetention
from ldm_kit.training.signals import Signals, Stopped
from ldm_kit.training.task import BatchSource, Task, TrainStep
from ldm_kit.training.trackers import TENSORBOARD, check_trackers, start_trackers


class Settings(Protocol):
    """The fields of a run's config that a session reads: its folder (`run`), seed, and sections train, ema and log."""

    @property
    def run(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def ema(self) -> EmaConfig: ...
    @property
    def log(self) -> LogConfig: ...


class OptimisedTask(Task, Protocol):
    """A task that also has the optimiser config of each of its modules."""

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """Optimiser configs, by module name."""
        ...


@dataclass(eq=False)
class Session:
    """A training run as one of its processes sees it: device and ranks, folder, stop signals, and checkpoints."""

    accelerator: Accelerator  # device, ranks and precision
    folder: Path  # the run's folder
    settings: Any  # the run's config
    resume: Path | None  # the checkpoint to resume from; None: a new run
    signals: Signals = field(default_factory=Signals)  # catches the signals that ask the run to stop
    active_trainer: Trainer | None = None  # the trainer that `trainer` returned last
    retention: CheckpointRetention = field(init=False)  # saves checkpoints and removes old ones

    def __post_init__(self) -> None:
        self.retention = CheckpointRetention(self.folder, self.settings, self.resume)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process, which alone writes files."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Device on which this process trains."""
        return self.accelerator.device

    @property
    def precision(self) -> torch.dtype | None:
        """Dtype to which networks autocast; None: no autocast."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks; every rank must call it."""
        return self._reduce(value, "sum")

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all ranks; every rank must call it."""
        return self._reduce(value, "mean")

    def _reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        distributed.check_peers()
        reduced = self.accelerator.reduce(value, reduction=reduction)
        assert isinstance(reduced, torch.Tensor)
        return reduced

    def broadcast(self, value: torch.Tensor) -> torch.Tensor:
        """Return the main rank's tensor on every rank; every rank must call it, with tensors of one shape and dtype."""
        distributed.check_peers()
        value = broadcast_from_main(value)
        assert isinstance(value, torch.Tensor)
        return value

    def trainer(self, task: OptimisedTask, data: BatchSource) -> Trainer:
        """Return the trainer of a task; if the run is resumed, with the state of the checkpoint.

        After this call a stop signal no longer ends the process at once: the run ends after the current step. When all
        checks have passed, the config is written, and logged metrics of steps after the checkpoint are removed.

        Args:
            task: what is trained.
            data: training samples; of a resumed run they must be those of the checkpoint.

        Raises:
            UserError: the data, or models that the task uses but does not train, differ from the checkpoint's; or, on
                all ranks but the main one, the main one has failed to write.
            OSError: on the main rank: a file cannot be written.
        """
        settings = self.settings
        trainer = Trainer(self.accelerator, task, task.optim, settings.train, settings.ema, seed=settings.seed)
        if self.resume is not None:
            trainer.load(self.resume, data)
            distributed.print_on_main(f"going on from step {trainer.step}, {self.resume}")
        distributed.on_main(partial(self._write_start, trainer.step))
        self.signals.watch()
        self.active_trainer = trainer
        return trainer

    def _write_start(self, step: int) -> None:
        """Start the trackers, write the config, and remove logged metrics and events of steps after `step`."""
        first, config = None if self.resume is None else step + 1, self.settings.model_dump(mode="json")
        start_trackers(self.accelerator, self.settings.log.trackers, self.folder, config, first)
        run_folder.write_config(self.folder, self.settings)
        cut_metrics(self.folder / FILE, step)

    def log(self, trainer: Trainer) -> Log:
        """Return the run's log, starting at the trainer's step."""
        return Log(self.accelerator, self.folder, self.settings.log, trainer.step, trainer.config.steps)

    def save_when_due(self, trainer: Trainer, step: TrainStep, metrics: Mapping[str, float] | None = None) -> None:
        """Save a checkpoint every `train.checkpoint_every` steps, at the last and the best step, and on a stop signal.

        Args:
            trainer: the run's trainer.
            step: the step just completed.
            metrics: on the main process, what an evaluation after this step returned; None: there was no evaluation.

        Raises:
            Stopped: a rank has caught a stop signal; the checkpoint is already saved.
            UserError: saving failed after the last step, before a stop, or for the `train.save_attempts`-th time in a
                row; or the evaluation lacks the metric that `train.keep_best` names.
        """
        config, stop_signal, is_best = trainer.config, self.signals.caught_by_any(), self.retention.is_best(metrics)
        is_last = step.number == config.steps
        if stop_signal or is_best or due(step, config.checkpoint_every, config.steps):
            required = bool(stop_signal) or is_last
            self.retention.save(trainer, step, metrics if is_best else None, required=required)
        if stop_signal:
            self._stop(stop_signal, step)
        if is_last:
            self.signals.release()  # everything is saved: a signal may end the process at once again

    def _stop(self, number: int, step: TrainStep) -> None:
        stopped = Stopped(number)
        distributed.print_on_main(
            f"stopped by {stopped.signal.name} after step {step.number}, saved; add --resume latest to go on"
        )
        self.accelerator.end_training()
        raise stopped

    def save_fault(self, error: NonFiniteError) -> UserError:
        """Save a checkpoint, in `fault-STEP/`, from which the failed step can be repeated; every rank must call it.

        Args:
            error: the error, with its report, that a loss or gradient was not finite in that step.

        Returns:
            The error that the run ends with; its message names the folder.
        """
        trainer, name = self.active_trainer, f"fault-{error.report['step']:08d}"
        if trainer is None:
            return error
        try:
            path = trainer.save(self.folder, self.settings, name, {"fault.json": error.report})
        except UserError as failure:
            return UserError(f"{error}; {failure}")
        return UserError(f"{error}; {path / 'fault.json'} says more, and --resume {path} makes that step again")


def due(step: TrainStep, every: int, last: int) -> bool:
    """Return whether an action is due after `step`: it is after every `every` steps, and after step number `last`."""
    return step.number % every == 0 or step.number == last


@contextlib.contextmanager
def session(settings: Settings, resume: str | None) -> Iterator[Session]:
    """Open a training run, and hold the lock of its folder within this context.

    Args:
        settings: the run's config, a `ldm_kit.config.Config`.
        resume: checkpoint to resume from, `latest` or its folder; None: a new run.

    Raises:
        UserError: the folder is in use, cannot be resumed from, or holds checkpoints although `resume` is None; the
            launch mode is not supported; a tracker is not installed; or, within the context, a loss or gradient is not
            finite.
    """
    folder = Path(settings.run)
    check_trackers(settings.log.trackers)
    trackers = [*([TENSORBOARD] if settings.log.tensorboard else []), *settings.log.trackers]
    accelerator = open_accelerator(settings.train.precision, folder, trackers)
    launch.use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if launch.is_launched():
        launch.watch_parent()
    with contextlib.ExitStack() as stack:
        stack.enter_context(backends(settings.train, accelerator.device))
        checkpoint_path = distributed.on_main(partial(_open_folder, folder, settings, resume, stack))
        torch.manual_seed(derive_seed(settings.seed, "weights"))  # every rank starts from the same weights
        run = Session(accelerator, folder, settings, checkpoint_path)
        stack.callback(run.signals.release)
        try:
            yield run
        except NonFiniteError as error:
            raise run.save_fault(error) from None


def _open_folder(folder: Path, settings: Settings, resume: str | None, stack: contextlib.ExitStack) -> Path | None:
    """Lock the run's folder until `stack` is closed; return the checkpoint to resume from (None: a new run).

    `resume` is `latest`, the folder of a checkpoint, or None for a new run; `settings` is the run's config. Folders
    that the lock makes are removed again if an error ends the run before anything is written into them.

    Raises:
        UserError: the folder is in use, cannot be resumed from, or has checkpoints and `resume` is None.
    """
    stack.push(partial(run_folder.remove_after_error, run_folder.missing_folders(folder)))  # once the lock is free
    stack.enter_context(run_folder.Lock(folder))
    checkpoint.remove_stale_tmp(folder)
    return _checkpoint_to_resume(folder, settings, resume)


def _checkpoint_to_resume(folder: Path, settings: Any, resume: str | None) -> Path | None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        path = run_folder.resume_checkpoint(folder, resume)
    if path is not None:
        run_folder.check_same_config(path, settings)
    return path
