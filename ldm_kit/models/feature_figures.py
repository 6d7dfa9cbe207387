"""Measures of pictures that need their features alone: of two sets, with captions, and the inception score."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.measures import CLIP, INCEPTION, Bootstrap, Figure, clip_figure, inception_figure
from ldm_kit.models.set_measures import set_figures


class Captions(NamedTuple):
    """Embeddings of the captions of some of N pictures."""

    rows: list[int]  # which of the pictures have captions
    embeddings: Tensor  # [len(rows), D]


def embed_captions(names: Sequence[str], net: FeatureNet, captions: Sequence[str]) -> Captions | None:
    """Embed the captions of N pictures, "" for one without; None: `names` has no CLIP score, or `net` reads no text."""
    if CLIP not in names or net.texts is None:
        return None
    rows = [i for i, caption in enumerate(captions) if caption]
    return Captions(rows, net.texts([captions[i] for i in rows]))


def feature_figures(
    names: Sequence[str],
    net: FeatureNet,
    columns: Mapping[str, Tensor],
    references: Tensor | None,
    captions: Captions | None,
    *,
    bootstrap: Bootstrap,
    prefix: str = "",
) -> tuple[list[Figure], list[str]]:
    """Measure N pictures by their features.

    Args:
        names: names of measures; those that need more than features are passed over.
        net: the network of the features, for titles.
        columns: "features" [N, D], and "probabilities" [N, K] of a network that classifies; either may be missing if no
            measure needs it.
        references: features [M, D] of the reference pictures; None: no measure compares with them.
        captions: embeddings of the pictures' captions; None: no measure needs them.
        bootstrap: how intervals are computed.
        prefix: what stands before the Fréchet distance's title: "r" for reconstructions.

    Returns:
        The figures, and warnings.
    """
    figures, warnings = [], []
    if references is not None:
        figures, warnings = set_figures(names, net, columns["features"], references, bootstrap, prefix=prefix)
    if captions is not None:
        figures.append(clip_figure(columns["features"][captions.rows], captions.embeddings, net.name, bootstrap))
    if INCEPTION in names and "probabilities" in columns:
        figures.append(inception_figure(columns["probabilities"], bootstrap))
    return figures, warnings
