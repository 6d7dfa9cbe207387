"""What stage 2 shows beside its numbers: grids from fixed seeds, curves, and the finished pipeline."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from conditioning.base import ConditioningError
from ldm_kit.config import UserError
from ldm_kit.methods.base import eval_mode
from ldm_kit.methods.stage import LatentStage, prompts_of
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.checkpoint import write
from ldm_kit.viz.curves import curves
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png, tolerate_oserror


class LatentStudio:
    """Stage 2: grids from fixed seeds, the held-out loss, and the finished pipeline."""

    def __init__(self, stage: LatentStage, folder: Path) -> None:
        settings = stage.settings
        self.stage, self.folder = stage, folder
        self.module = stage.task.module
        unet, conditioner = self.module.unet, self.module.conditioner
        about = (settings.schedule, settings.prediction_type)
        self.pipeline = Pipeline(stage.vae, unet, conditioner, *about, variance=settings.variance)  # pyright: ignore[reportArgumentType]
        self.prompts = prompts_of(settings, stage.data, settings.log.pictures)
        _check_prompts(self.pipeline, self.prompts)
        self.heldout: float | None = None

    def evaluate(self, number: int) -> dict[str, float]:
        """The held-out loss, and a grid from fixed seeds, with the weights at hand."""
        sample = self.stage.settings.sample
        with eval_mode(self.module):
            if self.stage.heldout is not None:
                self.heldout = self.stage.task.heldout_loss(*self.stage.heldout)
            wish = SamplingOptions(steps=sample.steps, solver=sample.solver, guidance_scale=sample.guidance_scale)
            pictures = torch.cat(list(self.pipeline.generate(self.prompts, range(len(self.prompts)), wish)))
        self._save(pictures, f"samples-{number:08d}.png")
        return {} if self.heldout is None else {"heldout_loss": self.heldout}

    def _save(self, pictures: Tensor, name: str) -> None:
        asked = self.pipeline.conditioner.null is not None  # else what it drew is nobody's wish
        captions = [self._caption(prompt) for prompt in self.prompts] if asked else None
        scale = max(3, 96 // pictures.shape[-1])
        out = self.folder / "pictures" / name
        with tolerate_oserror(out):
            save_png(grid(pictures, 4, scale=scale, captions=captions), out, None)

    def _caption(self, prompt: str | int) -> str:
        return prompt if isinstance(prompt, str) else self.stage.data.train.classes[prompt]

    def finish(self) -> str:
        """Save model/ in the diffusers layout, and the curves; say where and how good."""
        with eval_mode(self.module):
            write(self.folder / "model", self.pipeline.save)
        keys = ("denoiser_loss",) if self.heldout is None else ("denoiser_loss", "heldout_loss")
        curves(self.folder / "metrics.jsonl", self.folder / "pictures" / "curves.png", keys)
        loss = "nothing held out" if self.heldout is None else f"held-out loss {self.heldout:.4f}"
        return f"model in {self.folder / 'model'}: {loss}; pictures in {self.folder / 'pictures'}"


def _check_prompts(pipeline: Pipeline, prompts: Sequence[str | int]) -> None:
    """An unknown class among the config's prompts is told now, not at the first grid, hours later."""
    try:
        pipeline.conditioner.prepare(prompts)
    except ConditioningError as error:
        raise UserError(f"sample.prompts: {error}") from None
