"""How often faces show what their prompts say: counted by hand, hidden values left out, and the true faces at 100 %."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_kit.data import sources
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import PictureSet, Split, subset
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.demo import show
from ldm_kit.demo.measure import choose_prompts, sample_prompts
from ldm_kit.demo.show import REAL, AutoencoderLoss, measure_autoencoder, measure_parts, summarise
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.factor_shares import ALL, MEAN, Proportion, count_right, fidelity_table
from ldm_kit.metrics.fidelity import wilson
from ldm_kit.models.factor_readers import factor_labels
from ldm_kit.models.options import ResolvedOptions, SamplingOptions

RESOLVED = ResolvedOptions(solver="heun", steps=7, guidance_scale=1.5, timesteps=(9, -1))
FACTORS = {"hair": ("bun", "spiky"), "mouth": ("smiling", "laughing", "frowning")}


class FirstRow(FactorReader):
    """Reads from a picture the numbers in the first pixels of its first row."""

    def read(self, pictures: Tensor, batch: object = None) -> Tensor:
        return pictures[:, 0, 0, : len(self.factors)].long()


def reading(readings: list[list[int]], factors=FACTORS) -> tuple[FactorReader, Tensor]:
    pictures = torch.zeros(len(readings), 3, 8, 8, dtype=torch.uint8)
    pictures[:, 0, 0, : len(factors)] = torch.tensor(readings, dtype=torch.uint8)
    return FirstRow(factors, 3, 8, 2), pictures


def test_shares_are_counted_where_a_value_shows():
    reader, pictures = reading([[0, 0], [1, 2], [1, 1], [0, 0]])
    shares = count_right(reader, pictures, torch.tensor([[0, 0], [1, 1], [0, -1], [0, -1]]))
    assert shares.factors == {"hair": Proportion(3, 4), "mouth": Proportion(1, 2)}
    assert shares.all == Proportion(2, 4), "a hidden value is neither right nor wrong"
    assert shares.mean == pytest.approx((0.75 + 0.5) / 2)


def test_intervals_are_wilsons_and_every_number_is_stored():
    reader, pictures = reading([[0, 0], [1, 2]])
    figures = count_right(reader, pictures, torch.tensor([[0, 0], [1, -1]])).figures
    assert figures["hair"] == {"share": 1.0, "interval": [*wilson(1.0, 2)], "count": 2}
    assert figures["mouth"]["count"] == 1
    assert [*figures] == ["hair", "mouth", ALL, MEAN]
    hidden = count_right(reader, pictures, torch.tensor([[0, -1], [1, -1]])).figures
    assert hidden["mouth"] == {"share": None, "interval": None, "count": 0}, "JSON has no NaN"
    assert hidden[MEAN] == 1.0


def test_the_table_has_a_row_for_each_factor_and_a_column_for_each_set():
    reader, pictures = reading([[0, 0], [1, 2]])
    half, none = (torch.tensor(rows) for rows in ([[0, 0], [0, 2]], [[1, -1], [0, -1]]))
    columns = {name: count_right(reader, pictures, labels) for name, labels in (("a", half), ("b", none))}
    head, _, hair, mouth, mean, everything, count = fidelity_table(columns).splitlines()
    low, high = (100 * bound for bound in wilson(0.5, 2))
    assert head == "|  | a | b |"
    assert hair.startswith(f"| hair | 50.0 % [{low:.1f}, {high:.1f}] | 0.0 % [0.0, ")
    assert mouth.endswith("| - |"), "no picture shows it"
    assert mean == "| **mean of the factors** | **75.0 %** | **0.0 %** |"
    assert everything.startswith("| all factors at once | 50.0 % [")
    assert count == "| pictures | 2 | 2 |"


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    cache = tmp_path_factory.mktemp("shapes")
    return sources.load(ShapesConfig(resolution=16, count=60, heldout=0.2, cache=cache))


class Painter:
    """Stands in for a pipeline: generates the true picture of a caption, or that of the caption before it."""

    def __init__(self, parts: list[PictureSet], shift: int) -> None:
        self.pictures = {r.text: part.picture(i) for part in parts for i, r in enumerate(part.records)}
        self.shift = shift

    def generate(self, prompts, seeds, options, batch):
        assert [*seeds] == [*range(len(prompts))]
        pictures = torch.stack([self.pictures[text] for text in prompts]).roll(self.shift, 0)
        yield from pictures.split(batch)


class Perfect(FactorReader):
    """Knows every picture of a split by its pixels."""

    def __init__(self, parts: list[PictureSet]) -> None:
        super().__init__(known_factors(parts[0]).factors, 3, 16, 2)
        self.labels: dict[bytes, Tensor] = {}
        for part in parts:
            labels = factor_labels(known_factors(part))
            self.labels |= {part.picture(i).numpy().tobytes(): labels[i] for i in range(len(part))}

    def read(self, pictures: Tensor, batch: object = None) -> Tensor:
        return torch.stack([self.labels[one.numpy().tobytes()] for one in pictures])


def test_the_true_pictures_reach_100_percent_and_others_do_not(split):
    parts = [split.train, split.heldout, split.compositional]
    reader = Perfect(parts)
    columns, sections = measure_parts(Painter(parts, 0), reader, split, 6, SamplingOptions())
    assert [*columns] == [REAL, "seen in training", "held-out faces", "never combined"]
    assert all(shares.mean == 1 and shares.all.value == 1 for shares in columns.values())
    assert columns[REAL].all.count == len(split.heldout) + len(split.compositional)
    for section, part in zip(sections, parts, strict=True):
        assert {*section.prompts} <= {record.text for record in part.records}
        assert len(section.pictures) == len(section.prompts) == min(6, len(part))
    shifted, _ = measure_parts(Painter(parts, 1), reader, split, 6, SamplingOptions())
    assert all(shares.all.value < 0.5 for name, shares in shifted.items() if name != REAL)


def test_chosen_prompts_do_not_depend_on_the_order_of_the_set(split):
    train, turned = split.train, subset(split.train, [*reversed(range(len(split.train)))])
    chosen = [train.records[i].name for i in choose_prompts(train, 5, "a")]
    assert chosen == [turned.records[i].name for i in choose_prompts(turned, 5, "a")]
    assert chosen != [train.records[i].name for i in choose_prompts(train, 5, "b")]
    assert len(choose_prompts(train, 10**6, "a")) == len(train)


def test_prompts_are_sampled_in_order_whatever_the_batch(split):
    painter, prompts = Painter([split.train], 0), [record.text for record in split.train.records][:5]
    pictures = sample_prompts(painter, prompts, SamplingOptions(), batch=2)
    assert torch.equal(pictures, split.train.pictures(range(5)))


def test_what_the_autoencoder_loses_is_measured_on_real_pictures(split, monkeypatch):
    parts = [split.train, split.heldout, split.compositional]
    reader, vae = Perfect(parts), torch.nn.Linear(1, 1)
    monkeypatch.setattr(show, "reconstruct", lambda vae, x: x)
    lossless = measure_autoencoder(vae, reader, split.heldout)
    assert lossless.shares.all == Proportion(len(split.heldout), len(split.heldout))
    assert lossless.psnr > 100
    assert lossless.ssim == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(show, "reconstruct", lambda vae, x: x.roll(1, 0))
    lossy = measure_autoencoder(vae, reader, split.heldout)
    assert lossy.shares.all.value < 0.5
    assert lossy.psnr < 40
    assert lossy.ssim < 0.99


def test_parts_without_pictures_are_left_out(split):
    """As with data.heldout 0, and where no picture shows an unseen pair."""
    alone = Split(split.train, subset(split.train, []), None)
    reader = Perfect([split.train])
    columns, sections = measure_parts(Painter([split.train], 0), reader, alone, 3, SamplingOptions())
    assert [*columns] == ["seen in training"]
    assert [section.title for section in sections] == ["seen in training"]
    summary = summarise(columns, None, RESOLVED, Path("sheet.png"))
    assert (summary.figures["psnr"], summary.figures["ssim"]) == (None, None)
    assert "PSNR" not in summary.text
    json.dumps(summary.figures, allow_nan=False)


def test_the_text_has_every_figure_and_how_it_was_sampled():
    reader, pictures = reading([[0, 0], [1, 2]])
    real, made, lost = (count_right(reader, pictures, torch.tensor(x)) for x in ([[0, 0], [1, 2]],) * 3)
    columns = {REAL: real, "held-out faces": made}
    text = summarise(columns, AutoencoderLoss(lost, 35.811, 0.9834), RESOLVED, Path("sheet.png")).text
    assert "PSNR 35.81 dB, SSIM 0.983" in text
    assert "sampled in 7 steps of heun with guidance 1.5" in text
    head, _, *rows = text[text.index("|") :].splitlines()
    assert head == "|  | real faces | held-out faces, autoencoded | held-out faces |"
    assert all(row.count("[") == 3 for row in rows if "mean" not in row and "pictures" not in row)


def test_a_mean_of_nothing_is_none():
    reader, pictures = reading([[0, 0]])
    shares = count_right(reader, pictures, torch.tensor([[-1, -1]]))
    assert shares.mean is None
    json.dumps(shares.figures, allow_nan=False)
    assert "| - |" in fidelity_table({"a": shares})
