"""Generation into a folder and the sums of a bound, on saved models and by hand: nothing is trained here."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_kit.diffusion import likelihood
from ldm_kit.diffusion.likelihood import Term
from ldm_kit.inference.generate import generate_to_folder, load_guided
from ldm_kit.inference.likelihood import _likelihood
from ldm_kit.inference.likelihood_terms import BoundOptions, TermSums, _random
from ldm_kit.inference.requests import GenerationRequest, GuideModels, OutputOptions
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.png import read_metadata

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
MODEL = Path(__file__).parent.parent / "fixtures" / "v0_1" / "pixels"


def test_every_picture_has_a_seed_of_its_own_and_prompts_of_a_file_come_last(tmp_path):
    (tmp_path / "prompts.txt").write_text("blue\n\n")
    request = GenerationRequest(prompts=("red",), prompts_file=tmp_path / "prompts.txt", count=2, seed=5)
    options = SamplingOptions(steps=2, solver="ddim", guidance_scale=1)
    done = generate_to_folder(MODEL, request, options, output=OutputOptions(out=tmp_path / "out", device="cpu"))
    assert done.pictures == 4
    paths = sorted((tmp_path / "out").glob("0*.png"), key=lambda path: path.name.split("-")[1])
    made = [(read_metadata(path)["prompt"], read_metadata(path)["seed"]) for path in paths]
    assert made == [("red", "5"), ("red", "6"), ("blue", "5"), ("blue", "6")]
    assert json.loads(read_metadata(paths[0])["settings"])["steps"] == 2
    alone = torch.cat(list(Pipeline.load(MODEL).generate(["red", "red"], [5, 6], options)))
    for path, picture in zip(paths, alone, strict=False):
        with Image.open(path) as image:
            assert torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).equal(
                picture.movedim(0, 2).flatten()
            )


def test_the_guide_model_is_loaded_in_the_precision_asked_for():
    pipeline = load_guided(MODEL, GuideModels(autoguidance_model=MODEL), torch.device("cpu"), torch.bfloat16)
    assert pipeline.autoguidance_model is not None
    assert pipeline.precision == pipeline.autoguidance_model.precision == torch.bfloat16


def test_noise_and_times_of_the_bound_belong_to_the_picture():
    request = BoundOptions(times=3, seed=1)
    indices, t = torch.tensor([4, 9]), torch.tensor([7, 7])
    (noise, times), (alone, some) = (_random(one, (2, 3), 20, request) for one in (indices, indices[1:]))
    assert times is not None
    assert some is not None
    assert (noise(t)[0] - noise(t)[1]).abs().max() > 0.1
    assert torch.equal(noise(t)[1:], alone(t[1:]))
    drawn = torch.stack(list(times))
    assert torch.equal(drawn[:, 1:], torch.stack(list(some)))


def test_sums_of_terms_are_the_bound_and_its_standard_error():
    every = TermSums.empty(2, None)
    every.start(torch.tensor([1.0, 2.0, 4.0]))
    for t, bits in ((1, [1.0, 0.0, 2.0]), (0, [3.0, 2.0, 5.0])):
        every.add(Term(torch.full((3,), t), torch.tensor(bits), torch.tensor(bits) + 0.5))
    totals = torch.tensor([5.0, 4.0, 11.0])
    found = _likelihood(every, "small", 0)
    assert (found.total, found.prior, found.first) == pytest.approx((20 / 3, 7 / 3, 10 / 3))
    assert found.total_tanh == pytest.approx(20 / 3 + 0.5), "of the first term alone"
    assert found.standard_error == pytest.approx(float(totals.std()) / math.sqrt(3))
    few, density = TermSums.empty(4, 2), likelihood.sparse_density(4)
    few.start(torch.zeros(1))
    for t in (0, 2):
        few.add(Term(torch.tensor([t]), torch.tensor([1.0]), torch.tensor([1.0])))
    assert _likelihood(few, "small", 0).terms == pytest.approx(float((1 / (2 * density[[0, 2]])).sum()))
