"""The picture condition of a run: what it makes of the training and of the held-out pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conditioning.base import Inputs
from conditioning.condition import ConditioningError
from conditioning.pictures import LEVEL, MASK, Frame, PictureCondition
from ldm_kit.config import UserError
from ldm_kit.data import latents as latent_cache
from ldm_kit.data.columns import column_pictures
from ldm_kit.data.images import PictureSet, Split, to_bytes
from ldm_kit.data.tensor_store import TensorTable
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.rng import PositionDraws
from ldm_kit.methods.inputs import FirstStage
from ldm_kit.methods.latent_network import CONCAT, NOISE_LEVEL, SIZES
from ldm_kit.models.picture_condition import frame_of

SHOWN_SEED = 0  # seed of the masks and noise levels of pictures that are shown or measured


@dataclass(eq=False)
class PictureMaps:
    """The picture condition of a run, and the pictures that it is made from."""

    condition: PictureCondition
    train: TensorTable  # pictures in [-1, 1], [N, V, C, R, R] with V views: those of training, or of the column
    heldout: TensorTable | None  # the same of the held-out set, with one view; None: nothing is held out
    fingerprint: str  # hash that identifies the pictures
    first_stage: FirstStage
    frame: Frame = field(init=False)  # size of the maps, and the autoencoder; set by `fitted`

    @classmethod
    def open(cls, condition: PictureCondition | None, data: Split, first_stage: FirstStage) -> "PictureMaps | None":
        """Open the pictures of a picture condition; None: the run has none.

        Args:
            condition: the picture condition of the run's config.
            data: the run's pictures.
            first_stage: the run's autoencoder.

        Raises:
            UserError: the condition does not fit the size of the pictures, or a picture lacks that of the column.
        """
        if condition is None:
            return None
        resolution, config = data.train.resolution, first_stage.config
        try:
            condition.check_size(resolution, resolution // first_stage.reduction)
        except ConditioningError as error:
            raise UserError(str(error)) from None
        sets = [_source(condition, pictures, config.data) for pictures in (data.train, data.heldout)]
        train = latent_cache.pixels(sets[0], flip=config.flip)
        heldout = latent_cache.pixels(sets[1], most=config.log.max_heldout).mean if len(sets[1]) else None
        return cls(condition, train.mean, heldout, train.fingerprint, first_stage)

    def fitted(self, shape: Sequence[int]) -> dict[str, Any]:
        """Set the size of the maps to that of latents of a shape (channels, height, width).

        Returns:
            Arguments of `LatentBatches` for the training set.
        """
        self.frame = frame_of(self.first_stage.vae, (shape[1], shape[2]), self.first_stage.device)
        return {"pictures": self.train, "key": self.fingerprint}

    @torch.no_grad()
    def inputs(self, batch: Mapping[str, Any], seed: int) -> Inputs:
        """Return the maps of a batch, and the noise levels if there are any, as inputs of `LatentDiffusion`.

        `seed` and a sample's position determine its mask, noise level and noise.

        Args:
            batch: has `picture` [B, C, R, R] in [-1, 1], and each sample's `position` [B] in the run.
            seed: the run's seed, or that of held-out noise.
        """
        draws = PositionDraws(seed, exact(batch["position"]))
        given = self.condition.example(batch["picture"], draws)
        condition = self.condition.condition(given, self.frame, draws)
        tensors = {CONCAT: condition.concat, NOISE_LEVEL: condition.level}
        return {name: value for name, value in tensors.items() if value is not None}

    def examples(self, rows: Sequence[int], *, heldout: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Return what a user would give for some pictures, and the same as pictures to be looked at.

        Args:
            rows: indices of N pictures.
            heldout: whether in the held-out set, not the training set.

        Returns:
            Arguments of `Pipeline.generate` by name, and pictures uint8 [N, C, R, R].
        """
        table = self.heldout if heldout and self.heldout is not None else self.train
        index = torch.tensor([*rows])
        pictures = table[index, torch.zeros_like(index)]
        given = self.condition.example(pictures, PositionDraws(SHOWN_SEED, index))
        given.pop(LEVEL, None)  # that of sampling
        shown = to_bytes(self.condition.shown(given, pictures.shape[-1]))
        return {name: value[:, 0] >= 0.5 if name == MASK else to_bytes(value) for name, value in given.items()}, shown


def inputs_of(maps: PictureMaps | None, batch: Mapping[str, Any], seed: int) -> Inputs:
    """Return the maps of a batch's pictures, and their sizes, as inputs of the network; {} if there are neither."""
    sizes = {SIZES: batch["sizes"]} if "sizes" in batch else {}
    return sizes if maps is None else {**sizes, **maps.inputs(batch, seed)}


def _source(condition: PictureCondition, pictures: PictureSet, config: Any) -> PictureSet:
    """Return the pictures from which the condition is made: those of the column, or the pictures themselves."""
    if not condition.reads_column or not len(pictures):
        return pictures
    return column_pictures(pictures, condition.model_dump()["column"], config)
