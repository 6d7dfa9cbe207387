"""A frozen, pretrained image encoder of timm or open_clip, which is saved with the model that is conditioned on it."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from conditioning.condition import ConditioningError
from conditioning.image_input import Resized, to_rgb

Form = Literal["vector", "tokens"]
_NAME = re.compile(r"[\w.-]+")


class ImageEncoder(ModelMixin, ConfigMixin):
    """A pretrained network from pictures to embeddings: one pooled vector, or the tokens of patches or positions."""

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        *,
        library: str,
        architecture: str,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        quick_gelu: bool = False,
    ) -> None:
        """Build the network with random weights, which the caller replaces.

        Args:
            library: "timm" or "open_clip".
            architecture: the library's own name of the network.
            side: pixels along each side of the network's input.
            mean: mean of each channel of its training pictures, for values in [0, 1].
            std: standard deviation of each channel.
            interpolation: how pictures are resized to `side`, "bilinear" or "bicubic".
            quick_gelu: whether a network of open_clip was trained with that approximation.

        Raises:
            ConditioningError: the library has no such network.
        """
        super().__init__()
        self.network = _build(library, architecture, side, quick_gelu)
        self.resized = Resized(side, mean, std, interpolation)

    def forward(self, pictures: Tensor, form: Form = "vector") -> Tensor:
        """Return embeddings of pictures uint8 [B, C, r, r], scaled to a root mean square of 1, float32.

        Args:
            pictures: pictures of 1, 3 or 4 channels and any side.
            form: "vector": the pooled output [B, D]; "tokens": the patches or positions of the last features, each
                scaled by itself, [B, L, D].

        Raises:
            ConditioningError: the network gives no such output.
        """
        x = self.resized(to_rgb(pictures))
        tokens = form == "tokens"
        raw = _clip_output(self.network, x, tokens) if self.config["library"] == "open_clip" else None
        if raw is None:
            raw = _timm_tokens(self.network, x) if tokens else self.network(x)
        if raw.ndim != (3 if tokens else 2):
            raise ConditioningError(f"{self.name} gives {[*raw.shape]} for a picture, which is no condition of {form}")
        return F.normalize(raw.float(), dim=-1) * raw.shape[-1] ** 0.5

    @property
    def name(self) -> str:
        """Library and architecture, for messages."""
        return f"{self.config['library']}'s {self.config['architecture']}"

    @torch.no_grad()
    def shape(self, form: Form) -> tuple[int, ...]:
        """Return the shape of a picture's embedding, (D,) or (L, D).

        Raises:
            ConditioningError: the network cannot take a picture, or gives no such output.
        """
        try:
            return tuple(self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), form).shape[1:])
        except ConditioningError:
            raise
        except Exception as error:  # of many unrelated classes, by the network: shapes, windows, divisors
            raise ConditioningError(
                f"{self.name} cannot embed a picture: {' '.join(str(error).split()):.200}"
            ) from None

    def sha256(self) -> str:
        """Return the sha256 (hex) of settings and weights, from which embeddings follow."""
        settings = {key: value for key, value in self.config.items() if not key.startswith("_")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @classmethod
    def open(cls, folder: Path) -> "ImageEncoder":
        """Open an encoder that was saved in a folder, frozen; only safetensors and JSON are read.

        Raises:
            ConditioningError: files are missing or broken, or the weights do not fit.
        """
        kind: Any = cls
        options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
        try:
            encoder, report = kind.from_pretrained(folder, **options, output_loading_info=True)
        except ConditioningError:
            raise
        except Exception as error:  # of many unrelated classes: broken JSON or weights, shapes
            reason = " ".join(str(error).split())
            raise ConditioningError(f"cannot open the image encoder in {folder}: {reason:.200}") from None
        if missing := report["missing_keys"]:
            raise ConditioningError(f"the image encoder in {folder} lacks {len(missing)} tensors, such as {missing[0]}")
        return encoder.eval().requires_grad_(False)


def _build(library: str, architecture: str, side: int, quick_gelu: bool) -> Any:
    """Build a network of timm without its classifier, or the image tower of a model of open_clip.

    Names with a colon, by which both libraries would open files of the Hub, are no names of theirs here.
    """
    if _NAME.fullmatch(architecture) and library == "timm":
        import timm

        if timm.is_model(architecture):
            return with_side(timm.create_model(architecture, pretrained=False, num_classes=0), side)
    if _NAME.fullmatch(architecture) and library == "open_clip":
        import open_clip

        if open_clip.get_model_config(architecture) is not None:
            with _quiet():  # which warns that weights are random; those of the caller replace them
                model: Any = open_clip.create_model(architecture, pretrained_text=False, force_quick_gelu=quick_gelu)
            return model.visual
    raise ConditioningError(
        f"{library!r:.40} has no image encoder {architecture!r:.80}; expected one of timm or open_clip"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def with_side(model: Any, side: int) -> Any:
    """Return a network of timm for pictures of a side; those with embedded positions resample them, in place."""
    resize = getattr(model, "set_input_size", None)
    if resize is not None and side != model.pretrained_cfg["input_size"][-1]:
        resize(img_size=side)
    return model


def _clip_output(tower: Any, x: Tensor, tokens: bool) -> Tensor | None:
    """Return the image embeddings or the tokens of an image tower of open_clip; None: a network of timm gives them.

    Raises:
        ConditioningError: tokens are asked for, and the tower gives none.
    """
    if not tokens:
        return tower(x)
    from open_clip.timm_model import TimmModel

    if isinstance(tower, TimmModel):
        return _timm_tokens(tower.trunk, x)
    if not hasattr(tower, "output_tokens"):
        raise ConditioningError(
            f"the image tower {type(tower).__name__} of open_clip gives no tokens; expected form vector"
        )
    tower.output_tokens = True
    try:
        return tower(x)[1]
    finally:
        tower.output_tokens = False


def _timm_tokens(network: nn.Module, x: Tensor) -> Tensor:
    """Return the last features of a network of timm as tokens [B, L, D]; class and register tokens are left out."""
    model: Any = network
    features = model.forward_features(x)
    if features.ndim == 4:
        return features.flatten(1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features.flatten(2).mT
    return features[:, getattr(model, "num_prefix_tokens", 0) :]
