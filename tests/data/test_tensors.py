"""`from_tensor`: images of a program become training data, and what does not fit is refused in a sentence."""

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.tensors import from_tensor

BYTES = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)


def test_floats_are_rounded_to_the_nearest_of_256_levels():
    floats = BYTES.float() / 127.5 - 1
    assert torch.equal(from_tensor(floats).train.pictures(range(4)), BYTES)


def test_captions_labels_and_classes_belong_to_their_images():
    split = from_tensor(BYTES, captions=["a", "b", "c", "d"], labels=torch.tensor([1, 0, 1, 0]), heldout=0.5)
    for part in (split.train, split.heldout):
        assert part.classes == ["0", "1"]
        for index, record in enumerate(part.records):
            whole = int(record.name)
            assert (record.text, record.label) == ("abcd"[whole], [1, 0, 1, 0][whole])
            assert torch.equal(part.picture(index), BYTES[whole])
    assert len(split.train) + len(split.heldout) == 4


def test_the_fingerprint_depends_on_contents_captions_and_labels():
    changed = BYTES.clone()
    changed[3, 2, 1, 1] += 1
    variants = [
        from_tensor(BYTES),
        from_tensor(changed),
        from_tensor(BYTES, captions=list("abcd")),
        from_tensor(BYTES, labels=[0, 0, 0, 1]),
        from_tensor(BYTES, labels=[0, 0, 0, 1], classes=["x", "y"]),
        from_tensor(BYTES.reshape(4, 1, 12)[:, :, :9].reshape(4, 1, 3, 3)),
    ]
    assert len({split.train.fingerprint for split in variants}) == len(variants)
    assert from_tensor(BYTES).train.fingerprint == from_tensor(BYTES.clone()).train.fingerprint


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (BYTES[0], {}, r"expected \[N, C, R, R\]"),
        (BYTES[:0], {}, "N > 0"),
        (BYTES[:, :2], {}, "C one of 1, 3, 4"),
        (BYTES.long(), {}, "uint8 in 0..255, or floats"),
        (BYTES.float(), {}, r"range from 0 to 47; expected values in \[-1, 1\]"),
        (torch.full((1, 1, 2, 2), torch.nan), {}, "range from nan"),
        (BYTES, {"captions": ["a"]}, "1 captions for 4 images"),
        (BYTES, {"labels": [0]}, "1 labels for 4 images"),
        (BYTES, {"labels": [0, 1, 2, 3], "classes": ["a", "b"]}, "below 2, the number of classes"),
        (BYTES, {"labels": [0, -1, 0, 0]}, "labels range from -1 to 0"),
        (BYTES, {"heldout": 1.0}, "0 <= heldout < 1"),
    ],
)
def test_what_does_not_fit_is_refused(images, more, message):
    with pytest.raises(UserError, match=message):
        from_tensor(images, **more)


def test_an_image_may_have_several_captions():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    split = from_tensor(images, captions=[["a", "b"], "c", ("d",)])
    assert [record.captions for record in split.train.records] == [("a", "b"), ("c",), ("d",)]
    other = from_tensor(images, captions=[["a"], "c", ("d",)])
    assert split.train.fingerprint != other.train.fingerprint
    with pytest.raises(UserError, match=r"caption 1 is \['c', 3\]; expected a text, or a list of texts"):
        from_tensor(images, captions=["a", ["c", 3], "d"])
