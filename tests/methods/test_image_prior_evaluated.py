"""Evaluation and the search for copies of what a prior over image embeddings and its decoder sample (unCLIP)."""

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.sources import load
from ldm_kit.inference import evaluate_job
from ldm_kit.inference import memorisation as search
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.memorisation import memorisation
from ldm_kit.methods import read_run
from ldm_kit.methods.train import train
from ldm_kit.models.feature_nets import FeatureNet
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from tests.conditioning.image_toys import clip_weights
from tests.inference.colours import Colours
from tests.methods.test_image_priors import PRIOR, TEXT_ALONE, TREE
from tests.training.helpers import picture_folder, reset, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.usefixtures("own_cache"),
]
QUICK = SamplingOptions(steps=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A decoder, and priors of captions, of classes and of nothing for it."""
    root = tmp_path_factory.mktemp("evaluated")
    data, name = picture_folder(root / "set"), clip_weights(root)[1]
    made = {}

    def run(key, tree):
        reset()
        made[key] = train(settings({**tree, "train": {"steps": 2, "batch_size": 4}}, data, root / key)).parent

    run("image", {**TREE, "condition": {"kind": "image", "model": name}})
    own = {"model": str(made["image"])}
    run("captions", {**PRIOR, **own, "condition": TEXT_ALONE})
    run("classes", {**PRIOR, **own, "condition": {"kind": "class", "form": "vector"}})
    run("nothing", {**PRIOR, **own, "condition": {"kind": "none"}, "sample": {"steps": 2}})
    return made


@pytest.fixture
def net(monkeypatch):
    colours = Colours()
    for module in (evaluate_job, search):
        monkeypatch.setattr(module, "load_feature_net", lambda *_: FeatureNet("toy", colours, "not at all", "0" * 64))
    return colours


@pytest.mark.parametrize("name", ["captions", "classes", "nothing"])
def test_samples_of_the_prior_are_judged(folders, net, name):
    run, options = folders[name], SamplingOptions(steps=2, prior_steps=3)
    pictures = load(read_run(run / "config.yaml").data).train
    result = evaluate(run, options, split="train", count=6, measures="fd", seed=7, batch_size=4, bootstrap=0)
    rows = [i * len(pictures) // 6 for i in range(6)]
    prompts = {
        "captions": [pictures.records[row].text for row in rows],
        "classes": [pictures.classes[pictures.records[row].label or 0] for row in rows],
        "nothing": [""] * 6,
    }[name]
    expected = torch.cat([*Pipeline.load(run / "model").generate(prompts, range(7, 13), options, 4)])
    assert (net.pictures[-6:].int() - expected.int()).abs().max() <= 1
    sampling = result.settings["judged"]["sampling"]
    scale = 1.0 if name == "nothing" else 2.0
    assert (sampling["prior_steps"], sampling["prior_guidance_scale"]) == (3, scale), "the saved scale is stated"
    with pytest.raises(UserError, match="model"):
        evaluate(run, options, split="train", count=6, measures="bits_per_dim", bootstrap=0)


def test_copies_among_its_samples_are_searched(folders, net):
    report = memorisation(folders["captions"], QUICK, count=6)
    assert len(report.samples) == 6
    expected = Pipeline.load(folders["captions"] / "model")
    captions = [record.text for record in load(read_run(folders["captions"] / "config.yaml").data).heldout.records]
    rows = [i * len(captions) // 6 for i in range(6)]
    made = torch.cat([*expected.generate([captions[row] for row in rows], range(6), QUICK)])
    assert (report.samples.int() - made.int()).abs().max() <= 1


def test_a_decoder_without_a_prior_is_refused(folders, net):
    for command in (evaluate, memorisation):
        with pytest.raises(UserError, match=r"conditioned on an image and has no prior .* \(method: prior"):
            command(folders["image"], QUICK, count=6)
