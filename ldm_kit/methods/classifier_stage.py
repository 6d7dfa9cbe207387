"""Putting a noisy classifier's training together: first stage, cached latents, labels, network and task."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.methods.classifier import ClassifierRun, Classifying
from ldm_kit.methods.first_stage import FirstStage
from ldm_kit.nets.execution import configure_network
from ldm_kit.nets.half_unet import build_half_unet


@dataclass(eq=False)
class ClassifierStage:
    """All that a noisy classifier trains with."""

    settings: ClassifierRun
    data: Split
    vae: AutoencoderKL | VQModel | None
    task: Classifying
    latents: Latents
    batches: LatentBatches
    heldout: tuple[Latents, Tensor] | None  # with labels [N]

    @classmethod
    def open(cls, settings: ClassifierRun, data: Split, device: torch.device) -> "ClassifierStage":
        """Build everything that a config names.

        Raises:
            UserError: no labels, fewer than two classes, a stale cache, latents that are not normalised.
            AutoencoderError: the autoencoder cannot be had.
        """
        labels = labels_of(data.train)
        first = FirstStage.open(settings, data.train, device)
        latents = first.latents(data.train, "train")
        channels, side, _ = latents.shape
        classes = data.train.classes
        net = build_half_unet(settings.net, sample_size=side, channels=channels, classes=classes)
        configure_network(net, device, settings.train)
        names: list[str | int] = [classes[int(label)] for label in labels]
        batches = LatentBatches(latents, {"label": labels}, names, settings.seed)
        heldout = None
        if len(data.heldout):
            heldout = (first.latents(data.heldout, "heldout"), labels_of(data.heldout))
        return cls(settings, data, first.vae, Classifying(settings, net), latents, batches, heldout)

    def opening(self) -> str:
        """One paragraph on what is about to be trained."""
        settings, net = self.settings, self.task.net
        return (
            f"{len(self.data.train)} training pictures of {len(self.data.train.classes)} classes as latents "
            f"{tuple(self.latents.shape)}, {len(self.data.heldout)} held out; noisy classifier with "
            f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters; {settings.train.steps} steps of "
            f"{settings.train.batch_size} (global batch), lr {settings.optim.lr:g}"
        )


def labels_of(pictures: PictureSet) -> Tensor:
    """The class [N] of every picture.

    Raises:
        UserError: a picture has none, or there are fewer than two classes.
    """
    labels = [record.label for record in pictures.records]
    if unlabelled := [record.name for record in pictures.records if record.label is None]:
        raise UserError(
            f"a classifier needs a label for every picture, but {len(unlabelled)} of {len(labels)} have none, the "
            f"first being {unlabelled[0]}; expected one sub-folder per class, or labels in metadata.jsonl"
        )
    if len(pictures.classes) < 2:
        raise UserError(
            f"a classifier needs at least two classes, but all {len(labels)} pictures are of {pictures.classes[0]!r}"
        )
    return torch.tensor(labels)
