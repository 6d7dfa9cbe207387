"""Sampling at Stable Diffusion's size, beside diffusers' StableDiffusionPipeline, of one saved folder."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import kit
from benchmarks.gpu.model import CAPTIONS, Space
from benchmarks.gpu.timing import Figures, Work, measure_all
from ldm_kit.models.folder import silence_diffusers

GUIDANCE = 5.0


def sampling(space: Space) -> Figures:
    """Time batches of pictures, text to pixels; return the figures of each variant."""
    variants: dict[str, Work] = {
        "diffusers, fp16": partial(_diffusers, space, torch.float16),
        "diffusers, bf16": partial(_diffusers, space, torch.bfloat16),
        "diffusers, bf16, channels-last": partial(_diffusers, space, torch.bfloat16, True),
        "ours, bf16": partial(sample_ours, space, torch.bfloat16),
        "ours, fp16": partial(sample_ours, space, torch.float16),
    }
    results = measure_all(variants, space.sizes, units=1, warmup=2)
    return {"pictures": space.sizes.pictures, "steps": space.sizes.steps, "variants": results}


def _prompts(count: int) -> list[str]:
    return [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]


@torch.no_grad()
def _diffusers(space: Space, dtype: torch.dtype, channels_last: bool = False) -> Iterator[object]:
    """Sample with StableDiffusionPipeline and DPM++, as the documentation shows it."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    sizes = space.sizes
    with silence_diffusers():
        pipeline: Any = StableDiffusionPipeline.from_pretrained(space.model, torch_dtype=dtype, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(sizes.device)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    options = {"num_inference_steps": sizes.steps, "guidance_scale": GUIDANCE, "output_type": "np"}
    while True:
        yield pipeline(_prompts(sizes.pictures), **options).images


@torch.no_grad()
def sample_ours(space: Space, dtype: torch.dtype) -> Iterator[object]:
    sizes = space.sizes
    pipeline = kit.Pipeline.load(space.model, sizes.device, dtype)
    options = kit.sampling(steps=sizes.steps, solver="dpm++", guidance_scale=GUIDANCE)
    while True:
        yield kit.generate(pipeline, _prompts(sizes.pictures), range(sizes.pictures), options, sizes.pictures)
