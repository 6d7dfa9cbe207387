"""A cascade: a model of small pictures, and models that upscale its samples one after the other.

Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation"; Saharia et al. 2022 (Imagen), section
2.4. Each upscaling model takes the pictures that the model before it has sampled, noises them to the level of its
sampling options (noise conditioning augmentation), and gets that level as an input. Models may be of pixels or latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from conditioning.condition import ConditioningError
from conditioning.pictures import IMAGE
from ldm_kit.config import UserError
from ldm_kit.data.lists import check_lists
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.memory import Batch, BatchSize
from ldm_kit.models.folder import CASCADE, INDEX, ModelFolder
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.stage_options import shared_options

STAGES = "stages"  # key of model_index.json: the sub-folders of the models, in order
UPSCALES = "super_resolution"  # kind of the picture condition of a model that upscales


class StagePictures(NamedTuple):
    """Pictures that one model of a cascade has sampled for one batch."""

    stage: int  # index of the model; 0: the base model
    pictures: Tensor  # uint8 [b, C, H, W] on the CPU


@dataclass(eq=False)
class Cascade:
    """A base model, and models that upscale its pictures, in order.

    Raises:
        UserError: there are fewer than two models, or a model does not fit the one before it.
    """

    stages: tuple[Pipeline, ...]

    def __post_init__(self) -> None:
        check_stages(self.stages)

    @property
    def base(self) -> Pipeline:
        """The first model, which samples from prompts, classes or nothing."""
        return self.stages[0]

    @property
    def resolution(self) -> int:
        """Pixels along each side of the final pictures."""
        return self.stages[-1].resolution

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        return self.base.channels

    @property
    def device(self) -> torch.device:
        """Device on which the networks are."""
        return self.base.device

    def to(self, device: torch.device | str) -> "Cascade":
        """Move all networks to a device, in place; return this object."""
        for stage in self.stages:
            stage.to(device)
        return self

    def resolve(
        self, options: SamplingOptions | Sequence[SamplingOptions] | None = None
    ) -> tuple[ResolvedOptions, ...]:
        """Return the options of each model with every value decided.

        Args:
            options: options for all models, of which each takes those that it has a use for; or a list, the options of
                each model; None: all left out. Options left out have the values saved with the model.

        Raises:
            UserError: an option does not fit its model, or is of use to none; or a list has another length.
        """
        options = SamplingOptions() if options is None else options
        each = shared_options(options, self.stages) if isinstance(options, SamplingOptions) else options
        if len(each) != len(self.stages):
            raise UserError(f"got options for {len(each)} models, but the cascade has {len(self.stages)}")
        resolved: list[ResolvedOptions] = []
        for number, (stage, own) in enumerate(zip(self.stages, each, strict=True), 1):
            try:
                _check_own_size(own)
                resolved.append(own.resolve(stage))
            except UserError as error:
                raise UserError(f"stage {number}: {error}") from None
        return tuple(resolved)

    def batches(
        self,
        prompts: Sequence[str | int],
        seeds: Sequence[int],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        batch_size: Batch = 32,
    ) -> Iterator[StagePictures]:
        """Sample batch after batch, each through all models; yield the pictures of every model.

        The base model samples from the seed itself, a further model from a seed derived from it and from the model's
        index. So a picture depends on its own prompt and seed alone. See `generate` for the arguments and errors.
        """
        check_lists(prompts=prompts, seeds=seeds)
        resolved, size = self.resolve(options), BatchSize.of(batch_size)
        start = 0
        while start < len(prompts):
            batch = slice(start, start + size.size)
            pictures = torch.empty(0)
            for index, stage in enumerate(self.stages):
                given = {IMAGE: pictures} if index else None
                texts = prompts[batch] if stage.conditioner.null is not None else [""] * len(prompts[batch])
                own = [stage_seed(seed, index) for seed in seeds[batch]]
                pictures = torch.cat([*stage.generate(texts, own, resolved[index], size, pictures=given)])
                yield StagePictures(index, pictures)
            start = batch.stop

    def generate(
        self,
        prompts: Sequence[str | int],
        seeds: Sequence[int],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        batch_size: Batch = 32,
    ) -> Iterator[Tensor]:
        """Generate pictures, a batch at a time; a picture depends on its own prompt and seed alone.

        Args:
            prompts: N prompts, or classes by name or number; "" for an unconditional base model.
            seeds: N seeds.
            options: options of all models, or a list, one for each (see `resolve`); None: all left out.
            batch_size: most pictures at once; halved when memory runs out.

        Yields:
            The next b final pictures, uint8 [b, C, H, W] on the CPU, with b at most `batch_size`.

        Raises:
            UserError: an option does not fit a model, a class is unknown, or there is not one seed for each prompt.
        """
        for batch in self.batches(prompts, seeds, options, batch_size):
            if batch.stage == len(self.stages) - 1:
                yield batch.pictures

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", precision: torch.dtype | None = None
    ) -> "Cascade":
        """Load a cascade that `ldm-kit cascade` wrote.

        Args:
            folder: the cascade's folder.
            device: where the networks are put.
            precision: dtype in which the U-Nets sample; None: no cast.

        Raises:
            UserError: the folder is missing, broken or no cascade; or a model cannot be loaded or does not fit.
        """
        opened = ModelFolder.open(folder, "cascade")
        return cls(tuple(Pipeline.load(path, device, precision) for path in stage_folders(opened)))


def _check_own_size(options: SamplingOptions) -> None:
    for name in ("height", "width"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is for single models; each model of a cascade samples the size of its training")


def stage_seed(seed: int, stage: int) -> int:
    """Return the seed from which the model of index `stage` samples for a cascade's seed; that of 0 is the same."""
    return seed if stage == 0 else derive_seed(seed, "cascade stage", stage)


def stage_folders(folder: ModelFolder) -> list[Path]:
    """Return the folders of a cascade's models, in order.

    Raises:
        UserError: the folder holds no cascade, or its index does not name sub-folders.
    """
    if folder.class_name != CASCADE:
        raise UserError(f"{folder} holds a {folder.class_name}; expected a cascade, which `ldm-kit cascade` makes")
    names = folder.index.get(STAGES)
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{folder.path / INDEX}: {STAGES} is {names!r:.80}; expected a list of sub-folders")
    return [folder.path / name for name in names]


def check_stages(stages: Sequence[Pipeline], names: Sequence[str] = ()) -> None:
    """Check that the models of a cascade fit together.

    Args:
        stages: the models, the base model first.
        names: what messages call them; empty: stage 1, stage 2, ...

    Raises:
        UserError: there are fewer than two; the first is conditioned on a picture, or any on an image's embedding; or a
            further one does not upscale pictures of the size and channels that the one before it samples, or takes
            other prompts than the first.
    """
    called = names or [f"stage {number}" for number in range(1, len(stages) + 1)]
    if len(stages) < 2:
        raise UserError(f"a cascade of {len(stages)} models; expected a base model and at least one that upscales")
    base = stages[0]
    if base.picture is not None:
        raise UserError(
            f"{called[0]} is conditioned on a picture ({base.picture.kind}); expected a base model that samples from "
            "prompts, classes or nothing"
        )
    for name, stage in zip(called, stages, strict=True):
        if stage.value_range is not None:
            raise UserError(f"{name} makes values in {stage.value_range}; expected models of pictures of 8 bits")
        if stage.conditioner.image_conditioner is not None:
            alone = "" if stage.prior is None else f", by itself `sample.py {name}` samples from its prior"
            raise UserError(
                f"{name} is conditioned on an image, which a cascade does not take; expected other models{alone}"
            )
    for before, (name, stage) in enumerate(zip(called[1:], stages[1:], strict=True)):
        _check_upscales(name, stage, called[before], stages[before])
        _check_prompts(name, stage, called[0], base)


def _check_upscales(name: str, stage: Pipeline, before: str, earlier: Pipeline) -> None:
    if stage.picture is None or stage.picture.kind != UPSCALES:
        what = "no picture" if stage.picture is None else f"a picture of kind {stage.picture.kind}"
        raise UserError(f"{name} is conditioned on {what}; expected a model that upscales, condition.kind {UPSCALES}")
    try:
        side = stage.picture.side(stage.resolution)
    except ConditioningError as error:
        raise UserError(f"{name}: {error}") from None
    taken, sampled = (side, stage.channels), (earlier.resolution, earlier.channels)
    if taken != sampled:
        raise UserError(
            f"{name} upscales pictures of {taken[0]} px and {taken[1]} channels, but {before} samples pictures of "
            f"{sampled[0]} px and {sampled[1]} channels"
        )


def _check_prompts(name: str, stage: Pipeline, first: str, base: Pipeline) -> None:
    """Check that a model takes no prompts, or those of the base model: captions, or the same classes or columns."""
    if stage.conditioner.null is None:
        return
    if stage.conditioner.modality != base.conditioner.modality:
        raise UserError(
            f"{name} samples from {stage.conditioner.modality}, but {first} from {base.conditioner.modality}; expected "
            "the same, or a model that upscales without prompts"
        )
    for attribute in ("classes", "sources"):
        own, others = (getattr(each.conditioner, attribute, None) for each in (stage, base))
        if own != others:
            raise UserError(
                f"{name} has the {attribute} {own!r:.80}, but {first} has {others!r:.80}; expected the same"
            )
