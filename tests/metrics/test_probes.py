"""Linear probes against what they should read, and what they report of it."""

import pytest
import torch

from ldm_kit.metrics.fidelity import wilson
from ldm_kit.metrics.probes import LinearProbe, balanced_accuracy


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(200, 2, generator=generator) + 3, torch.randn(5, 2, generator=generator) - 3])
    return features.double(), torch.tensor([0] * 200 + [1] * 5)


def test_classes_weigh_alike(clouds):
    probe = LinearProbe.fit(*clouds, 2)
    assert probe.predict(torch.tensor([[3.0, 3.0], [-3.0, -3.0], [-0.5, -0.5]]).double()).tolist() == [0, 1, 1]
    assert probe.accuracy(*clouds).share > 0.95


def test_units_of_features_do_not_matter(clouds):
    features, labels = clouds
    scaled = LinearProbe.fit(features * torch.tensor([1e3, 1e-2]) + 7, labels, 2)
    plain = LinearProbe.fit(features, labels, 2)
    assert torch.allclose(scaled.weights, plain.weights, atol=1e-2)


def test_noise_is_read_by_chance():
    features = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(2000) % 4
    accuracy = LinearProbe.fit(features[:1000], labels[:1000], 4).accuracy(features[1000:], labels[1000:])
    assert accuracy.share == pytest.approx(0.25, abs=0.05)


def test_accuracy_is_the_mean_over_classes_with_wilsons_interval():
    accuracy = balanced_accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    assert accuracy.share == 0.75
    assert (accuracy.low, accuracy.high) == wilson(0.75, 4)
    assert balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1])).share == 0.5


@pytest.mark.parametrize("labels", [[0, 1], [0, 2, 1], [-1, 0, 1]])
def test_what_does_not_fit_is_refused(labels):
    with pytest.raises(ValueError, match="labels"):
        LinearProbe.fit(torch.zeros(3, 2).double(), torch.tensor(labels), 2)
