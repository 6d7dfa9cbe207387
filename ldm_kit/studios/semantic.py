"""What the training of codes shows: held-out pictures decoded, figures, curves, and the finished model."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.data.images import PictureSet
from ldm_kit.methods.base import eval_mode
from ldm_kit.methods.diffae import DiffAERun
from ldm_kit.methods.pdae import PDAERun
from ldm_kit.methods.prior_stage import PriorStage
from ldm_kit.methods.semantic_stage import SemanticStage
from ldm_kit.models import codes
from ldm_kit.models.decoders import CodeDecoder, Decoder, ShiftDecoder
from ldm_kit.models.prior import CodePrior
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.semantic_unet import SemanticUNet
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.training.checkpoint import write
from ldm_kit.viz.curves import curves
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png, tolerate_oserror


class SemanticStudio:
    """DiffAE and PDAE: held-out pictures encoded and decoded with inferred and with random noise."""

    def __init__(self, stage: SemanticStage, folder: Path) -> None:
        self.stage, self.folder, settings = stage, folder, stage.settings
        width = settings.encoder.z_width
        unmeasured = torch.zeros(width), torch.ones(width)  # the training set's statistics come at the end
        self.model = SemanticModel(stage.encoder, _decoder(stage), *unmeasured)
        self.figures: dict[str, float] = {}

    def evaluate(self, number: int) -> dict[str, float]:
        """The held-out loss, and the error of some held-out pictures decoded, with the weights at hand."""
        stage, model, sample = self.stage, self.model.to(self._device), self.stage.settings.sample
        shown = stage.data.heldout if len(stage.data.heldout) else stage.data.train
        pictures = _some(shown, stage.settings.log.pictures)
        with eval_mode(stage.task.module):
            z = model.encode(pictures)
            inferred = model.decode(z, model.invert(pictures, z, sample.encode_steps), sample.decode_steps)
            random = model.decode(z, None, sample.decode_steps)
            loss = None if stage.heldout is None else stage.task.heldout_loss(*stage.heldout)
        rows = torch.stack([pictures, inferred, random], dim=1).flatten(0, 1)
        captions = ["picture", "inferred noise", "random noise"] * len(pictures)
        scale = max(1, 96 // model.resolution)
        out = self.folder / "pictures" / f"decoded-{number:08d}.png"
        with tolerate_oserror(out):
            save_png(grid(rows, 6, scale, captions), out, None)
        if loss is None:
            return {}
        errors = {"inferred": _mse(inferred, pictures), "random": _mse(random, pictures)}
        self.figures = {"heldout_loss": loss, **{f"heldout_mse_{name}": value for name, value in errors.items()}}
        return self.figures

    def finish(self) -> str:
        """Measure the training set's codes, save model/ and the curves; say where and how good."""
        stage, model = self.stage, self.model.to(self._device)
        with eval_mode(stage.task.module):
            model.mean, model.std = codes.code_statistics(codes.encode_set(stage.encoder, stage.data.train))
            write(self.folder / "model", model.save)
        curves(self.folder / "metrics.jsonl", self.folder / "pictures" / "curves.png", ["semantic_loss", *self.figures])
        said = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items()) or "nothing held out"
        return f"semantic model in {self.folder / 'model'}: {said}; pictures in {self.folder / 'pictures'}"

    @property
    def _device(self) -> torch.device:
        return next(self.stage.encoder.parameters()).device


class PriorStudio:
    """A prior over codes: the held-out loss, pictures out of drawn codes, and the whole model."""

    def __init__(self, stage: PriorStage, folder: Path) -> None:
        """Raises UserError where the semantic model cannot be opened, or is for other pictures."""
        self.stage, self.folder, settings = stage, folder, stage.settings
        self.model = SemanticModel.load(settings.model)
        pictures = stage.data.train
        if (self.model.channels, self.model.resolution) != (pictures.channels, pictures.resolution):
            raise UserError(
                f"data.resolution is {pictures.resolution}, but {settings.model} knows pictures of side "
                f"{self.model.resolution}"
            )
        if settings.sample.stop and not self.model.decoder.stops:
            raise UserError(f"sample.stop is for a PDAE, and {settings.model} is a DiffAE; leave it out")
        prior = CodePrior(stage.task.module.mlp, stage.conditioner, settings.schedule)
        self.model = replace(self.model, prior=prior, mean=stage.mean, std=stage.std)
        self.heldout: float | None = None

    def evaluate(self, number: int) -> dict[str, float]:
        """The held-out loss, and pictures from fixed seeds, with the weights at hand."""
        stage, sample = self.stage, self.stage.settings.sample
        model = self.model.to(next(stage.task.module.parameters()).device)
        told = stage.told(stage.settings.log.pictures)
        count = stage.settings.log.pictures if told is None else len(told)
        with eval_mode(stage.task.module):
            z = model.sample_z(range(count), sample.steps, told, guidance_scale=sample.guidance_scale)
            pictures = model.decode(z, None, sample.decode_steps, stop=sample.stop)
            if stage.heldout is not None:
                self.heldout = stage.task.heldout_loss(*stage.heldout)
        scale = max(1, 96 // model.resolution)
        out = self.folder / "pictures" / f"samples-{number:08d}.png"
        with tolerate_oserror(out):
            save_png(grid(pictures, 4, scale, told), out, None)
        return {} if self.heldout is None else {"heldout_loss": self.heldout}

    def finish(self) -> str:
        """Save the semantic model with its prior as model/, and the curves; say where and how good."""
        with eval_mode(self.stage.task.module):
            write(self.folder / "model", self.model.save)
        keys = ["prior_loss"] if self.heldout is None else ["prior_loss", "heldout_loss"]
        curves(self.folder / "metrics.jsonl", self.folder / "pictures" / "curves.png", keys)
        loss = "nothing held out" if self.heldout is None else f"held-out loss {self.heldout:.4f}"
        return f"semantic model with prior in {self.folder / 'model'}: {loss}; pictures in {self.folder / 'pictures'}"


def _decoder(stage: SemanticStage) -> Decoder:
    match stage.settings:
        case PDAERun():
            assert isinstance(stage.decoder, ShiftUNet)
            assert stage.base is not None
            return ShiftDecoder(stage.decoder, stage.base)
        case DiffAERun(schedule=schedule, prediction_type=target):
            assert isinstance(stage.decoder, SemanticUNet)
            return CodeDecoder(stage.decoder, stage.vae, schedule, target)


def _some(pictures: PictureSet, count: int) -> Tensor:
    return pictures.pictures(spread(len(pictures), count))


def _mse(one: Tensor, other: Tensor) -> float:
    """Mean squared error of pictures uint8, as numbers in 0..1."""
    return float(((one.double() - other.double()) / 255).square().mean())
