"""Samples of a diffusion model or a cascade, as what an evaluation judges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from conditioning.base import Condition, Conditioner
from ldm_kit.config import UserError
from ldm_kit.data.value_range import ValueRange
from ldm_kit.inference.evaluate_autoencoders import NO_CAPTIONS
from ldm_kit.inference.evaluate_folders import NO_ORIGINALS, JudgedBatch
from ldm_kit.inference.evaluate_reference import Reference, cycled, prompts_of
from ldm_kit.inference.likelihood_terms import BoundOptions, PictureBits, measure_terms
from ldm_kit.memory import BatchSize
from ldm_kit.models.cascade import Cascade
from ldm_kit.models.measures import BITS
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.pipeline import Pipeline


class Subject(Protocol):
    """What is judged."""

    kind: str  # "model", "autoencoder", "semantic model" or "folder"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """JSON values that say what was judged: the model's sha256, options of sampling and so on."""
        ...

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        ...

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return the row of the reference that each picture to judge belongs to; raise UserError if that cannot be."""
        ...

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Yield the pictures to judge, batch by batch, in the order of `rows`, each sampled from its own seed."""
        ...


@dataclass(eq=False)
class Sampled:
    """Pictures that a diffusion model samples, for the captions or classes of reference pictures."""

    pipeline: Pipeline
    options: ResolvedOptions
    model: dict[str, str]  # sha256 of the model and its guides, precision, release
    kind: str = "model"

    @property
    def conditioner(self) -> Conditioner:
        """What encodes the prompts: the model's conditioner, or that of its prior over image embeddings (unCLIP)."""
        prior = self.pipeline.prior
        return self.pipeline.conditioner if prior is None else prior.prior.conditioner

    @property
    def takes_classes(self) -> bool:
        """Whether the model, or the classifier that guides an unconditional one, is sampled with class names."""
        if self.conditioner.null is None:
            return self.pipeline.classifier is not None and self.options.classifier_class is None
        return self.conditioner.modality == "classes"

    @property
    def prompts(self) -> str:
        """What the model is sampled with: captions, classes or nothing."""
        return "classes" if self.takes_classes else "captions" if self.takes_prompts else "nothing"

    @property
    def takes_prompts(self) -> bool:
        """Whether the model is sampled with captions or class names."""
        return self.conditioner.null is not None or self.takes_classes

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures."""
        vae: Any = self.pipeline.vae
        channels = self.pipeline.channels if vae is None else vae.config.out_channels
        return channels, self.options.size(self.pipeline)[0]

    @property
    def value_range(self) -> ValueRange | None:
        """What the levels of the pictures stand for; None: they have 8 bits."""
        return self.pipeline.value_range

    @property
    def description(self) -> dict[str, Any]:
        """The model's sha256, release and precision, and the options of sampling."""
        return {"kind": self.kind, **self.model, "sampling": self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """The options of sampling, as JSON values; of a prior those that are used, also if they are the saved ones."""
        settings, prior = self.options.settings(), self.pipeline.prior
        if prior is None:
            return settings
        most = prior.prior.schedule_config.num_train_timesteps
        given = self.options.prior_steps, self.options.prior_guidance_scale
        steps, scale = self.pipeline.saved.of_prior(*given, most, self.takes_prompts, flag="--prior_guidance_scale")
        return {**settings, "prior_steps": steps, "prior_guidance_scale": scale}

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        captions = {} if self.prompts == "captions" else NO_CAPTIONS
        reason = self._without_bits()
        return {**NO_ORIGINALS, **captions, **(dict.fromkeys(BITS, reason) if reason else {})}

    def _without_bits(self) -> str:
        """Return why the model has no likelihood bound; "": it has one."""
        if self.pipeline.vae is not None:
            return "it is for diffusion models of pixels, and this is a model of latents"
        if self.pipeline.value_range is not None:
            return "it is for pictures of 8 bits, and this model's are values of a range"
        if self.pipeline.takes_pictures:
            return "it is for models without a picture as condition"
        preserving = self.pipeline.schedule.variance_preserving
        return "" if preserving else "it needs a variance-preserving schedule, which this model has not"

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return evenly spaced rows of the reference; check that the model knows their captions or classes."""
        if self.pipeline.picture is not None:
            raise UserError("this model is conditioned on a picture; take log.measures in its training instead")
        if self.pipeline.conditioner.reads_pictures and self.pipeline.prior is None:
            raise UserError(
                "this model is conditioned on an image and has no prior to sample its embedding from (method: prior "
                "trains one); take log.measures in its training instead"
            )
        rows = cycled(len(reference.pictures), count or len(reference.pictures))
        prompts = sorted({*self._prompts(reference, rows)})
        if self.takes_classes:
            self.conditioner.prepare(prompts)
        if self.pipeline.prior is not None:
            self.pipeline.prior.check_prompts(prompts)
        self.pipeline.labels(prompts, self.options)
        return rows

    def _prompts(self, reference: Reference, rows: Sequence[int]) -> list[str]:
        if not self.takes_prompts:
            return [""] * len(rows)
        return prompts_of(reference, rows, classes=self.takes_classes)

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Sample a picture for each row, each from its own seed."""
        for pictures in self.pipeline.generate(self._prompts(reference, rows), seeds, self.options, size):
            yield JudgedBatch(pictures, {})

    def bits(self, reference: Reference, rows: Sequence[int], options: BoundOptions, size: BatchSize) -> PictureBits:
        """Measure the likelihood bound of some rows of the reference, each under its own caption or class."""
        prompts = dict(zip(rows, self._prompts(reference, rows), strict=True))

        def condition(own: Sequence[int]) -> Condition:
            if self.pipeline.conditioner.null is None:
                return Condition()
            return self.pipeline.condition([prompts[row] for row in own])

        return measure_terms(self.pipeline, reference.pictures, rows, condition, options, size=size).pictures()


@dataclass(eq=False, kw_only=True)
class SampledCascade(Sampled):
    """Pictures that a cascade samples; `pipeline` and `options` are those of its base model."""

    cascade: Cascade
    stages: tuple[ResolvedOptions, ...]  # options of each model
    kind: str = "cascade"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the final pictures."""
        return self.cascade.channels, self.cascade.resolution

    @property
    def settings(self) -> dict[str, Any]:
        """The options of each model, by its number."""
        return {f"stage_{number}": each.settings() for number, each in enumerate(self.stages, 1)}

    def _without_bits(self) -> str:
        return "it is for single diffusion models, and this is a cascade"

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Sample a picture for each row through all models, each from its own seed."""
        for pictures in self.cascade.generate(self._prompts(reference, rows), seeds, self.stages, size):
            yield JudgedBatch(pictures, {})
