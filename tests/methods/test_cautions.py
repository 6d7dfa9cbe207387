"""Settings that never take effect in a run of this length are said before it starts, and refuse nothing."""

from typing import Any

import pytest

from ldm_kit.config import UserError, check
from ldm_kit.methods import check_run
from ldm_kit.methods.latent_config import LatentRun

DATA = {"source": "folder", "path": "pictures", "resolution": 16}
UNET = {"widths": [16, 16], "attention_levels": [False, True], "heads": 2}
TEXT = {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}


def latent(**more: Any) -> list[str]:
    common = {"run": "r", "data": DATA, "unet": UNET, "train": {"steps": 200, "batch_size": 4}}
    return check_run({**common, **more}, "here").cautions()


def autoencoder(adversarial: dict[str, Any] | None, **more: Any) -> list[str]:
    tree = {
        "run": "r",
        "data": DATA,
        "autoencoder": {"kind": "kl", "resolution": 16, "widths": [16, 16]},
        "perceptual": {"spec": "none"},
        "loss": {"perceptual_weight": 0.0, "balance": "custom", "kl_weight": 1e-6, "learned_scale": False}
        | ({} if adversarial is None else {"adversarial": adversarial}),
        "discriminator": {"layers": 2},
        "train": {"steps": 200, "batch_size": 4},
        **more,
    }
    return check_run(tree, "here").cautions()


@pytest.mark.parametrize(("warmup", "said"), [(0, 0), (199, 0), (200, 0), (201, 1), (20_000, 1)])
def test_a_warm_up_longer_than_the_run(warmup, said):
    cautions = latent(optim={"warmup": warmup})
    assert len(cautions) == said
    if warmup == 20_000:
        assert cautions == [
            "optim.warmup is 20000, but the run has 200 steps: its learning rate never gets beyond 1% of optim.lr"
        ]
    other = autoencoder({"start": 0}, discriminator_optim={"warmup": warmup})
    assert [caution.split()[0] for caution in other] == ["discriminator_optim.warmup"] * said


@pytest.mark.parametrize(
    ("adversarial", "said"),
    [
        (None, ""),
        ({"start": 199}, ""),
        ({"start": 200}, "it and the discriminator never count"),
        ({"start": 50_000, "discriminator_start": 10}, "it never counts, though the discriminator is trained"),
    ],
)
def test_a_discriminator_that_starts_after_the_last_step(adversarial, said):
    cautions = autoencoder(adversarial)
    assert len(cautions) == bool(said)
    for caution in cautions:
        assert caution.startswith(f"loss.adversarial.start is {adversarial['start']}, but the run has 200 steps")
        assert caution.endswith(said)


@pytest.mark.parametrize(
    ("condition", "dropout", "scale", "said"),
    [(TEXT, 0.0, 3.0, 1), (TEXT, 0.0, 1.0, 0), (TEXT, 0.1, 3.0, 0), ({"kind": "none"}, 0.0, 3.0, 0)],
)
def test_guidance_without_a_trained_null(condition, dropout, scale, said):
    cautions = latent(condition=condition, condition_dropout=dropout, sample={"guidance_scale": scale})
    assert len(cautions) == said
    prior = {"run": "r", "method": "prior", "model": "m", "data": DATA, "train": {"steps": 200, "batch_size": 4}}
    if condition["kind"] == "text" or scale == 1:
        sample = {"guidance_scale": scale}
        run = check_run({**prior, "condition": condition, "condition_dropout": dropout, "sample": sample}, "here")
        assert run.cautions() == cautions


@pytest.mark.parametrize("mode", ["tune", "distill"])
def test_guidance_of_a_tuned_model_whose_condition_only_its_base_knows(mode):
    common = {"run": "r", "method": "consistency", "base": "b", "mode": mode, "data": DATA}
    tree = {**common, "train": {"steps": 200, "batch_size": 4}, "condition_dropout": 0.0}
    (caution,) = check_run({**tree, "sample": {"guidance_scale": 3}}, "here").cautions()
    assert caution.startswith("sample.guidance_scale is 3, but condition_dropout is 0")
    ranged = check_run({**tree, "guidance": [1, 4], "sample": {"guidance_scale": 3}}, "here")
    assert ranged.cautions() == [], "a network that takes the scale as input needs no null condition"


def test_options_of_a_run_exclude_each_other_by_their_keys():
    tree = {"run": "r", "data": DATA, "unet": UNET, "train": {"steps": 2, "batch_size": 4}, "sample": {"eta": 0.5}}
    with pytest.raises(UserError, match=r"here: sample: eta 0.5 is for ddim alone, but solver is dpm\+\+"):
        check(LatentRun, tree, "here")
