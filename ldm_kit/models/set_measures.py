"""Measures of an evaluation that compare two sets of features: what each needs, its value, and its 95 % interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm_kit.metrics import distributions, neighbourhoods
from ldm_kit.metrics.fidelity import sample_warning
from ldm_kit.metrics.moments import frechet_of_draws
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.measures import Better, Bootstrap, Estimated, Figure

SUBSETS, SUBSET = 100, 1000  # number of subsets of the published kernel distance, and pictures in each


@dataclass(frozen=True)
class SetMeasure:
    """A measure of two sets of features.

    Attributes:
        title: its name, before that of the feature network.
        better: whether lower or higher values are better.
        least: fewest pictures, in each set, from which it can be computed.
    """

    title: str
    better: Better
    least: int

    def full_title(self, net: FeatureNet, prefix: str) -> str:
        """Return the title in tables; `prefix`: what stands before a Fréchet distance's, "r" for reconstructions."""
        return self.title if net.is_inception else f"{self.title} of {net.name}"

    def warning(self, count: int, width: int) -> str:
        """Return a sentence if the smaller set's `count` of pictures is small for features of a width; else ""."""
        return ""


class FrechetMeasure(SetMeasure):
    """The Fréchet distance, which is called FID if the features are those of its network."""

    def full_title(self, net: FeatureNet, prefix: str) -> str:
        """Return the title in tables."""
        return prefix + net.distance

    def warning(self, count: int, width: int) -> str:
        """Return a sentence if `count` pictures are few for the distance of `width` features; "" if not."""
        return sample_warning(count, width)


def _frechet(a: Tensor, b: Tensor, bootstrap: Bootstrap) -> Sequence[Estimated]:
    return [bootstrap.estimate(frechet_of_draws(a, b, bootstrap.counts(len(a))))]


def _kernel(a: Tensor, b: Tensor, bootstrap: Bootstrap) -> Sequence[Estimated]:
    """Estimate KID: over the published subsets or, of fewer pictures than one has, over all pairs of pictures.

    The deviations of the interval's draws are in both cases those of the estimate over all pairs.
    """
    values = distributions.kernel_of_draws(a, b, bootstrap.counts(len(a)))
    if min(len(a), len(b)) >= SUBSET:
        values[0] = distributions.kernel_distance(a, b, subsets=SUBSETS, size=SUBSET, seed=bootstrap.seed).mean
    return [bootstrap.estimate(values)]


def _sliced(a: Tensor, b: Tensor, bootstrap: Bootstrap) -> Sequence[Estimated]:
    return [bootstrap.estimate(distributions.sliced_of_draws(a, b, bootstrap.counts(len(a)), seed=bootstrap.seed))]


def _similar(a: Tensor, b: Tensor, bootstrap: Bootstrap) -> Sequence[Estimated]:
    """Estimate precision and recall, which has no interval: draws change the set in which it looks for neighbours."""
    similar = neighbourhoods.similar(a, b)
    recall = similar.references.double().mean().item()
    return [bootstrap.share(similar.generated), Estimated(recall, None)]


def _neighbourhoods(a: Tensor, b: Tensor, bootstrap: Bootstrap) -> Sequence[Estimated]:
    densities, coverage = neighbourhoods.density_coverage_of_draws(a, b, bootstrap.counts(len(a)))
    return [bootstrap.mean(densities), bootstrap.estimate(coverage, share=True)]


Group = tuple[Mapping[str, SetMeasure], Callable[[Tensor, Tensor, Bootstrap], Sequence[Estimated]]]
GROUPS: Sequence[Group] = (  # measures that are computed together, by name, and the function that computes them
    ({"fd": FrechetMeasure("FD", "lower", 2)}, _frechet),
    ({"kid": SetMeasure("KID", "lower", 2)}, _kernel),
    ({"mind": SetMeasure("MIND", "lower", 2)}, _sliced),
    ({"precision": SetMeasure("precision", "higher", 4), "recall": SetMeasure("recall", "higher", 4)}, _similar),
    ({"density": SetMeasure("density", "higher", 6), "coverage": SetMeasure("coverage", "higher", 6)}, _neighbourhoods),
)
SETS: Mapping[str, SetMeasure] = {name: measure for measures, _ in GROUPS for name, measure in measures.items()}


def set_figures(
    names: Sequence[str],
    net: FeatureNet,
    judged: Tensor,
    references: Tensor,
    bootstrap: Bootstrap,
    *,
    prefix: str = "",
) -> tuple[list[Figure], list[str]]:
    """Measure two sets of features.

    Args:
        names: names of measures; those that are not in SETS are passed over.
        net: the network of the features, for titles.
        judged: features [N, D] of the pictures that are judged.
        references: features [M, D] of the reference pictures.
        bootstrap: how intervals are computed.
        prefix: what stands before the Fréchet distance's title: "r" for reconstructions.

    Returns:
        The figures, and warnings.
    """
    figures: list[Figure] = []
    warnings: list[str] = []
    for measures, estimate in GROUPS:
        if not measures.keys() & {*names}:
            continue
        for (name, measure), estimated in zip(measures.items(), estimate(judged, references, bootstrap), strict=True):
            title = measure.full_title(net, prefix)
            figures.append(Figure(name, title, *estimated, measure.better, len(judged), len(references)))
            if warning := measure.warning(min(len(judged), len(references)), judged.shape[1]):
                warnings.append(f"{title}: {warning}")
    return [figure for figure in figures if figure.name in names], warnings
