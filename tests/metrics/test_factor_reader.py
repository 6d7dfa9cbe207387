"""The reader of factors: what it is trained on, what it is never trained on, and that reading is a plain function."""

import math

import pytest
import torch
from torch import Tensor

from ldm_kit.data import sources
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import subset
from ldm_kit.data.rendered import DrawnSet
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.metrics import factor_reader as module
from ldm_kit.metrics.factor_reader import FactorReader, ReaderConfig, train_reader
from ldm_kit.models import factor_readers
from ldm_kit.models.factor_readers import factor_labels, factor_reader, reader_accuracy

FACTORS = {"colour": ("red", "green", "blue"), "brightness": ("dark", "bright")}
TINY = ReaderConfig(epochs=40, batch_size=12, width=8, lr=0.01, noise=0.02)
SHAPES = ReaderConfig(count=24, epochs=1, width=4)


def squares(count: int) -> tuple[Tensor, Tensor]:
    """Flat pictures of 16 px and the numbers of their colour and brightness."""
    labels = torch.stack([torch.arange(count) % 3, torch.arange(count) // 3 % 2], 1)
    pixels = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    pixels[torch.arange(count), labels[:, 0]] = (80 + 160 * labels[:, 1]).to(torch.uint8)[:, None, None]
    return pixels, labels


def trained(labels: Tensor, config: ReaderConfig = TINY) -> FactorReader:
    pixels, _ = squares(len(labels))
    torch.manual_seed(0)
    reader = FactorReader(FACTORS, channels=3, side=16, width=config.width)
    return train_reader(reader, lambda rows: pixels[rows], labels, config)


@pytest.fixture(scope="module")
def reader() -> FactorReader:
    return trained(squares(24)[1])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ShapesConfig:
    return ShapesConfig(resolution=16, count=60, heldout=0.2, cache=tmp_path_factory.mktemp("shapes"))


def test_it_reads_what_it_was_trained_on(reader):
    pixels, labels = squares(12)
    assert torch.equal(reader.read(pixels), labels)
    assert reader.values(pixels[4:5]) == [{"colour": "green", "brightness": "bright"}]
    assert reader.read(pixels[:0]).shape == (0, 2)


def test_a_reading_does_not_depend_on_its_batch(reader):
    pixels = torch.randint(0, 256, (9, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(reader.read(pixels), reader.read(pixels, batch=2))


def test_larger_pictures_are_averaged_down():
    large = FactorReader(FACTORS, channels=3, side=128, width=4).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for small, big in zip(large(x), large(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), strict=True):
        assert torch.allclose(small, big, atol=1e-5)


def test_training_is_a_function_of_the_seed():
    short = TINY.model_copy(update={"epochs": 1})
    first, again = (trained(squares(24)[1], short).state_dict() for _ in range(2))
    other = trained(squares(24)[1], short.model_copy(update={"seed": 1})).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_unknown_values_are_not_trained_on():
    """The loss is the sum over factors of the mean cross-entropy over pictures whose value is known."""
    logits = [torch.zeros(4, 3), torch.tensor([[2.0, 0.0]] * 4)]
    known = torch.tensor([[0, -1], [2, 0], [-1, -1], [1, -1]])
    assert float(module._loss(logits, known)) == pytest.approx(math.log(3) + math.log(1 + math.exp(-2)))
    assert float(module._loss(logits, torch.full((4, 2), -1))) == 0


def test_it_is_trained_once_and_then_read_from_the_cache(config, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    split = sources.load(config)
    before = torch.random.get_rng_state()
    first = factor_reader(config, split, SHAPES)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    trainings: list[int] = []
    monkeypatch.setattr(factor_readers, "train_reader", lambda reader, *rest: trainings.append(1) or reader)
    with monkeypatch.context() as patch:
        patch.setattr(DrawnSet, "render", lambda drawn: pytest.fail("rendered for a reader that is in the cache"))
        again = factor_reader(config, split, SHAPES)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not trainings
    assert not first.training
    for other in (SHAPES.model_copy(update={"seed": 1}), SHAPES.model_copy(update={"epochs": 2})):
        factor_reader(config, split, other)
    assert len(trainings) == 2, "another seed and another config are other readers"


def test_it_never_sees_what_is_judged(config, monkeypatch):
    """Even under a seed that draws the very same pictures, held-out and compositional ones are left out."""
    split = sources.load(config)
    train = {record.name for record in split.train.records}
    monkeypatch.setattr(factor_readers, "derive_seed", lambda seed, *address: config.seed)
    source = factor_readers.training_pictures(config, split, ReaderConfig(count=60))
    seen = source.load()
    assert {record.name for record in seen.records} == train
    assert seen.fingerprint == source.fingerprint, "known before anything is rendered"
    assert len(train) < 60


def test_labels_leave_out_hidden_values(config):
    shapes = known_factors(sources.load(config).train)
    labels = factor_labels(shapes)
    for i, values in enumerate(map(shapes.values, range(len(shapes)))):
        assert [shapes.factors[f][n] for f, n in zip(values, labels[i].tolist(), strict=True)] == [*values.values()]

    class Foggy(type(shapes)):
        def hidden(self, values):
            return frozenset({"wall"})

    foggy = Foggy(shapes.base, shapes.indices, shapes.records, shapes.fingerprint)
    hidden = factor_labels(foggy)
    wall = [*shapes.factors].index("wall")
    assert (hidden[:, wall] == -1).all()
    assert torch.equal(hidden.roll(-wall, 1)[:, 1:], labels.roll(-wall, 1)[:, 1:])


def test_accuracy_is_the_share_read_right(config, monkeypatch):
    shapes = known_factors(subset(sources.load(config).train, range(10)))
    labels = factor_labels(shapes)

    class Reader(FactorReader):
        def read(self, pictures, batch=256):
            wrong = labels.clone()
            wrong[:4, 1] += 1
            return wrong

    shares = reader_accuracy(Reader(shapes.factors, 3, 16, 4), shapes)
    assert shares == {factor: 0.6 if i == 1 else 1.0 for i, factor in enumerate(shapes.factors)}
    labels[:, 2] = -1
    monkeypatch.setattr(factor_readers, "factor_labels", lambda pictures: labels)
    assert reader_accuracy(Reader(shapes.factors, 3, 16, 4), shapes)[[*shapes.factors][2]] is None, "JSON has no NaN"
