"""What an evaluation judges of an autoencoder: its reconstructions of reference pictures, and its latents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel

from autoencoder import saved
from autoencoder.base import AutoencoderError, decode, encode, latent_shape
from autoencoder.perceptual import Perceptual
from ldm_kit.config import UserError
from ldm_kit.data.levels import to_levels, to_unit
from ldm_kit.data.value_range import ValueRange
from ldm_kit.inference.evaluate_folders import NO_BITS, NO_CODES, JudgedBatch
from ldm_kit.inference.evaluate_latents import few_latents, impossible_of, latents_of
from ldm_kit.inference.evaluate_reference import Reference, cycled
from ldm_kit.memory import BatchSize
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder_config import AutoencoderRun
from ldm_kit.models.folder import device_named
from ldm_kit.models.manifest import first_stage_range, open_first_stage
from ldm_kit.models.measures import CLIP, PICTURES, PROMPTS
from ldm_kit.models.provenance import manifest_hash

NO_CAPTIONS: dict[str, str] = dict.fromkeys((*PROMPTS, CLIP), "it is for models that are sampled with captions")


@dataclass(eq=False)
class Reconstructed:
    """Reference pictures that an autoencoder has encoded to posterior means and decoded."""

    vae: Any
    perceptual: Perceptual | None  # distance that is measured; None: `missing` says why there is none
    missing: str
    sha256: str | None  # of the model's manifest
    weights_missing: bool = False  # whether there is no distance because its weights are missing
    value_range: ValueRange | None = None  # what the levels of its pictures stand for; None: they have 8 bits
    kind: str = "autoencoder"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures; any side that the autoencoder's reduction divides fits."""
        return self.vae.config.in_channels, self.vae.config.sample_size

    @property
    def description(self) -> dict[str, Any]:
        """The model's sha256, and the network of the perceptual distance."""
        config = None if self.perceptual is None else self.perceptual.config.model_dump(mode="json")
        return {"kind": self.kind, "model": self.sha256, "perceptual": config}

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        reasons = {**NO_CAPTIONS, **NO_BITS, **NO_CODES, **impossible_of(self.vae)}
        return reasons if self.perceptual is not None else {**reasons, "perceptual": self.missing}

    @property
    def titles(self) -> dict[str, str]:
        """The title of the perceptual distance, with its network."""
        return {} if self.perceptual is None else {"perceptual": perceptual_title(self.perceptual)}

    @property
    def codes(self) -> int:
        """Number of codes of a VQ model; 0 of a KL model."""
        return self.vae.quantize.n_e if isinstance(self.vae, VQModel) else 0

    def few(self, reference: Reference, count: int) -> dict[str, str]:
        """Return why `count` pictures are too few for a measure of latents, by the measure's name."""
        return few_latents(self.latent_shape(reference.pictures.resolution), count)

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape (Z, h, w) of the latents of pictures of `side` pixels."""
        return latent_shape(self.vae, side, side)

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return evenly spaced rows of the reference; UserError: there are fewer than `count`."""
        total = len(reference.pictures)
        if count is not None and count > total:
            raise UserError(
                f"--count is {count}, but the reference {reference.name} has {total} pictures to reconstruct"
            )
        return cycled(total, count or total)

    def batches(
        self, reference: Reference, rows: Sequence[int], seeds: Sequence[int], size: BatchSize
    ) -> Iterator[JudgedBatch]:
        """Encode and decode the pictures of the rows, and compare each with its original."""
        measures = {name: measure.compare for name, measure in PICTURES.items() if measure.compare is not None}
        device = next(self.vae.parameters()).device

        @torch.no_grad()
        def batch(indices: range) -> JudgedBatch:
            pictures = reference.pictures.pictures([rows[i] for i in indices])
            x = to_unit(pictures).to(device)
            moments = encode(self.vae, x)
            y = decode(self.vae, moments.mean).clamp(-1, 1)
            values = {name: measure(x, y).cpu() for name, measure in measures.items()}
            if self.perceptual is not None:
                values["perceptual"] = self.perceptual(y, x).cpu()
            return JudgedBatch(to_levels(y.cpu(), pictures.dtype), values | latents_of(self.vae, moments))

        yield from size.batches(len(rows), batch)


def perceptual_title(perceptual: Perceptual) -> str:
    """Return the name of a perceptual distance in tables, with its network."""
    config = perceptual.config
    return f"LPIPS ({config.net})" if config.spec == "lpips" else f"perceptual distance ({config.spec})"


def open_autoencoder(folder: Path, run: Path | None, device_name: str | None) -> Reconstructed:
    """Open the autoencoder in a folder, and the perceptual distance of its run.

    Args:
        folder: the saved autoencoder's folder.
        run: folder of the run that it belongs to; None: there is none.
        device_name: cpu, cuda, ...; None: the accelerator if there is one.

    Raises:
        UserError, AutoencoderError: it cannot be opened, or the device does not work.
    """
    device = device_named(device_name)
    first_stage: Any = open_first_stage(folder)
    vae = first_stage.to(device)
    weights_missing = False
    perceptual, missing = None, "the autoencoder belongs to no run, whose distance it would be"
    config = None if run is None else read_run(run / "config.yaml")
    if isinstance(config, AutoencoderRun):
        missing = "the run has none (perceptual.spec is none)"
        if config.perceptual.spec != "none":
            try:
                perceptual = Perceptual(config.perceptual).to(device)
            except AutoencoderError as error:
                missing, weights_missing = str(error), True
    values = first_stage_range(folder)
    return Reconstructed(vae, perceptual, missing, manifest_hash(saved.find(folder)), weights_missing, values)
