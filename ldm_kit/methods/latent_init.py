"""Start latent diffusion from a trained U-Net and, where it is trained and of the same kind, its conditioner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import conditioning.factory as conditioners
from autoencoder import saved
from autoencoder.base import affine
from conditioning.base import Conditioner, ConditioningError
from conditioning.labels import ClassConditioner
from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.methods.latent_build import build_network, expected_network, maps_of
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.methods.lora import check_same_base, check_same_condition, check_targets
from ldm_kit.methods.start import from_structure, locate_start, resumed_note, structure_of, trainable
from ldm_kit.models.compatibility import check_same_kind, describe_noise, same_noise
from ldm_kit.models.components import UNET, component_classes, load_first_stage
from ldm_kit.models.folder import ModelFolder, Noise
from ldm_kit.models.growth import check_growth, grow
from ldm_kit.models.hub import MODEL
from ldm_kit.models.lora import base_digest
from ldm_kit.models.picture_condition import read_picture_condition


@dataclass(frozen=True, eq=False)
class LatentStart:
    """What a run starts from: a trained U-Net and conditioner, or the structure of both for a resumed run."""

    where: str  # the model as messages call it, such as "init runs/ldm"
    unet: Any  # the trained U-Net; of a resumed run, a network like the run's, with random weights
    conditioner: Conditioner | None  # the conditioner to go on with; None: the run builds a new one
    kind: type[Conditioner]  # class of the trained model's conditioner
    sha256: str  # digest of the trained weights
    frozen_encoder: str | None = None  # what identifies the trained model's frozen text encoder; None: it has none
    latents: str = "pixels"  # what the trained model denoises, see `latents_of`
    resumed: bool = False

    @classmethod
    def open(cls, config: LatentRun, init: str) -> "LatentStart":
        """Open the model that `init` names, and check that it fits the config.

        Raises:
            UserError: the model cannot be opened, or its noise schedule, prediction type, variance or networks do not
                fit the config.
            AutoencoderError, ConditioningError: the config's autoencoder or text encoder cannot be found.
        """
        path, where = locate_start(init, MODEL)
        folder = ModelFolder.open(path)
        classes = component_classes(folder)
        _check_noise(where, folder.noise(), config)
        unet = folder.component("unet", classes["unet"], UNET, whole=True)
        kind = conditioners.kind_in(folder.path)
        conditioner = _conditioner(where, folder, kind, config)
        sha256 = base_digest({"unet": unet, **({} if conditioner is None else conditioner.trainable)})
        first = next((name for name in ("vae", "vqvae") if name in classes), None)
        vae = None if first is None else load_first_stage(folder, first, classes[first], "cpu")
        encoder = kind.frozen_encoder_in(folder.path)
        check_same_kind(where, read_picture_condition(folder), config.condition.picture)
        start = cls(where, unet, conditioner, kind, sha256, encoder, latents_of(vae))
        start._check_early(config)
        check_targets(config.lora, where, unet, conditioner)
        return start

    @classmethod
    def reopen(cls, config: LatentRun, structure: Mapping[str, Any], checkpoint: Path) -> "LatentStart":
        """Build the U-Net and conditioner of a resumed run from what `structure` returned, with random weights.

        Raises:
            UserError: the structure is invalid.
            ConditioningError: that of the conditioner is.
        """
        unet, kind = (
            from_structure(structure.get("unet"), UNET, checkpoint),
            conditioners.of_config(config.condition.prompts),
        )
        trained = structure.get("conditioner")
        conditioner = kind.from_structure(trained) if trained else None
        trainable(*filter(None, (unet, conditioner)))
        return cls("init", unet, conditioner, kind, str(structure.get("sha256")), resumed=True)

    def _check_early(self, config: LatentRun) -> None:
        """Check, without the pictures, that the U-Net can be grown to the one that the config describes."""
        prompts, width = config.condition.prompts, config.unet.time_width
        kind = conditioners.of_config(prompts)
        if self.conditioner is None and (kind is not self.kind or kind.components):
            check_same_condition(config.lora, self.where, f"is of another condition, {self.kind.modality}")
        if (widths := kind.widths(prompts, width)) is None:
            return  # a conditioner of another package; `network` checks it
        channels = _latent_channels(config)
        if channels is None:
            channels = self.unet.config["out_channels"] // (1 + (config.variance == "learned_range"))
        pixels = getattr(config.data, "channels", channels)
        expected = expected_network(config, (channels, config.unet.factor), *widths, pixels=pixels)
        maps = maps_of(config, channels, pixels)
        check_growth(self.where, self.unet, expected, learned=config.variance == "learned_range", maps=maps)
        check_same_base(config.lora, self.where, self.unet, expected)

    def network(
        self, config: LatentRun, shape: Sequence[int], conditioner: Conditioner, pixels: int
    ) -> tuple[Any, list[str]]:
        """Return the U-Net of a run, with the trained weights, and sentences for the log on what is new in it.

        Args:
            config: the run's config.
            shape: channels, height and width of a latent.
            conditioner: the run's conditioner.
            pixels: channels of a picture.

        Raises:
            UserError: the trained U-Net does not fit the config.
        """
        if self.resumed:
            return self.unet, [resumed_note(self.sha256)]
        expected = expected_network(config, shape, conditioner.width, conditioner.vector_width, pixels=pixels)
        learned, maps = config.variance == "learned_range", maps_of(config, shape[0], pixels)
        unet, notes = grow(self.where, self.unet, expected, learned=learned, maps=maps)
        new = self._new_condition(conditioner) if self.conditioner is None else None
        check_same_condition(config.lora, self.where, new)
        if unet.config.get("class_embed_type") == "identity" and self.unet.class_embedding is None:
            notes.append(f"{self.where}: {_zero_vectors(conditioner)}")
        if new is not None:
            notes.append(f"{self.where} {new}")
        return unet, [f"started from {self.where.removeprefix('init ')}, sha256 {self.sha256}", *notes]

    def _new_condition(self, new: Conditioner) -> str | None:
        """Return what the log says of a conditioner that was built anew; None: it encodes as the trained model's did.

        At equal width nothing else shows that the attention meets states that it was not trained on.
        """
        if new.modality != self.kind.modality:
            return f"was trained on {self.kind.modality}; the condition of this run, {new.modality}, is new"
        if type(new) is self.kind and not new.trainable and new.frozen_encoder == self.frozen_encoder:
            return None
        drawn = ", with random weights" if new.trainable else ""
        return f"was trained with an encoder of {new.modality}, and that of this run is another one{drawn}"

    def structure(self, unet: Any, conditioner: Conditioner) -> dict[str, Any]:
        """Return what a resumed run builds its U-Net and conditioner from, as JSON values."""
        return {
            "sha256": self.sha256,
            "unet": structure_of(unet),
            "conditioner": {} if self.conditioner is None else conditioner.structure,
        }


def _check_noise(where: str, noise: Noise, config: LatentRun) -> None:
    """Check that the trained model has the run's noise schedule, prediction type, and variance, if that is learned."""
    if noise.prediction_type != config.prediction_type:
        raise UserError(
            f"{where} predicts {noise.prediction_type}, but this run's prediction_type is {config.prediction_type}; "
            "expected the same"
        )
    if not same_noise(noise.schedule, config.schedule):
        raise UserError(
            f"{where} was trained under {describe_noise(noise.schedule)}, but this run's is "
            f"{describe_noise(config.schedule)}; expected the same"
        )
    if noise.variance == "learned_range" and config.variance != "learned_range":
        raise UserError(f"{where} learns its variance, but variance is {config.variance}; expected learned_range")


def _conditioner(where: str, folder: ModelFolder, kind: type[Conditioner], config: LatentRun) -> Conditioner | None:
    """Return the trained conditioner that the run can go on with, ready to be trained; None: there is none."""
    if not kind.components or kind is not conditioners.of_config(config.condition.prompts):
        return None
    conditioner = folder.conditioner(whole=True)
    try:
        fits = conditioner.fits(config.condition.prompts)
    except ConditioningError as error:
        raise UserError(f"{where}: {error}") from None
    if not fits:
        return None
    trainable(conditioner)
    return conditioner


def _latent_channels(config: LatentRun) -> int | None:
    """Return the channels of what the run denoises, as far as configs say them; None: unknown.

    Raises:
        AutoencoderError: there is no autoencoder in the folder that the config names.
    """
    if not config.autoencoder:
        return getattr(config.data, "channels", None)
    path = saved.find(Path(config.autoencoder)) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        channels = values.get("vq_embed_dim") or values.get("latent_channels")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return channels if type(channels) is int else None


def open_network(
    config: LatentRun, shape: Sequence[int], conditioner: Conditioner, start: LatentStart | None, pixels: int
) -> tuple[Any, list[str]]:
    """Return a run's U-Net, and sentences for the log on what it started from.

    Args:
        config: the run's config.
        shape: channels, height and width of a latent.
        conditioner: the run's conditioner.
        start: what the run starts from; None: random weights.
        pixels: channels of a picture.

    Raises:
        UserError: the trained U-Net does not fit the config.
    """
    if start is not None:
        return start.network(config, shape, conditioner, pixels)
    return build_network(config, shape, conditioner.width, conditioner.vector_width, pixels=pixels), []


def _zero_vectors(conditioner: Conditioner) -> str:
    """Zero the vectors of classes, in place, for a U-Net that took none; return a sentence for the log."""
    if isinstance(conditioner, ClassConditioner):
        torch.nn.init.zeros_(conditioner.class_encoder.embedding.weight)
    return "it took no classes; the vectors of all classes begin at 0"


def autoencoder_note(start: LatentStart, first_stage: Any) -> list[str]:
    """Return a sentence for the log if the trained model has another autoencoder than `first_stage`, the run's."""
    latents = latents_of(first_stage)
    if start.resumed or latents == start.latents:
        return []
    return [
        f"note: {start.where} was trained on {start.latents}, and this run is on {latents}; "
        "where these differ, so do the first predictions"
    ]


def latents_of(vae: Any) -> str:
    """Return what a model denoises, as text: pixels (None), or an autoencoder's latents, by weights and normalisation.

    Autoencoders of equal weights may differ in their normalisation alone.
    """
    if vae is None:
        return "pixels"
    shift, scale = ([*map(float, value.flatten())] for value in affine(vae))
    return f"latents of an autoencoder of sha256 {weights_digest(vae)[:12]}, shift {shift} and scale {scale}"
