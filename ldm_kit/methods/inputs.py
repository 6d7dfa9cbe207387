"""Training inputs of the diffusion methods: latents of a frozen autoencoder, dropped conditions, noised batches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from autoencoder.base import encode, reduction
from conditioning.base import Conditioner, ConditionerConfig, Inputs, drop
from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import latents as latent_cache
from ldm_kit.data.alpha import area_weights
from ldm_kit.data.bucket_latents import joined_latents
from ldm_kit.data.buckets import BucketView, bucket_views, buckets_of
from ldm_kit.data.images import PictureSet, digest
from ldm_kit.data.latents import Latents, weights_digest
from ldm_kit.data.value_range import check_same_range
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.memory import BatchSize
from ldm_kit.methods.run_config import NoisedRun
from ldm_kit.models.manifest import first_stage_range, open_first_stage
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.paths import check_writable


@dataclass(eq=False)
class FirstStage:
    """The frozen autoencoder of a run (none if the run diffuses pixels), and the cache of its latents."""

    config: NoisedRun  # the run's config
    vae: AutoencoderKL | VQModel | None  # None: pixels are diffused, as if they were latents
    device: torch.device  # device that the autoencoder encodes on
    batch_size: BatchSize = field(init=False)  # pictures that are encoded at once

    def __post_init__(self) -> None:
        self.batch_size = BatchSize.for_pictures(self.config.train.eval_batch, self.config.data.resolution)

    @classmethod
    def open(cls, config: NoisedRun, pictures: PictureSet, device: torch.device) -> "FirstStage":
        """Open the autoencoder that a config names on `device`, and check that it fits the pictures.

        Raises:
            UserError: channels or size of the pictures do not fit the autoencoder, or its files have changed.
            AutoencoderError: the autoencoder cannot be opened.
        """
        vae: Any = None
        if config.autoencoder:
            vae = prepare_loaded(open_first_stage(config.autoencoder), device, config.train)
        vae = None if vae is None else vae.to(device)
        _check_autoencoder(vae, pictures, config)
        return cls(config, vae, device)

    @property
    def reduction(self) -> int:
        """Ratio of a picture's side to its latent's; 1 without an autoencoder."""
        return 1 if self.vae is None else reduction(self.vae)

    @property
    def dependencies(self) -> dict[str, str]:
        """Digest of the autoencoder's settings and weights, by the config key `autoencoder`; empty without one."""
        return {} if self.vae is None else {"autoencoder": digest([self._settings(), weights_digest(self.vae)])}

    def _settings(self) -> str:
        config: Any = self.vae and self.vae.config
        settings = {key: value for key, value in config.items() if not key.startswith("_")}  # no versions, no paths
        return json.dumps(settings, sort_keys=True)

    def latents(self, pictures: PictureSet, name: str) -> Latents:
        """Return the latents of a picture set, from the cache; missing ones are encoded first.

        Args:
            pictures: the set.
            name: "train", which adds mirrored pictures if `config.flip` is set, or "heldout".

        Raises:
            UserError: the training latents have a standard deviation below 0.4 or above 2.5, where 1 is expected; or
                the folder of the cache holds latents of other pictures or another autoencoder.
        """
        if not (views := bucket_views(pictures)):
            latents = [self._latents(pictures, name)]
        else:
            latents = [self._latents(view.pictures, name, view) for view in views]
        if name == "train" and self.vae is not None:
            _check_normalised(latents, self.config)
        sizes = getattr(self.config, "size_condition", False)
        return joined_latents(latents, views, pictures, sizes=sizes) if views else latents[0]

    def _latents(self, pictures: PictureSet, name: str, bucket: BucketView | None = None) -> Latents:
        """Return the latents of pictures of one shape, which are all, or those of a bucket."""
        flip = self.config.flip and name == "train"
        if self.vae is None:
            most = None if name == "train" else self.config.log.max_heldout
            latents = latent_cache.pixels(pictures, flip=flip, most=most, size=None if bucket is None else bucket.size)
            return _weighted(latents, pictures)
        vae = self.vae

        @cache
        def check_once() -> None:  # before the first picture is encoded; a complete cache may be read-only
            check_writable(folder)

        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            check_once()
            return encode(vae, x.to(self.device))

        key = latent_cache.fingerprint(vae, pictures, flip, self._settings())
        chosen = self.config.latents
        own = name if bucket is None else f"{name}/{bucket.name}"
        folder = Path(chosen) / own if chosen else cache_dir() / "latents" / key[:24]
        latents = latent_cache.cached(folder, pictures, moments, key, flip=flip, batch=self.batch_size)
        return _weighted(latents, pictures)


def _weighted(latents: Latents, pictures: PictureSet) -> Latents:
    """Return the latents of a picture set with the weights that alpha gives their elements, if it is a mask."""
    _, height, width = latents.shape
    return replace(latents, weights=area_weights(pictures, (height, width)))


def check_buckets(config: NoisedRun, pictures: PictureSet, reduction: int, unet: int) -> list[str]:
    """Check that an autoencoder and a U-Net can reduce pictures in buckets; return notes on the buckets for the log.

    Args:
        config: the run's config.
        pictures: the training pictures; if they are in no buckets, there are no notes.
        reduction: ratio of a picture's side to its latent's.
        unet: ratio of a latent's side to that in the middle of the U-Net.

    Raises:
        UserError: the buckets' step is no multiple of both together.
    """
    buckets, settings = buckets_of(pictures), getattr(config.data, "buckets", None)
    if buckets is None or settings is None:
        return []
    if settings.step % (reduction * unet):
        raise UserError(
            f"data.buckets.step is {settings.step}, but the autoencoder reduces by {reduction} and the U-Net by {unet}"
            f"; expected a multiple of {reduction * unet}"
        )
    few = [f"{w} x {h}" for h, w, count in buckets.counts() if 0 < count < config.train.batch_size]
    note = f"warning: batches of {config.train.batch_size} hold a picture several times where a bucket has fewer: "
    return [buckets.report(), *([note + ", ".join(few)] if few else [])]


def _check_autoencoder(vae: AutoencoderKL | VQModel | None, pictures: PictureSet, settings: NoisedRun) -> None:
    if vae is None:
        return
    config: Any = vae.config
    factor = reduction(vae)
    if config.in_channels != pictures.channels:
        raise UserError(
            f"the autoencoder in {settings.autoencoder} is for pictures of {config.in_channels} channels, "
            f"these have {pictures.channels}"
        )
    if settings.autoencoder and (values := first_stage_range(settings.autoencoder)) is not None:
        check_same_range(f"the autoencoder in {settings.autoencoder}", values, pictures)
    if pictures.resolution % factor:
        raise UserError(
            f"data.resolution {pictures.resolution} is not a multiple of {factor}, by which the autoencoder in "
            f"{settings.autoencoder} reduces"
        )


def _check_normalised(parts: Sequence[Latents], settings: NoisedRun) -> None:
    most = max(1, 4096 // len(parts))
    mean, logvar = (
        torch.cat([getattr(latents, name)[:most].float().flatten() for latents in parts]) for name in ("mean", "logvar")
    )
    std = (mean.var() + logvar.exp().mean()).sqrt().item()
    if not 0.4 < std < 2.5:
        raise UserError(
            f"the latents of {settings.autoencoder} have deviation {std:.3g}; expected about 1. Train it with "
            "train_ae.py, which folds the normalisation in, or set its scaling_factor"
        )


def drop_mask(seed: int, position: Tensor, probability: float, name: str = "drop") -> Tensor:
    """Draw, with `probability`, which samples train on the null condition: bool [B] (Ho & Salimans 2022, alg. 1).

    `seed`, a sample's position [B], its number among all samples of the run, and `name` determine the draw.
    """
    return (rng.uniform(seed, name, exact(position)) < probability).to(position.device)


def drop_parts(
    conditioner: Conditioner, batch: Mapping[str, Any], null: Inputs, seed: int, shares: "DropoutShares"
) -> Inputs:
    """Return a batch's condition inputs, in which all conditions, or some alone, are replaced at random by the null's.

    Args:
        conditioner: the run's conditioner.
        batch: has the condition's `inputs` by name, [B, ...] each, and each sample's `position` [B] in the run.
        null: inputs of the null condition, by name.
        seed: seed that, with the position, determines which conditions of a sample are replaced.
        shares: shares of samples whose conditions are replaced.
    """
    position = batch["position"]
    dropped = drop_mask(seed, position, shares.all)[:, None]
    own = [drop_mask(seed, position, share, f"drop {index}") for index, share in enumerate(shares.each)]
    return conditioner.drop(batch["inputs"], null, dropped | torch.stack(own, dim=1) if own else dropped)


class DropoutShares(NamedTuple):
    """Shares of the training samples that are trained without conditions."""

    all: float  # without any condition
    each: Sequence[float] = ()  # of the others, without each condition alone; drawn independently

    @classmethod
    def of(cls, config: ConditionerConfig, dropout: float) -> "DropoutShares":
        """Return the shares of a config, where `dropout` is the run's condition_dropout."""
        members = config.members
        default = dropout if len(members) > 1 else 0.0
        return cls(dropout, [default if each.dropout is None else each.dropout for each in members])


def drop_conditions(batch: Mapping[str, Any], null: Inputs, seed: int, probability: float) -> Inputs:
    """Return a batch's condition inputs (such as token ids), replaced at random by those of the null condition.

    Args:
        batch: has the condition's `inputs` by name, [B, ...] each, and each sample's `position` [B] in the run.
        null: inputs of the null condition, by name.
        seed: seed that, with the position, determines whether a sample's inputs are replaced.
        probability: probability that they are replaced.
    """
    return drop(batch["inputs"], null, drop_mask(seed, batch["position"], probability))


class NoisedBatch(NamedTuple):
    """A batch of latents (or pixels) with Z channels, each noised to its own timestep."""

    x_0: Tensor  # clean data [B, Z, h, w]
    eps: Tensor  # noise, in the shape of x_0
    x_t: Tensor  # noised data, in the shape of x_0
    t: Tensor  # timesteps [B]


def noise_batch(batch: Mapping[str, Any], t: Tensor, seed: int, schedule: Schedule) -> NoisedBatch:
    """Sample a batch's latents from their posteriors (`mean`, `logvar` [B, Z, h, w]); noise them to timesteps t [B].

    `seed` and a sample's `position` [B], its number among all samples of the run, determine both draws, whichever
    samples are in the batch. `schedule` is the noise schedule.
    """
    position, mean = batch["position"], batch["mean"]
    draw = rng.normal(seed, "posterior", position, mean.shape[1:])
    x_0 = mean + torch.exp(batch["logvar"] / 2) * draw
    eps = rng.normal(seed, "noise", position, mean.shape[1:])
    return NoisedBatch(x_0, eps, schedule.add_noise(x_0, eps, t), t)
