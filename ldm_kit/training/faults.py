"""What is said and kept of a step whose loss or gradient is not finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.training import distributed
from ldm_kit.training.step import StepStats

NAMED = 5  # tensors that are listed of each player
Report = dict[str, Any]


class Fault(UserError):
    """A step came out infinite or NaN; all processes stop before its update. `report` is what is known of it."""

    def __init__(self, report: Report, overflows: int = 0) -> None:
        advice = "lower the learning rate, or train with train.precision=no"
        if overflows:
            advice = f"that was overflow {overflows} in a row under fp16: train with train.precision=bf16 or no"
        super().__init__(
            f"{sentence(report)}; the run stops before that update and its checkpoints are whole; {advice}"
        )
        self.report = report


def all_finite(seen: StepStats, norms: Mapping[str, Tensor]) -> bool:
    """Whether every loss of this process and every gradient is finite."""
    values = [*norms.values(), *(loss for losses in seen.losses.values() for loss in losses)]
    return bool(torch.stack([value.float() for value in values]).isfinite().all())


def spoilt(named: Mapping[str, Tensor | None]) -> list[str]:
    """Names of the first few tensors that are not finite everywhere."""
    bad = (name for name, value in named.items() if value is not None and not bool(value.isfinite().all()))
    return [name for name, _ in zip(bad, range(NAMED), strict=False)]


def batch_tensors(batch: Any, prefix: str = "") -> dict[str, Tensor]:
    """The floating tensors of a batch by dotted name."""
    match batch:
        case Tensor():
            return {prefix or "batch": batch} if batch.is_floating_point() else {}
        case dict():
            dotted = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in batch.items()]
            return {name: tensor for key, value in dotted for name, tensor in batch_tensors(value, key).items()}
        case _:
            return {}


def report(
    step: int,
    seen: StepStats,
    norms: Mapping[str, Tensor],
    players: Mapping[str, nn.Module],
    batches: Sequence[tuple[Sequence[tuple[int, int]], Any]],
) -> Report:
    """All that is known of a bad step, from all processes, which must all ask.

    Args:
        step: its number (1 = the first).
        seen: this process's losses.
        norms: gradient norms by player, over all processes.
        players: the modules, still with the gradients before clipping.
        batches: this process's micro-batches: (position, index) pairs, and what the source gives for them.
    """
    mine = {
        "losses": {player: [_text(loss) for loss in losses] for player, losses in seen.losses.items()},
        "positions": [[position for position, _ in places] for places, _ in batches],
        "indices": [[index for _, index in places] for places, _ in batches],
        "spoilt_inputs": [spoilt(batch_tensors(batch)) for _, batch in batches],
    }
    return {
        "step": step,
        "gradient_norms": {player: _text(norm) for player, norm in norms.items()},
        "spoilt_gradients": {n: spoilt({k: p.grad for k, p in m.named_parameters()}) for n, m in players.items()},
        "spoilt_weights": {n: spoilt(dict(m.named_parameters())) for n, m in players.items()},
        "processes": distributed.all_gather_objects(mine),
    }


def sentence(found: Report) -> str:
    """What, where and on which process."""
    said = [
        f"loss of {player} {next(v for v in values if not _finite(v))} on process {rank}"
        for rank, process in enumerate(found["processes"])
        for player, values in process["losses"].items()
        if not all(map(_finite, values))
    ]
    for player, norm in found["gradient_norms"].items():
        if not _finite(norm):
            names = found["spoilt_gradients"][player]
            said.append(f"gradient of {player} {norm}" + (f", first in {names[0]}" if names else ""))
    return f"the loss or gradient became infinite or NaN at step {found['step']} ({'; '.join(said)})"


def _text(value: Tensor) -> str:
    return f"{float(value):.9g}"


def _finite(text: str) -> bool:
    return text not in ("nan", "inf", "-inf")
