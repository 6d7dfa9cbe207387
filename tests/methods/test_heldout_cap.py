"""A held-out set of any size costs an evaluation at most `log.max_heldout` samples."""

from types import SimpleNamespace

import torch
from torch import nn

from ldm_kit.data.batches import chosen
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.base import Method, TrainingData
from tests.training.helpers import KL, settings


class Samples:
    """Held-out samples whose value is their number."""

    fingerprint = "samples"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, samples):
        position, index = torch.tensor(samples).unbind(1)
        return {"x": index, "position": position}


class Values(Method):
    """Its loss is a sample's number; it remembers what it was asked."""

    def __init__(self, count, most):
        parts = {"log": {"max_heldout": most}, "train": {"eval_batch": None}, "data": {"resolution": 8}}
        config = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in parts.items()})
        table = Schedule(torch.ones(10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64))
        data = TrainingData(None, Samples(count), Samples(count))
        super().__init__(config, data, modules={"net": nn.Linear(1, 1)}, ema_modules={}, schedule=table)
        self.asked = []

    build = losses = save = None

    def heldout_losses(self, batch, t, seed):
        self.asked += zip(batch["position"].tolist(), batch["x"].tolist(), t.tolist(), strict=True)
        return batch["x"].float()


def test_the_choice_is_fixed_random_and_all_where_it_may_be():
    assert chosen(5, 5).tolist() == [0, 1, 2, 3, 4]
    some = chosen(100_000, 1000)
    assert torch.equal(some, chosen(100_000, 1000))
    assert torch.equal(some, some.unique())
    assert set(chosen(100_000, 100).tolist()) < set(some.tolist())
    assert abs(some.float().mean() - 50_000) < 4 * 100_000 / 12**0.5 / 1000**0.5
    assert some.diff().float().std() > 50  # about 100 between neighbours, at random: no stride


def test_the_loss_is_over_the_choice_at_times_spread_over_it():
    method = Values(1000, most=20)
    rows = chosen(1000, 20).tolist()
    assert method.heldout_loss(batch_size=7) == sum(rows) / 20
    assert method.asked == [(row, row, i // 2) for i, row in enumerate(rows)]


def test_below_the_cap_every_sample_counts():
    method = Values(20, most=20)
    assert method.heldout_loss() == 9.5
    assert [t for _, _, t in method.asked] == [i // 2 for i in range(20)]


def test_an_autoencoder_is_measured_on_the_choice(tmp_path):
    seen = []

    class Spied(InMemory):
        def pictures(self, indices):
            seen.extend(indices)
            return super().pictures(indices)

    pixels = torch.zeros(30, 3, 16, 16, dtype=torch.uint8)
    pictures = Spied([Record(str(i), "", None) for i in range(30)], [], pixels, "set")
    config = settings(KL, tmp_path, tmp_path / "run", "log.max_heldout=6", "data.resolution=16")
    method = Autoencoding.build(config, Split(pictures, pictures, None), torch.device("cpu"))
    method.heldout_metrics()
    assert seen == chosen(30, 6).tolist()
