"""What the decoders of semantic codes share: autocast, clipping of pixels, batches run to their last state, checks."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Clipped, Denoiser
from ldm_kit.diffusion.samplers import State

Progress = Callable[[int, int], object]  # (steps done, steps in all), over all batches


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
    starts: range,
    steps: int,
    *,
    progress: Progress | None,
) -> list[Tensor]:
    """Run batches one after another, and return the last state x of each on the CPU.

    Args:
        run: yields the states of one batch.
        starts: indices of the batches' first elements; its step is their size.
        steps: how many states a batch has.
        progress: called with (done, all) steps of all batches.
    """
    last: list[Tensor] = []
    for number, start in enumerate(starts):
        x = torch.empty(0)
        for step, state in enumerate(run(slice(start, start + starts.step)), 1):
            x = state.x
            if progress is not None:
                progress(number * steps + step, len(starts) * steps)
        last.append(x.float().cpu())
    return last


def check_pictures(pictures: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that pictures are uint8 [N, *shape]; raises UserError."""
    if pictures.dtype != torch.uint8 or tuple(pictures.shape[1:]) != shape:
        kind = str(pictures.dtype).removeprefix("torch.")
        sizes = ", ".join(map(str, shape))
        raise UserError(f"expected pictures, uint8 [N, {sizes}], got {kind} {[*pictures.shape]}")


def check_codes(z: Tensor, count: int, width: int) -> None:
    """Check that there are `count` codes of `width` numbers each; raises UserError."""
    if tuple(z.shape) != (count, width):
        raise UserError(f"expected {count} codes of {width} numbers each, got {[*z.shape]}")
