"""Semantic codes of pictures, and the part of a semantic model's folder that they need.

Codes are computed in float32, from pictures as they are: no mirrored views (Preechakul et al. 2022, section 3.4).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conditioning.semantic import SemanticEncoder, StridedEncoder
from ldm_kit.config import UserError
from ldm_kit.data.batches import chunks
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.models import folder as parts
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.training.checkpoint import save_tensors

Encoder = SemanticEncoder | StridedEncoder
ENCODERS = {"SemanticEncoder": SemanticEncoder, "StridedEncoder": StridedEncoder}
LIBRARY = "conditioning.semantic"
STATISTICS = "statistics.safetensors"
SMALLEST = 1e-6  # deviation of a dimension in which all codes agree


@torch.no_grad()
def encode(encoder: Encoder, pictures: Tensor, batch: int = 64) -> Tensor:
    """Codes [N, D] float32 on the CPU of pictures uint8 [N, C, R, R]."""
    device = next(encoder.parameters()).device
    batches = (pictures[start : start + batch] for start in range(0, len(pictures), batch))
    found = [encoder(to_unit(part.to(device))).float().cpu() for part in batches]
    return torch.cat([torch.zeros(0, encoder.config["z_width"]), *found])


def encode_set(encoder: Encoder, pictures: PictureSet, batch: int = 64) -> Tensor:
    """Codes [N, D] float32 on the CPU of a whole set, read a batch at a time."""
    return torch.cat([encode(encoder, pictures.pictures(part)) for part in chunks(pictures, batch)])


def code_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each dimension of codes [N, D], float32 [D]; a deviation is never 0."""
    std, mean = torch.std_mean(z.double(), dim=0, correction=0)
    return mean.float(), std.clamp_min(SMALLEST).float()


def save_statistics(folder: Path, mean: Tensor, std: Tensor) -> None:
    """Write `folder`/statistics.safetensors."""
    save_tensors({"mean": mean, "std": std}, folder / STATISTICS)


def load_statistics(folder: Path, width: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [width] of codes; raises UserError where the file is missing, broken or of another width."""
    try:
        found = load_file(folder / STATISTICS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / STATISTICS}: {' '.join(str(error).split()):.200}") from None
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != {"mean": (width,), "std": (width,)}:
        raise UserError(f"{folder / STATISTICS} holds {shapes}; expected mean and std of {width} numbers each")
    return found["mean"].float(), found["std"].float()


def read_index(folder: Path) -> dict[str, object]:
    """The index of a semantic model's folder; raises UserError for a folder of anything else."""
    index = parts.read_json(folder / parts.INDEX, f"{folder} is no saved model: its {parts.INDEX}")
    if (kind := index.get("_class_name")) != parts.SEMANTIC:
        raise UserError(
            f"{folder} holds a {kind}, which has no semantic codes; expected what `method: diffae`, `pdae` or `prior` "
            "trains"
        )
    return index


def open_encoder(folder: Path, device: torch.device | str) -> Encoder:
    """Return the frozen encoder of a semantic model's folder, prepared for a device but not yet on it.

    Raises:
        UserError: another kind of model, or an encoder that is missing, broken or unknown.
    """
    kind = entry(folder, read_index(folder), "encoder", dict.fromkeys(ENCODERS, LIBRARY))
    return prepare_loaded(parts.component(folder, "encoder", kind, ENCODERS), device)


def entry(folder: Path, index: dict[str, object], name: str, known: dict[str, str]) -> str:
    """The class of a part that an index names, out of known classes (each with its library); raises UserError."""
    said = index.get(name)
    for kind, library in known.items():
        if said == [library, kind]:
            return kind
    raise UserError(f"{folder}: {name} is {said!r:.80}, expected {' or '.join(known)}; no other code is run")
