"""What an evaluation judges of a semantic model (DiffAE or PDAE): reconstructions and, with a prior, samples."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder.base import AutoencoderError
from autoencoder.perceptual import Perceptual, PerceptualConfig
from ldm_kit.config import UserError
from ldm_kit.data.images import to_unit
from ldm_kit.inference.evaluate_autoencoders import NO_CAPTIONS, perceptual_title
from ldm_kit.inference.evaluate_folders import NO_BITS, JudgedBatch
from ldm_kit.inference.evaluate_latents import NO_LATENTS
from ldm_kit.inference.evaluate_reference import Reference, cycled, prompts_of
from ldm_kit.inference.requests import EvaluationRequest
from ldm_kit.memory import BatchSize
from ldm_kit.models.folder import autocast_dtype, device_named
from ldm_kit.models.measures import CLIP, INCEPTION, PICTURES, PROMPTS, RANDOM
from ldm_kit.models.provenance import provenance
from ldm_kit.models.saved_sampling import PRIOR
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.models.set_measures import SETS

MOST = 256  # reference pictures that are reconstructed if no number is named
SAMPLED = (*SETS, INCEPTION, CLIP, *PROMPTS)  # measures of samples, for which a model needs a prior
NO_SAMPLES = "it is of samples, and this semantic model has no prior to sample codes from (method: prior trains one)"


@dataclass(eq=False)
class Semantics:
    """Reference pictures that a semantic model encodes and decodes, and pictures that its prior samples.

    Attributes:
        semantic: the model.
        encode_steps: DDIM steps from a picture to its noise x_T.
        decode_steps: DDIM steps back.
        model: sha256 of the model, precision, release.
        perceptual: perceptual distance that is measured; None: `missing` says why there is none.
        missing: why there is no perceptual distance.
        prior_steps: DDIM steps that decode the prior's codes.
        names: measures that are taken; what they do not need is not computed.
        kind: "semantic model".
    """

    semantic: SemanticModel
    encode_steps: int
    decode_steps: int
    model: dict[str, str]
    perceptual: Perceptual | None
    missing: str
    prior_steps: int
    names: Collection[str] = ()
    kind: str = "semantic model"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures."""
        return self.semantic.channels, self.semantic.resolution

    @property
    def takes_classes(self) -> bool:
        """Whether the prior is sampled with class names."""
        return self.takes_prompts and self.prompts == "classes"

    @property
    def takes_prompts(self) -> bool:
        """Whether the prior is sampled with captions or class names."""
        return self.prompts != "nothing"

    @property
    def prompts(self) -> str:
        """What the prior is sampled with: captions, classes or nothing."""
        prior = self.semantic.prior
        if prior is None or prior.conditioner.null is None:
            return "nothing"
        return "classes" if prior.conditioner.modality == "classes" else "captions"

    @property
    def weights_missing(self) -> bool:
        """Whether there is no perceptual distance because its weights are missing."""
        return self.perceptual is None

    @property
    def reconstruction(self) -> dict[str, int]:
        """Numbers of DDIM steps by name."""
        return {"encode_steps": self.encode_steps, "decode_steps": self.decode_steps}

    @property
    def description(self) -> dict[str, Any]:
        """The model's sha256, release and precision, steps, options of the prior, and the perceptual distance."""
        distance = None if self.perceptual is None else self.perceptual.config.model_dump(mode="json")
        more = {} if self.semantic.prior is None else {"prior": self._prior}
        return {
            "kind": self.kind,
            **self.model,
            "reconstruction": self.reconstruction,
            **more,
            "perceptual": distance,
        }

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        reasons = {**NO_LATENTS, **NO_BITS}
        if self.prompts != "captions":
            reasons |= NO_CAPTIONS
        if self.semantic.prior is None:
            reasons |= dict.fromkeys(SAMPLED, NO_SAMPLES)
        return reasons if self.perceptual is not None else reasons | dict.fromkeys(_PERCEPTUAL, self.missing)

    @property
    def titles(self) -> dict[str, str]:
        """Titles of reconstruction measures, which say how x_T was found, and by which network a distance is."""
        titles = {name: f"{measure.title}, inferred x_T" for name, measure in PICTURES.items()}
        if self.perceptual is None:
            return titles
        distance, kinds = perceptual_title(self.perceptual), zip(_PERCEPTUAL, ("inferred", "random"), strict=True)
        return titles | {name: f"{distance}, {kind} x_T" for name, kind in kinds}

    @property
    def _prior(self) -> dict[str, Any]:
        """Options of sampling from the prior: those with which its run was judged, and `prior_steps`."""
        model = self.semantic
        if model.prior is None:
            return {}
        times = model.prior.schedule_config.num_train_timesteps
        steps, scale = model.saved.of_prior(None, None, times, self.takes_prompts)
        stop = model.saved.sections.get(PRIOR, {}).get("stop", 0.0)
        return {"steps": steps, "guidance_scale": scale, "decode_steps": self.prior_steps, "stop": stop}

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return evenly spaced rows of the reference, at most 256 unless `count` says more; check their prompts.

        Raises:
            UserError: the reference has fewer than `count` pictures, or lacks prompts that the prior knows.
        """
        total = len(reference.pictures)
        if count is not None and count > total:
            raise UserError(
                f"--count is {count}, but the reference {reference.name} has {total} pictures to reconstruct"
            )
        rows = cycled(total, count or min(total, MOST))
        if self.takes_prompts:
            prompts_of(reference, rows, classes=self.takes_classes)
        return rows

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Reconstruct the pictures of the rows, and sample a picture for each if a measure needs samples."""
        model, steps = self.semantic, self.decode_steps

        @torch.no_grad()
        def batch(indices: range) -> JudgedBatch:
            own, chosen = [rows[i] for i in indices], [seeds[i] for i in indices]
            originals = reference.pictures.pictures(own)
            values: dict[str, Tensor] = {}
            if {*PICTURES, *RANDOM} & {*self.names}:
                z = model.encode(originals, size)
                if {*PICTURES} & {*self.names}:
                    x_T = model.invert(originals, z, self.encode_steps, size)
                    values |= self._compare(originals, model.decode(z, x_T, steps, size), "")
                if {*RANDOM} & {*self.names}:
                    values |= self._compare(originals, model.decode(z, None, steps, size, seeds=chosen), "_random")
            if not {*SAMPLED} & {*self.names}:
                return JudgedBatch(originals, values)
            prompts = prompts_of(reference, own, classes=self.takes_classes) if self.takes_prompts else None
            return JudgedBatch(self._sample(prompts, chosen, size), values)

        yield from size.batches(len(rows), batch)

    def _sample(self, prompts: Sequence[str] | None, seeds: Sequence[int], size: BatchSize) -> Tensor:
        """Sample codes from the prior and decode them, as the prior's run was judged: uint8 [B, C, R, R]."""
        z, stop = self.semantic.sample_z(seeds, None, prompts), self._prior["stop"]
        return self.semantic.decode(z, None, self.prior_steps, size, stop, seeds=seeds)

    def _compare(self, originals: Tensor, pictures: Tensor, ending: str) -> dict[str, Tensor]:
        """Return measures [B] of reconstructions, by name with an ending; both tensors are uint8 [B, C, R, R]."""
        device = self.semantic.device
        x, y = to_unit(originals).to(device), to_unit(pictures).to(device)
        values: dict[str, Tensor] = {}
        for name in (name for name in PICTURES if f"{name}{ending}" in self.names):
            compare = PICTURES[name].compare or self.perceptual
            if compare is not None:
                values[f"{name}{ending}"] = compare(x, y).cpu()
        return values


_PERCEPTUAL = ("perceptual", "perceptual_random")


def open_semantics(folder: Path, request: EvaluationRequest) -> Semantics:
    """Open the semantic model in a folder.

    Raises:
        UserError: it cannot be opened, or a number of steps is above the most that its noise schedule allows.
    """
    device = device_named(request.device)
    precision = autocast_dtype(request.precision, device)
    model = SemanticModel.load(folder, device, precision)
    encode_steps = _steps(model, "encode_steps", request.encode_steps)
    decode_steps = _steps(model, "decode_steps", request.decode_steps)
    perceptual, missing = None, "--measures names no perceptual distance"
    if request.chosen is None or {*_PERCEPTUAL} & {*request.chosen}:
        perceptual, missing = _open_perceptual(request.perceptual, device)
    own = model.saved.sections.get(PRIOR, {}) if request.decode_steps is None else {}
    prior_steps = min(own.get("decode_steps", decode_steps), model.decoder.most_steps)
    made_by = provenance(folder, precision)
    return Semantics(model, encode_steps, decode_steps, made_by, perceptual, missing, prior_steps)


def _steps(model: SemanticModel, name: str, given: int | None) -> int:
    if given is None:
        return model.saved.steps(name, model.decoder.most_steps)
    try:
        model.decoder.grid(given)
    except UserError as error:
        raise UserError(f"--{name} {given}: {str(error).removeprefix('steps: ')}") from None
    return given


def _open_perceptual(text: str, device: torch.device) -> tuple[Perceptual | None, str]:
    """Return the perceptual distance that --perceptual names, or why there is none; UserError: there is no such one."""
    spec, _, weights = text.partition("@")
    try:
        config = PerceptualConfig(spec=spec, net="alex", weights=weights or None)
    except ValueError:
        raise UserError(f"--perceptual is {text!r:.80}; expected lpips, or timm:NAME with @PATH or @package:PACKAGE") \
            from None  # fmt: skip
    if spec == "none":
        return None, "--perceptual is none"
    try:
        return Perceptual(config).to(device), ""
    except AutoencoderError as error:
        return None, str(error)
