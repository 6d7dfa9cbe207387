"""Measures of an autoencoder's latents, as `ldm-kit evaluate` takes them."""

import math

import pytest
import torch

from autoencoder.base import Moments, encode, posterior
from autoencoder.codebook import perplexity
from autoencoder.quantiser import quantise
from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record, Split, to_unit
from ldm_kit.data.sources import load
from ldm_kit.diffusion import rng
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.evaluate_latents import LATENTS, few_latents, latent_figures, latents_of
from ldm_kit.methods import read_run
from ldm_kit.metrics.latents import channel_statistics, irreducible_variance, spectral_share
from ldm_kit.models.manifest import open_first_stage
from ldm_kit.models.measures import Bootstrap
from tests.inference.colours import noise, save, split_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
QUIET = Bootstrap(0, 0)


def drawn(*shape: int) -> torch.Tensor:
    return rng.normal(0, "latents", torch.arange(shape[0]), shape[1:])


def value(name, columns, labels=None, codes=0, bootstrap=QUIET):
    labels = [None] * len(columns["latents"]) if labels is None else labels
    (figure,), warnings, _ = latent_figures([name], columns, labels, codes, bootstrap)
    return figure, warnings


def pictures_of(run):
    pictures = load(read_run(run / "config.yaml").data).train
    return to_unit(pictures.pictures(range(len(pictures))))


def test_a_kl_models_latents_are_measured(world, colours):
    run = world.model("kl")
    result = evaluate(run, split="train", bootstrap=0, measures=",".join(n for n in LATENTS if "codebook" not in n))
    vae = open_first_stage(run)
    moments = encode(vae, pictures_of(run))
    mean, variance = moments.mean.double(), moments.logvar.double().exp()
    assert result["kl_per_dimension"].value == pytest.approx(
        float((mean.square() + variance - 1 - variance.log()).mean() / 2), rel=1e-5
    )
    channels = channel_statistics(moments.mean)
    assert result["latent_mean"].value == pytest.approx(float(channels.mean.square().mean().sqrt()), abs=1e-6)
    assert result["latent_deviation"].value == pytest.approx(float(channels.deviation.mean()), rel=1e-5)
    centred = moments.mean - moments.mean.mean((0, 2, 3), keepdim=True)
    assert result["spectral_share"].value == pytest.approx(spectral_share(centred), rel=1e-4)
    details = result.json["latents"]
    assert details["shape"] == [4, 8, 8]
    assert details["deviation"] == pytest.approx(channels.deviation.tolist(), rel=1e-5)
    assert len(details["kl"]) == 4
    assert sum(details["kl"]) / 4 == pytest.approx(result["kl_per_dimension"].value, rel=1e-5)
    assert not colours.seen, "no features are computed where none are compared"


def test_a_vq_models_codes_are_counted(world, colours):
    run = world.model("vq")
    result = evaluate(run, split="train", bootstrap=8, measures="codebook_usage,codebook_perplexity", batch_size=5)
    vae = open_first_stage(run)
    indices = quantise(posterior(vae, pictures_of(run)).mean, vae.quantize.embedding.weight).indices
    counts = torch.bincount(indices.flatten(), minlength=32)
    assert result["codebook_usage"].value == pytest.approx(float((counts > 0).double().mean()))
    assert result["codebook_perplexity"].value == pytest.approx(float(perplexity(counts)), rel=1e-6)
    assert result["codebook_usage"].interval is None, "draws have fewer different pictures"
    low, high = result["codebook_perplexity"].interval
    assert low <= result["codebook_perplexity"].value <= high


def test_measures_of_another_class_are_refused(world, colours, tmp_path):
    cases = [
        (world.model("kl"), "codebook_usage", "is for VQ autoencoders, and this is a KL autoencoder"),
        (world.model("vq"), "kl_per_dimension", "is for KL autoencoders, and this is a VQ autoencoder"),
        (save(noise(8), tmp_path / "samples"), "viv", "it is of latents, which only an autoencoder has"),
    ]
    for path, name, message in cases:
        with pytest.raises(UserError, match=f"--measures {name}: .*{message}"):
            evaluate(path, measures=name, data=None if path.name in ("kl", "vq") else split_of(noise(8)), split="train")


def test_too_few_latents_for_a_covariance_are_said(world, colours):
    """Latents of 4 x 8 x 8 need 4 / 64 + 64 / 4 + 2 pictures, rounded down: 18."""
    assert few_latents((4, 8, 8), 18) == {}
    run = world.model("kl")
    result = evaluate(run, split="train", count=17, bootstrap=0, batch_size=17)
    assert "left out: VIV needs 18 latents of 4 x 8 x 8, but there are 17" in result.warnings
    assert {"spectral_share", "latent_mean"} <= {figure.name for figure in result} & {*LATENTS}
    with pytest.raises(UserError, match="--measures viv: VIV needs 18 latents"):
        evaluate(run, split="train", count=17, measures="viv")


def test_viv_is_within_classes_where_each_has_enough_latents():
    latents = drawn(120, 1, 2, 2)
    labels = [i % 2 for i in range(120)]
    latents[1::2] += 4
    numbers = torch.tensor(labels)
    figure, warnings = value("viv", {"latents": latents}, labels)
    assert figure.value == pytest.approx(irreducible_variance(latents, numbers))
    assert (figure.title, warnings) == ("VIV of 1x2x2 latents, 2 classes", [])
    single, _ = value("viv", {"latents": latents})
    assert single.title == "VIV of 1x2x2 latents, one group"
    assert single.value > figure.value + 0.3
    labels[0] = 2
    rare, (warning,) = value("viv", {"latents": latents}, labels)
    assert rare.value == single.value
    assert "one group: a class has 1 of them, and a covariance needs 6 of each" in warning


def test_intervals_of_latents_hold_the_truth():
    """For white latents the share of energy above half of the band is that of the number of frequencies."""
    columns = {"latents": drawn(400, 2, 4, 4), "latent_kl": drawn(400, 2).square()}
    above = sum(u + v > 3 for u in range(4) for v in range(4)) / 16
    for name, truth in (("spectral_share", above), ("latent_deviation", 1.0), ("kl_per_dimension", 1.0)):
        figure, _ = value(name, columns, bootstrap=Bootstrap(200, 0))
        low, high = figure.interval
        assert low < figure.value < high
        assert low - 0.05 < truth < high + 0.05
        assert high - low < 0.2


def test_a_constant_offset_is_no_energy():
    latents = drawn(60, 2, 4, 4)
    shares = [value("spectral_share", {"latents": latents + offset})[0].value for offset in (0.0, 5.0)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)


def test_kl_is_zero_for_the_prior_alone():
    class AutoencoderKL:
        pass

    for logvar, mean, nats in ((0.0, 0.0, 0.0), (0.0, 2.0, 2.0), (1.0, 0.0, (math.e - 2) / 2)):
        moments = Moments(torch.full((1, 3, 2, 2), mean), torch.full((1, 3, 2, 2), logvar))
        assert latents_of(AutoencoderKL(), moments)["latent_kl"].tolist()[0] == pytest.approx([nats] * 3, abs=1e-6)


def test_labels_of_the_measured_rows_are_the_groups(world, colours):
    """Where few of the reference's pictures are measured, each latent keeps its own picture's class."""
    pixels = noise(80).repeat_interleave(2, 2).repeat_interleave(2, 3)
    records = [Record(f"{i}", "", int(i >= 40)) for i in range(80)]
    split = Split(InMemory(records, ("a", "b"), pixels, "two"), InMemory(records, ("a", "b"), pixels, "two"), None)
    result = evaluate(world.model("kl"), data=split, count=60, measures="viv", bootstrap=0)
    rows = [i * 80 // 60 for i in range(60)]
    with torch.no_grad():
        mean = encode(open_first_stage(world.model("kl")), to_unit(pixels[rows])).mean
    groups = torch.tensor([int(row >= 40) for row in rows])
    assert result["viv"].value == pytest.approx(irreducible_variance(mean, groups), rel=1e-4)
    assert "2 classes" in result["viv"].title
