"""Edits of codes, on a semantic model in closed form: ends, monotony, order, and what is written."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record
from ldm_kit.editing import code_files, operations
from ldm_kit.editing.attributes import _strengths
from ldm_kit.editing.code_files import CodeFile
from ldm_kit.editing.image_io import read_picture, save_animation
from ldm_kit.editing.operations import Change
from ldm_kit.editing.options import ChangeOptions
from ldm_kit.models.directions import Direction
from ldm_kit.models.protocol import Code, encoder_digest, normalise
from tests.editing.fake import Fake

MODEL = Fake()


def direction(i: int, scale: float = 2.0) -> Direction:
    return Direction(f"d{i}", torch.eye(48)[i], 0.2, scale, 0.5)


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(0)
    return torch.randint(60, 200, (5, 3, 16, 16), generator=draw).byte()


@pytest.fixture(scope="module")
def code(pictures):
    return operations.encode(MODEL, pictures, steps=7)


def test_reading_and_drawing_gives_the_picture(pictures, code):
    assert MODEL.asked[-1] == ("invert", 7)
    assert torch.equal(operations.decode(MODEL, code, steps=9), pictures)
    assert MODEL.asked[-1] == ("decode", 9)


def test_a_change_goes_sqrt_d_times_the_strength_in_normalised_space(code):
    z = operations.move_codes(MODEL, code.z, [Change(direction(3), 0.3)])
    step = normalise(MODEL, z) - normalise(MODEL, code.z)
    assert torch.allclose(step, (0.3 * 48**0.5 * torch.eye(48)[3]).expand(5, -1), atol=1e-5)


def test_several_changes_add_up_in_any_order(code):
    both = [Change(direction(3), 0.3), Change(direction(5), -0.1)]
    z = operations.move_codes(MODEL, code.z, both)
    assert torch.allclose(z, operations.move_codes(MODEL, code.z, both[::-1]), atol=1e-5)
    one, other = (operations.move_codes(MODEL, code.z, [change]) - code.z for change in both)
    assert torch.allclose(z - code.z, one + other, atol=1e-5)


def test_a_strip_is_monotone_in_the_logit_and_shares_x_T(code):
    strengths = [-0.3, -0.1, 0.0, 0.2, 0.5]
    rows = [[Change(direction(4), strength)] for strength in strengths]
    line = operations.apply_edits(MODEL, code.take([1]), rows)
    logits = direction(4).logit(normalise(MODEL, line.z))
    assert (logits.diff() > 0).all()
    assert torch.allclose(logits.diff(), 2 * 48**0.5 * torch.tensor(strengths).diff(), atol=1e-4)
    assert torch.equal(line.z[2], code.z[1])
    assert all(torch.equal(x, code.x_T[1]) for x in line.x_T)


def test_an_interpolation_ends_at_the_pictures(pictures, code):
    found = operations.interpolate(code.take([0]), code.take([1]), 5)
    for end, i in ((0, 0), (-1, 1)):
        assert torch.allclose(found.z[end], code.z[i], atol=1e-5)
        assert torch.allclose(found.x_T[end], code.x_T[i], atol=1e-5)
    assert torch.allclose(found.z[1], 0.75 * code.z[0] + 0.25 * code.z[1], atol=1e-5)
    drawn = operations.decode(MODEL, found).int()
    assert (drawn[[0, -1]] - pictures[:2].int()).abs().max() <= 1


def test_x_T_keeps_its_length_where_a_straight_line_would_not():
    draw = torch.Generator().manual_seed(0)
    a, b = (Code(torch.zeros(1, 48), torch.randn(1, 3, 16, 16, generator=draw)) for _ in range(2))
    middle = operations.interpolate(a, b, 3).x_T[1]
    assert abs(float(middle.std()) - 1) < 0.05
    same = operations.interpolate(a, a, 3).x_T
    assert torch.allclose(same, a.x_T.expand(3, -1, -1, -1), atol=1e-6), "without an angle it falls back to a line"


def test_mixing_takes_z_of_one_and_x_T_of_the_other(code):
    found = operations.mix_codes(code.take([2]), code.take([4]))
    assert torch.equal(found.z[0], code.z[2])
    assert torch.equal(found.x_T[0], code.x_T[4])


def test_nearest_compares_in_the_normalised_space():
    """One dimension of huge deviation, and a mean far away, would decide among raw codes."""
    model = Fake()
    model.mean, model.std = torch.full((48,), 100.0), torch.ones(48)
    model.std[0] = 1000.0
    query, like, unlike = torch.zeros(48), torch.zeros(48), torch.zeros(48)
    query[:3], like[:3], unlike[:3] = (torch.tensor(v) for v in ((1.0, 3, 0), (-1.0, 3, 0), (1.0, -3, 0)))
    z = torch.stack([unlike, like, query]) * model.std + model.mean
    places, cosines = operations.nearest(model, z[2], z, 9)
    assert places == [2, 1, 0]
    assert cosines == pytest.approx([1.0, 0.8, -0.8], abs=1e-5)
    assert operations.nearest(model, z[2], z, 1)[0] == [2]


@pytest.mark.parametrize("strength", [1.5, -2, float("nan"), float("inf")])
def test_strengths_out_of_range(strength):
    needed = {"image": "a.png", "attribute": ("red",)}
    with pytest.raises(ValidationError, match=r"expected -1 to 1, where -0.5 to 0.5 is sensible, 0.3 is|finite number"):
        ChangeOptions(**needed, strength=(strength,))
    with pytest.raises(ValidationError, match=r"expected -1 to 1, where -0.5 to 0.5 is sensible, 0.3 is typical"):
        ChangeOptions(**needed, strip=f"0.1,{strength}")
    assert ChangeOptions(**needed, strip="-1,0,0.25").strip_strengths == [-1.0, 0.0, 0.25]


def test_a_typical_strength_stays_within_what_may_be_asked_for():
    one, far = direction(0), direction(1)._replace(typical=-3.0)
    assert _strengths((), [one, far]) == [0.2, -1.0]
    assert _strengths((0.5,), [one, far]) == [0.5, 0.5]
    assert _strengths((0.5, 0.1), [one, far]) == [0.5, 0.1]


def test_strength_0_is_no_edit():
    with pytest.raises(UserError, match="changes nothing"):
        operations.check_not_idle([Change(direction(0), 0.0)])
    operations.check_not_idle([Change(direction(0), 0.0), Change(direction(1), 0.1)])


def in_memory(pictures):
    records = [Record(f"bäd/{i}.png", "", None) for i in range(len(pictures))]
    return InMemory(records, [], pictures, "f")


def test_codes_of_a_folder_come_back(pictures, code, tmp_path):
    found = code_files.encode(MODEL, in_memory(pictures), steps=7, batch=2)
    assert torch.equal(found.z, code.z)
    assert torch.equal(found.x_T, code.x_T)
    found.save(tmp_path / "a.safetensors")
    again = CodeFile.load(tmp_path / "a.safetensors", encoder_digest(MODEL))
    assert again.names == tuple(f"bäd/{i}.png" for i in range(5))
    assert torch.equal(again.z, code.z)
    assert torch.equal(again.x_T, code.x_T)
    small = code_files.encode(MODEL, in_memory(pictures), steps=None)
    small.save(tmp_path / "b.safetensors")
    assert CodeFile.load(tmp_path / "b.safetensors", encoder_digest(MODEL)).x_T is None


def test_wrong_codes(pictures, tmp_path):
    path, key = tmp_path / "a.safetensors", encoder_digest(MODEL)
    code_files.encode(MODEL, in_memory(pictures), steps=None).save(path)
    with pytest.raises(UserError, match="codes of another model"):
        CodeFile.load(path, encoder_digest(Fake(1)))
    spoilt = bytearray(path.read_bytes())
    spoilt[-3] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match="checksum does not fit"):
        CodeFile.load(path, key)
    save_file({"z": torch.zeros(1, 2)}, path, {"format": code_files.FORMAT})
    with pytest.raises(UserError, match="holds no codes"):
        CodeFile.load(path, key)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read as codes"):
        CodeFile.load(path, key)
    with pytest.raises(UserError, match=r"no such file; expected codes that edit\.py encode wrote"):
        CodeFile.load(tmp_path / "absent", key)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.png", "PNG"), ("a.apng", "PNG")])
def test_a_morph_goes_there_and_back(tmp_path, name, kind):
    frames = torch.stack([torch.full((3, 16, 16), 40 * i).byte() for i in range(5)])
    assert save_animation(frames, tmp_path / name, duration=70) == 8
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == (kind, 8, 0)
        seen = []
        for i in range(8):
            image.seek(i)
            assert image.info["duration"] == 70
            seen.append(int(np.asarray(image.convert("L"))[0, 0]))
    assert seen == pytest.approx([0, 40, 80, 120, 160, 120, 80, 40], abs=2)


def test_an_animation_one_way(tmp_path):
    assert (
        save_animation(torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 8, 8).byte() * 90, tmp_path / "a.gif", back=False)
        == 3
    )


@pytest.mark.parametrize(("name", "duration", "said"), [("a.mp4", 80, "expected .gif, .png"), ("a.gif", 5, "20 milli")])
def test_wrong_animations(tmp_path, name, duration, said):
    with pytest.raises(UserError, match=said):
        save_animation(torch.zeros(2, 3, 8, 8).byte(), tmp_path / name, duration)


def saved(path, size, mode="RGB", colour=128):
    Image.new(mode, size, colour if mode == "L" else (colour,) * len(mode)).save(path)
    return path


def test_a_picture_of_another_size_or_mode_is_changed_and_told(tmp_path, caplog):
    assert read_picture(saved(tmp_path / "a.png", (16, 16)), 16, 3).shape == (3, 16, 16)
    assert caplog.text == ""
    found = read_picture(saved(tmp_path / "b.png", (40, 30), "L"), 16, 3)
    assert found.shape == (3, 16, 16)
    assert "b.png is 40 x 30 pixels; scaled and cropped to its centre to 16 x 16" in caplog.text
    assert "b.png has the mode L; turned into RGB" in caplog.text


def test_a_picture_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="100 x 20 pixels are too long for a square model; crop it first"):
        read_picture(saved(tmp_path / "a.png", (100, 20)), 16, 3)
    with pytest.raises(UserError, match="no such file"):
        read_picture(tmp_path / "absent.png", 16, 3)


def test_a_picture_of_another_shape_than_squares_is_measured_against_that_shape(tmp_path, caplog):
    path = saved(tmp_path / "a.png", (100, 20))
    assert read_picture(path, (8, 32), 3).shape == (3, 8, 32)
    assert "scaled and cropped to its centre to 32 x 8" in caplog.text
    caplog.clear()
    assert read_picture(path, (8, 40), 3).shape == (3, 8, 40)
    assert "scaled to 40 x 8" in caplog.text
    with pytest.raises(UserError, match="100 x 20 pixels are too long for 8 x 32; crop it first"):
        read_picture(path, (32, 8), 3)
