"""Ways of getting figures from models with conditions: tuned text models, inpainting, and two scales of guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import autoencoder.saved as first_stages
from benchmarks.claims.condition_data import HEAD, NAMED, TORSO, Group, faces
from benchmarks.claims.condition_judge import face_judge, share, values_of
from benchmarks.claims.condition_masks import border_ratio, covered, factor_extents, inpainting_masks, masked_mse
from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_stages import generated
from benchmarks.claims.paper_ways import BATCH, Bench, Figures
from ldm_kit.data.images import Record, to_unit
from ldm_kit.editing.inpainting import inpaint_latents, latent_mask
from ldm_kit.metrics.reconstruction import decibels
from ldm_kit.models.decoding import decode_pictures, encode_unit
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

SAMPLING: Mapping[str, Any] = {"solver": "dpm++", "steps": 10, "guidance_scale": 2.0}
GREY = 128  # of 255
OTHERS = tuple(factor for factor in NAMED if factor != "hair colour")


@dataclass(frozen=True)
class Tuned:
    """Pictures for captions of held-out faces with new and with old hair colours, from one text model.

    Attributes:
        model: variant whose model samples.
        options: sampling options that are not the defaults.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=lambda: dict(SAMPLING))

    def pictures(self, bench: Bench, seed: int, group: Group = "new") -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; a picture's noise is the same for all ways of one seed."""
        prompts = [record.text for record in _records(group, bench.count)]
        return generated(Pipeline.load(bench.runs.model(self.model, seed)), prompts, seed, self.options)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return, of each group, the shares of hair colours and of other values that are right, and the distance.

        Also seconds: processor time of the training.
        """
        figures: Figures = {}
        groups: tuple[Group, ...] = ("new", "old")
        for group in groups:
            pictures = self.pictures(bench, seed, group)
            right = face_judge().right(pictures, values_of(faces(group).heldout, len(pictures)))
            figures |= {
                f"{group} hair colour": share(right, ["hair colour"]),
                f"{group}: other values": share(right, OTHERS),
                f"{group}: distance": face_judge().distance(pictures, group),
            }
        return {**figures, "seconds": bench.runs.seconds(self.model, seed)}


@dataclass(frozen=True)
class Inpainted:
    """Held-out faces that are inpainted within `inpainting_masks`, for their captions.

    Attributes:
        model: variant whose model samples.
        repeats: how often each step is taken, for a model without a picture as condition (`inpaint_latents`; 1: the
            known part is replaced in each step, more: RePaint's resampling); 0: the model's condition is the picture.
    """

    model: str
    repeats: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: dict(SAMPLING))

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Inpaint at most `bench.count` held-out faces, uint8 [N, C, R, R]; outside of the masks they are unchanged."""
        pipeline, truth = Pipeline.load(bench.runs.model(self.model, seed)), originals(bench)
        masks = inpainting_masks(len(truth), truth.shape[-1])
        prompts = [record.text for record in _records("old", len(truth))]
        seeds = range(seed * len(truth), (seed + 1) * len(truth))
        if self.repeats:
            return torch.where(masks[:, None], self._without_condition(pipeline, (truth, masks), prompts, seeds), truth)
        given = {"image": truth, "mask": masks}
        options = SamplingOptions(**self.options)
        return torch.cat(list(pipeline.generate(prompts, seeds, options, BATCH, pictures=given)))

    @torch.no_grad()
    def _without_condition(
        self, pipeline: Pipeline, given: tuple[Tensor, Tensor], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Tensor:
        """Return the pictures that a model makes that has no picture as condition, not yet combined with the given."""
        truth, masks = given
        options = SamplingOptions(**{**self.options, "solver": "ddim"}).resolve(pipeline)
        assert pipeline.vae is not None
        x_0 = encode_unit(pipeline.vae, to_unit(truth))
        size = (x_0.shape[-2], x_0.shape[-1])
        of_latents = torch.cat([latent_mask(mask, size) for mask in masks])
        denoiser, cond = pipeline.guided_denoiser(prompts, options), pipeline.condition(prompts)
        times = list(options.timesteps)
        states = inpaint_latents(denoiser, x_0, of_latents, times, cond, seeds=seeds, resample=self.repeats)
        *_, last = states
        return torch.cat([pipeline.pictures(x) for x in last.x.split(BATCH)])

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `inpainting_figures`, and seconds: processor time of the training."""
        figures = inpainting_figures(originals(bench), self.pictures(bench, seed))
        return {**figures, "seconds": bench.runs.seconds(self.model, seed)}


@dataclass(frozen=True)
class Given:
    """What the models are given: held-out faces with grey in the masks. There is nothing to measure."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return the faces with grey in the masks, uint8 [N, C, R, R]."""
        truth = originals(bench)
        masks = inpainting_masks(len(truth), truth.shape[-1])
        return truth.masked_fill(masks[:, None], GREY)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return no figures."""
        return {}


@dataclass(frozen=True)
class Restored:
    """The held-out faces themselves, in the masks through the first stage and back: the most that latents can show."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return the faces with what the first stage restores within the masks, uint8 [N, C, R, R]."""
        truth = originals(bench)
        vae = first_stages.load(bench.runs.model("first-stage", seed)).eval()
        restored = torch.cat([decode_pictures(vae, encode_unit(vae, to_unit(x))) for x in truth.split(BATCH)])
        return torch.where(inpainting_masks(len(truth), truth.shape[-1])[:, None], restored, truth)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `inpainting_figures`."""
        return inpainting_figures(originals(bench), self.pictures(bench, seed))


def inpainting_figures(truth: Tensor, made: Tensor) -> Figures:
    """Return what is measured of held-out faces, uint8 [N, C, R, R], that were inpainted within their masks.

    masked psnr: in dB of the pixels in the mask, mean over pictures; border contrast: see `border_ratio`; border
    error: how far it is from 1; covered values: the share of the captions' values that are right, of those that only
    pixels in the mask say.
    """
    masks = inpainting_masks(len(truth), truth.shape[-1])
    right = face_judge().right(made, values_of(faces("old").heldout, len(truth)))
    hidden = covered(factor_extents("old", len(truth)), masks)
    contrast = border_ratio(truth, made, masks)
    return {
        "masked psnr": float(decibels(4 * masked_mse(truth, made, masks)).mean()),
        "border contrast": contrast,
        "border error": abs(contrast - 1),
        "covered values": float(right[hidden].double().mean()),
    }


@dataclass(frozen=True)
class Scaled:
    """Pictures for the two parts of held-out faces' prompts, with a guidance scale for each part.

    Attributes:
        scales: those of the text (HEAD) and of the class (TORSO).
        model: variant whose model samples.
    """

    scales: tuple[float, float]
    model: str = "two"

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Sample `bench.count` pictures, uint8 [N, C, R, R]; a picture's noise is the same for all ways of one seed."""
        prompts = [f"{one.fields['head']} || {one.fields['clothes colour']}" for one in _records("old", bench.count)]
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        seeds = range(seed * bench.count, (seed + 1) * bench.count)
        options = SamplingOptions(solver=SAMPLING["solver"], steps=SAMPLING["steps"], guidance_scales=self.scales)
        return torch.cat(list(pipeline.generate(prompts, seeds, options, BATCH)))

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the shares of the values of HEAD and of TORSO that are right, and the distance of the pictures."""
        pictures = self.pictures(bench, seed)
        right = face_judge().right(pictures, values_of(faces("old").heldout, len(pictures)))
        return {
            "head": share(right, HEAD),
            "clothes colour": share(right, TORSO),
            "distance": face_judge().distance(pictures, "old"),
        }


def originals(bench: Bench) -> Tensor:
    """Return at most `bench.count` held-out faces with old hair colours, uint8 [N, C, R, R]."""
    return pixels_of(faces("old").heldout)[: bench.count]


def _records(group: Group, count: int) -> list[Record]:
    """Return the records of `count` held-out faces of a group, in turn."""
    records = faces(group).heldout.records
    return [records[i % len(records)] for i in range(count)]
