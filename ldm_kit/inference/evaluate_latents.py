"""Measures of an autoencoder's latents: their statistics, how hard they are to generate, and the use of a codebook."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoencoder.base import Moments, affine
from autoencoder.codebook import perplexity
from autoencoder.quantiser import flatten, nearest
from ldm_kit.metrics import latents as metrics
from ldm_kit.models.measures import Better, Bootstrap, Estimated, Figure


class LatentMeasure(NamedTuple):
    """A measure of latents."""

    title: str
    better: Better
    kind: str = ""  # class of the autoencoders that it is for; "": any


LATENTS: Mapping[str, LatentMeasure] = {
    "latent_mean": LatentMeasure("latents' mean, root mean square of channels", "neither"),
    "latent_deviation": LatentMeasure("latents' deviation, mean of channels", "neither"),
    "kl_per_dimension": LatentMeasure("KL divergence of a latent dimension, nats", "neither", "AutoencoderKL"),
    "codebook_usage": LatentMeasure("share of codes in use", "higher", "VQModel"),
    "codebook_perplexity": LatentMeasure("perplexity of codes", "higher", "VQModel"),
    "viv": LatentMeasure("VIV", "lower"),
    "spectral_share": LatentMeasure("latents' energy above half of the band", "lower"),
}
NO_LATENTS: dict[str, str] = dict.fromkeys(LATENTS, "it is of latents, which only an autoencoder has")
_KINDS = {"AutoencoderKL": "a KL autoencoder", "VQModel": "a VQ autoencoder"}


def latents_of(vae: Any, moments: Moments) -> dict[str, Tensor]:
    """Return what is measured of B latents, on the CPU, given the moments of normalised latents [B, Z, h, w].

    It is `latents`, float32 [B, Z, h, w]: the posterior's mean, of a VQ model before it is quantised. Of a KL model
    also `latent_kl`, nats of a dimension, mean over positions, [B, Z]; of a VQ model `latent_codes`, the codes of all
    positions, int32 [B, h w].
    """
    mean, logvar = moments.mean.float(), moments.logvar.float()
    if type(vae).__name__ == "VQModel":
        shift, scale = (value.to(mean) for value in affine(vae))
        codes = nearest(flatten(mean / scale + shift), vae.quantize.embedding.weight)
        return {"latents": mean.cpu(), "latent_codes": codes.view(len(mean), -1).int().cpu()}
    if type(vae).__name__ != "AutoencoderKL":
        return {"latents": mean.cpu()}
    nats = (mean.square() + logvar.exp() - 1 - logvar) / 2
    return {"latents": mean.cpu(), "latent_kl": nats.mean((2, 3)).cpu()}


def impossible_of(vae: Any) -> dict[str, str]:
    """Return the measures that are for autoencoders of another class, and why they cannot be taken."""
    own = type(vae).__name__
    return {
        name: f"it is for {_KINDS[measure.kind].removeprefix('a ')}s, and this is {_KINDS.get(own, f'an {own}')}"
        for name, measure in LATENTS.items()
        if measure.kind not in ("", own)
    }


def few_latents(shape: tuple[int, int, int], count: int) -> dict[str, str]:
    """Return why `count` latents of a shape (Z, h, w) are too few for the VIV; {}: they are enough."""
    least = metrics.least_latents(shape[0], shape[1] * shape[2])
    if count >= least:
        return {}
    return {"viv": f"VIV needs {least} latents of {shape[0]} x {shape[1]} x {shape[2]}, but there are {count}"}


def latent_figures(
    names: Sequence[str], columns: Mapping[str, Tensor], labels: Sequence[int | None], codes: int, bootstrap: Bootstrap
) -> tuple[list[Figure], list[str], dict[str, Any]]:
    """Measure latents.

    Args:
        names: names of measures; those that are not in LATENTS are passed over.
        columns: what `latents_of` returns, of N pictures.
        labels: class of each picture, [N]; None: it has none.
        codes: number of codes of a VQ model's codebook; 0: there is none.
        bootstrap: how intervals are computed.

    Returns:
        The figures, warnings, and details for the JSON file.
    """
    sums = _Sums(columns, codes, bootstrap)
    estimates: dict[str, Estimated] = {}
    titles, warnings = {name: measure.title for name, measure in LATENTS.items()}, []
    for name in [name for name in LATENTS if name in names]:
        if name == "viv":
            estimates[name], titles[name], warnings = _viv(columns["latents"], labels)
        else:
            estimates[name] = _ESTIMATES[name](sums)
    count = len(columns["latents"])
    figures = [Figure(name, titles[name], *value, LATENTS[name].better, count) for name, value in estimates.items()]
    return figures, warnings, {"latents": sums.details()} if figures else {}


@dataclass(frozen=True, eq=False)
class _Sums:
    """Estimates of the measures that are functions of sums over pictures."""

    columns: Mapping[str, Tensor]
    codes: int
    bootstrap: Bootstrap

    @property
    def latents(self) -> Tensor:
        return self.columns["latents"]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel in each draw, float64 [1 + draws, Z] each."""
        values = self.latents.double()
        counts = self.bootstrap.counts(len(values)).double() / len(values)
        mean, square = counts @ values.mean((2, 3)), counts @ values.square().mean((2, 3))
        return mean, (square - mean.square()).clamp_min(0).sqrt()

    def mean(self) -> Estimated:
        return self.bootstrap.estimate(self._moments()[0].square().mean(1).sqrt())

    def deviation(self) -> Estimated:
        return self.bootstrap.estimate(self._moments()[1].mean(1))

    def kl_per_dimension(self) -> Estimated:
        return self.bootstrap.mean(self.columns["latent_kl"].double().mean(1))

    def codebook_usage(self) -> Estimated:
        """Return the share of codes in use, which has no interval: a draw has fewer different pictures."""
        return Estimated((self._histogram() > 0).double().mean().item(), None)

    def codebook_perplexity(self) -> Estimated:
        counts = self.bootstrap.counts(len(self.latents))
        return self.bootstrap.estimate(torch.stack([perplexity(self._histogram(row)) for row in counts]).double())

    def _histogram(self, counts: Tensor | None = None) -> Tensor:
        """Return how often each code is used, float64 [K], where picture n counts `counts` [N] times; None: once."""
        codes = self.columns["latent_codes"]
        weights = None if counts is None else counts.double().repeat_interleave(codes.shape[1])
        return torch.bincount(codes.flatten(), weights, minlength=self.codes)

    def spectral_share(self) -> Estimated:
        values = self.latents
        energy = metrics.spectral_energy(values - values.mean((0, 2, 3), keepdim=True))
        sums = self.bootstrap.counts(len(energy)).double() @ energy
        return self.bootstrap.estimate(sums[:, 1] / sums.sum(1), share=True)

    def details(self) -> dict[str, Any]:
        """Return shape, and mean, deviation and KL divergence of each channel, as JSON values."""
        statistics = metrics.channel_statistics(self.latents)._asdict()
        if "latent_kl" in self.columns:
            statistics["kl"] = self.columns["latent_kl"].double().mean(0)
        return {"shape": [*self.latents.shape[1:]], **{name: value.tolist() for name, value in statistics.items()}}


_ESTIMATES: Mapping[str, Callable[[_Sums], Estimated]] = {
    "latent_mean": _Sums.mean,
    "latent_deviation": _Sums.deviation,
    "kl_per_dimension": _Sums.kl_per_dimension,
    "codebook_usage": _Sums.codebook_usage,
    "codebook_perplexity": _Sums.codebook_perplexity,
    "spectral_share": _Sums.spectral_share,
}


def _viv(mean: Tensor, labels: Sequence[int | None]) -> tuple[Estimated, str, list[str]]:
    """Return the irreducible variance within classes, or of all latents if they have none, with title and warnings."""
    shape = "x".join(map(str, mean.shape[1:]))
    numbers = torch.tensor([-1 if label is None else label for label in labels])
    counts = numbers.unique(return_counts=True)[1]
    least = metrics.least_latents(mean.shape[1], mean.shape[2] * mean.shape[3])
    warnings: list[str] = []
    if len(counts) > 1 and (few := int(counts.min())) < least:
        warnings.append(
            f"VIV takes all latents as one group: a class has {few} of them, and a covariance needs {least} of each"
        )
        numbers = torch.zeros_like(numbers)
    groups = len(numbers.unique())
    words = f"VIV of {shape} latents, {f'{groups} classes' if groups > 1 else 'one group'}"
    return Estimated(metrics.irreducible_variance(mean, numbers), None), words, warnings
