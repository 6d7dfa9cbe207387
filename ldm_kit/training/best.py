"""The best checkpoint so far by a figure of the evaluations, noted in the run's best.json."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm_kit.config import UserError

NOTE = "best.json"


@dataclass
class BestCheckpoint:
    """Which checkpoint of a run has the best figure; `wanted` is its name, after `max:` where higher is better."""

    folder: Path
    wanted: str

    @property
    def metric(self) -> str:
        """The figure's name."""
        return self.wanted.removeprefix("max:")

    @property
    def path(self) -> Path | None:
        """The best checkpoint so far, if it is there."""
        noted = self._noted()
        return None if noted is None else self.folder / noted[0]

    def beaten(self, figures: Mapping[str, float]) -> bool:
        """Whether an evaluation's figures are better than the best so far; what is no number never is.

        Raises:
            UserError: the evaluation has no such figure.
        """
        if self.metric not in figures:
            raise UserError(
                f"train.keep_best is {self.wanted!r}, but the evaluation has no such figure; expected one of "
                f"{', '.join(figures) or 'none: nothing is held out'}"
            )
        noted, found = self._noted(), figures[self.metric]
        if noted is None or math.isnan(found):
            return not math.isnan(found)
        return found > noted[1] if self.wanted.startswith("max:") else found < noted[1]

    def note(self, checkpoint: Path, step: int, figures: Mapping[str, float]) -> None:
        """Write best.json, whole or not at all: this checkpoint is the best now."""
        told = {"metric": self.metric, "value": figures[self.metric], "step": step, "checkpoint": checkpoint.name}
        draft = self.folder / f".tmp-{NOTE}"
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(self.folder / NOTE)

    def _noted(self) -> tuple[str, float] | None:
        """Name and figure of the best checkpoint; None where there is none of this figure."""
        try:
            told = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
            name, value, metric = str(told["checkpoint"]), float(told["value"]), told["metric"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        known = metric == self.metric and Path(name).name == name and (self.folder / name).is_dir()
        return (name, value) if known else None
