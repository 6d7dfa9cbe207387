"""LoRA in latent diffusion: which weights of a trained model are trained, averaged and saved, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioning.base import Conditioner
from ldm_kit.config import UserError
from ldm_kit.methods.lora_config import LoraConfig
from ldm_kit.models.growth import grown_config, misfits, shapes
from ldm_kit.models.lora import attach, merged_copy
from ldm_kit.models.lora_files import adapter_layers, peft_module, write_lora
from ldm_kit.models.lora_paths import WEIGHTS
from ldm_kit.models.pipeline import Pipeline


def averaged_modules(config: LoraConfig | None, unet: nn.Module, conditioner: Conditioner) -> dict[str, nn.Module]:
    """Give a run's networks LoRA if its config asks for it; return what is averaged, by folder in the saved model.

    With LoRA all other weights are frozen, in place, and only the LoRA weights are averaged.

    Args:
        config: section `lora` of the run's config; None: no LoRA.
        unet: the run's U-Net.
        conditioner: the run's conditioner.

    Raises:
        UserError: peft is not installed.
    """
    if config is None:
        return {"unet": unet, **conditioner.trainable}
    unet.requires_grad_(False)
    conditioner.requires_grad_(False)
    targets = _targets(config, unet, conditioner)
    for network, names in targets.values():
        attach(network, _peft_config(config, names))
    return {name: _weights_alone(network) for name, (network, _) in targets.items()}


def _targets(
    config: LoraConfig, unet: nn.Module, conditioner: Conditioner | None
) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Return by name the networks that get LoRA, each with the ends of its layers' names."""
    from transformers import PreTrainedModel

    trained = {} if conditioner is None else conditioner.trainable
    encoders = {name: (net, config.text_targets) for name, net in trained.items() if isinstance(net, PreTrainedModel)}
    return {name: pair for name, pair in {"unet": (unet, config.targets), **encoders}.items() if pair[1]}


def _peft_config(config: LoraConfig, targets: tuple[str, ...]) -> Any:
    return peft_module().LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        target_modules=list(targets),
        lora_dropout=config.dropout,
        use_dora=config.dora,
    )


def _weights_alone(network: nn.Module) -> nn.Module:
    """Return a module that shares a network's LoRA weights, under their names there, and has no others."""
    root = nn.Module()
    for name, layer in adapter_layers(network).items():
        holder = root
        for child in name.split("."):
            if child not in dict(holder.named_children()):
                holder.add_module(child, nn.Module())
            holder = holder.get_submodule(child)
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
            holder.add_module(kind, getattr(layer, kind))
    return root


def check_targets(config: LoraConfig | None, where: str, unet: Any, conditioner: Conditioner | None) -> None:
    """Check that the layers which LoRA names are in a trained model.

    Args:
        config: section `lora` of the run's config; None: nothing is checked.
        where: the trained model as messages call it, such as "init runs/ldm".
        unet: the trained U-Net.
        conditioner: the trained conditioner; None: the model has none that is trained.

    Raises:
        UserError: a name matches no layer, or one that is neither linear nor a convolution; or peft is not installed.
    """
    if config is None:
        return
    peft_module()
    targets = _targets(config, unet, conditioner)
    if not targets or ("text_targets" in config.model_fields_set and config.text_targets and len(targets) < 2):
        raise UserError(f"lora.text_targets: {where} has no text encoder that is trained with its U-Net; leave it out")
    for name, (network, ends) in targets.items():
        for end in ends:
            _check_target(
                f"lora.{'targets' if name == 'unet' else 'text_targets'}", end, f"the {name} of {where}", network
            )


def _check_target(key: str, end: str, where: str, network: nn.Module) -> None:
    named = dict(network.named_modules())
    matched = [module for name, module in named.items() if name == end or name.endswith(f".{end}")]
    if any(not isinstance(module, nn.Linear | nn.Conv2d) for module in matched):
        raise UserError(f"{key}: {end!r:.80} names other layers of {where} than linear ones and convolutions")
    if not matched:
        layers = {name.rpartition(".")[2] for name, m in named.items() if isinstance(m, nn.Linear | nn.Conv2d)}
        examples = ", ".join(sorted(name for name in layers if not name.isdecimal()))
        raise UserError(f"{key}: {end!r:.80} matches no layer of {where}; expected ends of names such as {examples}")


def check_same_base(config: LoraConfig | None, where: str, trained: Any, expected: Any) -> None:
    """Check that a run's U-Net has the tensors of the trained one, as tensors that are new would stay frozen.

    Args:
        config: section `lora` of the run's config; None: nothing is checked.
        where: the trained model as messages call it, such as "init runs/ldm".
        trained: the trained U-Net.
        expected: the U-Net that the run's config describes, of the same class; it may be on the meta device.

    Raises:
        UserError: a tensor of the run's U-Net is missing in the trained one or has another shape there.
    """
    if config is None:
        return
    with torch.device("meta"):
        new = type(trained).from_config(grown_config(trained, expected))
    if (phrase := misfits(shapes(trained), shapes(new))) is not None:
        raise UserError(f"{where} does not fit this run's unet, and lora trains no new weights of it: {phrase}")


def check_same_condition(config: LoraConfig | None, where: str, new: str | None) -> None:
    """Check that a run with LoRA has the condition of the model that it tunes.

    Args:
        config: section `lora` of the run's config; None: nothing is checked.
        where: the trained model as messages call it, such as "init runs/ldm".
        new: what the run's log would say of a condition that is new; None: it is the model's.

    Raises:
        UserError: the condition is new.
    """
    if config is not None and new is not None:
        raise UserError(f"{where} {new}; lora trains no new condition, expected that of the model")


def save_pipeline(pipeline: Pipeline, folder: Path, start: Mapping[str, Any] | None) -> None:
    """Save a run's model into `folder`; LoRA is merged into it, and written as a file of its own beside it.

    Args:
        pipeline: the model, which stays as it is.
        folder: the model's folder.
        start: what the run started from (`Method.start`), with the digest of the base model's weights.
    """
    networks = {"unet": pipeline.unet, **pipeline.conditioner.trainable}
    if not any(adapter_layers(network) for network in networks.values()):
        pipeline.save(folder)
        return
    unet, conditioner = merged_copy(pipeline.unet), merged_copy(pipeline.conditioner)
    replace(pipeline, unet=unet, conditioner=conditioner).save(folder)
    write_lora(folder / WEIGHTS, networks, None if start is None else start["sha256"])


def trained_parameters(network: nn.Module) -> str:
    """Return as text how many parameters of a network are trained, such as "1.2 M trained parameters".

    Where some are frozen, it is their number and share: "1,024 of 20,480 parameters trained (5.00 %)".
    """
    counts = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    total, trained = sum(count for count, _ in counts), sum(count for count, is_trained in counts if is_trained)
    if trained == total:
        return f"{total / 1e6:.1f} M trained parameters"
    return f"{trained:,} of {total:,} parameters trained ({trained / total:.2%})".replace("%)", " %)")
