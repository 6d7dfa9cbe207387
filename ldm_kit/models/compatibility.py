"""What guides a generator from outside, a noisy classifier or a worse model, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conditioning.base import Conditioner
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build


class LatentSpace(NamedTuple):
    """Where a network is at home: what it sees, and under which noise."""

    schedule: ScheduleConfig
    shape: tuple[int, int, int]
    first_stage: str | None  # fingerprint of the autoencoder; None: pixels


def check_compatible(who: str, theirs: LatentSpace, ours: LatentSpace) -> None:
    """Refuse a guide that is not at home where the generator is.

    Raises:
        UserError: another noise schedule, shape or autoencoder; names both sides.
    """
    if not _alike(theirs.schedule, ours.schedule):
        raise UserError(f"{who} knows {_noise(theirs.schedule)}, but the generator draws under {_noise(ours.schedule)}")
    if theirs.shape != ours.shape:
        raise UserError(f"{who} sees (channels, height, width) {theirs.shape}, but the generator draws {ours.shape}")
    if theirs.first_stage != ours.first_stage:
        raise UserError(f"{who} sees {_stage(theirs.first_stage)}, but the generator draws {_stage(ours.first_stage)}")


def _alike(one: ScheduleConfig, other: ScheduleConfig) -> bool:
    return one.num_train_timesteps == other.num_train_timesteps and torch.allclose(
        build(one).a, build(other).a, rtol=0, atol=1e-6
    )


def _noise(config: ScheduleConfig) -> str:
    said = ", ".join(
        f"{name} {value}" for name, value in config.model_dump(exclude={"betas"}, exclude_none=True).items()
    )
    return f"the noise schedule ({said})"


def _stage(fingerprint: str | None) -> str:
    return "pixels" if fingerprint is None else f"latents of the autoencoder {fingerprint[:12]}"


def labels_of(classes: Sequence[str], names: Sequence[str]) -> Tensor:
    """The classifier's labels [B] of classes given by name.

    Raises:
        UserError: a class that it does not know; names the nearest.
    """
    for name in names:
        if name not in classes:
            near = get_close_matches(name, classes, n=3, cutoff=0.4) or classes[:3]
            raise UserError(
                f"unknown class {name!r:.80}: the nearest of the classifier's {len(classes)} are {', '.join(near)}"
            )
    return torch.tensor([classes.index(name) for name in names], dtype=torch.long)


@dataclass(frozen=True, eq=False)
class FixedCondition:
    """A denoiser that has its own condition, whatever it is asked: a guide's conditioner is not the generator's."""

    denoiser: Denoiser
    cond: Any

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        return self.denoiser(x, t, self.cond)


def class_names(conditioner: Conditioner, prompts: Sequence[str | int]) -> list[str]:
    """What prompts mean to a classifier: the names of classes, said to a generator of classes or of anything.

    Raises:
        UserError: a generator from text, whose prompts name no class.
    """
    names = conditioner.class_names(prompts)
    if names is None:
        raise UserError("a classifier needs a class, which a text prompt is not; give --classifier_class NAME")
    return names


def check_same_condition(theirs: Conditioner, ours: Conditioner) -> None:
    """Refuse a worse model that is told other things than the generator; raises UserError."""
    if theirs.modality != ours.modality:
        raise UserError(f"the worse model draws from {theirs.modality}, but the generator draws from {ours.modality}")
