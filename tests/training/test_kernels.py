"""The check of this machine's kernels: it finds wrong results, and advises what is faster."""

from dataclasses import replace

import pytest
import torch

from ldm_kit.training import kernels
from ldm_kit.training.kernels import KERNELS, Measured, advice, measure_kernels, thread_speedup


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_errors_are_those_of_rounding_here(kernel):
    """Which this machine's kernels must keep to; and each precision has the error of its own dtype."""
    measured = measure_kernels("cpu", 0.0, [kernel])
    assert len(measured) == (4 if kernel.of_pictures else 2)
    for each in measured:
        assert each.right, each
        assert each.error > (1e-3 if each.precision == "bf16" else 0)
        assert each.gigaflops == pytest.approx(kernel.flops / each.milliseconds / 1e6)


def test_the_count_of_operations_is_that_of_torch():
    from torch.utils.flop_counter import FlopCounterMode

    for kernel in KERNELS[:-1]:  # the counter knows a fused attention as one kernel, with more work backwards
        with FlopCounterMode(display=False) as counter:
            kernels._with_gradients(kernel, [torch.zeros(shape) for shape in kernel.shapes])
        assert counter.get_total_flops() == kernel.flops, kernel.name


@pytest.mark.parametrize("where", ["result", "gradient"])
def test_a_wrong_kernel_is_named(where):
    """One pixel off, or a gradient that is too large by a tenth."""

    def call(x, weight):
        out = torch.nn.functional.conv2d(x, weight, padding=1)
        if x.dtype != torch.bfloat16:
            return out
        if where == "result":
            return out.roll(1, -1)
        return out + 0.1 * (out - out.detach())

    wrong = KERNELS[1]._replace(call=call)
    measured = measure_kernels("cpu", 0.0, [wrong])
    assert [each.right for each in measured] == [True, True, False, False]
    said = advice(measured, "float32", "contiguous")
    assert sum(line.startswith("WRONG") and wrong.name in line and "bf16" in line for line in said) == 2


CASES = [Measured("a", p, layout, 1.0, 1.0, 0.0, True) for p in ("float32", "bf16") for layout in kernels.LAYOUTS]


def test_the_fastest_is_advised():
    fast = [replace(each, milliseconds=0.2 if each.layout == "channels-last" else 1.0) for each in CASES]
    slow_bf16 = [
        replace(each, milliseconds=each.milliseconds * (9 if each.precision == "bf16" else 1)) for each in fast
    ]
    (said,) = advice(slow_bf16, "float32", "contiguous")
    assert "float32 and channels-last are 5.0 times as fast" in said
    assert "train.precision=no and train.channels_last=true" in said
    (said,) = advice(slow_bf16, "float32", "channels-last")
    assert said.startswith("the defaults, float32 and channels-last, are the fastest")


def test_only_convolutions_decide():
    product = Measured("product", "bf16", "contiguous", 0.01, 1.0, 0.0, False)
    (said,) = advice([*CASES, product], "float32", "contiguous")
    assert said.startswith("the defaults")


def test_threads_are_set_back():
    count = torch.get_num_threads()
    assert thread_speedup(0.0) > 0
    assert torch.get_num_threads() == count
