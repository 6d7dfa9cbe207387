"""Code files: semantic and stochastic codes of named pictures in one safetensors file, with a checksum over both."""

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
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.protocol import Semantic, encoder_digest
from ldm_kit.viz.png import write_atomic

FORMAT = "ldm_kit codes 1"


@dataclass(frozen=True, eq=False)
class CodeFile:
    """The codes of N named pictures, encoded by one model."""

    names: tuple[str, ...]  # N names, such as paths within the pictures' folder
    z: Tensor  # semantic codes [N, D], as the encoder returns them, not normalised
    x_T: Tensor | None  # stochastic codes [N, Z, h, w]; None if they were not saved
    key: str  # hash that identifies the model that encoded the pictures, `protocol.encoder_digest(model)`

    def save(self, path: Path) -> None:
        """Write the code file to `path` atomically: at every moment it is absent or complete."""
        tensors = {"z": self.z} if self.x_T is None else {"z": self.z, "x_T": self.x_T}
        tensors = {name: value.float().contiguous() for name, value in tensors.items()}
        names = json.dumps(self.names, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        checksum = _checksum(tensors, names, self.key)
        metadata = {"format": FORMAT, "names": names, "key": self.key, "sha256": checksum}
        write_atomic(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, key: str) -> "CodeFile":
        """Load a code file that `save` wrote.

        Args:
            path: the file.
            key: hash of the model that will decode the codes, `protocol.encoder_digest(model)`; the file must have the
                same.

        Raises:
            UserError: the file does not exist, is damaged or no code file, or holds codes of another model.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; expected codes that edit.py encode wrote") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as codes ({str(error).splitlines()[0]:.100})") from None
        if metadata.get("format") != FORMAT or "z" not in tensors or not {"sha256", "names", "key"} <= metadata.keys():
            raise UserError(f"{path} holds no codes; expected a file that edit.py encode wrote")
        if metadata["sha256"] != _checksum(tensors, metadata["names"], metadata["key"]):
            raise UserError(f"{path} is damaged: its checksum does not fit; encode the folder again")
        if metadata["key"] != key:
            raise UserError(f"{path} holds codes of another model; encode the folder again with this one")
        return cls(tuple(json.loads(metadata["names"])), tensors["z"], tensors.get("x_T"), metadata["key"])


def _checksum(tensors: dict[str, Tensor], names: str, key: str) -> str:
    digest = sha256(f"{key}\n{names}".encode("utf-8", "surrogatepass"))
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(model: Semantic, pictures: PictureSet, steps: int | None = 250, batch: Batch = 32) -> CodeFile:
    """Encode a set of pictures; return their names and codes. A progress bar is shown.

    Args:
        model: encodes the pictures to semantic codes z, and inverts them to stochastic codes x_T.
        pictures: the N pictures.
        steps: DDIM steps of the inversion; None: the file has no x_T.
        batch: most pictures at a time; halved when memory runs out.
    """
    size = BatchSize.of(batch)

    def codes(indices: range) -> tuple[Tensor, Tensor | None]:
        images = pictures.pictures(indices)
        z = model.encode(images, size)
        return z, None if steps is None else model.invert(images, z, steps=steps, batch=size).float().cpu()

    z: list[Tensor] = []
    x_T: list[Tensor] = []
    with tqdm(total=len(pictures), desc="encoding", unit="picture") as progress_bar:
        for semantic, stochastic in size.batches(len(pictures), codes):
            z.append(semantic)
            x_T.extend([] if stochastic is None else [stochastic])
            progress_bar.update(len(semantic))
    names = tuple(record.name for record in pictures.records)
    return CodeFile(names, torch.cat(z).float().cpu(), torch.cat(x_T) if x_T else None, encoder_digest(model))
