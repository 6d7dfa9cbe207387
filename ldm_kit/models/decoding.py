"""What models that sample share: the first stage, both ways, autocast, clipping, batches of states, checks."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from autoencoder import base as first_stage
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.diffusion.denoiser import Clipped, Denoiser
from ldm_kit.diffusion.finite import FiniteCheck, check_finite
from ldm_kit.diffusion.samplers import State
from ldm_kit.memory import Batch, BatchSize

Progress = Callable[[int, int], object]  # (steps done, steps in all), over all batches


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL | VQModel | None, pictures: Tensor) -> Tensor:
    """Encode pictures to the mean latents that are denoised, in float32.

    Args:
        vae: None: the pictures are their own latents, in [-1, 1].
        pictures: uint8 [N, C, R, R] on the device of `vae`.

    Returns:
        [N, Z, h, w].

    Raises:
        NonFiniteError: the encoder gives NaN or infinity.
    """
    x = to_unit(pictures)
    return x if vae is None else check_finite("the first stage's encoder", first_stage.encode(vae, x).mean.float())


@torch.no_grad()
def decode_pictures(
    vae: AutoencoderKL | VQModel | None, latents: Tensor, precision: torch.dtype | None = None
) -> Tensor:
    """Decode latents to pictures.

    In float16 a decoder overflows whose activations go beyond 65504; one whose config says `force_upcast`, as
    AutoencoderKL's does unless it was trained for float16, is run in float32 instead.

    Args:
        vae: None: the latents are the pictures.
        latents: [N, Z, h, w] on the device of `vae`.
        precision: autocast of the decoder; None: float32.

    Returns:
        uint8 [N, C, R, R] on the CPU.

    Raises:
        NonFiniteError: the latents, or what the decoder makes of them, hold NaN or infinity.
    """
    if vae is None:
        return to_bytes(check_finite("the sample", latents).float().cpu())
    check_finite("the latent", latents)
    config: Any = vae.config
    if precision is torch.float16 and config.get("force_upcast"):
        precision = None
    with nullcontext() if precision is None else torch.autocast(latents.device.type, precision):
        pictures = first_stage.decode(vae, latents)
    return to_bytes(check_finite("the first stage's decoder", pictures).float().cpu())


def autocast_network(network: Callable[..., Any], precision: torch.dtype | None) -> Callable[..., Any]:
    """Return a network of (x, t, cond) that runs under autocast to `precision`; None: without."""

    def call(x: Tensor, t: Tensor, cond: Any) -> Any:
        with nullcontext() if precision is None else torch.autocast(x.device.type, precision):
            return network(x, t, cond)

    return call


def clip_pixels(denoiser: Denoiser, vae: nn.Module | None) -> Denoiser:
    """Return the denoiser with x_0 clipped in pixels (vae is None), which have a range; unchanged in latents."""
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
    """Run batches one after another, and yield the last state x of each on the CPU.

    Args:
        run: yields the states of one batch.
        count: how many samples there are.
        batch: most samples at once; halved when memory runs out.
        steps: how many states a batch has.
        check: into which the sampler's networks note.
        name: what the steps are of, for the message of a number that is not finite.
        progress: called with (done, all) steps of all batches.
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
    """Check that pictures are uint8 [N, *shape]; raises UserError."""
    if pictures.dtype != torch.uint8 or tuple(pictures.shape[1:]) != shape:
        kind = str(pictures.dtype).removeprefix("torch.")
        sizes = ", ".join(map(str, shape))
        raise UserError(f"expected pictures, uint8 [N, {sizes}], got {kind} {[*pictures.shape]}")


def check_codes(z: Tensor, count: int, width: int) -> None:
    """Check that there are `count` codes of `width` finite numbers each; raises UserError."""
    if tuple(z.shape) != (count, width):
        raise UserError(f"expected {count} codes of {width} numbers each, got {[*z.shape]}")
    check_finite("the file or encoder of the codes", z)
