"""Captions in any script: a shape for every character, or its name, and never the box of a missing one."""

import logging

import numpy as np
import pytest

from ldm_kit.viz import captions
from ldm_kit.viz.captions import draw, wrap

SCRIPTS = ["Curaçao", "красная кошка", "γάτα", "חתול", "قطة حمراء", "✓ → ≤", "🚀", "a 👩‍🚀 flies"]


@pytest.fixture
def no_system(monkeypatch):
    """A machine whose system has no fonts, and no package but those of the kit's own extras."""
    monkeypatch.setattr(captions, "_system_fonts", list)
    monkeypatch.setattr(captions, "_PACKAGED", captions._PACKAGED[:2])
    captions._font_of.cache_clear()
    captions._log_missing.cache_clear()
    yield
    captions._font_of.cache_clear()


def shapes(text):
    return np.asarray(draw([text], 200))


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_character_is_in_the_font_that_draws_it(no_system, text, caplog):
    lines = wrap(text, 200)
    assert lines == [text]
    for font, run in captions._runs(text):
        owner = next(f for f in map(captions._packaged_font, captions._PACKAGED) if f is not None and f.font is font)
        assert {ord(c) for c in run if c not in captions._JOINERS} <= owner.characters
    assert (shapes(text) < 128).any()
    assert caplog.text == ""


def test_different_characters_have_different_shapes(no_system):
    """Boxes are all alike."""
    for first, second in ("éü", "кж", "قط", "🚀🐈"):
        assert not np.array_equal(shapes(first), shapes(second))


def test_emoji_are_drawn_in_colour_and_joined(no_system):
    pixels = shapes("🚀").astype(int)
    assert (np.ptp(pixels, axis=-1) > 60).any()
    assert captions._length("👩\u200d🚀") == pytest.approx(captions._length("🚀"), abs=1)


def test_arabic_is_joined(no_system):
    """The letters of a word are narrower joined than alone."""
    word = "قطة"
    assert captions._length(word) < sum(captions._length(c) for c in word) - 1


def test_what_no_font_has_is_written_out_and_said_once(no_system, caplog):
    with caplog.at_level(logging.WARNING):
        found = [wrap(text, 400) for text in ("猫 cat", "ねこ", "고양이", "สี", "𓃠")]
    assert found[:3] == [["U+732B cat"], ["neko"], ["goyangi"]]
    assert found[3][0].startswith("U+0E2A")
    assert found[4] == ["U+130E0"]
    assert len(caplog.records) == 1
    assert "Install noto-cjk-sans-otc for Chinese, Japanese and Korean" in caplog.text


def test_emoji_without_a_font_are_named(monkeypatch, no_system):
    monkeypatch.setattr(captions, "_PACKAGED", captions._PACKAGED[:1])
    monkeypatch.setattr(captions, "_OPENMOJI", ("no_such_package", "x.ttf"))
    assert wrap("go 🚀!", 400) == ["go :rocket: !"]


def test_a_font_of_the_system_is_used_where_the_packages_lack_a_character(monkeypatch, no_system):
    """The font of emoji stands in for one that the system has."""
    system = captions._packaged_font(captions._OPENMOJI)
    monkeypatch.setattr(captions, "_OPENMOJI", ("no_such_package", "x.ttf"))
    monkeypatch.setattr(captions, "_PACKAGED", captions._PACKAGED[:1])
    monkeypatch.setattr(captions, "_system_fonts", lambda: ["/no/such/font.ttf", "given"])
    load = captions._load
    monkeypatch.setattr(captions, "_load", lambda path: system if path == "given" else load(path))
    assert wrap("🚀", 100) == ["🚀"]
    assert captions._runs("🚀") == [(system.font, "🚀")]


def test_what_has_no_shape_is_left_out(no_system):
    assert wrap("a\u202eb\ud800c\0d", 100) == ["a b c d"]
    assert wrap("", 100) == []
