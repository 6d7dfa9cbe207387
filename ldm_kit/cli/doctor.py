"""The command `ldm-kit doctor`: what this machine has, how fast its kernels are, and whether they are right."""

from collections.abc import Callable

import torch

from ldm_kit.models.folder import device_named
from ldm_kit.nets.execution import default_layout
from ldm_kit.training.kernels import Measured, advice, measure_kernels, thread_speedup
from ldm_kit.training.precision import resolve_precision
from ldm_kit.training.run_folder import versions


def examine(device_name: str | None, seconds: float, say: Callable[[str], object]) -> bool:
    """Print versions, measured kernels and advice; return whether all kernels are right.

    Args:
        device_name: device to measure, such as cpu or cuda; None: the accelerator if there is one.
        seconds: about how long to measure.
        say: prints a line.

    Raises:
        UserError: there is no such device.
    """
    device = device_named(device_name)
    for name, version in versions().items():
        say(f"{name:14} {version}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    say(f"{'device':14} {device} ({name})")
    say(f"{'attention':14} sdpa (cpu: math)\n{'threads':14} {_threads(device)}\n")
    measured = measure_kernels(device, seconds)
    for line in table(measured):
        say(line)
    precision = {"no": "float32", "bf16": "bf16"}[resolve_precision("auto", device)]
    layout = "channels-last" if default_layout(device) is torch.channels_last else "contiguous"
    say("")
    for sentence in advice(measured, precision, layout):
        say(sentence)
    return all(each.right for each in measured)


def _threads(device: torch.device) -> str:
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        return str(count)
    return f"{count}, {thread_speedup():.1f} times as fast as one (OMP_NUM_THREADS sets their number)"


def table(measured: list[Measured]) -> list[str]:
    """Return lines of a table: GFLOP/s of each kernel with its gradients, by precision and layout."""
    columns = [*dict.fromkeys((each.precision, each.layout) for each in measured)]
    titles = [f"{precision} {'' if layout == 'contiguous' else layout}".strip() for precision, layout in columns]
    speeds = {(each.kernel, each.precision, each.layout): f"{each.gigaflops:.0f}" for each in measured}
    width = max(len(each.kernel) for each in measured)
    lines = [f"{'GFLOP/s, with gradients':{width}}  " + "  ".join(f"{title:>22}" for title in titles)]
    for kernel in dict.fromkeys(each.kernel for each in measured):
        cells = [speeds.get((kernel, *column), "-") for column in columns]
        lines.append(f"{kernel:{width}}  " + "  ".join(f"{cell:>22}" for cell in cells))
    return lines
