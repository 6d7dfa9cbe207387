"""The training loop. It does not know what it trains: losses arrive as a generator of (player, loss, logs).

accelerate brings devices, DDP and precision. Order, noise and dropout are addressed by (seed, step, position), so the
loop stores no random state; it yields after everything is consistent, and logging, evaluation and checkpoints are the
caller's `for step in ...`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ldm_kit.config import Config, UserError
from ldm_kit.diffusion.randomness import address
from ldm_kit.training import checkpoint
from ldm_kit.training.ema import Ema, EmaConfig
from ldm_kit.training.order import AddressedBatches, Share, loader
from ldm_kit.training.run import versions

Turn = tuple[str, Tensor, Mapping[str, Tensor]]  # (player, its mean loss over the micro-batch, logs)


class OptimConfig(Config):
    """AdamW and its learning rate, counted in optimiser steps whatever the number of processes."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW's betas")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay, on tensors of two or more dimensions")
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="shape after warm-up, to 0 at the end"
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm of each player; null: never clipped")


class TrainConfig(Config):
    """How long, how much at a time, how precisely."""

    steps: int = Field(gt=0, description="optimiser steps of the whole run")
    batch_size: int = Field(gt=0, description="pictures per optimiser step over all processes (the global batch)")
    micro_batch: int | None = Field(None, gt=0, description="most pictures at once in a process; the rest accumulates")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="autocast precision; weights stay float32")
    channels_last: bool = Field(True, description="memory layout of the networks")
    workers: int = Field(0, ge=0, description="data-loader processes; 0 is best for sets that lie in memory")
    checkpoint_every: int = Field(1000, gt=0, description="steps between checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many of the newest checkpoints stay")


class Task(Protocol):
    """What the loop trains."""

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """Modules with an optimiser each, by name; the loop wraps them for DDP and hands them back through `wrap`."""
        ...

    @property
    def averaged(self) -> Mapping[str, nn.Module]:
        """Modules whose weights are averaged (EMA), by the folder that they are saved in."""
        ...

    def wrap(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the wrapped players, which `losses` must call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors beside weights that a checkpoint must hold."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        ...

    def losses(self, batch: Any, step: int) -> Iterator[Turn]:
        """One turn for each player; the loop runs backward before it asks for the next turn."""
        ...


@dataclass(frozen=True)
class Step:
    """What a step left behind: its number (1 = the first), learning rate, gradient norms and logs (device tensors)."""

    number: int
    lr: float
    norms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor]


def lr_factor(config: OptimConfig, step: int, total: int) -> float:
    """The share of the peak learning rate for the update that makes step `step` (1, 2, ..., total)."""
    if step <= config.warmup:
        return step / config.warmup
    left = 1 - (step - 1 - config.warmup) / max(1, total - config.warmup)
    match config.decay:
        case "constant":
            return 1.0
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; norms, biases and other vectors are not decayed."""
    weights = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


@dataclass(eq=False)
class Trainer:
    """Holds players, optimisers and averages together between steps."""

    accelerator: Accelerator
    task: Task
    optim: Mapping[str, OptimConfig]
    config: TrainConfig
    averaging: EmaConfig
    seed: int
    step: int = 0
    ema: Ema = field(init=False)
    wrapped: dict[str, nn.Module] = field(init=False)
    optimisers: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for module in self.task.players.values():
            module.to(self.accelerator.device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.ema = Ema(self.averaging, self.task.averaged)
        self.optimisers = {name: adamw(module, self.optim[name]) for name, module in self.task.players.items()}
        self.wrapped = {name: self.accelerator.prepare_model(module) for name, module in self.task.players.items()}
        self.optimisers = {name: self.accelerator.prepare_optimizer(o) for name, o in self.optimisers.items()}
        self.task.wrap(self.wrapped)
        self.share = Share.of(
            self.config.batch_size,
            self.config.micro_batch,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )

    def train(self, data: Any) -> Iterator[Step]:
        """Train from the current step to the last one on a set with `__len__` and `__getitems__(places)`."""
        order = AddressedBatches(self.share, self.seed, len(data), self.step, self.config.steps)
        batches = iter(loader(data, order, self.config.workers))
        while self.step < self.config.steps:
            logs = self._accumulate(batches)
            lr, norms = self._update()
            self.step += 1
            self.ema.update(self.step)
            yield Step(self.step, lr, norms, logs)

    def _accumulate(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        parts = self.share.accumulation
        for micro in range(parts):
            torch.manual_seed(address(self.seed, "modules", self.step, micro, self.share.rank))
            batch = _to(next(batches), self.accelerator.device)
            with ExitStack() as stack:
                if micro + 1 < parts:
                    for module in self.wrapped.values():
                        stack.enter_context(self.accelerator.no_sync(module))
                for player, loss, logs in self.task.losses(batch, self.step):
                    self.accelerator.backward(loss / parts)
                    for name, value in {f"{player}_loss": loss, **logs}.items():
                        total[name] = total.get(name, torch.zeros_like(value)).detach() + value.detach() / parts
        return total

    def _update(self) -> tuple[float, dict[str, Tensor]]:
        norms: dict[str, Tensor] = {}
        for name, optimiser in self.optimisers.items():
            self.accelerator.unscale_gradients(optimiser)
            weights = [p for p in self.wrapped[name].parameters() if p.requires_grad]
            norms[name] = nn.utils.clip_grad_norm_(weights, self.optim[name].clip or math.inf)
        scaled = self.accelerator.scaler is not None  # an overflow under fp16 is the scaler's business
        if not scaled and not bool(torch.stack(list(norms.values())).isfinite().all()):
            raise UserError(
                f"the gradient became infinite or NaN at step {self.step + 1} "
                f"({', '.join(f'{name} {float(norm):g}' for name, norm in norms.items())}); nothing was updated. "
                "Lower the learning rate, or train with train.precision=no"
            )
        for name, optimiser in self.optimisers.items():
            config = self.optim[name]
            lr = config.lr * lr_factor(config, self.step + 1, self.config.steps)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        first = next(iter(self.optim.values()))
        return first.lr * lr_factor(first, self.step + 1, self.config.steps), norms

    def save(self, folder: Path, config: BaseModel) -> Path | None:
        """Write a checkpoint; every process calls it, the main one writes. Returns its path there, else None."""
        path = folder / f"checkpoint-{self.step:08d}"
        if self.accelerator.is_main_process:
            checkpoint.write(path, lambda draft: self._fill(draft, config))
        self.accelerator.wait_for_everyone()
        return path if self.accelerator.is_main_process else None

    def _fill(self, draft: Path, config: BaseModel) -> None:
        groups: dict[str, Any] = {}
        for name, module in self.task.players.items():
            checkpoint.save_tensors(module.state_dict(), draft / "model" / f"{name}.safetensors")
            tensors, groups[name] = _flat(self.optimisers[name].state_dict())
            checkpoint.save_tensors(tensors, draft / "optimizer" / f"{name}.safetensors")
        for part, average in self.ema.averages.items():
            checkpoint.save_tensors(average, draft / "ema" / f"{part}.safetensors")
        if extra := self.task.state():
            checkpoint.save_tensors(extra, draft / "model" / "state.safetensors")
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "position": self.step * self.config.batch_size,
            "world_size": self.share.world,
            "config": config.model_dump(mode="json"),
            "optimizer": groups,
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": versions(),
        }
        (draft / "trainer_state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on from a verified checkpoint; every process reads the files."""
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        for name, module in self.task.players.items():
            module.load_state_dict(checkpoint.load_tensors(folder / "model" / f"{name}.safetensors"))
            tensors = checkpoint.load_tensors(folder / "optimizer" / f"{name}.safetensors")
            self.optimisers[name].load_state_dict(_nested(tensors, state["optimizer"][name]))
        for part, average in self.ema.averages.items():
            stored = checkpoint.load_tensors(folder / "ema" / f"{part}.safetensors")
            for key, value in average.items():
                value.copy_(stored[key])
        if (extra := folder / "model" / "state.safetensors").exists():
            self.task.load_state(checkpoint.load_tensors(extra))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def _to(batch: Any, device: torch.device) -> Any:
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: _to(value, device) for key, value in batch.items()}
        case _:
            return batch


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors and plain groups."""
    tensors = {f"{i}.{key}": value for i, slots in state["state"].items() for key, value in slots.items()}
    return tensors, state["param_groups"]


def _nested(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": groups}
