"""Trained readers of the built-in data sets' factors, in the cache: trained on first use, and read from there later."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_kit.config import cache_dir
from ldm_kit.data import sources
from ldm_kit.data.faces import dataset as faces
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.factors import FactorSet, known_factors
from ldm_kit.data.images import PictureSet, subset
from ldm_kit.data.shapes import dataset as shapes
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import DataConfig
from ldm_kit.data.tensor_cache import cached, key_of
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.factor_reader import CODE_VERSION, FactorReader, ReaderConfig, train_reader


def factor_reader(data: DataConfig, config: ReaderConfig | None = None, device: str = "cpu") -> FactorReader:
    """Return a reader of the factors of a data set, trained on pictures that are in no held-out part of it.

    For faces and shapes these are other renders, under a seed of their own, of all combinations of values, without
    those that are held out or compositional in `data`; for other sets, the training part.

    Args:
        data: config of a data set that knows its factors.
        config: how the reader is trained; None: the defaults.
        device: device to train on, and that of the returned reader.

    Raises:
        UserError: the data set does not know its factors, or a package is missing.
    """
    config = config or ReaderConfig()
    pictures = _training_pictures(data, config)
    shape = {"channels": pictures.channels, "side": pictures.resolution, "width": config.width}
    key = key_of("reader", CODE_VERSION, pictures.fingerprint, {k: [*v] for k, v in pictures.factors.items()},
                 config.model_dump(mode="json"))  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "reader weights"))
        reader = FactorReader(pictures.factors, **shape).to(device)

    def train() -> dict[str, Tensor]:
        trained = train_reader(reader, pictures.pictures, factor_labels(pictures), config)
        return {name: value.detach().cpu() for name, value in trained.state_dict().items()}

    reader.load_state_dict(cached(cache_dir() / "readers", key, train))
    return reader.eval()


def factor_labels(pictures: FactorSet) -> Tensor:
    """Return the number of each factor's value, int64 [N, F]; -1 where a picture lacks the factor or hides it."""
    numbers = {factor: {value: i for i, value in enumerate(values)} for factor, values in pictures.factors.items()}
    rows: list[list[int]] = []
    for index in range(len(pictures)):
        values = pictures.values(index)
        shown = values.keys() - pictures.hidden(values)
        rows.append([number[values[factor]] if factor in shown else -1 for factor, number in numbers.items()])
    return torch.tensor(rows, dtype=torch.long).view(-1, len(numbers))


def reader_accuracy(reader: FactorReader, pictures: PictureSet) -> dict[str, float]:
    """Return by factor the share of pictures whose value the reader reads right, where the value shows.

    Args:
        reader: the reader.
        pictures: real pictures that know their factors, not those that the reader was trained on.
    """
    factor_set = known_factors(pictures)
    labels = factor_labels(factor_set)
    right = reader.read(factor_set.pictures(range(len(factor_set)))) == labels
    return {factor: float(right[labels[:, i] >= 0, i].double().mean()) for i, factor in enumerate(reader.factors)}


def _training_pictures(data: DataConfig, config: ReaderConfig) -> FactorSet:
    if not isinstance(data, FacesConfig | ShapesConfig):
        pictures = known_factors(sources.load(data).train)
        return known_factors(subset(pictures, range(min(len(pictures), config.count))))
    split = sources.load(data)
    judged = {record.name for pictures in split[1:] if pictures is not None for record in pictures.records}
    seed = derive_seed(data.seed + config.seed, "reader pictures") % 2**31
    return _others(_render(data.model_copy(update={"seed": seed, "count": config.count})), judged)


def _render(data: FacesConfig | ShapesConfig) -> PictureSet:
    return faces.load_all(data) if isinstance(data, FacesConfig) else shapes.load_all(data)


def _others(pictures: PictureSet, judged: set[str]) -> FactorSet:
    rows: Sequence[int] = [i for i, record in enumerate(pictures.records) if record.name not in judged]
    return known_factors(subset(pictures, rows))
