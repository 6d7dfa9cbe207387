import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from ldm_kit.config import UserError, check
from ldm_kit.data.latents import LatentBatches
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.methods.classifier import ClassifierRun, Classifying
from ldm_kit.methods.classifier_metrics import LEVELS, HeldoutAccuracy, hits
from ldm_kit.methods.classifier_shift import shifted
from ldm_kit.methods.train import open_method
from ldm_kit.training.batches import BatchSplit
from tests.training.helpers import CLASSIFIER, picture_folder, settings
from tests.world import make_pictures

T = 48  # training times; divisible by the quartiles and the levels


class Stub(nn.Module):
    """In a network's place: says what it is told to, and remembers what it saw."""

    def __init__(self, say) -> None:
        super().__init__()
        self.weight, self.say, self.seen = nn.Parameter(torch.zeros(())), say, []
        self.config = {"classes": tuple("abcdefgh")}

    def forward(self, x, t):
        self.seen.append((x, t))
        return self.say(x, t)


def task(say=lambda x, t: torch.zeros(len(x), 8), **changed) -> Classifying:
    tree = {**CLASSIFIER, "run": "r", "data": {"source": "folder", "path": "p", "resolution": 16}, "shift": 0}
    tree = {**tree, "schedule": {"kind": "linear", "num_train_timesteps": T, "end": 0.3}, **changed}
    return Classifying(check(ClassifierRun, tree, "the test"), Stub(say))


def batch(positions, seed=0):
    """Latents [B, 4, 8, 8], the same for a position whatever is around it."""
    position = torch.as_tensor(positions)
    mean, logvar = (rng.normal(seed, name, position, (4, 8, 8)) for name in ("mean", "logvar"))
    return {"mean": mean, "logvar": logvar, "inputs": {"label": position % 8}, "position": position}


def step(task, positions):
    ((player, error, logs),) = task.losses(batch(positions), 0)
    assert player == "classifier"
    return {"loss": error.item(), **{name: value.item() for name, value in logs.items()}}


def test_it_sees_what_the_schedule_makes_of_latents():
    asked = task()
    step(asked, range(8, 16))
    ((x, t),) = asked.net.seen
    given, a, s = batch(range(8, 16)), *asked.schedule.alpha_sigma(t)
    wide = (8, 1, 1, 1)
    posterior, noise = (rng.normal(0, name, given["position"], (4, 8, 8)) for name in ("posterior", "noise"))
    x_0 = given["mean"] + (given["logvar"] / 2).exp() * posterior
    torch.testing.assert_close(x, (a.view(wide) * x_0 + s.view(wide) * noise).float())
    assert torch.equal(t, sample_timesteps(asked.config.timestep_sampling, 0, given["position"], 8, T))
    assert x.dtype == torch.float32


def test_any_split_of_a_step_gives_the_same_figures():
    def say(x, t):
        return x.flatten(1)[:, :8] * 3

    train = {"steps": 8, "batch_size": 32}
    whole = step(task(say, train=train), range(64, 96))
    assert 0 < whole["accuracy"] < 1
    assert whole["accuracy5"] > whole["accuracy"]
    for world, micro in [(1, 4), (2, None), (4, 2)]:
        shares = [BatchSplit.of(32, micro, world, rank) for rank in range(world)]
        parts = [step(task(say, train=train), part) for share in shares for part in share.micro_batches(2)]
        for name, value in whole.items():
            assert sum(part[name] for part in parts) / len(parts) == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("quartile", range(4))
@pytest.mark.parametrize("times", [{}, {"density": "logit_normal", "mean": -0.5}, {"stratified": False}])
def test_accuracy_belongs_to_the_quartile_of_noise(quartile, times):
    asked = task(None, train={"steps": 1, "batch_size": 4096}, timestep_sampling=times)
    truth = torch.eye(8)[torch.arange(4096) % 8]

    def known(t):
        return (t >= quartile * T / 4) & (t < (quartile + 1) * T / 4)

    asked.net.say = lambda x, t: torch.where(known(t)[:, None], truth, -truth)
    said = step(asked, range(4096))
    expected = [float(q == quartile) for q in range(4)]
    assert [said[f"accuracy_q{q}"] for q in (1, 2, 3, 4)] == pytest.approx(expected, abs=0.1)
    ((_, t),) = asked.net.seen
    assert said["accuracy"] == pytest.approx(known(t).float().mean().item())


def test_the_loss_is_the_smoothed_cross_entropy():
    def say(x, t):
        return x.flatten(1)[:, :8]

    for smoothing in (0.0, 0.3):
        asked = task(say, label_smoothing=smoothing)
        found = step(asked, range(8))["loss"]
        logs = asked.net.seen[0][0].flatten(1)[:, :8].log_softmax(1)
        picked = logs[torch.arange(8), torch.arange(8)]
        assert found == pytest.approx(-((1 - smoothing) * picked + smoothing * logs.mean(1)).mean().item())


def test_hits_count_the_likeliest():
    logits, label = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([1, 2])
    assert hits(logits, label, 1).tolist() == [0, 1]
    assert hits(logits, label, 2).tolist() == [1, 1]
    assert hits(logits, torch.tensor([2, 0]), 5).tolist() == [1, 1], "all of them, where there are fewer"


def test_shifts_crop_a_padded_picture():
    x, position = torch.randn(300, 2, 5, 6), torch.arange(300)
    moved, wide = shifted(x, 2, 0, position), pad(x, (2, 2, 2, 2), mode="replicate")
    met = set()
    for i in range(300):
        crops = {(y, z): wide[i, :, y : y + 5, z : z + 6] for y in range(5) for z in range(5)}
        (place,) = [place for place, crop in crops.items() if torch.equal(crop, moved[i])]
        met.add(place)
    assert len(met) == 25, "every shift, both ways, and each alone"
    assert torch.equal(shifted(x[7:9], 2, 0, position[7:9]), moved[7:9]), "they belong to the position"


def test_shifts_are_for_training_alone():
    plain, asked = task(), task(shift=3)
    for one in (plain, asked):
        step(one, range(8))
        one.measure(labelled(torch.arange(4)))
    (x, *still), (y, *same) = plain.net.seen, asked.net.seen
    assert not torch.equal(x[0], y[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(still, same, strict=True))


def labelled(labels):
    given = batch(range(len(labels)), seed=5)
    latents = SimpleLatents(given["mean"][:, None], given["logvar"][:, None])
    return LatentBatches(latents, {"label": labels}, [], 0)


class SimpleLatents(SimpleNamespace):
    def __init__(self, mean, logvar) -> None:
        super().__init__(mean=mean, logvar=logvar, replaced={})

    def __len__(self) -> int:
        return len(self.mean)


def test_every_heldout_picture_meets_every_level_of_noise():
    asked = task()
    asked.net.train()
    asked.measure(labelled(torch.zeros(40, dtype=torch.long)))
    assert asked.net.training
    assert len(asked.net.seen) == LEVELS
    for level, (x, t) in enumerate(asked.net.seen):
        assert x.shape == (40, 4, 8, 8)
        assert set(t.tolist()) == set(range(level * T // LEVELS, (level + 1) * T // LEVELS)), "all times of it"
    noise = torch.stack([x.flatten() for x, _ in asked.net.seen[-2:]])  # hardly any picture is left in it
    assert torch.corrcoef(noise)[0, 1].abs() < 0.1, "each level has its own noise"


def test_heldout_figures_do_not_depend_on_the_batch():
    def say(x, t):
        return x.flatten(1)[:, :8] * 3

    figures = []
    for size in (3, 64):
        asked = task(say)
        asked.eval_batch.size = size
        figures.append(asked.measure(labelled(torch.arange(20) % 8)).metrics())
    one, other = figures
    assert one == pytest.approx(other)
    assert set(one) == {"heldout_loss", "heldout_accuracy", "heldout_accuracy5"} | {
        f"heldout_accuracy_q{q}" for q in (1, 2, 3, 4)
    }


def test_heldout_losses_and_accuracies_are_those_of_the_logits():
    asked = task(lambda x, t: torch.where((t < T / 4)[:, None], 2.0, -2.0) * torch.eye(8)[0].expand(len(x), 8))
    labels = torch.tensor([0, 0, 0, 1])
    found = asked.measure(labelled(labels))
    each = [cross_entropy(sign * 2 * torch.eye(8)[0].expand(4, 8), labels).item() for sign in (1, -1)]
    assert found.losses == pytest.approx([each[0]] * 2 + [each[1]] * 6)
    assert found.first[:2] == (0.75, 0.75)
    assert found.metrics()["heldout_loss"] == pytest.approx(each[0] / 4 + each[1] * 3 / 4)


def test_quartiles_are_means_of_levels():
    found = HeldoutAccuracy((1.0,) * 8, (1.0, 0.5, 0.5, 0.25, 0.0, 0.25, 0.125, 0.125), None).metrics()
    assert [found[f"heldout_accuracy_q{q}"] for q in (1, 2, 3, 4)] == [0.75, 0.375, 0.125, 0.125]
    assert found["heldout_accuracy"] == pytest.approx(2.75 / 8)
    assert "heldout_accuracy5" not in found


def test_it_has_no_average_unless_asked_for():
    assert task().config.ema.kind == "none"


def opened(folder, run, *overrides) -> Classifying:
    method = open_method(settings(CLASSIFIER, folder, run, *overrides))
    assert isinstance(method, Classifying)
    return method


def test_it_learns_and_least_noise_is_easiest(tmp_path):
    torch.manual_seed(0)
    method = opened(
        make_pictures(tmp_path / "set", 48),
        tmp_path / "run",
        "schedule={kind: linear, num_train_timesteps: 1000}",
        "train.batch_size=16",
        "net.dropout=0",
    )
    before = method.measure(method.batches)
    optimiser = torch.optim.Adam(method.net.parameters(), 2e-3)
    for number in range(80):
        places = [(number * 16 + i, (number * 16 + i) % 48) for i in range(16)]
        ((_, error, _),) = method.losses(method.batches.__getitems__(places), number)
        error.backward()
        optimiser.step()
        optimiser.zero_grad()
    found = method.measure(method.batches)
    first = found.metrics()
    assert max(before.first) < 0.6
    assert first["heldout_accuracy_q1"] > 0.9
    assert first["heldout_accuracy_q1"] > first["heldout_accuracy_q3"] > first["heldout_accuracy_q4"] - 0.05
    assert first["heldout_accuracy_q4"] < 0.6
    assert found.losses[0] < 0.5 < 0.7 * math.log(3) < found.losses[-1]


def test_labels_and_mirrors_stay_with_their_pictures(tmp_path):
    method = opened(picture_folder(tmp_path / "set"), tmp_path / "run")
    assert method.batches.inputs["label"].tolist() == [i % 3 for i in range(24)]
    assert list(method.net.config.classes) == ["a", "b", "c"]
    given = method.batches.__getitems__([(40, 4), (41, 2)])
    assert given["inputs"]["label"].tolist() == [1, 2]
    for i, index in enumerate((4, 2)):
        assert any(torch.equal(given["mean"][i], view) for view in method.batches.latents.mean[index])


def test_other_labels_are_other_data(tmp_path):
    folder = picture_folder(tmp_path / "set")
    before = opened(folder, tmp_path / "run").batches.fingerprint
    rows = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(rows.replace('"label": "c"', '"label": "d"'))
    assert opened(folder, tmp_path / "run").batches.fingerprint != before


def test_one_class_is_too_few(tmp_path):
    folder = picture_folder(tmp_path / "set")
    rows = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(rows.replace('"b"', '"a"').replace('"c"', '"a"'))
    with pytest.raises(UserError, match="needs at least two classes, but all 24 pictures are of 'a'"):
        opened(folder, tmp_path / "run")


def test_a_picture_without_a_label_is_named(tmp_path):
    folder = picture_folder(tmp_path / "set")
    rows = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(rows.replace(', "label": "b"', "", 1))
    with pytest.raises(UserError, match=r"1 of 24 have none, the first being .*001"):
        opened(folder, tmp_path / "run")
