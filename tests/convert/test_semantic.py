"""DiffAE's and PDAE's checkpoints become folders that compute as the originals, edit and draw; what is none is refused.

The files here are made as the released code makes them, of its networks in small.
"""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conditioning.semantic import condition_of
from ldm_kit.cli import app
from ldm_kit.convert.attributes import CELEBA
from ldm_kit.data.image_files import load_image
from ldm_kit.data.images import to_unit
from ldm_kit.models.codes import code_statistics
from ldm_kit.models.directions import Directions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.protocol import encoder_digest
from ldm_kit.models.semantic import SemanticModel
from tests.nets.originals import DiffAE, Pdae, PdaeEncoder, SkipNet, perturbed
from tests.security.payload import KINDS, Payload, plant
from tests.world import Outcome, through

WIDTHS, ATTENDS, DEEPER = (32, 64), (False, True), (32, 64, 64)
MEAN, STD = torch.linspace(-1, 1, 16), torch.linspace(0.5, 1.5, 16)
T, Z = torch.tensor([3, 800]), torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PICTURES = (X.clamp(-1, 1) * 127.5 + 127.5).byte()


def lightning(tensors: dict, **more: object) -> dict:
    """What surrounds weights in their files."""
    optimizer = [{"state": {0: {"step": 7, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}]
    return {
        "epoch": 3,
        "hyper_parameters": {"name": "tiny"},
        "state_dict": tensors,
        "optimizer_states": optimizer,
    } | more


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def originals() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {
        "diffae": DiffAE(WIDTHS, ATTENDS, DEEPER),
        "encoder": PdaeEncoder((32, 64, 64), 2, 16, 16),
        "decoder": Pdae(WIDTHS, ATTENDS, heads=1),
        "prior": SkipNet(16, 32, 4),
        "classifier": nn.Linear(16, 40),
    }
    return {name: perturbed(module) for name, module in made.items()}


@pytest.fixture(scope="module")
def files(originals, tmp_path_factory) -> Path:
    """All published kinds of files, and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    raw = DiffAE(WIDTHS, ATTENDS, DEEPER)  # not averaged: never to be taken
    stats = {"conds_mean": MEAN[None], "conds_std": STD[None]}
    whole = prefixed("ema_model.", originals["diffae"])
    alone = {name: value for name, value in whole.items() if "latent_net" not in name}
    noise = {"x_T": torch.zeros(4, 3, 16, 16)}
    torch.save(lightning({**prefixed("model.", raw), **whole, **noise, **stats}), folder / "latent.ckpt")
    torch.save(lightning({**prefixed("model.", raw), **alone, **noise}), folder / "last.ckpt")
    save_file(alone, folder / "exported.safetensors")
    torch.save({"conds": torch.zeros(5, 16), "conds_mean": MEAN, "conds_std": STD}, folder / "latent.pkl")
    judge = {**prefixed("classifier.", nn.Linear(16, 40)), **prefixed("ema_classifier.", originals["classifier"])}
    torch.save(lightning({**judge, **stats}), folder / "cls.ckpt")
    torch.save(lightning({**judge, **stats, "conds_std": STD[None] * 2}), folder / "other_cls.ckpt")
    names = ("encoder", "decoder")
    nets = {f"ema_{name}": originals[name].state_dict() for name in names}
    plain = {"encoder": PdaeEncoder((32, 64, 64), 2, 16, 16).state_dict()}
    torch.save({"step": 9, **plain, **nets, "scaler": {"scale": 1.0}}, folder / "checkpoint.pt")
    torch.save({"mean": MEAN, "std": STD}, folder / "stats.pt")
    torch.save({"step": 9, "ema_latent_denoise_fn": originals["prior"].state_dict()}, folder / "prior.pt")
    torch.save({"ema_classifier": originals["classifier"].state_dict()}, folder / "classifier.pt")
    broken(folder, whole, alone, nets)
    return folder


def broken(folder: Path, whole: dict, alone: dict, nets: dict) -> None:
    """Files with one thing wrong."""
    (folder / "text.ckpt").write_text("not weights")
    torch.save({"step": 3}, folder / "numbers.pt")
    torch.save(lightning({"model.a": torch.zeros(1)}), folder / "raw.ckpt")
    lost = "ema_model.encoder.middle_block.0.in_layers.2.bias"
    torch.save(lightning({k: v for k, v in alone.items() if k != lost}), folder / "lost.ckpt")
    torch.save(lightning({**alone, lost: torch.zeros(3), "x_T": torch.zeros(1, 3, 16, 16)}), folder / "odd.ckpt")
    torch.save(lightning(alone), folder / "sizeless.ckpt")
    torch.save({"mean": MEAN, "std": STD * 0}, folder / "flat.pt")
    torch.save({"mean": MEAN[:8], "std": STD[:8]}, folder / "short.pt")
    torch.save({**nets, "ema_encoder": PdaeEncoder((32, 64, 64), 2, 8, 16).state_dict()}, folder / "narrow.pt")
    torch.save({"ema_encoder": nets["ema_encoder"]}, folder / "half.pt")
    torch.save({"ema_latent_denoise_fn": SkipNet(8, 32, 4).state_dict()}, folder / "prior8.pt")
    torch.save({"ema_classifier": nn.Linear(8, 40).state_dict()}, folder / "classifier8.pt")
    torch.save({"ema_classifier": nn.Linear(16, 2).state_dict()}, folder / "classifier2.pt")
    zero = {"weight": torch.zeros(40, 16), "bias": torch.zeros(40)}
    torch.save({"ema_classifier": zero}, folder / "zero.pt")
    (folder / "two.txt").write_text("curly\nold\n")


def run(*arguments: object) -> Outcome:
    """`ldm-kit convert ...`, in here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        app(["convert", *map(str, arguments)])
    return Outcome(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert theirs.abs().max() > 0.1
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1))


@pytest.fixture(scope="module")
def latent(files, tmp_path_factory) -> Path:
    """A DiffAE with all that there is."""
    out = tmp_path_factory.mktemp("out") / "new" / "latent"
    done = run("diffae", files / "latent.ckpt", out, "--classifier", files / "cls.ckpt")
    assert (done.status, done.err) == (0, "")
    said = "a diffusion autoencoder of 16 px pictures, codes of 16 numbers, a prior to sample them from, 40 attributes"
    assert said in done.out
    return out


@pytest.fixture(scope="module")
def pdae(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "pdae"
    beside = (
        "--statistics",
        files / "stats.pt",
        "--prior",
        files / "prior.pt",
        "--classifier",
        files / "classifier.pt",
    )
    done = run("pdae", files / "checkpoint.pt", out, *beside)
    assert (done.status, done.err) == (0, "")
    assert "a PDAE of 16 px pictures, codes of 16 numbers, a prior to sample them from, 40 attributes" in done.out
    return out


@torch.no_grad()
def test_a_diffusion_autoencoder_is_the_same_and_averaged(originals, latent):
    model, original = SemanticModel.load(latent), originals["diffae"]
    assert same(model.encode(PICTURES), original.encoder(to_unit(PICTURES)))
    assert same(model.decoder.unet(X, T, Z), original(X, T, Z))
    assert same(model.prior.mlp(Z, T), original.latent_net(Z, T))
    assert torch.equal(model.mean, MEAN)
    assert torch.equal(model.std, STD)
    noise, prior = model.decoder.schedule, model.prior.schedule_config
    assert noise.a[-1].square().item() == pytest.approx(4.0358e-5, rel=1e-3)  # linear, 1e-4 to 0.02
    assert (prior.kind, prior.start or 0.008, prior.num_train_timesteps) == ("constant", 0.008, 1000)
    assert model.decoder.target == "eps"


@torch.no_grad()
def test_a_pdae_stands_on_a_plain_model(originals, pdae):
    model, base = SemanticModel.load(pdae), Pipeline.load(pdae / "base")
    eps, gap = originals["decoder"](X, T, Z)
    assert same(model.encode(PICTURES), originals["encoder"](to_unit(PICTURES)))
    for ours, theirs in zip(model.decoder.shift(X, T, Z, model.decoder.base.null), (eps, gap), strict=True):
        assert same(ours, theirs)
    assert same(base.unet(X, T).sample, eps)
    assert (base.variance, base.target, base.schedule_config.kind) == ("small", "eps", "linear")
    assert same(model.prior.mlp(Z, T), originals["prior"](Z, T))
    s = model.decoder.schedule.s[T].float().view(-1, 1, 1, 1)
    shifted = model.decoder.denoiser().denoiser(X, T, condition_of(Z)).eps
    assert same(shifted, eps - s * gap)
    moved = pdae.rename(pdae.with_name("moved"))  # both halves together
    assert SemanticModel.load(moved).resolution == 16
    moved.rename(pdae)


def test_attributes_are_the_classifiers(originals, latent, pdae):
    for folder in (latent, pdae / "model"):
        directions = Directions.load(folder / "directions", encoder_digest(SemanticModel.load(folder)))
        assert directions.names == list(CELEBA)
        one, row = directions["mouth_slightly_open"], list(CELEBA).index("Mouth_Slightly_Open")
        judge = originals["classifier"]
        torch.testing.assert_close(one.vector, nn.functional.normalize(judge.weight[row], dim=0).detach())
        torch.testing.assert_close(one.logit(Z), judge(Z)[:, row].detach())
        assert one.typical == 0.3


def test_the_names_are_those_of_celeba():
    assert len(CELEBA) == len(set(CELEBA)) == 40
    assert list(CELEBA) == sorted(CELEBA)
    assert [CELEBA.index(name) for name in ("Bangs", "Male", "Smiling", "Young")] == [5, 20, 31, 39]


@pytest.mark.parametrize("kind", ["latent", "pdae"])
def test_the_scripts_use_them(kind, world, tmp_path, request):
    model = request.getfixturevalue(kind)
    given = ("--model", model, "--image", world.pictures / "00.png", "--attribute", "smiling", "--strength", 0.3)
    done = through("edit", *given, "--steps", 2, "--invert_steps", 2, "--out", tmp_path / "edited")
    assert done.status == 0, done.err
    done = through("edit", "draw", "--model", model, "--steps", 2, "--decode_steps", 2, "--out", tmp_path / "drawn")
    assert done.status == 0, done.err


@pytest.mark.parametrize("name", ["latent.pkl", "stats.pt", "stats.safetensors"])
def test_an_autoencoder_alone_wants_statistics(files, tmp_path, name):
    save_file({"mean": MEAN, "std": STD}, files / "stats.safetensors")
    refused = run("diffae", files / "last.ckpt", tmp_path / "model")
    assert refused.status == 2
    assert "holds no statistics of its codes" in refused.err
    done = run("diffae", files / "last.ckpt", tmp_path / "model", "--statistics", files / name)
    assert done.status == 0, done.err
    model = SemanticModel.load(tmp_path / "model")
    assert model.prior is None
    assert torch.equal(model.std, STD)


def test_statistics_of_a_folder_or_of_the_classifier(files, world, tmp_path):
    given = ("diffae", files / "exported.safetensors")
    done = run(*given, tmp_path / "a", "--image_size", 16, "--images", world.pictures, "--device", "cpu")
    assert done.status == 0, done.err
    model = SemanticModel.load(tmp_path / "a")
    shown = torch.stack([load_image(path, 16, 3) for path in sorted(world.pictures.glob("*.png"))])
    mean, std = code_statistics(model.encode(shown))
    torch.testing.assert_close(model.mean, mean)
    torch.testing.assert_close(model.std, std)
    done = run(*given, tmp_path / "b", "--image_size", 16, "--classifier", files / "cls.ckpt")
    assert done.status == 0, done.err
    assert torch.equal(SemanticModel.load(tmp_path / "b").mean, MEAN)


def test_other_attributes_by_name(files, tmp_path):
    given = ("pdae", files / "checkpoint.pt", tmp_path / "model", "--statistics", files / "stats.pt")
    judged = ("--classifier", files / "classifier2.pt", "--attributes", files / "two.txt")
    assert run(*given, *judged).status == 0
    model = tmp_path / "model" / "model"
    directions = Directions.load(model / "directions", encoder_digest(SemanticModel.load(model)))
    assert directions.names == ["curly", "old"]
    torch.testing.assert_close(directions.means.norm(dim=1), torch.full((2,), 0.3 * math.sqrt(16)))


WRONG = [  # (command and its arguments, what the sentence says)
    ("diffae absent.ckpt", "there is no file"),
    ("diffae text.ckpt", "holds no plain tensors that torch can read; pickled code is never run"),
    ("diffae numbers.pt", "holds no state dict; expected tensors by name"),
    ("diffae raw.ckpt", "no weight of this checkpoint begins with 'ema_model.'"),
    ("diffae lost.ckpt", "the encoder does not fit: body."),
    ("diffae odd.ckpt", "is (3,) in the file, expected (64,)"),
    ("diffae checkpoint.pt", "no weight of this checkpoint begins with 'ema_model.'"),
    ("diffae sizeless.ckpt", "does not hold the side of its pictures; give --image_size"),
    ("diffae sizeless.ckpt --image_size 18", "a picture of side 18 cannot be halved 2 times"),
    ("diffae last.ckpt --image_size 32", "its pictures have the side 16, not --image_size 32"),
    ("diffae last.ckpt --statistics absent.pt", "there is no file"),
    ("diffae last.ckpt --statistics flat.pt", "flat.pt: its statistics are no mean and positive deviation of 16"),
    ("diffae last.ckpt --statistics short.pt", "short.pt: its statistics are no mean and positive deviation of 16"),
    ("diffae last.ckpt --statistics prior.pt", "prior.pt: it holds no statistics; expected tensors mean and std"),
    ("diffae last.ckpt --statistics stats.pt --images .", "both give the statistics of codes; give one"),
    ("diffae last.ckpt --images absent.d", "absent.d"),
    ("diffae latent.ckpt --statistics stats.pt", "holds the statistics of its codes; leave out"),
    ("diffae latent.ckpt --classifier other_cls.ckpt", "was trained on codes of other statistics"),
    ("diffae latent.ckpt --classifier stats.pt", "no weight of this checkpoint begins with 'ema_classifier.'"),
    ("diffae latent.ckpt --classifier classifier8.pt", "expected weight [K, 16] and bias [K]"),
    ("diffae latent.ckpt --classifier classifier2.pt", "knows 2 attributes, not the 40 of CelebA; give their --attr"),
    (
        "diffae latent.ckpt --classifier classifier.pt --attributes two.txt",
        "has 2 attributes, but the network knows 40",
    ),
    ("diffae latent.ckpt --classifier zero.pt", "a row that is no direction"),
    ("diffae latent.ckpt --attributes two.txt", "--attributes names what a --classifier knows"),
    ("pdae checkpoint.pt", "holds no statistics of its codes"),
    ("pdae checkpoint.pt --image_size 32", "its pictures have the side 16, not --image_size 32"),
    ("pdae last.ckpt", "no weight of this checkpoint begins with 'ema_encoder.'"),
    ("pdae half.pt", "half.pt: no weight of this checkpoint begins with 'ema_decoder.'"),
    ("pdae narrow.pt", "the decoder takes codes of 16 numbers, the encoder's have 8"),
    ("pdae checkpoint.pt --encoder_heads 3", "cannot be cut into 3 heads"),
    ("pdae checkpoint.pt --heads 5 --statistics stats.pt", "cannot be cut into 5 heads"),
    ("pdae checkpoint.pt --statistics stats.pt --prior stats.pt", "stats.pt: no weight of this checkpoint begins with"),
    ("pdae checkpoint.pt --statistics stats.pt --prior prior8.pt", "prior8.pt: the prior is for codes of 8 numbers"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_wrong_inputs(files, tmp_path, line, said):
    kind, *words = [str(files / word) if re.fullmatch(r"[\w.]*\.\w*", word) else word for word in line.split()]
    done = run(kind, words[0], tmp_path / "out", *words[1:])
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith("error: ")
    assert said in done.err
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(files, tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    for kind, name in (("diffae", "latent.ckpt"), ("pdae", "checkpoint.pt")):
        done = run(kind, files / name, tmp_path)
        assert done.status == 2
        assert "exists already" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "line",
    [
        "diffae {evil}",
        "pdae {evil}",
        "diffae last.ckpt --statistics {evil}",
        "diffae last.ckpt --classifier {evil}",
        "pdae checkpoint.pt --prior {evil}",
    ],
)
def test_pickled_code_is_never_run(files, tmp_path, line, kind):
    evil = plant(tmp_path / "evil.ckpt", tmp_path / "marker", kind)
    script, *words = [str(files / word) if word.endswith((".ckpt", ".pt")) else word for word in line.split()]
    words = [word.format(evil=evil) for word in words]
    done = run(script, words[0], tmp_path / "out", *words[1:])
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "pickled code is never run" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


def test_no_name_of_a_file_gets_into_a_command(tmp_path):
    evil = plant(tmp_path / "$(reboot) last.ckpt", tmp_path / "marker", "zip")
    (command,) = re.findall(r'python -c "(.*?)"', run("diffae", evil, tmp_path / "out").err)
    assert "torch.load('FILE', " in command


def test_what_a_user_may_run_himself_makes_a_file_that_converts(files, latent, tmp_path):
    """A training's file as it is published holds classes of its own among callbacks; the sentence says a way out."""
    whole = torch.load(files / "latent.ckpt", weights_only=True)
    torch.save({**whole, "callbacks": {"saver": Payload(tmp_path / "marker")}}, tmp_path / "last.ckpt")
    done = run("diffae", tmp_path / "last.ckpt", tmp_path / "out")
    assert done.status == 2
    assert not (tmp_path / "marker").exists()
    (command,) = re.findall(r'python -c "(.*?)"', done.err)
    with contextlib.chdir(tmp_path):
        exec(command, {})
    assert run("diffae", tmp_path / "weights.pt", tmp_path / "out").status == 0
    ours, wanted = (SemanticModel.load(folder).encode(PICTURES) for folder in (tmp_path / "out", latent))
    assert torch.equal(ours, wanted)
