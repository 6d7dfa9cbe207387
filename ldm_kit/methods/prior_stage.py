"""Putting a prior's training together: codes of the training set, computed once, conditions, network and task."""

from dataclasses import dataclass

import torch
from torch import Tensor

import conditioning.factory as conditioners
from conditioning.base import Conditioner, Inputs
from conditioning.none import NoConfig
from ldm_kit.config import UserError
from ldm_kit.data import tensor_cache
from ldm_kit.data.batches import spread
from ldm_kit.data.code_batches import CodeBatches
from ldm_kit.data.images import PictureSet, Split, digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.methods.first_stage import cache_root
from ldm_kit.methods.latent import raw_conditions
from ldm_kit.methods.prepared import prepared
from ldm_kit.methods.prior import PriorRun, PriorTask
from ldm_kit.models import codes
from ldm_kit.nets.mlp_skip import SkipMLP


@dataclass(eq=False)
class PriorStage:
    """All that a prior trains with."""

    settings: PriorRun
    data: Split
    task: PriorTask
    mean: Tensor  # [D], over the training set
    std: Tensor
    batches: CodeBatches
    heldout: tuple[Tensor, Inputs] | None  # normalised codes [N, D], and their conditions

    @classmethod
    def open(cls, settings: PriorRun, data: Split, device: torch.device) -> "PriorStage":
        """Encode the pictures and build what the config names.

        Raises:
            UserError: no semantic model, pictures that it cannot encode, or without the labels or captions asked for.
            ConditioningError: no classes, or a text encoder that cannot be had.
        """
        encoder = codes.open_encoder(codes.open_semantic(settings.model), device)
        _refuse_misfit(encoder, data.train, settings.model)
        known = weights_digest(encoder)
        z, raw = _codes(encoder, data.train, known), raw_conditions(settings.condition, data.train)
        mean, std = codes.code_statistics(z)
        width = z.shape[1]
        captions = [text for text in raw if isinstance(text, str)]
        conditioner = conditioners.build(
            settings.condition, captions=captions, classes=data.train.classes, time_width=width
        )
        mlp = SkipMLP(z_width=width, condition_width=conditioner.pooled_width, **settings.net.model_dump())
        batches = CodeBatches(
            (z - mean) / std, prepared(conditioner, raw), digest([known, data.train.fingerprint, *map(str, raw)])
        )
        heldout = None
        if len(data.heldout):
            inputs = prepared(conditioner, raw_conditions(settings.condition, data.heldout))
            heldout = ((_codes(encoder, data.heldout, known) - mean) / std, inputs)
        conditioner.release()
        return cls(settings, data, PriorTask(settings, mlp, conditioner), mean, std, batches, heldout)

    @property
    def conditioner(self) -> Conditioner:
        """Of classes, of text, or none."""
        return self.task.module.conditioner

    def told(self, count: int) -> list[str] | None:
        """Captions, or names of classes, of held-out pictures (or else of training ones) for a run's grids."""
        condition = self.settings.condition
        if isinstance(condition, NoConfig):
            return None
        pictures = self.data.heldout if len(self.data.heldout) >= count else self.data.train
        raw, names = raw_conditions(condition, pictures), self.data.train.classes
        chosen = [raw[i] for i in spread(len(raw), count)]
        return [one if isinstance(one, str) else names[one] for one in chosen]

    def opening(self) -> str:
        """One paragraph on what is about to be trained."""
        settings = self.settings
        trained = sum(p.numel() for p in self.task.module.parameters() if p.requires_grad)
        return (
            f"codes of {len(self.batches)} training pictures, {len(self.mean)} numbers each, by the encoder of "
            f"{settings.model}; {len(self.data.heldout)} held out; prior of condition '{settings.condition.kind}' with "
            f"{trained / 1e6:.1f} M parameters; {settings.train.steps} steps of {settings.train.batch_size} "
            f"(global batch), lr {settings.optim.lr:g}"
        )


def _codes(encoder: codes.Encoder, pictures: PictureSet, known: str) -> Tensor:
    """Codes [N, D] float32, kept on disk."""
    key = tensor_cache.key_of("codes", known, pictures.fingerprint)
    return tensor_cache.cached(cache_root() / "codes", key, lambda: {"z": codes.encode_set(encoder, pictures)})["z"]


def _refuse_misfit(encoder: codes.Encoder, pictures: PictureSet, model: str) -> None:
    about = encoder.config
    side = about.get("resolution", pictures.resolution)
    if (about["channels"], side) != (pictures.channels, pictures.resolution):
        raise UserError(
            f"the encoder of {model} is for pictures of {about['channels']} channels and side {side}, but those of "
            f"data have {pictures.channels} and {pictures.resolution}"
        )
