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
from conditioning.base import Condition, Conditioner, ConditioningError
from ldm_kit import parts
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
                module.to(device)  # pyright: ignore[reportArgumentType]  (diffusers decorates it)
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
        yield from solve(wish.solver, guided, start, wish.steps, cond, seeds=seeds)  # pyright: ignore[reportArgumentType]

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
        (folder / parts.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        parts.tidy(folder)

    def _pipeline_class(self, entries: dict[str, tuple[str, str]]) -> str:
        text = "text_encoder" in entries and isinstance(self.unet, UNet2DConditionModel)
        if isinstance(self.vae, AutoencoderKL) and text:
            return "StableDiffusionPipeline"
        plain = isinstance(self.unet, UNet2DModel) and not entries  # a frozen encoder has no entry, yet is a condition
        return "LDMPipeline" if self.vae is not None and plain else "ldm_kit.Pipeline"

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "Pipeline":
        """Open a saved folder: ours, or any diffusers folder of the same parts. No pickled or remote code is run.

        Raises:
            UserError: no such folder, or a part that is missing, broken, unknown, or does not fit the others.
        """
        folder = Path(folder)
        index = parts.read_index(folder)
        schedule, target = _schedule(folder)
        first = next((name for name in ("vae", "vqvae") if name in index), None)
        vae = None if first is None else parts.component(folder, first, index[first], parts.FIRST_STAGE)
        unet = parts.component(folder, "unet", index["unet"], parts.UNET)
        choose_attention(unet, torch.device(device), "auto")
        pipeline = cls(vae, unet, _conditioner(folder), schedule, target, precision)
        _refuse_misfits(pipeline, folder)
        for module in (vae, unet, pipeline.conditioner):
            if module is not None:
                module.eval().requires_grad_(False)
        return pipeline.to(device)


def _schedule(folder: Path) -> tuple[ScheduleConfig, Target]:
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        return from_scheduler_config(parts.read_json(path, str(path)))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} holds numbers that are no noise schedule; expected those of a diffusers scheduler"
        ) from None


def _conditioner(folder: Path) -> Conditioner:
    with parts.hushed():
        try:
            return conditioners.load(folder)
        except ConditioningError as error:
            raise UserError(str(error)) from None
        except Exception as error:  # of many unrelated classes: broken JSON or weights, shapes
            raise UserError(f"cannot open the conditioner in {folder}: {' '.join(str(error).split()):.300}") from None


def _refuse_misfits(pipeline: Pipeline, folder: Path) -> None:
    unet: Any = pipeline.unet.config
    channels = unet.out_channels if pipeline.vae is None else pipeline.vae.config["latent_channels"]
    if not unet.in_channels == unet.out_channels == channels:
        raise UserError(
            f"{folder}: the U-Net has {unet.in_channels} channels in and {unet.out_channels} out, "
            f"but a latent has {channels}"
        )
    width = unet.get("cross_attention_dim") if isinstance(pipeline.unet, UNet2DConditionModel) else None
    if width != pipeline.conditioner.width:
        raise UserError(
            f"{folder}: the U-Net attends to tokens of width {width}, but the conditioner's have "
            f"{pipeline.conditioner.width}"
        )
