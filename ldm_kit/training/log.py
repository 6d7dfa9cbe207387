"""Logging of a run: a progress bar, metrics.jsonl, and the trackers of accelerate, such as TensorBoard."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config
from ldm_kit.training.task import TrainStep
from ldm_kit.training.trackers import log_pictures

FILE = "metrics.jsonl"


class MeasuresConfig(Config):
    """Measures of `ldm-kit evaluate` that evaluations during training take as well; by default none."""

    names: tuple[str, ...] = Field(
        default=(), description="measures, such as [fd, recall]; logged as heldout_fd, heldout_recall; empty: none"
    )
    every: int | None = Field(
        default=None,
        gt=0,
        description="steps between measurements, a multiple of log.evaluate_every; null: at each evaluation. The last "
        "step is always measured",
    )
    count: int | None = Field(
        default=None,
        ge=2,
        description="pictures that are sampled, each with the caption or class of a held-out picture; null: 256, or "
        "one for each held-out picture if there are fewer",
    )
    features: str | None = Field(
        default=None,
        description="network whose features are compared, as --features of ldm-kit evaluate; null: EfficientNet-Lite0",
    )
    feature_size: int | None = Field(
        default=None, ge=8, description="side in pixels that timm's networks see; null: that of their training"
    )

    def count_of(self, total: int) -> int:
        """Return how many pictures are measured if `total` are held out; a configured number may be above that."""
        return min(256, total) if self.count is None else self.count


class LogConfig(Config):
    """How often a run logs metrics and evaluates, and how large its evaluations are."""

    every: int = Field(default=50, gt=0, description="steps between lines of metrics")
    evaluate_every: int = Field(default=1000, gt=0, description="steps between held-out evaluations and picture grids")
    max_heldout: int = Field(
        default=10_000,
        gt=0,
        description="most held-out samples that an evaluation measures; if there are more, a hash chooses them",
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard events into the run's folder")
    trackers: tuple[str, ...] = Field(
        default=(),
        description="further trackers of accelerate, which get metrics and grids, each to be installed: wandb, mlflow, "
        "comet_ml, aim, clearml, dvclive, swanlab, trackio",
    )
    pictures: int = Field(default=16, gt=0, description="pictures in a grid")
    measures: MeasuresConfig = Field(
        default=MeasuresConfig(), description="measures of ldm-kit evaluate that evaluations take as well"
    )

    @model_validator(mode="after")
    def _measures_at_evaluations(self) -> "LogConfig":
        if self.measures.every is not None and self.measures.every % self.evaluate_every:
            raise ValueError(
                f"measures.every is {self.measures.every}, but evaluations are every {self.evaluate_every} steps; "
                "expected a multiple"
            )
        return self


class Log:
    """The log of a run: means of the steps' metrics, in metrics.jsonl and in accelerate's trackers such as TensorBoard.

    Only the main process writes.

    Metrics are summed on the device, so that a step does not wait for their values.

    Args:
        accelerator: reduces metrics over ranks, and holds the trackers.
        folder: the run's folder, in which metrics.jsonl is written.
        config: the config section `log`, with the steps between two lines.
        first: number of steps that a resumed run had completed before it was resumed; 0 for a new run.
        total: number of steps of the whole run.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, config: LogConfig, first: int, total: int) -> None:
        self.accelerator, self.folder, self.config = accelerator, folder, config
        self.main, self.first, self.last = accelerator.is_main_process, first, total
        self.sums: dict[str, tuple[Tensor, int]] = {}  # (sum, count) by metric: a module may have no loss in some steps
        self.count, self.since = 0, time.monotonic()
        self.unwritten: list[str] = []  # lines that a full disk had no room for
        self.bar = tqdm(total=total, initial=first, desc=folder.name, unit="step", disable=not self.main, mininterval=2)

    def step(self, step: TrainStep) -> None:
        """Add a step's losses and gradient norms; every `config.every` steps, and after the last, write their means."""
        values = {**step.logs, **{f"{module}_grad_norm": norm for module, norm in step.norms.items()}}
        for name, value in values.items():
            total, count = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = (total + value, count + 1)
        self.count += 1
        self.bar.update()
        if step.number % self.config.every == 0 or step.number == self.last:
            means = self.accelerator.reduce(
                {name: total / n for name, (total, n) in self.sums.items()}, reduction="mean"
            )
            assert isinstance(means, dict)
            rate = self.count / (time.monotonic() - self.since)
            self.write(
                step.number, {**{k: float(v) for k, v in means.items()}, "lr": step.lr, "steps_per_second": rate}
            )
            self.sums, self.count, self.since = {}, 0, time.monotonic()

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Write metrics of step `number`, by name, as one line to metrics.jsonl, and to the trackers (TensorBoard).

        A line that the disk has no room for is kept and written with the next one.
        """
        if not self.main:
            return
        self.unwritten.append(f"{_line(number, values)}\n")
        try:
            self._write_lines()
            self.accelerator.log(dict(values), step=number)
        except OSError as error:
            self.print(f"warning: cannot write metrics at step {number}: {error.strerror or error}; training goes on")
        shown = {k: f"{v:.4g}" for k, v in values.items() if k.endswith(("loss", "psnr"))}
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def evaluate(self, number: int, evaluate: Callable[[int], dict[str, float]]) -> dict[str, float] | None:
        """Run an evaluation, log its metrics and return them; None if the disk has no room for the evaluation's files.

        Metrics of this step that the log holds already, as when a finished run is resumed, are not written again.

        Args:
            number: number of the step that was completed last.
            evaluate: function that is called with `number` and returns metrics by name.
        """
        try:
            metrics = evaluate(number)
        except OSError as error:
            self.print(f"warning: no evaluation at step {number}: {error.strerror or error}; training goes on")
            return None
        if not (number == self.first and metrics.keys() <= logged_keys(self.folder / FILE, number)):
            self.write(number, metrics)
            self._log_pictures(number)
        return metrics

    def _log_pictures(self, number: int) -> None:
        if not self.main:
            return
        try:
            log_pictures(self.accelerator, self.folder, number)
        except OSError as error:
            text = f"a tracker has no pictures of step {number}: {error.strerror or error}"
            self.print(f"warning: {text}; training goes on")

    def print(self, text: str) -> None:
        """Print a line above the progress bar, on the main process alone."""
        if self.main:
            self.bar.write(text)

    def _write_lines(self) -> None:
        _append(self.folder / FILE, "".join(self.unwritten))
        self.unwritten.clear()

    def flush(self) -> None:
        """Try once more, after the last step, to write the lines that the disk had no room for."""
        if self.unwritten:
            with suppress(OSError):  # it was reported when it happened
                self._write_lines()

    def close(self) -> None:
        """Close the progress bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()


def _line(number: int, values: Mapping[str, float]) -> str:
    """Return a line of metrics.jsonl for step `number`: values to 6 significant digits, NaN and infinity as null."""
    rounded = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps({"step": number, **rounded}, allow_nan=False)


def logged_keys(path: Path, step: int) -> set[str]:
    """Return the names of the metrics that a metrics.jsonl has for `step`; empty if the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {key for line in map(_parsed, lines) if line.get("step") == step for key in line}


def last_evaluation(path: Path) -> dict[str, float]:
    """Return the held-out values of the last evaluation in a metrics.jsonl, by name; {} if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in map(_parsed, reversed(lines)):
        values = {key: value for key, value in line.items() if key.startswith("heldout_") and value is not None}
        if values:
            return values
    return {}


def cut_metrics(path: Path, step: int) -> None:
    """Remove the lines for steps after `step` from a metrics.jsonl; the resumed run writes them again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    draft = path.with_name(f".tmp-{path.name}")
    draft.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf-8")
    draft.replace(path)


def _step_of(line: str) -> float:
    step = _parsed(line).get("step")
    return step if isinstance(step, int | float) else math.inf


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _append(path: Path, text: str) -> None:
    """Append text to a file, all or nothing: a full disk must not leave half a line."""
    with path.open("ab", buffering=0) as file:
        end, remaining = file.tell(), memoryview(text.encode())
        try:
            while remaining:
                remaining = remaining[file.write(remaining) :]
        except OSError:
            file.truncate(end)
            raise
