"""Semantic codes of pictures, their statistics, and the part of a semantic model's folder that they need.

Codes are computed in float32, from pictures as they are: no mirrored views (Preechakul et al. 2022, section 3.4).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conditioning.semantic import SemanticEncoder, StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion.finite import check_finite
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.folder import SEMANTIC, ModelFolder
from ldm_kit.training.checkpoint import save_tensors

Encoder = SemanticEncoder | StridedEncoder
ENCODERS = {"SemanticEncoder": SemanticEncoder, "StridedEncoder": StridedEncoder}
LIBRARY = "conditioning.semantic"
STATISTICS = "statistics.safetensors"
SMALLEST = 1e-6  # deviation of a dimension in which all codes agree


class CodeStatistics(NamedTuple):
    """Mean and deviation of each dimension of the training set's codes: mean, std float32 [D]."""

    mean: Tensor
    std: Tensor

    def normalise(self, z: Tensor) -> Tensor:
        """Return codes [N, D] with mean 0 and deviation 1 over the training set."""
        return (z - self.mean) / self.std

    def denormalise(self, z: Tensor) -> Tensor:
        """Return codes [N, D] as the encoder gives them, from normalised ones."""
        return z * self.std + self.mean

    def save(self, folder: Path) -> None:
        """Write `folder`/statistics.safetensors."""
        save_tensors({"mean": self.mean, "std": self.std}, folder / STATISTICS)

    @classmethod
    def load(cls, folder: Path, width: int) -> "CodeStatistics":
        """Read `folder`/statistics.safetensors.

        Raises:
            UserError: the file is missing, broken, or of codes of another width than `width`.
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
    """Measure mean and deviation of codes z [N, D], in float64; a deviation is never 0."""
    std, mean = torch.std_mean(z.double(), dim=0, correction=0)
    return CodeStatistics(mean.float(), std.clamp_min(SMALLEST).float())


def encode(encoder: Encoder, pictures: Tensor, batch: Batch = 64) -> Tensor:
    """Encode pictures uint8 [N, C, R, R], a batch at a time, to codes [N, D] float32; raises NonFiniteError."""
    codes = BatchSize.of(batch).map(pictures, lambda some: _encode(encoder, some))
    return torch.cat([torch.zeros(0, encoder.config["z_width"]), *codes])


def encode_set(encoder: Encoder, pictures: PictureSet, batch: Batch = 64) -> Tensor:
    """Encode a whole set, read a batch at a time, to codes [N, D] float32 on the CPU."""
    size = BatchSize.of(batch)
    codes = size.batches(len(pictures), lambda indices: _encode(encoder, pictures.pictures(indices)))
    return torch.cat([torch.zeros(0, encoder.config["z_width"]), *codes])


@torch.no_grad()
def _encode(encoder: Encoder, pictures: Tensor) -> Tensor:
    device = next(encoder.parameters()).device
    with torch.autocast(device.type, enabled=False):  # also while a run is evaluated in another precision
        return check_finite("the semantic encoder", encoder(to_unit(pictures.to(device))).float().cpu())


def open_semantic(path: Path | str) -> ModelFolder:
    """Open a semantic model's folder, or the finished one in a run's folder.

    Raises:
        UserError: no such folder, or a model of another kind.
    """
    folder = ModelFolder.open(path)
    if folder.class_name != SEMANTIC:
        raise UserError(
            f"{folder} holds a {folder.class_name}, which has no semantic codes; expected what `method: diffae`, "
            "`pdae` or `prior` trains"
        )
    return folder


def open_encoder(folder: ModelFolder, device: torch.device | str = "cpu") -> Encoder:
    """Load the frozen encoder of a semantic model's folder on a device.

    Raises:
        UserError: an encoder that is missing, broken or unknown.
    """
    kind = folder.entry("encoder", dict.fromkeys(ENCODERS, LIBRARY))
    return folder.component("encoder", kind, ENCODERS, device)
