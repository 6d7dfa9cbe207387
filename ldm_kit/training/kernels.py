"""Time and check the kernels that training depends on, and say which precision and layout pay on this machine.

Speeds differ by more than ten times between processors and releases of torch: bfloat16 convolutions are emulated on
some, channels-last pays on some, and some releases have slow or wrong kernels for single shapes.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, scaled_dot_product_attention

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
TOLERANCES = {"float32": 2e-3, "bf16": 3e-2}  # largest error over the largest exact value; TF32 has 10 bits
PAYS = 1.15  # a choice is advised if it is this many times as fast


class Kernel(NamedTuple):
    """A kernel: its function, the shapes of the arguments, and the multiplications and additions that a call takes."""

    name: str
    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    flops: int  # with the gradients of all arguments
    of_pictures: bool = False  # whether the arguments are pictures and weights, which have a memory layout


def _convolution(width: int, side: int, kernel: int, stride: int) -> Kernel:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, stride=stride, padding=kernel // 2)

    out = (side + 2 * (kernel // 2) - kernel) // stride + 1
    flops = 3 * 2 * 8 * width * width * kernel * kernel * out * out
    name = f"convolution {kernel}x{kernel}, stride {stride}, {width} channels, {side} px"
    return Kernel(name, call, ((8, width, side, side), (width, width, kernel, kernel)), flops, of_pictures=True)


KERNELS = (
    _convolution(64, 32, 3, 1),
    _convolution(128, 8, 3, 1),
    _convolution(64, 16, 3, 2),
    _convolution(64, 16, 2, 2),
    _convolution(128, 8, 1, 1),
    Kernel("matrix product, 512 x 512 x 512", torch.matmul, ((512, 512), (512, 512)), 3 * 2 * 512**3),
    Kernel(
        "attention, 64 tokens of 64, 4 heads", scaled_dot_product_attention, ((8, 4, 64, 64),) * 3, 3 * 4 * 32 * 64**3
    ),
)


@dataclass(frozen=True)
class Measured:
    """What one kernel does in one precision and layout."""

    kernel: str
    precision: str  # key of DTYPES
    layout: str  # key of LAYOUTS; contiguous, where a kernel has no pictures
    milliseconds: float  # of a call with its gradients, the median
    gigaflops: float  # thousand million multiplications and additions a second
    error: float  # largest difference to the result in float64, over the largest value of that
    of_pictures: bool

    @property
    def right(self) -> bool:
        """Whether the error is one of rounding."""
        return self.error <= TOLERANCES[self.precision]


def measure_kernels(
    device: torch.device | str, seconds: float = 3.0, kernels: Sequence[Kernel] = KERNELS
) -> list[Measured]:
    """Time each kernel in each precision and layout, and compare its results with those in float64 on the CPU.

    Args:
        device: where the kernels run.
        seconds: about how long to measure; a machine that emulates bfloat16 takes longer.
        kernels: the kernels.
    """
    cases = [
        (kernel, precision, layout)
        for kernel in kernels
        for precision in DTYPES
        for layout in (LAYOUTS if kernel.of_pictures else ["contiguous"])
    ]
    return [_measure(*case, torch.device(device), seconds / len(cases)) for case in cases]


def _measure(kernel: Kernel, precision: str, layout: str, device: torch.device, seconds: float) -> Measured:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=generator).to(DTYPES[precision]).double() for shape in kernel.shapes]
    given = [value.to(device, DTYPES[precision]) for value in exact]
    if kernel.of_pictures:
        given = [value.contiguous(memory_format=LAYOUTS[layout]) for value in given]

    def call() -> list[Tensor]:
        results = _with_gradients(kernel, given)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return results

    pairs = zip(call(), _with_gradients(kernel, exact), strict=True)
    error = max(((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    spent = [*_durations(call, seconds)]
    median = statistics.median(spent)
    return Measured(
        kernel.name, precision, layout, 1000 * median, kernel.flops / median / 1e9, error, kernel.of_pictures
    )


def _with_gradients(kernel: Kernel, given: Iterable[Tensor]) -> list[Tensor]:
    """Return a kernel's result, and the gradient of its sum of squares with respect to each argument."""
    arguments = [value.detach().requires_grad_() for value in given]
    out = kernel.call(*arguments)
    return [out.detach(), *torch.autograd.grad(out, arguments, out.detach())]


def _durations(call: Callable[[], object], seconds: float) -> Iterable[float]:
    """Yield how long each call takes, until all took `seconds` together."""
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        stop = time.perf_counter()
        yield stop - start
        if stop >= end:
            return


def thread_speedup(seconds: float = 0.3, kernel: Kernel = KERNELS[0]) -> float:
    """Return how many times as fast a kernel is in float32 with this process's threads on the CPU as with one."""
    count, spent = torch.get_num_threads(), []
    try:
        for threads in (1, count):
            torch.set_num_threads(threads)
            spent.append(_measure(kernel, "float32", "contiguous", torch.device("cpu"), seconds / 2).milliseconds)
    finally:
        torch.set_num_threads(count)
    return spent[0] / spent[1]


class Choice(NamedTuple):
    """A precision and layout of a run, with the time that the convolutions take in it."""

    precision: str
    layout: str
    milliseconds: float  # a call of each convolution with its gradients


def choices(measured: Sequence[Measured]) -> list[Choice]:
    """Return precisions and layouts by the time that all convolutions take in them, the fastest first."""
    totals: dict[tuple[str, str], float] = {}
    for each in measured:
        if each.of_pictures:
            totals[each.precision, each.layout] = totals.get((each.precision, each.layout), 0.0) + each.milliseconds
    return sorted((Choice(*key, total) for key, total in totals.items()), key=lambda choice: choice.milliseconds)


def advice(measured: Sequence[Measured], precision: str, layout: str) -> list[str]:
    """Return sentences on what to set, and on kernels whose results are wrong.

    Args:
        measured: what `measure_kernels` returned.
        precision: the precision that `train.precision: auto` takes on this machine.
        layout: the layout of networks on this machine.
    """
    ranked = choices(measured)
    best, now = ranked[0], next(each for each in ranked if (each.precision, each.layout) == (precision, layout))
    ratio = now.milliseconds / best.milliseconds
    if ratio < PAYS:
        sentences = [f"the defaults, {precision} and {layout}, are the fastest or within {PAYS - 1:.0%} of it"]
    else:
        setting = {"float32": "no", "bf16": "bf16"}[best.precision]
        sentences = [
            f"{best.precision} and {best.layout} are {ratio:.1f} times as fast in convolutions as the defaults, "
            f"{precision} and {layout}: set train.precision={setting} and "
            f"train.channels_last={str(best.layout != 'contiguous').lower()}"
        ]
    wrong = [each for each in measured if not each.right]
    sentences += [
        f"WRONG: {each.kernel} in {each.precision}, {each.layout}: the error is {each.error:.2g} of the largest value, "
        f"expected at most {TOLERANCES[each.precision]:g}; do not train in it with this release of torch"
        for each in wrong
    ]
    return sentences
