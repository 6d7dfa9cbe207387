"""Putting stage 2 together: first stage, cached latents, conditioner, U-Net and the task that trains them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, VQModel

import conditioning.factory as conditioners
from conditioning.base import Inputs
from ldm_kit.data.batches import spread
from ldm_kit.data.images import Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.methods.base import Collectives
from ldm_kit.methods.first_stage import FirstStage
from ldm_kit.methods.latent import Latent, LatentRun, raw_conditions
from ldm_kit.methods.prepared import prepared
from ldm_kit.nets.execution import configure_network
from ldm_kit.nets.unet import build_unet


@dataclass(eq=False)
class LatentStage:
    """All that stage 2 trains with."""

    settings: LatentRun
    data: Split
    vae: AutoencoderKL | VQModel | None
    task: Latent
    latents: Latents
    batches: LatentBatches
    heldout: tuple[Latents, Inputs] | None

    @classmethod
    def open(
        cls, settings: LatentRun, data: Split, device: torch.device, ranks: Collectives | None = None
    ) -> "LatentStage":
        """Build everything that a config names.

        Raises:
            UserError: a stale cache, latents that are not normalised, classes without labels.
            AutoencoderError, ConditioningError: parts that cannot be had.
        """
        raw = raw_conditions(settings.condition, data.train)
        first = FirstStage.open(settings, data.train, device)
        latents = first.latents(data.train, "train")
        captions = [text for text in raw if isinstance(text, str)]
        conditioner = conditioners.build(
            settings.condition, captions=captions, classes=data.train.classes, time_width=settings.unet.time_width
        )
        channels, side, _ = latents.shape
        unet = build_unet(
            settings.unet,
            sample_size=side,
            channels=channels,
            out_channels=2 * channels if settings.variance == "learned_range" else channels,
            cross_width=conditioner.width,
            vector_width=conditioner.vector_width,
        )
        task = Latent(settings, unet, conditioner, ranks)
        for net in task.modules.values():
            configure_network(net, device, settings.train)
        batches = LatentBatches(latents, prepared(conditioner, raw), raw, settings.seed)
        heldout = None
        if len(data.heldout):
            inputs = prepared(conditioner, raw_conditions(settings.condition, data.heldout))
            heldout = (first.latents(data.heldout, "heldout"), inputs)
        conditioner.release()
        return cls(settings, data, first.vae, task, latents, batches, heldout)

    def opening(self) -> str:
        """One paragraph on what is about to be trained."""
        settings, unet = self.settings, self.task.module.unet
        trained = sum(p.numel() for p in self.task.module.parameters() if p.requires_grad)
        return (
            f"{len(self.data.train)} training pictures as latents {tuple(self.latents.shape)}, "
            f"{len(self.data.heldout)} held out; {type(unet).__name__} and conditioner '{settings.condition.kind}' "
            f"with {trained / 1e6:.1f} M trained parameters; {settings.train.steps} steps of "
            f"{settings.train.batch_size} (global batch), lr {settings.optim.lr:g}"
        )


def prompts_of(settings: LatentRun, data: Split, count: int) -> Sequence[str | int]:
    """What a run's grids draw: the config's prompts, else captions or classes of held-out pictures."""
    if settings.sample.prompts:
        return settings.sample.prompts
    pictures = data.heldout if len(data.heldout) >= count else data.train
    raw = raw_conditions(settings.condition, pictures)
    return [raw[i] for i in spread(len(raw), count)]
