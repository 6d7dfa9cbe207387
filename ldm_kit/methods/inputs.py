"""Training inputs of the diffusion methods: latents of a frozen autoencoder, conditions, and noised batches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor
from tqdm import tqdm

import conditioning.factory as conditioners
from autoencoder.base import encode, reduction
from conditioning.base import Conditioner, Inputs, drop
from conditioning.factory import ConditioningConfig
from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import latents as latent_cache
from ldm_kit.data import tensor_cache
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet, Record, Split, digest
from ldm_kit.data.latents import Latents, weights_digest
from ldm_kit.data.records import compact, labels_of, texts_of
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.memory import MOST_SAMPLES, BatchSize
from ldm_kit.methods.dependencies import condition_dependencies
from ldm_kit.methods.run_config import NoisedRun
from ldm_kit.models.manifest import open_first_stage
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
            UserError: the autoencoder does not fit the pictures, or its files have changed since they were saved.
            AutoencoderError: the autoencoder cannot be opened.
        """
        vae: Any = None
        if config.autoencoder:
            vae = prepare_loaded(open_first_stage(config.autoencoder), device, config.train)
        vae = None if vae is None else vae.to(device)
        _check_autoencoder(vae, pictures, config)
        return cls(config, vae, device)

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
            UserError: latents that are not normalised, or a latent cache of other pictures or another autoencoder.
        """
        flip = self.config.flip and name == "train"
        if self.vae is None:
            most = None if name == "train" else self.config.log.max_heldout
            return latent_cache.pixels(pictures, flip=flip, most=most)
        vae = self.vae

        @cache
        def check_once() -> None:  # before the first picture is encoded; a complete cache may be read-only
            check_writable(folder)

        def moments(x: Tensor) -> tuple[Tensor, Tensor]:
            check_once()
            return encode(vae, x.to(self.device))

        key = latent_cache.fingerprint(vae, pictures, flip, self._settings())
        chosen = self.config.latents
        folder = Path(chosen) / name if chosen else cache_dir() / "latents" / key[:24]
        latents = latent_cache.cached(folder, pictures, moments, key, flip=flip, batch=self.batch_size)
        if name == "train":
            _check_normalised(latents, self.config)
        return latents


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
    if pictures.resolution % factor:
        raise UserError(
            f"data.resolution {pictures.resolution} is not a multiple of {factor}, by which the autoencoder in "
            f"{settings.autoencoder} reduces"
        )


def _check_normalised(latents: Latents, settings: NoisedRun) -> None:
    mean, logvar = latents.mean[:4096].float(), latents.logvar[:4096].float()
    std = (mean.var() + logvar.exp().mean()).sqrt().item()
    if not 0.4 < std < 2.5:
        raise UserError(
            f"the latents of {settings.autoencoder} have deviation {std:.3g}; expected about 1. Train it with "
            "train_ae.py, which folds the normalisation in, or set its scaling_factor"
        )


@dataclass(eq=False)
class Conditions:
    """The conditioner of a run, and the captions or labels of the run's pictures."""

    config: ConditioningConfig  # the config section `condition`
    data: Split  # training and held-out pictures
    train: Sequence[str | int]  # captions or labels of the training set
    heldout: Sequence[str | int]  # captions or labels of the held-out set
    conditioner: Conditioner = field(init=False)
    dependencies: dict[str, str] = field(init=False)  # digest of token ids or of a frozen text encoder

    @classmethod
    def open(cls, config: ConditioningConfig, data: Split) -> "Conditions":
        """Collect captions or labels of `data`, as the config needs; raises ConditioningError if pictures lack them."""
        return cls(config, data, *split_conditions(config, data))

    def build(self, time_width: int | None) -> Conditioner:
        """Build the conditioner; `time_width`: channels of the time embedding, to which a class vector is added.

        Raises:
            ConditioningError: the pictures have no classes, or a text encoder cannot be loaded.
        """
        captions = [text for text in self.train if isinstance(text, str)]
        classes = self.data.train.classes
        self.conditioner = conditioners.build(self.config, captions=captions, classes=classes, time_width=time_width)
        return self.conditioner

    def prepare(self) -> tuple[Inputs, Inputs | None]:
        """Return the conditioner's inputs, [N, ...] by name, of training and held-out set (None: no such set)."""
        train, heldout = prepare_conditions(self.conditioner, self.train), None
        self.dependencies = condition_dependencies(self.conditioner, train)
        if self.heldout:
            heldout = prepare_conditions(self.conditioner, self.heldout)
        self.conditioner.release()
        return train, heldout

    def examples(self, count: int) -> list[str | int]:
        """Return captions or labels of `count` held-out pictures, or of training pictures if fewer are held out."""
        raw = self.heldout if len(self.heldout) >= count else self.train
        return [raw[i] for i in spread(len(raw), count)]

    def caption(self, condition: str | int) -> str:
        """Return a condition as text: a caption itself, or the class name of a label."""
        return condition if isinstance(condition, str) else self.data.train.classes[condition]


def split_conditions(config: ConditioningConfig, data: Split) -> tuple[Sequence[str | int], Sequence[str | int]]:
    """Return the captions or labels, whichever `config` needs, of the training set and of the held-out set of `data`.

    The training set, and both sets together, must have what the condition needs. The held-out set alone need not: its
    few pictures may all happen to lack a caption.

    Raises:
        ConditioningError: class conditioning over pictures without labels, or text conditioning where no training
            picture has a caption.
    """
    train, heldout = data.train.records, data.heldout.records
    _raw_values(config, train)
    values = _raw_values(config, train, heldout)
    return compact(values[: len(train)]), compact(values[len(train) :])


def _raw_values(config: ConditioningConfig, *records: Sequence[Record]) -> list[str | int]:
    texts, labels = chain.from_iterable(map(texts_of, records)), chain.from_iterable(map(labels_of, records))
    return config.raw_values([*texts], [*labels])


def prepare_conditions(conditioner: Conditioner, raw: Sequence[str | int]) -> Inputs:
    """Return the conditioner's inputs, tensors [N, ...] by name, for N captions or labels `raw`.

    Hidden states of a frozen text encoder are cached on disk.

    Raises:
        ConditioningError: a class is unknown, or a text encoder cannot be loaded.
    """
    if conditioner.cache_key is None:
        return conditioner.prepare(raw)
    key = tensor_cache.key_of(*conditioner.cache_key, list(raw))
    conditioner.in_batches = BatchSize(MOST_SAMPLES).batches

    def encoded() -> Inputs:
        check_writable(cache_dir())
        with tqdm(desc="captions", unit="caption", leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return conditioner.prepare(raw, progress)

    return tensor_cache.cached(cache_dir() / "states", key, encoded)


def drop_mask(seed: int, position: Tensor, probability: float) -> Tensor:
    """Draw, with `probability`, which samples train on the null condition: bool [B] (Ho & Salimans 2022, alg. 1).

    `seed` and a sample's position [B] in the run fix the draw.
    """
    return (rng.uniform(seed, "drop", exact(position)) < probability).to(position.device)


def drop_conditions(batch: Mapping[str, Any], null: Inputs, seed: int, probability: float) -> Inputs:
    """Return a batch's conditioner inputs, those of `null` for samples of `drop_mask(seed, position, probability)`."""
    return drop(batch["inputs"], null, drop_mask(seed, batch["position"], probability))


class NoisedBatch(NamedTuple):
    """A batch of latents (or pixels) with Z channels, each noised to its own timestep."""

    x_0: Tensor  # clean data [B, Z, h, w]
    eps: Tensor  # noise, in the shape of x_0
    x_t: Tensor  # noised data, in the shape of x_0
    t: Tensor  # timesteps [B]


def noise_batch(batch: Mapping[str, Any], t: Tensor, seed: int, schedule: Schedule) -> NoisedBatch:
    """Sample a batch's latents from their posteriors (`mean`, `logvar` [B, Z, h, w]); noise them to timesteps t [B].

    `seed` and a sample's `position` [B] in the run fix both draws, whichever samples are in the batch.
    """
    position, mean = batch["position"], batch["mean"]
    draw = rng.normal(seed, "posterior", position, mean.shape[1:])
    x_0 = mean + torch.exp(batch["logvar"] / 2) * draw
    eps = rng.normal(seed, "noise", position, mean.shape[1:])
    return NoisedBatch(x_0, eps, schedule.add_noise(x_0, eps, t), t)
