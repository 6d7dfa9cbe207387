"""What the decoders of semantic codes share: autocast, clipping of pixels, batches run to their last state."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.diffusion.denoiser import Clipped, Denoiser
from ldm_kit.diffusion.samplers import State
from ldm_kit.memory import Batch, BatchSize

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
    count: int,
    batch: Batch,
    steps: int,
    *,
    progress: Progress | None,
) -> Iterator[Tensor]:
    """Run batches one after another, and yield the last state x of each on the CPU.

    Args:
        run: yields the states of one batch.
        count: how many samples there are.
        batch: most samples at once; halved when memory runs out.
        steps: how many states a batch has.
        progress: called with (done, all) steps of all batches.
    """
    size, finished = BatchSize.of(batch), 0

    def last(indices: range) -> Tensor:
        x, total = torch.empty(0), finished + -(-(count - indices.start) // size.size)
        for step, state in enumerate(run(slice(indices.start, indices.stop)), 1):
            x = state.x
            if progress is not None:
                progress(finished * steps + step, total * steps)
        return x.float().cpu()

    for x in size.batches(count, last):
        yield x
        finished += 1
