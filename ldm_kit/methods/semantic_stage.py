"""Putting the training of codes together: pictures and their latents, encoder, decoder, and the task."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, VQModel

from conditioning.semantic import build_semantic
from ldm_kit.config import UserError
from ldm_kit.data.code_batches import PicturedLatents
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import Latents
from ldm_kit.methods.diffae import DiffAERun, diffae_task
from ldm_kit.methods.first_stage import FirstStage
from ldm_kit.methods.pdae import PDAERun, pdae_task
from ldm_kit.methods.semantic import SemanticTask
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.codes import Encoder
from ldm_kit.nets.execution import configure_network
from ldm_kit.nets.semantic_unet import SemanticUNet, build_semantic_unet
from ldm_kit.nets.shift_unet import ShiftUNet

Decoder = SemanticUNet | ShiftUNet


@dataclass(eq=False)
class SemanticStage:
    """All that DiffAE or PDAE trains with."""

    settings: DiffAERun | PDAERun
    data: Split
    vae: AutoencoderKL | VQModel | None
    base: BaseModel | None  # PDAE's
    encoder: Encoder
    decoder: Decoder
    task: SemanticTask
    latents: Latents
    batches: PicturedLatents
    heldout: tuple[Latents, PictureSet] | None

    @classmethod
    def open(cls, settings: DiffAERun | PDAERun, data: Split, device: torch.device) -> "SemanticStage":
        """Build everything that a config names.

        Raises:
            UserError: a stale cache, latents that are not normalised, a base that does not fit or cannot be one.
            AutoencoderError, ConditioningError: parts that cannot be had.
        """
        base = None
        if isinstance(settings, PDAERun):
            base = BaseModel.open(settings.base, device, revision=settings.base_revision)
            _refuse_misfit(base, data.train, settings)
            first = FirstStage(settings.model_copy(update={"autoencoder": settings.base}), base.vae, device)
        else:
            first = FirstStage.open(settings, data.train, device)
        pictures = data.train
        latents = first.latents(pictures, "train")
        encoder = build_semantic(settings.encoder, resolution=pictures.resolution, channels=pictures.channels)
        decoder, task = _decoding(settings, encoder, latents, base)
        for net in task.modules.values():
            configure_network(net, device, settings.train)
        batches = PicturedLatents(latents, pictures, settings.seed)
        heldout = (first.latents(data.heldout, "heldout"), data.heldout) if len(data.heldout) else None
        return cls(settings, data, first.vae, base, encoder, decoder, task, latents, batches, heldout)

    def opening(self) -> str:
        """One paragraph on what is about to be trained."""
        settings = self.settings
        trained = sum(p.numel() for p in self.task.module.parameters() if p.requires_grad)
        base = "" if self.base is None else f" on the frozen {type(self.base.unet).__name__} of {self.base.name}"
        return (
            f"{len(self.data.train)} training pictures as latents {tuple(self.latents.shape)}, "
            f"{len(self.data.heldout)} held out; codes of {settings.encoder.z_width} numbers, encoder and "
            f"{type(self.decoder).__name__} with {trained / 1e6:.1f} M trained parameters{base}; "
            f"{settings.train.steps} steps of {settings.train.batch_size} (global batch), lr {settings.optim.lr:g}"
        )


def _decoding(
    settings: DiffAERun | PDAERun, encoder: Encoder, latents: Latents, base: BaseModel | None
) -> tuple[Decoder, SemanticTask]:
    width = settings.encoder.z_width
    if isinstance(settings, PDAERun):
        assert base is not None
        shift = ShiftUNet(base=base.unet, z_width=width, copied=settings.copied, learned_range=base.learned_range)
        return shift, pdae_task(settings, encoder, shift, base)
    channels, side, _ = latents.shape
    unet = build_semantic_unet(settings.unet, sample_size=side, channels=channels, z_width=width)
    return unet, diffae_task(settings, encoder, unet)


def _refuse_misfit(base: BaseModel, pictures: PictureSet, settings: PDAERun) -> None:
    given = (pictures.channels, pictures.resolution, pictures.resolution)
    if given != base.shape:
        raise UserError(
            f"the frozen model in {settings.base} draws pictures of {_sized(base.shape)}, but those of data are of "
            f"{_sized(given)}; expected the same"
        )
    most, total = (
        max(settings.sample.encode_steps, settings.sample.decode_steps),
        base.schedule_config.num_train_timesteps,
    )
    if most >= total:
        raise UserError(f"sample asks for {most} steps, but the frozen model in {settings.base} has {total} times")


def _sized(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
