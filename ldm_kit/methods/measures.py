"""Measures of `ldm-kit evaluate` that a run takes while it trains, as its config's `log.measures` says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ldm_kit.data.batches import chosen, spread
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import PictureSet, Split, subset, to_unit
from ldm_kit.data.peers import divided, everyone
from ldm_kit.diffusion.finite import NonFiniteError
from ldm_kit.memory import BatchSize
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.reconstruction import ssim_zero_padded
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.feature_figures import Captions, embed_captions, feature_figures
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.measures import (
    PROMPTS,
    Bootstrap,
    Figure,
    picture_figures,
    prompt_figures,
)
from ldm_kit.models.picture_features import picture_features

Part = Literal["features", "probabilities", "readings", "ssim_zero_padded"]
Make = Callable[[Sequence[int], Sequence[int]], Tensor]  # (rows of the held-out set, seeds) -> uint8 [N, C, R, R]
PREFIX = "heldout_"  # of the names in metrics.jsonl
_NO_INTERVALS = Bootstrap(draws=0, seed=0)


@dataclass(eq=False)
class Measures:
    """Measures of a run, with all that is computed once: features of the held-out pictures, embeddings of captions.

    Args:
        config: the run's config.
        data: the run's pictures.
        net: the feature network.
        size: number of pictures in a batch; reduced when memory runs out.
    """

    config: RunConfig
    data: Split
    net: FeatureNet
    size: BatchSize
    rows: list[int] = field(init=False)  # held-out pictures that samples belong to, or that are reconstructed
    reference: Tensor = field(init=False)  # features [M, D] of the held-out pictures
    captions: Captions | None = field(init=False)  # of `rows`; None: no CLIP score is taken
    reader: FactorReader | None = field(init=False, default=None)  # None: no prompt fidelity is taken
    widths: dict[Part, int] = field(init=False)  # numbers for each picture

    def __post_init__(self) -> None:
        heldout, settings = self.data.heldout, self.config.log.measures
        self.rows = spread(len(heldout), settings.count_of(len(heldout)))
        with torch.random.fork_rng(devices=[]):
            self.reference = picture_features(_references(heldout, self.config.log.max_heldout), self.net, self.size)
            self._open_captions(heldout)
            classes = self.net(heldout.pictures([0])).probabilities
        self.widths = {
            "features": self.reference.shape[1],
            "probabilities": 0 if classes is None else classes.shape[1],
            "readings": 0 if self.reader is None else len(self.reader.factors),
            "ssim_zero_padded": int("ssim_zero_padded" in settings.names),
        }

    def _open_captions(self, heldout: PictureSet) -> None:
        """Embed captions for the CLIP score, and open the network that reads factors; each if it is needed."""
        names = self.config.log.measures.names
        self.captions = embed_captions(names, self.net, [heldout.records[row].text or "" for row in self.rows])
        if {*PROMPTS} & {*names}:
            self.reader = factor_reader(self.config.data, self.data, device=str(self.net.device))

    def take(self, make: Make) -> dict[str, float]:
        """Take all measures; in a run of several processes, each makes a share of the pictures.

        Args:
            make: makes pictures, uint8 [N, C, R, R], for N held-out pictures, given their indices and N seeds; a
                picture depends on its own index and seed alone.

        Returns:
            Values by name, such as heldout_fd, on the main process; NaN if a picture could not be sampled, because the
            network gave a NaN or an infinity. An empty dict on other processes.
        """
        numbers = divided(len(self.rows), lambda own: self._numbers(own, make))
        if everyone().rank != 0:
            return {}
        if numbers.isnan().any():
            return {f"{PREFIX}{name}": float("nan") for name in self.config.log.measures.names}
        figures = self._figures(dict(zip(self.widths, numbers.split([*self.widths.values()], 1), strict=True)))
        return {f"{PREFIX}{figure.name}": float("nan") if figure.value is None else figure.value for figure in figures}

    def _numbers(self, own: Sequence[int], make: Make) -> Tensor:
        """Return float64 [N, W], what is known of each picture (see `widths`), for N of the measured pictures."""

        def batch(indices: range) -> Tensor:
            rows, seeds = [self.rows[own[i]] for i in indices], [own[i] for i in indices]
            try:
                pictures = make(rows, seeds)
            except NonFiniteError:
                return torch.full((len(rows), sum(self.widths.values())), torch.nan, dtype=torch.float64)
            return torch.cat([column.double() for column in self._parts(pictures, rows)], 1)

        return torch.cat([*self.size.batches(len(own), batch)])

    def _parts(self, pictures: Tensor, rows: Sequence[int]) -> Iterator[Tensor]:
        """Yield what is known of N pictures, [N, ...] each, in the order of `widths`."""
        seen = self.net(pictures)
        yield seen.features
        if seen.probabilities is not None:
            yield seen.probabilities
        if self.reader is not None:
            yield self.reader.read(pictures)
        if self.widths["ssim_zero_padded"]:
            yield ssim_zero_padded(to_unit(self.data.heldout.pictures(rows)), to_unit(pictures))[:, None]

    def _figures(self, parts: dict[Part, Tensor]) -> Iterator[Figure]:
        """Yield the figures of all measured pictures, from what is known of each: [N, ...] by name of the part."""
        names, columns = self.config.log.measures.names, {name: column.float() for name, column in parts.items()}
        yield from feature_figures(names, self.net, columns, self.reference, self.captions, bootstrap=_NO_INTERVALS)[0]
        if self.reader is not None:
            labels = factor_labels(known_factors(subset(self.data.heldout, self.rows)))
            figures, _ = prompt_figures([*self.reader.factors], parts["readings"].long(), labels, _NO_INTERVALS)
            yield from (figure for figure in figures if figure.name in names)
        if "ssim_zero_padded" in names:
            yield from picture_figures({"ssim_zero_padded": parts["ssim_zero_padded"][:, 0]}, {}, _NO_INTERVALS)


def _references(heldout: PictureSet, most: int) -> PictureSet:
    """Return the held-out pictures to compare with: all, or `most` of them by a fixed random choice."""
    return heldout if len(heldout) <= most else subset(heldout, chosen(len(heldout), most).tolist())


def open_measures(config: RunConfig, data: Split, net: FeatureNet | None, size: BatchSize) -> Measures | None:
    """Compute what the measures of a run need once, such as the features of held-out pictures; None: it takes none.

    Args:
        config: the run's config, which `check_measures` has checked.
        data: the run's pictures.
        net: the feature network that `check_measures` returned.
        size: number of pictures in a batch; reduced when memory runs out.
    """
    return None if net is None else Measures(config, data, net, size)
