"""A string is no list of one-letter prompts, captions, classes or overrides, wherever a program passes such a list."""

from pathlib import Path

import pytest
import torch

from conditioning.base import ConditioningError
from ldm_kit import from_tensor, load, train
from ldm_kit.config import UserError
from ldm_kit.data.lists import check_lists
from ldm_kit.methods import read_run
from ldm_kit.models.pipeline import Pipeline

RUNS = Path(__file__).parent / "fixtures" / "v0_1"
IMAGES = torch.zeros(3, 1, 8, 8)


@pytest.fixture(scope="module", params=["latent", "pixels", "base"])
def pipeline(request) -> Pipeline:
    """Models of texts, of classes, and of neither."""
    return Pipeline.load(RUNS / request.param)


def test_generation(pipeline):
    for prompts in ("red", ""):
        for ask in (lambda p: next(pipeline.generate(p, [0])), pipeline.condition):
            with pytest.raises(UserError, match=f"prompts is the single '{prompts}'; expected a list"):
                ask(prompts)
    with pytest.raises(UserError, match="got 1 prompts, 2 seeds; expected as many of each"):
        next(pipeline.generate([""], [0, 1]))
    with pytest.raises(UserError, match="seeds is 5; expected a list"):
        next(pipeline.generate([""], 5))


def test_conditioners(pipeline):
    if pipeline.conditioner.null is not None:
        with pytest.raises(ConditioningError, match="expected a list of captions or classes, got the single 'red'"):
            pipeline.conditioner.prepare("red")


def test_a_prior():
    model = load(RUNS / "prior")
    with pytest.raises(UserError, match="conditions is the single 'red'"):
        model.sample_z([0], 2, "red")
    with pytest.raises(UserError, match="seeds is 7; expected a list"):
        model.sample_z(7, 2)


@pytest.mark.parametrize("name", ["captions", "labels", "classes"])
def test_data_in_memory(name):
    with pytest.raises(UserError, match=f"{name} is the single 'abc'"):
        from_tensor(IMAGES, **{name: "abc"})


def test_overrides():
    config = RUNS / "base" / "config.yaml"
    for ask in (
        lambda: read_run(config, "optim.lr=1"),
        lambda: train(config, "optim.lr=1"),
        lambda: train({"run": "r"}, "optim.lr=1", data=from_tensor(IMAGES)),
    ):
        with pytest.raises(UserError, match=r"overrides is the single 'optim\.lr=1'"):
            ask()


def test_what_is_a_list():
    check_lists(prompts=["a", "b"], seeds=range(2), others=torch.zeros(2), more=("a", 1))
    with pytest.raises(UserError, match="paths is the single"):
        check_lists(paths=Path("a"))
