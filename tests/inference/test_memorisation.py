"""The command `ldm-kit memorisation`: which pictures it flags, its sheet and JSON, and what it refuses."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.inference import memorisation as command
from ldm_kit.inference.memorisation import memorisation
from ldm_kit.inference.requests import EvaluationRequest, MemorisationRequest
from ldm_kit.methods.shared_work import call_on_all
from ldm_kit.models.feature_nets import FeatureNet, Features
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from tests.data.test_peers import together

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


def tiles(pictures):
    x = pictures.float() / 255
    return Features(torch.nn.functional.avg_pool2d(x, 4).flatten(1))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_feature_net", lambda *_: FeatureNet("tiles", tiles, "not at all", "0" * 64))


def noise(count, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=draw).to(torch.uint8)


def pictures_of(pixels, name):
    return InMemory([Record(f"{name}-{i}", "", None) for i in range(len(pixels))], (), pixels, name)


DATA = Split(pictures_of(noise(60, 0), "train"), pictures_of(noise(40, 1), "heldout"), None)


def save(pixels, folder):
    folder.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return folder


def test_copies_among_new_pictures_are_found_first_and_by_name(tmp_path):
    samples = noise(20, 2)
    samples[4], samples[11] = DATA.train.picture(7), DATA.train.picture(59)
    report = memorisation(save(samples, tmp_path / "samples"), data=DATA)
    assert report.copies == [4, 11] == sorted(report.order[:2])
    first = {row["sample"]: row for row in report.json["samples"][:2]}
    for sample, name in ((4, "train-7"), (11, "train-59")):
        assert first[sample]["copy"]
        assert first[sample]["pixels"]["nearest"][0] == first[sample]["features"]["nearest"][0] == name
        assert first[sample]["pixels"]["distances"][0] == first[sample]["pixels"]["ratio"] == 0
    assert "2 of 20 samples count as copies" in str(report)
    written, sheet = report.write(tmp_path / "report.json", 3)
    assert json.loads(written.read_text())["copies"] == 2
    with Image.open(sheet) as image:
        width, height = image.size
    assert 1.2 < width / height < 2.5, "five pictures in each of three rows"


def test_new_pictures_and_the_held_out_ones_are_not_flagged(tmp_path):
    report = memorisation(save(noise(40, 3), tmp_path / "new"), data=DATA)
    assert not report.copies
    assert all(abs(space.auroc - 0.5) < 0.15 for space in report.spaces.values())
    same = memorisation(save(DATA.heldout.pictures(range(40)), tmp_path / "same"), data=DATA)
    assert [space.auroc for space in same.spaces.values()] == [0.5, 0.5]


def test_a_run_that_mirrors_has_its_mirrored_pictures_searched(tmp_path, monkeypatch):
    samples = DATA.train.pictures([3, 8]).flip(3)
    folder = save(torch.cat([samples, noise(3, 5)]), tmp_path / "samples")
    assert not memorisation(folder, data=DATA).copies
    monkeypatch.setattr(command, "_mirrored", lambda run: True)
    report = memorisation(folder, data=DATA)
    assert report.copies == [0, 1]
    assert report.spaces["pixels"].samples.indices[:2, 0].tolist() == [3, 8]


def test_the_command_samples_a_run_and_writes_beside_nothing(world, tmp_path):
    run = world.model("text")
    arguments = ["memorisation", str(run), "--steps", "2", "--count", "4", "--out", str(tmp_path / "out.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "out.json").read_text())["samples"]) == 4
    assert (tmp_path / "out.png").is_file()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in again.output


def numbers(report):
    spaces = report.spaces.values()
    each = [torch.cat([near.distances, near.indices], 1) for space in spaces for near in (space.samples, space.heldout)]
    return torch.cat(each), report.order, report.samples


def opened_before(world, monkeypatch, size, options):
    """Models are opened here, one for each thread, as transformers loads one at a time."""
    given = EvaluationRequest(), options, None
    models = [command.open_subject(world.model("text"), *given) for _ in range(size)]
    monkeypatch.setattr(command, "open_subject", lambda *_: models[peers.everyone().rank])


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_samples_features_and_search(size, world, tmp_path, monkeypatch):
    """5 samples: the shares are unequal; no picture is sampled or seen twice."""
    monkeypatch.setattr(command, "_mirrored", lambda run: True)
    request = MemorisationRequest(count=5, seed=7, batch_size=2)
    options = SamplingOptions(steps=2, guidance_scale=1)
    expected = numbers(command.find_memorised(world.model("text"), request, options))
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(command, "on_all_processes", lambda run: run("cpu"))
    opened_before(world, monkeypatch, size, options)
    sampled, seen = [], []
    generate = Pipeline.generate
    monkeypatch.setattr(
        Pipeline,
        "generate",
        lambda self, prompts, seeds, *more: sampled.extend(seeds) or generate(self, prompts, seeds, *more),
    )
    net = FeatureNet("tiles", lambda x: seen.append(len(x)) or tiles(x), "not at all", "0" * 64)
    monkeypatch.setattr(command, "load_feature_net", lambda *_: net)
    reports = together(lambda rank: command.find_memorised(world.model("text"), request, options), (0,) * size)
    assert sorted(sampled) == [7, 8, 9, 10, 11]
    counts = {name: reports[0].json["reference"][name]["count"] for name in ("train", "heldout")}
    assert sum(seen) == 5 + 2 * counts["train"] + counts["heldout"]
    for report in reports:
        values, order, samples = numbers(report)
        assert torch.allclose(values, expected[0], atol=1e-4)
        assert order == expected[1]
        assert (samples.int() - expected[2].int()).abs().max() <= 1


def test_a_fault_on_one_process_ends_the_search_on_all(world, monkeypatch):
    monkeypatch.setattr(command, "on_all_processes", lambda run: call_on_all(peers.everyone(), lambda: run("cpu")))
    generate = Pipeline.generate

    def failing(self, prompts, seeds, *more):
        if 1 in seeds:
            raise UserError("the second process fails")
        return generate(self, prompts, seeds, *more)

    monkeypatch.setattr(Pipeline, "generate", failing)
    request, options = MemorisationRequest(count=4), SamplingOptions(steps=2, guidance_scale=1)
    opened_before(world, monkeypatch, 2, options)
    said = together(lambda rank: command.find_memorised(world.model("text"), request, options))
    assert [str(error) for error in said] == ["the second process fails"] * 2


def test_the_launchers_device_is_taken(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "device_named", asked.append)
    monkeypatch.setattr(command, "on_all_processes", lambda run: run("cuda:1"))
    memorisation(save(noise(4, 3), tmp_path / "samples"), data=DATA)
    assert asked == ["cuda:1"]


def test_an_autoencoder_and_too_few_training_pictures_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="holds an autoencoder, which samples nothing"):
        memorisation(world.model("kl"))
    few = DATA._replace(train=pictures_of(noise(2, 0), "few"))
    with pytest.raises(UserError, match="has 2 training pictures; expected 3 or more"):
        memorisation(save(noise(2, 3), tmp_path / "two"), data=few)
