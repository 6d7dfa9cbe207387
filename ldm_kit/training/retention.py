"""Checkpoint retention: which checkpoints a run writes and keeps, and what happens when a save fails."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint, distributed
from ldm_kit.training.loop import Trainer
from ldm_kit.training.task import TrainStep

BEST_FILE = "best.json"


@dataclass
class BestCheckpoint:
    """The checkpoint with the best value of a metric so far, recorded in the run's best.json.

    Args:
        folder: the run's folder.
        spec: the config's `train.keep_best`: the name of a metric, of which lower is better; or `max:NAME`, of which
            higher is better.
    """

    folder: Path
    spec: str

    @property
    def metric(self) -> str:
        """Name of the metric in `spec`, without the prefix `max:` (higher is better)."""
        return self.spec.removeprefix("max:")

    @property
    def path(self) -> Path | None:
        """Folder of the best checkpoint so far; None if there is none."""
        best = self._read()
        return None if best is None else self.folder / best[0]

    def is_beaten_by(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an evaluation's `metrics`, by name, beat the best value so far; a NaN never does.

        Raises:
            UserError: the evaluation lacks the metric that `train.keep_best` names.
        """
        check_keep_best(self.spec, metrics)
        best, value = self._read(), metrics[self.metric]
        if best is None or math.isnan(value):
            return not math.isnan(value)
        return value > best[1] if self.spec.startswith("max:") else value < best[1]

    def record(self, path: Path, step: int, metrics: Mapping[str, float]) -> None:
        """Write to best.json, atomically, that the checkpoint in the folder `path` is the best.

        `step` is the checkpoint's step, and `metrics`, by name, are those of the evaluation after that step.
        """
        value = metrics[self.metric]
        number = value if math.isfinite(value) else str(value)  # JSON has no infinity
        entry = {"metric": self.metric, "value": number, "step": step, "checkpoint": path.name}
        draft = self.folder / f".tmp-{BEST_FILE}"
        draft.write_text(json.dumps(entry), encoding="utf-8")
        draft.replace(self.folder / BEST_FILE)

    def _read(self) -> tuple[str, float] | None:
        """Return the best checkpoint's folder name and metric value; None if none is recorded for this metric."""
        try:
            entry = json.loads((self.folder / BEST_FILE).read_text(encoding="utf-8"))
            name, value, metric = str(entry["checkpoint"]), float(entry["value"]), entry["metric"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        valid = metric == self.metric and Path(name).name == name and (self.folder / name).is_dir()
        return (name, value) if valid else None


def check_keep_best(spec: str | None, figures: Iterable[str] | None) -> None:
    """Check that evaluations measure the metric that `train.keep_best` names.

    Args:
        spec: the config's `train.keep_best`; None: no checkpoint is kept as the best.
        figures: names of the metrics that an evaluation measures; None: not known yet, so nothing is checked.

    Raises:
        UserError: evaluations do not measure the metric.
    """
    if spec is None or figures is None or spec.removeprefix("max:") in (names := list(figures)):
        return
    raise UserError(
        f"train.keep_best is {spec!r}, but the evaluation has no such figure; expected one of "
        f"{', '.join(names) or 'none: nothing is held out'}"
    )


@dataclass
class CheckpointRetention:
    """Saver of a run's checkpoints; it keeps the newest, the best, and the one that the run resumed from."""

    folder: Path  # the run's folder
    settings: Any  # the run's config
    resume: Path | None  # folder of the checkpoint that the run resumed from; None: a new run
    failed_saves: int = 0  # how many saves in a row have failed

    def is_best(self, metrics: Mapping[str, float] | None) -> bool:
        """Return whether the main rank's `metrics`, of an evaluation, are the best so far; every rank must call it.

        The result is False if there was no evaluation (`metrics` is None), or if `train.keep_best` is None.

        Raises:
            UserError: the evaluation lacks the metric that `train.keep_best` names (raised on every rank).
        """
        if (spec := self.settings.train.keep_best) is None:
            return False
        return distributed.on_main(
            lambda: metrics is not None and BestCheckpoint(self.folder, spec).is_beaten_by(metrics)
        )

    def save(self, trainer: Trainer, step: TrainStep, best: Mapping[str, float] | None, required: bool) -> None:
        """Save a checkpoint, and remove old ones that are not to be kept; every rank must call it.

        Args:
            trainer: the trainer whose state is saved.
            step: the step just completed.
            best: the evaluation's metrics, if this checkpoint is the best so far; else None.
            required: whether any failure ends the run; if not, only `train.save_attempts` failures in a row do.

        Raises:
            UserError: the save failed, and this failure ends the run.
        """
        try:
            path = trainer.save(self.folder, self.settings)
            error_text = distributed.on_main(lambda: self._prune(trainer, path, best))
        except UserError as error:
            error_text = str(error)
        self.failed_saves = 0 if error_text is None else self.failed_saves + 1
        if error_text is None:
            return
        if required or self.failed_saves >= trainer.config.save_attempts:
            times = f", {self.failed_saves} times in a row" if self.failed_saves > 1 else ""
            raise UserError(f"{error_text}{times}; the run stops after step {step.number}, --resume latest goes on")
        distributed.print_on_main(f"warning: {error_text}; training goes on, and the next save is tried as usual")

    def _prune(self, trainer: Trainer, path: Path, best: Mapping[str, float] | None) -> str | None:
        """Remove old checkpoints; return an error's text, or None if all went well.

        `trainer` has the step, and the config that says what to keep. If `best`, the metrics by name of this step's
        evaluation, is not None, first record in best.json that the checkpoint in the folder `path` is the best.
        """
        spec = trainer.config.keep_best
        record = None if spec is None else BestCheckpoint(self.folder, spec)
        try:
            if record is not None and best is not None:
                record.record(path, trainer.step, best)
            spare = [self.resume, None if record is None else record.path]
            checkpoint.prune(self.folder, trainer.config.keep_last, spare)
        except (UserError, OSError) as error:
            return str(error)
        return None
