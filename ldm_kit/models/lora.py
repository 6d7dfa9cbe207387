"""LoRA of diffusion models, through peft: give a network LoRA, and merge LoRA into its weights.

A model that samples with LoRA has it merged (`merge_lora`), so that its networks are plain ones, as fast as before.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.base import Conditioner
from ldm_kit.config import UserError
from ldm_kit.data.images import digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.models.growth import misfits
from ldm_kit.models.lora_files import ADAPTER, LoraFile, adapter_layers, peft_module
from ldm_kit.models.lora_paths import LoraPath, lora_paths


def attach(network: nn.Module, config: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Give layers of a network LoRA in place, and freeze all its other weights.

    Args:
        network: the network.
        config: peft's LoraConfig.
        tensors: names of the layers' LoRA tensors, which then choose the layers; None: the config's target_modules do.
    """
    peft_module().inject_adapter_in_model(config, network, ADAPTER, state_dict=tensors)


def merge_adapters(network: nn.Module, *, merge: bool = True) -> None:
    """Replace the layers that have LoRA by plain ones in place, with B A added to their weights if `merge`."""
    for name, layer in adapter_layers(network).items():
        if merge:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    if getattr(network, "peft_config", None) is not None:
        del network.peft_config


def merged_copy(network: nn.Module) -> Any:
    """Return a copy of a network with its LoRA merged; the network itself where it has none."""
    if not any(adapter_layers(module) for module in network.modules()):
        return network
    new = copy.deepcopy(network)
    for module in [*new.modules()]:
        merge_adapters(module)
    return new


def base_digest(networks: Mapping[str, nn.Module]) -> str:
    """Return a digest (hex) of the weights, as float32, of a model's trained networks by name."""
    wide = {name: net if _is_wide(net) else copy.deepcopy(net).float() for name, net in networks.items()}
    return digest([f"{name} {weights_digest(network)}" for name, network in wide.items()])


def _is_wide(network: nn.Module) -> bool:
    return all(weight.dtype == torch.float32 for weight in network.parameters())


@dataclass
class _Base:
    """The networks of a model that LoRA is merged into."""

    networks: Mapping[str, nn.Module]
    sha256: str | None = None

    def check(self, lora: LoraFile) -> None:
        """Check that a LoRA was trained on this model, if its file says on which, and is of networks that it has."""
        missing = [name for name in lora.tensors if name not in self.networks]
        if missing:
            raise UserError(f"{lora.path} changes the {missing[0]}, which this model does not have or train")
        if lora.base is None:
            return
        self.sha256 = self.sha256 or base_digest(self.networks)
        if lora.base != self.sha256:
            raise UserError(
                f"{lora.path} was trained on another base, of sha256 {lora.base:.12}; this model's weights have "
                f"{self.sha256:.12}"
            )


def merge_lora(unet: nn.Module, conditioner: Conditioner, loras: Iterable[str | Path | LoraPath]) -> None:
    """Merge LoRA files into the float32 weights of a model in place, one after the other.

    A LoRA at scale 0 changes nothing.

    Args:
        unet: the model's U-Net.
        conditioner: the model's conditioner.
        loras: each a file, or the folder of a model or run that holds one, as PATH or PATH:SCALE.

    Raises:
        UserError: a scale is no number, a file is no LoRA or one of another base, or peft is not installed.
    """
    paths = lora_paths(loras)
    if not paths:
        return
    peft_module()
    files = [LoraFile.read(path.file) for path in paths]
    base = _Base({"unet": unet, **conditioner.trainable})
    for lora in files:
        base.check(lora)
    for lora, path in zip(files, paths, strict=True):
        for name, tensors in lora.tensors.items():
            _merge(base.networks[name], lora, name, tensors, path.scale)


def _merge(network: nn.Module, lora: LoraFile, name: str, tensors: Mapping[str, Tensor], scale: float) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    merge = False
    try:
        with torch.random.fork_rng(devices=[]):
            attach(network, lora.peft_config(name), dict(tensors))
        expected = get_peft_model_state_dict(network, adapter_name=ADAPTER)
        shapes = [{key: tuple(value.shape) for key, value in some.items()} for some in (tensors, expected)]
        if (phrase := misfits(*shapes)) is not None:
            raise UserError(f"{lora.path} does not fit this model's {name}: {phrase}")
        set_peft_model_state_dict(network, dict(tensors), ADAPTER)
        for layer in adapter_layers(network).values():
            layer.scale_layer(scale)
        merge = scale != 0
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{lora.path} does not fit this model's {name}: {' '.join(str(error).split()):.200}") from None
    finally:
        merge_adapters(network, merge=merge)
