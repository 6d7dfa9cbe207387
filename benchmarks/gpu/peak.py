"""What the device itself reaches: matrix products, convolutions and copies."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Figures, measure

REPEATS = 10


def peak(sizes: Sizes) -> Figures:
    """Measure operations a second of bf16 products and convolutions, bytes a second of a copy, and name the device."""
    device, n = sizes.device, sizes.matrix
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    channels, side, batch = (320, 64, 16) if n > 1024 else (16, 8, 2)
    x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=torch.bfloat16)
    x, w = (value.contiguous(memory_format=torch.channels_last) for value in (x, w))
    single = torch.randn(n, n, device=device)
    flops = {"product": 2 * n**3, "convolution": 2 * batch * side**2 * channels**2 * 9}
    works: dict[str, Callable[[], object]] = {
        "product": lambda: a @ b,
        "convolution": lambda: F.conv2d(x, w, padding=1),
        "copy": single.clone,
    }
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as our training has it
        times = {
            name: measure(lambda work=work: _repeated(work), sizes)["seconds"] / REPEATS for name, work in works.items()
        }
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "product_flops": flops["product"] / times["product"],
        "convolution_flops": flops["convolution"] / times["convolution"],
        "copy_bytes": 2 * single.nbytes / times["copy"],
    }


def _repeated(work: Callable[[], object]) -> Iterator[object]:
    while True:
        yield [work() for _ in range(REPEATS)]
