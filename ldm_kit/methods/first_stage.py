"""What every method of stage 2 starts from: a frozen autoencoder (or none: pixels) and its cached latents."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder import saved
from autoencoder.base import encode, reduction
from ldm_kit.config import UserError
from ldm_kit.data import latents as latent_cache
from ldm_kit.data.images import PictureSet
from ldm_kit.data.latents import Latents
from ldm_kit.methods.base import NoisedRun
from ldm_kit.nets.execution import prepare_loaded


@dataclass(eq=False)
class FirstStage:
    """Pictures to latents, computed once and kept on disk."""

    settings: NoisedRun
    vae: AutoencoderKL | VQModel | None  # None: pictures are their own latents
    device: torch.device

    @classmethod
    def open(cls, settings: NoisedRun, pictures: PictureSet, device: torch.device) -> "FirstStage":
        """The autoencoder that a config names.

        Raises:
            UserError: it does not fit the pictures.
            AutoencoderError: it cannot be opened.
        """
        vae = prepare_loaded(saved.load(settings.autoencoder), device) if settings.autoencoder else None
        vae = vae if vae is None else vae.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]  (diffusers decorates it)
        _refuse_misfit(vae, pictures, settings)
        return cls(settings, vae, device)

    def latents(self, pictures: PictureSet, part: str) -> Latents:
        """Of the set `part` ("train": with mirrored views where the run flips; "heldout", ...).

        Raises:
            UserError: a stale cache, or latents that are not normalised.
        """
        flip = self.settings.flip and part == "train"
        if self.vae is None:
            return latent_cache.pixels(pictures, flip=flip)
        frozen = self.vae

        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            return encode(frozen, x.to(self.device))

        about: Any = frozen.config
        known = {name: value for name, value in about.items() if not name.startswith("_")}  # versions and paths differ
        key = latent_cache.fingerprint(frozen, pictures, flip, json.dumps(known, sort_keys=True))
        chosen = self.settings.latents
        root = Path(chosen) / part if chosen else cache_root() / "latents" / key[:24]
        latents = latent_cache.cached(root, pictures, moments, key, flip=flip)
        if part == "train":
            _refuse_unscaled(latents, self.settings)
        return latents


def cache_root() -> Path:
    """Where caches live: $LDM_KIT_CACHE, else ~/.cache/ldm_kit."""
    return Path(os.environ.get("LDM_KIT_CACHE") or Path.home() / ".cache" / "ldm_kit")


def _refuse_misfit(vae: AutoencoderKL | VQModel | None, pictures: PictureSet, settings: NoisedRun) -> None:
    if vae is None:
        return
    config: Any = vae.config
    factor = reduction(vae)
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


def _refuse_unscaled(latents: Latents, settings: NoisedRun) -> None:
    mean, logvar = latents.mean[:4096].float(), latents.logvar[:4096].float()
    std = (mean.var() + logvar.exp().mean()).sqrt().item()
    if not 0.4 < std < 2.5:
        raise UserError(
            f"the latents of {settings.autoencoder} have deviation {std:.3g}; expected about 1. Train it with "
            "train_ae.py, which folds the normalisation in, or set its scaling_factor"
        )
