"""Functions that build, train, load and sample models with ldm_kit, for all benchmarks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

import conditioning.factory as conditioners
from autoencoder.base import encode
from conditioning.base import Conditioner
from ldm_kit.config import cache_dir, read
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.images import Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.autoencoder_config import AutoencoderRun
from ldm_kit.methods.latent import Latent, LatentRun
from ldm_kit.methods.networks import eval_mode
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.methods.train import open_method
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import autocast_dtype
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.execution import configure_network
from ldm_kit.nets.unet import UNet, build_unet
from ldm_kit.training.session import session
from ldm_kit.training.task import BatchSource

RUNS = Path("runs/benchmarks")
NATIVE = autocast_dtype("auto", torch.device("cpu"))  # bf16 where this processor computes it natively
AE, LDM = Path("configs/openmoji/ae_quick.yaml"), Path("configs/openmoji/ldm_quick.yaml")  # the quick recipe
QUICK, QUICK_AE = Path("runs/openmoji/ldm_quick"), Path("runs/openmoji/ae_quick")  # their runs
PIXELS = Path("configs/gpu/openmoji32_uncond.yaml")
SIDE, CHANNELS = 8, 4  # of the quick recipe's latents

__all__ = ["AE", "LDM", "AutoencoderRun", "LatentRun", "NoisyClassifier", "Pipeline", "SamplingOptions"]
__all__ += ["SemanticModel", "cache_dir"]


@dataclass(frozen=True, eq=False)
class Opened:
    """The parts of a training run: what is trained, and on which batches."""

    task: Any  # the `ldm_kit.training.task.Task` that is trained
    batches: BatchSource  # source of training batches
    vae: Any = None  # the frozen autoencoder of a latent run; None: the run has none


@dataclass(frozen=True, eq=False)
class Training:
    """A training run with ldm_kit's training loop, ready to train."""

    config: RunConfig
    opened: Opened  # what is trained, and on which batches
    trainer: Any  # the `ldm_kit.training.loop.Trainer`
    log: Any  # the run's `ldm_kit.training.log.Log`

    def steps(self) -> Iterator[object]:
        """Train to the last step of the config; after each step log its metrics and yield its `TrainStep`."""
        for step in self.trainer.train(self.opened.batches):
            self.log.step(step)
            yield step

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Return a context with the pipeline of a latent run, whose networks have averaged (EMA) weights within it."""
        module: Any = self.opened.task.module
        with self.trainer.ema.applied(), eval_mode(module):
            yield _pipeline(self.config, self.opened.vae, module.unet, module.conditioner, NATIVE)


@contextmanager
def open_training(config: RunConfig, open_run: Callable[[torch.device], Opened]) -> Iterator[Training]:
    """Return a context with a new training run in the folder `config.run`.

    `open_run` is a function that returns the run's parts (task and batches) for a device.
    """
    with session(config, None) as run:
        opened = open_run(run.device)
        trainer = run.trainer(opened.task, opened.batches)
        yield Training(config, opened, trainer, run.log(trainer))


def train_steps(config: RunConfig, open_run: Callable[[torch.device], Opened]) -> Iterator[object]:
    """Train a new run, and yield after each step; `open_run` returns the run's parts (task, batches) for a device."""
    with open_training(config, open_run) as training:
        yield from training.steps()


def open_latent(config: LatentRun, data: Split, device: torch.device, cached: bool = True) -> Opened:
    """Build the method and the batches of a latent (or pixel) run on the training pictures of `data`.

    If `cached`, latents and text states are encoded before; else pictures and captions are encoded in every step.
    """
    method: Any = open_method(config, data, device)
    return Opened(method, method.batches if cached else _Uncached(method), method.vae)


def open_autoencoder(config: AutoencoderRun, data: Split, device: torch.device) -> Opened:
    """Build an autoencoder's training task, and its batches of the training pictures of `data`."""
    return _configured(Autoencoding(config), PictureBatches(data.train, config.seed, config.flip), device)


def open_random_latents(config: LatentRun, side: int, count: int, tokens: int, device: torch.device) -> Opened:
    """Build a latent run on random data: `count` latents [CHANNELS, side, side], each with `tokens` text states."""
    conditioner = build_conditioner(config)
    with torch.device(device):  # a billion random weights take a GPU a moment
        unet = build_denoiser(config, conditioner.width, side)
    mean = torch.randn(count, 1, CHANNELS, side, side).half()
    states = torch.empty(count, tokens, conditioner.width or 1, dtype=torch.bfloat16).normal_()
    inputs = {"states": states, "mask": torch.ones(count, tokens, dtype=torch.bool)}
    batches = LatentBatches(Latents(mean, torch.zeros_like(mean), "random"), inputs, [""] * count, config.seed)
    return _configured(Latent(config, unet, conditioner), batches, device)


def _configured(task: Any, batches: BatchSource, device: torch.device) -> Opened:
    for module in task.modules.values():
        configure_network(module, device, task.config.train)
    return Opened(task, batches)


@dataclass(frozen=True, eq=False)
class _Uncached:
    """Training batches of a latent run whose pictures and captions are encoded anew for each batch, without a cache."""

    method: Latent  # the run's method, with autoencoder and conditioner

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the training data, equal to that of the run's cached batches."""
        return self.method.batches.fingerprint

    def __len__(self) -> int:
        return len(self.method.batches)

    @torch.no_grad()
    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> dict[str, object]:
        """Encode the batch for (position in the run, index of the picture) pairs.

        The result is {"mean", "logvar": [B, Z, h, w], "inputs": conditioner's inputs, "position": int64 [B]}.
        """
        method, config = self.method, self.method.config
        batch = PictureBatches(method.data.train, config.seed, config.flip).__getitems__(indices)
        assert method.vae is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            mean, logvar = encode(method.vae, batch["x"])
            raw = [method.conditions.train[index] for _, index in indices]
            inputs = method.module.conditioner.prepare(raw)
        return {"mean": mean.float(), "logvar": logvar.float(), "inputs": inputs, "position": batch["position"]}


def build_conditioner(config: LatentRun) -> Conditioner:
    """Build the conditioner that the config of a text-conditional run describes."""
    return conditioners.build(config.condition, captions=[], classes=(), time_width=config.unet.time_width)


def build_denoiser(config: LatentRun, cross_width: int | None, side: int = SIDE, channels: int = CHANNELS) -> UNet:
    """Build the U-Net that a config describes, for inputs [channels, side, side], with random weights.

    `cross_width` is the width of the states that cross-attention attends to; None: no cross-attention.
    """
    return build_unet(config.unet, sample_size=side, channels=channels, cross_width=cross_width)


def build_pipeline(
    config: LatentRun, autoencoder: Path, unet: Any = None, precision: torch.dtype | None = None
) -> Pipeline:
    """Build a pipeline from the autoencoder saved in a folder, and the U-Net and conditioner of a config.

    The conditioner has random weights, and so has the U-Net if `unet` is None. `precision` is the dtype of autocast
    while sampling; None: float32.
    """
    conditioner = build_conditioner(config)
    unet = build_denoiser(config, conditioner.width) if unet is None else unet
    return _pipeline(config, AutoencoderKL.from_pretrained(autoencoder), unet, conditioner, precision)


def _pipeline(config: Any, vae: Any, unet: Any, conditioner: Any, precision: torch.dtype | None) -> Pipeline:
    return Pipeline(vae, unet, conditioner, config.schedule, config.prediction_type, precision)


def read_latent(*overrides: str, config: Path = LDM) -> LatentRun:
    """Read the quick recipe of stage 2 (the denoiser), or another `config`, with overrides such as `train.steps=4`."""
    return read(LatentRun, config, list(overrides))


def read_autoencoder(*overrides: str, config: Path = AE) -> AutoencoderRun:
    """Read the quick recipe of stage 1 (the autoencoder), or another, with overrides such as `train.steps=4`."""
    return read(AutoencoderRun, config, list(overrides))


def load_openmoji() -> Split:
    """Load the built-in OpenMoji pictures at 32 x 32 pixels: training, held-out and compositional ones."""
    return load(OpenMojiConfig(resolution=32))


def sampling(
    *,
    steps: int,
    solver: str,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    classifier_scale: float | None = None,
    autoguidance_scale: float | None = None,
) -> SamplingOptions:
    """Return `SamplingOptions` with these fields; a field that is None is decided by the model that samples."""
    return SamplingOptions(
        steps=steps,
        solver=solver,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        classifier_scale=classifier_scale,
        autoguidance_scale=autoguidance_scale,
    )


def load_pipeline(
    folder: Path,
    precision: torch.dtype | None = NATIVE,
    classifier: Path | None = None,
    guide: Path | None = None,
) -> Pipeline:
    """Load a pipeline from a saved model's folder, with guides from theirs unless these are None.

    `classifier` is the folder of a noisy classifier for classifier guidance, `guide` that of the weaker model for
    autoguidance. `precision` is the dtype of autocast while sampling; None: float32.
    """
    pipeline = Pipeline.load(folder, precision=precision)
    if classifier is None and guide is None:
        return pipeline
    noisy = None if classifier is None else NoisyClassifier.load(classifier)
    return pipeline.with_guides(noisy, None if guide is None else Pipeline.load(guide, precision=precision))


def load_semantic(folder: Path) -> SemanticModel:
    """Load a semantic model (DiffAE, PDAE); it autocasts to bf16 where the processor computes it natively."""
    return SemanticModel.load(folder, precision=NATIVE)


def generate(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], options: SamplingOptions, batch: int = 64
) -> Tensor:
    """Generate a picture for each of N prompts with their N seeds, at most `batch` at a time; uint8 [N, C, R, R]."""
    return torch.cat(list(pipeline.generate(prompts, seeds, options, batch)))
