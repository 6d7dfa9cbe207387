"""`Method`, the base class of every training method."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_kit.data.batches import chosen
from ldm_kit.data.images import Split
from ldm_kit.data.peers import divided
from ldm_kit.diffusion.finite import NonFiniteError
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.memory import BatchSize
from ldm_kit.methods.from_trained import FromTrained
from ldm_kit.methods.measured import Measured
from ldm_kit.methods.mixture import Mixed
from ldm_kit.methods.networks import contiguous_weights, eval_mode, millions
from ldm_kit.methods.records import Collectives as Collectives
from ldm_kit.methods.records import Grid as Grid
from ldm_kit.methods.records import TrainingData as TrainingData
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.methods.run_summary import list_metrics, plot_curves
from ldm_kit.methods.shared_work import SharedWork
from ldm_kit.training.batches import by_group, to_device
from ldm_kit.training.checkpoint import write
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.precision import autocast
from ldm_kit.training.task import BatchSource, LossTerm
from ldm_kit.viz.png import save_png, tolerate_oserror

_log = logging.getLogger("ldm_kit.evaluation")
HELDOUT_SEED = 20220420  # of held-out noise; fixed, so that held-out losses of different runs compare
NO_NOISE = Schedule(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))  # x_t = x_0
C = TypeVar("C", bound=RunConfig)


class Method(FromTrained, Measured, Mixed, ABC, Generic[C]):
    """A training method, from config to saved model; `ldm_kit.methods.train.train` runs it.

    A subclass sets `Config` and defines `build`, `losses` and `save`. An instance is the `Task` of the training loop,
    which gives each of `modules` an optimiser and averages the weights of each of `ema_modules` (EMA).

    Attributes:
        Config: the method's config class; its field `method` is a Literal that holds the method's name.
        heldout_seed: seed of the noise of held-out samples.
        config: the run's config.
        modules: trained networks by name; `losses` yields a term for each, logged as NAME_loss.
        ema_modules: networks whose weights are averaged, by their folder in the saved model.
        ddp_modules: `modules`, wrapped by DDP if it is used; `losses` must call these.
        data, batches, heldout: pictures, training batches, and held-out batches (None: nothing is held out).
        schedule: noise schedule, on the training device; methods without noise have `NO_NOISE`.
        collectives: reductions over processes.
        metrics: metrics of the last evaluation, by name.
        dependencies: digests of models and tokenizers that are not trained, by the config keys that name them.
        precision: dtype of the run's autocast; None: float32. shared_work: shares held-out evaluation of processes.
    """

    Config: ClassVar[type[RunConfig]]
    heldout_seed: ClassVar[int] = HELDOUT_SEED

    config: C
    data: Split
    batches: BatchSource
    heldout: BatchSource | None = None

    def __init__(
        self,
        config: C,
        data: TrainingData | None = None,
        *,
        modules: dict[str, nn.Module],
        ema_modules: dict[str, nn.Module],
        schedule: Schedule | None = None,
    ) -> None:
        self.config, self.modules, self.ema_modules = config, modules, ema_modules
        self.schedule = NO_NOISE if schedule is None else schedule
        self.ddp_modules: Mapping[str, nn.Module] = modules
        self.collectives = Collectives()
        self.metrics: dict[str, float] = {}
        self.dependencies: dict[str, str] = {}
        self.precision: torch.dtype | None = None
        self.shared_work = SharedWork()
        if data is not None:  # else losses can be computed, but nothing trained, evaluated or saved
            self.data, self.batches, self.heldout = data

    @classmethod
    @abstractmethod
    def build(cls, config: C, data: Split, device: torch.device) -> Self:
        """Build the method: its networks, and batches of the pictures `data`; frozen networks run on `device`.

        Raises:
            UserError: the config does not fit the pictures, or names a model or folder that cannot be opened.
        """

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Iterator[LossTerm]:
        """Yield, for each network to train, (name in `modules`, mean loss over the batch, scalars to log).

        `batch` is a micro-batch from `batches`, on the device; `step` is the number of steps completed before this one.
        The loop runs the backward pass of a term before it asks for the next term. It may repeat a failed step, so this
        method may change nothing but gradients and buffers; `after_step` changes all else.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the finished model into an empty folder."""

    def samples(self) -> Grid | None:
        """Return a grid of pictures sampled from fixed seeds, or None; what is measured on the way joins `metrics`."""
        return None

    def heldout_losses(self, batch: Any, t: Tensor, seed: int) -> Tensor:
        """Return the loss [B] of each sample at timesteps t [B], without the weights that training gives to timesteps.

        `batch` is a batch from `heldout`, on the device; `seed` fixes the noise.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no held-out losses")

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """Optimiser config of each of `modules`, by name; by default the config's `optim` for all."""
        return dict.fromkeys(self.modules, self.config.optim)

    @cached_property
    def eval_batch(self) -> BatchSize:
        """Batch size of passes without gradients: evaluation, sampling, encoding."""
        return BatchSize.for_pictures(self.config.train.eval_batch, self.config.data.resolution)

    @property
    def device(self) -> torch.device:
        """Device of the trained networks."""
        return next(next(iter(self.modules.values())).parameters()).device

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Store `wrapped`, the modules by name (DDP's wrappers if used); move the noise schedule to their device."""
        self.ddp_modules = wrapped
        self.schedule = self.schedule.to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that a checkpoint must hold beside the weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Update tensors that no gradient trains, after `optimisers`, by name, made step `step` (the first is 0)."""

    def discard_step(self) -> None:
        """Discard what `losses` collected for `after_step` in a step that failed and will be repeated."""

    @torch.no_grad()
    def heldout_loss(self, batch_size: int | None = None) -> float | None:
        """Return the mean held-out loss, in batches of `batch_size` (None: `eval_batch`); None: nothing is held out.

        Sample i of N is noised to timestep floor((i + 1/2) T / N). Of a larger set a fixed random choice of N =
        `log.max_heldout` is measured. `heldout_seed` and a sample's index fix the noise, so that runs compare.
        """
        if (samples := self.heldout) is None:
            return None
        rows, times = chosen(len(samples), self.config.log.max_heldout), len(self.schedule)

        @by_group(samples, rows)
        def losses(indices: Tensor) -> Tensor:
            t = ((indices + 0.5) / len(rows) * times).long().to(self.device)
            samples_at = to_device(samples.__getitems__([(i, i) for i in rows[indices].tolist()]), self.device)
            return self.heldout_losses(samples_at, t, self.heldout_seed).cpu()

        size = BatchSize.of(batch_size or self.eval_batch)
        with eval_mode(*self.modules.values()):
            parts = divided(len(rows), lambda own: torch.cat([*size.map(torch.tensor(own), losses)]))
        return float(parts.double().mean())

    def heldout_metrics(self) -> dict[str, float]:
        """Return metrics by name: here the mean loss as heldout_loss; {} if nothing is held out."""
        return {} if (loss := self.heldout_loss()) is None else {"heldout_loss": loss}

    @classmethod
    def figures(cls, config: C, data: Split | None) -> list[str] | None:
        """Return the names of the metrics of `evaluate`, so that `train.keep_best` can be checked before training.

        Args:
            config: the run's config.
            data: the run's pictures; None: not loaded yet, so that all possible names are returned.

        Returns None if they are unknown, as a subclass overrides `evaluate` or `heldout_metrics`, but not `figures`.
        """
        if (cls.heldout_metrics, cls.evaluate) != (Method.heldout_metrics, Method.evaluate):
            return None
        return ["heldout_loss"] if data is None or len(data.heldout) else []

    def evaluate(self, step: int, folder: Path) -> dict[str, float]:
        """Return metrics of held-out samples after step `step`; write a grid of samples into the run's `folder`."""
        self.metrics = self.shared_work.run(self.in_evaluation, "heldout_metrics")
        with eval_mode(*self.modules.values()), autocast(self.device, self.precision):
            grid = self._finite_samples(step)
        if grid is not None:
            self.write_grid(grid, step, folder)
        return self.metrics

    def in_evaluation(self, name: str) -> Any:
        """Call this object's method `name` with networks in evaluation mode and under autocast; return its result."""
        with eval_mode(*self.modules.values()), autocast(self.device, self.precision):
            return getattr(self, name)()

    def _finite_samples(self, step: int) -> Grid | None:
        """Return `samples()`; None, with a warning that names the step, if sampling gives a NaN or an infinity."""
        try:
            return self.samples()
        except NonFiniteError as error:
            _log.warning("no sample pictures of step %d: %s", step, error)
            return None

    def write_grid(self, grid: Grid, step: int, folder: Path) -> None:
        """Write a grid to pictures/NAME-STEP.png in the run's folder `folder`; if the disk is full, only warn."""
        path = folder / "pictures" / f"{grid.name}-{step:08d}.png"
        with tolerate_oserror(path):
            save_png(grid.image, path, None)

    def finish(self, folder: Path) -> str:
        """Write model/ and the training curves into the run's folder; return a sentence on both for the log."""
        self.save_model(folder / "model")
        return f"{self.summary(folder / 'model')}; {plot_curves(folder, self.curve_keys())}"

    def save_model(self, folder: Path) -> None:
        """Write the model with the current weights atomically; a model that is in `folder` already is replaced."""
        modules = self.modules.values()
        with eval_mode(*modules), contiguous_weights(*modules), autocast(self.device, self.precision):
            write(folder, self.save)

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl whose training curves are plotted: by default losses and metrics."""
        return [*(f"{name}_loss" for name in self.modules), *self.metrics]

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder and the held-out metrics."""
        return f"model in {model}: {list_metrics(self.metrics)}"

    def describe(self) -> str:
        """Return a paragraph on data, networks and run length, and a warning for each setting without effect."""
        config = self.config
        paragraph = (
            f"{self.describe_data()}, {len(self.data.heldout)} held out; {self.describe_model()}; {config.train.steps} "
            f"steps of {config.train.batch_size} (global batch), lr {config.optim.lr:g}"
        )
        return "\n".join([paragraph, *self.notes, *(f"warning: {caution}" for caution in config.cautions())])

    def describe_data(self) -> str:
        """Return a phrase on the training set (how many pictures) for `describe`, the log's opening text."""
        return f"{len(self.data.train)} training pictures"

    def describe_model(self) -> str:
        """Return a phrase on the networks (names, trained parameters) for `describe`, the log's opening text."""
        return f"{', '.join(self.modules)} with {millions(*self.modules.values())} trained parameters"
