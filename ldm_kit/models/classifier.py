"""A trained noisy classifier p(y | x_t, t): load it, save it, ask it.

A folder has the diffusers layout with safetensors: `classifier/`, `scheduler/` (the noise that it knows) and
`model_index.json`, which also says by fingerprint whose latents it sees.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models import folder as parts
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.nets.half_unet import HalfUNet
from ldm_kit.solvers.scheduler_config import default_scheduler

_ENTRY = ["ldm_kit.nets.half_unet", "HalfUNet"]


@dataclass(eq=False)
class NoisyClassifier:
    """A network in evaluation mode, the names of its classes, its noise schedule, and whose latents it sees."""

    net: HalfUNet
    classes: tuple[str, ...]  # in the order of the network's outputs
    schedule_config: ScheduleConfig
    first_stage: str | None  # `first_stage_of` the autoencoder; None: it sees pixels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of what it sees."""
        about: Any = self.net.config
        return about.in_channels, about.sample_size, about.sample_size

    def log_probs(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t, t), float32 [B, K], of x_t [B, Z, h, w] at integer times t [B]; its gradient follows x.

        It computes in the dtype of its weights, even within an autocast: guidance needs exact gradients.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.net(x, t).float().log_softmax(1)

    def to(self, device: torch.device | str) -> "NoisyClassifier":
        """Move the network."""
        self.net.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        return self

    def save(self, folder: Path | str) -> None:
        """Write the diffusers layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        scheduler = default_scheduler(self.schedule_config, "flow" if self.schedule_config.kind == "flow" else "v")
        self.net.save_pretrained(folder / "classifier")
        scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": parts.CLASSIFIER,
            "classifier": _ENTRY,
            "scheduler": ("diffusers", type(scheduler).__name__),
            "first_stage": self.first_stage,
        }
        (folder / parts.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        parts.strip_paths(folder)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "NoisyClassifier":
        """Open a saved folder, or the finished one in a run's folder. No pickled or remote code is run.

        Raises:
            UserError: no such folder, a model that is no classifier, or a part that is missing, broken or unknown.
        """
        folder = parts.model_folder(Path(folder))
        stage = _first_stage(folder)
        schedule, *_ = parts.schedule(folder)
        net = parts.component(folder, "classifier", _ENTRY[1], {_ENTRY[1]: HalfUNet})
        prepare_loaded(net, device)
        return cls(net, tuple(net.config.classes), schedule, stage).to(device)


def first_stage_of(vae: nn.Module | None) -> str | None:
    """The fingerprint by which a classifier knows the autoencoder whose latents it sees; None for None, pixels."""
    return None if vae is None else weights_digest(vae)


def _first_stage(folder: Path) -> str | None:
    """Whose latents it sees, once the index is known to be a classifier's."""
    index = parts.read_json(folder / parts.INDEX, f"{folder} is no saved classifier: its {parts.INDEX}")
    kind, entry, stage = (index.get(name) for name in ("_class_name", "classifier", "first_stage"))
    if kind != parts.CLASSIFIER:
        what = "a diffusion model" if "unet" in index else "no noisy classifier"
        raise UserError(f"{folder} holds {what} ({kind}); expected what `method: classifier` trains")
    if entry != _ENTRY:
        raise UserError(f"{folder}: classifier is {entry}, expected {_ENTRY}; no other code is run")
    if not isinstance(stage, str | None):
        raise UserError(f"{folder / parts.INDEX}: first_stage is {stage!r:.60}; expected a fingerprint, or null")
    return stage
