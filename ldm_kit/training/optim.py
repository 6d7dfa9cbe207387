"""The optimisers, AdamW and Muon: their learning-rate curve, counted in steps, and their state as plain tensors."""

import math
from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from ldm_kit.config import Config
from ldm_kit.training.muon import Muon, MuonConfig, matrices

Groups = list[dict[str, Any]]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW and its learning rate, counted in optimiser steps whatever the number of processes."""

    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="AdamW's betas")
    weight_decay: float = Field(
        default=0.01, ge=0, description="decoupled weight decay, on tensors of two or more dimensions"
    )
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        validation_alias=AliasChoices("lr_schedule", "decay"),
        default="constant",
        description="shape after warm-up, to 0 at the end",
    )
    max_grad_norm: float | None = Field(
        validation_alias=AliasChoices("max_grad_norm", "clip"),
        default=1.0,
        gt=0,
        description="largest gradient norm of each player; null: never clipped",
    )
    muon: MuonConfig | None = Field(default=None, description="Muon for matrices and convolutions; null: AdamW for all")


def lr_factor(config: OptimConfig, step: int, total: int) -> float:
    """The share of the peak learning rate for the update that makes step `step` (1, 2, ..., total)."""
    if step <= config.warmup:
        return step / config.warmup
    left = 1 - (step - 1 - config.warmup) / max(1, total - config.warmup)
    match config.lr_schedule:
        case "constant":
            return 1.0
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))


def build(player: str, module: nn.Module, config: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """A player's optimisers by name: `player`, and `player.muon` if its config asks for that and it has matrices."""
    wide = list(matrices(module)) if config.muon is not None else []
    if config.muon is None or not wide:
        return {player: adamw(module, config)}
    rest = adamw(module, config, without={id(weight) for weight in wide})
    return {player: rest, f"{player}.muon": Muon(wide, config.muon, config.weight_decay)}


def module_of(name: str) -> str:
    """Whose optimiser a name of `build` means."""
    return name.partition(".")[0]


def peak(optimiser: torch.optim.Optimizer, config: OptimConfig) -> float:
    """The peak learning rate of one of a player's optimisers."""
    return config.muon.lr if isinstance(optimiser, Muon) and config.muon is not None else config.lr


def moved(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """The weights that an optimiser moves."""
    if isinstance(optimiser, Muon):
        return list(optimiser.weights)
    return [weight for group in optimiser.param_groups for weight in group["params"]]


def adamw(module: nn.Module, config: OptimConfig, without: Set[int] = frozenset()) -> torch.optim.AdamW:
    """Fused AdamW of all weights but those whose ids are given; norms, biases and other vectors are not decayed."""
    weights = [weight for weight in trained(module) if id(weight) not in without]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser moves."""
    return [p for p in module.parameters() if p.requires_grad]


def norm(module: nn.Module) -> Tensor:
    """The norm of a module's gradient, on its device (0 where nothing has a gradient)."""
    weights = trained(module)
    found = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return found.to(weights[0].device)


def clip(module: nn.Module, limit: float | None, found: Tensor) -> None:
    """Scale a gradient of norm `found` down to `limit` in place, if it is longer."""
    if limit is not None:
        nn.utils.clip_grads_with_norm_(trained(module), limit, found)


def dump(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Groups]:
    """An optimiser's state as named tensors and plain groups."""
    state = optimiser.state_dict()
    tensors = {f"{i}.{key}": value for i, slots in state["state"].items() for key, value in slots.items()}
    return tensors, state["param_groups"]


def restore(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Groups) -> None:
    """Take back what `dump` gave.

    Moments get their weight's memory layout: fused AdamW walks raw memory, and beside a channels-last weight it would
    pair a contiguous moment with the wrong elements, without a word.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for weight, slots in optimiser.state.items():
        for key, value in slots.items():
            alike = value.shape == weight.shape
            slots[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value) if alike else value.clone()
