"""Shapes: solids are where geometry says, brightness is Lambert's, and factors change what they should."""

from itertools import combinations

import pytest
import torch

from ldm_kit.data.images import Split
from ldm_kit.data.rendered import RenderedSet
from ldm_kit.data.shapes import scene
from ldm_kit.data.shapes.dataset import FACTORS, HUES, PHRASINGS, SPACE, UNSEEN, ShapesConfig, _draw, caption, load_all
from ldm_kit.data.sources import load as load_any
from tests.data.factor_checks import check_counterparts, check_records, check_split

PLAIN = {factor: values[0] for factor, values in FACTORS.items()}
GREY, BLACK, WHITE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ShapesConfig:
    return ShapesConfig(resolution=16, count=600, cache=tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def shapes(config: ShapesConfig) -> RenderedSet:
    return load_all(config)


@pytest.fixture(scope="module")
def split(config: ShapesConfig, shapes: RenderedSet) -> Split:
    assert len(shapes)
    return load_any(config)


def test_records_and_split(shapes, split):
    check_records(shapes)
    check_split(split, shapes, UNSEEN)
    assert shapes.pictures([0, 599]).shape == (2, 3, 16, 16)
    assert 0.02 < len(split.compositional) / len(shapes) < 0.08
    assert all(shapes.classes[record.label] == record.fields["shape"] for record in shapes.records)
    assert SPACE.size == 480_000


def test_counterparts(shapes, split):
    check_counterparts(split, shapes)
    drawn = shapes.renderer.render([shapes.values(index) for index in (255, 256, 599)])
    assert torch.equal(drawn, shapes.pictures([255, 256, 599])), "also in the cache's second and third file"


@pytest.mark.parametrize("factor", FACTORS)
def test_every_value_shows(factor):
    drawn = torch.stack([_draw({**PLAIN, factor: value}, 32) for value in FACTORS[factor]]).int()
    for a, b in combinations(drawn, 2):
        assert (a - b).abs().max() > 12


def test_a_picture_depends_on_seed_and_position_alone(shapes, config, tmp_path):
    fewer = load_all(config.model_copy(update={"count": 20, "cache": tmp_path}))
    assert [*fewer.records] == [*shapes.records][:20]
    assert torch.equal(fewer.pictures(range(20)), shapes.pictures(range(20)))


@pytest.mark.parametrize("phrasing", range(len(PHRASINGS)))
def test_captions_say_every_value(phrasing):
    for factor, values in FACTORS.items():
        texts = [caption({**PLAIN, factor: value}, phrasing) for value in values]
        assert len({*texts}) == len(values)
        assert all(value in text for value, text in zip(values, texts, strict=True))
        assert not any("a orange" in text or "from straight" in text for text in texts)


def silhouette(kind: str, scale: float, degrees: float = 0.0, side: int = 96) -> torch.Tensor:
    """Where a solid covers the picture, bool [side, side]: it is white, and the room is black."""
    return scene.render(scene.Solid(kind, scale, WHITE), BLACK, BLACK, degrees, side)[0] > 60


@pytest.mark.parametrize("kind", FACTORS["shape"])
def test_solids_stand_in_the_middle_and_grow_with_the_scale(kind):
    small, large = silhouette(kind, 0.75), silhouette(kind, 1.25)
    assert (small ^ small.flip(1)).sum() <= 0.03 * small.sum(), "symmetric about the picture's middle"
    assert 2.4 < large.sum() / small.sum() < 3.2, "(1.25 / 0.75)^2 = 2.8, and a little nearer"
    assert (small & ~large).sum() <= 0.1 * small.sum()


def test_round_solids_look_alike_from_all_sides_and_cubes_do_not():
    for kind in ("cylinder", "sphere", "capsule"):
        assert (silhouette(kind, 1.0) ^ silhouette(kind, 1.0, 30)).sum() <= 4
    assert (silhouette("cube", 1.0) ^ silhouette("cube", 1.0, 30)).sum() > 40


def test_a_sphere_is_where_projection_says():
    """The centre (0, r, 0) seen from 5.5 away and 2.6 high, looking at (0, 0.55, 0), is projected by hand."""
    covered = silhouette("sphere", 1.0, side=192).nonzero().double()
    eye, target, centre = (5.5, 2.6), (0.0, 0.55), (0.0, 0.62)
    forward = torch.tensor([target[0] - eye[0], target[1] - eye[1]], dtype=torch.double)
    forward /= forward.norm()
    towards = torch.tensor([centre[0] - eye[0], centre[1] - eye[1]], dtype=torch.double)
    depth, height = towards @ forward, towards @ torch.stack([forward[1], -forward[0]])
    row = 96 - 96 * float(height / depth).__abs__() / 0.27
    assert covered.mean(0).tolist() == pytest.approx([row, 95.5], abs=2)
    radius = 96 * 0.62 / float((towards.norm() ** 2 - 0.62**2).sqrt()) / 0.27
    assert (covered[:, 1].max() - covered[:, 1].min() + 1) / 2 == pytest.approx(radius, abs=1.5)


def test_the_corner_moves_against_the_camera():
    """The wall's edge, where its brightness jumps, is in the middle straight on, and turns with the camera."""
    edges = []
    for degrees in (-12, 0, 12):
        row = scene.render(scene.Solid("sphere", 0.75, BLACK), BLACK, GREY, degrees, 96)[0, 2].int()
        edges.append(int(row.diff().abs().argmax()))
    assert edges[1] == 47
    assert edges[0] < 40
    assert edges[2] > 54
    assert edges[2] - 47 == pytest.approx(47 - edges[0], abs=1)


def test_the_floor_is_as_bright_as_lambert_says():
    """Far from the solid: ambient light, and the rest times the cosine between the light and the floor's normal."""
    floor = scene.render(scene.Solid("sphere", 0.75, BLACK), WHITE, BLACK, 0, 64)[0, 40, 0]
    assert int(floor) == pytest.approx(255 * (0.4 + 0.6 * 0.88), abs=3)


def test_supersampling_is_the_mean_of_rays(monkeypatch):
    solid = scene.Solid("capsule", 1.0, WHITE)
    smooth = scene.render(solid, GREY, BLACK, 10, 16)
    monkeypatch.setattr(scene, "SAMPLES", 1)
    monkeypatch.setattr(scene, "_kept_view", scene._view)
    sharp = scene.render(solid, GREY, BLACK, 10, 48)
    means = torch.nn.functional.avg_pool2d(sharp.float(), 3)
    assert (smooth - means).abs().max() <= 1


def test_hues_go_round_the_circle():
    """The brightest channel is that of the primary hue which is nearest; cyan is as near to green as to blue."""
    names = ("red", "orange", "lime", "green", "mint", "blue", "indigo", "purple", "pink")
    bright = [int(_draw({**PLAIN, "floor": hue}, 16)[:, 15, 0].argmax()) for hue in names]
    assert bright == [0, 0, 1, 1, 1, 2, 2, 2, 0]
    assert {*HUES} == {*names, "cyan"}
