"""Opening a run: accelerate, the folder and its lock, the config beside the results, and where to go on from."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast

from ldm_kit.config import Config, UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import checkpoint, distributed, launch, launcher, run_folder
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.faults import Fault
from ldm_kit.training.log import Log, LogConfig
from ldm_kit.training.loop import TrainConfig, Trainer
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.retention import CheckpointRetention
from ldm_kit.training.say import say
from ldm_kit.training.signals import Signals, Stopped
from ldm_kit.training.step import TrainStep
from ldm_kit.training.task import Task


class Settings(Protocol):
    """What a session needs of a run's config."""

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
    """A task that says how its players are optimised."""

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """By player."""
        ...


@dataclass(eq=False)
class Session:
    """One process's hold on a run."""

    accelerator: Accelerator
    folder: Path
    settings: Any
    resume: Path | None
    signals: Signals = field(default_factory=Signals)
    training: Trainer | None = None
    keeper: CheckpointRetention = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = CheckpointRetention(self.folder, self.settings, self.resume)

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The main process goes through this block first (to fill caches), the others after it."""
        with self.accelerator.main_process_first():
            yield

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        distributed.check_peers()
        reduced = self.accelerator.reduce(value, reduction="sum")
        assert isinstance(reduced, torch.Tensor)
        return reduced

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        distributed.check_peers()
        reduced = self.accelerator.reduce(value, reduction="mean")
        assert isinstance(reduced, torch.Tensor)
        return reduced

    def share(self, value: torch.Tensor) -> torch.Tensor:
        """The main process's tensor, on every process."""
        distributed.check_peers()
        shared = broadcast(value)
        assert isinstance(shared, torch.Tensor)
        return shared

    def trainer(self, task: OptimisedTask) -> Trainer:
        """The trainer of a task, gone on from the checkpoint if there is one; from here on signals wait for a step."""
        settings = self.settings
        trainer = Trainer(self.accelerator, task, task.optim, settings.train, settings.ema, settings.seed)
        if self.resume is not None:
            trainer.load(self.resume)
            say(f"going on from step {trainer.step}, {self.resume}")
        if self.main:
            run_folder.cut_metrics(self.folder / "metrics.jsonl", trainer.step)
        self.signals.watch()
        self.training = trainer
        return trainer

    def log(self, trainer: Trainer) -> Log:
        """The run's log, at the trainer's step."""
        return Log(self.accelerator, self.folder, self.settings.log, trainer.step, trainer.config.steps)

    def save_when_due(self, trainer: Trainer, step: TrainStep, figures: Mapping[str, float] | None = None) -> None:
        """Save every `train.checkpoint_every` steps, at the last one, at the best one, and when asked to stop.

        Args:
            trainer: the run's.
            step: what it has just made.
            figures: what an evaluation found after this step; on the main process, if there was one.

        Raises:
            Stopped: a signal came to any of the processes, and the checkpoint is there.
            UserError: the disk took no checkpoint several times in a row, or not the last one; or `train.keep_best` is
                no figure of the evaluation.
        """
        config, asked, best = trainer.config, self.signals.agreed(), self.keeper.best(figures)
        last = step.number == config.steps
        if asked or best or due(step, config.checkpoint_every, config.steps):
            self.keeper.save(trainer, step, figures if best else None, needed=bool(asked) or last)
        if asked:
            self._stop(asked, step)
        if last:
            self.signals.release()  # what follows has nothing left to lose

    def _stop(self, asked: int, step: TrainStep) -> None:
        stopped = Stopped(asked)
        say(f"stopped by {stopped.signal.name} after step {step.number}, saved; add --resume latest to go on")
        self.accelerator.end_training()
        raise stopped

    def bundle(self, fault: Fault) -> UserError:
        """Keep what reproduces a bad step in `fault-STEP/`; the sentence to end with. All processes call it."""
        trainer, name = self.training, f"fault-{fault.report['step']:08d}"
        if trainer is None:
            return fault
        try:
            path = trainer.save(self.folder, self.settings, name, {"fault.json": fault.report})
        except UserError as error:
            return UserError(f"{fault}; {error}")
        return UserError(f"{fault}; {path / 'fault.json'} says more, and --resume {path} makes that step again")


def use_all_cores(processes: int) -> None:
    """Undo `accelerate launch`'s one thread a process: on a CPU, share the cores among the machine's processes.

    Only where nobody chose a number: accelerate started us, its default of 1 stands, and there is no accelerator.
    """
    chosen = os.environ.get("OMP_NUM_THREADS")
    if "ACCELERATE_MIXED_PRECISION" in os.environ and chosen == "1" and not torch.accelerator.is_available():
        torch.set_num_threads(max(1, cores() // processes))


def cores() -> int:
    """How many processor cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def due(step: TrainStep, every: int, last: int) -> bool:
    """Whether something that happens every so often, and at the last step, happens now."""
    return step.number % every == 0 or step.number == last


@contextlib.contextmanager
def session(settings: Settings, resume: str | None) -> Iterator[Session]:
    """Open a run and hold its folder until the block ends.

    Raises:
        UserError: the folder is in use, holds checkpoints that were not asked for, or cannot be resumed from; a step
            came out infinite or NaN.
    """
    folder = Path(settings.run)
    launch.check_supported(os.environ)
    accelerator = Accelerator(
        mixed_precision=settings.train.precision,
        cpu=not torch.accelerator.is_available(),
        log_with="tensorboard" if settings.log.tensorboard else None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=distributed.TIMEOUT)],
    )
    launch.check_known(accelerator.distributed_type)
    use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with contextlib.ExitStack() as stack:
        if launcher.launched():
            launcher.watch()
        found, refused = None, None
        if accelerator.is_main_process:
            try:
                stack.enter_context(run_folder.Lock(folder))
                checkpoint.remove_stale_tmp(folder)
                found = _choose(folder, settings, resume)
            except UserError as error:
                refused = str(error)
        found, refused = distributed.all_gather_objects((found, refused))[
            0
        ]  # the same checkpoint, or refusal, on every process
        if refused is not None:
            raise UserError(refused)
        torch.manual_seed(derive_seed(settings.seed, "weights"))  # every process starts from the same weights
        if settings.log.tensorboard:
            accelerator.init_trackers("tensorboard")
        opened = Session(accelerator, folder, settings, found)
        stack.callback(opened.signals.release)
        try:
            yield opened
        except Fault as fault:
            raise opened.bundle(fault) from None


def _choose(folder: Path, settings: Any, resume: str | None) -> Path | None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        found = run_folder.resume_checkpoint(folder, resume)
    if found is not None:
        run_folder.check_same_config(found, settings)
    assert isinstance(settings, Config)
    run_folder.write_config(folder, settings)
    return found
