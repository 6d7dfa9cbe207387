"""The model of the plan: networks of Stable Diffusion 1's size with random weights, saved in the diffusers layout."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import conditioning.factory as conditioners
from autoencoder.config import build as build_autoencoder
from autoencoder.statistics import fold, measure
from benchmarks import kit
from benchmarks.gpu.sizes import STAGE_1, STAGE_2, Sizes

CAPTIONS = [
    f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "blue") for thing in "xyz"
]


@dataclass(frozen=True)
class Space:
    """A folder for runs and models, and the sizes of the plan."""

    folder: Path
    sizes: Sizes

    @property
    def model(self) -> Path:
        """Folder of the saved model."""
        return self.folder / "model"

    @property
    def text(self) -> Path:
        """Folder of the model's text encoder and tokenizer, as a frozen encoder that configs can name."""
        return self.folder / "text"

    def stage1(self, *overrides: str) -> kit.AutoencoderRun:
        """Read the config of stage 1 for a new run folder."""
        given = (*self._run(), f"train.batch_size={self.sizes.batch_ae}", "train.workers=0", *self.sizes.stage1)
        return kit.read_autoencoder(*given, "loss.adversarial={start: 0}", *overrides, config=STAGE_1)

    def stage2(self, *overrides: str) -> kit.LatentRun:
        """Read the config of stage 2 for a new run folder, with its own text encoder."""
        given = (*self._run(), f"train.batch_size={self.sizes.batch}", *self.sizes.stage2)
        return kit.read_latent(*given, *overrides, config=STAGE_2)

    def frozen(self, *overrides: str) -> kit.LatentRun:
        """Read the config of stage 2 with the saved text encoder, frozen, as diffusers' script has it."""
        condition = f"condition={{kind: pretrained, model: {self.text}, length: {self.sizes.tokens}}}"
        return self.stage2(condition, *overrides)

    def _run(self) -> tuple[str, str]:
        runs = self.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        name = f"{len([*runs.iterdir()])}"
        (runs / name).mkdir()
        return f"run={runs / name}", "train.steps=1000000"

    def build(self) -> None:
        """Save the model and its text encoder, unless an earlier call has."""
        if self.text.exists():
            return
        config, side = self.stage2(), self.sizes.sampled // 8
        torch.manual_seed(0)
        with _initialised_on(self.sizes.device):
            vae: Any = build_autoencoder(self.stage1().autoencoder)
            conditioner = conditioners.build(config.condition, captions=CAPTIONS, classes=(), time_width=None)
            unet: Any = kit.build_denoiser(config, conditioner.width, side)
        for net in (vae, conditioner, unet):
            net.to(self.sizes.device)
        pictures = torch.rand(2, 3, self.sizes.side, self.sizes.side, device=self.sizes.device) * 2 - 1
        fold(vae, measure(vae, [pictures]))
        kit.Pipeline(vae, unet, conditioner, config.schedule, config.prediction_type).save(self.model)
        for part in ("tokenizer", "text_encoder"):
            shutil.copytree(self.model / part, self.text, dirs_exist_ok=True)


def _initialised_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which new networks are made on a device: hundreds of millions of weights in a moment."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.device(device)
