"""Helpers of every model that samples: encode and decode pictures, autocast, clip, run batches, check inputs."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from autoencoder import base as first_stage
from ldm_kit.config import UserError
from ldm_kit.data.levels import to_levels, to_unit
from ldm_kit.diffusion.denoiser import Clipped, Denoiser
from ldm_kit.diffusion.finite import FiniteCheck, check_finite
from ldm_kit.diffusion.samplers import State
from ldm_kit.memory import Batch, BatchSize

Progress = Callable[[int, int], object]  # called with the finished and the total number of steps of all batches


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL | VQModel | None, pictures: Tensor) -> Tensor:
    """Encode pictures to latents: the mean of the autoencoder's normalised posterior.

    Args:
        vae: the autoencoder; None: a pixel model, whose latents are the pictures scaled to [-1, 1].
        pictures: levels, uint8 or uint16 [N, C, R, R], on the device of `vae`.

    Returns:
        Latents of Z channels, float32 [N, Z, h, w].

    Raises:
        NonFiniteError: the encoder gives NaN or infinity.
    """
    x = to_unit(pictures)
    return x if vae is None else check_finite("the first stage's encoder", encode_unit(vae, x))


@torch.no_grad()
def encode_unit(vae: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    """Encode pictures x [N, C, R, R] in [-1, 1] to latents, float32 [N, Z, h, w]: the mean of the posterior."""
    return first_stage.encode(vae, x).mean.float()


@torch.no_grad()
def decode_pictures(
    vae: AutoencoderKL | VQModel | None,
    latents: Tensor,
    precision: torch.dtype | None = None,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Decode latents to pictures.

    Activations above 65504 overflow in float16. An autoencoder whose config has `force_upcast`, which is the default
    of AutoencoderKL, therefore runs in float32 where `precision` is float16.

    Args:
        vae: the autoencoder; None: a pixel model, whose latents are the pictures in [-1, 1].
        latents: [N, Z, h, w] on the device of `vae`.
        precision: dtype of the decoder's autocast; None: no autocast.
        dtype: torch.uint8 for pictures of 256 levels, torch.uint16 for 65536.

    Returns:
        Pictures, levels [N, C, R, R] of that type on the CPU.

    Raises:
        NonFiniteError: the latents or the decoded pictures hold NaN or infinity.
    """
    if vae is None:
        return to_levels(check_finite("the sample", latents).float().cpu(), dtype)
    check_finite("the latent", latents)
    config: Any = vae.config
    if precision is torch.float16 and config.get("force_upcast"):
        precision = None
    with nullcontext() if precision is None else torch.autocast(latents.device.type, precision):
        pictures = first_stage.decode(vae, latents)
    return to_levels(check_finite("the first stage's decoder", pictures).float().cpu(), dtype)


def autocast_network(network: Callable[..., Any], precision: torch.dtype | None) -> Callable[..., Any]:
    """Return `network`, a function of (x, t, cond), run under autocast to `precision`; None: without autocast."""

    def call(x: Tensor, t: Tensor, cond: Any) -> Any:
        with nullcontext() if precision is None else torch.autocast(x.device.type, precision):
            return network(x, t, cond)

    return call


def clip_pixels(denoiser: Denoiser, vae: nn.Module | None) -> Denoiser:
    """Return a denoiser whose x_0 is clipped to [-1, 1] in a pixel model (`vae` is None); latents stay unclipped."""
    return Clipped(denoiser) if vae is None else denoiser


def last_states(
    run: Callable[[slice], Iterator[State]],
    count: int,
    batch: Batch,
    steps: int,
    check: FiniteCheck,
    *,
    name: str,
    progress: Progress | None,
) -> Iterator[Tensor]:
    """Run a sampler over `count` samples, batch after batch; yield each batch's final x, float32 on the CPU.

    Args:
        run: takes the slice of sample indices of one batch, and yields the sampler's states for it.
        count: number of samples in all.
        batch: most samples at once; halved when memory runs out.
        steps: number of states that `run` yields for a batch.
        check: raises NonFiniteError if a network's result or a state in `run` has NaN or infinity.
        name: name of the process ("decoding"), for the error about a result that is not finite.
        progress: called with the finished and the total number of steps of all batches; None: not called.
    """
    size, finished = BatchSize.of(batch), 0

    def last(indices: range) -> Tensor:
        x, total = torch.empty(0), finished + -(-(count - indices.start) // size.size)
        for step, state in enumerate(check.states(run(slice(indices.start, indices.stop)), name), 1):
            x = state.x
            if progress is not None:
                progress(finished * steps + step, total * steps)
        return x.float().cpu()

    for x in size.batches(count, last):
        yield x
        finished += 1


def check_pictures(pictures: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that pictures are uint8 [N, *shape]; raise UserError if they are not."""
    if pictures.dtype != torch.uint8 or tuple(pictures.shape[1:]) != shape:
        kind = str(pictures.dtype).removeprefix("torch.")
        sizes = ", ".join(map(str, shape))
        raise UserError(f"expected pictures, uint8 [N, {sizes}], got {kind} {[*pictures.shape]}")


def check_codes(z: Tensor, count: int, width: int) -> None:
    """Check that z holds `count` codes of `width` numbers each, [count, width], all finite; raise UserError if not."""
    if tuple(z.shape) != (count, width):
        raise UserError(f"expected {count} codes of {width} numbers each, got {[*z.shape]}")
    check_finite("the file or encoder of the codes", z)
