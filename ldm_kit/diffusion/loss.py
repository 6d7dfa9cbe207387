"""Training losses of a denoiser: the squared error of the network's output, the variational bound, or both.

Losses are pure functions: timesteps and noise are arguments, and a loss for each sample, [B], is returned. The caller
takes the mean over the batch.
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
SMALLEST_WEIGHT = 1e-12  # divides in place of a sum of weights that is 0


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return each sample's weighted mean sum(w v) / sum(w) over its elements; 0 where all weights are 0.

    Args:
        values: [B, ...].
        weight: weights of 0 or more that broadcast to the shape of `values`; None: all are equal.
    """
    if weight is None:
        return values.flatten(1).mean(1)
    weight = weight.to(values).expand_as(values).flatten(1)
    return (values.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(SMALLEST_WEIGHT)


def error(
    out: Tensor,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    prediction_type: PredictionType,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error between a network's output and its target (Ho et al. 2020, eq. 14, for eps).

    Args:
        out: the network's output from x_t, [B, ...], of any float dtype; the error is computed in float32.
        x_0: true clean data, in the shape of `out`.
        eps: true noise, in the shape of `out`.
        t: timesteps [B].
        schedule: noise schedule of x_t.
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        weight: weight of each element in the mean, broadcast to the shape of `out`; None: all are equal.

    Returns:
        Mean squared error of each sample, float32 [B].
    """
    target = from_prediction(prediction_type, Prediction(x_0, eps), *schedule.alpha_sigma(t))
    return weighted_mean((out.float() - target.float()).square(), weight)


def min_snr(t: Tensor, schedule: Schedule, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Return min-SNR weights for the squared error of a network's output (Hang et al. 2023, section 3.4).

    For every prediction type, weight times squared error equals min(SNR, gamma) times the squared error of x_0. The
    squared error of x_0 is that of the output times (s/a)^2 for eps, 1 for x_0, and s^2 for v and flow. Here
    x_t = a x_0 + s eps, and the signal-to-noise ratio SNR is (a/s)^2.

    Args:
        t: timesteps [B].
        schedule: noise schedule of x_t.
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        gamma: upper limit of the weight of x_0's error; 5 in the paper.

    Returns:
        Weights, float64 [B], on the CPU if the device of `t` has no float64.
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
    """Squared error and variational bound of B samples, which `Objective.combined` adds up to the training loss.

    Attributes:
        simple: mean squared error of the output, [B].
        bits: the variational bound's term at the sample's timestep in bits per dimension, [B]; None if the training
            loss does not contain the bound.
    """

    simple: Tensor
    bits: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The training loss of a denoiser, made of the squared error and the variational bound, with its settings.

    Args:
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        loss: simple: the squared error; vlb: the variational bound; hybrid: the sum of both, where the bound trains
            only the learned variance (Nichol & Dhariwal 2021, section 3.1).
        variance: variance of the reverse step in the bound: small (the posterior's), large (beta) or learned_range
            (the network learns it, in an output with twice the channels).
        vb_weight: weight in the hybrid loss of the bound, which is summed over all timesteps.
        min_snr: gamma of the min-SNR weighting of the squared error; None: no weighting.
        levels: whether the data are 8-bit levels, as pixels are; False for latents.
    """

    prediction_type: PredictionType
    loss: LossName = "simple"
    variance: VarianceType = "small"
    vb_weight: float = 1e-3
    min_snr: float | None = None
    levels: bool = True

    def errors(
        self, out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, *, weight: Tensor | None = None
    ) -> Errors:
        """Return each sample's squared error and bound term (as the loss needs them), without min-SNR weights.

        For the hybrid loss the bound is computed from the detached prediction, so that it trains only the variance.

        Args:
            out: the network's output from x_t = a x_0 + s eps: [B, C, ...], or [B, 2 C, ...] for a learned variance.
            x_0: true clean data [B, C, ...].
            eps: true noise, in the shape of x_0.
            t: timesteps [B].
            schedule: noise schedule of x_t.
            weight: weight of each element in the squared error's mean, broadcast to the shape of x_0; None: all are
                equal. The bound has no weights.
        """
        out, fraction = out.float(), None
        if self.variance == "learned_range":
            out, fraction = split_variance(out)
        simple = error(out, x_0, eps, t, schedule, prediction_type=self.prediction_type, weight=weight)
        if self.loss == "simple":
            return Errors(simple, None)
        out = out.detach() if self.loss == "hybrid" else out
        x_t = schedule.add_noise(x_0, eps, t)
        p = to_prediction(self.prediction_type, out, x_t, *schedule.alpha_sigma(t))._replace(fraction=fraction)
        return Errors(simple, likelihood.term(p, x_0, t, schedule, variance=self.variance, levels=self.levels))

    def combined(self, errors: Errors, steps: int) -> Tensor:
        """Return the training loss of each sample, [B], from its squared error and its term of the bound.

        The hybrid loss is L_simple + vb_weight L_vlb (Nichol & Dhariwal 2021, eq. 16), where L_vlb is the sum of the
        bound's terms over all T timesteps. A sample has one random term, whose expectation is L_vlb / T. The weight
        of this term is therefore vb_weight T, which is 1 for the paper's vb_weight = 0.001 and T = 1000.

        Args:
            errors: what `errors` or `weighted` returned.
            steps: number of training timesteps T.
        """
        if errors.bits is None:
            return errors.simple
        return errors.bits if self.loss == "vlb" else errors.simple + self.vb_weight * steps * errors.bits

    def weighted(self, errors: Errors, t: Tensor, schedule: Schedule) -> Errors:
        """Return `errors` with `simple` multiplied by the min-SNR weights; unchanged if `self.min_snr` is None.

        The errors were measured at timesteps t [B] of the noise schedule `schedule`.
        """
        if self.min_snr is None:
            return errors
        weights = min_snr(t, schedule, self.prediction_type, self.min_snr)
        return errors._replace(simple=errors.simple * cast_like(weights, errors.simple))
