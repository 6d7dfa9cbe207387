"""The optimisers AdamW and Muon: learning-rate schedule, gradient norms, and optimiser state as plain tensors."""

import math
from collections.abc import Collection, Mapping, Set
from typing import Annotated, Any, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from ldm_kit.config import Config
from ldm_kit.training.muon import Muon, MuonConfig, matrices

Groups = list[dict[str, Any]]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """Settings of the optimisers; steps are optimiser steps, whatever the number of processes."""

    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="AdamW's betas")
    weight_decay: float = Field(
        default=0.01, ge=0, description="decoupled weight decay, on tensors of two or more dimensions"
    )
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        validation_alias=AliasChoices("lr_schedule", "decay"),
        default="constant",
        description="learning rate after warm-up; linear and cosine fall to 0 at the end",
    )
    max_grad_norm: float | None = Field(
        validation_alias=AliasChoices("max_grad_norm", "clip"),
        default=1.0,
        gt=0,
        description="largest gradient norm of each module; null: never clipped",
    )
    muon: MuonConfig | None = Field(
        default=None,
        description="Muon for matrices and convolutions with both sides at least 64, of every trained module but the "
        "discriminator, whose settings are discriminator_optim; null: AdamW for all weights",
    )


def lr_factor(config: OptimConfig, step: int, total: int) -> float:
    """Return the learning rate at step `step` (1, 2, ..., total), divided by the peak learning rate: in (0, 1]."""
    if step <= config.warmup:
        return step / config.warmup
    remaining = 1 - (step - 1 - config.warmup) / max(1, total - config.warmup)
    match config.lr_schedule:
        case "constant":
            return 1.0
        case "linear":
            return remaining
        case "cosine":
            return 0.5 * (1 - math.cos(math.pi * remaining))


def build(name: str, module: nn.Module, config: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """Return a module's optimisers by name: AdamW, called `name`, and perhaps Muon, called `name`.muon.

    If `config.muon` is set, Muon updates the weights that `matrices` yields, if any. AdamW updates all other weights;
    where there are none, there is no AdamW.

    Args:
        name: the module's name.
        module: the module.
        config: the module's optimiser config.
    """
    muon_weights = list(matrices(module)) if config.muon is not None else []
    if config.muon is None or not muon_weights:
        return {name: adamw(module, config)}
    optimisers: dict[str, torch.optim.Optimizer] = {}
    if len(muon_weights) < len(trainable(module)):
        optimisers[name] = adamw(module, config, without={id(weight) for weight in muon_weights})
    return {**optimisers, f"{name}.muon": Muon(muon_weights, config.muon, config.weight_decay)}


def build_all(modules: Mapping[str, nn.Module], configs: Mapping[str, OptimConfig]) -> dict[str, torch.optim.Optimizer]:
    """Return all modules' optimisers, named MODULE (AdamW) and MODULE.muon; `configs` are by name of the module."""
    return {key: value for name, module in modules.items() for key, value in build(name, module, configs[name]).items()}


def as_saved(configs: Mapping[str, OptimConfig], saved: Collection[str]) -> dict[str, OptimConfig]:
    """Return the optimiser configs, with Muon added for each module that Muon trained in a checkpoint.

    The added settings are those of another module's Muon. Until version 0.1 `optim.muon` also applied to the
    discriminator; a run of that time keeps Muon for it when resumed.

    Args:
        configs: optimiser config of each module, by name.
        saved: names of the optimisers that the checkpoint holds.
    """
    muon = next((config.muon for config in configs.values() if config.muon is not None), None)
    moved = {name for name, config in configs.items() if config.muon is None and f"{name}.muon" in saved}
    return {n: config.model_copy(update={"muon": muon}) if n in moved else config for n, config in configs.items()}


def module_of(name: str) -> str:
    """Return the name of the module that the optimiser `name` updates: MODULE for MODULE or MODULE.muon."""
    return name.partition(".")[0]


def lr_at(optimiser: torch.optim.Optimizer, config: OptimConfig, step: int, total: int) -> float:
    """Return an optimiser's learning rate at step `step` (1, ..., `total`); `config` is that of its module."""
    peak = config.muon.lr if isinstance(optimiser, Muon) and config.muon is not None else config.lr
    return peak * lr_factor(config, step, total)


def update(optimiser: torch.optim.Optimizer, lr: float, scaler: Any = None) -> None:
    """Run an optimiser step at learning rate `lr`, through the GradScaler `scaler` if given; drop the gradients."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step() if scaler is None else scaler.step(optimiser)
    optimiser.zero_grad(set_to_none=True)


def with_gradients(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.optim.Optimizer]:
    """Return, by name, the optimisers that update at least one weight that has a gradient."""
    return {n: o for n, o in optimisers.items() if any(weight.grad is not None for weight in weights_of(o))}


def weights_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return the weights that an optimiser updates."""
    if isinstance(optimiser, Muon):
        return list(optimiser.weights)
    return [weight for group in optimiser.param_groups for weight in group["params"]]


def adamw(module: nn.Module, config: OptimConfig, without: Set[int] = frozenset()) -> torch.optim.AdamW:
    """Return fused AdamW for a module's weights; norms, biases and other vectors have no weight decay.

    Args:
        module: module whose parameters that require a gradient are updated.
        config: learning rate, betas, weight decay.
        without: `id(parameter)` of each parameter to leave out.
    """
    weights = [weight for weight in trainable(module) if id(weight) not in without]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that require a gradient."""
    return [p for p in module.parameters() if p.requires_grad]


def grad_norm(module: nn.Module) -> Tensor:
    """Return the L2 norm of a module's whole gradient, a scalar on its device; 0 if nothing has a gradient."""
    weights = trainable(module)
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return norm.to(weights[0].device)


def clip(module: nn.Module, max_norm: float | None, norm: Tensor) -> None:
    """Scale a module's gradient in place so that its L2 norm, now `norm`, is at most `max_norm` (None: no limit)."""
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(trainable(module), max_norm, norm)


def dump(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Groups]:
    """Return an optimiser's state for a checkpoint: tensors and parameter groups, which hold plain values.

    A tensor is named PARAMETER_INDEX.KEY, such as 3.exp_avg, as in the `state` of `optimiser.state_dict()`.
    """
    state = optimiser.state_dict()
    tensors = {f"{i}.{key}": value for i, slots in state["state"].items() for key, value in slots.items()}
    return tensors, state["param_groups"]


def restore(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Groups) -> None:
    """Restore an optimiser's state from the tensors and parameter groups that `dump` returned.

    Moments get the memory layout (contiguous or channels-last) of the weight that they belong to. Fused AdamW pairs
    elements by their place in memory, so it would silently pair the elements of a channels-last weight with the wrong
    elements of a contiguous moment.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for weight, slots in optimiser.state.items():
        for key, value in slots.items():
            is_moment = value.shape == weight.shape
            slots[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value) if is_moment else value.clone()
