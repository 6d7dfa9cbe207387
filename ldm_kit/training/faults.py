"""Failure of a training step: a loss or gradient that is not finite, and the report that explains it."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.training import distributed
from ldm_kit.training.task import StepStats

MAX_NAMES = 5  # most tensors that a report lists for each module
FaultReport = dict[str, Any]  # what fault.json holds


class NonFiniteError(UserError):
    """Error on all ranks that a loss or gradient is infinite or NaN; weights have not been updated with it.

    Args:
        report: the report of `fault_report`, which names the modules, the step and the ranks.
        overflows: under fp16, how many steps in a row have overflowed; else 0.
    """

    def __init__(self, report: FaultReport, overflows: int = 0) -> None:
        advice = "lower the learning rate, or train with train.precision=no"
        if overflows:
            advice = f"that was overflow {overflows} in a row under fp16: train with train.precision=bf16 or no"
        super().__init__(f"{summary(report)}; the run stops before that update and its checkpoints are whole; {advice}")
        self.report = report


def all_finite(stats: StepStats, norms: Mapping[str, Tensor]) -> bool:
    """Return whether a step's losses on this rank (`stats`) and its gradient norms (by module) are all finite."""
    values = [*norms.values(), *(loss for losses in stats.losses.values() for loss in losses)]
    return bool(torch.stack([value.float() for value in values]).isfinite().all())


def non_finite_names(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """Return the names of the first MAX_NAMES (5) tensors that hold an infinity or a NaN; None values are skipped."""
    names = (name for name, value in tensors.items() if value is not None and not bool(value.isfinite().all()))
    return list(islice(names, MAX_NAMES))


def batch_tensors(batch: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the floating-point tensors of a batch (a tensor, or nested dicts) by dotted key, such as inputs.text.

    A `prefix` other than "" is put before each key, with a dot. A batch that is one tensor has the key `prefix`, or
    "batch" if that is "".
    """
    match batch:
        case Tensor():
            return {prefix or "batch": batch} if batch.is_floating_point() else {}
        case dict():
            dotted = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in batch.items()]
            return {name: tensor for key, value in dotted for name, tensor in batch_tensors(value, key).items()}
        case _:
            return {}


def fault_report(
    step: int,
    stats: StepStats,
    norms: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    batches: Sequence[tuple[Sequence[tuple[int, int]], Any]],
) -> FaultReport:
    """Return a report, as values for JSON, on a step whose loss or gradient is not finite; every rank must call it.

    It names losses, gradients, weights and inputs that are not finite, and the samples of the step on each rank.

    Args:
        step: number of the step (1 = the first).
        stats: this rank's losses in the step.
        norms: gradient norms by module, over all ranks.
        modules: the modules by name, with their gradients before clipping.
        batches: this rank's micro-batches, each as a pair of its samples, (position in the run, index in the data set)
            each, and the batch of these samples.
    """
    this_rank = {
        "losses": {name: [_text(loss) for loss in losses] for name, losses in stats.losses.items()},
        "positions": [[position for position, _ in samples] for samples, _ in batches],
        "indices": [[index for _, index in samples] for samples, _ in batches],
        "spoilt_inputs": [non_finite_names(batch_tensors(batch)) for _, batch in batches],
    }
    named = {name: dict(module.named_parameters()) for name, module in modules.items()}
    return {
        "step": step,
        "gradient_norms": {name: _text(norm) for name, norm in norms.items()},
        "spoilt_gradients": {name: non_finite_names({k: p.grad for k, p in ps.items()}) for name, ps in named.items()},
        "spoilt_weights": {name: non_finite_names(parameters) for name, parameters in named.items()},
        "processes": distributed.all_gather_objects(this_rank),
    }


def summary(report: FaultReport) -> str:
    """Return what `fault_report` returned as a sentence: which loss or gradient is not finite, where and when."""
    causes = [
        f"loss of {module} {next(loss for loss in losses if not _is_finite(loss))} on process {rank}"
        for rank, process in enumerate(report["processes"])
        for module, losses in process["losses"].items()
        if not all(map(_is_finite, losses))
    ]
    for module, norm in report["gradient_norms"].items():
        if not _is_finite(norm):
            names = report["spoilt_gradients"][module]
            causes.append(f"gradient of {module} {norm}" + (f", first in {names[0]}" if names else ""))
    return f"the loss or gradient became infinite or NaN at step {report['step']} ({'; '.join(causes)})"


def _text(value: Tensor) -> str:
    return f"{float(value):.9g}"


def _is_finite(text: str) -> bool:
    return text not in ("nan", "inf", "-inf")
