"""The class that every training method subclasses, one file a method."""

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
from ldm_kit.diffusion.finite import NonFiniteError
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.memory import BatchSize
from ldm_kit.methods.networks import contiguous_weights
from ldm_kit.methods.networks import eval_mode as eval_mode
from ldm_kit.methods.networks import millions as millions
from ldm_kit.methods.records import Collectives as Collectives
from ldm_kit.methods.records import Grid as Grid
from ldm_kit.methods.records import TrainingData as TrainingData
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.methods.run_summary import list_metrics, plot_curves
from ldm_kit.training.batches import to_device
from ldm_kit.training.checkpoint import write
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.precision import autocast
from ldm_kit.training.task import BatchSource, LossTerm
from ldm_kit.viz.png import save_png, tolerate_oserror

_log = logging.getLogger("ldm_kit.evaluation")
HELDOUT_SEED = 20220420  # addresses held-out noise; fixed, so that held-out losses of different runs compare
NO_NOISE = Schedule(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))  # x_0 = x_0


C = TypeVar("C", bound=RunConfig)


class Method(ABC, Generic[C]):
    """One way of training, from config to saved model; `ldm_kit.methods.train.train` runs any of them.

    A subclass names its config class, builds everything in `build`, and gives losses, samples and the saved model. It
    is the training loop's task: each of `modules` has an optimiser, each of `ema_modules` an average of its weights.

    Attributes:
        Config: config class, whose `method` is the name under which this class is looked up.
        heldout_seed: addresses the noise of held-out samples.
        config: the run's.
        modules: what is trained, by name; each is a loss term's owner, and NAME_loss its key in metrics.jsonl.
        ema_modules: what is averaged, by its folder in the saved model.
        ddp_modules: `modules` as DDP wraps them, which `losses` must call.
        data, batches, heldout: pictures, training batches, and held-out batches if any.
        schedule: noise schedule on the device of training; methods without noise have `NO_NOISE`.
        collectives: reductions over processes.
        metrics: what the last evaluation measured.
        dependencies: digests of models and tokenizers that are not trained, by the config keys that name them.
        precision: to which the run autocasts; None: float32.
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
        if data is not None:  # else losses can be computed, but nothing trained, evaluated or saved
            self.data, self.batches, self.heldout = data

    @classmethod
    @abstractmethod
    def build(cls, config: C, data: Split, device: torch.device) -> Self:
        """Build networks, caches and batches.

        Raises:
            UserError: the config does not fit the pictures, or names what cannot be opened.
        """

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Iterator[LossTerm]:
        """Yield (name in `modules`, mean loss over the batch, logs), one after another.

        The loop runs backward before it asks for the next. An attempt at a step may be repeated, so nothing but
        gradients and buffers may change here; all else changes in `after_step`.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the finished model into an empty folder."""

    def samples(self) -> Grid | None:
        """Sample pictures with the current weights, always from the same seeds; None: nothing to show."""
        return None

    def heldout_losses(self, batch: Any, t: Tensor, seed: int) -> Tensor:
        """Compute unweighted losses [B] of a held-out batch at times t [B], with noise addressed by `seed`."""
        raise NotImplementedError(f"{type(self).__name__} computes no held-out losses")

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """Optimiser config of each of `modules`; by default the run's for all."""
        return dict.fromkeys(self.modules, self.config.optim)

    @cached_property
    def eval_batch(self) -> BatchSize:
        """Samples at once where nothing is trained."""
        return BatchSize.for_pictures(self.config.train.eval_batch, self.config.data.resolution)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(next(iter(self.modules.values())).parameters()).device

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the modules as DDP wraps them, and move the schedule to their device."""
        self.ddp_modules = wrapped
        self.schedule = self.schedule.to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors beside weights that a checkpoint must hold."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def after_step(self, step: int, optimisers: Mapping[str, Optimizer]) -> None:
        """Change what is not changed by gradients, after the optimisers' step."""

    def discard_step(self) -> None:
        """Forget what `losses` gathered in an attempt at a step that does not count."""

    @torch.no_grad()
    def heldout_loss(self, batch_size: int | None = None) -> float | None:
        """Compute the mean loss over held-out samples in evaluation mode; None where nothing is held out.

        Sample i of N is noised to time floor((i + 1/2) T / N) of T, so that times are spread evenly, with noise
        addressed by (`heldout_seed`, i): losses of different runs and of different batch sizes compare. Of more than
        `log.max_heldout` samples N are `chosen`, and i counts those; each has the noise of its number in the whole set.
        """
        if self.heldout is None:
            return None
        rows, samples, times = chosen(len(self.heldout), self.config.log.max_heldout), self.heldout, len(self.schedule)
        count = len(rows)

        def losses(batch: range) -> Tensor:
            indices = torch.tensor(batch)
            t = ((indices + 0.5) / count * times).long().to(self.device)
            samples_at = to_device(samples.__getitems__([(i, i) for i in rows[indices].tolist()]), self.device)
            return self.heldout_losses(samples_at, t, self.heldout_seed).cpu()

        with eval_mode(*self.modules.values()):
            parts = [*BatchSize.of(batch_size or self.eval_batch).batches(count, losses)]
        return float(torch.cat(parts).double().mean())

    def heldout_metrics(self) -> dict[str, float]:
        """Measure held-out samples; empty where nothing is held out."""
        loss = self.heldout_loss()
        return {} if loss is None else {"heldout_loss": loss}

    @classmethod
    def figures(cls, config: C, data: Split | None) -> list[str] | None:
        """Return the names of what `evaluate` measures, so that `train.keep_best` is checked before anything is built.

        Args:
            config: the run's.
            data: its pictures; None: not loaded yet, and every figure that there may be is named.

        Returns:
            The names; None: not known, as where a subclass overrides `evaluate` or `heldout_metrics` alone.
        """
        if (cls.heldout_metrics, cls.evaluate) != (Method.heldout_metrics, Method.evaluate):
            return None
        return ["heldout_loss"] if data is None or len(data.heldout) else []

    def evaluate(self, step: int, folder: Path) -> dict[str, float]:
        """Measure held-out samples and write a grid of pictures into the run's folder, with the weights at hand."""
        with eval_mode(*self.modules.values()), autocast(self.device, self.precision):
            self.metrics = self.heldout_metrics()
            grid = self._finite_samples(step)
        if grid is not None:
            self.write_grid(grid, step, folder)
        return self.metrics

    def _finite_samples(self, step: int) -> Grid | None:
        """Return `samples`; a NaN or an infinity, such as of too large a guidance scale, costs the grid alone."""
        try:
            return self.samples()
        except NonFiniteError as error:
            _log.warning("no sample pictures of step %d: %s", step, error)
            return None

    def write_grid(self, grid: Grid, step: int, folder: Path) -> None:
        """Write pictures/NAME-STEP.png; a full disk costs the picture and a warning, not the run."""
        path = folder / "pictures" / f"{grid.name}-{step:08d}.png"
        with tolerate_oserror(path):
            save_png(grid.image, path, None)

    def finish(self, folder: Path) -> str:
        """Write model/ and the training curves into the run's folder; return a sentence on both."""
        self.save_model(folder / "model")
        return f"{self.summary(folder / 'model')}; {plot_curves(folder, self.curve_keys())}"

    def save_model(self, folder: Path) -> None:
        """Write the model with the current weights, whole or not at all; what was there before is replaced."""
        modules = self.modules.values()
        with eval_mode(*modules), contiguous_weights(*modules), autocast(self.device, self.precision):
            write(folder, self.save)

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl that are plotted: by default all losses and held-out metrics."""
        return [*(f"{name}_loss" for name in self.modules), *self.metrics]

    def summary(self, model: Path) -> str:
        """Return what was saved where, and its held-out metrics."""
        return f"model in {model}: {self.listed_metrics()}"

    def listed_metrics(self) -> str:
        """Return what the last evaluation measured, in words that say of which pictures."""
        return list_metrics(self.metrics)

    def describe(self) -> str:
        """Return one paragraph on what is about to be trained, and a line on each setting without effect."""
        config = self.config
        paragraph = (
            f"{self.describe_data()}, {len(self.data.heldout)} held out; {self.describe_model()}; {config.train.steps} "
            f"steps of {config.train.batch_size} (global batch), lr {config.optim.lr:g}"
        )
        return "\n".join([paragraph, *(f"warning: {caution}" for caution in config.cautions())])

    def describe_data(self) -> str:
        """Return what `describe` says of the training set."""
        return f"{len(self.data.train)} training pictures"

    def describe_model(self) -> str:
        """Return what `describe` says of the networks."""
        return f"{', '.join(self.modules)} with {millions(*self.modules.values())} trained parameters"
