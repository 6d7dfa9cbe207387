"""Sample from, save and load a prior: a diffusion model of the normalised codes of a semantic model.

It is saved in `prior/` of the semantic model's folder, as `mlp/`, `scheduler/` and the components of its conditioner:
`class_encoder/` for classes; `text_encoder/` and `tokenizer/`, or text_reference.json, for text; none for no condition.
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
from ldm_kit.data.lists import check_lists
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser
from ldm_kit.diffusion.finite import FiniteCheck
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.respacing import linspace, respacing_sections
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.folder import ModelFolder
from ldm_kit.models.saving import scheduler_to_save
from ldm_kit.nets.mlp_skip import SkipMLP

FOLDER = "prior"
TARGET: PredictionType = "eps"  # what the MLP predicts in DiffAE and PDAE
Clip = Literal["none", "published"]


def strided(total: int, steps: int) -> list[int]:
    """Return the falling timesteps that DiffAE visits, then -1, which is clean data.

    They are 0, i, 2i, ... (falling) if an integer stride i gives exactly `steps` of them, else evenly spaced from T-1
    to 0.

    Args:
        total: number of training timesteps T.
        steps: number of timesteps that are visited, 1 to T.

    Raises:
        UserError: `steps` is not between 1 and `total`.
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
    """Return the prior network's output [B, D] for noised codes z [B, D] at timesteps t [B].

    `partial(apply_mlp, mlp)` is a network as `NetworkDenoiser` takes it.

    Args:
        mlp: the prior's network.
        z: noised normalised codes [B, D].
        t: timesteps [B].
        condition: encoded classes or prompts, which the network gets pooled to one vector for each code; None: no
            condition.
    """
    return mlp(z, t, None if condition is None else condition.pooled)


@dataclass(eq=False)
class CodePrior:
    """A prior over normalised codes: a diffusion model with an MLP, conditioned on classes, on text, or on nothing."""

    mlp: SkipMLP  # predicts `prediction_type`
    conditioner: Conditioner  # encodes classes or prompts; `NoCondition` for an unconditional prior
    schedule_config: ScheduleConfig  # noise schedule of the training
    prediction_type: PredictionType = TARGET

    @property
    def width(self) -> int:
        """D, dimensions of a code."""
        return self.mlp.config["z_width"]

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        steps: int = 100,
        conditions: Sequence[str | int] | None = None,
        *,
        guidance_scale: float = 1.0,
        clip: Clip = "none",
        batch: Batch = 1024,
    ) -> Tensor:
        """Sample normalised codes by DDIM, each from its own seed.

        Args:
            seeds: one for each of N codes; a picture with the same seed gets independent noise.
            steps: number of DDIM steps.
            conditions: a class or a prompt (whichever the prior was trained with) for each code; None: unconditional.
            guidance_scale: scale of classifier-free guidance; 1 is no guidance.
            clip: none: no clipping, as codes have no range; published: clip the initial noise, and x_0 at every step,
                to [-1, 1], as PDAE's released code does by mistake; its published results contain this.
            batch: most codes at once; halved when memory runs out.

        Returns:
            Normalised codes, float32 [N, D] on the CPU.

        Raises:
            UserError: the prior does not know a condition, or there is not one condition for each seed; `steps` exceeds
                the number of training timesteps; or `guidance_scale` is negative, or is not 1 without conditions.
            NonFiniteError: the network or the guidance gives NaN or infinity.
        """
        check_lists(seeds=seeds)
        if conditions is not None:
            check_lists(conditions=conditions)
        self._check_guidance(guidance_scale, conditions)
        if conditions is not None and len(conditions) != len(seeds):
            raise UserError(f"got {len(conditions)} classes or prompts for {len(seeds)} codes; expected one each")

        def sampled(indices: range) -> Tensor:
            own = None if conditions is None else [conditions[i] for i in indices]
            return self._sample([seeds[i] for i in indices], steps, own, guidance_scale, clip)

        return torch.cat([torch.zeros(0, self.width), *BatchSize.of(batch).batches(len(seeds), sampled)])

    def _sample(
        self,
        seeds: Sequence[int],
        steps: int,
        conditions: Sequence[str | int] | None,
        guidance_scale: float,
        clip: Clip,
    ) -> Tensor:
        device = next(self.mlp.parameters()).device
        noise = rng.initial_noise([rng.derive_seed(seed, "code") for seed in seeds], (self.width,))
        schedule = build(self.schedule_config).to(device)
        finite = FiniteCheck()
        network = finite.network("the prior's network (mlp)", partial(apply_mlp, self.mlp))
        denoiser: Denoiser = NetworkDenoiser(network, schedule, self.prediction_type)
        z, condition = noise.to(device), self._condition(conditions, len(seeds))
        if guidance_scale != 1:
            null = self._condition(None, len(seeds))
            denoiser = ClassifierFree(denoiser, null, guidance_scale, join=Condition.before)
            denoiser = finite.denoiser("guidance of the prior", denoiser)
        if clip == "published":
            denoiser, z = Clipped(denoiser), z.clamp(-1, 1)
        states = ddim(denoiser, z, strided(len(schedule), steps), condition)
        for state in finite.states(states, "sampling a code"):
            z = state.x
        return z.float().cpu()

    def _check_guidance(self, scale: float, conditions: Sequence[str | int] | None) -> None:
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"guidance_scale is {scale}; expected a number of 0 or more, 1 is no guidance")
        if scale != 1 and conditions is None:
            raise UserError(f"guidance_scale is {scale:g}, but there is no class or prompt to guide to; expected 1")

    def _condition(self, conditions: Sequence[str | int] | None, count: int) -> Condition:
        null = self.conditioner.null
        if conditions is not None and null is None:
            raise UserError("this prior was trained without classes and captions; leave class and prompt out")
        raw: Sequence[str | int] = [] if null is None else [null] * count if conditions is None else conditions
        try:
            inputs = self.conditioner.prepare(raw)
        except ConditioningError as error:
            raise UserError(str(error)) from None
        device = next(self.mlp.parameters()).device
        return self.conditioner(**{name: value.to(device) for name, value in inputs.items()})

    def to(self, device: torch.device | str) -> "CodePrior":
        """Move the networks to a device, in place; return this object."""
        self.mlp.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.conditioner.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the prior to `folder`, which is `prior/` in a semantic model's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.mlp.save_pretrained(folder / "mlp")
        conditioners.save(self.conditioner, folder)
        scheduler = scheduler_to_save(self.schedule_config, self.prediction_type, "small", pixels=False)
        scheduler.save_pretrained(folder / "scheduler")

    @classmethod
    def load(cls, folder: ModelFolder, width: int, device: torch.device | str = "cpu") -> "CodePrior":
        """Load a prior.

        Args:
            folder: `prior/` in a semantic model's folder.
            width: D, dimensions of the semantic model's codes.
            device: where the networks are put.

        Raises:
            UserError: a component is missing or broken, does not fit the others, or is for codes of another width.
        """
        schedule, prediction_type, variance = folder.noise()
        if prediction_type == "flow" or variance == "learned_range":
            raise UserError(
                f"{folder}: the scheduler says prediction_type {prediction_type} and variance {variance}, but the "
                "network of a prior predicts eps, x0 or v, and no variance"
            )
        mlp = folder.component("mlp", "SkipMLP", {"SkipMLP": SkipMLP}, device)
        conditioner = folder.conditioner(device)
        config = mlp.config
        if (config["z_width"], config["condition_width"]) != (width, conditioner.pooled_width):
            raise UserError(
                f"{folder} is for codes of {config['z_width']} numbers and conditions of {config['condition_width']}; "
                f"expected {width} and {conditioner.pooled_width}"
            )
        return cls(mlp, conditioner, schedule, prediction_type)
