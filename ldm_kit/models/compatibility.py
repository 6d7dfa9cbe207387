"""Check that a guide (a noisy classifier, or a weaker model for autoguidance) fits the model that it guides."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conditioning.base import Conditioner
from conditioning.pictures import PictureCondition
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build


class LatentSpace(NamedTuple):
    """What a guide must have in common with the model that it guides.

    A guide is a noisy classifier, or the weaker model of autoguidance.
    """

    schedule: ScheduleConfig
    shape: tuple[int, int, int]  # (channels, height, width) of a latent
    first_stage: str | None  # sha256 of the autoencoder's weights; None: a pixel model, which has no autoencoder


def check_compatible(guide: str, of_guide: LatentSpace, of_model: LatentSpace) -> None:
    """Check that a guide has the noise schedule, latent shape and autoencoder of the model that it guides.

    A guide is a noisy classifier, or the weaker model of autoguidance.

    Args:
        guide: the guide's name in error messages, such as "the classifier".
        of_guide: the guide's schedule, shape and autoencoder.
        of_model: the model's schedule, shape and autoencoder.

    Raises:
        UserError: one of the three differs; the message gives the guide's value and the model's.
    """
    if not same_noise(of_guide.schedule, of_model.schedule):
        raise UserError(
            f"{guide} was trained under {describe_noise(of_guide.schedule)}, but the model samples under "
            f"{describe_noise(of_model.schedule)}"
        )
    if of_guide.shape != of_model.shape:
        raise UserError(
            f"{guide} takes (channels, height, width) {of_guide.shape}, but the model samples {of_model.shape}"
        )
    if of_guide.first_stage != of_model.first_stage:
        raise UserError(
            f"{guide} takes {_stage(of_guide.first_stage)}, but the model samples {_stage(of_model.first_stage)}"
        )


def same_noise(one: ScheduleConfig, other: ScheduleConfig) -> bool:
    """Return whether two noise schedules have the same timesteps and the same signal levels, to 1e-6."""
    return one.num_train_timesteps == other.num_train_timesteps and torch.allclose(
        build(one).a, build(other).a, rtol=0, atol=1e-6
    )


def describe_noise(config: ScheduleConfig) -> str:
    """Return a phrase that gives the settings of a noise schedule, for messages."""
    values = config.model_dump(exclude={"betas"}, exclude_none=True)
    return f"the noise schedule ({', '.join(f'{name} {value}' for name, value in values.items())})"


def _stage(fingerprint: str | None) -> str:
    return "pixels" if fingerprint is None else f"latents of the autoencoder {fingerprint[:12]}"


def labels_of(classes: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return the labels of B class names, int64 [B]: the index of each name among the classifier's classes.

    Args:
        classes: names of all classes of the classifier, in the order of its outputs.
        names: B class names.

    Raises:
        UserError: a name is not among `classes`; the message lists the most similar ones.
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
    """A denoiser that always uses the condition `cond`, and ignores the one that it is called with.

    It wraps the weaker model of autoguidance: `cond` are the prompts as that model's own conditioner encoded them.
    """

    denoiser: Denoiser
    cond: Any  # condition in the form that `denoiser` takes

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        return self.denoiser(x, t, self.cond)


def class_names(conditioner: Conditioner, prompts: Sequence[str | int]) -> list[str]:
    """Return the class name that each prompt stands for.

    Args:
        conditioner: the conditioner of an unconditional or a class-conditional model.
        prompts: class names or numbers.

    Raises:
        UserError: the model is conditioned on text, so that a prompt stands for no class.
    """
    names = conditioner.class_names(prompts)
    if names is None:
        raise UserError("a classifier needs a class, which a text prompt is not; give --classifier_class NAME")
    return names


def check_one_condition(
    picture: PictureCondition | None, conditioner: Conditioner, folder: Path, *, sizes: bool = False
) -> None:
    """Check that the model in a folder has at most one condition, and no picture or sizes; UserError if not."""
    if sizes:
        raise UserError(f"the model in {folder} is conditioned on sizes of pictures; expected one that is not")
    if picture is not None or conditioner.reads_pictures or conditioner.drops > 1:
        what = "several conditions" if conditioner.drops > 1 and picture is None else "a picture"
        raise UserError(f"the model in {folder} is conditioned on {what}; expected captions, classes or nothing")


def check_same_kind(where: str, trained: PictureCondition | None, needed: PictureCondition | None) -> None:
    """Check that a trained model, called `where`, can begin a run: both have one kind of picture, or it has none.

    Raises:
        UserError: the trained model is conditioned on another kind of picture than the run's model, `needed`.
    """
    if trained is not None and (needed is None or needed.kind != trained.kind):
        run = "no picture" if needed is None else f"one of kind {needed.kind}"
        raise UserError(f"{where} is conditioned on a picture of kind {trained.kind}, and this run on {run}")


def check_same_picture(of_guide: PictureCondition | None, of_model: PictureCondition | None) -> None:
    """Check that two models take the same kind of picture as condition, or none; raises UserError if not."""
    if of_guide != of_model:
        kinds = ["no picture" if each is None else f"a picture of kind {each.kind}" for each in (of_guide, of_model)]
        raise UserError(f"the guide model is conditioned on {kinds[0]}, but the model on {kinds[1]}")


def check_same_condition(of_guide: Conditioner, of_model: Conditioner) -> None:
    """Check that two models are both conditioned on text, both on classes, or both on nothing.

    Args:
        of_guide: the conditioner of autoguidance's weaker model.
        of_model: the conditioner of the model that it guides.

    Raises:
        UserError: one model has another kind of condition than the other.
    """
    if of_guide.modality != of_model.modality:
        raise UserError(
            f"the guide model samples from {of_guide.modality}, but the model samples from {of_model.modality}"
        )
    readers = of_guide.image_conditioner, of_model.image_conditioner
    if None not in readers and len({reader.frozen_encoder for reader in readers}) > 1:
        raise UserError("the guide model has another image encoder than the model; expected the same")
