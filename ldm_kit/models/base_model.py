"""A frozen diffusion model on which a semantic one is built: ours or plain diffusers', of pixels or of latents.

PDAE never changes it and keeps no copy: it is known by where it lies, a folder or a commit on the Hugging Face Hub,
and by a sha256 over all that matters of it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder.base import reduction
from conditioning import sources
from conditioning.base import Condition, Conditioner, ConditioningError
from ldm_kit.config import UserError
from ldm_kit.data.images import digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.models import folder as parts
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNet

HUB_NAME, COMMIT = re.compile(r"\w[\w.-]*/\w[\w.-]*"), re.compile(r"[0-9a-f]{40}")
_WEIGHED = ("unet", "vae", "vqvae", "text_encoder", "class_encoder")  # parts with weights
_WEIGHTS = tuple(
    f"{name}{shard}.safetensors" for name in ("diffusion_pytorch_model", "model") for shard in ("", "-*-of-*")
)
_HUB_FILES = ["*.json", "tokenizer/*.txt", *(f"{part}/{name}" for part in _WEIGHED for name in _WEIGHTS)]


class Origin(NamedTuple):
    """A model on the Hugging Face Hub, at one commit."""

    name: str  # owner/name
    commit: str

    def __str__(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


@dataclass(eq=False)
class BaseModel:
    """Networks in evaluation mode without gradients, what they are told where nothing is asked for, and the noise."""

    folder: Path
    vae: AutoencoderKL | VQModel | None  # None: pixels
    unet: UNet
    null: Condition  # one row: the null condition, or none at all
    schedule_config: ScheduleConfig
    target: PredictionType
    learned_range: bool
    sha256: str
    origin: Origin | None = None  # None: a folder

    @classmethod
    def open(cls, base: Path | str, device: torch.device | str = "cpu", *, revision: str | None = None) -> "BaseModel":
        """Open a model's folder, or a run's, or a model on the Hub (`owner/name`): its local copy, or a download.

        Args:
            base: where it is.
            device: where it goes.
            revision: of the Hub: branch, tag or commit; None: main.

        Raises:
            UserError: no diffusion model, one without a null condition, a schedule that PDAE has no formula for, or a
                model of the Hub that cannot be had now.
        """
        folder, origin = _found(base, revision)
        place = parts.model_folder(folder)
        vae, unet, conditioner, schedule, target, variance = parts.open_parts(place, device)
        _refuse_schedule(place, build(schedule))
        known = [_schedule_text(schedule), target, variance]
        nets = {"vae": vae, "unet": unet, **conditioner.trainable}
        weights = [f"{name} {weights_digest(net)}" for name, net in nets.items() if net is not None]
        learned = variance == "learned_range"
        null = _null(place, conditioner, device)
        return cls(place, vae, unet, null, schedule, target, learned, digest([*known, *weights]), origin)

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        return str(self.folder if self.origin is None else self.origin)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, R, R) of its pictures."""
        about: Any = self.unet.config
        if self.vae is None:
            return about.in_channels, about.sample_size, about.sample_size
        vae: Any = self.vae.config
        side = about.sample_size * reduction(self.vae)
        return vae.in_channels, side, side

    def denoiser(self, schedule: Schedule) -> NetworkDenoiser:
        """The model as it is, under its null condition whatever it is given."""

        def network(x: Tensor, t: Tensor, _: Any) -> Tensor:
            return apply_unet(self.unet, x, t, self.null)

        return NetworkDenoiser(network, schedule, self.target, self.learned_range)

    def to(self, device: torch.device | str) -> "BaseModel":
        """Move networks and condition."""
        for module in (self.vae, self.unet):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        self.null = self.null.to(device)
        return self

    def reference(self, folder: Path) -> dict[str, str]:
        """What a model in `folder` remembers of its base: the way there, and what must be found."""
        if self.origin is not None:
            return {"hub": self.origin.name, "revision": self.origin.commit, "sha256": self.sha256}
        return {"path": os.path.relpath(self.folder.resolve(), folder.resolve()), "sha256": self.sha256}


def reopen_base(folder: Path, reference: Any, device: torch.device | str = "cpu") -> BaseModel:
    """The base that the index of a model in `folder` refers to; its path starts from there.

    Raises:
        UserError: it is not there, or has changed since.
    """
    match reference:
        case {"path": str(path), "sha256": str(sha256)}:
            found = BaseModel.open(_beside(folder, path), device)
        case {"hub": str(name), "revision": str(commit), "sha256": str(sha256)} if HUB_NAME.fullmatch(
            name
        ) and COMMIT.fullmatch(commit):
            found = BaseModel.open(name, device, revision=commit)
        case _:
            raise UserError(
                f"{folder / parts.INDEX}: base is {reference!r:.80}; expected a path and a sha256, or the name of a "
                "model on the Hub, its commit as revision, and a sha256"
            )
    if found.sha256 != sha256:
        raise UserError(
            f"{found.name} is not the frozen model that {folder} was trained on: its weights, its condition or its "
            "noise schedule have changed since"
        )
    return found


def _beside(folder: Path, path: str) -> Path:
    place = Path(os.path.normpath(folder.resolve() / path))
    if not place.is_dir():
        raise UserError(
            f"{folder} is built on the frozen model {place}, which is not there; put it back, or mend "
            f"base.path in {folder / parts.INDEX}"
        )
    return place


def _found(base: Path | str, revision: str | None) -> tuple[Path, Origin | None]:
    """A base's folder, and where on the Hub it is from: a name that is a folder is that folder."""
    folder = Path(base)
    if folder.exists() or not HUB_NAME.fullmatch(str(base)):
        if revision is not None:
            raise UserError(f"{base} is no model on the Hub, but a folder, which has no revision {revision!r:.80}")
        return folder, None
    copy = sources.snapshot(str(base), _HUB_FILES, _complete, ignored=None, revision=revision)
    if copy is None:
        at = "" if revision is None else f" at revision {revision:.80}"
        raise UserError(
            f"cannot have the frozen model {base}{at}: there is no such folder, and as a model of safetensors on the "
            "Hub it is neither in the local cache nor to be downloaded now"
        )
    return copy, Origin(str(base), copy.name)


def _complete(folder: Path) -> bool:
    """Whether a copy has an index, and weights in each of its parts."""
    there = [folder / part for part in _WEIGHED if (folder / part).is_dir()]
    return (folder / parts.INDEX).is_file() and all(any(part.glob("*.safetensors")) for part in there)


def _schedule_text(schedule: ScheduleConfig) -> str:
    """Return a noise schedule as it goes into a base's sha256: by the names of release 0.1, whose folders hold such."""
    old = {"num_train_timesteps": "steps"}
    return str({old.get(name, name): value for name, value in schedule.model_dump().items()})


def _refuse_schedule(folder: Path, schedule: Schedule) -> None:
    """PDAE's formulas hold for a^2 + s^2 = 1, and divide by a."""
    preserving = torch.allclose(schedule.a.square() + schedule.s.square(), torch.ones_like(schedule.a))
    if not preserving or schedule.a[-1] <= 0:
        what = "ends in pure noise (zero_terminal)" if preserving else "is a flow"
        raise UserError(f"{folder} cannot be a base: its schedule {what}; expected DDPM's, LDM's or another of betas")


@torch.no_grad()
def _null(folder: Path, conditioner: Conditioner, device: torch.device | str) -> Condition:
    try:
        null = conditioner(**{name: value.to(device) for name, value in conditioner.null_inputs().items()})
    except ConditioningError as error:
        raise UserError(f"{folder} cannot be a base without a null condition: {error}") from None
    conditioner.release()
    return null
