"""Networks that read factors (such as a face's hair colour) off pictures: trained on first use, then cached on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import cache_dir
from ldm_kit.data import sources
from ldm_kit.data.factors import FactorSet, known_factors
from ldm_kit.data.images import PictureSet, Split, digest, subset
from ldm_kit.data.rendered import RenderedConfig
from ldm_kit.data.sources import DataConfig
from ldm_kit.data.tensor_cache import cached_by_all, key_of
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.factor_reader import CODE_VERSION, FactorReader, ReaderConfig, train_reader


def factor_reader(
    data: DataConfig, split: Split, config: ReaderConfig | None = None, device: str = "cpu"
) -> FactorReader:
    """Return a network that predicts each factor of a data set's pictures, trained on no held-out picture.

    For the rendered data sets, faces and shapes, it is trained on new pictures, rendered under another seed, except
    those that `split` holds out: `heldout`, and `compositional`, which shows combinations of factor values that are not
    in the training set. For other data sets it is trained on the training set of `split`. A network that is in the
    cache is loaded; nothing is then rendered or trained.

    Args:
        data: config of a data set whose pictures have known factor values.
        split: the pictures of the data set.
        config: how the reader is trained; None: the defaults.
        device: device to train on, and that of the returned reader.

    Raises:
        UserError: the factor values of the pictures are not known, or a package is missing.
    """
    config = config or ReaderConfig()
    pictures = training_pictures(data, split, config)
    shape = {"channels": data.channels, "side": data.resolution, "width": config.width}
    key = key_of("reader", CODE_VERSION, pictures.fingerprint, {k: [*v] for k, v in pictures.factors.items()},
                 config.model_dump(mode="json"))  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "reader weights"))
        reader = FactorReader(pictures.factors, **shape).to(device)

    def train() -> dict[str, Tensor]:
        loaded = pictures.load()
        trained = train_reader(reader, loaded.pictures, factor_labels(loaded), config)
        return {name: value.detach().cpu() for name, value in trained.state_dict().items()}

    reader.load_state_dict(cached_by_all(cache_dir() / "readers", key, train))  # by all, as all share the rendering
    return reader.eval()


def factor_labels(pictures: FactorSet) -> Tensor:
    """Return, for N pictures and F factors, each factor's value as an index into its list of values, int64 [N, F].

    It is -1 where a factor is absent or hidden in the picture.
    """
    numbers = {factor: {value: i for i, value in enumerate(values)} for factor, values in pictures.factors.items()}
    rows: list[list[int]] = []
    for index in range(len(pictures)):
        values = pictures.values(index)
        shown = values.keys() - pictures.hidden(values)
        rows.append([number[values[factor]] if factor in shown else -1 for factor, number in numbers.items()])
    return torch.tensor(rows, dtype=torch.long).view(-1, len(numbers))


def reader_accuracy(reader: FactorReader, pictures: PictureSet) -> dict[str, float | None]:
    """Return {factor: share of the pictures in which `reader` predicts the factor's value correctly}.

    Pictures in which a factor is absent or hidden are not counted for it. A share is None if no picture
    shows its factor.

    Args:
        reader: network that predicts factor values.
        pictures: pictures with known factor values, on which the reader was not trained.
    """
    factor_set = known_factors(pictures)
    labels = factor_labels(factor_set)
    right = reader.read(factor_set.pictures(range(len(factor_set)))) == labels
    shown = [right[labels[:, i] >= 0, i].double() for i in range(len(reader.factors))]
    return {f: float(one.mean()) if len(one) else None for f, one in zip(reader.factors, shown, strict=True)}


class ReaderPictures(NamedTuple):
    """Pictures on which a `FactorReader` is trained; they are rendered or read only when `load` is called."""

    factors: Mapping[str, Sequence[str]]  # name of each factor -> its possible values
    fingerprint: str  # hash that identifies the pictures
    load: Callable[[], FactorSet]  # returns the pictures with their factor values


def training_pictures(data: DataConfig, split: Split, config: ReaderConfig) -> ReaderPictures:
    """Return the pictures on which `factor_reader` trains a reader, given the same arguments."""
    if isinstance(data, RenderedConfig):
        return _other_renders(data, split, config)
    first = range(min(len(split.train), config.count))
    pictures = known_factors(subset(split.train, first))
    return ReaderPictures(pictures.factors, pictures.fingerprint, lambda: pictures)


def _other_renders(data: RenderedConfig, split: Split, config: ReaderConfig) -> ReaderPictures:
    judged = {record.name for pictures in split[1:] if pictures is not None for record in pictures.records}
    seed = derive_seed(data.seed + config.seed, "reader pictures") % 2**31
    drawn = sources.draw(data.model_copy(update={"seed": seed, "count": config.count}))
    rows = [i for i, record in enumerate(drawn.records) if record.name not in judged]
    fingerprint = digest([drawn.fingerprint, *map(str, rows)])
    return ReaderPictures(drawn.renderer.factors, fingerprint, lambda: known_factors(subset(drawn.render(), rows)))
