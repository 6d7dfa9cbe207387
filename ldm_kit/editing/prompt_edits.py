"""Whole tasks of `edit.py` on a model without a semantic encoder: another prompt, img2img, and inpainting."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.image_io import read_mask, read_picture, save_sheet
from ldm_kit.editing.inpainting import composite, inpaint_latents, latent_mask
from ldm_kit.editing.inversion import (
    Img2ImgOptions,
    Reconstruction,
    encode_image,
    falling,
    guided_denoiser,
    invert_latents,
    noised_start,
    reconstruction_text,
    rising,
    shape,
)
from ldm_kit.models.folder import device_named, model_folder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.png import MAX_SEED


@dataclass(frozen=True)
class SampleSeeds:
    """What to draw and how often: a prompt (None: unconditional), `count` pictures, seeds counting up from `seed`."""

    prompt: str | None = None
    count: int = 1
    seed: int = 0

    @property
    def seeds(self) -> list[int]:
        """One for each picture; raises UserError for numbers out of range."""
        if self.count < 1:
            raise UserError(f"--count is {self.count}; expected 1 or more")
        if not 0 <= self.seed <= MAX_SEED - self.count + 1:
            raise UserError(f"--seed is {self.seed}; expected 0 to 2^64 - --count")
        return list(range(self.seed, self.seed + self.count))


def reprompt(
    place: EditContext, image: Path, source: str, prompt: str, how: Img2ImgOptions
) -> tuple[EditResult, Reconstruction]:
    """Invert a picture under what it shows, without guidance, and draw it again under another prompt.

    Raises:
        UserError: numbers out of range, no picture, or a model without prompts.
    """
    how.refuse()
    pipeline = _opened(place)
    if pipeline.conditioner.null is None:
        raise UserError("this model is unconditional and takes no prompt; img2img and inpaint need none")
    before, after = pipeline.condition([source]), pipeline.condition([prompt])
    picture, x_0 = _read(pipeline, image)
    times = rising(pipeline, how)
    place.ready()
    plain = guided_denoiser(pipeline, 1, Img2ImgOptions(guidance_scale=1.0))
    up = _last(invert_latents(plain, x_0, times, before, how.refine), len(times) - 1, "inverting")
    again = _last(ddim(plain, up, times[::-1], before), len(times) - 1, "reconstructing")
    drawn = _last(ddim(guided_denoiser(pipeline, 1, how), up, times[::-1], after), len(times) - 1, "drawing")
    shown = torch.cat([picture, pipeline.pictures(again), pipeline.pictures(drawn)])
    about = place.about(source=source, prompt=prompt, **asdict(how))
    sheet = save_sheet(shown, ["picture", "reconstructed", prompt], place.out, about=about)
    return EditResult(len(shown), sheet), reconstruction_text(pipeline, picture, x_0, again)


def img2img(place: EditContext, image: Path, draws: SampleSeeds, how: Img2ImgOptions) -> EditResult:
    """Noise a picture as far as the strength says, and draw it from there (SDEdit, Meng et al. 2022).

    Raises:
        UserError: numbers out of range, no picture, or a prompt that does not fit the model.
    """
    how.refuse()
    seeds, pipeline = draws.seeds, _opened(place)
    cond = _condition(pipeline, draws)
    picture, x_0 = _read(pipeline, image)
    times = falling(pipeline, how)
    place.ready()
    start = noised_start(pipeline, x_0.expand(len(seeds), *x_0.shape[1:]), seeds, times[0])
    drawn = _last(ddim(guided_denoiser(pipeline, len(seeds), how), start, times, cond), len(times) - 1, "drawing")
    return _saved(place, picture, pipeline.pictures(drawn), draws, **asdict(how))


def inpaint(
    place: EditContext, image: Path, mask: Path, draws: SampleSeeds, how: Img2ImgOptions, resample: int = 4
) -> EditResult:
    """Draw a picture anew where the mask is white; all else stays to the last bit.

    Raises:
        UserError: numbers out of range, no picture, an empty or full mask, or a prompt that does not fit the model.
    """
    how.refuse()
    if resample < 1:
        raise UserError(f"--resample is {resample}; expected 1 or more")
    seeds, pipeline = draws.seeds, _opened(place)
    cond = _condition(pipeline, draws)
    picture, x_0 = _read(pipeline, image)
    painted = read_mask(mask, picture.shape[-1], image)
    times = falling(pipeline, how)
    place.ready()
    here = latent_mask(painted, (x_0.shape[-2], x_0.shape[-1])).to(x_0.device)
    many = x_0.expand(len(seeds), *x_0.shape[1:])
    walk = inpaint_latents(
        guided_denoiser(pipeline, len(seeds), how), many, here, times, cond, seeds=seeds, resample=resample
    )
    drawn = composite(picture[0], pipeline.pictures(_last(walk, len(times) - 1, "painting")), painted)
    return _saved(place, picture, drawn, draws, **asdict(how), resample=resample)


def _opened(place: EditContext) -> Pipeline:
    return Pipeline.load(model_folder(place.model), device_named(place.device), place.autocast())


def _read(pipeline: Pipeline, path: Path) -> tuple[Tensor, Tensor]:
    channels, side = shape(pipeline)
    picture = read_picture(path, side, channels)[None]
    return picture, encode_image(pipeline, picture)


def _condition(pipeline: Pipeline, draws: SampleSeeds) -> Condition:
    """What all pictures of an order are drawn from."""
    if pipeline.conditioner.null is None:
        if draws.prompt is not None:
            raise UserError(f"this model is unconditional and takes no prompt, got {draws.prompt!r:.80}")
        return pipeline.condition([""] * draws.count)
    if draws.prompt is None:
        raise UserError("this model draws from prompts or class names; give --prompt")
    return pipeline.condition([draws.prompt] * draws.count)


def _last(states: Iterator[State], steps: int, what: str) -> Tensor:
    """Where a walk ends, with a progress bar."""
    *_, last = tqdm(states, what, total=steps, unit="step")
    return last.x


def _saved(place: EditContext, picture: Tensor, drawn: Tensor, draws: SampleSeeds, **settings: Any) -> EditResult:
    captions = ["picture", *(f"{draws.prompt or 'drawn'}, seed {seed}" for seed in draws.seeds)]
    about = place.about(prompt=draws.prompt, **settings)
    shown, seeds = torch.cat([picture, drawn]), [draws.seed, *draws.seeds]
    return EditResult(len(shown), save_sheet(shown, captions, place.out, seeds=seeds, about=about))
