"""The one place where the benchmarks build, train, load and sample with the kit."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
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
from ldm_kit.nets.execution import set_attention
from ldm_kit.nets.unet import UNet, build_unet
from ldm_kit.training.session import session
from ldm_kit.training.task import BatchSource

RUNS = Path("runs/benchmarks")
NATIVE = autocast_dtype("auto", torch.device("cpu"))  # bf16 where this processor computes it natively
AE, LDM = Path("configs/demo/ae.yaml"), Path("configs/demo/ldm.yaml")
PIXELS = Path("configs/pixels/openmoji32_uncond.yaml")
SIDE, CHANNELS = 8, 4  # of the demo's latents

__all__ = ["AE", "LDM", "AutoencoderRun", "LatentRun", "NoisyClassifier", "Pipeline", "SamplingOptions"]
__all__ += ["SemanticModel", "cache_dir"]


@dataclass(frozen=True, eq=False)
class Opened:
    """What a run trains, on which batches, and its frozen autoencoder if it has one."""

    task: Any
    batches: BatchSource
    vae: Any = None


@dataclass(frozen=True, eq=False)
class Training:
    """An open run of the kit's training loop."""

    config: RunConfig
    opened: Opened
    trainer: Any
    log: Any

    def steps(self) -> Iterator[object]:
        """Train, one step at a time: losses, optimisers, averages and log."""
        for step in self.trainer.train(self.opened.batches):
            self.log.step(step)
            yield step

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Provide the model of a latent run with its averaged weights."""
        module: Any = self.opened.task.module
        with self.trainer.ema.applied(), eval_mode(module):
            yield _pipeline(self.config, self.opened.vae, module.unet, module.conditioner, NATIVE)


@contextmanager
def open_training(config: RunConfig, open_run: Callable[[torch.device], Opened]) -> Iterator[Training]:
    """Open a run's folder, method, optimisers and log."""
    with session(config, None) as run:
        opened = open_run(run.device)
        trainer = run.trainer(opened.task)
        yield Training(config, opened, trainer, run.log(trainer))


def train_steps(config: RunConfig, open_run: Callable[[torch.device], Opened]) -> Iterator[object]:
    """Yield after each training step of a run."""
    with open_training(config, open_run) as training:
        yield from training.steps()


def open_latent(config: LatentRun, data: Split, device: torch.device, cached: bool = True) -> Opened:
    """Open a latent (or pixel) run; not `cached`: pictures and captions are encoded in every step."""
    method: Any = open_method(config, data, device)
    return Opened(method, method.batches if cached else _Uncached(method), method.vae)


def open_autoencoder(config: AutoencoderRun, data: Split) -> Opened:
    """Open an autoencoder's run."""
    return Opened(Autoencoding(config), PictureBatches(data.train, config.seed, config.flip))


def open_random_latents(config: LatentRun, side: int, count: int, tokens: int, device: torch.device) -> Opened:
    """Open a latent run on `count` random latents of a side, each with `tokens` random text states."""
    conditioner = build_conditioner(config)
    unet = build_denoiser(config, conditioner.width, side)
    set_attention(unet, device)
    mean = torch.randn(count, 1, CHANNELS, side, side).half()
    states = torch.empty(count, tokens, conditioner.width or 1, dtype=torch.bfloat16).normal_()
    inputs = {"states": states, "mask": torch.ones(count, tokens, dtype=torch.bool)}
    batches = LatentBatches(Latents(mean, torch.zeros_like(mean), "random"), inputs, [""] * count, config.seed)
    return Opened(Latent(config, unet, conditioner), batches)


@dataclass(frozen=True, eq=False)
class _Uncached:
    """Batches without a cache: posterior and text states of every picture, every time, in the run's precision."""

    method: Latent

    @property
    def fingerprint(self) -> str:
        """That of the cached batches."""
        return self.method.batches.fingerprint

    def __len__(self) -> int:
        return len(self.method.batches)

    @torch.no_grad()
    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> dict[str, object]:
        """Return the same keys as `LatentBatches`."""
        method, config = self.method, self.method.config
        batch = PictureBatches(method.data.train, config.seed, config.flip).__getitems__(indices)
        assert method.vae is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            mean, logvar = encode(method.vae, batch["x"])
            raw = [method.conditions.train[index] for _, index in indices]
            inputs = method.module.conditioner.prepare(raw)
        return {"mean": mean.float(), "logvar": logvar.float(), "inputs": inputs, "position": batch["position"]}


def build_conditioner(config: LatentRun) -> Conditioner:
    """Build the conditioner of a text-conditional run."""
    return conditioners.build(config.condition, captions=[], classes=(), time_width=config.unet.time_width)


def build_denoiser(config: LatentRun, cross_width: int | None, side: int = SIDE, channels: int = CHANNELS) -> UNet:
    """Build the U-Net that a config describes, for the demo's latents by default."""
    return build_unet(config.unet, sample_size=side, channels=channels, cross_width=cross_width)


def build_pipeline(
    config: LatentRun, autoencoder: Path, unet: Any = None, precision: torch.dtype | None = None
) -> Pipeline:
    """Build a pipeline on a saved autoencoder; without a U-Net one with random weights."""
    conditioner = build_conditioner(config)
    unet = build_denoiser(config, conditioner.width) if unet is None else unet
    return _pipeline(config, AutoencoderKL.from_pretrained(autoencoder), unet, conditioner, precision)


def _pipeline(config: Any, vae: Any, unet: Any, conditioner: Any, precision: torch.dtype | None) -> Pipeline:
    return Pipeline(vae, unet, conditioner, config.schedule, config.prediction_type, precision)


def read_latent(*overrides: str, config: Path = LDM) -> LatentRun:
    """Read the demo's config of stage 2, or another, under overrides."""
    return read(LatentRun, config, list(overrides))


def read_autoencoder(*overrides: str, config: Path = AE) -> AutoencoderRun:
    """Read the demo's config of stage 1 under overrides."""
    return read(AutoencoderRun, config, list(overrides))


def load_openmoji() -> Split:
    """Load OpenMoji at 32 px."""
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
    """Return sampling options."""
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
    """Load a pipeline, with a noisy classifier and with a guide model for autoguidance where they are named."""
    pipeline = Pipeline.load(folder, precision=precision)
    if classifier is None and guide is None:
        return pipeline
    noisy = None if classifier is None else NoisyClassifier.load(classifier)
    return pipeline.with_guides(noisy, None if guide is None else Pipeline.load(guide, precision=precision))


def load_semantic(folder: Path) -> SemanticModel:
    """Load a semantic model in bf16."""
    return SemanticModel.load(folder, precision=NATIVE)


def generate(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], options: SamplingOptions, batch: int = 64
) -> Tensor:
    """Generate one picture uint8 [N, C, R, R] for each prompt and seed."""
    return torch.cat(list(pipeline.generate(prompts, seeds, options, batch)))


def train_missing(names: Sequence[str]) -> None:
    """Train the runs of configs/benchmarks that have no model in runs/benchmarks, in this order."""
    for name in names:
        if not (RUNS / name / "model").exists():
            script = "train_ae.py" if name == "ae" else "train_ldm.py"
            done = subprocess.run([sys.executable, script, f"configs/benchmarks/{name}.yaml"], check=False)
            if done.returncode:
                raise typer.Exit(done.returncode)
