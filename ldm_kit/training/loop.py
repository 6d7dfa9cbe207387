"""The training loop for any `Task`, which gives its losses as a generator of (module name, loss, logs).

accelerate provides devices, DDP and precision. The order of samples, noise and dropout are functions of (seed, step,
position), so the loop stores no random state. The loop yields after each completed step, when weights, averages and
counters agree; the caller logs, evaluates and saves checkpoints in its `for step in trainer.train(...)`.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import Tensor, nn

from ldm_kit import memory
from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import distributed, faults, optim
from ldm_kit.training.batches import BatchSplit, StepBatchSampler, groups_of, loader, to_device
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.ema import Ema, EmaConfig
from ldm_kit.training.muon import Muon
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import BatchSource, StatefulTask, StepStats, Task, TrainStep, order_of, show_whole_batch
from ldm_kit.training.training_state import TrainingState, check_unchanged, metadata, read_metadata


@dataclass(eq=False)
class Trainer:
    """Trainer of a task: its modules, optimisers and EMA, and the number of completed steps."""

    accelerator: Accelerator  # device, ranks, precision
    task: Task  # the modules to train, and their losses
    optim: Mapping[str, OptimConfig]  # settings of the optimisers, by name of the task's modules
    config: TrainConfig  # section `train` of the run's config
    ema_config: EmaConfig  # section `ema` of the run's config
    _: KW_ONLY
    seed: int  # seed of the order of samples, and of dropout and other random numbers of the modules
    step: int = 0  # completed steps
    source: str | None = None  # fingerprint of the data that the completed steps were trained on
    overflows: int = 0  # steps in a row that overflowed under fp16
    ema: Ema = field(init=False)  # averages of the weights
    ddp_modules: dict[str, nn.Module] = field(init=False)  # the task's modules, wrapped by DDP if it is used
    optimisers: dict[str, torch.optim.Optimizer] = field(init=False)  # named MODULE (AdamW) and MODULE.muon
    split: BatchSplit = field(init=False)  # division of a batch among ranks and into micro-batches
    saved_buffers: list[Tensor] = field(init=False, default_factory=list)  # copies from before the present step

    def __post_init__(self) -> None:
        for module in self.task.modules.values():
            module.to(self.accelerator.device)
            distributed.broadcast_(module.state_dict().values())
        no_ddp = not self.config.overlap  # gradients are then averaged after the backward pass
        modules = self.task.modules.items()
        self.ddp_modules = {name: self.accelerator.prepare_model(m, evaluation_mode=no_ddp) for name, m in modules}
        self.task.set_ddp_modules(self.ddp_modules)
        self.ema = Ema(self.ema_config, self.task.ema_modules)
        # built last: on a CPU with several ranks, `prepare_model` moves the weights once more
        self.optimisers = optim.build_all(self.task.modules, self.optim)
        if self.accelerator.scaler is not None and any(isinstance(o, Muon) for o in self.optimisers.values()):
            raise UserError("optim.muon does not go with train.precision fp16; take bf16 or no")
        self.split = self._configured_split()

    def train(self, data: BatchSource) -> Iterator[TrainStep]:
        """Train to the last step; after each step yield its number, learning rate, gradient norms and values to log.

        Args:
            data: source of the training batches.

        Raises:
            NonFiniteError: a loss or gradient is not finite on a rank; the weights are those from before that step.
            torch.OutOfMemoryError: memory does not suffice for one sample at a time.
        """
        self.source = data.fingerprint
        batches = self._batches(data)
        while self.step < self.config.steps:
            if (stats := self.forward_backward(batches)) is None:
                self.halve_micro_batch()
                batches = self._batches(data)
                continue
            norms = self.grad_norms()
            finite = self.check_finite(data, stats, norms)
            lr = self.optimizer_step(norms)
            self.commit(finite)
            yield TrainStep(self.step, lr, norms, stats.logs)

    def _batches(self, data: BatchSource) -> Iterator[Any]:
        return iter(loader(data, self._sampler(data, self.config.steps), self.config.workers, self.accelerator.device))

    def _sampler(self, data: BatchSource, stop: int) -> StepBatchSampler:
        return StepBatchSampler(self.split, self.seed, order_of(self.task, data), self.step, stop, groups_of(data))

    def forward_backward(self, batches: Iterator[Any]) -> StepStats | None:
        """Compute a step's losses and gradients; return the losses, or None on all ranks if one ran out of memory.

        `batches` yields micro-batches, of which the step takes as many as it needs.
        """
        self.saved_buffers = [buffer.clone() for buffer in distributed.buffers(self.task.modules.values())]
        stats = None
        try:
            stats = self._accumulate(batches)
        except distributed.StepAborted:
            return None
        except RuntimeError as error:
            if not memory.is_out_of_memory(error) or (self.config.overlap and distributed.is_distributed()):
                raise
        return None if distributed.all_reduce_max(int(stats is None)) else stats

    def _accumulate(self, batches: Iterator[Any]) -> StepStats:
        stats, accumulation = StepStats(), self.split.accumulation
        batches = show_whole_batch(self.task, batches, accumulation, self.step, self.accelerator.device)
        for number, positions in enumerate(self.split.micro_batches(self.step), 1):
            torch.manual_seed(derive_seed(self.seed, "modules", self.step, positions[0]))
            batch = to_device(next(batches), self.accelerator.device)
            with ExitStack() as stack:
                if number < accumulation:
                    for module in self.ddp_modules.values():
                        stack.enter_context(self.accelerator.no_sync(module))
                terms = self.task.losses(batch, self.step)
                if isinstance(terms, Generator):  # an error must not leave its context managers open
                    stack.callback(terms.close)
                for name, loss, logs in terms:
                    self.accelerator.backward(loss / accumulation)
                    stats.add(name, loss, logs, accumulation)
        return stats

    def halve_micro_batch(self) -> None:
        """After an out-of-memory error, undo this step, and use micro-batches of half the size from now on."""
        self._undo_attempt()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        memory.free_memory()
        split = self.split.halved()
        if split is None:
            raise torch.OutOfMemoryError("out of memory with one picture at a time")
        distributed.print_on_main(
            f"out of memory at step {self.step + 1}: it is made again with {split.size} instead of {self.split.size} "
            f"pictures at once in a process; batches of {split.global_batch} as before"
        )
        self.split = split

    def grad_norms(self) -> dict[str, Tensor]:
        """Average gradients over ranks, undo fp16's loss scale, and return each module's gradient norm (a scalar)."""
        modules = self.task.modules
        if distributed.is_distributed() and not self.config.overlap:
            distributed.average_gradients([p for module in modules.values() for p in optim.trainable(module)])
        if (scaler := self.accelerator.scaler) is not None:
            for optimiser in optim.with_gradients(self.optimisers).values():
                scaler.unscale_(optimiser)
        return {name: optim.grad_norm(module) for name, module in modules.items()}

    def check_finite(self, data: BatchSource, stats: StepStats, norms: Mapping[str, Tensor]) -> bool:
        """Return whether this step's losses (`stats`) and gradient `norms` (by module) are finite on all ranks.

        Raises:
            NonFiniteError: one is not (fp16: in the `train.max_skips`-th step in a row); it names samples of `data`.
        """
        if not distributed.all_reduce_max(int(not faults.all_finite(stats, norms))):
            self.overflows = 0
            return True
        self.overflows += 1
        is_fp16 = self.accelerator.scaler is not None
        if is_fp16 and self.overflows < self.config.max_skips:
            return False
        batches = [(samples, data.__getitems__(samples)) for samples in self._sampler(data, self.step + 1)]
        report = faults.fault_report(self.step + 1, stats, norms, self.task.modules, batches)
        self._undo_attempt()
        raise faults.NonFiniteError(report, self.overflows if is_fp16 else 0)

    def optimizer_step(self, norms: Mapping[str, Tensor]) -> float:
        """Clip gradients (`norms`: their norms by module), update weights; return the first module's learning rate."""
        optimisers = optim.with_gradients(self.optimisers)
        for name, module in self.task.modules.items():
            optim.clip(module, self.optim[name].max_grad_norm, norms[name])
        for name, optimiser in optimisers.items():
            optim.update(optimiser, self._lr(name), self.accelerator.scaler)
        if (scaler := self.accelerator.scaler) is not None:
            scaler.update()  # once for all modules: each optimiser that accelerate wraps would update it again
        return self._lr(next(iter(self.optimisers)))

    def commit(self, finite: bool) -> None:
        """Complete the step, whose losses and gradients are `finite` or not: count it and update the EMA.

        Before that, if `finite`, call a `StatefulTask`'s `after_step`, and copy the main rank's buffers to all ranks;
        if not, call the task's `discard_step` instead, and restore the buffers as they were before the step.
        """
        if not finite:
            self._undo_attempt()
        else:
            if isinstance(self.task, StatefulTask):
                self.task.after_step(self.step, self.optimisers)
            distributed.broadcast_(distributed.buffers(self.task.modules.values()))
        self.step += 1
        self.ema.update(self.step)

    @torch.no_grad()
    def _undo_attempt(self) -> None:
        """Restore the buffers as they were before this failed step, and call a `StatefulTask`'s `discard_step`."""
        for buffer, saved in zip(distributed.buffers(self.task.modules.values()), self.saved_buffers, strict=True):
            buffer.copy_(saved)
        if isinstance(self.task, StatefulTask):
            self.task.discard_step()

    def _lr(self, name: str) -> float:
        """Return the learning rate of the optimiser `name` in the current step."""
        config = self.optim[optim.module_of(name)]
        return optim.lr_at(self.optimisers[name], config, self.step + 1, self.config.steps)

    def _configured_split(self) -> BatchSplit:
        """Return the division of a batch by the config alone, without the halvings after out-of-memory errors."""
        ranks = self.accelerator.num_processes, self.accelerator.process_index
        return BatchSplit.of(self.config.batch_size, self.config.micro_batch, *ranks)

    def save(self, folder: Path, config: BaseModel, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint on the main rank and return its folder; every rank must call it.

        Args:
            folder: the run's folder.
            config: the run's config, which is stored in the checkpoint.
            name: name of the checkpoint's folder; by default `checkpoint-` and the step.
            extra: contents of further JSON files in the checkpoint, by file name.

        Raises:
            UserError: the checkpoint cannot be written (raised on every rank); an existing one is then unchanged.
        """
        path = folder / (name or f"checkpoint-{self.step:08d}")
        halved = self.split.size if self.split != self._configured_split() else None

        def write() -> None:
            values = metadata(config, self.split, self.step, self.source, task=self.task, micro_batch=halved)
            self._state().save(path, values, extra or {})

        distributed.on_main(write)
        return path

    def _state(self) -> TrainingState:
        return TrainingState(self.task, self.optimisers, self.ema, self.accelerator.scaler)

    def load(self, folder: Path, data: BatchSource) -> None:
        """Restore weights, optimisers, EMA and step from a verified checkpoint's folder; every rank reads the files.

        `data` is the source of the training batches with which this run goes on.

        Raises:
            UserError: the checkpoint is past the last step of this run; or it was made with other data, or with other
                models that are not trained, such as a text encoder.
        """
        saved = read_metadata(folder)
        if saved["step"] > self.config.steps:
            raise UserError(f"{folder} is at step {saved['step']}, past the end: train.steps is {self.config.steps}")
        dependencies = saved.get("dependencies", {})
        check_unchanged(saved["step"], data, self.task, source=saved["source"], dependencies=dependencies)
        self.optim = optim.as_saved(self.optim, saved["optimizer"])
        self.optimisers = optim.build_all(self.task.modules, self.optim)
        self._state().load(folder, saved)
        self.step, self.source = saved["step"], saved["source"]
        self.split = self._configured_split().limited_to(saved.get("micro_batch"))
