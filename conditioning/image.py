"""Condition on a picture, by a frozen, pretrained image encoder: image variations, and the decoder of unCLIP.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", section 2.1. The encoder is
saved with the model, so that a saved model needs neither network nor the encoder's own package of weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, ConditioningError, Inputs, Progress
from conditioning.image_encoder import Form, ImageEncoder
from conditioning.image_projection import ImageConfig, ImageProjection
from conditioning.loaded import check_tensors

ENCODER, PROJECTION = "image_embedder", "image_projection"
TOKEN_WIDTH = 512  # channels of tokens whose config says none
OpenEncoder = Callable[[str, int | None], ImageEncoder]
"""A function from an image encoder's name, and the side that it sees (None: its own), to it with its weights."""


class ImageConditioner(Conditioner):
    """Turn pictures into embeddings by a frozen encoder, and these into a vector or tokens by a trained linear map.

    Args:
        encoder: the frozen image encoder.
        projection: the trained linear maps and null condition.
        device: where the encoder runs; by default the GPU if there is one.
    """

    Config = ImageConfig
    modality = "images"
    marker = PROJECTION
    components = MappingProxyType(
        {
            ENCODER: ("conditioning.image_encoder", ("ImageEncoder",)),
            PROJECTION: ("conditioning.image_projection", ("ImageProjection",)),
        }
    )
    null = ""
    reads_pictures = True

    def __init__(
        self, encoder: ImageEncoder, projection: ImageProjection, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self._frozen = (encoder,)  # in a tuple, so that it is no sub-module: neither trained, averaged nor wrapped
        self.projection = projection
        self.width, self.vector_width = projection.config["token_width"], projection.config["vector_width"]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def build(
        cls, config: ImageConfig, *, time_width: int | None = None, open_encoder: OpenEncoder | None = None, **data: Any
    ) -> "ImageConditioner":
        """Build a new linear map for the encoder that `config` names.

        Args:
            config: which encoder, and what is made of its embeddings.
            time_width: channels of the denoiser's time embedding, the default of a vector's.
            open_encoder: opens the encoder by its name; None: folders of saved encoders alone can be opened.
            data: ignored.

        Raises:
            ConditioningError: the encoder cannot be opened or gives no such embedding, or the width of a vector is
                unknown.
        """
        with torch.random.fork_rng(devices=[]):  # the map's weights are drawn as if no encoder had been built
            encoder = (open_encoder or open_saved)(config.model, config.side)
            shape = encoder.shape(config.form)
        width, vector_width = cls.widths(config, time_width)
        if config.form == "vector" and vector_width is None:
            raise ConditioningError("an image as a vector needs a width, that of the U-Net's time embedding; got none")
        widths = {"vector_width": vector_width, "token_width": width}
        settings = {"context_tokens": config.context_tokens, "encoder_sha256": encoder.sha256()}
        return cls(encoder, ImageProjection(shape=[*shape], **widths, **settings))

    @classmethod
    def widths(cls, config: ImageConfig, time_width: int | None) -> tuple[int | None, int | None]:
        """Return the channels of the tokens and those of the vector."""
        tokens = config.width or TOKEN_WIDTH if config.form == "tokens" or config.context_tokens else None
        return tokens, config.width or time_width if config.form == "vector" else None

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> "ImageConditioner":
        """Load encoder and linear map from `folder`/image_embedder and `folder`/image_projection.

        Raises:
            ConditioningError: weights are missing, or the encoder is not the one that the map was trained for.
        """
        return cls._open(folder, whole=False)

    @classmethod
    def load_whole(cls, folder: Path, suffix: str = "") -> "ImageConditioner":
        """Load what `load` loads; raises ConditioningError also if the map's weights have tensors of no use."""
        return cls._open(folder, whole=True)

    @classmethod
    def _open(cls, folder: Path, *, whole: bool) -> "ImageConditioner":
        kind: Any = ImageProjection
        projection, report = kind.from_pretrained(
            folder / PROJECTION, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        check_tensors(folder / PROJECTION, report, whole=whole)
        encoder, config = ImageEncoder.open(folder / ENCODER), projection.config
        form: Form = "vector" if len(config["shape"]) == 1 else "tokens"
        if (shape := encoder.shape(form)) != tuple(config["shape"]):
            raise ConditioningError(
                f"{folder / ENCODER} gives embeddings of shape {[*shape]}, but {PROJECTION} takes {[*config['shape']]}"
            )
        if encoder.sha256() != config["encoder_sha256"]:
            raise ConditioningError(f"{folder / ENCODER} is not the image encoder that {PROJECTION} was trained with")
        return cls(encoder, projection)

    @property
    def encoder(self) -> ImageEncoder:
        """The frozen image encoder."""
        return self._frozen[0]

    @property
    def form(self) -> Form:
        """What an embedding is: "vector", one pooled vector; or "tokens"."""
        return "vector" if len(self.shape) == 1 else "tokens"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an embedding, (D,) or (L, D)."""
        return tuple(self.projection.config["shape"])

    @property
    def _stored(self) -> torch.dtype:
        return torch.float32 if self.form == "vector" else torch.float16

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The linear map, trained jointly with the denoiser, by the folder in which it is saved."""
        return {PROJECTION: self.projection}

    @property
    def encoder_digest(self) -> str:
        """The sha256 (hex) of the encoder's settings and weights."""
        return self.projection.config["encoder_sha256"]

    @property
    def frozen_encoder(self) -> str:
        """The digest of the encoder, and the form of its embeddings."""
        return f"{self.encoder_digest} {self.form}"

    def prepare(self, raw: Sequence[str | int], progress: Progress | None = None) -> Inputs:
        """Return the inputs of N null conditions, as `raw` has no pictures; `progress` is not called.

        Raises:
            ConditioningError: a value is not "": the condition is a picture, no prompt.
        """
        if texts := [value for value in raw if value != self.null]:
            raise ConditioningError(
                f"this model is conditioned on an image alone and takes no prompt, got {texts[0]!r:.80}"
            )
        empty = torch.zeros(len(raw), *self.shape, dtype=self._stored)
        return {"embedding": empty, "given": torch.zeros(len(raw), dtype=torch.bool)}

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Return the embeddings of pictures uint8 [N, C, r, r]: float32 [N, D] or [N, L, D] on the CPU.

        Each vector has a root mean square of 1.
        """
        encoder = self.encoder.to(self.device)  # pyright: ignore[reportArgumentType, reportCallIssue]
        batches = self.in_batches(
            len(pictures), lambda rows: encoder(pictures[rows.start : rows.stop].to(self.device), self.form).cpu()
        )
        return torch.cat([torch.zeros(0, *self.shape), *batches])

    def embedded(self, embeddings: Tensor) -> Inputs:
        """Return the inputs of N embeddings; raises ConditioningError if they have another shape."""
        if tuple(embeddings.shape[1:]) != self.shape:
            raise ConditioningError(
                f"got embeddings of shape {[*embeddings.shape[1:]]}; expected {[*self.shape]}, this encoder's"
            )
        return {"embedding": embeddings.to("cpu", self._stored), "given": torch.ones(len(embeddings), dtype=torch.bool)}

    def forward(self, embedding: Tensor, given: Tensor) -> Condition:
        """Return the condition of embeddings [B, D] or [B, L, D]; the null condition where `given` [B] is False."""
        return self.projection(embedding, given)

    def release(self) -> None:
        """Move the encoder to the CPU, where it is kept to be saved with the model."""
        self.encoder.to("cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]

    def save(self, folder: Path, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Write `folder`/image_embedder and `folder`/image_projection; return their entries of model_index.json."""
        self.encoder.save_pretrained(folder / ENCODER, safe_serialization=True)
        self.projection.save_pretrained(folder / PROJECTION, safe_serialization=True)
        return {name: (library, classes[0]) for name, (library, classes) in self.components.items()}


def open_saved(name: str, side: int | None = None) -> ImageEncoder:
    """Open the image encoder in the folder `name`, of an encoder, of a saved model, or of a run.

    Raises:
        ConditioningError: there is none, or another `side` is asked for than it was saved with.
    """
    root = Path(name).expanduser()
    for folder in (root, root / ENCODER, root / "model" / ENCODER):
        if (folder / "config.json").is_file() and folder.name == ENCODER:
            encoder = ImageEncoder.open(folder)
            if side not in (None, encoder.config["side"]):
                raise ConditioningError(f"{folder} sees pictures of side {encoder.config['side']}, not {side}")
            return encoder
    raise ConditioningError(f"there is no saved image encoder in {name!r:.200}: no folder {ENCODER}")
