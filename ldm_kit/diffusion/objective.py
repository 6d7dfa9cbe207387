"""What a denoiser is trained on: the squared error of its target, the variational bound, or both."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ldm_kit.diffusion import likelihood, loss
from ldm_kit.diffusion.likelihood import VarianceType
from ldm_kit.diffusion.prediction import PredictionType, to_prediction
from ldm_kit.diffusion.schedule import Schedule

LossName = Literal["simple", "hybrid", "vlb"]


class Errors(NamedTuple):
    """How wrong an output was, [B] each: squared error of the target, and the bound's term (bits/dim), if trained."""

    simple: Tensor
    bits: Tensor | None


@dataclass(frozen=True)
class Objective:
    """One of the losses, with what it depends on."""

    target: PredictionType
    loss: LossName = "simple"
    variance: VarianceType = "small"
    vb_weight: float = 1e-3
    min_snr: float | None = None  # gamma
    levels: bool = True  # whether the data are 8-bit levels, which latents are not

    def errors(self, out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Errors:
        """Unweighted errors of a network's output from x_t = a x_0 + s eps; with a learned variance v is its 2nd half.

        In a hybrid loss the bound sees the prediction detached, so that it teaches the variance alone.
        """
        out, v = out.float(), None
        if self.variance == "learned_range":
            out, v = out.chunk(2, dim=1)
        simple = loss.error(out, x_0, eps, t, schedule, self.target)
        if self.loss == "simple":
            return Errors(simple, None)
        seen = out.detach() if self.loss == "hybrid" else out
        p = to_prediction(self.target, seen, loss.noised(x_0, eps, t, schedule), *schedule.at(t))
        p = p._replace(fraction=None if v is None else (v + 1) / 2)
        return Errors(simple, likelihood.term(p, x_0, t, schedule, variance=self.variance, levels=self.levels))

    def combined(self, errors: Errors, steps: int) -> Tensor:
        """The loss [B] that errors make, in training over `steps` times T.

        Hybrid is L_simple + vb_weight * L_vlb (Nichol & Dhariwal 2021, eq. 16), where L_vlb is a sum over T times. A
        picture meets one of them, whose mean over times is L_vlb / T: hence vb_weight * T, which is 1 for the paper's
        0.001 at T = 1000.
        """
        if errors.bits is None:
            return errors.simple
        return errors.bits if self.loss == "vlb" else errors.simple + self.vb_weight * steps * errors.bits

    def weighted(self, errors: Errors, t: Tensor, schedule: Schedule) -> Errors:
        """With min-SNR weights on the squared error, if there are any."""
        if self.min_snr is None:
            return errors
        weights = loss.min_snr(t, schedule, self.target, self.min_snr)
        return errors._replace(simple=errors.simple * weights.to(errors.simple))
