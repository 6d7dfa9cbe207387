"""Quality of one trained model's pictures with several solvers, numbers of steps and kinds of guidance."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import kit
from benchmarks.claims.recipes import Figures
from benchmarks.claims.timed_training import make_judge, workers


@dataclass(frozen=True)
class Row:
    """One way of sampling; with autoguidance, the scale of classifier-free guidance is 1 (none)."""

    solver: str
    steps: int
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # values of t / T between which there is guidance
    guidance_scale: float = 2.0  # of classifier-free guidance; 1: none
    autoguidance_scale: float | None = None  # None: no autoguidance
    precision: torch.dtype | None = kit.NATIVE  # dtype of autocast; None: float32

    @property
    def options(self) -> kit.SamplingOptions:
        """`SamplingOptions` of this way of sampling."""
        return kit.sampling(
            steps=self.steps,
            solver=self.solver,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
            autoguidance_scale=self.autoguidance_scale,
        )

    @property
    def evaluations(self) -> int:
        """Network evaluations for a picture: one a step, two where there is guidance; twice as many with heun."""
        low, high = self.guidance_interval
        guided = (high - low) * (self.guidance_scale != 1) + (self.autoguidance_scale is not None)
        return round((2 if self.solver == "heun" else 1) * self.steps * (1 + guided))


INTERVAL = (0.2, 0.9)
PLAIN = (("ddim", 50), ("ddim", 10), ("dpm++", 50), ("dpm++", 20), ("dpm++", 15), ("dpm++", 10))
FEW = (("dpm++", 6), ("unipc", 10), ("unipc", 8), ("unipc", 6), ("heun", 5))
ROWS: dict[str, Row] = {
    "PNDM, 50 steps, float32 (StableDiffusionPipeline's defaults)": Row("diffusers:PNDMScheduler", 50, precision=None),
    **{f"{solver}, {steps}": Row(solver, steps) for solver, steps in PLAIN},
    "dpm++, 10, guided at t / T of 0.2 to 0.9": Row("dpm++", 10, INTERVAL),
    "dpm++, 8": Row("dpm++", 8),
    "dpm++, 8, guided at t / T of 0.2 to 0.9": Row("dpm++", 8, INTERVAL),
    **{f"{solver}, {steps}": Row(solver, steps) for solver, steps in FEW},
    "dpm++, 10, no guidance": Row("dpm++", 10, guidance_scale=1.0),
    "dpm++, 10, autoguided by 1.5 in its place": Row("dpm++", 10, guidance_scale=1.0, autoguidance_scale=1.5),
    "dpm++, 10, autoguided by 2.5 in its place": Row("dpm++", 10, guidance_scale=1.0, autoguidance_scale=2.5),
}


def measure_rows(model: Path, guide: Path, prompts: int) -> dict[str, Figures]:
    """Sample and measure pictures in every way of ROWS, several ways at a time; return figures by name of the way.

    Args:
        model: folder of the model to sample from.
        guide: folder of the guide model, for autoguidance.
        prompts: most prompts of each kind.
    """
    with workers() as pool:
        waiting = {name: pool.submit(_measure, row, model, guide, prompts) for name, row in ROWS.items()}
        return {name: figures.result() for name, figures in waiting.items()}


def _measure(row: Row, model: Path, guide: Path, prompts: int) -> Figures:
    pipeline = kit.load_pipeline(model, row.precision, guide=guide if row.autoguidance_scale is not None else None)
    return make_judge(prompts, model / "vae", row.options)(pipeline)
