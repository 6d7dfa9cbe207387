"""Which checkpoints a run writes and keeps, and what becomes of a save that fails."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, distributed
from ldm_kit.training.best import BestCheckpoint
from ldm_kit.training.loop import Trainer
from ldm_kit.training.say import say
from ldm_kit.training.step import TrainStep


@dataclass
class CheckpointRetention:
    """Writes a run's checkpoints: the newest stay, and the best, and the one that the run went on from."""

    folder: Path
    settings: Any  # the run's config
    resume: Path | None
    failed: int = 0  # saves in a row

    def best(self, figures: Mapping[str, float] | None) -> bool:
        """Whether the main process has figures that are the best so far."""
        wanted, found, told = self.settings.train.keep_best, False, None
        if wanted is None:
            return False
        if figures is not None:
            try:
                found = BestCheckpoint(self.folder, wanted).beaten(figures)
            except UserError as error:
                told = str(error)
        found, told = distributed.all_gather_objects((found, told))[0]
        if told is not None:
            raise UserError(told)
        return found

    def save(self, trainer: Trainer, step: TrainStep, best: Mapping[str, float] | None, needed: bool) -> None:
        """Save and prune. A failure is said and forgiven a few times, unless the checkpoint is `needed`."""
        told = None
        try:
            path = trainer.save(self.folder, self.settings)
            told = self._tidy(trainer, path, best) if trainer.accelerator.is_main_process else None
            told = distributed.all_gather_objects(told)[0]
        except UserError as error:
            told = str(error)
        self.failed = 0 if told is None else self.failed + 1
        if told is None:
            return
        if needed or self.failed >= trainer.config.save_attempts:
            times = f", {self.failed} times in a row" if self.failed > 1 else ""
            raise UserError(f"{told}{times}; the run stops after step {step.number}, --resume latest goes on")
        say(f"warning: {told}; training goes on, and the next save is tried as if nothing had happened")

    def _tidy(self, trainer: Trainer, path: Path, best: Mapping[str, float] | None) -> str | None:
        """Note the best and remove old ones; what went wrong, as a sentence."""
        wanted = trainer.config.keep_best
        champion = None if wanted is None else BestCheckpoint(self.folder, wanted)
        try:
            if champion is not None and best is not None:
                champion.note(path, trainer.step, best)
            spare = [self.resume, None if champion is None else champion.path]
            checkpoint.prune(self.folder, trainer.config.keep_last, spare)
        except (UserError, OSError) as error:
            return str(error)
        return None
