"""Measures of `ldm-kit evaluate` that a run takes while it trains, as its config's `log.measures` says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.feature_figures import Captions, embed_captions, feature_figures
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.measures import (
    CLIP,
    INCEPTION,
    PICTURES,
    PROMPTS,
    RANDOM,
    Bootstrap,
    Figure,
    PictureMeasure,
    picture_figures,
    prompt_figures,
)
from ldm_kit.models.picture_features import picture_features
from ldm_kit.models.set_measures import SETS

Part = Literal["features", "probabilities", "readings", "reconstructions", "random"]
Make = Callable[[Sequence[int], Sequence[int]], Tensor]  # (rows of the held-out set, seeds) -> uint8 [N, C, R, R]
PREFIX = "heldout_"  # of the names in metrics.jsonl
_RECONSTRUCTED: Sequence[tuple[Part, Mapping[str, PictureMeasure]]] = (
    ("reconstructions", PICTURES), ("random", RANDOM),
)  # fmt: skip
_NO_INTERVALS = Bootstrap(draws=0, seed=0)


@dataclass(eq=False)
class Measures:
    """Measures of a run, with all that is computed once: features of the held-out pictures, embeddings of captions.

    Args:
        config: the run's config.
        data: the run's pictures.
        net: the feature network; None: no measure needs one.
        size: number of pictures in a batch; reduced when memory runs out.
    """

    config: RunConfig
    data: Split
    net: FeatureNet | None
    size: BatchSize
    rows: list[int] = field(init=False)  # held-out pictures that samples belong to, or that are reconstructed
    reference: Tensor = field(init=False)  # features [M, D] of the held-out pictures; [0, 0] without a network
    captions: Captions | None = field(init=False, default=None)  # of `rows`; None: no CLIP score is taken
    reader: FactorReader | None = field(init=False, default=None)  # None: no prompt fidelity is taken
    widths: dict[Part, int] = field(init=False)  # numbers for each picture

    def __post_init__(self) -> None:
        heldout, settings = self.data.heldout, self.config.log.measures
        self.rows = spread(len(heldout), settings.count_of(len(heldout)))
        classes, self.reference = None, torch.zeros(0, 0)
        with torch.random.fork_rng(devices=[]):
            if self.net is not None:
                references = _references(heldout, self.config.log.max_heldout)
                self.reference = picture_features(references, self.net, self.size)
                captions = [heldout.records[row].text or "" for row in self.rows]
                self.captions = embed_captions(settings.names, self.net, captions)
                classes = self.net(heldout.pictures([0])).probabilities
            if {*PROMPTS} & {*settings.names}:
                device = "cpu" if self.net is None else str(self.net.device)
                self.reader = factor_reader(self.config.data, self.data, device=device)
        self.widths = {
            "features": self.reference.shape[1],
            "probabilities": 0 if classes is None else classes.shape[1],
            "readings": 0 if self.reader is None else len(self.reader.factors),
            "reconstructions": len(self._named(PICTURES)),
            "random": len(self._named(RANDOM)),
        }

    def _named(self, names: Iterable[str]) -> list[str]:
        """Return those of some measures that the run takes."""
        return [name for name in names if name in self.config.log.measures.names]

    def take(self, make: Make, make_random: Make | None = None) -> dict[str, float]:
        """Take all measures; in a run of several processes, each makes a share of the pictures.

        Args:
            make: makes pictures, uint8 [N, C, R, R], for N held-out pictures, given their indices and N seeds; a
                picture depends on its own index and seed alone.
            make_random: likewise, decodes codes of held-out pictures with random noise x_T; None: only a semantic model
                does.

        Returns:
            Values by name, such as heldout_fd, on the main process; NaN if a picture could not be sampled, because the
            network gave a NaN or an infinity. An empty dict on other processes.
        """
        numbers = divided(len(self.rows), lambda own: self._numbers(own, make, make_random))
        if everyone().rank != 0:
            return {}
        if numbers.isnan().any():
            return {f"{PREFIX}{name}": float("nan") for name in self.config.log.measures.names}
        figures = self._figures(dict(zip(self.widths, numbers.split([*self.widths.values()], 1), strict=True)))
        return {f"{PREFIX}{figure.name}": float("nan") if figure.value is None else figure.value for figure in figures}

    def _numbers(self, own: Sequence[int], make: Make, make_random: Make | None) -> Tensor:
        """Return float64 [N, W], what is known of each picture (see `widths`), for N of the measured pictures."""

        def batch(indices: range) -> Tensor:
            rows, seeds = [self.rows[own[i]] for i in indices], [own[i] for i in indices]
            try:
                parts = [*self._parts(make, rows, seeds)]
                if self.widths["random"] and make_random is not None:
                    parts.append(self._compared(make_random(rows, seeds), rows, RANDOM))
            except NonFiniteError:
                return torch.full((len(rows), sum(self.widths.values())), torch.nan, dtype=torch.float64)
            return torch.cat([column.double() for column in parts], 1)

        return torch.cat([*self.size.batches(len(own), batch)])

    def _parts(self, make: Make, rows: Sequence[int], seeds: Sequence[int]) -> Iterator[Tensor]:
        """Make N pictures; yield what is known of them, [N, ...] each, in the order of `widths`, but for `random`."""
        if sum(self.widths.values()) == self.widths["random"]:
            return
        pictures = make(rows, seeds)
        if self.net is not None:
            seen = self.net(pictures)
            yield seen.features
            if seen.probabilities is not None:
                yield seen.probabilities
        if self.reader is not None:
            yield self.reader.read(pictures)
        if self.widths["reconstructions"]:
            yield self._compared(pictures, rows, PICTURES)

    def _compared(self, pictures: Tensor, rows: Sequence[int], measures: Mapping[str, PictureMeasure]) -> Tensor:
        """Return the run's `measures` of reconstructions of the held-out pictures `rows`, [N, measures]."""
        x, y = to_unit(self.data.heldout.pictures(rows)), to_unit(pictures)
        compare = [measures[name].compare for name in self._named(measures)]
        return torch.stack([function(x, y).double() for function in compare if function is not None], 1)

    def _figures(self, parts: dict[Part, Tensor]) -> Iterator[Figure]:
        """Yield the figures of all measured pictures, from what is known of each: [N, ...] by name of the part."""
        names, columns = self.config.log.measures.names, {name: column.float() for name, column in parts.items()}
        if self.net is not None:
            figures = feature_figures(names, self.net, columns, self.reference, self.captions, bootstrap=_NO_INTERVALS)
            yield from figures[0]
        if self.reader is not None:
            labels = factor_labels(known_factors(subset(self.data.heldout, self.rows)))
            figures, _ = prompt_figures([*self.reader.factors], parts["readings"].long(), labels, _NO_INTERVALS)
            yield from (figure for figure in figures if figure.name in names)
        for name, measures in _RECONSTRUCTED:
            values = dict(zip(self._named(measures), parts[name].T, strict=True))
            yield from picture_figures(values, {}, _NO_INTERVALS)


def _references(heldout: PictureSet, most: int) -> PictureSet:
    """Return the held-out pictures to compare with: all, or `most` of them by a fixed random choice."""
    return heldout if len(heldout) <= most else subset(heldout, chosen(len(heldout), most).tolist())


def open_measures(config: RunConfig, data: Split, net: FeatureNet | None, size: BatchSize) -> Measures | None:
    """Compute what the measures of a run need once, such as the features of held-out pictures; None: it takes none.

    Args:
        config: the run's config, which `check_measures` has checked.
        data: the run's pictures.
        net: the feature network that `open_feature_net` returned; None: no measure needs one.
        size: number of pictures in a batch; reduced when memory runs out.
    """
    return Measures(config, data, net, size) if config.log.measures.names else None


def needs_features(names: Sequence[str]) -> bool:
    """Return whether any of some measures needs a feature network."""
    return bool({*SETS, INCEPTION, CLIP} & {*names})
