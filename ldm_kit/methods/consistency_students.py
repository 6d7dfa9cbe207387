"""The network that becomes a consistency model, with its data: a model of prompts or classes, or a DiffAE."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from conditioning.base import Inputs, drop
from ldm_kit.data.batches import spread
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.memory import BatchSize
from ldm_kit.methods.base import Grid, TrainingData
from ldm_kit.methods.conditions import Conditions
from ldm_kit.methods.inputs import drop_conditions
from ldm_kit.models.consistency import save_consistency_model
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.code_unets import CodeUNet
from ldm_kit.viz.grid import columns_for, enlargement, grid


class CodedUNet(nn.Module):
    """A DiffAE's U-Net with the arguments of a text-conditional model; its condition is {"z": codes [B, D]}."""

    def __init__(self, unet: CodeUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, inputs: Mapping[str, Tensor], scale: Tensor | None = None) -> Tensor:
        """Return the U-Net's output for noisy latents x [B, Z, h, w], timesteps t [B] and codes inputs["z"] [B, D].

        `scale`, a guidance scale in other models, is not used.
        """
        return self.unet(x, t, inputs["z"])


@dataclass(eq=False, kw_only=True)
class Student(ABC):
    """A network to train as a consistency model, with its training data; subclasses sample and save it."""

    module: nn.Module  # maps (x_t, t, inputs of the condition, guidance scale) to `target`
    ema_modules: dict[str, nn.Module]  # networks whose weights are averaged, by folder in the saved model
    schedule_config: ScheduleConfig
    target: PredictionType  # what the network predicts
    vae: AutoencoderKL | VQModel | None  # None: a pixel model
    shape: tuple[int, ...]  # (channels, height, width) of a latent
    data: TrainingData  # pictures, and batches made from them
    dependencies: dict[str, str]  # digests of models that are not trained, by the config key that names them
    dropout: float = 0.0  # share of the samples that are trained on the null condition
    teacher_takes_scale: bool = False  # whether the model it starts from takes the guidance scale as input

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any], seed: int, dropout: float) -> Inputs:
        """Return the condition's inputs (such as token ids) of a batch, tensors [B, ...] by name.

        A share `dropout` of the samples, chosen by `seed`, gets the inputs of the null condition.
        """

    def null(self, inputs: Inputs) -> Inputs | None:
        """Return the null condition's inputs in the shapes of `inputs`; None: the model has no null condition."""
        return None

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move networks and tensors that are not trained to `device`, the training device."""

    @abstractmethod
    def samples(self, count: int, batch: BatchSize) -> Grid:
        """Return a grid of pictures sampled with the current weights, from fixed seeds.

        Args:
            count: number of pictures to reconstruct; not used by a student that samples from prompts.
            batch: most pictures that are sampled at once.
        """

    def sample_like(self, rows: Sequence[int], seeds: Sequence[int], batch: BatchSize) -> Tensor:
        """Sample a picture for each of N held-out pictures, `rows`, from N `seeds`: uint8 [N, C, R, R]."""
        raise NotImplementedError(f"{type(self).__name__} decodes codes, and samples no pictures without a prior")

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model with the current weights into an empty folder."""

    def teacher(self) -> nn.Module:
        """Return a frozen copy of the network with its present weights, as teacher or target network."""
        return deepcopy(self.module).eval().requires_grad_(False)


@dataclass(eq=False, kw_only=True)
class ConditionedStudent(Student):
    """A latent or pixel diffusion model to train as a consistency model; its condition is text, a class or nothing."""

    pipeline: Pipeline  # shares the networks of `module`
    conditions: Conditions  # captions or labels of the run's pictures
    prompts: Sequence[str | int]  # captions or classes from which the grid of pictures is sampled
    nulls: Inputs = field(init=False)  # the conditioner's inputs of the null condition

    def __post_init__(self) -> None:
        self.nulls = self.pipeline.conditioner.null_inputs()

    def inputs(self, batch: Mapping[str, Any], seed: int, dropout: float) -> Inputs:
        """Return the condition's inputs (such as token ids) of a batch, tensors [B, ...] by name.

        A share `dropout` of the samples, chosen by `seed`, gets the inputs of the null condition.
        """
        return drop_conditions(batch, self.nulls, seed, dropout)

    def null(self, inputs: Inputs) -> Inputs:
        """Return the null condition's inputs in the shapes of `inputs`."""
        count = len(next(iter(inputs.values())))
        return drop(inputs, self.nulls, torch.ones(count, dtype=torch.bool, device=next(iter(inputs.values())).device))

    def to(self, device: torch.device) -> None:
        """Move the null condition's inputs to the training device."""
        self.nulls = {name: value.to(device) for name, value in self.nulls.items()}

    def samples(self, count: int, batch: BatchSize) -> Grid:
        """Return a grid of pictures, one for each of `prompts`, from seeds 0, 1, 2, ...

        `batch` is the most pictures that are sampled at once; `count` is not used.
        """
        return self.conditions.sample_grid(self.current(), self.prompts, batch)

    def sample_like(self, rows: Sequence[int], seeds: Sequence[int], batch: BatchSize) -> Tensor:
        """Sample a picture for each of N held-out pictures, `rows`, from N `seeds`: uint8 [N, C, R, R]."""
        return self.conditions.sample_like(self.current(), rows, seeds, batch)

    def current(self) -> Pipeline:
        """Return the pipeline with its noise schedule on the device where the networks are now."""
        return replace(self.pipeline)

    def save(self, folder: Path) -> None:
        """Write the pipeline in the diffusers layout, with the scheduler of consistency models."""
        save_consistency_model(self.current(), folder)


@dataclass(eq=False, kw_only=True)
class SemanticStudent(Student):
    """The U-Net of a DiffAE to train as a consistency model.

    The DiffAE's encoder stays frozen, so that saved codes, attribute directions and priors over codes stay valid.
    """

    model: SemanticModel  # the DiffAE, whose decoder holds the U-Net of `module`
    steps: int  # number of sampling steps in which pictures are decoded

    def inputs(self, batch: Mapping[str, Any], seed: int, dropout: float) -> Inputs:
        """Return the semantic codes of a batch's pictures, {"z": [B, D]}; `seed` and `dropout` are not used."""
        with torch.no_grad():
            return {"z": self.model.encoder(batch["picture"])}

    def to(self, device: torch.device) -> None:
        """Move encoder and autoencoder to the training device."""
        self.model.to(device)

    def samples(self, count: int, batch: BatchSize) -> Grid:
        """Return a grid of `count` pictures, each beside one that is decoded from its code and random noise.

        The pictures are held out or, if none are, from the training set; at most `batch` are processed at once.
        """
        data = self.data.pictures
        shown = data.heldout if len(data.heldout) else data.train
        pictures = shown.pictures(spread(len(shown), count))
        decoded = self.model.decode(self.model.encode(pictures, batch), None, self.steps, batch)
        rows = torch.stack([pictures, decoded], dim=1).flatten(0, 1)
        captions = ["picture", "random noise"] * len(pictures)
        return Grid(grid(rows, columns_for(len(rows), 6), enlargement(self.model.resolution), captions), "decoded")

    def save(self, folder: Path) -> None:
        """Write the semantic model, with the scheduler of consistency models."""
        self.model.save(folder)
