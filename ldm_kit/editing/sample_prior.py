"""`edit.py draw`: new codes out of a model's prior, and pictures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.editing import operations
from ldm_kit.editing.context import EditContext, EditResult, Steps, check_counts
from ldm_kit.editing.image_io import save_sheet
from ldm_kit.editing.prompt_edits import SampleSeeds
from ldm_kit.editing.rejection_sampling import AcceptedCodes, AttributeThreshold, sample_accepted
from ldm_kit.models.directions import Directions
from ldm_kit.models.prior import Clip
from ldm_kit.models.protocol import Code, encoder_digest, normalise
from ldm_kit.models.semantic import SemanticModel


@dataclass(frozen=True)
class PriorOptions:
    """How codes and pictures are drawn."""

    steps: int = 100  # of the code
    decode_steps: int = 100
    guidance_scale: float = 1.0  # of the code
    stop: float = 0.0
    batch: int = 32
    clip: Clip = "none"  # of the code

    @property
    def decoding(self) -> Steps:
        """The steps of the picture."""
        return Steps(draw=self.decode_steps, stop=self.stop, flags=("", "--decode_steps"))

    def refuse(self) -> None:
        """Refuse numbers out of range; raises UserError."""
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; expected 1 or more")
        self.decoding.refuse()
        check_counts(self.batch)


class Drawn(NamedTuple):
    """What came of it."""

    done: EditResult
    accepted: str | None  # how many codes passed, where there was a bar

    def __str__(self) -> str:
        return f"{self.done}" if self.accepted is None else f"{self.accepted}\n{self.done}"


def sample_prior(
    place: EditContext, draws: SampleSeeds, how: PriorOptions, bar: AttributeThreshold | None = None
) -> Drawn:
    """New pictures, each from its own seed; with a bar, of codes in which a direction reads its attribute.

    Raises:
        UserError: numbers out of range, no prior, a class or prompt that does not fit it, an unknown attribute, or no
            code that passes.
    """
    how.refuse()
    seeds = draws.seeds
    if bar is not None:
        bar.refuse()
    model = place.open()
    how.decoding.fit_drawing(model)
    z, captions, told = _codes(place, model, draws, how, bar)
    place.ready()
    pictures = operations.decode(model, Code(z, model.noise(seeds)), how.decode_steps, how.batch, stop=how.stop)
    told_apart = {} if bar is None else {"attribute": bar.attribute, "threshold": bar.threshold}
    clipped = {} if how.clip == "none" else {"clip": how.clip}
    numbers = {"steps": how.steps, "guidance_scale": how.guidance_scale} | clipped | how.decoding.drawing
    about = place.about(drawn=draws.count, prompt=draws.prompt, **told_apart, **numbers)
    sheet = save_sheet(pictures, captions, place.out, columns=min(8, draws.count), seeds=seeds, about=about)
    return Drawn(EditResult(len(pictures), sheet), told)


def _codes(
    place: EditContext, model: SemanticModel, draws: SampleSeeds, how: PriorOptions, bar: AttributeThreshold | None
) -> tuple[Tensor, list[str], str | None]:
    """Codes, what they are called, and how many passed."""

    def codes(seeds: Sequence[int]) -> Tensor:
        told = None if draws.prompt is None else [draws.prompt] * len(seeds)
        return model.sample_z(seeds, how.steps, told, guidance_scale=how.guidance_scale, clip=how.clip)

    names = [f"{draws.prompt or 'drawn'}, seed {seed}" for seed in draws.seeds]
    if bar is None:
        return codes(draws.seeds), names, None
    direction = Directions.load(place.directions, encoder_digest(model))[bar.attribute]
    found = sample_accepted(codes, lambda z: direction.logit(normalise(model, z)), draws.seeds, bar)
    captions = [f"{name}, {p:.0%}" for name, p in zip(names, found.probability.tolist(), strict=True)]
    return found.z, captions, _told(found, bar)


def _told(found: AcceptedCodes, bar: AttributeThreshold) -> str:
    return f"{found.rate:.1%} of {found.tried} codes passed: {bar.attribute} with a probability over {bar.threshold:g}"
