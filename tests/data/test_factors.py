"""Sets that know their factors: numbering, subsets, caches, and what is said to those who ask in vain."""

from dataclasses import replace

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data import rendered
from ldm_kit.data.factors import FactorSet, FactorSpace, known_factors, pixel_digest, pixel_digests, split_factors
from ldm_kit.data.images import InMemory, Record, subset
from ldm_kit.data.openmoji.factors import OpenMojiSet
from ldm_kit.data.rendered import DrawnSet, Renderer
from tests.data.test_peers import together

SPACE = FactorSpace({"size": ("small", "large"), "colour": ("red", "green", "blue")})


class Painter:
    """A renderer of flat squares that counts its pictures."""

    def __init__(self):
        self.count = 0

    def __call__(self, values):
        self.count += len(values)
        rows = [SPACE.factors["colour"].index(v["colour"]) + 10 * (v["size"] == "large") for v in values]
        return torch.tensor(rows, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()


def record(number, phrasing=0):
    return Record(f"square-{number}", f"text {number} {phrasing}", None, SPACE.combination(number))


def painted(folder, painter, count=6):
    records = [record(number) for number in range(count)]
    return DrawnSet(Renderer("squares", ["v1"], SPACE.factors, painter), records, (), folder).render()


@pytest.fixture
def squares(tmp_path):
    return painted(tmp_path, Painter())


def test_combinations_are_numbered_once_each():
    assert SPACE.size == 6
    values = [SPACE.combination(number) for number in range(6)]
    assert values[0] == {"size": "small", "colour": "red"}
    assert values[1] == {"size": "small", "colour": "green"}
    assert len({tuple(v.items()) for v in values}) == 6


def test_drawing_all_combinations_draws_each_once():
    assert sorted(SPACE.draw(3, 6)) == [*range(6)]
    assert SPACE.draw(3, 6)[:4] == SPACE.draw(3, 4)
    assert len({tuple(SPACE.draw(seed, 6)) for seed in range(20)}) > 10


def test_phrasings_are_drawn_for_each_position():
    records = FactorSpace({"n": tuple(map(str, range(999)))}).draw_records(
        0, 600, 3, lambda n, p: Record(str(n), str(p), None)
    )
    counts = [sum(one.text == str(p) for one in records) for p in range(3)]
    assert sum(counts) == 600
    assert min(counts) > 150


def test_a_subset_of_a_subset_knows_the_factors(squares):
    inner = subset(subset(squares, [5, 3, 1]), [2, 0])
    known = known_factors(inner)
    assert isinstance(known, FactorSet)
    assert len(known) == 2
    assert known.values(0) == SPACE.combination(1)
    assert known.picture(1)[0, 0, 0] == squares.picture(5)[0, 0, 0] == 12
    assert known.counterpart(1, "size", "small")[0, 0, 0] == 2
    assert known.fingerprint == inner.fingerprint
    assert known_factors(squares) is squares


@pytest.mark.parametrize(
    ("factor", "value", "message"),
    [
        ("hat", "red", "there is no factor 'hat'; expected one of size, colour"),
        ("colour", "small", "colour cannot be 'small'; expected one of red, green, blue"),
    ],
)
def test_wrong_edits_are_told(squares, factor, value, message):
    with pytest.raises(UserError, match=message):
        squares.counterpart(0, factor, value)
    with pytest.raises(UserError, match=message):
        known_factors(subset(squares, [0])).counterpart(0, factor, value)


def test_a_set_without_factors_says_so():
    plain = InMemory([Record("a", "", None)], (), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "f")
    for pictures in (plain, subset(plain, [0])):
        with pytest.raises(
            UserError, match="have no known factors, so no counterparts; expected faces, shapes or openmoji"
        ):
            known_factors(pictures)


def test_pictures_are_rendered_once_and_more_render_only_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "CHUNK", 2)
    painter = Painter()
    first = painted(tmp_path, painter, 4)
    assert painter.count == 4
    again = painted(tmp_path, painter, 4)
    assert painter.count == 4
    assert torch.equal(first.pictures(range(4)), again.pictures(range(4)))
    assert first.fingerprint == again.fingerprint
    more = painted(tmp_path, painter, 5)
    assert painter.count == 5
    whole = painted(tmp_path, painter, 6)
    assert painter.count == 7, "a file that was not full is rendered again"
    assert torch.equal(whole.pictures([0, 5])[:, 0, 0, 0], torch.tensor([0, 12]).byte())
    assert len({first.fingerprint, more.fingerprint, whole.fingerprint}) == 3


def test_records_are_known_before_anything_is_rendered(tmp_path):
    painter = Painter()
    drawn = DrawnSet(Renderer("squares", ["v1"], SPACE.factors, painter), [record(3), record(1)], (), tmp_path)
    fingerprint = drawn.fingerprint
    assert painter.count == 0
    assert drawn.render().fingerprint == fingerprint


def test_no_picture_with_an_unseen_pair_is_no_part(squares):
    unseen = {"size": "large", "colour": "red"}
    assert split_factors(squares, [{"size": "huge"}], 0, "squares").compositional is None
    compositional = split_factors(squares, [unseen], 0, "squares").compositional
    assert compositional is not None
    assert [record.fields for record in compositional.records] == [unseen]


def test_settings_have_files_and_fingerprints_of_their_own(tmp_path, squares):
    other = DrawnSet(replace(squares.renderer, key=["v2"]), squares.records, (), tmp_path).render()
    assert len([*tmp_path.iterdir()]) == 2
    assert other.fingerprint != squares.fingerprint


def test_a_damaged_cache_is_rendered_again(tmp_path, caplog):
    painter = Painter()
    before = painted(tmp_path, painter).pictures(range(6))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-7], b""):
        file.write_bytes(damaged)
        assert torch.equal(painted(tmp_path, painter).pictures(range(6)), before)
        assert file.read_bytes() == whole
    assert painter.count == 24
    assert caplog.text.count("is damaged") == 3


def test_no_room_for_a_cache_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    painter = Painter()
    assert painted(tmp_path / "file" / "below", painter).picture(5)[0, 0, 0] == 12
    assert painter.count == 6
    assert "cannot cache" in caplog.text


def test_processes_share_the_rendering(tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "CHUNK", 1)
    painters = [Painter(), Painter()]
    sets = together(lambda rank: painted(tmp_path, painters[rank]))
    assert [painter.count for painter in painters] == [3, 3]
    assert torch.equal(*(one.pictures(range(6)) for one in sets))


def test_indices_outside_are_errors(squares):
    assert squares.picture(-1)[0, 0, 0] == 12
    assert squares.pictures([]).shape == (0, 1, 2, 2)
    with pytest.raises(IndexError):
        squares.picture(6)


def test_equal_pixels_have_equal_digests(squares):
    digests = pixel_digests(squares)
    assert len(digests) == len(squares)
    assert pixel_digest(squares.picture(2).clone()) in digests
    assert pixel_digest(squares.picture(2) + 1 + 50) not in digests
    assert pixel_digest(squares.picture(2).mT) in digests, "of pixels, not of memory"


def drawing(name, role, gender="", tone=""):
    fields = {"role": role, "gender": gender, "skin_tone": tone, "group": "", "subgroup": "", "emoji": ""}
    return Record(name, name, None, fields)


@pytest.fixture
def emoji():
    records = [
        drawing("cook", "cook", "person"),
        drawing("dark cook", "cook", "person", "dark"),
        drawing("dark woman cook", "cook", "woman", "dark"),
        drawing("light hand", "hand", "", "light"),
        drawing("dark hand", "hand", "", "dark"),
        drawing("rocket", "rocket"),
        drawing("kiss", "kiss", "mixed", "light"),
    ]
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return OpenMojiSet(records, (), pixels, "f")


def test_openmoji_has_counterparts_where_they_are_drawn(emoji):
    known = known_factors(subset(emoji, [0, 1, 3]))
    assert known.values(0) == {"skin tone": "none", "gender": "person"}
    assert known.values(2) == {"skin tone": "light"}
    answers = [known.counterpart(0, "skin tone", "dark"), known.counterpart(1, "gender", "woman")]
    answers += [known.counterpart(1, "skin tone", "none"), known.counterpart(2, "skin tone", "dark")]
    assert [int(answer[0, 0, 0]) for answer in answers] == [1, 2, 0, 4]


def test_openmoji_says_what_it_does_not_draw(emoji):
    for index, factor, value, message in (
        (0, "skin tone", "light", "OpenMoji has no counterpart of 'cook' whose skin tone is light"),
        (3, "gender", "man", "'light hand' has no gender, so no counterpart; its factors: skin tone"),
        (5, "gender", "man", "'rocket' has no gender, so no counterpart; its factors: none"),
        (6, "skin tone", "dark", "'kiss' has no skin tone"),
        (0, "hair", "red", "there is no factor 'hair'; expected one of skin tone, gender"),
        (0, "gender", "men", "gender cannot be 'men'; expected one of person, man, woman"),
    ):
        with pytest.raises(UserError, match=message):
            emoji.counterpart(index, factor, value)
