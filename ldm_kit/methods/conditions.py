"""Captions or labels of a run's pictures, and the conditioner that turns them into conditions of the denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import conditioning.factory as conditioners
from conditioning.base import Conditioner, ConditioningError, Inputs
from conditioning.bpe import report_truncated
from conditioning.factory import ConditioningConfig
from conditioning.labels import ClassConfig
from conditioning.pictures import IMAGE
from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import tensor_cache
from ldm_kit.data.batches import spread
from ldm_kit.data.caption_rows import CaptionRows
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.memory import MOST_SAMPLES, BatchSize
from ldm_kit.methods.condition_values import SeveralCaptions, several_captions
from ldm_kit.methods.condition_values import split_conditions as split_conditions
from ldm_kit.methods.dependencies import condition_dependencies
from ldm_kit.methods.image_embeddings import picture_embeddings
from ldm_kit.methods.picture_maps import PictureMaps
from ldm_kit.methods.records import Grid
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.pretrained_images import open_image_encoder
from ldm_kit.viz.grid import columns_for, enlargement, grid, pairs_grid


@dataclass(eq=False)
class Conditions:
    """The conditioner of a run, and the captions or labels of the run's pictures."""

    config: ConditioningConfig  # the config section `condition`
    data: Split  # training and held-out pictures
    train: Sequence[str | int]  # captions or labels of the training set
    heldout: Sequence[str | int]  # captions or labels of the held-out set
    several: SeveralCaptions | None = None  # all captions of the training set; None: no picture has several
    conditioner: Conditioner = field(init=False)
    note: str | None = field(init=False, default=None)  # what is new in a conditioner that was trained before
    dependencies: dict[str, str] = field(init=False)  # digest of token ids or of a frozen text encoder

    @classmethod
    def open(cls, config: ConditioningConfig, data: Split) -> "Conditions":
        """Collect captions or labels of `data`, as the config needs; raises ConditioningError if pictures lack them."""
        return cls(config, data, *split_conditions(config, data), several_captions(config, data))

    @property
    def all_train(self) -> Sequence[str | int]:
        """Captions or labels of the training set, with all captions of pictures that have several."""
        return self.train if self.several is None else self.several.values

    def batches(self, latents: Latents, inputs: Inputs, seed: int, **shown: Any) -> LatentBatches:
        """Return training batches of the pictures' latents and prepared inputs; `shown` has further arguments."""
        rows = self.caption_rows(seed)
        return LatentBatches(latents, inputs, self.all_train, seed, captions=rows, **shown)

    def caption_rows(self, seed: int) -> CaptionRows | None:
        """Return which rows of the training inputs belong to which picture; None: row i is that of picture i."""
        return None if self.several is None else CaptionRows.of(self.several.counts, seed)

    def build(self, time_width: int | None, trained: Conditioner | None = None) -> Conditioner:
        """Build the conditioner of the run, or go on with a trained one.

        Args:
            time_width: channels of the time embedding, to which a class vector is added.
            trained: a trained conditioner that fits the config; None: build a new one.

        Raises:
            ConditioningError: the pictures have no classes, or a text encoder cannot be loaded.
        """
        classes = self.data.train.classes
        if trained is not None:
            self.conditioner, self.note = trained.with_classes(classes)
            return self.conditioner
        captions = [text for text in self.all_train if isinstance(text, str)]
        self.conditioner = conditioners.build(
            self.config, captions=captions, classes=classes, time_width=time_width, open_encoder=open_image_encoder
        )
        return self.conditioner

    def prepare(self) -> tuple[Inputs, Inputs | None]:
        """Return the conditioner's inputs (such as token ids) of the training and the held-out set (None if empty).

        Inputs are tensors [N, ...] by name; of the training set, [M, ...] for M captions if pictures have several.
        Captions with too many tokens are cut to the greatest length. One log line says how many captions of both sets
        were cut. From then on the conditioner cuts captions without a log line, as the same captions may be sampled
        often.
        """
        cut: list[tuple[int, int, int]] = []
        self.conditioner.on_truncated = lambda *counts: cut.append(counts)
        counts = None if self.several is None else self.several.counts
        train, heldout = self._inputs(self.all_train, self.data.train, counts), None
        self.dependencies = condition_dependencies(self.conditioner, train)
        if self.heldout:
            heldout = self._inputs(self.heldout, self.data.heldout)
        self.conditioner.on_truncated = _ignore
        if cut:
            report_truncated(sum(row[0] for row in cut), sum(row[1] for row in cut), cut[0][2])
        self.conditioner.release()
        return train, heldout

    def _inputs(self, raw: Sequence[str | int], pictures: PictureSet, counts: Sequence[int] | None = None) -> Inputs:
        """Return the conditioner's inputs, with a row for each of `counts` captions of a picture (None: one each)."""
        inputs = prepare_conditions(self.conditioner, raw)
        if not self.conditioner.reads_pictures:
            return inputs
        embeddings = picture_embeddings(self.conditioner, pictures)
        if counts is not None:
            rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            embeddings = {name: value[rows] for name, value in embeddings.items()}
        return inputs | embeddings

    def examples(self, count: int) -> list[str | int]:
        """Return captions or labels of `count` held-out pictures, or of training pictures if fewer are held out."""
        raw = self.heldout if self.shows_heldout(count) else self.train
        return [raw[i] for i in spread(len(raw), count)]

    def shows_heldout(self, count: int) -> bool:
        """Return whether `count` pictures are held out, so that the held-out set is shown, not the training set."""
        return len(self.heldout) >= count

    def caption(self, condition: str | int) -> str:
        """Return a condition as text: a caption itself, or the class name of a label."""
        return condition if isinstance(condition, str) else self.data.train.classes[condition]

    def sample_grid(
        self, pipeline: Pipeline, prompts: Sequence[str | int], batch: BatchSize, maps: PictureMaps | None = None
    ) -> Grid:
        """Return a grid of pictures, one sampled by `pipeline` for each prompt, from seeds 0, 1, 2, ...

        Args:
            pipeline: the model.
            prompts: captions or classes.
            batch: most pictures that are sampled at once.
            maps: the run's picture condition, made of held-out pictures and shown above the samples; None: none.
        """
        given, shown = self._given(maps, len(prompts))
        pictures = torch.cat(list(pipeline.generate(prompts, range(len(prompts)), None, batch, pictures=given)))
        captions = None
        if pipeline.conditioner.null is not None and any(prompts):  # else the pictures are of nothing in particular
            captions = [self.caption(prompt) for prompt in prompts]
        scale = enlargement(pictures.shape[-1])
        if shown is not None:
            return Grid(pairs_grid(shown, pictures, 8, scale, captions))
        return Grid(grid(pictures, columns_for(len(pictures), 4), scale, captions))

    def _given(self, maps: PictureMaps | None, count: int) -> tuple[dict[str, Tensor] | None, Tensor | None]:
        """Return what a user would give of the `count` pictures of `examples`, and the same to be shown; or None."""
        if maps is None and not self.conditioner.reads_pictures:
            return None, None
        heldout = self.shows_heldout(count)
        total = len(self.heldout if heldout else self.train)
        rows = [row % total for row in (spread(total, count) if count <= total else range(count))]
        return self._example_pictures(maps, rows, heldout=heldout)

    def _example_pictures(
        self, maps: PictureMaps | None, rows: Sequence[int], *, heldout: bool
    ) -> tuple[dict[str, Tensor] | None, Tensor | None]:
        if maps is not None:
            return maps.examples(rows, heldout=heldout)
        if not self.conditioner.reads_pictures:
            return None, None
        pictures = (self.data.heldout if heldout else self.data.train).pictures(rows)
        return {IMAGE: pictures}, pictures

    def sample_like(
        self,
        pipeline: Pipeline,
        rows: Sequence[int],
        seeds: Sequence[int],
        batch: BatchSize,
        maps: PictureMaps | None = None,
    ) -> Tensor:
        """Sample a picture with the condition of each of N held-out pictures.

        Args:
            pipeline: the model, with the sampling options that are saved with it.
            rows: indices of the N pictures in the held-out set.
            seeds: N seeds.
            batch: most pictures that are sampled at once.
            maps: the run's picture condition, which is made of the held-out pictures; None: it has none.

        Returns:
            Pictures, uint8 [N, C, R, R].
        """
        given = self._example_pictures(maps, rows, heldout=True)[0]
        prompts = [self.heldout[i] for i in rows]
        return torch.cat([*pipeline.generate(prompts, seeds, None, batch, pictures=given)])


def has_captions(config: ConditioningConfig) -> bool:
    """Return whether a condition is made of captions: neither of classes nor of nothing."""
    return any(not isinstance(each, ClassConfig) and not each.reads_pictures for each in config.members)


def describe_kinds(config: ConditioningConfig) -> str:
    """Return the kinds of a config's conditions as text, such as 'text' and 'inpainting'."""
    kinds = [config.picture.kind] if config.picture is not None else []
    kinds = [*(each.kind for each in config.members), *kinds] or [config.kind]
    return " and ".join(f"'{kind}'" for kind in kinds)


def _ignore(cut: int, total: int, length: int) -> None:
    """Do nothing: the callback of a conditioner that shall not log how many captions it cut.

    It could say that `cut` of `total` captions had more than `length` tokens.
    """


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
        with tqdm(desc="captions", unit="caption", leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return conditioner.prepare(raw, progress)

    return tensor_cache.cached(cache_dir() / "states", key, encoded)


def check_prompts(conditioner: Conditioner, prompts: list[str | int]) -> None:
    """Check, before training, that the conditioner knows the prompts of the sample grid; raises UserError if not."""
    try:
        conditioner.prepare(prompts)
    except ConditioningError as error:
        raise UserError(f"sample.prompts: {error}") from None
