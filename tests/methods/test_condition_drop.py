import math

import pytest
import torch

from conditioning.base import drop
from ldm_kit.data.batches import flips
from ldm_kit.diffusion.loss import Errors
from ldm_kit.methods.inputs import drop_mask
from ldm_kit.methods.train import open_method
from ldm_kit.training.batches import BatchSplit
from tests.training.helpers import CLASSES, TEXT, picture_folder, settings


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.9])
def test_the_measured_rate_is_the_configured_one(share):
    count = 100_000
    found = int(drop_mask(0, torch.arange(count), share).sum())
    assert abs(found - share * count) <= 4 * math.sqrt(share * (1 - share) * count)


def test_any_split_of_a_step_drops_the_same_positions():
    whole = drop_mask(3, torch.arange(64), 0.5)
    for world, micro in [(1, 16), (2, None), (4, 4)]:
        shares = [BatchSplit.of(64, micro, world, rank) for rank in range(world)]
        for positions in (torch.tensor(part) for share in shares for part in share.micro_batches(0)):
            assert torch.equal(drop_mask(3, positions, 0.5), whole[positions])


def test_drops_are_not_tied_to_flips_or_seeds():
    position = torch.arange(10_000)
    both = (drop_mask(0, position, 0.5) & flips(0, position)).float().mean()
    assert abs(both - 0.25) < 0.02
    assert not torch.equal(drop_mask(0, position, 0.5), drop_mask(1, position, 0.5))


def test_training_drops_the_configured_share(tmp_path):
    config = settings(CLASSES, picture_folder(tmp_path / "pictures"), tmp_path / "run", "condition_dropout=0.5")
    method, seen = open_method(config), []
    method.errors = lambda noised, inputs, *_: seen.append(inputs) or Errors(torch.zeros(len(noised.t)), None)
    batch = method.batches.__getitems__([(i, i) for i in range(16)])
    list(method.losses(batch, 0))
    expected = drop(batch["inputs"], method.null, drop_mask(config.seed, batch["position"], 0.5))
    assert all(torch.equal(seen[0][name], value) for name, value in expected.items())
    assert any(not torch.equal(value, batch["inputs"][name]) for name, value in expected.items())


@pytest.mark.parametrize("tree", [TEXT, CLASSES], ids=["text", "class"])
def test_training_and_sampling_know_one_null(tree, tmp_path):
    config = settings(tree, picture_folder(tmp_path / "pictures"), tmp_path / "run")
    method = open_method(config)
    batch = method.batches.__getitems__([(0, 3), (1, 4), (2, 5)])
    dropped = torch.tensor([True, False, True])
    mixed = drop(batch["inputs"], method.null, dropped)
    conditioner = method.module.conditioner
    asked = conditioner.prepare([conditioner.null])  # what guidance's empty side is given
    for name, value in mixed.items():
        assert torch.equal(value[dropped], asked[name].expand(2, *asked[name].shape[1:]))
        assert torch.equal(value[~dropped], batch["inputs"][name][~dropped])
