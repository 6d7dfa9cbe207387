"""The arithmetic of the benchmark of edits: what is asked, who judges, what is counted."""

from itertools import product

import pytest
import torch

from benchmarks import tables
from benchmarks.claims import codes, editing, guidance
from benchmarks.claims.codes import cross_faded, probes
from benchmarks.claims.compute import trained_parameters, training_flops
from benchmarks.claims.counterparts import Edit, edits_of, pixel_distance
from benchmarks.claims.judge import colour_histograms
from benchmarks.claims.linear import Linear
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.editing.labels import Column
from ldm_kit.models.decoders import CodeDecoder, ShiftDecoder
from ldm_kit.models.semantic import SemanticModel
from tests.editing.models import semantic, shifted
from tests.methods.semantic_toys import base as saved_base

TONES = ("", "light", "dark", "mixed")


def drawings() -> InMemory:
    """Six roles, men and women in each tone; "mixed" occurs twice, as there are several ways to mix."""
    listed = [*product("abcdef", ("man", "woman"), TONES), *product("abcdef", ("man", "woman"), ["mixed"])]
    records = [
        Record(str(i), "", 0, {"role": role, "gender": gender, "skin_tone": tone, "group": "people"})
        for i, (role, gender, tone) in enumerate(listed)
    ]
    pixels = torch.randint(0, 256, (len(records), 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return InMemory(records, ["people"], pixels.to(torch.uint8), "drawings")


def split_at(everything: InMemory, share: int) -> Split:
    kept = [i for i in range(len(everything)) if i % share]
    rest = [i for i in range(len(everything)) if i % share == 0]
    parts = [
        InMemory([everything.records[i] for i in p], ["people"], everything.pixels[p], str(p)) for p in (kept, rest)
    ]
    return Split(parts[0], parts[1], None)


def test_the_answer_of_every_edit_is_unseen_and_differs_in_the_attribute_alone():
    everything = drawings()
    split = split_at(everything, 5)
    seen = {record.name for record in split.train.records}
    edits = edits_of(everything, split, 100)
    assert {edit.attribute for edit in edits} == {"skin tone", "gender"}
    for edit in edits:
        before, after = (everything.records[i] for i in (edit.source, edit.target))
        assert after.name not in seen
        other = "gender" if edit.attribute == "skin tone" else "skin_tone"
        assert (before.fields["role"], before.fields[other]) == (after.fields["role"], after.fields[other])
        assert "mixed" not in (edit.before, edit.after, before.fields["skin_tone"], after.fields["skin_tone"])
    assert len(set(edits)) == len(edits)
    assert edits_of(everything, split, 3)[:3] == [e for e in edits if e.attribute == "skin tone"][:3]


def test_directions_are_asked_for_by_name():
    assert Edit(0, 1, "skin tone", "light", "dark").name == "skin tone: light > dark"


def test_colours_count_pixels_and_hardly_mind_a_little_noise():
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    picture[:, 0, :4] = 255  # half red, half black
    found = colour_histograms(picture).square()
    assert found.sum() == pytest.approx(1)
    assert found[0, 0] == pytest.approx(0.5)
    assert found[0, 7 * 64] == pytest.approx(0.5)
    near, far = picture.clone(), picture.clone()
    near[:, 1] += 3
    far[:, 1] += 60
    drift = [float((colour_histograms(other) - colour_histograms(picture)).norm()) for other in (near, far)]
    assert 0 < drift[0] < drift[1] / 2


def test_a_probe_reads_what_is_there_and_chance_elsewhere():
    z = {
        name: torch.randn(400, 6, generator=torch.Generator().manual_seed(k))
        for k, name in enumerate(("train", "unseen"))
    }
    columns = {
        name: [
            Column("sign", tuple("plus" if x > 0 else "minus" for x in value[:, 0])),
            Column("coin", tuple("heads" if x > 0 else "tails" for x in value[:, 1].roll(7))),
        ]
        for name, value in z.items()
    }
    sign, coin = probes("z", z, columns)
    assert sign["auroc"] > 0.99
    assert 0.4 < coin["auroc"] < 0.6
    assert coin["values"] == 2


def test_cross_fading_goes_from_the_first_half_to_the_second():
    pictures = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 80)])
    assert cross_faded(pictures)[0, :, 0, 0, 0].tolist() == list(range(0, 81, 10))


def test_distances_are_of_pixels_in_0_to_1():
    assert float(pixel_distance(torch.zeros(1, 3, 2, 2).byte(), torch.full((1, 3, 2, 2), 51).byte())) == pytest.approx(
        0.2
    )


def test_what_is_frozen_costs_a_forward_pass_and_counts_as_nothing_trained(tmp_path):
    plain = SemanticModel.load(semantic(tmp_path / "plain"))
    assert isinstance(plain.decoder, CodeDecoder)
    networks = (plain.encoder, plain.decoder.unet)
    assert trained_parameters(plain) == sum(p.numel() for network in networks for p in network.parameters())
    model = SemanticModel.load(shifted(tmp_path / "pdae", saved_base(tmp_path / "base")))
    assert isinstance(model.decoder, ShiftDecoder)
    new = [name for name, _ in model.decoder.shift.named_parameters() if not name.startswith("base.")]
    assert trained_parameters(model) == sum(
        p.numel() for name, p in model.decoder.shift.named_parameters() if name in new
    ) + sum(p.numel() for p in model.encoder.parameters())
    assert training_flops(model) > 0
    assert training_flops(plain) > 0


def test_the_linear_stand_in_gives_a_picture_back():
    everything = drawings()
    model = Linear.fit(everything, 8)
    z = model.encode(everything.pixels)
    assert torch.equal(model.decode(z, model.invert(everything.pixels, z)), everything.pixels)


def test_a_table_stands_in_its_page(tmp_path, monkeypatch):
    row = {"codes": "of the prior", "count": 7, "distance": 12.4}
    page = tmp_path / "semantic.md"
    page.write_text("# Page\n\n<!-- editing prior -->\n<!-- /editing prior -->\n\nText.\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr(editing.Bench, "make", lambda *counts: None)
    monkeypatch.setitem(editing.TABLES, "prior", (lambda bench: [row], codes.PRIOR))
    editing.editing(["prior"], 1, 2, 3, page=True)
    assert "| of the prior | 7 | 12 |\n<!-- /editing prior -->\n\nText." in page.read_text()


def test_every_table_of_the_pages_has_its_place():
    places = {"semantic.md": [f"editing {name}" for name in editing.TABLES], "editing.md": ["estimators"]}
    places |= {"guidance.md": [f"guidance {name}" for name in guidance.TABLES]}
    for page, sections in places.items():
        text = tables.page_of(page).read_text()
        for section in sections:
            assert text.count(f"<!-- {section} -->") == text.count(f"<!-- /{section} -->") == 1, (page, section)
