"""The training loop. It does not know what it trains: losses arrive as a generator of (player, loss, logs).

accelerate brings devices, DDP and precision. Order, noise and dropout are addressed by (seed, step, position), so the
loop stores no random state; it yields after everything is consistent, and logging, evaluation and checkpoints are the
caller's `for step in ...`.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import checkpoint, distributed, faults, memory, optim, state
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, loader, to_device
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import Ema, EmaConfig
from ldm_kit.training.optim import OptimConfig, lr_factor
from ldm_kit.training.run_folder import versions
from ldm_kit.training.say import say
from ldm_kit.training.step import StepStats, TrainStep
from ldm_kit.training.task import BatchSource, StatefulTask, Task


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
    skipped: int = 0  # steps in a row that overflowed under fp16
    ema: Ema = field(init=False)
    wrapped: dict[str, nn.Module] = field(init=False)
    optimisers: dict[str, torch.optim.Optimizer] = field(init=False)
    share: BatchSplit = field(init=False)
    kept: list[Tensor] = field(init=False, default_factory=list)  # buffers before the attempt at a step

    def __post_init__(self) -> None:
        for module in self.task.modules.values():
            module.to(self.accelerator.device)
            distributed.broadcast_(module.state_dict().values())
        alone = not self.config.overlap  # without DDP around it: gradients are averaged when all have theirs
        players = self.task.modules.items()
        self.wrapped = {name: self.accelerator.prepare_model(net, evaluation_mode=alone) for name, net in players}
        self.task.set_ddp_modules(self.wrapped)
        self.ema = Ema(self.averaging, self.task.ema_modules)
        self.optimisers = {}  # after wrapping: accelerate moves the weights of several processes on a CPU once more
        for name, module in self.task.modules.items():
            self.optimisers |= optim.build(name, module, self.optim[name])
        if self.accelerator.scaler is not None and len(self.optimisers) > len(self.task.modules):
            raise UserError("optim.muon does not go with train.precision fp16; take bf16 or no")
        self.share = self._share()

    def _share(self, fits: int | None = None) -> BatchSplit:
        """This process's share of a batch, with at most `fits` pictures at once where memory has run out before."""
        ranks = self.accelerator.num_processes, self.accelerator.process_index
        share: BatchSplit | None = BatchSplit.of(self.config.batch_size, self.config.micro_batch, *ranks)
        while fits is not None and share is not None and share.size > fits:
            share = share.halved()
        assert share is not None
        return share

    def train(self, data: BatchSource) -> Iterator[TrainStep]:
        """Train from the current step to the last one.

        Raises:
            UserError: the checkpoint that this run goes on from has seen other data.
            Fault: a loss or gradient is not finite, on any process; weights are those before that step.
            torch.OutOfMemoryError: not even one picture at a time fits.
        """
        if self.source not in (None, data.fingerprint):
            raise UserError(
                f"cannot go on from step {self.step}: the pictures, their captions or the autoencoder have changed "
                "since it was saved; train anew with another run=FOLDER"
            )
        self.source = data.fingerprint
        batches = self._batches(data)
        while self.step < self.config.steps:
            seen = self._attempt(batches)
            if seen is None:
                self._halve()
                batches = self._batches(data)
                continue
            norms = self._norms()
            stands = self._judge(data, seen, norms)
            lr = self._move(norms)
            self._settle(stands)
            self.step += 1
            self.ema.update(self.step)
            yield TrainStep(self.step, lr, norms, seen.logs)

    def _batches(self, data: BatchSource) -> Iterator[Any]:
        order = StepBatchSampler(self.share, self.seed, len(data), self.step, self.config.steps)
        return iter(loader(data, order, self.config.workers))

    def _attempt(self, batches: Iterator[Any]) -> StepStats | None:
        """All micro-batches forward and back; None on every process when one of them is out of memory."""
        self.kept = [buffer.clone() for buffer in distributed.buffers(self.task.modules.values())]
        seen = None
        try:
            seen = self._accumulate(batches)
        except distributed.StepAborted:
            return None
        except RuntimeError as error:
            if not memory.short(error) or (self.config.overlap and distributed.is_distributed()):
                raise
        return None if distributed.all_reduce_max(int(seen is None)) else seen

    def _accumulate(self, batches: Iterator[Any]) -> StepStats:
        seen, parts = StepStats(), self.share.accumulation
        for micro, positions in enumerate(self.share.micro_batches(self.step)):
            torch.manual_seed(derive_seed(self.seed, "modules", self.step, positions[0]))
            batch = to_device(next(batches), self.accelerator.device)
            with ExitStack() as stack:
                if micro + 1 < parts:
                    for module in self.wrapped.values():
                        stack.enter_context(self.accelerator.no_sync(module))
                turns = self.task.losses(batch, self.step)
                if isinstance(turns, Generator):  # what it has open is closed, even if it does not get to its end
                    stack.callback(turns.close)
                for player, loss, logs in turns:
                    self.accelerator.backward(loss / parts)
                    seen.take(player, loss, logs, parts)
        return seen

    def _halve(self) -> None:
        """Drop what the attempt has left, and take half as many pictures at once from now on."""
        self._restore()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        memory.free()
        share = self.share.halved()
        if share is None:
            raise torch.OutOfMemoryError("out of memory with one picture at a time")
        say(
            f"out of memory at step {self.step + 1}: it is made again with {share.size} instead of {self.share.size} "
            f"pictures at once in a process; batches of {share.global_batch} as before"
        )
        self.share = share

    def _norms(self) -> dict[str, Tensor]:
        """The norm of each player's gradient, once that is averaged over processes and unscaled."""
        if distributed.is_distributed() and not self.config.overlap:
            distributed.average_gradients([p for module in self.task.modules.values() for p in optim.trained(module)])
        if (scaler := self.accelerator.scaler) is not None:
            for optimiser in self._playing().values():
                scaler.unscale_(optimiser)
        return {name: optim.norm(module) for name, module in self.task.modules.items()}

    def _judge(self, data: BatchSource, seen: StepStats, norms: Mapping[str, Tensor]) -> bool:
        """Whether the step is finite everywhere. Under fp16 a few in a row need not be; else a Fault stops all."""
        if not distributed.all_reduce_max(int(not faults.all_finite(seen, norms))):
            self.skipped = 0
            return True
        self.skipped += 1
        if self.accelerator.scaler is not None and self.skipped < self.config.max_skips:
            return False
        order = StepBatchSampler(self.share, self.seed, len(data), self.step, self.step + 1)
        batches = [(places, data.__getitems__(places)) for places in order]
        report = faults.report(self.step + 1, seen, norms, self.task.modules, batches)
        self._restore()
        raise faults.Fault(report, self.skipped if self.accelerator.scaler is not None else 0)

    def _playing(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers of players that had a turn."""
        return {n: o for n, o in self.optimisers.items() if any(p.grad is not None for p in optim.moved(o))}

    def _move(self, norms: Mapping[str, Tensor]) -> float:
        """Clip, and move the weights of every player that had a turn; the learning rate of the first."""
        scaler = self.accelerator.scaler
        playing = self._playing()
        for name, module in self.task.modules.items():
            optim.clip(module, self.optim[name].max_grad_norm, norms[name])
        for name, optimiser in playing.items():
            for group in optimiser.param_groups:
                group["lr"] = self._lr(name)
            optimiser.step() if scaler is None else scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()  # once for all players: each accelerate-wrapped step would do it anew
        return self._lr(next(iter(self.optim)))

    def _settle(self, stands: bool) -> None:
        """Take over, or take back, what the step has changed beside weights."""
        if not stands:
            self._restore()
            return
        if isinstance(self.task, StatefulTask):
            self.task.after_step(self.step, self.optimisers)
        distributed.broadcast_(distributed.buffers(self.task.modules.values()))

    @torch.no_grad()
    def _restore(self) -> None:
        """Buffers as before the attempt at this step, and nothing gathered from it."""
        for buffer, value in zip(distributed.buffers(self.task.modules.values()), self.kept, strict=True):
            buffer.copy_(value)
        if isinstance(self.task, StatefulTask):
            self.task.discard_step()

    def _lr(self, name: str) -> float:
        """The learning rate with which one of the optimisers makes the next step."""
        config = self.optim[optim.module_of(name)]
        return optim.peak(self.optimisers[name], config) * lr_factor(config, self.step + 1, self.config.steps)

    @property
    def _state(self) -> state.State:
        return state.State(self.task, self.optimisers, self.ema, self.accelerator.scaler)

    def save(
        self, folder: Path, config: BaseModel, name: str | None = None, more: Mapping[str, Any] = MappingProxyType({})
    ) -> Path:
        """Write a checkpoint; every process calls it, the main one writes.

        Args:
            folder: the run's.
            config: the run's, to be kept with it.
            name: of the checkpoint's folder; by default `checkpoint-` and the step.
            more: plain values to be kept in it, by file name.

        Raises:
            UserError: on every process, when it cannot be written; what was there before stays.
        """
        path, failed = folder / (name or f"checkpoint-{self.step:08d}"), None
        if self.accelerator.is_main_process:
            try:
                self._write(path, config, more)
            except UserError as error:
                failed = str(error)
        if (said := distributed.all_gather_objects(failed)[0]) is not None:
            raise UserError(said)
        return path

    def _write(self, path: Path, config: BaseModel, more: Mapping[str, Any]) -> None:
        files, plain = self._state.files()
        halved = self.share != self._share()
        known = {
            "step": self.step,
            "position": self.step * self.config.batch_size,
            "source": self.source,
            "world_size": self.share.world,
            "micro_batch": self.share.size if halved else None,
            "config": config.model_dump(mode="json"),
            "versions": versions(),
        }
        texts = {"trainer_state.json": known | plain, **more}
        checkpoint.write(path, lambda draft: state.fill(draft, files, texts), state.size(files))

    def load(self, folder: Path) -> None:
        """Go on from a verified checkpoint; every process reads the files."""
        known = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        if known["step"] > self.config.steps:
            raise UserError(f"{folder} is at step {known['step']}, past the end: train.steps is {self.config.steps}")
        self._state.load(folder, known)
        self.step, self.source = known["step"], known["source"]
        self.share = self._share(known.get("micro_batch"))
