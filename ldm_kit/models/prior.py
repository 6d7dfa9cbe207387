"""A trained prior over normalised codes: draw from it, save it, load it.

Its folder, `prior/` of a semantic model, holds `mlp/`, `scheduler/` and what it is told by: `class_encoder/`,
`text_encoder/` and `tokenizer/`, or text_reference.json; or nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import conditioning.factory as conditioners
from conditioning.base import Condition, Conditioner, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.respacing import linspace, respacing_sections
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.models import folder as parts
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.nets.mlp_skip import SkipMLP

FOLDER = "prior"
TARGET: PredictionType = "eps"
Clip = Literal["none", "published"]


def strided(total: int, steps: int) -> list[int]:
    """DiffAE's falling times, then -1: every i-th from 0 on where an integer stride i gives so many, else even ones.

    Raises:
        UserError: more steps than there are training times, or none.
    """
    try:
        return respacing_sections(total, f"ddim{steps}")
    except ValueError:
        pass
    try:
        return linspace(total, steps)
    except ValueError as error:
        raise UserError(f"steps: {error}") from None


def apply_mlp(mlp: SkipMLP, z: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
    """`partial(apply_mlp, mlp)` is the network of a `NetworkDenoiser`; it is told the pooled condition."""
    return mlp(z, t, None if condition is None else condition.pooled)


@dataclass(eq=False)
class CodePrior:
    """Network, conditioner (of classes, of text, or none) and noise; codes are normalised here."""

    mlp: SkipMLP
    conditioner: Conditioner
    schedule_config: ScheduleConfig

    @property
    def width(self) -> int:
        """D."""
        return self.mlp.config["z_width"]

    @torch.no_grad()
    def draw(
        self,
        seeds: Sequence[int],
        steps: int = 100,
        told: Sequence[str | int] | None = None,
        *,
        guidance_scale: float = 1.0,
        clip: Clip = "none",
    ) -> Tensor:
        """Normalised codes [N, D] float32 on the CPU, each from its own seed, by DDIM.

        Args:
            seeds: one for each code; a picture of the same seed starts from other noise.
            steps: of DDIM.
            told: a class or a prompt for each code, as the prior was trained; None: nothing in particular.
            guidance_scale: classifier-free, away from what the prior draws untold; 1 is none.
            clip: none, as codes have no range; published: what PDAE's released code does, by a mistake that its
                results contain. It puts noise, and x_0 at every step, into -1..1, and derives eps anew from x_0.

        Raises:
            UserError: classes that it does not know, or not one for each seed; more steps than training times; a
                guidance scale below 0, or one of a prior that is told nothing.
        """
        self._refuse_guidance(guidance_scale, told)
        device = next(self.mlp.parameters()).device
        noise = rng.initial_noise([rng.derive_seed(seed, "code") for seed in seeds], (self.width,))
        schedule = build(self.schedule_config).to(device)
        denoiser: Denoiser = NetworkDenoiser(partial(apply_mlp, self.mlp), schedule, TARGET)
        z, condition = noise.to(device), self._condition(told, len(seeds))
        if guidance_scale != 1:
            null = self._condition(None, len(seeds))
            denoiser = ClassifierFree(denoiser, null, guidance_scale, join=Condition.before)
        if clip == "published":
            denoiser, z = Clipped(denoiser), z.clamp(-1, 1)
        for state in ddim(denoiser, z, strided(len(schedule), steps), condition):
            z = state.x
        return z.float().cpu()

    def _refuse_guidance(self, scale: float, told: Sequence[str | int] | None) -> None:
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"guidance_scale is {scale}; expected a number of 0 or more, 1 is no guidance")
        if scale != 1 and told is None:
            raise UserError(f"guidance_scale is {scale:g}, but there is no class or prompt to guide to; expected 1")

    def _condition(self, told: Sequence[str | int] | None, count: int) -> Condition:
        null = self.conditioner.null
        if told is not None and null is None:
            raise UserError("this prior was trained without classes and captions; leave class and prompt out")
        if told is not None and len(told) != count:
            raise UserError(f"got {len(told)} classes or prompts for {count} codes; expected one each")
        raw: Sequence[str | int] = [] if null is None else [null] * count if told is None else told
        try:
            inputs = self.conditioner.prepare(raw)
        except ConditioningError as error:
            raise UserError(str(error)) from None
        device = next(self.mlp.parameters()).device
        return self.conditioner(**{name: value.to(device) for name, value in inputs.items()})

    def to(self, device: torch.device | str) -> "CodePrior":
        """Move the networks."""
        self.mlp.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.conditioner.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.mlp.save_pretrained(folder / "mlp")
        conditioners.save(self.conditioner, folder)
        parts.scheduler(self.schedule_config, TARGET, "small", pixels=False).save_pretrained(folder / "scheduler")

    @classmethod
    def load(cls, folder: Path, width: int, device: torch.device | str = "cpu") -> "CodePrior":
        """Open its folder; raises UserError for a part that is missing, broken, or for codes of another width."""
        schedule, *_ = parts.schedule(folder)
        mlp = parts.component(folder, "mlp", "SkipMLP", {"SkipMLP": SkipMLP})
        conditioner = parts.conditioner(folder)
        about = mlp.config
        if (about["z_width"], about["condition_width"]) != (width, conditioner.pooled_width):
            raise UserError(
                f"{folder} is for codes of {about['z_width']} numbers and conditions of {about['condition_width']}; "
                f"expected {width} and {conditioner.pooled_width}"
            )
        for module in (mlp, conditioner):
            prepare_loaded(module, device)
        return cls(mlp, conditioner, schedule)
