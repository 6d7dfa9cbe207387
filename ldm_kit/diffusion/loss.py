"""What a denoiser is trained on: the squared error of its output, the variational bound, or both.

Losses are pure: timesteps and noise come in, [B] comes out; the mean over the batch belongs to the caller.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, minimum

from ldm_kit.diffusion import likelihood
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import (
    Prediction,
    PredictionType,
    cast_like,
    from_prediction,
    split_variance,
    to_prediction,
)
from ldm_kit.diffusion.schedule import Schedule

LossName = Literal["simple", "hybrid", "vlb"]


def error(
    out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, *, prediction_type: PredictionType
) -> Tensor:
    """Return the mean squared error of a network's output against its target (Ho et al. 2020, eq. 14, for eps).

    Args:
        out: the output [B, ...] from x_t, of any float dtype; the error is taken in float32.
        x_0: true clean data, like `out`.
        eps: true noise, like `out`.
        t: timesteps [B].
        schedule: noise schedule of x_t.
        prediction_type: what the network predicts.

    Returns:
        float32 [B].
    """
    target = from_prediction(prediction_type, Prediction(x_0, eps), *schedule.alpha_sigma(t))
    return (out.float() - target.float()).square().flatten(1).mean(1)


def min_snr(t: Tensor, schedule: Schedule, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Return weights that make every loss min(SNR, gamma) times the error of x_0 (Hang et al. 2023, section 3.4).

    The error of x_0 is that of the output times (s/a)^2 for eps, 1 for x_0, s^2 for v and flow.

    Args:
        t: timesteps [B].
        schedule: noise schedule of x_t.
        prediction_type: what the network predicts.
        gamma: greatest weight of the error of x_0; 5 in the paper.

    Returns:
        float64 [B]; on the CPU where the device of `t` has no float64.
    """
    t = exact(t)
    a, s = schedule.alpha_sigma(t)
    snr = schedule.snr(t)
    match prediction_type:
        case "eps":
            return (gamma / snr).clamp_max(1)
        case "x0":
            return snr.clamp_max(gamma)
        case "v" | "flow":
            return minimum(a.square(), gamma * s.square())


class Errors(NamedTuple):
    """Squared error of the output, and the bound's term in bits per dimension (None: not trained), [B] each."""

    simple: Tensor
    bits: Tensor | None


@dataclass(frozen=True)
class Objective:
    """A training loss and its settings.

    Args:
        prediction_type: what the network predicts.
        loss: simple, the squared error; vlb, the variational bound; hybrid, both, the bound training the variance alone
            (Nichol & Dhariwal 2021, section 3.1).
        variance: of the reverse step; learned_range: the output has twice the channels.
        vb_weight: weight of the whole bound in the hybrid loss.
        min_snr: gamma of the min-SNR weighting of the squared error; None: none.
        levels: whether the data are 8-bit levels, which latents are not.
    """

    prediction_type: PredictionType
    loss: LossName = "simple"
    variance: VarianceType = "small"
    vb_weight: float = 1e-3
    min_snr: float | None = None
    levels: bool = True

    def errors(self, out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Errors:
        """Return the unweighted errors of a network's output.

        In the hybrid loss the bound sees the prediction detached, so that it trains the variance alone.

        Args:
            out: the output from x_t = a x_0 + s eps, [B, C, ...], or [B, 2 C, ...] where the variance is learned.
            x_0: true clean data [B, C, ...].
            eps: true noise, like x_0.
            t: timesteps [B].
            schedule: noise schedule of x_t.
        """
        out, fraction = out.float(), None
        if self.variance == "learned_range":
            out, fraction = split_variance(out)
        simple = error(out, x_0, eps, t, schedule, prediction_type=self.prediction_type)
        if self.loss == "simple":
            return Errors(simple, None)
        out = out.detach() if self.loss == "hybrid" else out
        x_t = schedule.add_noise(x_0, eps, t)
        p = to_prediction(self.prediction_type, out, x_t, *schedule.alpha_sigma(t))._replace(fraction=fraction)
        return Errors(simple, likelihood.term(p, x_0, t, schedule, variance=self.variance, levels=self.levels))

    def combined(self, errors: Errors, steps: int) -> Tensor:
        """Return the loss [B] of a batch's errors.

        The hybrid loss is L_simple + vb_weight L_vlb (Nichol & Dhariwal 2021, eq. 16), where L_vlb is a sum over T
        timesteps. A sample is trained at one of them, whose mean over timesteps is L_vlb / T: hence the factor
        vb_weight T, which is 1 for the paper's 0.001 at T = 1000.

        Args:
            errors: as `errors` or `weighted` gives them.
            steps: number of training timesteps T.
        """
        if errors.bits is None:
            return errors.simple
        return errors.bits if self.loss == "vlb" else errors.simple + self.vb_weight * steps * errors.bits

    def weighted(self, errors: Errors, t: Tensor, schedule: Schedule) -> Errors:
        """Return the errors with min-SNR weights on the squared error, if `min_snr` is set, for timesteps t [B]."""
        if self.min_snr is None:
            return errors
        weights = min_snr(t, schedule, self.prediction_type, self.min_snr)
        return errors._replace(simple=errors.simple * cast_like(weights, errors.simple))
