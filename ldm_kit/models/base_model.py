"""The base model of a PDAE: a frozen diffusion model of pixels or latents, saved by ldm_kit or by diffusers.

A PDAE (Zhang et al. 2022) adds a semantic code to a trained diffusion model. It never changes this base model and saves
no copy of it. A saved PDAE refers to the base model's folder, or to its commit on the Hugging Face Hub, and checks it
by a sha256 over the base model's weights, its frozen text encoder and its noise schedule.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder.base import reduction
from conditioning.base import Condition, Conditioner, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.data.images import digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.value_range import read_range
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.models.components import load_components
from ldm_kit.models.folder import INDEX, ModelFolder
from ldm_kit.models.hub import COMMIT as COMMIT
from ldm_kit.models.hub import HUB_NAME as HUB_NAME
from ldm_kit.models.hub import Origin as Origin
from ldm_kit.models.hub import locate
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNet
from ldm_kit.training.checkpoint import MANIFEST

_SCHEDULE_KEYS = ("kind", "num_train_timesteps", "start", "end", "betas", "scale_ends", "zero_terminal")  # release 0.2


@dataclass(eq=False)
class BaseModel:
    """The frozen diffusion model to which a PDAE adds a semantic code; its networks are in evaluation mode."""

    folder: Path  # the model's folder; for a model from the Hub, the folder of its local copy
    vae: AutoencoderKL | VQModel | None  # None: a pixel model
    unet: UNet  # maps x_t, timesteps and a condition to a prediction of type `target`
    null: Condition  # condition that stands for no prompt and no class, one row; empty for an unconditional model
    schedule_config: ScheduleConfig  # noise schedule of the training
    target: PredictionType  # what the U-Net predicts
    learned_range: bool  # whether the U-Net also predicts the variance, in twice the channels
    sha256: str  # digest of weights, frozen text encoder, prediction type, variance type and signal levels a_t
    former_sha256: tuple[str, ...]  # older forms of `sha256`, also accepted: no text encoder; a_t or schedule config
    origin: Origin | None = None  # repository on the Hub; None: opened from a folder

    @classmethod
    def open(cls, base: Path | str, device: torch.device | str = "cpu", *, revision: str | None = None) -> "BaseModel":
        """Open a base model from a folder or from the Hugging Face Hub (its local copy, or else a download).

        Args:
            base: a saved model's folder, a run's folder with a finished model, or `owner/name` on the Hub.
            device: where the networks are put.
            revision: branch, tag or commit on the Hub; None: main.

        Raises:
            UserError: the folder holds no diffusion model; the model on the Hub is not in the cache and cannot be
                downloaded; the model is conditional, but its null condition was never trained; or its noise schedule
                violates a_t^2 + s_t^2 = 1 or a_t > 0 (where x_t = a_t x_0 + s_t eps).
        """
        copy, origin = locate(base, revision, "the frozen model")
        folder = ModelFolder.open(copy)
        vae, unet, conditioner, noise, picture = load_components(folder, device)
        if picture is not None:
            raise UserError(f"{folder} is conditioned on a picture ({picture.kind}); expected a model that is not")
        if (values := read_range(folder.path)) is not None:
            raise UserError(f"{folder} is a model of values in {values}; expected one of pictures of 8 bits")
        schedule, target, variance = noise
        table = build(schedule)
        _check_schedule(folder, table)
        nets = {"vae": vae, "unet": unet, **conditioner.trainable}
        weights = [f"{name} {weights_digest(net)}" for name, net in nets.items() if net is not None]
        frozen = [] if conditioner.encoder_digest is None else [f"text_encoder {conditioner.encoder_digest}"]
        table_text = _table_text(table)
        sha256 = digest([table_text, target, variance, *weights, *frozen])
        former = tuple(digest([text, target, variance, *weights]) for text in (table_text, _config_text(schedule)))
        null, learned = _null(folder, conditioner, device), variance == "learned_range"
        return cls(folder.path, vae, unet, null, schedule, target, learned, sha256, former, origin)

    @property
    def name(self) -> str:
        """The model's folder, or its name and commit on the Hub, for messages."""
        return str(self.folder if self.origin is None else self.origin)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the model's pictures; height and width are equal."""
        config: Any = self.unet.config
        if self.vae is None:
            return config.in_channels, config.sample_size, config.sample_size
        vae: Any = self.vae.config
        side = config.sample_size * reduction(self.vae)
        return vae.in_channels, side, side

    def denoiser(self, schedule: Schedule) -> NetworkDenoiser:
        """Return the base model's denoiser, which uses the null condition whatever condition a caller passes.

        Args:
            schedule: the model's noise schedule, on the device of its networks.
        """

        def network(x: Tensor, t: Tensor, _: Any) -> Tensor:
            return apply_unet(self.unet, x, t, self.null)

        return NetworkDenoiser(network, schedule, self.target, self.learned_range)

    def to(self, device: torch.device | str) -> "BaseModel":
        """Move the networks and the null condition to a device, in place; return this object."""
        for module in (self.vae, self.unet):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.null = self.null.to(device)
        return self

    def reference(self, folder: Path) -> dict[str, str]:
        """Return the entry `base` of a PDAE's model_index.json, by which the PDAE refers to this base model.

        Args:
            folder: the folder in which the PDAE is saved.

        Returns:
            `sha256`, and either `path`, relative to `folder`, or `hub` (owner/name) and `revision` (the commit).
        """
        if self.origin is not None:
            return {"hub": self.origin.name, "revision": self.origin.commit, "sha256": self.sha256}
        return {"path": os.path.relpath(self.folder.resolve(), folder.resolve()), "sha256": self.sha256}


def reopen_base(folder: Path, reference: Any, device: torch.device | str = "cpu") -> BaseModel:
    """Open the base model to which a saved PDAE refers, and check its sha256.

    Args:
        folder: the PDAE's folder, to which `path` is relative.
        reference: entry `base` of the PDAE's model_index.json: a dictionary with the keys path and sha256, or hub,
            revision and sha256, see `BaseModel.reference`.
        device: where the networks are put.

    Raises:
        UserError: the entry has another form; or the base model is missing or has changed since the PDAE was trained.
    """
    match reference:
        case {"path": str(path), "sha256": str(sha256)}:
            base = BaseModel.open(_beside(folder, path), device)
        case {"hub": str(name), "revision": str(commit), "sha256": str(sha256)} if HUB_NAME.fullmatch(
            name
        ) and COMMIT.fullmatch(commit):
            base = BaseModel.open(name, device, revision=commit)
        case _:
            raise UserError(
                f"{folder / INDEX}: base is {reference!r:.80}; expected a path and a sha256, or the name of a "
                "model on the Hub, its commit as revision, and a sha256"
            )
    if sha256 not in (base.sha256, *base.former_sha256):
        raise UserError(
            f"{base.name} is not the frozen model that {folder} was trained on: its weights, its condition or its "
            "noise schedule have changed since"
        )
    return base


def _beside(folder: Path, path: str) -> Path:
    base = Path(os.path.normpath(folder.resolve() / path))
    if not base.is_dir():
        raise UserError(
            f"{folder} is built on the frozen model {base}, which is not there; put it back, or mend "
            f"base.path in {folder / INDEX} and remove {folder / MANIFEST}"
        )
    return base


def _table_text(schedule: Schedule) -> str:
    """Return the signal levels a_t of all timesteps, joined by spaces, as text to be hashed; x_t = a_t x_0 + s_t eps.

    Each level has 7 significant digits, as further digits may differ between machines.
    """
    return " ".join(f"{a:.6e}" for a in schedule.a.tolist())


def _config_text(schedule: ScheduleConfig) -> str:
    """Return a noise schedule's config as the text that releases 0.1 and 0.2 hashed.

    It is `str` of a dictionary with the fields `_SCHEDULE_KEYS`, in which num_train_timesteps is called `steps`.
    """
    old = {"num_train_timesteps": "steps"}
    return str({old.get(key, key): getattr(schedule, key) for key in _SCHEDULE_KEYS})


def _check_schedule(folder: ModelFolder, schedule: Schedule) -> None:
    """Check that a noise schedule has a_t^2 + s_t^2 = 1 and a_t > 0 at all timesteps t, as PDAE's formulas require.

    Here x_t = a_t x_0 + s_t eps.

    Raises:
        UserError: the equation or the inequality does not hold; the message names `folder`, the model's folder.
    """
    preserving = schedule.variance_preserving
    if not preserving or schedule.a[-1] <= 0:
        what = "ends in pure noise (zero_terminal)" if preserving else "is a flow"
        raise UserError(f"{folder} cannot be a base: its schedule {what}; expected DDPM's, LDM's or another of betas")


@torch.no_grad()
def _null(folder: ModelFolder, conditioner: Conditioner, device: torch.device | str) -> Condition:
    if conditioner.null is not None and not SavedSampling.read(folder.path).trains_null:
        raise UserError(f"{folder} cannot be a base: its null condition was never trained (condition_dropout 0)")
    try:
        null = conditioner(**{name: value.to(device) for name, value in conditioner.null_inputs().items()})
    except ConditioningError as error:
        raise UserError(f"{folder} cannot be a base without a null condition: {error}") from None
    conditioner.release()
    return null
