"""The training loop. It does not know what it trains: losses arrive as a generator of (player, loss, logs).

accelerate brings devices, DDP and precision. Order, noise and dropout are addressed by (seed, step, position), so the
loop stores no random state; it yields after everything is consistent, and logging, evaluation and checkpoints are the
caller's `for step in ...`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ldm_kit.config import Config, UserError
from ldm_kit.diffusion.randomness import address
from ldm_kit.training import checkpoint, optim
from ldm_kit.training.ema import Ema, EmaConfig
from ldm_kit.training.optim import OptimConfig, lr_factor
from ldm_kit.training.order import AddressedBatches, Share, loader
from ldm_kit.training.run import versions
from ldm_kit.training.task import Source, Task


class TrainConfig(Config):
    """How long, how much at a time, how precisely."""

    steps: int = Field(gt=0, description="optimiser steps of the whole run")
    batch_size: int = Field(gt=0, description="pictures per optimiser step over all processes (the global batch)")
    micro_batch: int | None = Field(
        default=None, gt=0, description="most pictures at once in a process; the rest accumulates"
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="autocast precision; weights stay float32"
    )
    channels_last: bool = Field(default=True, description="memory layout of the networks")
    workers: int = Field(default=0, ge=0, description="data-loader processes; 0 is best for sets that lie in memory")
    checkpoint_every: int = Field(
        default=1000, gt=0, description="steps between checkpoints; the last step always has one"
    )
    keep: int = Field(default=2, ge=1, description="how many of the newest checkpoints stay")


@dataclass(frozen=True)
class Step:
    """What a step left behind: its number (1 = the first), learning rate, gradient norms and logs (device tensors)."""

    number: int
    lr: float
    norms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor]


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
    source: str | None = None  # fingerprint of what the steps so far were trained on
    ema: Ema = field(init=False)
    wrapped: dict[str, nn.Module] = field(init=False)
    optimisers: dict[str, torch.optim.Optimizer] = field(init=False)
    share: Share = field(init=False)

    def __post_init__(self) -> None:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for module in self.task.players.values():
            module.to(self.accelerator.device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.ema = Ema(self.averaging, self.task.averaged)
        self.optimisers = {}
        for name, module in self.task.players.items():
            self.optimisers |= optim.build(name, module, self.optim[name])
        if self.accelerator.scaler is not None and len(self.optimisers) > len(self.task.players):
            raise UserError("optim.muon does not go with train.precision fp16; take bf16 or no")
        self.wrapped = {name: self.accelerator.prepare_model(module) for name, module in self.task.players.items()}
        self.task.wrap(self.wrapped)
        self.share = Share.of(
            self.config.batch_size,
            self.config.micro_batch,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )

    def train(self, data: Source) -> Iterator[Step]:
        """Train from the current step to the last one.

        Raises:
            UserError: the checkpoint that this run goes on from has seen other data, or a gradient became NaN.
        """
        if self.source not in (None, data.fingerprint):
            raise UserError(
                f"cannot go on from step {self.step}: the pictures, their captions or the autoencoder have changed "
                "since it was saved; train anew with another run=FOLDER"
            )
        self.source = data.fingerprint
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
        """Clip, refuse what is not finite, and move the weights of every player that had a turn."""
        scaler = self.accelerator.scaler
        playing = {n: o for n, o in self.optimisers.items() if any(p.grad is not None for p in optim.moved(o))}
        if scaler is not None:
            for optimiser in playing.values():
                scaler.unscale_(optimiser)
        norms = {name: optim.clipped(self.wrapped[name], self.optim[name].clip) for name in self.wrapped}
        if scaler is None:  # an overflow under fp16 is the scaler's business
            self._refuse_infinite(norms)
        for name, optimiser in playing.items():
            for group in optimiser.param_groups:
                group["lr"] = self._lr(name)
            optimiser.step() if scaler is None else scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()  # once for all players: each accelerate-wrapped step would do it anew
        return self._lr(next(iter(self.optim))), norms

    def _lr(self, name: str) -> float:
        """The learning rate with which one of the optimisers makes the next step."""
        config = self.optim[optim.player_of(name)]
        return optim.peak(self.optimisers[name], config) * lr_factor(config, self.step + 1, self.config.steps)

    def _refuse_infinite(self, norms: Mapping[str, Tensor]) -> None:
        if bool(torch.stack(list(norms.values())).isfinite().all()):
            return
        named = ", ".join(f"{name} {float(norm):g}" for name, norm in norms.items())
        raise UserError(
            f"the gradient became infinite or NaN at step {self.step + 1} ({named}); the run stops before that update "
            "and its checkpoints are whole. Lower the learning rate, or train with train.precision=no"
        )

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
        for name, optimiser in self.optimisers.items():
            tensors, groups[name] = optim.dump(optimiser)
            checkpoint.save_tensors(tensors, draft / "optimizer" / f"{name}.safetensors")
        for part, average in self.ema.averages.items():
            checkpoint.save_tensors(average, draft / "ema" / f"{part}.safetensors")
        if extra := self.task.state():
            checkpoint.save_tensors(extra, draft / "model" / "state.safetensors")
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "position": self.step * self.config.batch_size,
            "source": self.source,
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
        if state["step"] > self.config.steps:
            raise UserError(f"{folder} is at step {state['step']}, past the end: train.steps is {self.config.steps}")
        for name, module in self.task.players.items():
            module.load_state_dict(checkpoint.load_tensors(folder / "model" / f"{name}.safetensors"))
        for name, optimiser in self.optimisers.items():
            tensors = checkpoint.load_tensors(folder / "optimizer" / f"{name}.safetensors")
            optim.restore(optimiser, tensors, state["optimizer"][name])
        self.ema.load(
            {part: checkpoint.load_tensors(folder / "ema" / f"{part}.safetensors") for part in self.ema.parts}
        )
        if (extra := folder / "model" / "state.safetensors").exists():
            self.task.load_state(checkpoint.load_tensors(extra))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.source = state["step"], state["source"]


def _to(batch: Any, device: torch.device) -> Any:
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: _to(value, device) for key, value in batch.items()}
        case _:
            return batch
