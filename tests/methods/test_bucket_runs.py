"""Runs on pictures in aspect-ratio buckets: one shape a batch, the same on two processes and after a resume."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.methods.train import open_method
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.batches import BatchSplit, StepBatchSampler
from ldm_kit.training.groups import groups_of
from tests.training.helpers import KL, TEXT, play, ranks, settings, tensors_of
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SIZES = [(16, 16), (40, 24), (24, 40), (20, 33), (33, 20)]
BUCKETS = ("data.buckets={step: 4, max_crop: 0.24}", "data.heldout=0.2", "unet.dropout=0")
PLAIN = ("train.steps=6", "train.batch_size=4", "train.checkpoint_every=100", *BUCKETS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    generator, lines = np.random.default_rng(0), []
    for i in range(30):
        height, width = SIZES[i % len(SIZES)]
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"a thing {i % 3}"}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory, world) -> Path:
    return world.model("kl")


def both(pictures, autoencoder, folder):
    """A run on pixels and one on latents, as this process sees them."""
    latent = (f"autoencoder={autoencoder}", *PLAIN)
    return {
        "pixels": play(settings(TEXT, pictures, folder / "pixels", *PLAIN)),
        "latents": play(settings(TEXT, pictures, folder / "latents", *latent, "train.micro_batch=1")),
    }


@pytest.fixture(scope="module")
def alone(pictures, autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return both(pictures, autoencoder, folder), folder


def test_two_processes_agree_with_one(pictures, autoencoder, alone, tmp_path):
    first, second = ranks(2, both, pictures, autoencoder, tmp_path, folder=tmp_path / "results")
    for kind, played in alone[0].items():
        assert first[kind].weights == second[kind].weights
        losses = [each.numbers("denoiser_loss") for each in (first[kind], played)]
        assert len(losses[0]) == 6
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_a_resumed_run_is_the_uninterrupted_one(pictures, autoencoder, alone, tmp_path, kind):
    more = PLAIN if kind == "pixels" else (f"autoencoder={autoencoder}", *PLAIN, "train.micro_batch=1")
    config = settings(TEXT, pictures, tmp_path / "run", *more, "train.checkpoint_every=2")
    play(config, until=2)
    resumed = play(config, resume="latest")
    assert resumed.lines == alone[0][kind].lines[2:]
    assert resumed.weights == alone[0][kind].weights
    last = [next((folder / name).glob("checkpoint-*6")) for folder, name in ((tmp_path, "run"), (alone[1], kind))]
    assert tensors_of(last[0]) == tensors_of(last[1])


def test_batches_have_one_shape_each_and_all_shapes_come(pictures, autoencoder, tmp_path):
    config = settings(TEXT, pictures, tmp_path / "run", f"autoencoder={autoencoder}", *PLAIN)
    method = open_method(config)
    seen, shapes = set(), set()
    source = method.batches
    for samples in StepBatchSampler(BatchSplit.of(4, None, 1, 0), 0, len(source), 0, 60, groups_of(source)):
        batch = method.batches.__getitems__(samples)
        shapes.add(tuple(batch["mean"].shape[2:]))
        seen |= {index for _, index in samples}
    assert shapes == {(8, 8), (10, 6), (6, 10)}
    assert seen == {*range(len(method.data.train))}
    report = method.describe()
    assert "3 buckets (width x height: pictures): 12 x 20: " in report
    assert "of the area on average" in report
    assert f"latents ({4}, 8, 8)" in report
    few = open_method(settings(TEXT, pictures, tmp_path / "b", *PLAIN, "train.batch_size=12")).describe()
    assert "warning: batches of 12 hold a picture several times where a bucket has fewer: 12 x 20" in few or (
        "where a bucket has fewer: 16 x 16" in few
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_heldout_loss_does_not_depend_on_the_batches(pictures, autoencoder, tmp_path, batch_size):
    config = settings(TEXT, pictures, tmp_path / "run", f"autoencoder={autoencoder}", *PLAIN)
    method = open_method(config)
    heldout = method.heldout
    assert len({tuple(group.tolist()) for group in heldout.groups}) >= 2, "several shapes"
    torch.manual_seed(0)
    for parameter in method.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = []
    for i in range(len(heldout)):
        t = torch.tensor([int((i + 0.5) / len(heldout) * len(method.schedule))])
        with torch.no_grad():
            method.module.eval()
            expected.append(method.heldout_losses(heldout.__getitems__([(i, i)]), t, method.heldout_seed))
    assert method.heldout_loss(batch_size) == pytest.approx(float(torch.cat(expected).mean()), rel=1e-5)


def test_the_cache_has_a_folder_for_each_bucket_and_is_read_again(pictures, autoencoder, tmp_path):
    more = (f"autoencoder={autoencoder}", f"latents={tmp_path / 'cache'}", *PLAIN)
    first = open_method(settings(TEXT, pictures, tmp_path / "a", *more))
    folders = {path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").glob("*/*")}
    assert {"train/16x16", "train/12x20", "train/20x12", "heldout/16x16"} <= folders
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    second = open_method(settings(TEXT, pictures, tmp_path / "b", *more))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert first.batches.fingerprint == second.batches.fingerprint
    samples = [(i, int(i)) for i in first.batches.groups[0]]
    assert torch.equal(first.batches.__getitems__(samples)["mean"], second.batches.__getitems__(samples)["mean"])
    with pytest.raises(UserError, match=r"the latents in .* are stale"):
        open_method(settings(TEXT, pictures, tmp_path / "c", *more, "data.buckets.max_ratio=1.7"))


def test_the_script_trains_and_one_model_samples_both_ways(pictures, autoencoder, tmp_path):
    config = settings(TEXT, pictures, tmp_path / "run", f"autoencoder={autoencoder}", *PLAIN, "log.pictures=2")
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(exclude_unset=True))
    outcome = through("train_ldm", path.rename(path.with_suffix(".yaml")), "log.evaluate_every=3")
    assert outcome.status == 0, outcome.err
    pipeline = Pipeline.load(tmp_path / "run" / "model")
    assert pipeline.resolution == 16
    for size in ((80, 56), (56, 80), (16, 16)):
        options = SamplingOptions(steps=2, height=size[0], width=size[1])
        (samples,) = pipeline.generate(["a thing 1"], [0], options)
        assert tuple(samples.shape) == (1, 3, *size)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("heldout_loss" in line for line in lines)


@pytest.mark.parametrize(
    ("tree", "overrides", "message"),
    [
        (KL, ("data.buckets={step: 4}",), "data.buckets is for method latent, and other methods train on squares"),
        (TEXT, ("data.buckets={step: 5}",), "data.buckets.step is 5, which does not divide data.resolution 16"),
        (TEXT, ("data.buckets={step: 4}", "condition={kind: grey}"), "condition of kind grey is for square pictures"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pictures, tmp_path, tree, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        settings(tree, pictures, tmp_path / "run", *overrides)
    assert "\n" not in str(caught.value).strip()


def test_a_step_that_the_networks_cannot_reduce_is_refused(pictures, autoencoder, tmp_path):
    more = (f"autoencoder={autoencoder}", "data.buckets={step: 2}", "data.heldout=0.2")
    with pytest.raises(UserError, match=r"step is 2, but the autoencoder reduces by 2 and the U-Net by 2; .* of 4"):
        open_method(settings(TEXT, pictures, tmp_path / "run", *more))


def test_measures_are_taken_of_squares(pictures, autoencoder, tmp_path):
    from ldm_kit.inference.evaluate_reference import open_reference
    from ldm_kit.inference.requests import EvaluationRequest

    config = settings(TEXT, pictures, tmp_path / "run", f"autoencoder={autoencoder}", *PLAIN)
    method = open_method(config)
    reference = open_reference(EvaluationRequest(), None, (3, 16), method.data, captions=True)
    assert reference.pictures.pictures(range(len(reference.pictures))).shape[1:] == (3, 16, 16)
