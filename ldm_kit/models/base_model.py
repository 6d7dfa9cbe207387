"""The base model of a PDAE: a frozen diffusion model, ours or plain diffusers', of pixels or of latents.

PDAE never changes it and keeps no copy: it is known by its folder, or its commit on the Hugging Face Hub, and by a
sha256 over its weights, its null condition and its table of a_t.
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
from ldm_kit.models.components import load_components
from ldm_kit.models.folder import INDEX, ModelFolder
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.unet import UNet
from ldm_kit.training.checkpoint import MANIFEST

HUB_NAME, COMMIT = re.compile(r"\w[\w.-]*/\w[\w.-]*"), re.compile(r"[0-9a-f]{40}")
_WITH_WEIGHTS = ("unet", "vae", "vqvae", "text_encoder", "class_encoder")  # components with weights
_WEIGHTS = tuple(
    f"{name}{shard}.safetensors" for name in ("diffusion_pytorch_model", "model") for shard in ("", "-*-of-*")
)
_SCHEDULE_KEYS = ("kind", "num_train_timesteps", "start", "end", "betas", "scale_ends", "zero_terminal")  # of 0.2
_HUB_FILES = ["*.json", "tokenizer/*.txt", *(f"{component}/{name}" for component in _WITH_WEIGHTS for name in _WEIGHTS)]


class Origin(NamedTuple):
    """A model on the Hugging Face Hub, at one commit."""

    name: str  # owner/name
    commit: str

    def __str__(self) -> str:
        return f"{self.name} at {self.commit[:12]}"


@dataclass(eq=False)
class BaseModel:
    """Networks in evaluation mode without gradients, the null condition, and the noise schedule."""

    folder: Path
    vae: AutoencoderKL | VQModel | None  # None: pixels
    unet: UNet
    null: Condition  # one row: the null condition, or none at all
    schedule_config: ScheduleConfig
    target: PredictionType
    learned_range: bool
    sha256: str
    former_sha256: str  # as releases 0.1 and 0.2 wrote it: over the text of the schedule's config
    origin: Origin | None = None  # None: a folder

    @classmethod
    def open(cls, base: Path | str, device: torch.device | str = "cpu", *, revision: str | None = None) -> "BaseModel":
        """Open a model's folder, or a run's, or a model on the Hub (`owner/name`): its local copy, or a download.

        Args:
            base: the folder, or the name on the Hub.
            device: where its networks are put.
            revision: on the Hub: branch, tag or commit; None: main.

        Raises:
            UserError: no diffusion model, one without a null condition, a schedule that PDAE has no formula for, or a
                model of the Hub that cannot be had now.
        """
        copy, origin = _locate(base, revision)
        folder = ModelFolder.open(copy)
        vae, unet, conditioner, noise = load_components(folder, device)
        schedule, target, variance = noise
        table = build(schedule)
        _check_schedule(folder, table)
        nets = {"vae": vae, "unet": unet, **conditioner.trainable}
        weights = [f"{name} {weights_digest(net)}" for name, net in nets.items() if net is not None]
        texts = (_table_text(table), _config_text(schedule))
        sha256, former = (digest([text, target, variance, *weights]) for text in texts)
        null, learned = _null(folder, conditioner, device), variance == "learned_range"
        return cls(folder.path, vae, unet, null, schedule, target, learned, sha256, former, origin)

    @property
    def name(self) -> str:
        """Its folder, or its name and commit, for sentences."""
        return str(self.folder if self.origin is None else self.origin)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, R, R) of its pictures."""
        config: Any = self.unet.config
        if self.vae is None:
            return config.in_channels, config.sample_size, config.sample_size
        vae: Any = self.vae.config
        side = config.sample_size * reduction(self.vae)
        return vae.in_channels, side, side

    def denoiser(self, schedule: Schedule) -> NetworkDenoiser:
        """Return the unshifted denoiser, under the null condition whatever condition it is given."""

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
        """Return how a model in `folder` refers to its base in its index: path or commit, and sha256."""
        if self.origin is not None:
            return {"hub": self.origin.name, "revision": self.origin.commit, "sha256": self.sha256}
        return {"path": os.path.relpath(self.folder.resolve(), folder.resolve()), "sha256": self.sha256}


def reopen_base(folder: Path, reference: Any, device: torch.device | str = "cpu") -> BaseModel:
    """Open the base that a model's index refers to.

    Args:
        folder: the model's folder, from which a relative path starts.
        reference: `base` of its index: {path, sha256} or {hub, revision, sha256}.
        device: where the networks are put.

    Raises:
        UserError: it is not there, or has changed since.
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
    if sha256 not in (base.sha256, base.former_sha256):
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


def _locate(base: Path | str, revision: str | None) -> tuple[Path, Origin | None]:
    """Return a base's folder, and its commit on the Hub; a name that is a folder is that folder."""
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
    """Return whether a copy has an index, and weights in each of its components."""
    components = [folder / name for name in _WITH_WEIGHTS if (folder / name).is_dir()]
    return (folder / INDEX).is_file() and all(any(path.glob("*.safetensors")) for path in components)


def _table_text(schedule: Schedule) -> str:
    """Return a noise schedule as it goes into a base's sha256: a_t to 7 digits, beyond which machines may differ."""
    return " ".join(f"{a:.6e}" for a in schedule.a.tolist())


def _config_text(schedule: ScheduleConfig) -> str:
    """Return a noise schedule as it goes into the former sha256: the keys of release 0.2, one by its name in 0.1."""
    old = {"num_train_timesteps": "steps"}
    return str({old.get(key, key): getattr(schedule, key) for key in _SCHEDULE_KEYS})


def _check_schedule(folder: ModelFolder, schedule: Schedule) -> None:
    """Check that a^2 + s^2 = 1 and a > 0, for which PDAE's formulas hold."""
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
