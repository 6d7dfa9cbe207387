"""Options of the commands of `edit.py` on semantic models: every field is a flag, with its range, default and help.

No torch here, as `--help` must not wait for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from ldm_kit.config import Config, Precision
from ldm_kit.models.sampler_options import OWN, Seed

MAX_STRENGTH = 1.0  # moves a code as far as a typical code is from the mean of all codes
STRENGTHS = f"-{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, where -0.5 to 0.5 is sensible, 0.3 is typical"
ANIMATION_FORMATS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}
MIN_DURATION = 20  # shortest frame, in milliseconds, that viewers honour
_IMAGE = "the picture; scaled and cropped to the model's size"
BATCH_SIZE = "most pictures at once; changes a picture by rounding alone"
BuiltInName = Literal["faces", "shapes", "openmoji"]  # data sets whose attributes are known


def check_strength(strength: float) -> float:
    """Return the strength of an edit unchanged; raise ValueError if its absolute value is above `MAX_STRENGTH`."""
    if not abs(strength) <= MAX_STRENGTH:
        raise ValueError(f"expected {STRENGTHS}")
    return strength


class ModelDefaults(Config):
    """Base class of options that default to values saved with the model, with which its training run was evaluated."""

    SECTION: ClassVar[str] = "reconstruction"  # section of the saved options, see `models.saved_sampling`
    SAVED: ClassVar[Mapping[str, str]] = {}  # name of a field -> name of the saved option in `SECTION`
    STEP_FIELDS: ClassVar[tuple[str, ...]] = ()  # fields that are numbers of steps over the model's noise schedule

    @property
    def step_counts(self) -> dict[str, int]:
        """The values of the fields that `STEP_FIELDS` names, each a number of steps, by the field's name."""
        return {name: getattr(self, name) for name in self.STEP_FIELDS}


class StepOptions(ModelDefaults):
    """Base class of decoding options: `stop` is the fraction of last steps that a PDAE leaves to its base model."""

    stop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="PDAE: share of last steps by the base model; 0.3 for a prior's codes",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """Decoding settings by name, for the PNGs' metadata: the `step_counts` and, unless it is 0, `stop`."""
        return self.step_counts | ({"stop": self.stop} if self.stop else {})


_INVERT_STEPS = Field(ge=1, description="DDIM steps of the inversion to a stochastic code", json_schema_extra=OWN)


class DecodeSteps(StepOptions):
    """Decoding options with the number of DDIM steps, which defaults to the saved option that `SAVED` names."""

    STEP_FIELDS: ClassVar[tuple[str, ...]] = ("steps",)
    SAVED: ClassVar[Mapping[str, str]] = {"steps": "decode_steps"}

    steps: int = Field(default=100, ge=1, description="DDIM steps of decoding", json_schema_extra=OWN)


class RoundTripSteps(DecodeSteps):
    """The numbers of DDIM steps in which a picture is inverted to its stochastic code and decoded again.

    `invert_steps` are those of the inversion, `steps` those of decoding. `STEP_FIELDS` names both; `SAVED` maps each to
    the option, saved with the model, that it defaults to.
    """

    STEP_FIELDS: ClassVar[tuple[str, ...]] = ("invert_steps", "steps")
    SAVED: ClassVar[Mapping[str, str]] = {"invert_steps": "encode_steps", "steps": "decode_steps"}

    invert_steps: Annotated[int, _INVERT_STEPS] = 250


class ChangeOptions(RoundTripSteps):
    """Options of `edit.py change`: the picture, the attributes to change, and how far."""

    image: Path = Field(description=_IMAGE)
    attribute: tuple[str, ...] = Field(description='"glasses", "skin tone: dark", "skin tone: light > dark"')
    strength: tuple[float, ...] = Field(default=(), description="one for each attribute or for all; left out: typical")
    strip: str | None = Field(default=None, description='one picture for each of these strengths: "-0.3,0,0.3"')

    @field_validator("attribute")
    @classmethod
    def _some_attribute(cls, attribute: tuple[str, ...]) -> tuple[str, ...]:
        if not attribute:
            raise ValueError("nothing to change; give at least one --attribute NAME")
        return attribute

    @field_validator("strength")
    @classmethod
    def _strengths_in_range(cls, strength: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(check_strength(value) for value in strength)

    @field_validator("strip")
    @classmethod
    def _strip_in_range(cls, strip: str | None) -> str | None:
        try:
            strengths = _numbers(strip)
        except ValueError:
            raise ValueError('expected numbers such as "-0.3,0,0.3"') from None
        for value in strengths:
            check_strength(value)
        return strip

    @model_validator(mode="after")
    def _strengths_fit(self) -> Self:
        if len(self.strength) not in (0, 1, len(self.attribute)):
            raise ValueError(
                f"{len(self.attribute)} attributes with {len(self.strength)} strengths; expected one each, one for "
                "all, or none"
            )
        if self.strip is not None and self.strength:
            raise ValueError("--strip takes the place of --strength; give one of them")
        return self

    @property
    def strip_strengths(self) -> list[float]:
        """The strengths that `strip` lists, each for one picture; empty if `strip` is None."""
        return _numbers(self.strip)


class TrainingExamples(Config):
    """Options of `edit.py learn`: the training pictures, which are labelled, a built-in set, or examples.

    A labelled folder is `images` with the table `labels`, of which the attributes `column` are learned. Examples are
    the folder `positive`, with `negative` for contrast, and `name` as the attribute's name.
    """

    images: Path | None = Field(default=None, description="a folder of pictures, labelled or not")
    labels: Path | None = Field(default=None, description=".csv or .jsonl: file_name and attributes")
    column: tuple[str, ...] = Field(default=(), description="column of the labels to learn; left out: all")
    pair: str | None = Field(
        default=None, description="column that is equal for pictures that differ in one attribute alone"
    )
    openmoji: bool = Field(default=False, description="learn gender, skin tone and group: --dataset openmoji")
    dataset: BuiltInName | None = Field(default=None, description="learn every attribute of a built-in set")
    positive: Path | None = Field(default=None, description="a folder of a dozen examples")
    negative: Path | None = Field(default=None, description="counter-examples; left out: the training set")
    name: str | None = Field(default=None, description="what the examples have in common")
    estimator: Literal["classifier", "means"] = Field(
        default="classifier", description="classifier: its weight; means: difference of mean codes"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = self.labels is not None, self.openmoji, self.dataset is not None, self.positive is not None
        if sum(sources) != 1:
            raise ValueError(
                "expected one source: --labels FILE with --images DIR, --openmoji, --dataset NAME, or --positive DIR"
            )
        if self.labels is not None and self.images is None:
            raise ValueError("--labels needs --images DIR, the folder of the pictures that it labels")
        if self.positive is not None and not self.name:
            raise ValueError("--positive needs --name, what its pictures have in common")
        if self.positive is None and (self.negative is not None or self.name):
            raise ValueError("--negative and --name are for --positive DIR, a folder of examples")
        if self.labels is None and (self.column or self.pair):
            raise ValueError("--column and --pair are for --labels FILE")
        if self.images is not None and self.negative is not None:
            raise ValueError("--negative and --images both name what --positive differs from; give one of them")
        return self


class InterpolationOptions(RoundTripSteps):
    """Options of `edit.py interpolate`: the two pictures, and how to interpolate between them."""

    image: tuple[Path, ...] = Field(description="the two pictures, each by its own --image")
    count: int = Field(default=8, ge=2, description="number of pictures, both ends among them")
    mode: Literal["latent", "trajectory"] = Field(
        default="latent",
        validation_alias=AliasChoices("mode", "along"),
        description="latent: interpolate the codes; trajectory: interpolate a PDAE's gradients in every step",
    )
    morph: Path | None = Field(default=None, description="an animation as well, a new file: .gif, .png or .apng")
    duration: int = Field(default=80, ge=MIN_DURATION, description="milliseconds for each frame of the animation")

    @field_validator("image")
    @classmethod
    def _two_images(cls, image: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(image) != 2:
            raise ValueError(f"got {len(image)} pictures; expected two, each by its own --image")
        return image

    @field_validator("morph")
    @classmethod
    def _animation(cls, morph: Path | None) -> Path | None:
        if morph is not None and morph.suffix.lower() not in ANIMATION_FORMATS:
            raise ValueError(f"expected a file that ends in {', '.join(ANIMATION_FORMATS)}")
        return morph


class MixOptions(RoundTripSteps):
    """Options of `edit.py mix`: the two pictures whose codes are mixed."""

    content: Path = Field(description="the picture whose semantic code is taken")
    details: Path = Field(description="the picture whose stochastic code is taken")


class NeighboursOptions(Config):
    """Options of `edit.py neighbours`: a picture, and the pictures among which to find similar ones."""

    image: Path = Field(description=_IMAGE)
    among: Path = Field(description="a folder of pictures, or a file that encode wrote")
    count: int = Field(default=8, ge=1, description="number of pictures to find")
    out: Path = Field(
        default=Path("edits"),
        description="folder for the pictures and sheet.png, beside earlier ones, which stay; left out: a new folder",
    )


class EncodeOptions(ModelDefaults):
    """Options of `edit.py encode`: the folder of pictures to encode, and the code file to write.

    `invert_steps` is the number of DDIM steps to x_T. Where it is not given, the model's own saved `encode_steps` is
    used (`SAVED` maps one to the other), or 250 if the model has none.
    """

    STEP_FIELDS: ClassVar[tuple[str, ...]] = ("invert_steps",)
    SAVED: ClassVar[Mapping[str, str]] = {"invert_steps": "encode_steps"}

    images: Path = Field(description="a folder of pictures")
    out: Path = Field(
        default=Path("codes.safetensors"), description="a new file; left out: codes.safetensors, codes-2, ..."
    )
    details: bool = Field(default=True, description="save the stochastic codes x_T beside the semantic codes z")
    invert_steps: Annotated[int, _INVERT_STEPS] = 250
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)
    precision: Precision = Field(default="no", description="autocast; auto: bf16 where the device computes it natively")

    @field_validator("out")
    @classmethod
    def _safetensors(cls, out: Path) -> Path:
        if out.suffix != ".safetensors":
            raise ValueError("expected a file that ends in .safetensors")
        return out


class DecodeOptions(DecodeSteps):
    """Options of `edit.py decode`: the code file whose pictures are decoded."""

    codes: Path = Field(description="a file that encode wrote")
    seed: Seed = Field(default=0, description="without x_T in the file: seed of the first picture; the next add 1")
    batch_size: int = Field(default=32, ge=1, description=BATCH_SIZE)


def _numbers(text: str | None) -> list[float]:
    return [] if text is None else [float(number) for number in text.split(",")]
