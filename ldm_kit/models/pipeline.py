"""A whole model: load it, save it, draw with it. One call opens a diffusers folder, whoever trained it.

A folder has the diffusers layout with safetensors: `vae/` (or `vqvae/`), `unet/`, the conditioner's components,
`scheduler/`, `model_index.json`. KL + CLIP text opens in plain diffusers as StableDiffusionPipeline, an unconditional
model as LDMPipeline (of pixels: DDIMPipeline or DDPMPipeline), and everything here as `Pipeline.load(folder)`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor

import conditioning.factory as conditioners
from autoencoder.base import decode
from conditioning.base import Condition, Conditioner
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, NetworkDenoiser, Thresholded
from ldm_kit.diffusion.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGradient,
    ClassifierGuided,
    Interval,
    Rescaled,
)
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.respacing import Spacing, respaced_timesteps
from ldm_kit.diffusion.samplers import State
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.models import folder as parts
from ldm_kit.models.classifier import NoisyClassifier, first_stage_of
from ldm_kit.models.compatibility import (
    FixedCondition,
    LatentSpace,
    check_compatible,
    check_same_condition,
    class_names,
    labels_of,
)
from ldm_kit.models.options import ANCESTRAL, SamplingOptions
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.execution import cast_weights
from ldm_kit.solvers.samplers import sample


@dataclass(eq=False)
class Pipeline:
    """First stage, denoiser, conditioner and schedule, in evaluation mode."""

    vae: AutoencoderKL | VQModel | None  # None: the latents are the pictures
    unet: UNet2DConditionModel | UNet2DModel
    conditioner: Conditioner
    schedule_config: ScheduleConfig
    target: PredictionType
    precision: torch.dtype | None = None  # autocast to this dtype while drawing
    variance: VarianceType = "small"  # of ddpm's steps; learned_range: the U-Net says it, in as many channels again
    classifier: NoisyClassifier | None = None  # set by `steered`, as is the worse model
    worse: "Pipeline | None" = None
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
        channels = config.out_channels // (2 if self.variance == "learned_range" else 1)
        return channels, config.sample_size, config.sample_size

    @property
    def space(self) -> LatentSpace:
        """What a guide has to fit to."""
        first_stage = None if self.vae is None else first_stage_of(self.vae)
        return LatentSpace(self.schedule_config, self.latent_shape, first_stage)

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move all networks, the guides' too."""
        for module in (self.vae, self.unet, self.conditioner, self.classifier, self.worse):
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

    def with_guides(self, classifier: NoisyClassifier | None = None, worse: "Pipeline | None" = None) -> "Pipeline":
        """The same model with guides: a noisy classifier, and a worse model for autoguidance.

        Raises:
            UserError: a guide of another noise schedule, shape, autoencoder or kind of condition.
        """
        if classifier is not None:
            theirs = LatentSpace(classifier.schedule_config, classifier.latent_shape, classifier.first_stage)
            check_compatible("the classifier", theirs, self.space)
        if worse is not None:
            check_compatible("the worse model", worse.space, self.space)
            check_same_condition(worse.conditioner, self.conditioner)
        return replace(self, classifier=classifier, worse=worse)

    def resolve(self, wish: SamplingOptions) -> SamplingOptions:
        """The wish with all decided that it leaves to the model; draws the same."""
        found: dict[str, Any] = {"steps": len(self.times(wish)) - 1}
        if wish.clip == "auto":
            found["clip"] = "clip" if self.vae is None else "none"
        if self.classifier is not None and wish.classifier_scale is None:
            found["classifier_scale"] = 1.0
        if self.classifier is not None and wish.algorithm is None:
            found["algorithm"] = 1 if wish.solver in ANCESTRAL else 2
        if self.worse is not None and wish.autoguidance_scale is None:
            found["autoguidance_scale"] = 2.0
        return replace(wish, **found)

    def times(self, wish: SamplingOptions) -> list[int]:
        """The falling training times that a wish's steps visit, -1 (clean) the last; raises UserError."""
        try:
            return respaced_timesteps(self.schedule_config.num_train_timesteps, wish.steps, wish.spacing)
        except ValueError as error:
            what = f"--steps {wish.steps}" if wish.spacing in get_args(Spacing) else f"--spacing {wish.spacing}"
            raise UserError(f"{what}: {error}") from None

    def denoiser(self) -> NetworkDenoiser:
        """The network as it was trained, unguided and unclipped."""
        return NetworkDenoiser(self._network, self.schedule, self.target, self.variance == "learned_range")

    def guided(self, prompts: Sequence[str | int], wish: SamplingOptions) -> Denoiser:
        """The network with classifier-free guidance, then autoguidance, then clipped: the guided x_0 is a picture.

        `wish` is a settled one; of `prompts` only a worse model sees more than how many there are.
        """
        denoiser: Denoiser = (network := self.denoiser())
        if self.conditioner.null is not None and wish.guidance_scale != 1:
            null = self.condition([self.conditioner.null if wish.negative is None else wish.negative] * len(prompts))
            denoiser = free = ClassifierFree(network, null, wish.guidance_scale, join=Condition.before)
            if wish.rescale > 0:
                denoiser = Rescaled(free, wish.rescale, self.target)
            if wish.interval != (0.0, 1.0):
                denoiser = Interval(denoiser, network, *wish.interval)
        if self.worse is not None and wish.autoguidance_scale not in (None, 1):
            worse = FixedCondition(self.worse.denoiser(), self.worse.condition(prompts))
            denoiser = Autoguidance(denoiser, worse, wish.autoguidance_scale)
        return _clipped(denoiser, wish.clip)

    def labels(self, prompts: Sequence[str | int], wish: SamplingOptions) -> Tensor | None:
        """The classifier's labels [B] of prompts; None without one. Raises UserError for a class it does not know."""
        if self.classifier is None:
            return None
        said = wish.classifier_class
        names = class_names(self.conditioner, prompts) if said is None else [said] * len(prompts)
        return labels_of(self.classifier.classes, names).to(self.device)

    def _gradient(self, prompts: Sequence[str | int], wish: SamplingOptions) -> ClassifierGradient | None:
        labels = self.labels(prompts, wish)
        if self.classifier is None or labels is None or not wish.classifier_scale:
            return None
        return ClassifierGradient(self.classifier.log_probs, labels, wish.classifier_scale)

    @torch.no_grad()
    def states(
        self, prompts: Sequence[str | int], seeds: Sequence[int], wish: SamplingOptions, noise: Tensor | None = None
    ) -> Iterator[State]:
        """Draw one batch, step by step: latents of `prompts`, each from its own seed (or from given noise).

        A classifier shifts what is guided and clipped already: eps (Algorithm 2), or the mean of ddpm's step
        (Algorithm 1; Dhariwal & Nichol 2021). Algorithm 2 moves x_0 by s^2 / a times the gradient: where a is almost 0
        any error of the classifier throws it far away, so it is clipped again, which their code does not.
        """
        wish = self.resolve(wish)
        denoiser, gradient = self.guided(prompts, wish), self._gradient(prompts, wish)
        if gradient is not None and wish.algorithm == 2:
            denoiser, gradient = ClassifierGuided(denoiser, gradient), None
            denoiser = denoiser if wish.clip == "published" else _clipped(denoiser, wish.clip)
        start = (rng.initial_noise(seeds, self.latent_shape) if noise is None else noise).to(self.device)
        cond, times = self.condition(prompts), self.times(wish)
        steps = {"eta": wish.eta, "gradient": gradient, "variance": "large" if self.variance == "large" else "auto"}
        yield from sample(wish.solver, denoiser, start, times, cond, seeds=seeds, **steps)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, h, w] to pictures, uint8 [B, C, H, W] on the CPU."""
        if self.vae is None:
            return to_bytes(latents.float().cpu())
        with self._autocast():
            return to_bytes(decode(self.vae, latents).float().cpu())

    def draw(
        self, prompts: Sequence[str | int], seeds: Sequence[int], wish: SamplingOptions | None = None, batch: int = 32
    ) -> Iterator[Tensor]:
        """Pictures uint8 [b, C, H, W], a batch at a time; a picture depends on its prompt and seed alone."""
        wish = wish or SamplingOptions()
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            *_, last = self.states(prompts[part], seeds[part], wish)
            yield self.pictures(last.x)

    def save(self, folder: Path) -> None:
        """Write the diffusers layout; raises UserError where `load` has rounded the weights."""
        if len(types := {str(weight.dtype) for weight in self.unet.parameters()}) > 1:
            raise UserError(
                f"{folder}: not saved: the U-Net's weights were rounded for drawing ({', '.join(sorted(types))}); "
                "open the model without a precision to save it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        scheduler = parts.scheduler(self.schedule_config, self.target, self.variance, pixels=self.vae is None)
        entries = conditioners.save(self.conditioner, folder)
        kind = parts.pipeline_class(self.vae, self.unet, scheduler, entries)
        if self.vae is not None:
            name = "vqvae" if kind == "LDMPipeline" else "vae"
            self.vae.save_pretrained(folder / name)
            entries[name] = ("diffusers", type(self.vae).__name__)
        self.unet.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {
            "_class_name": kind,
            "unet": parts.unet_entry(self.unet),
            "scheduler": ("diffusers", type(scheduler).__name__),
            **entries,
        }
        if kind == "StableDiffusionPipeline":
            absent = ("safety_checker", "feature_extractor", "image_encoder")
            index |= dict.fromkeys(absent, (None, None)) | {"requires_safety_checker": False}
        (folder / parts.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        parts.strip_paths(folder)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "Pipeline":
        """Open a saved folder: ours, or any diffusers folder of the same parts. No pickled or remote code is run.

        With a `precision` the networks run under autocast to it, and the U-Net's weights are rounded to it once.

        Raises:
            UserError: no such folder, or a part that is missing, broken, unknown, or does not fit the others.
        """
        vae, unet, conditioner, schedule, target, variance = parts.open_parts(Path(folder), device)
        if precision is not None:
            cast_weights(unet, precision)
        return cls(vae, unet, conditioner, schedule, target, precision, variance)


def _clipped(denoiser: Denoiser, clip: str) -> Denoiser:
    match clip:
        case "clip" | "published":
            return Clipped(denoiser)
        case "dynamic":
            return Thresholded(denoiser)
        case _:
            return denoiser
