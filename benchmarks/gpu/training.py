"""Training steps of both stages at Stable Diffusion's size, beside diffusers' scripts; and what single settings do."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from benchmarks import kit
from benchmarks.gpu import peers
from benchmarks.gpu.model import Space
from benchmarks.gpu.timing import Figures, Work, measure_all
from benchmarks.speed import machine
from ldm_kit.data.images import InMemory, Record, Split, subset

COUNT = 512  # latents of the data set
PICTURES = 64  # pictures of stage 1's data set


def stage2(space: Space) -> Figures:
    """Time the U-Net's training step; return the figures of each variant, and the operations of a step."""
    sizes = space.sizes
    variants: dict[str, Work] = {
        "diffusers, encoding in each step": partial(peers.with_tf32, peers.train_stage2, sizes, space.model, True),
        "diffusers, latents and states given": partial(peers.with_tf32, peers.train_stage2, sizes, space.model, False),
        "ours": partial(train_denoiser, space),
        "ours, norms in float32": partial(train_denoiser, space, "train.norms=float32"),
        "ours, channels-last": partial(train_denoiser, space, "train.channels_last=true"),
        "ours, activations made again": partial(train_denoiser, space, "train.checkpointing=true"),
    }
    flops = machine.step_flops(
        space.frozen(), kit.build_conditioner(space.frozen()).width or 0, sizes.tokens, sizes.latent
    )
    return {"batch": sizes.batch, "flops": flops, "variants": measure_all(variants, sizes)}


def stage1(space: Space) -> Figures:
    """Time a step of autoencoder and discriminator; return the figures of each variant, and a step's operations."""
    sizes = space.sizes
    variants: dict[str, Work] = {
        "diffusers, bf16 weights": partial(peers.with_tf32, peers.train_stage1, sizes, space.stage1()),
        "ours": partial(train_autoencoder, space),
        "ours, norms in float32": partial(train_autoencoder, space, "train.norms=float32"),
        "ours, channels-last": partial(train_autoencoder, space, "train.channels_last=true"),
    }
    flops = machine.autoencoder_flops(space.stage1())
    return {"batch": sizes.batch_ae, "flops": flops, "variants": measure_all(variants, sizes)}


SETTINGS: Mapping[str, tuple[str, ...]] = {
    "as configured": (),
    "fp16 with loss scaling": ("train.precision=fp16",),
    "float32": ("train.precision=no",),
    "float32 with TF32": ("train.precision=no", "train.tf32=true"),
    "channels-last": ("train.channels_last=true",),
    "attention by plain matrix products": ("train.attention=math",),
    "deterministic": ("train.deterministic=true",),
    "Muon": ("optim.muon={lr: 4.0e-3, iterations: 5, block: 128}",),
    "compiled blocks": ("train.compile=true",),
}


GPU_ONLY = ("fp16 with loss scaling", "compiled blocks")  # refused on a CPU, or minutes of compiling there


def settings(space: Space) -> Figures:
    """Time the training step of a small U-Net with single settings changed; return the figures of each."""
    small = (*space.sizes.small, f"train.batch_size={_small_batch(space)}")
    variants: dict[str, Work] = {
        name: partial(train_denoiser, space, *small, *given, side=space.sizes.small_side)
        for name, given in SETTINGS.items()
        if space.sizes.device.type == "cuda" or name not in GPU_ONLY
    }
    return {"batch": _small_batch(space), "variants": measure_all(variants, space.sizes)}


def _small_batch(space: Space) -> int:
    return space.stage2(*space.sizes.small).train.batch_size


def train_denoiser(space: Space, *overrides: str, side: int | None = None) -> Iterator[object]:
    """Train the denoiser with ldm_kit on cached latents and states of a frozen text encoder."""
    config = space.frozen("train.precision=bf16", *overrides)
    side, tokens = side or space.sizes.latent, space.sizes.tokens
    return kit.train_steps(config, partial(kit.open_random_latents, config, side, COUNT, tokens))


def train_autoencoder(space: Space, *overrides: str) -> Iterator[object]:
    config = space.stage1("train.precision=bf16", *overrides)
    return kit.train_steps(config, partial(kit.open_autoencoder, config, _random_pictures(space.sizes.side)))


def _random_pictures(side: int) -> Split:
    pixels = torch.randint(256, (PICTURES, 3, side, side), dtype=torch.uint8)
    records = [Record(f"{i}", "", None) for i in range(PICTURES)]
    pictures = InMemory(records, (), pixels, "random")
    return Split(pictures, subset(pictures, []), None)
