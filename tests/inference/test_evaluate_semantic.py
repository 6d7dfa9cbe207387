"""Evaluation of semantic models: reconstructions, samples of a prior, codes and edits, and what is refused."""

import json
import math
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from conditioning.factory import build as build_conditioner
from conditioning.labels import ClassConfig
from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.images import InMemory, Record, Split, to_unit
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.editing import code_measures
from ldm_kit.editing.code_measures import CodeMeasures
from ldm_kit.editing.context import ModelContext
from ldm_kit.editing.report import report_model
from ldm_kit.editing.report_data import data_of
from ldm_kit.editing.report_options import ReportOptions
from ldm_kit.inference import evaluate_codes, memorisation
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.evaluate_job import prepare
from ldm_kit.inference.requests import EvaluationRequest, MemorisationRequest
from ldm_kit.metrics import dci as dci_module
from ldm_kit.metrics import disentanglement
from ldm_kit.metrics.auroc import auroc_of_draws
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.metrics.reconstruction import psnr, ssim_zero_padded
from ldm_kit.models.measures import Bootstrap
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.semantic import SemanticModel
from tests.data.test_peers import together
from tests.editing.models import semantic, shifted
from tests.inference.colours import Colours, noise, split_of
from tests.methods.semantic_toys import base

QUICK = {"encode_steps": 3, "decode_steps": 2, "bootstrap": 4}
CODES = "probe_auroc,mig,factor_vae_score,tad"
DCI = "dci_disentanglement,dci_completeness,dci_informativeness"
EDITS = "edit_right,edit_unchanged,edit_closer,edit_nearest,edit_distance"
VALUES = ("red", "green", "blue")


def large(count: int, seed: int = 0) -> torch.Tensor:
    """Made-up pictures of 16 px."""
    return noise(count, seed).repeat_interleave(2, 2).repeat_interleave(2, 3)


def labelled(count: int = 30) -> Split:
    """Pictures of 16 px in three classes that differ in the brightest channel, with an attribute that is random."""
    pixels = large(count)
    for i in range(count):
        pixels[i, i % 3] = 220 + pixels[i, i % 3] // 16
    records = [Record(f"{i:03d}", "", i % 3, {"parity": str(i // 3 % 2), "name": f"picture {i}"}) for i in range(count)]
    pictures = InMemory(records, VALUES, pixels, "labelled")
    return Split(pictures, pictures, None)


def without_fields(pictures: InMemory) -> InMemory:
    """Return the pictures with their classes alone."""
    return replace(pictures, records=[replace(record, fields={}) for record in pictures.records])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """DiffAEs from two seeds, a PDAE of latents, and a DiffAE with a prior of classes."""
    folder = tmp_path_factory.mktemp("semantic")
    classes = build_conditioner(ClassConfig(kind="class", form="vector", width=8), classes=VALUES)
    latents = base(folder / "base", "latents", ScheduleConfig(kind="linear", num_train_timesteps=200, end=0.08))
    semantic(folder / "prior", conditioner=classes)
    (folder / "prior" / "sampling.json").write_text('{"prior": {"steps": 5, "decode_steps": 3}}')
    return [
        semantic(folder / "one"),
        semantic(folder / "two", seed=1),
        shifted(folder / "pdae", latents),
        folder / "prior",
    ]


@pytest.fixture
def shapes(tmp_path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text("source: shapes\nresolution: 16\ncount: 60\n")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small forests, few votes and a reader that has seen few pictures."""
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dci_module, "TREES", 4)
    monkeypatch.setattr(dci_module, "FOREST_DEPTHS", (4,))
    monkeypatch.setattr(disentanglement, "VOTES", (60, 30))
    train = code_measures.factor_reader
    config = ReaderConfig(count=20, epochs=1)
    monkeypatch.setattr(
        code_measures, "factor_reader", lambda data, split, _, device: train(data, split, config, device)
    )


@pytest.mark.parametrize("kind", [0, 2], ids=["DiffAE of pixels", "PDAE of latents"])
def test_reconstructions_are_the_models_from_inferred_and_from_random_noise(kind, models, colours):
    side = 16 if kind == 0 else 8
    pixels = large(9) if side == 16 else noise(9)
    names = [f"{name}{end}" for end in ("", "_random") for name in ("psnr", "mse", "ssim", "ssim_zero_padded")]
    result = evaluate(
        models[kind], data=split_of(pixels), count=3, seed=5, batch_size=2, measures=",".join(names), **QUICK
    )
    model, x = SemanticModel.load(models[kind]), pixels[[0, 3, 6]]
    z = model.encode(x)
    inferred, random = model.decode(z, model.invert(x, z, 3), 2), model.decode(z, model.noise([5, 6, 7]), 2)
    for end, y in (("", inferred), ("_random", random)):
        assert result[f"psnr{end}"].value == pytest.approx(psnr(to_unit(x), to_unit(y)).mean().item(), rel=1e-4)
        expected = ssim_zero_padded(to_unit(x), to_unit(y)).mean().item()
        assert result[f"ssim_zero_padded{end}"].value == pytest.approx(expected, rel=1e-3)
        squares = (x.double() / 255 - y.double() / 255).square().mean().item()
        assert result[f"mse{end}"].value == pytest.approx(squares, rel=1e-4)
        assert result[f"mse{end}"].title.endswith("random x_T" if end else "inferred x_T")
    assert result.settings["judged"]["reconstruction"] == {"encode_steps": 3, "decode_steps": 2}
    assert "encoded to x_T in 3 steps, decoded in 2" in str(result)
    assert [figure.count for figure in result] == [3] * 8
    assert result["psnr"].interval[0] < result["psnr"].value < result["psnr"].interval[1]
    assert not colours.seen, "no features are needed"


def test_only_what_is_asked_for_is_computed_and_the_default_is_cheap(models, shapes, colours, monkeypatch):
    """Of 300 pictures 256 are reconstructed; DCI and edits wait until they are named."""
    request = {"reference": str(shapes), **QUICK}
    for name in ("invert", "decode"):
        monkeypatch.setattr(SemanticModel, name, lambda *_, **__: pytest.fail("nothing is decoded"))
    assert [figure.name for figure in evaluate(models[0], measures="mig", **request)] == ["mig"]
    monkeypatch.undo()
    job = prepare(models[0], EvaluationRequest(**request))
    assert not {*DCI.split(","), *EDITS.split(","), "fd", "latent_mean"} & {*job.names}
    assert {*CODES.split(","), "psnr", "mse_random"} <= {*job.names}
    many = prepare(models[0], EvaluationRequest(measures="mse"), data=split_of(large(300)))
    assert len(many.rows) == 256
    assert many.rows[:3] == [0, 1, 2]
    assert many.rows[-1] == 298


def test_codes_and_edits_are_those_of_the_report(models, shapes, colours, tmp_path):
    options = ReportOptions(dataset="shapes", count=60, edits=5, steps=2, invert_steps=3, out=tmp_path / "report.json")
    report, _ = report_model(ModelContext(model=models[0], device="cpu"), options)
    request = {"reference": str(shapes), "measures": f"{CODES},{DCI},{EDITS}", "edits": 5, **QUICK}
    result = evaluate(models[0], device="cpu", **request)
    stored = result.json["report"]
    assert stored["codes"] == report["codes"]
    assert stored["probes"] == pytest.approx(report["probes"])
    assert stored["edits"] == report["edits"]
    assert stored["fingerprint"] == report["data"]["fingerprint"]
    probes = [value for value in report["probes"].values() if value is not None]
    expected = {
        "probe_auroc": statistics.fmean(probes),
        "tad": report["codes"]["tad"]["total"],
        **{name: report["codes"][name] for name in ("mig", "factor_vae_score")},
        **{
            f"dci_{name}": report["codes"]["dci"][name]
            for name in ("disentanglement", "completeness", "informativeness")
        },
        **{f"edit_{name}": report["edits"]["all"][name] for name in ("right", "unchanged", "closer", "nearest")},
        "edit_distance": report["edits"]["all"]["ratio"],
    }
    assert {figure.name: figure.value for figure in result} == pytest.approx(expected)
    assert result["edit_right"].interval == pytest.approx(report["edits"]["all"]["right_interval"])
    assert {result[name].count for name in ("edit_right", "edit_distance")} == {5}
    for name in ("probe_auroc", "mig"):
        low, high = result[name].interval
        assert low <= result[name].value <= high
    json.dumps(result.json, allow_nan=False)


def test_edits_that_end_at_a_training_picture_are_left_out_whatever_codes_are_measured(models, shapes, colours):
    """Few codes are asked for, but all training pictures count as seen."""
    seen = []
    measure = code_measures.EditJudge.measure

    def spy(self, pictures, count, factors, seed, digests):
        seen.append(len(digests))
        return measure(self, pictures, count, factors, seed, digests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_measures.EditJudge, "measure", spy)
        result = evaluate(models[0], reference=str(shapes), codes=40, edits=1, measures="mig,edit_right", **QUICK)
    assert result["mig"].count == 40
    assert seen[0] > 50


def test_classes_and_attributes_of_a_folder_are_probed_and_its_edits_refused(models, colours):
    split = labelled()
    data = data_of(None, split, 100)
    assert {column.name: len({*column.values}) for column in data.columns} == {"class": 3, "parity": 2}, "no names"
    result = evaluate(models[0], data=split, measures=CODES, **QUICK)
    probes = result.json["report"]["probes"]
    assert {*probes} == {"class", "parity"}
    assert probes == pytest.approx(CodeMeasures.of(SemanticModel.load(models[0]), data).learn().probes())
    with pytest.raises(UserError, match="--measures edit_right: the reference given pictures cannot render edits"):
        evaluate(models[0], data=split, measures="edit_right", **QUICK)
    single = split._replace(train=without_fields(split.train), heldout=without_fields(split.heldout))
    assert "factor_vae_score" not in prepare(models[0], EvaluationRequest(**QUICK), data=single).names
    with pytest.raises(UserError, match=r"--measures factor_vae_score: .* has one attribute, of which any"):
        evaluate(models[0], data=single, measures="factor_vae_score,mig", **QUICK)
    plain = prepare(models[0], EvaluationRequest(**QUICK), data=split_of(large(9)))
    assert not {*CODES.split(",")} & {*plain.names}


def test_a_probe_reads_a_class_that_the_code_holds_and_no_random_attribute():
    """Codes that are one-hot in the class, with noise: an AUROC of 1 for the class, about 0.5 for the parity."""
    data = data_of(None, labelled(300), 300)
    draw = torch.Generator().manual_seed(0)
    z = torch.cat([5 * torch.eye(3)[torch.arange(300) % 3], torch.zeros(300, 2)], 1)
    z += 0.1 * torch.randn(300, 5, generator=draw)
    measures = CodeMeasures(z, data).learn()
    probes = measures.probes()
    assert probes["class"] == pytest.approx(1)
    assert 0.3 < probes["parity"] < 0.7
    estimate = evaluate_codes._probed(measures, probes, Bootstrap(200, 0))
    assert estimate.value == pytest.approx((1 + probes["parity"]) / 2)
    held = measures.probed
    scores = measures.directions["parity"].logit(z[held])
    positive = torch.tensor([mark is True for mark in data.columns[1].positive("yes")])[held]
    draws = auroc_of_draws(scores, positive, Bootstrap(200, 0).counts(len(scores))[1:])
    low, high = (float(draws.quantile(q)) for q in (0.025, 0.975))
    assert estimate.interval[1] - estimate.interval[0] == pytest.approx((high - low) / 2, rel=1e-6), (
        "half, as a mean of two"
    )


def test_a_prior_is_sampled_for_the_classes_of_the_reference(models, colours):
    split = labelled(9)
    model = SemanticModel.load(models[3])
    classes = [VALUES[i % 3] for i in (0, 2, 4, 6)]
    for given, steps in (({}, 3), ({"decode_steps": 2}, 2)):
        request = {"count": 4, "seed": 7, "measures": "fd", "batch_size": 3, "bootstrap": 4, **given}
        result = evaluate(models[3], data=split, **request)
        expected = model.decode(model.sample_z(range(7, 11), 5, classes), None, steps, seeds=range(7, 11))
        judged = colours.pictures[-4:]
        assert (judged.int() - expected.int()).abs().max() <= 1, "its run's own options, or those that are given"
        options = result.settings["judged"]["prior"]
        assert options == {"steps": 5, "guidance_scale": 1, "decode_steps": steps, "stop": 0}
    references = split.heldout.pictures(range(9))
    assert result["fd"].value == pytest.approx(
        frechet(*(Colours()(x).features for x in (judged, references))), rel=1e-4
    )
    assert result["fd"].title == "FD of colours"
    with pytest.raises(UserError, match=r"--measures fd: .*no prior to sample codes from"):
        evaluate(models[0], data=split, measures="fd", **QUICK)
    with pytest.raises(UserError, match="has pictures without a class"):
        evaluate(models[3], data=split_of(large(9)), measures="fd", **QUICK)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_reconstructions_codes_and_edits(size, models, shapes, colours, monkeypatch):
    shapes.write_text(f"{shapes.read_text()}heldout: 0.2\n")
    request = EvaluationRequest(
        reference=str(shapes),
        count=3,
        edits=14,
        seed=3,
        device="cpu",
        measures=f"mse,mse_random,{CODES},{EDITS}",
        **QUICK,
    )
    expected = prepare(models[0], request).run()
    jobs = [prepare(models[0], request) for _ in range(size)]
    encoded, edited = [], []
    encode, invert = SemanticModel.encode, SemanticModel.invert
    monkeypatch.setattr(
        SemanticModel, "encode", lambda self, x, *more: encoded.append(len(x)) or encode(self, x, *more)
    )
    monkeypatch.setattr(SemanticModel, "invert", lambda self, x, *more: edited.append(len(x)) or invert(self, x, *more))
    results = together(lambda rank: jobs[rank].run(), (0,) * size, timeout=90)
    codes = expected.json["report"]["pictures"]
    pictures = sum(edited) - 3
    assert pictures == 3, "several edits of each"
    assert sum(encoded) == codes + 3 + pictures, "each picture once"
    for result in results:
        assert {figure.name: figure.value for figure in result} == pytest.approx(
            {figure.name: figure.value for figure in expected}, rel=1e-3, abs=1e-4
        )
        for figure in result:
            if figure.interval is not None:
                assert figure.interval == pytest.approx(expected[figure.name].interval, rel=1e-3, abs=1e-3), figure.name
    assert results[0].json["report"]["edits"]["all"]["edits"] == 14


def test_a_fault_on_one_process_ends_all(models, colours, monkeypatch):
    jobs = [
        prepare(models[0], EvaluationRequest(measures="mse", device="cpu", **QUICK), data=labelled(6)) for _ in "12"
    ]

    def fails(self, *_):
        if peers.everyone().rank == 1:
            raise UserError("the second process fails")
        return torch.zeros(3, 8)

    monkeypatch.setattr(SemanticModel, "encode", fails)
    monkeypatch.setattr(SemanticModel, "invert", lambda self, x, *_: torch.zeros(len(x), 3, 16, 16))
    said = together(lambda rank: jobs[rank].run())
    assert [str(error) for error in said] == ["the second process fails"] * 2


def test_several_trainings_have_an_interval_over_them(models, colours):
    request = {"data": labelled(90), "count": 4, "measures": "mse,mig,probe_auroc", **QUICK}
    single = [evaluate(path, **request) for path in models[:2]]
    result = evaluate(models[:2], **request)
    for name in ("mse", "mig", "probe_auroc"):
        values = [each[name].value for each in single]
        assert result[name].values == pytest.approx(values)
        half = 12.706204736 * statistics.stdev(values) / math.sqrt(2)
        assert result[name].interval == pytest.approx(
            (statistics.fmean(values) - half, statistics.fmean(values) + half)
        )
    with pytest.raises(UserError, match="are not comparable: prompts are classes and nothing"):
        evaluate([models[0], models[3]], **request)


def test_mistakes_are_one_sentence_before_anything_is_decoded(models, shapes, world, colours, monkeypatch):
    for name in ("encode", "invert", "decode"):
        monkeypatch.setattr(SemanticModel, name, lambda *_, **__: pytest.fail("nothing may be encoded or decoded"))
    split = labelled(6)
    cases = [
        ({"measures": "latent_mean"}, "which only an autoencoder has"),
        ({"measures": "bits_per_dim"}, "it is for diffusion models of pixels"),
        ({"measures": "prompt_fidelity"}, "no prior to sample codes from"),
        ({"measures": "mse", "edits": 3}, "--edits 3 is for edit_right, .* which --measures does not name"),
        ({"count": 7}, "--count is 7, but the reference given pictures has 6 pictures to reconstruct"),
        ({"encode_steps": 999}, "--encode_steps 999: "),
        ({"perceptual": "vgg"}, "--perceptual is 'vgg'; expected lpips, or timm:NAME"),
        ({"measures": "perceptual", "perceptual": "timm:resnet18@/nowhere"}, "--measures perceptual: "),
        ({"measures": "perceptual", "perceptual": "none"}, "--measures perceptual: --perceptual is none"),
        ({"data": split_of(noise(6))}, "8 px and 3 channels, but those that are judged have 16 px"),
        ({"seed": 2**64 - 1}, "--seed is"),
    ]
    for request, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(models[0], **{"data": split, **request})
    with pytest.raises(UserError, match=r"--steps is for diffusion models, and .* holds a semantic model"):
        evaluate(models[0], SamplingOptions(steps=3), data=split)
    for name, value in (("encode_steps", 3), ("edits", 5), ("codes", 9), ("perceptual", "lpips")):
        with pytest.raises(UserError, match=f"--{name} is for semantic models, and .* holds none"):
            evaluate(world.model("kl"), split="train", **{name: value})
    with pytest.raises(UserError, match="--measures mse_random: it is for semantic models"):
        evaluate(world.model("kl"), split="train", measures="mse_random")


def test_copies_are_sought_among_the_samples_of_a_prior(models, colours, monkeypatch):
    split = labelled(9)
    with pytest.raises(UserError, match="holds a semantic model without a prior, which samples nothing"):
        memorisation.memorisation(models[0], data=split)
    made = []
    monkeypatch.setattr(memorisation, "load_feature_net", lambda *_: colours_net(made))
    report = memorisation.find_memorised(models[3], MemorisationRequest(count=4, seed=2), data=split)
    model = SemanticModel.load(models[3])
    classes = [VALUES[i % 3] for i in (0, 2, 4, 6)]
    expected = model.decode(model.sample_z(range(2, 6), None, classes), None, 3, seeds=range(2, 6))
    assert (report.samples.int() - expected.int()).abs().max() <= 1
    assert all(a <= b for near in report.spaces["pixels"].samples.distances for a, b in pairwise(near.tolist()))


def colours_net(made):
    from ldm_kit.models.feature_nets import FeatureNet

    network = Colours()
    made.append(network)
    return FeatureNet("colours", network, "not at all", "0" * 64)
