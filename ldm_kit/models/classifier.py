"""Load, save and evaluate a noisy classifier p(y | x_t, t), which guides sampling.

A classifier's folder has the diffusers layout with safetensors: `classifier/`, `scheduler/` (the noise schedule of the
training) and `model_index.json`, which also holds the sha256 of the autoencoder whose latents are classified.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.folder import CLASSIFIER, INDEX, ModelFolder
from ldm_kit.models.saving import scheduler_entry, write_index
from ldm_kit.nets.half_unet import HalfUNet
from ldm_kit.solvers.scheduler_config import saved_scheduler

_ENTRY = ["ldm_kit.nets.half_unet", "HalfUNet"]


@dataclass(eq=False)
class NoisyClassifier:
    """Classifier of noised pictures or latents x_t, whose gradient guides sampling (Dhariwal & Nichol 2021).

    Args:
        net: the network in evaluation mode. It maps x_t [B, Z, h, w] of Z channels and timesteps [B] to logits [B, K].
        classes: K class names, in the order of the network's outputs.
        schedule_config: noise schedule of the classifier's training; the guided model must have the same.
        first_stage: sha256 of the autoencoder whose latents the network classifies (`first_stage_of`); None: the
            network classifies pixels.
    """

    net: HalfUNet
    classes: tuple[str, ...]
    schedule_config: ScheduleConfig
    first_stage: str | None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the network's input."""
        config: Any = self.net.config
        return config.in_channels, config.sample_size, config.sample_size

    def log_probs(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p(y | x_t, t) of every class y; gradients flow to x.

        The network runs in the dtype of its weights even inside an autocast, as guidance needs exact gradients.

        Args:
            x: x_t [B, Z, h, w].
            t: integer timesteps [B].

        Returns:
            Log-probabilities, float32 [B, K], in the order of `classes`.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.net(x, t).float().log_softmax(1)

    def to(self, device: torch.device | str) -> "NoisyClassifier":
        """Move the network to a device, in place; return this object."""
        self.net.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the classifier to `folder` as diffusers does: a sub-folder per component, and model_index.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        scheduler = saved_scheduler(self.schedule_config, any_target(self.schedule_config))
        self.net.save_pretrained(folder / "classifier")
        scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": CLASSIFIER,
            "classifier": _ENTRY,
            "scheduler": scheduler_entry(scheduler),
            "first_stage": self.first_stage,
        }
        write_index(folder, index)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "NoisyClassifier":
        """Load a noisy classifier. No pickled or remote code is run.

        Args:
            folder: a saved classifier's folder, or a run's folder with a finished classifier.
            device: where the network is put.

        Raises:
            UserError: the folder does not exist or holds another kind of model; or a component is missing or broken, or
                is not of a classifier's class.
        """
        opened = ModelFolder.open(folder, "classifier")
        first_stage = _first_stage(opened)
        schedule = opened.noise().schedule
        net = opened.component("classifier", _ENTRY[1], {_ENTRY[1]: HalfUNet}, device)
        classes = net.config["classes"]
        if not isinstance(classes, list | tuple) or len({*map(str, classes)}) < max(2, len(classes)):
            raise UserError(f"{opened}: classes are {classes!r:.80}; expected two or more different names")
        return cls(net, tuple(map(str, classes)), schedule, first_stage)


def any_target(schedule: ScheduleConfig) -> PredictionType:
    """Return a prediction type that is valid under a noise schedule, for the scheduler's config of a saved classifier.

    A classifier predicts neither x_0 nor eps, but the config has to state a prediction type.
    """
    return "flow" if schedule.kind == "flow" else "v"


def first_stage_of(vae: nn.Module | None) -> str | None:
    """Return the sha256 (hex) of an autoencoder's weights, which identifies the latents that a model takes.

    `vae` is None for a pixel model, which has no autoencoder; the result is then None.
    """
    return None if vae is None else weights_digest(vae)


def _first_stage(folder: ModelFolder) -> str | None:
    """Check that a folder holds a noisy classifier; return the sha256 of the autoencoder whose latents are classified.

    The sha256 (hex) is read from model_index.json. None: the classifier takes pixels.

    Raises:
        UserError: the folder holds another kind of model, or the entry `first_stage` is neither text nor null.
    """
    if folder.class_name != CLASSIFIER:
        what = "a diffusion model" if "unet" in folder else "no noisy classifier"
        raise UserError(f"{folder} holds {what} ({folder.class_name}); expected what `method: classifier` trains")
    entry, first_stage = folder.index.get("classifier"), folder.index.get("first_stage")
    if entry != _ENTRY:
        raise UserError(f"{folder}: classifier is {entry}, expected {_ENTRY}; no other code is run")
    if not isinstance(first_stage, str | None):
        raise UserError(f"{folder.path / INDEX}: first_stage is {first_stage!r:.60}; expected a fingerprint, or null")
    return first_stage
