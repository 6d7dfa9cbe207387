"""Semantic codes of pictures: encode pictures, normalise codes, and open the encoder of a saved semantic model.

Codes are computed in float32 and from the pictures as they are, never mirrored (Preechakul et al. 2022, section 3.4).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conditioning.semantic import SemanticEncoder, StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.data.peers import divided, summed
from ldm_kit.diffusion.finite import check_finite
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.folder import SEMANTIC, ModelFolder
from ldm_kit.training.checkpoint import save_tensors

Encoder = SemanticEncoder | StridedEncoder
ENCODERS = {"SemanticEncoder": SemanticEncoder, "StridedEncoder": StridedEncoder}
LIBRARY = "conditioning.semantic"
STATISTICS = "statistics.safetensors"
PRIOR = "prior"  # sub-folder of a prior over the codes, or over image embeddings
SMALLEST = 1e-6  # lower limit of a standard deviation, for a dimension in which all codes are equal


class CodeStatistics(NamedTuple):
    """Statistics of the training pictures' codes: `mean` and standard deviation `std` per dimension, float32 [D]."""

    mean: Tensor
    std: Tensor

    def normalise(self, z: Tensor) -> Tensor:
        """Return (z - mean) / std of codes z [N, D]: training pictures' codes get mean 0 and standard deviation 1."""
        return (z - self.mean) / self.std

    def denormalise(self, z: Tensor) -> Tensor:
        """Return z std + mean: turn normalised codes z [N, D] back into codes on the encoder's scale."""
        return z * self.std + self.mean

    def save(self, folder: Path) -> None:
        """Write the statistics to statistics.safetensors in `folder`."""
        save_tensors({"mean": self.mean, "std": self.std}, folder / STATISTICS)

    @classmethod
    def load(cls, folder: Path, width: int) -> "CodeStatistics":
        """Read the statistics from statistics.safetensors in `folder`.

        Args:
            folder: a semantic model's folder.
            width: D that the statistics must have.

        Raises:
            UserError: the file is missing or broken, its tensors are not [width], a number in it is not finite, or a
                deviation is not above 0.
        """
        try:
            tensors = load_file(folder / STATISTICS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {folder / STATISTICS}: {' '.join(str(error).split()):.200}") from None
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != {"mean": (width,), "std": (width,)}:
            raise UserError(f"{folder / STATISTICS} holds {shapes}; expected mean and std of {width} numbers each")
        mean, std = tensors["mean"].float(), tensors["std"].float()
        if not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
            raise UserError(f"{folder / STATISTICS} holds NaN, infinity or a deviation of 0 or less; expected neither")
        return cls(mean, std)


def code_statistics(z: Tensor) -> CodeStatistics:
    """Return mean and standard deviation of codes z [N, D], computed in float64; a deviation is at least 1e-6."""
    std, mean = torch.std_mean(z.double(), dim=0, correction=0)
    return CodeStatistics(mean.float(), std.clamp_min(SMALLEST).float())


def encode(encoder: Encoder, pictures: Tensor, batch: Batch = 64) -> Tensor:
    """Encode pictures to semantic codes, at most `batch` pictures at once.

    Args:
        encoder: the semantic encoder, on any device.
        pictures: uint8 [N, C, R, R].
        batch: most pictures at once; halved when memory runs out.

    Returns:
        Codes, not normalised, float32 [N, D] on the CPU.

    Raises:
        NonFiniteError: the encoder gives NaN or infinity.
    """
    codes = BatchSize.of(batch).map(pictures, lambda some: _encode(encoder, some))
    return torch.cat([torch.zeros(0, encoder.config["z_width"]), *codes])


def encode_set(encoder: Encoder, pictures: PictureSet, batch: Batch = 64) -> Tensor:
    """Encode N pictures by `encoder`, read and encoded at most `batch` at once; each process of a run encodes a part.

    Returns:
        Codes, not normalised, float32 [N, D] on the CPU.
    """
    return divided(len(pictures), partial(_encode_some, encoder, pictures, BatchSize.of(batch)))


def set_statistics(encoder: Encoder, pictures: PictureSet, batch: Batch = 64) -> CodeStatistics:
    """Return mean and standard deviation of the codes of a picture set by `encoder`, see `code_statistics`.

    Each process of a run encodes a part of the set; they exchange sums, not codes. `batch` is the most pictures that
    are read and encoded at once.
    """
    codes: list[Tensor] = []  # [of this process's part], float64

    def total(own: Sequence[int]) -> Tensor:
        codes.append(_encode_some(encoder, pictures, BatchSize.of(batch), own).double())
        return codes[0].sum(0)

    mean = summed(len(pictures), total) / len(pictures)
    variance = summed(len(pictures), lambda own: (codes[0] - mean).square().sum(0)) / len(pictures)
    return CodeStatistics(mean.float(), variance.sqrt().clamp_min(SMALLEST).float())


def _encode_some(encoder: Encoder, pictures: PictureSet, size: BatchSize, indices: Sequence[int]) -> Tensor:
    parts = size.batches(
        len(indices), lambda some: _encode(encoder, pictures.pictures(indices[some.start : some.stop]))
    )
    return torch.cat([torch.zeros(0, encoder.config["z_width"]), *parts])


@torch.no_grad()
def _encode(encoder: Encoder, pictures: Tensor) -> Tensor:
    device = next(encoder.parameters()).device
    with torch.autocast(device.type, enabled=False):  # also while a run is evaluated in another precision
        return check_finite("the semantic encoder", encoder(to_unit(pictures.to(device))).float().cpu())


def open_semantic(path: Path | str) -> ModelFolder:
    """Open the folder of a semantic model (a DiffAE or PDAE): `path` itself, or the finished model in a run's folder.

    Raises:
        UserError: the folder does not exist or holds another kind of model.
    """
    folder = ModelFolder.open(path)
    if folder.class_name != SEMANTIC:
        if PRIOR in folder:
            raise UserError(f"{folder} holds a decoder of image embeddings with its prior; sample.py samples it")
        raise UserError(
            f"{folder} holds a {folder.class_name}, which has no semantic codes; expected what `method: diffae`, "
            "`pdae` or `prior` trains"
        )
    return folder


def open_encoder(folder: ModelFolder, device: torch.device | str = "cpu") -> Encoder:
    """Load the encoder of a semantic model's folder to a device, in evaluation mode and without gradients.

    Raises:
        UserError: the encoder is missing or broken, or its class is not one of `ENCODERS`.
    """
    kind = folder.entry("encoder", dict.fromkeys(ENCODERS, LIBRARY))
    return folder.component("encoder", kind, ENCODERS, device)
