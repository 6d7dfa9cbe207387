"""What a noisy classifier's training shows: accuracy over noise, its guesses, curves, and the finished model."""

import io
from pathlib import Path

import torch
from torch import Tensor

from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet
from ldm_kit.data.latents import Latents
from ldm_kit.methods.base import eval_mode
from ldm_kit.methods.classifier import LEVELS, Heldout
from ldm_kit.methods.classifier_stage import ClassifierStage, labels_of
from ldm_kit.models.classifier import NoisyClassifier, first_stage_of
from ldm_kit.training.checkpoint import write
from ldm_kit.viz.curves import curves
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png, tolerate_oserror, write_atomic

LOW = 0.05  # t / T of the guesses that are shown
FIRST = "heldout_accuracy"


class ClassifierStudio:
    """Held-out figures over noise, a grid of guesses at low noise, and the finished classifier."""

    def __init__(self, stage: ClassifierStage, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        net, settings = stage.task.net, stage.settings
        self.model = NoisyClassifier(net, tuple(stage.data.train.classes), settings.schedule, first_stage_of(stage.vae))
        self.figures: dict[str, float] = {}

    def evaluate(self, number: int) -> dict[str, float]:
        """Held-out figures, accuracy over noise, and guesses, with the weights at hand."""
        stage, pictures = self.stage, self.folder / "pictures"
        if stage.heldout is None:
            self._guesses(stage.data.train, stage.latents, pictures / f"guesses-{number:08d}.png")
            return {}
        found = stage.task.heldout(*stage.heldout)
        self.figures = found.figures()
        over_noise(found, pictures / f"accuracy-{number:08d}.png")
        self._guesses(stage.data.heldout, stage.heldout[0], pictures / f"guesses-{number:08d}.png")
        return self.figures

    def _guesses(self, shown: PictureSet, latents: Latents, path: Path) -> None:
        """Some pictures, each with its class, and what it is taken for where that is another."""
        place = torch.tensor(spread(len(shown), self.stage.settings.log.pictures))
        with eval_mode(self.stage.task.net):
            logits = self.stage.task.guess(latents, place, place, torch.full(place.shape, LOW))
        captions = [self._caption(*pair) for pair in zip(labels_of(shown)[place], logits.argmax(1), strict=True)]
        scale = max(1, 96 // shown.resolution)
        with tolerate_oserror(path):
            save_png(grid(shown.pictures(place.tolist()), 4, scale=scale, captions=captions), path, None)

    def _caption(self, truth: Tensor, guess: Tensor) -> str:
        classes = self.model.classes
        return classes[truth] if truth == guess else f"{classes[truth]}, taken for {classes[guess]}"

    def finish(self) -> str:
        """Save model/ in the diffusers layout, and the curves; say where and how good."""
        with eval_mode(self.stage.task.net):
            write(self.folder / "model", self.model.save)
        keys = ["classifier_loss", "accuracy", *(key for key in self.figures if key in ("heldout_loss", FIRST))]
        curves(self.folder / "metrics.jsonl", self.folder / "pictures" / "curves.png", keys)
        return f"noisy classifier in {self.folder / 'model'}: {self._said()}; pictures in {self.folder / 'pictures'}"

    def _said(self) -> str:
        if not self.figures:
            return "nothing held out"
        quartiles = ", ".join(f"{value:.3f}" for key, value in self.figures.items() if key.startswith(f"{FIRST}_q"))
        return f"held-out accuracy {self.figures[FIRST]:.3f} (by quartile of noise, from least: {quartiles})"


def over_noise(found: Heldout, out: Path) -> None:
    """Draw accuracy over the share t / T of noising that was done."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = [(level + 0.5) / LEVELS for level in range(LEVELS)]
    axes.plot(places, found.first, marker=".", label="likeliest class")
    if found.top is not None:
        axes.plot(places, found.top, marker=".", label="five likeliest")
        axes.legend()
    axes.set(title="held-out accuracy over noise", xlabel="t / T", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with tolerate_oserror(out):
        write_atomic(out, buffer.getvalue())
