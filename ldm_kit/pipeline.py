"""A whole model: load it, save it, draw with it. One call opens a diffusers folder, whoever trained it.

A folder has the diffusers layout with safetensors: `vae/` (or `vqvae/`), `unet/`, the conditioner's components,
`scheduler/`, `model_index.json`. KL + CLIP text opens in plain diffusers as StableDiffusionPipeline, an unconditional
model as LDMPipeline, and everything here as `Pipeline.load(folder)`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor

import conditioning.factory as conditioners
from autoencoder.base import decode
from conditioning.base import Condition, Conditioner
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes
from ldm_kit.diffusion import randomness
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.prediction import Target
from ldm_kit.diffusion.samplers import State
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.layout import choose_attention
from ldm_kit.nets.solvers import default_scheduler, from_scheduler_config, solve

_UNETS = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}
_VAES = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}


@dataclass(frozen=True)
class Wish:
    """How pictures are to be drawn."""

    steps: int = 20
    solver: str = "dpm++"
    guidance_scale: float = 3.0
    negative: str | None = None  # None: the null condition that training used


@dataclass(eq=False)
class Pipeline:
    """First stage, denoiser, conditioner and schedule, in evaluation mode."""

    vae: AutoencoderKL | VQModel | None  # None: the latents are the pictures
    unet: UNet2DConditionModel | UNet2DModel
    conditioner: Conditioner
    schedule_config: ScheduleConfig
    target: Target
    precision: torch.dtype | None = None  # autocast to this dtype while drawing
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, h, w) of a latent at the trained size."""
        config: Any = self.unet.config
        return config.out_channels, config.sample_size, config.sample_size

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move all networks."""
        for module in (self.vae, self.unet, self.conditioner):
            if module is not None:
                module.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def condition(self, raw: Sequence[str | int]) -> Condition:
        """What the denoiser attends to for prompts or classes."""
        inputs = self.conditioner.prepare(raw)
        return self.conditioner(**{name: value.to(self.device) for name, value in inputs.items()})

    def _network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        with self._autocast():
            return apply_unet(self.unet, x, t, cond)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision)

    @torch.no_grad()
    def states(
        self, prompts: Sequence[str | int], seeds: Sequence[int], wish: Wish, noise: Tensor | None = None
    ) -> Iterator[State]:
        """Draw one batch, step by step: latents of `prompts`, each from its own seed (or from given noise)."""
        cond = Condition() if self.conditioner.null is None else self.condition(prompts)
        denoiser = NetworkDenoiser(self._network, self.schedule, self.target)
        guided = denoiser
        if self.conditioner.null is not None and wish.guidance_scale != 1:
            null = self.conditioner.null if wish.negative is None else wish.negative
            guided = ClassifierFree(denoiser, self.condition([null] * len(prompts)), wish.guidance_scale)
        start = (randomness.picture_noise(seeds, self.latent_shape) if noise is None else noise).to(self.device)
        yield from solve(wish.solver, guided, start, wish.steps, cond, seeds=seeds)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, h, w] to pictures, uint8 [B, C, H, W] on the CPU."""
        if self.vae is None:
            return to_bytes(latents.float().cpu())
        with self._autocast():
            return to_bytes(decode(self.vae, latents).float().cpu())

    def draw(
        self, prompts: Sequence[str | int], seeds: Sequence[int], wish: Wish | None = None, batch: int = 32
    ) -> Iterator[Tensor]:
        """Pictures uint8 [b, C, H, W], a batch at a time; a picture depends on its prompt and seed alone."""
        wish = wish or Wish()
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            *_, last = self.states(prompts[part], seeds[part], wish)
            yield self.pictures(last.x)

    def save(self, folder: Path) -> None:
        """Write the diffusers layout."""
        folder.mkdir(parents=True, exist_ok=True)
        scheduler = default_scheduler(self.schedule_config, self.target)
        entries = conditioners.save(self.conditioner, folder)
        kind = self._pipeline_class(entries)
        if self.vae is not None:
            name = "vqvae" if kind == "LDMPipeline" else "vae"
            self.vae.save_pretrained(folder / name)
            entries[name] = ("diffusers", type(self.vae).__name__)
        self.unet.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {
            "_class_name": kind,
            "unet": ("diffusers", type(self.unet).__name__),
            "scheduler": ("diffusers", type(scheduler).__name__),
            **entries,
        }
        if kind == "StableDiffusionPipeline":
            absent = ("safety_checker", "feature_extractor", "image_encoder")
            index |= dict.fromkeys(absent, (None, None)) | {"requires_safety_checker": False}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        for path in folder.rglob("*.safetensors"):
            path.chmod((folder / "model_index.json").stat().st_mode)  # the umask's, as for every other file

    def _pipeline_class(self, entries: dict[str, tuple[str, str]]) -> str:
        text = "text_encoder" in entries and isinstance(self.unet, UNet2DConditionModel)
        if isinstance(self.vae, AutoencoderKL) and text:
            return "StableDiffusionPipeline"
        return "LDMPipeline" if self.vae is not None and not entries else "ldm_kit.Pipeline"

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "Pipeline":
        """Open a saved folder: ours, or any diffusers folder of the same parts. No pickled or remote code is run.

        Raises:
            UserError: no such folder, a component is missing, or of a class that we do not know.
        """
        folder = Path(folder)
        index = _json(folder / "model_index.json", f"{folder} is no saved model: model_index.json")
        scheduler = _json(folder / "scheduler" / "scheduler_config.json", f"{folder}/scheduler")
        schedule, target = from_scheduler_config(scheduler)
        vae = next((_component(folder, name, index, _VAES) for name in ("vae", "vqvae") if name in index), None)
        unet = _component(folder, "unet", index, _UNETS)
        choose_attention(unet, torch.device(device), "auto")
        pipeline = cls(vae, unet, conditioners.load(folder), schedule, target, precision)
        for module in (vae, unet, pipeline.conditioner):
            if module is not None:
                module.eval().requires_grad_(False)
        return pipeline.to(device)


def _component(folder: Path, name: str, index: dict[str, Any], known: dict[str, Any]) -> Any:
    kind = index.get(name, (None, None))[1]
    if kind not in known:
        raise UserError(f"{folder}: {name} is of class {kind}, expected one of {', '.join(known)}")
    try:
        return known[kind].from_pretrained(folder / name, use_safetensors=True, local_files_only=True)
    except OSError as error:
        raise UserError(f"cannot open {folder / name}: {' '.join(str(error).split())}") from None


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{what} is missing or unreadable; expected a folder in the diffusers layout") from None
