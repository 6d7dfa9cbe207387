"""Errors of edits whose truth is known, in closed form."""

import pytest
import torch

from ldm_kit.metrics.edit_errors import EditError, edit_error, summarise


def flat(level: int) -> torch.Tensor:
    return torch.full((3, 4, 4), level, dtype=torch.uint8)


def error_of(edited: int, readings: list[list[int]], labels: list[int], factor: int = 0) -> EditError:
    """The picture 100 is to become 200; other edits of it would give 120 and 210."""
    candidates = torch.stack([flat(120), flat(200), flat(210)])
    read, known = torch.tensor(readings), torch.tensor(labels)
    return edit_error(flat(edited), flat(100), candidates, 1, readings=read, labels=known, factor=factor)


@pytest.mark.parametrize(
    ("edited", "ratio", "rank"), [(200, 0, 1), (100, 1, 3), (150, 0.5, 2), (206, 0.06, 2), (180, 0.2, 1), (0, 2, 3)]
)
def test_distances(edited, ratio, rank):
    error = error_of(edited, [[1, 0], [1, 0]], [1, 0])
    assert (error.ratio, error.rank, error.candidates) == (pytest.approx(ratio), rank, 4)


def test_an_edit_that_changes_nothing_has_no_error():
    candidates = torch.stack([flat(120), flat(100)])
    labels = torch.tensor([1])
    with pytest.raises(ValueError, match="equals the unedited picture"):
        edit_error(flat(110), flat(100), candidates, 1, readings=labels.expand(2, 1), labels=labels, factor=0)


def test_readings():
    """The wanted factor is the second; the third cannot be told; the first and the fourth are others."""
    error = error_of(200, [[0, 1, 2, 3], [0, 2, 1, 3]], [0, 2, -1, 0], factor=1)
    assert (error.right, error.readable, error.unchanged, error.others) == (False, True, 1, 2)
    error = error_of(200, [[0, 2, 2, 0], [0, 1, 1, 0]], [0, 2, -1, 0], factor=1)
    assert (error.right, error.readable, error.unchanged, error.others) == (True, False, 2, 2)


def test_summary():
    errors = [
        EditError(True, 2, 2, 0.2, 1, 5, True),
        EditError(False, 0, 2, 1.0, 4, 5, True),
        EditError(True, 0, 0, 1.2, 2, 5, False),
    ]
    found = summarise(errors)
    assert found["edits"] == 3
    shares = {name: found[name] for name in ("right", "closer", "nearest", "readable", "unchanged", "ratio", "rank")}
    expected = {"right": 2 / 3, "closer": 1 / 3, "nearest": 1 / 3, "readable": 2 / 3, "unchanged": 0.5, "ratio": 0.8}
    assert shares == pytest.approx({**expected, "rank": 2})
    assert found["right_interval"][0] < 2 / 3 < found["right_interval"][1]
    assert summarise([]) == {"edits": 0}
