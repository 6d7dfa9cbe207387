"""Where the time of our training steps and of sampling goes on a device: the operators that take most of it."""

from functools import partial
from itertools import islice

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.model import Space
from benchmarks.gpu.sampling import sample_ours
from benchmarks.gpu.timing import Figures, Work, release
from benchmarks.gpu.training import train_autoencoder, train_denoiser

STEPS, ROWS = 3, 25


def profile(space: Space) -> Figures:
    """Profile a few steps of each kind of work; return tables of operators, as text, by name of the work."""
    works: dict[str, Work] = {
        "stage 2": partial(train_denoiser, space),
        "stage 1": partial(train_autoencoder, space),
        "sampling": partial(sample_ours, space, torch.bfloat16),
    }
    return {name: _profiled(space, work) for name, work in works.items()}


def _profiled(space: Space, work: Work) -> str:
    release()
    running = work()
    for _ in islice(running, 2):
        pass
    on_gpu = space.sizes.device.type == "cuda"
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        for _ in islice(running, 1 if work.func is sample_ours else STEPS):  # pyright: ignore[reportAttributeAccessIssue]
            pass
        if on_gpu:
            torch.cuda.synchronize()
    running.close()  # pyright: ignore[reportAttributeAccessIssue]
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
