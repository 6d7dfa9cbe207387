"""Putting stage 2 together: first stage, cached latents, conditioner, U-Net and the task that trains them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor
from tqdm import tqdm

import conditioning.factory as conditioners
from autoencoder import saved
from autoencoder.base import encode
from conditioning.base import Conditioner, Inputs
from conditioning.pretrained import PretrainedConditioner
from ldm_kit.config import UserError
from ldm_kit.data import latents as latent_cache
from ldm_kit.data import states
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.methods.latent import Latent, LatentRun, raw_conditions
from ldm_kit.nets.build import build_unet
from ldm_kit.nets.layout import choose_attention


@dataclass(eq=False)
class Stage:
    """All that stage 2 trains with."""

    settings: LatentRun
    data: Split
    vae: AutoencoderKL | VQModel | None
    task: Latent
    latents: Latents
    batches: LatentBatches
    heldout: tuple[Latents, Inputs] | None

    @classmethod
    def open(cls, settings: LatentRun, data: Split, device: torch.device) -> "Stage":
        """Build everything that a config names.

        Raises:
            UserError: a stale cache, latents that are not normalised, classes without labels.
            AutoencoderError, ConditioningError: parts that cannot be had.
        """
        raw = raw_conditions(settings.condition, data.train)
        vae = saved.load(settings.autoencoder).to(device) if settings.autoencoder else None  # pyright: ignore[reportArgumentType]  (diffusers decorates it)
        _refuse_misfit(vae, data.train, settings)
        latents = _latents(settings, vae, data.train, device, "train")
        _refuse_unscaled(latents, settings)
        captions = [text for text in raw if isinstance(text, str)]
        conditioner = conditioners.build(settings.condition, captions=captions, classes=data.train.classes)
        channels, side, _ = latents.shape
        unet = build_unet(settings.unet, sample_size=side, channels=channels, cross_width=conditioner.width)
        choose_attention(unet, device, "auto")
        task = Latent(settings, unet, conditioner)
        batches = LatentBatches(latents, _inputs(conditioner, raw), raw, settings.seed)
        heldout = None
        if len(data.heldout):
            inputs = _inputs(conditioner, raw_conditions(settings.condition, data.heldout))
            heldout = (_latents(settings, vae, data.heldout, device, "heldout"), inputs)
        conditioner.release()
        return cls(settings, data, vae, task, latents, batches, heldout)

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


def cache_root() -> Path:
    """Where caches live: $LDM_KIT_CACHE, else ~/.cache/ldm_kit."""
    return Path(os.environ.get("LDM_KIT_CACHE") or Path.home() / ".cache" / "ldm_kit")


def _inputs(conditioner: Conditioner, raw: Sequence[str | int]) -> Inputs:
    """What the conditioner prepares; the states of a frozen encoder are kept on disk."""
    if not isinstance(conditioner, PretrainedConditioner):
        return conditioner.prepare(raw)
    key = states.key_of(conditioner.config.model_dump(), conditioner.source.sha256(), list(raw))

    def encoded() -> Inputs:
        with tqdm(desc="captions", unit="caption", leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return conditioner.prepare(raw, progress)

    return states.cached(cache_root() / "states", key, encoded)


def _latents(
    settings: LatentRun, vae: AutoencoderKL | VQModel | None, pictures: PictureSet, device: torch.device, part: str
) -> Latents:
    flip = settings.flip and part == "train"
    if vae is None:
        return latent_cache.pixels(pictures, flip=flip)
    frozen = vae

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        return encode(frozen, x.to(device))

    about: Any = vae.config
    known = {name: value for name, value in about.items() if not name.startswith("_")}  # versions and paths may differ
    key = latent_cache.fingerprint(vae, pictures, flip, json.dumps(known, sort_keys=True))
    root = Path(settings.latents) / part if settings.latents else cache_root() / "latents" / key[:24]
    return latent_cache.cached(root, pictures, moments, key, flip=flip)


def _refuse_misfit(vae: AutoencoderKL | VQModel | None, pictures: PictureSet, settings: LatentRun) -> None:
    if vae is None:
        return
    config: Any = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    if config.in_channels != pictures.channels:
        raise UserError(
            f"the autoencoder in {settings.autoencoder} is for pictures of {config.in_channels} channels, "
            f"these have {pictures.channels}"
        )
    if pictures.resolution % factor:
        raise UserError(
            f"data.resolution {pictures.resolution} is not a multiple of {factor}, by which the autoencoder in "
            f"{settings.autoencoder} reduces"
        )


def _refuse_unscaled(latents: Latents, settings: LatentRun) -> None:
    if settings.autoencoder is None:
        return
    mean, logvar = latents.mean[:4096].float(), latents.logvar[:4096].float()
    std = (mean.var() + logvar.exp().mean()).sqrt().item()
    if not 0.4 < std < 2.5:
        raise UserError(
            f"the latents of {settings.autoencoder} have deviation {std:.3g}; expected about 1. Train it with "
            "train_ae.py, which folds the normalisation in, or set its scaling_factor"
        )


def prompts_of(settings: LatentRun, data: Split, count: int) -> Sequence[str | int]:
    """What a run's grids draw: the config's prompts, else captions or classes of held-out pictures."""
    if settings.sample.prompts:
        return settings.sample.prompts
    pictures = data.heldout if len(data.heldout) >= count else data.train
    raw = raw_conditions(settings.condition, pictures)
    return [raw[i] for i in spread(len(raw), count)]
