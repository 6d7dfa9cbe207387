"""The benchmark of conditions: its faces, masks and measures by closed forms, and each claim at toy size."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.claims import conditions
from benchmarks.claims.condition_claims import CLAIMS, MEASURES
from benchmarks.claims.condition_data import COLOURS, HEAD, NAMED, faces, short_caption
from benchmarks.claims.condition_judge import FaceJudge, face_judge, share, values_of
from benchmarks.claims.condition_masks import (
    KINDS,
    border_contrast,
    border_ratio,
    covered,
    extents_of,
    factor_extents,
    inpainting_masks,
    masked_mse,
)
from benchmarks.claims.condition_runs import CONFIGS, VARIANTS
from benchmarks.claims.condition_ways import Inpainted, Restored, Scaled, Tuned, inpainting_figures, originals
from benchmarks.claims.paper_runs import Runs, Variant
from ldm_kit.data.faces.dataset import load
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.data.factors import known_factors
from ldm_kit.methods import read_run
from ldm_kit.models.pipeline import Pipeline
from tests.benchmarks.condition_toys import TINY

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
FEW = {"solver": "ddim", "steps": 2, "guidance_scale": 2.0}


def test_faces_are_divided_by_hair_colour(few_faces):
    split = load(few_faces)
    assert sorted(COLOURS["old"] + COLOURS["new"]) == sorted(FACTORS["hair colour"])
    for role in ("train", "heldout"):
        names = [{record.name for record in getattr(faces(group), role).records} for group in ("old", "new")]
        assert not names[0] & names[1]
        assert names[0] | names[1] == {record.name for record in getattr(split, role).records}
    for group, colours in COLOURS.items():
        assert {record.fields["hair colour"] for record in faces(group).train.records} <= {*colours}
        for record, picture in zip(faces(group).heldout.records, faces(group).heldout.pictures(range(3)), strict=False):
            row = [one.name for one in split.heldout.records].index(record.name)
            assert torch.equal(picture, split.heldout.picture(row))


def test_captions_name_the_factors_of_named_and_no_other(few_faces):
    for group in ("old", "new"):
        for record in faces(group).train.records:
            assert all(record.fields[factor].split()[-1] in record.text for factor in NAMED)
            assert record.text.startswith(record.fields["head"])
            assert faces(group).train.classes[record.label or 0] == record.fields["clothes colour"]
    values = {"hair": "bun", "hair colour": "blond", "skin": "tan", "beard": "no beard"}
    caption = short_caption({**values, "clothes colour": "red", "clothes": "T-shirt"})
    assert caption == "blond hair in a bun, tan skin, no beard, red T-shirt"


def test_error_in_a_mask_ignores_the_rest():
    truth = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    made, masks = truth.clone(), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 3] = True
    made[0, :, 0, 0] = 255  # one of four pixels is wrong by 1
    made[1, 0, 3, 0] = 51  # one of three channels of one of four pixels, by 0.2
    made[:, :, 2, 3] = 255  # outside of the masks
    assert masked_mse(truth, made, masks).tolist() == pytest.approx([1 / 4, 0.04 / 12])


def test_contrast_at_the_border_of_a_mask():
    pictures = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[0, :, 2:] = True  # a vertical border, on the edge between black and white
    pictures[0, :, :, 2:] = 255
    masks[1, 1, 1] = True  # a pixel with four neighbours, 0.2 brighter than they are
    pictures[1, :, 1, 1] = 51
    masks[2, 1:] = True  # a horizontal border in black; the edge lies below it
    pictures[2, :, 3] = 255
    masks[3] = True  # no border
    assert border_contrast(pictures, masks).tolist() == pytest.approx([1.0, 0.2, 0.0, 0.0])


def test_borders_of_different_lengths_count_each_neighbour_once():
    pictures, masks = torch.zeros(1, 1, 3, 3, dtype=torch.uint8), torch.zeros(1, 3, 3, dtype=torch.bool)
    masks[0, 0, 0] = True  # two neighbours, of which one differs by 1
    pictures[0, 0, 0, 1] = 255
    assert border_contrast(pictures, masks).item() == pytest.approx(1 / 2)


def test_the_contrast_is_relative_to_the_truth():
    truth, masks = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :, 2:] = True
    truth[:, :, :, 2:] = 50
    made = truth.clone()
    assert border_ratio(truth, made, masks) == 1
    made[0, :, :, 2:] = 150
    assert border_ratio(truth, made, masks) == pytest.approx(2)  # contrasts 150 and 50 beside 50 and 50


def test_masks_come_in_turn(few_faces):
    masks = inpainting_masks(9, 20)
    upper, lower, boxes = (masks[i :: len(KINDS)] for i in range(len(KINDS)))
    assert upper[:, :16].all()
    assert not upper[:, 16:].any()
    assert lower[:, 9:].all()
    assert not lower[:, :9].any()
    assert not torch.equal(boxes[0], boxes[1])
    assert bool((boxes.flatten(1).double().mean(1) > 0.02).all())
    assert not boxes.flatten(1).all(1).any()
    assert torch.equal(inpainting_masks(4, 20), masks[:4])  # a picture's mask does not depend on how many there are


def test_a_factor_is_covered_if_no_pixel_of_it_is_outside():
    extents = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    extents[0, 0, 0] = True  # the upper row
    extents[0, 1, :, 0] = True  # the left column; the third factor is not to be seen
    masks = torch.tensor([[[True, True], [False, True]]])
    assert covered(extents, masks).tolist() == [[True, False, False]]


def test_the_extent_of_a_factor_is_what_its_values_change(few_faces):
    known = known_factors(load(few_faces).heldout)
    extents = dict(zip(NAMED, extents_of(known, 0, NAMED), strict=True))
    assert not extents["clothes colour"][:16].any()  # the upper half of a face
    assert extents["hair"][:16].any()
    edited = known.counterpart(0, "skin", next(v for v in FACTORS["skin"] if v != known.values(0)["skin"]))
    assert not (edited != known.picture(0)).any(0)[~extents["skin"]].any()


class _Reader:
    """A reader of factors in the order of FACTORS, which reads what it is told."""

    factors = FACTORS

    def __init__(self, read: torch.Tensor) -> None:
        self.numbers = read

    def read(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.numbers


def test_right_values_are_those_of_the_caption(few_faces):
    asked = values_of(faces("old").heldout, 2)
    rows = [faces("old").heldout.records[i].fields for i in range(2)]
    numbers = torch.tensor([[FACTORS[factor].index(row[factor]) for factor in FACTORS] for row in rows])
    numbers[0, [*FACTORS].index("skin")] += 1
    numbers[:, [*FACTORS].index("mouth")] += 1  # which no caption names
    reader: Any = _Reader(numbers)
    right = FaceJudge(reader).right(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), asked)
    wrong = [[i, NAMED[f]] for i, f in (~right).nonzero().tolist()]
    assert wrong == [[0, "skin"]]
    assert share(right, ["skin"]) == 0.5
    assert share(right, HEAD) == pytest.approx(5 / 6)
    assert share(right, ["beard", "clothes"]) == 1


def test_distances_are_to_all_faces_of_a_group(few_faces):
    split = faces("new")
    everything = torch.cat([part.pictures(range(len(part))) for part in (split.train, split.heldout)])
    assert face_judge().distance(everything, "new") < 1e-3 * face_judge().distance(everything, "old")


def test_values_are_taken_in_turn(few_faces):
    number = len(faces("new").heldout)
    values = values_of(faces("new").heldout, number + 1)
    assert torch.equal(values[0], values[number])
    assert values.shape == (number + 1, len(NAMED))


def test_the_truth_itself_has_no_error(bench):
    figures = inpainting_figures(originals(bench), originals(bench))
    assert figures["masked psnr"] > 100
    assert figures["border contrast"] == 1
    assert figures["border error"] == 0


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_compare_their_own_rows_by_known_measures(name):
    claim = CLAIMS[name]()
    for test in claim.tests:
        assert {test.a, test.b} <= {*claim.rows}
        assert test.measure in MEASURES
        assert (test.a, test.measure) != (test.b, test.other or test.measure)
        assert test.other in {"", *MEASURES}
    assert {getattr(way, "model", "base") for way in claim.rows.values()} <= {*VARIANTS}
    assert len({repr(way) for way in claim.rows.values()}) == len(claim.rows)


def test_what_is_compared_differs_in_one_thing_alone():
    configs = {
        name: read_run(
            CONFIGS / f"{each.config}.yaml",
            [o.format_map(dict.fromkeys(VARIANTS, "/x")) if each.needs else o for o in each.overrides],
        )
        for name, each in VARIANTS.items()
        if name != "first-stage"
    }
    of_pixels = {"pixels", "small", "upscaler"}
    first_stages = {name: getattr(config, "autoencoder", None) for name, config in configs.items()}
    assert {name for name, stage in first_stages.items() if str(stage) != "/x"} == {*of_pixels, "prior"}
    assert str(configs["prior"].model) == "/x"
    starts = {name: getattr(config, "init", None) for name, config in configs.items()}
    assert {name for name, start in starts.items() if start} == {"init", "lora", "inpaint", "two"}
    assert [name for name, config in configs.items() if getattr(config, "lora", None)] == ["lora"]
    assert [VARIANTS[name].data for name in ("init", "lora", "nothing")] == [VARIANTS["latents-new"].data] * 3
    of_old = ("base", "inpaint", "two", "image", "pixels", "upscaler")
    assert {VARIANTS[name].data for name in of_old} == {VARIANTS["latents-old"].data}
    text = configs["base"].condition
    assert configs["pixels"].condition == configs["small"].condition == text
    for name in ("optim", "ema", "schedule", "timestep_sampling", "prediction_type"):
        assert len({repr(getattr(configs[each], name)) for each in of_pixels}) == 1
    assert configs["inpaint"].condition.members == (text,)
    assert configs["two"].condition.members[0] == text.model_copy(update={"column": "head"})


def test_a_shared_run_is_trained_once_with_seed_0_on_its_own_pictures(tmp_path, monkeypatch):
    trained: list[tuple[list[str], object]] = []

    def train(config: Path, overrides: list[str], data: object = None) -> None:
        trained.append((overrides[:2], data))
        Path(overrides[0].removeprefix("run="), "model").mkdir(parents=True)

    monkeypatch.setattr("benchmarks.claims.paper_runs.train", train)
    pictures: Any = object()
    variants = {
        "stage": Variant("faces_kl", shared=True),
        "model": Variant("faces", ("autoencoder={stage}",), ("stage",), data=lambda: pictures),
    }
    runs = Runs(tmp_path, range(3), variants=variants, configs=CONFIGS)
    for seed in (2, 1):
        runs.model("model", seed)
    named = [[override.removeprefix(f"run={tmp_path}/") for override in each] for each, _ in trained]
    assert named == [["stage-0", "seed=0"], ["model-2", "seed=2"], ["model-1", "seed=1"]]
    assert [data for _, data in trained] == [None, pictures, pictures]
    assert runs.model("stage", 2) == tmp_path / "stage-0" / "model"
    assert runs.seconds("stage", 1) >= 0


def test_tuned_models_are_measured_on_both_groups(bench):
    for model in ("base", "init", "lora", "nothing"):
        way = Tuned(model, FEW)
        figures = bench.figures(way, 0)
        assert {*figures} >= {f"{group} hair colour" for group in COLOURS}
    pictures = [Tuned("base", FEW).pictures(bench, 0, group) for group in ("new", "old")]
    asked = [values_of(faces(group).heldout, 6) for group in ("new", "old")]
    right = [share(face_judge().right(*pair), ["hair colour"]) for pair in zip(pictures, asked, strict=True)]
    stored = bench.figures(Tuned("base", FEW), 0)
    assert [stored["new hair colour"], stored["old hair colour"]] == right


@pytest.mark.parametrize(("model", "repeats"), [("inpaint", 0), ("base", 1), ("base", 2)])
def test_inpainted_faces_are_unchanged_outside_of_their_masks(bench, model, repeats):
    made, truth = Inpainted(model, repeats, FEW).pictures(bench, 0), originals(bench)
    masks = inpainting_masks(len(truth), 32)
    changed = (made != truth).any(1)
    assert made.shape == truth.shape
    assert not changed[~masks].any()
    assert changed[masks].double().mean() > 0.5


def test_what_the_first_stage_restores_is_the_end_of_inpainting(bench):
    made, truth = Restored().pictures(bench, 0), originals(bench)
    masks = inpainting_masks(len(truth), 32)
    assert not (made != truth).any(1)[~masks].any()
    assert (made != truth).any(1)[masks].any()


def test_prompts_and_scales_are_those_of_text_and_class(bench, monkeypatch):
    asked: list[Any] = []
    generate = Pipeline.generate

    def recorded(self, prompts, seeds, options, *rest):
        asked.append((prompts, [*seeds], options.guidance_scales))
        return generate(self, prompts, seeds, options, *rest)

    bench.runs.model("two", 0)
    monkeypatch.setattr(Pipeline, "generate", recorded)
    assert Scaled((1.0, 3.0)).pictures(bench, 0).shape == (6, 3, 32, 32)
    records = [faces("old").heldout.records[i].fields for i in range(6)]
    prompts = [f"{one['head']} || {one['clothes colour']}" for one in records]
    assert asked == [(prompts, [*range(6)], (1.0, 3.0))]
    conditioner: Any = Pipeline.load(bench.runs.model("two", 0)).conditioner
    assert [*conditioner.sources] == ["head", "class"]


def test_shares_of_two_parts_are_those_of_their_factors(bench, monkeypatch):
    right = torch.zeros(6, len(NAMED), dtype=torch.bool)
    right[:, NAMED.index("clothes colour")] = True
    right[:3, NAMED.index("skin")] = True
    monkeypatch.setattr(FaceJudge, "right", lambda self, pictures, asked: right)
    figures = Scaled((1.0, 1.0)).measure(bench, 0)
    assert (figures["head"], figures["clothes colour"]) == (pytest.approx(1 / 6), 1.0)
    tuned = Tuned("base", FEW).measure(bench, 0)
    assert tuned["new hair colour"] == 0
    assert tuned["old: other values"] == pytest.approx(1.5 / 5)
    hidden = covered(factor_extents("old", 6), inpainting_masks(6, 32))
    assert inpainting_figures(originals(bench), originals(bench))["covered values"] == right[hidden].double().mean()


def test_a_claim_is_written_to_the_page_with_its_sheet(bench, tmp_path, monkeypatch):
    page = tmp_path / "conditions.md"
    page.write_text("# Conditions\n", encoding="utf-8")
    monkeypatch.setattr(conditions, "page_of", lambda name: page)
    monkeypatch.setattr(
        conditions, "Runs", lambda out, seeds, **_: Runs(out, seeds, TINY, bench.runs.variants, CONFIGS)
    )
    conditions.conditions(["two-scales"], out=bench.runs.folder, seeds=1, count=16, page=True)
    text = page.read_text(encoding="utf-8")
    assert "`python -m benchmarks.claims conditions two-scales`" in text
    assert "| factor | hair | hair colour |" in text
    assert "Comparisons below: 8, of which" in text
    assert (tmp_path / "conditions-two-scales.png").stat().st_size > 0
