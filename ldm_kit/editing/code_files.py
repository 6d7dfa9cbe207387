"""Codes of a folder in one safetensors file: z, x_T if wished, the pictures' names, and a checksum over all."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet
from ldm_kit.models.protocol import Semantic, encoder_digest
from ldm_kit.viz.png import write_atomic

FORMAT = "ldm_kit codes 1"


@dataclass(frozen=True, eq=False)
class CodeFile:
    """Codes of N named pictures, of one model."""

    names: tuple[str, ...]
    z: Tensor  # [N, D], as the encoder gives them
    x_T: Tensor | None  # [N, Z, h, w]
    key: str  # of the model, `seam.key_of`

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        numbers = {"z": self.z} if self.x_T is None else {"z": self.z, "x_T": self.x_T}
        numbers = {name: value.float().contiguous() for name, value in numbers.items()}
        names = json.dumps(self.names, ensure_ascii=False)
        about = {"format": FORMAT, "names": names, "key": self.key, "sha256": _checksum(numbers, names, self.key)}
        write_atomic(path, safetensors.torch.save(numbers, about))

    @classmethod
    def load(cls, path: Path, key: str) -> "CodeFile":
        """Read what `save` wrote with the model of that key.

        Raises:
            UserError: no such file, none of ours, damaged, or of another model.
        """
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; expected codes that edit.py encode wrote") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as codes ({str(error).splitlines()[0]:.100})") from None
        if about.get("format") != FORMAT:
            raise UserError(f"{path} holds no codes; expected a file that edit.py encode wrote")
        if about["sha256"] != _checksum(numbers, about["names"], about["key"]):
            raise UserError(f"{path} is damaged: its checksum does not fit; encode the folder again")
        if about["key"] != key:
            raise UserError(f"{path} holds codes of another model; encode the folder again with this one")
        return cls(tuple(json.loads(about["names"])), numbers["z"], numbers.get("x_T"), about["key"])


def _checksum(numbers: dict[str, Tensor], names: str, key: str) -> str:
    state = sha256(f"{key}\n{names}".encode("utf-8", "surrogatepass"))
    for name, value in sorted(numbers.items()):
        state.update(f"{name} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return state.hexdigest()


def encode(model: Semantic, pictures: PictureSet, steps: int | None = 250, batch: int = 32) -> CodeFile:
    """Codes of a set of pictures; `steps` of inversion give x_T, None leaves it out."""
    z: list[Tensor] = []
    x_T: list[Tensor] = []
    with tqdm(total=len(pictures), desc="encoding", unit="picture") as bar:
        for start in range(0, len(pictures), batch):
            part = pictures.pictures(range(start, min(start + batch, len(pictures))))
            z.append(model.encode(part, batch))
            if steps is not None:
                x_T.append(model.invert(part, z[-1], steps=steps, batch=batch).float().cpu())
            bar.update(len(part))
    names = tuple(record.name for record in pictures.records)
    return CodeFile(names, torch.cat(z).float().cpu(), torch.cat(x_T) if x_T else None, encoder_digest(model))
