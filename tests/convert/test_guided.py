"""Public checkpoints become folders that open, draw and guide; what is none of them is refused in a sentence."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm_kit.cli import app, run_cli
from ldm_kit.config import UserError
from ldm_kit.convert.checkpoint_files import read_weights
from ldm_kit.convert.guided_diffusion import convert_guided_diffusion
from ldm_kit.convert.options import GuidedDiffusionOptions
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.apply import apply_unet
from tests.nets.adm import Half, Whole, restless

SMALL = {"base": 32, "multiples": (1, 2), "layers": 1, "attention": (1,), "head_size": 16}
T = torch.tensor([0, 417, 999])
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAMES = ("hen", "cock", "wild goose", "ostrich")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Checkpoints, a list of names, and files that are no checkpoints."""
    folder = tmp_path_factory.mktemp("files")
    networks = {
        "plain.pt": Whole(**SMALL),
        "classes.pt": Whole(**SMALL, classes=4, out_channels=6),
        "heads.pt": Whole(**{**SMALL, "multiples": (1, 2, 3), "attention": (1, 2), "head_size": None, "heads": 4}),
        "classifier.pt": Half(**SMALL, pool=(8, 4)),
        "upsampler.pt": Whole(**SMALL, channels=6),
    }
    for name, network in networks.items():
        torch.save(restless(network).state_dict(), folder / name)
    save_file(torch.load(folder / "plain.pt", weights_only=True), folder / "plain.safetensors")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    (folder / "text.pt").write_text("not weights")
    (folder / "text.safetensors").write_text("not weights")
    torch.save({"step": 3}, folder / "numbers.pt")
    torch.save(Code(folder / "ran"), folder / "code.pt")
    return folder


def options_of(**changed) -> GuidedDiffusionOptions:
    """Of a small U-Net with heads of 16 channels."""
    return GuidedDiffusionOptions(**{"kind": "unet", "image_size": 16, "head_size": 16, **changed})


class Code:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def run(*arguments) -> tuple[int, str, str]:
    """`ldm-kit convert guided-diffusion ...`, in here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        app(["convert", "guided-diffusion", *map(str, arguments)])
    return stopped.value.code or 0, out.getvalue(), err.getvalue()


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain.pt", "plain.safetensors"])
def test_an_unconditional_denoiser_opens_and_is_the_same(files, tmp_path, name):
    status, out, err = run(
        files / name, tmp_path / "new/model", "--kind", "unet", "--image_size", 16, "--head_size", 16
    )
    assert (status, err) == (0, "")
    assert "an unconditional denoiser of 16 px pictures" in out
    pipeline = Pipeline.load(tmp_path / "new/model")
    assert (pipeline.variance, pipeline.target, pipeline.schedule_config.kind) == ("small", "eps", "linear")
    assert pipeline.latent_shape == (3, 16, 16)
    expected = restless(Whole(**SMALL))(X, T)
    assert torch.allclose(apply_unet(pipeline.unet, X, T), expected, rtol=0, atol=1e-5 * expected.abs().max())


@torch.no_grad()
def test_classes_a_learned_variance_and_cosine_noise(files, tmp_path):
    options = options_of(schedule="cosine", classes=files / "names.txt")
    assert "4 classes and no null class: sample with --guidance_scale 1" in convert_guided_diffusion(
        files / "classes.pt", tmp_path / "model", options
    )
    pipeline = Pipeline.load(tmp_path / "model")
    assert (pipeline.variance, pipeline.schedule_config.kind) == ("learned_range", "cosine")
    assert pipeline.conditioner.classes == NAMES
    expected = restless(Whole(**SMALL, classes=4, out_channels=6))(X, T, torch.tensor([3, 0, 1]))
    found = apply_unet(pipeline.unet, X, T, pipeline.condition(["ostrich", "hen", 1]))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_it_draws_without_guidance_and_says_why_not_with(files, tmp_path):
    convert_guided_diffusion(files / "classes.pt", tmp_path / "model", options_of())
    status, said = draw(tmp_path / "model", "2", "--guidance_scale", 1, "--out", tmp_path / "out")
    assert (status, said) == (0, "")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    status, said = draw(tmp_path / "model", "2", "--out", tmp_path / "none")
    assert status == 2
    assert said.startswith("error: ")
    assert "never learned a null class" in said
    assert not (tmp_path / "none").exists()


def draw(*arguments) -> tuple[int, str]:
    """`sample.py`, in here: status and error."""
    import sample

    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as stopped,
    ):
        run_cli(sample.main, [*map(str, arguments), "--steps", "2", "--solver", "ddpm", "--device", "cpu"])
    told = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    return stopped.value.code or 0, "\n".join(told)


@torch.no_grad()
def test_as_many_heads_everywhere_are_kept_in_a_class_of_ours(files, tmp_path):
    convert_guided_diffusion(files / "heads.pt", tmp_path / "model", options_of(heads=4))
    assert json.loads((tmp_path / "model/model_index.json").read_text())["unet"] == ["ldm_kit.nets.adm", "AdmUNet"]
    pipeline = Pipeline.load(tmp_path / "model")
    assert isinstance(pipeline.unet, AdmUNet)
    theirs = restless(Whole(**{**SMALL, "multiples": (1, 2, 3), "attention": (1, 2), "head_size": None, "heads": 4}))
    expected = theirs(X, T)
    assert torch.allclose(apply_unet(pipeline.unet, X, T), expected, rtol=0, atol=1e-5 * expected.abs().max())


@torch.no_grad()
def test_a_classifier_guides_a_converted_denoiser(files, tmp_path):
    named = ("--image_size", 16, "--head_size", 16)
    status, out, _ = run(
        files / "classifier.pt", tmp_path / "judge", "--kind", "classifier", *named, "--classes", files / "names.txt"
    )
    assert status == 0
    assert "a noisy classifier of 16 px pictures" in out
    judge = NoisyClassifier.load(tmp_path / "judge")
    assert judge.classes == NAMES
    expected = restless(Half(**SMALL, pool=(8, 4)))(X, T).log_softmax(1)
    assert torch.allclose(judge.log_probs(X, T), expected, atol=1e-5 * expected.abs().max())
    assert run(files / "plain.pt", tmp_path / "model", "--kind", "unet", *named)[0] == 0
    guided = Pipeline.load(tmp_path / "model").with_guides(judge)
    pictures = {
        scale: next(
            guided.generate(
                [""], [0], SamplingOptions(steps=4, solver="ddim", classifier_scale=scale, classifier_class="hen")
            )
        )
        for scale in (0.0, 50.0)
    }
    assert not torch.equal(pictures[0.0], pictures[50.0])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.pt", "there is no file"),
        ("text.pt", "holds no plain tensors that torch can read; pickled code is never run"),
        ("code.pt", "pickled code is never run"),
        ("text.safetensors", "is no whole safetensors file"),
        ("numbers.pt", "holds no state dict; expected tensors by name"),
    ],
)
def test_files_that_are_no_weights(files, tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        read_weights(files / name)
    status, out, err = run(files / name, tmp_path / "model", "--kind", "unet", "--image_size", 16)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "model").exists()
    assert not (files / "ran").exists()


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("upsampler.pt", options_of(), r"upsampler\.pt: .* as one for super-resolution does"),
        ("plain.pt", options_of(image_size=15), "side 15 cannot be halved 1 times"),
        ("plain.pt", options_of(head_size=48), "64 channels cannot be cut into heads of 48"),
        ("plain.pt", options_of(kind="classifier"), "no noisy classifier with attention pooling"),
        ("classifier.pt", options_of(), "output_blocks are not 1 levels"),
        ("classifier.pt", options_of(kind="classifier", image_size=64), "are not 4 levels of equal length"),
        ("plain.pt", options_of(classes=Path(__file__)), "no use for --classes"),
        ("classes.pt", options_of(classes=Path("absent.txt")), "cannot read class names"),
        ("classes.pt", options_of(classes=Path(__file__)), r"has \d+ class names, .* knows 4"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(files, tmp_path, name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        convert_guided_diffusion(files / name, tmp_path / "model", options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(files, tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match="exists already"):
        convert_guided_diffusion(files / "plain.pt", tmp_path, options_of())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
