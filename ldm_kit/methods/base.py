"""The class that every training method subclasses, one file a method."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.codebook import itself
from ldm_kit.data.images import Split
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.training.batches import to_device
from ldm_kit.training.checkpoint import write
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import BatchSource, LossTerm
from ldm_kit.viz.curves import curves
from ldm_kit.viz.png import save_png, tolerate_oserror

HELDOUT_SEED = 20220420  # addresses held-out noise; fixed, so that held-out losses of different runs compare
NO_NOISE = Schedule(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))  # x_0 = x_0


@dataclass(frozen=True)
class Collectives:
    """Reductions over the processes of a run; the defaults are those of a single process."""

    mean: Callable[[Tensor], Tensor] = itself
    sum: Callable[[Tensor], Tensor] = itself
    broadcast: Callable[[Tensor], Tensor] = itself  # the main process's tensor


class TrainingData(NamedTuple):
    """The pictures of a run, and the batches that are made of them."""

    pictures: Split
    batches: BatchSource
    heldout: BatchSource | None = None  # batches of held-out samples; None: nothing is held out


@dataclass(frozen=True)
class Grid:
    """A sheet of sample pictures; the run keeps it as pictures/NAME-STEP.png."""

    image: Image
    name: str = "samples"


C = TypeVar("C", bound=RunConfig)


class Method(ABC, Generic[C]):
    """One way of training, from config to saved model; `ldm_kit.methods.train.train` runs any of them.

    A subclass names its config class, builds everything in `build`, and gives losses, samples and the saved model. It
    is the training loop's task: each of `modules` has an optimiser, each of `ema_modules` an average of its weights.

    Attributes:
        Config: config class, whose `method` is the name under which this class is looked up.
        heldout_batch: samples in a batch of `heldout_loss`; None: all at once.
        heldout_seed: addresses the noise of held-out samples.
        config: the run's.
        modules: what is trained, by name; each is a loss term's owner, and NAME_loss its key in metrics.jsonl.
        ema_modules: what is averaged, by its folder in the saved model.
        ddp_modules: `modules` as DDP wraps them, which `losses` must call.
        data, batches, heldout: pictures, training batches, and held-out batches if any.
        schedule: noise schedule on the device of training; methods without noise have `NO_NOISE`.
        collectives: reductions over processes.
        metrics: what the last evaluation measured.
    """

    Config: ClassVar[type[RunConfig]]
    heldout_batch: ClassVar[int | None] = 64
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
        addressed by (`heldout_seed`, i): losses of different runs and of different batch sizes compare.
        """
        if self.heldout is None:
            return None
        count, times = len(self.heldout), len(self.schedule)
        losses: list[Tensor] = []
        with eval_mode(*self.modules.values()):
            for indices in torch.arange(count).split(batch_size or self.heldout_batch or count):
                t = ((indices + 0.5) / count * times).long().to(self.device)
                batch = to_device(self.heldout.__getitems__([(i, i) for i in indices.tolist()]), self.device)
                losses.append(self.heldout_losses(batch, t, self.heldout_seed))
        return float(torch.cat(losses).double().mean())

    def heldout_metrics(self) -> dict[str, float]:
        """Measure held-out samples; empty where nothing is held out."""
        loss = self.heldout_loss()
        return {} if loss is None else {"heldout_loss": loss}

    def evaluate(self, step: int, folder: Path) -> dict[str, float]:
        """Measure held-out samples and write a grid of pictures into the run's folder, with the weights at hand."""
        with eval_mode(*self.modules.values()):
            self.metrics = self.heldout_metrics()
            grid = self.samples()
        if grid is not None:
            self.write_grid(grid, step, folder)
        return self.metrics

    def write_grid(self, grid: Grid, step: int, folder: Path) -> None:
        """Write pictures/NAME-STEP.png; a full disk costs the picture and a warning, not the run."""
        path = folder / "pictures" / f"{grid.name}-{step:08d}.png"
        with tolerate_oserror(path):
            save_png(grid.image, path, None)

    def finish(self, folder: Path) -> str:
        """Write model/ and the training curves into the run's folder; return a sentence on both."""
        with eval_mode(*self.modules.values()):
            write(folder / "model", self.save)
        curves(folder / "metrics.jsonl", folder / "pictures" / "curves.png", self.curve_keys())
        return f"{self.summary(folder / 'model')}; pictures in {folder / 'pictures'}"

    def curve_keys(self) -> list[str]:
        """Return the keys of metrics.jsonl that are plotted: by default all losses and held-out metrics."""
        return [*(f"{name}_loss" for name in self.modules), *self.metrics]

    def summary(self, model: Path) -> str:
        """Return what was saved where, and its held-out metrics."""
        metrics = ", ".join(
            f"{name.replace('heldout_', 'held-out ')} {value:.4g}" for name, value in self.metrics.items()
        )
        return f"model in {model}: {metrics or 'nothing held out'}"

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


def millions(*modules: nn.Module) -> str:
    """Count trained parameters, in millions, such as "1.2 M"."""
    return f"{sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad) / 1e6:.1f} M"


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Hold modules in evaluation mode; each returns to the mode it was in."""
    were = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in zip(modules, were, strict=True):
            module.train(training)
