"""What steps are worth: one trained model, drawn with several solvers and budgets of network evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.quality.recipes import Figures
from benchmarks.quality.trainings import judging, workers
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline


@dataclass(frozen=True)
class Row:
    """One way of drawing."""

    wish: SamplingOptions
    precision: torch.dtype | None = torch.bfloat16

    @property
    def autoguided(self) -> bool:
        """Whether a worse model guides."""
        return self.wish.autoguidance_scale is not None

    @property
    def evaluations(self) -> int:
        """Of a network for a picture: two a step where there is guidance, and again as many in heun's."""
        low, high = self.wish.interval
        guided = (high - low) * (self.wish.guidance_scale != 1) + self.autoguided
        return round((2 if self.wish.solver == "heun" else 1) * self.wish.steps * (1 + guided))


def _row(solver: str, steps: int, interval: tuple[float, float] = (0.0, 1.0)) -> Row:
    return Row(SamplingOptions(steps=steps, solver=solver, guidance_scale=2.0, interval=interval))


def _autoguided(scale: float) -> Row:
    return Row(SamplingOptions(steps=10, solver="dpm++", guidance_scale=1.0, autoguidance_scale=scale))


ROWS: Mapping[str, Row] = {
    "PNDM, 50 steps, float32 (StableDiffusionPipeline's defaults)": Row(
        SamplingOptions(steps=50, solver="diffusers:PNDMScheduler", guidance_scale=2.0), None
    ),
    "ddim, 50": _row("ddim", 50),
    "ddim, 10": _row("ddim", 10),
    "dpm++, 50": _row("dpm++", 50),
    "dpm++, 20": _row("dpm++", 20),
    "dpm++, 15": _row("dpm++", 15),
    "dpm++, 10": _row("dpm++", 10),
    "dpm++, 10, guided at t / T of 0.2 to 0.9": _row("dpm++", 10, (0.2, 0.9)),
    "dpm++, 8": _row("dpm++", 8),
    "dpm++, 8, guided at t / T of 0.2 to 0.9": _row("dpm++", 8, (0.2, 0.9)),
    "dpm++, 6": _row("dpm++", 6),
    "unipc, 10": _row("unipc", 10),
    "unipc, 8": _row("unipc", 8),
    "unipc, 6": _row("unipc", 6),
    "heun, 5": _row("heun", 5),
    "dpm++, 10, no guidance": Row(SamplingOptions(steps=10, solver="dpm++", guidance_scale=1.0)),
    "dpm++, 10, autoguided by 1.5 in its place": _autoguided(1.5),
    "dpm++, 10, autoguided by 2.5 in its place": _autoguided(2.5),
}


def drawn(model: Path, worse: Path, prompts: int) -> dict[str, Figures]:
    """Figures of every row, several rows at a time; `worse` is the model that guides where one does."""
    with workers() as pool:
        waiting = {name: pool.submit(_drawn, row, model, worse, prompts) for name, row in ROWS.items()}
        return {name: found.result() for name, found in waiting.items()}


def _drawn(row: Row, model: Path, worse: Path, prompts: int) -> Figures:
    pipeline = Pipeline.load(model, precision=row.precision)
    if row.autoguided:
        pipeline = pipeline.with_guides(None, Pipeline.load(worse, precision=row.precision))
    return judging(prompts, model / "vae", row.wish)(pipeline)
