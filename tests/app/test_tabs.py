"""The tabs of the page compute what the commands compute, and every wrong field gives one sentence."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from ldm_kit.app.options import MAX_PICTURES, MAX_PROMPT
from ldm_kit.app.page import TABS
from ldm_kit.app.server import in_event_loop
from ldm_kit.app.tabs.base import Tab
from ldm_kit.app.tabs.edit import STRIP, EditTab
from ldm_kit.app.tabs.inpaint import CANVAS, InpaintTab, reduced, squared
from ldm_kit.app.tabs.mix import InterpolateTab, MixTab
from ldm_kit.app.tabs.prior import PriorTab
from ldm_kit.app.tabs.reprompt import Img2ImgTab, RepromptTab
from ldm_kit.app.tabs.sample import SampleTab
from ldm_kit.config import UserError
from ldm_kit.editing.attributes import change_attributes, mix_pictures
from ldm_kit.editing.context import EditContext
from ldm_kit.editing.interpolation import interpolate_pictures
from ldm_kit.editing.options import ChangeOptions, InterpolationOptions, MixOptions
from ldm_kit.editing.prompt_edits import img2img_picture, inpaint_picture, reprompt_picture
from ldm_kit.editing.sample_options import Img2ImgOptions, InpaintOptions, RepromptOptions, SamplePriorOptions
from ldm_kit.editing.sample_prior import sample_prior
from ldm_kit.inference.generate import generate_to_folder
from ldm_kit.inference.requests import GenerationRequest, OutputOptions
from ldm_kit.models.options import SamplingOptions
from ldm_kit.viz.png import read_metadata
from tests.app.conftest import OPTIONS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


def values_of(tab: Tab, model: Any, **given: Any) -> dict[str, Any]:
    """The values of a tab's fields as a browser would send them for a model, before `given` is typed in."""

    def build() -> dict[str, Any]:
        with gr.Blocks(analytics_enabled=False):
            return tab.build()

    fields = in_event_loop(build)
    values = {name: getattr(field, "value", None) for name, field in fields.items()}
    values |= {name: new["value"] for name, new in tab.updates(model).items() if "value" in new}
    assert given.keys() <= values.keys()
    return values | given


def run(tab: Tab, model: Any, out: Path, **given: Any) -> str:
    return tab.run(model, values_of(tab, model, **given), out, OPTIONS)


def contents(folder: Path) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Pixels and metadata of the PNGs of a folder by name."""
    assert folder.is_dir()
    written = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            written[path.name] = (image.tobytes(), read_metadata(path))
    assert written
    return written


def context(model: Path, out: Path) -> EditContext:
    return EditContext(model=model, out=out, device="cpu")


def test_a_model_shows_the_tabs_that_it_can_do(library):
    shown = {
        name: [kind.key for kind in TABS if kind().available(library.open(name))]
        for name in ("text", "pixels", "inpaint", "diffae", "prior", "image", "unclip", "unclip_plain", "sizes")
    }
    assert shown["text"] == shown["pixels"] == ["sample", "inpaint", "reprompt", "img2img"]
    assert shown["inpaint"] == ["inpaint"]
    assert shown["diffae"] == ["edit", "interpolate", "mix"], "it has no prior"
    assert shown["prior"] == ["prior", "interpolate", "mix"], "it has learned no attributes"
    assert all(shown[name] == ["sample"] for name in ("image", "unclip", "unclip_plain", "sizes")), (
        "edit.py refuses them"
    )
    assert len({kind.key for kind in TABS}) == len(TABS)


def test_untouched_fields_sample_with_the_models_own_settings(library, models, tmp_path):
    run(SampleTab(), library.open("text"), tmp_path / "page", prompt="a red square\n\nblue", count=2, seed="7")
    request = GenerationRequest(prompts=("a red square", "blue"), count=2, seed=7)
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    generate_to_folder(models["text"], request, SamplingOptions(), output=output)
    page = contents(tmp_path / "page")
    assert page == contents(tmp_path / "command")
    settings = json.loads(page["grid.png"][1]["settings"])
    assert (settings["eta"], settings["spacing"], settings["guidance_scale"]) == (0.5, "leading", 2.0)


def test_changed_fields_are_those_of_the_flags(library, models, tmp_path):
    given = {"guidance_scale": 3.5, "steps": 3, "solver": "dpm++", "negative_prompt": "a blue dot"}
    interval = {"interval_low": 0.1, "interval_high": 0.8}
    run(SampleTab(), library.open("text"), tmp_path / "page", prompt="red", count=1, seed="3", **given, **interval)
    options = SamplingOptions(**given, guidance_interval=(0.1, 0.8))
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    generate_to_folder(models["text"], GenerationRequest(prompts=("red",), seed=3), options, output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")


def test_a_class_is_chosen_from_a_list(library, models, tmp_path):
    tab, model = SampleTab(), library.open("pixels")
    updates = tab.updates(model)
    assert updates["class_name"]["choices"] == ["blue", "green", "red"]
    assert (updates["class_name"]["visible"], updates["prompt"]["visible"]) == (True, False)
    run(tab, model, tmp_path / "page", class_name="red", count=1, steps=2)
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    generate_to_folder(models["pixels"], GenerationRequest(prompts=("red",)), SamplingOptions(steps=2), output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")


def test_a_picture_is_varied_by_its_embedding(library, models, picture, tmp_path):
    tab, model = SampleTab(), library.open("image")
    updates = tab.updates(model)
    hidden = ("prompt", "class_name", "negative_prompt", "noise_level")
    assert updates["image"]["visible"]
    assert not any(updates[name]["visible"] for name in hidden)
    run(tab, model, tmp_path / "page", image=str(picture), prompt="left over", count=2, steps=2)
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    request = GenerationRequest(image=picture, count=2)
    generate_to_folder(models["image"], request, SamplingOptions(steps=2), output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    with pytest.raises(UserError, match="expected a picture: this model makes variations of it"):
        run(tab, model, tmp_path / "none", count=1)


@pytest.mark.parametrize(("name", "prompts"), [("unclip", ("dog",)), ("unclip_plain", ())])
def test_a_prior_over_embeddings_samples_from_its_own_prompts(library, models, tmp_path, name, prompts):
    tab, model = SampleTab(), library.open(name)
    updates = tab.updates(model)
    assert updates["class_name"]["visible"] == bool(prompts)
    assert not any(updates[field]["visible"] for field in ("image", "prompt", "negative_prompt"))
    run(tab, model, tmp_path / "page", class_name="dog", count=2, steps=2)
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    request = GenerationRequest(prompts=prompts, count=2)
    generate_to_folder(models[name], request, SamplingOptions(steps=2), output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")


def test_options_of_a_prior_are_those_of_the_flags(library, models, tmp_path):
    tab, model = SampleTab(), library.open("unclip")
    updates, own = tab.updates(model), model.pipeline.saved.of_prior(None, None, 1000, True)
    assert (updates["prior_steps"]["value"], updates["prior_guidance_scale"]["value"]) == own
    assert updates["prior_steps"]["visible"]
    assert updates["prior_guidance_scale"]["visible"]
    assert not tab.updates(library.open("unclip_plain"))["prior_guidance_scale"]["visible"], "nothing to guide to"
    assert not tab.updates(library.open("text"))["prior_steps"]["visible"]
    given = {"prior_steps": 3, "prior_guidance_scale": 2.5}
    run(tab, library.open("unclip"), tmp_path / "page", class_name="dog", count=1, steps=2, **given)
    output, request = OutputOptions(out=tmp_path / "command", device="cpu"), GenerationRequest(prompts=("dog",))
    generate_to_folder(models["unclip"], request, SamplingOptions(steps=2, **given), output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    with pytest.raises(UserError, match="steps of the prior"):
        run(tab, library.open("unclip"), tmp_path / "many", class_name="dog", count=1, prior_steps=5000)


def test_height_and_width_are_those_of_the_flags(library, models, tmp_path):
    tab, model = SampleTab(), library.open("text")
    updates = tab.updates(model)
    for name in ("height", "width"):
        assert updates[name] == {"visible": True, "value": 16, "minimum": 2, "maximum": 64, "step": 2}
    run(tab, model, tmp_path / "page", prompt="red", count=1, steps=2, height=24, width=16)
    output, request = OutputOptions(out=tmp_path / "command", device="cpu"), GenerationRequest(prompts=("red",))
    generate_to_folder(models["text"], request, SamplingOptions(steps=2, height=24), output=output)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    with pytest.raises(UserError, match="width is 17, but this model's U-Net reduces by 2"):
        run(tab, model, tmp_path / "odd", prompt="red", count=1, width=17)
    with pytest.raises(UserError, match="height is 4096; expected"):
        run(tab, model, tmp_path / "large", prompt="red", count=1, height=4096)


@pytest.mark.parametrize(("name", "given"), [("image", "the embedding of an image"), ("sizes", "sizes of pictures")])
def test_models_that_edit_py_refuses_at_once(models, picture, tmp_path, name, given):
    with pytest.raises(UserError, match=f"is conditioned on {given}, which only sample.py gives it; expected another"):
        img2img_picture(context(models[name], tmp_path / "out"), Img2ImgOptions(image=picture, prompt="a red square"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"prompt": "  \n"}, "the prompt is empty; expected what the picture shows"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, f"expected {MAX_PROMPT} or fewer"),
        ({"negative_prompt": "x" * (MAX_PROMPT + 1)}, f"expected {MAX_PROMPT} or fewer"),
        ({"count": 0}, f"count is 0; expected 1 to {MAX_PICTURES}"),
        ({"count": MAX_PICTURES + 1}, f"expected 1 to {MAX_PICTURES}"),
        ({"prompt": "red\nblue", "count": MAX_PICTURES}, f"prompts times count, is {2 * MAX_PICTURES}"),
        ({"seed": "abc"}, "the seed is 'abc'; expected a whole number"),
        ({"seed": "1.5"}, "expected a whole number"),
        ({"seed": "-1"}, "the seed is -1; expected 0 to"),
        ({"seed": str(2**64 - 1), "count": 2}, "expected 0 to 2^64"),
        ({"steps": 1001}, "steps is 1001; expected 1 to 1000"),
        ({"steps": 101}, "--steps 101"),
        ({"solver": "euler-x"}, "solver"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"interval_low": 0.9, "interval_high": 0.2}, "expected two shares of time"),
        ({"guidance_scale": 1.0, "negative_prompt": "a blue dot"}, "negative_prompt has no effect"),
    ],
)
def test_a_wrong_field_is_named(library, tmp_path, given, expected):
    with pytest.raises(UserError) as error:
        run(SampleTab(), library.open("text"), tmp_path / "out", **({"prompt": "red", "count": 1} | given))
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_prior_samples_as_the_command_does(library, models, tmp_path):
    tab, model = PriorTab(), library.open("prior")
    updates = tab.updates(model)
    assert updates["class_name"]["choices"] == ["cat", "dog"]
    assert not updates["prompt"]["visible"]
    given = {"count": 2, "steps": 3, "decode_steps": 2}
    run(tab, model, tmp_path / "page", class_name="dog", seed="4", guidance_scale=1.5, **given)
    options = SamplePriorOptions(prompt="dog", seed=4, guidance_scale=1.5, **given)
    sample_prior(context(models["prior"], tmp_path / "command"), options)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    with pytest.raises(UserError, match="decode steps is 2000; expected 1 to 1000"):
        run(tab, model, tmp_path / "out", **given | {"decode_steps": 2000})


QUICK = {"steps": 2, "invert_steps": 3}


def test_sliders_edit_as_the_command_does(library, models, picture, tmp_path):
    model, tab = library.open("diffae"), EditTab()
    given = {"attributes": ["hat", "glasses"], "assigned": ["glasses", "hat"], "strength_1": 0.3, "strength_2": -0.2}
    run(tab, model, tmp_path / "page", image=str(picture), **given, **QUICK)
    options = ChangeOptions(image=picture, attribute=("hat", "glasses"), strength=(-0.2, 0.3), **QUICK)
    change_attributes(context(models["diffae"], tmp_path / "command"), options)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    summary = tab.summary(values_of(tab, model, **given))
    assert (summary["hat"], summary["glasses"]) == (-0.2, 0.3)


def test_a_strip_has_one_picture_for_each_strength(library, models, picture, tmp_path):
    given = {"attributes": ["hat"], "assigned": ["hat"], "strip": True}
    run(EditTab(), library.open("diffae"), tmp_path / "page", image=str(picture), **given, **QUICK)
    text = ",".join(map(str, STRIP))
    change_attributes(
        context(models["diffae"], tmp_path / "command"),
        ChangeOptions(image=picture, attribute=("hat",), strip=text, **QUICK),
    )
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    assert len(contents(tmp_path / "page")) == len(STRIP) + 2


def test_sliders_keep_their_attribute_when_another_is_removed(library):
    model, tab = library.open("diffae"), EditTab()
    one = tab.slots(values_of(tab, model, attributes=["glasses", "hat", "beard"]), model)
    assert [one[f"strength_{i}"]["value"] for i in (1, 2, 3)] == [0.3, -0.2, 0.05], "the typical ones"
    assert [one[f"strength_{i}"]["visible"] for i in (1, 2, 3, 4)] == [True, True, True, False]
    moved = {"assigned": ["glasses", "hat", "beard"], "strength_1": 0.3, "strength_2": 0.7, "strength_3": 0.05}
    two = tab.slots(values_of(tab, model, attributes=["hat", "beard"], **moved), model)
    assert [(two[f"strength_{i}"]["label"], two[f"strength_{i}"]["value"]) for i in (1, 2)] == [
        ("hat", 0.7),
        ("beard", 0.05),
    ]
    assert two["assigned"]["value"] == ["hat", "beard"]
    assert not two["strength_3"]["visible"]


def test_a_tab_is_live_where_there_is_something_to_edit(library, picture):
    model, tab = library.open("diffae"), EditTab()
    given = {"image": str(picture), "attributes": ["hat"], "assigned": ["hat"], "strength_1": 0.2}
    assert tab.is_live(values_of(tab, model, **given))
    for missing in ({"image": None}, {"attributes": []}, {"strength_1": 0}, {"live": False}):
        assert not tab.is_live(values_of(tab, model, **(given | missing)))
    assert tab.is_live(values_of(tab, model, **(given | {"strength_1": 0, "strip": True})))


def test_a_picture_is_inverted_once(library, models, picture, other, tmp_path, monkeypatch):
    model = library.open("diffae")
    inversions = []
    up = model.semantic.decoder.up
    monkeypatch.setattr(model.semantic.decoder, "up", lambda *given: inversions.append(given) or up(*given))
    hat = {"attributes": ["hat"], "assigned": ["hat"]}
    steps = {"steps": 2, "invert_steps": 4}
    run(EditTab(), model, tmp_path / "1", image=str(picture), strength_1=0.2, **hat, **steps)
    run(EditTab(), model, tmp_path / "2", image=str(picture), strength_1=-0.4, **hat, **steps)
    assert len(inversions) == 1
    run(EditTab(), model, tmp_path / "3", image=str(other), strength_1=-0.4, **hat, **steps)
    assert len(inversions) == 2
    run(EditTab(), model, tmp_path / "4", image=str(other), strength_1=-0.4, **hat, **steps | {"invert_steps": 5})
    assert len(inversions) == 3
    options = ChangeOptions(image=picture, attribute=("hat",), strength=(-0.4,), **steps)
    change_attributes(context(models["diffae"], tmp_path / "command"), options)
    assert contents(tmp_path / "2") == contents(tmp_path / "command")


def test_interpolation_and_mixing_are_the_commands(library, models, picture, other, tmp_path):
    model, folder = library.open("diffae"), models["diffae"]
    run(InterpolateTab(), model, tmp_path / "page", first=str(picture), last=str(other), count=3, **QUICK)
    options = InterpolationOptions(image=(picture, other), count=3, **QUICK)
    interpolate_pictures(context(folder, tmp_path / "command"), options)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")
    run(MixTab(), model, tmp_path / "mixed", content=str(picture), details=str(other), **QUICK)
    mix_pictures(context(folder, tmp_path / "mix"), MixOptions(content=picture, details=other, **QUICK))
    assert contents(tmp_path / "mixed") == contents(tmp_path / "mix")


@pytest.mark.parametrize(
    ("tab", "given", "expected"),
    [
        (EditTab(), {"attributes": ["hat"]}, "expected a picture to edit"),
        (EditTab(), {"image": "PICTURE"}, "no attribute is chosen"),
        (EditTab(), {"image": "PICTURE", "attributes": ["hat"]}, "every slider is at 0"),
        (EditTab(), {"image": "PICTURE", "attributes": ["hat"] * 7}, "7 attributes are chosen; expected 6 or fewer"),
        (EditTab(), {"image": "PICTURE", "attributes": ["hut"], "strip": True}, "unknown attribute 'hut'"),
        (EditTab(), {"image": "PICTURE", "attributes": ["hat"], "strip": True, "steps": 0}, "decoding steps is 0"),
        (InterpolateTab(), {"first": "PICTURE"}, "expected the last picture"),
        (InterpolateTab(), {"first": "PICTURE", "last": "PICTURE", "count": 99}, "count is 99; expected 2 to 24"),
        (MixTab(), {"details": "PICTURE"}, "expected the picture whose content is taken"),
    ],
)
def test_a_wrong_field_of_an_edit_is_named(library, picture, tmp_path, tab, given, expected):
    named = {name: str(picture) if value == "PICTURE" else value for name, value in given.items()}
    with pytest.raises(UserError) as error:
        run(tab, library.open("diffae"), tmp_path / "out", **named)
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def editor(folder: Path, picture: Path, box: tuple[int, int, int, int] | None) -> dict[str, Any]:
    """What the brush sends: the picture, and a layer that is opaque in a box, whose edge is faint."""
    with Image.open(picture) as image:
        layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    if box is not None:
        layer.paste((99, 102, 241, 10), (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))
        layer.paste((99, 102, 241, 255), box)
    layer.save(folder / "layer.png")
    return {"background": str(picture), "layers": [str(folder / "layer.png")], "composite": str(picture)}


def mask(folder: Path, size: int, box: tuple[int, int, int, int]) -> Path:
    image = Image.new("L", (size, size))
    image.paste(255, box)
    image.save(folder / "mask.png")
    return folder / "mask.png"


def test_the_brush_inpaints_with_a_text_model(library, models, picture, tmp_path):
    box = (6, 6, 15, 12)
    given = {"prompt": "a red square", "count": 2, "seed": "5", "steps": 3, "resample": 2}
    run(InpaintTab(), library.open("text"), tmp_path / "page", editor=editor(tmp_path, picture, box), **given)
    with Image.open(picture) as image:
        image.reduce(12).save(tmp_path / "small.png")  # its pixels are squares of 12 x 12
    options = InpaintOptions(image=tmp_path / "small.png", mask=mask(tmp_path, 24, box), **given | {"seed": 5})
    inpaint_picture(context(models["text"], tmp_path / "command"), options)
    assert contents(tmp_path / "page") == contents(tmp_path / "command")


def test_the_brush_inpaints_with_an_inpainting_model(library, models, other, tmp_path):
    box = (4, 4, 9, 12)
    given = {"count": 2, "seed": "5", "steps": 3}
    run(InpaintTab(), library.open("inpaint"), tmp_path / "page", editor=editor(tmp_path, other, box), **given)
    request = GenerationRequest(image=other, mask=mask(tmp_path, 16, box), count=2, seed=5)
    output = OutputOptions(out=tmp_path / "command", device="cpu")
    generate_to_folder(models["inpaint"], request, SamplingOptions(steps=3), output=output)
    page, command = contents(tmp_path / "page"), contents(tmp_path / "command")
    assert {name: pixels for name, (pixels, _) in page.items()} == {n: pixels for n, (pixels, _) in command.items()}
    first = np.frombuffer(next(iter(page.values()))[0], np.uint8).reshape(16, 16, 3)
    with Image.open(other) as image:
        changed = (first != np.asarray(image)).any(-1)
    assert changed[4:12, 4:9].any()
    assert not np.delete(changed, range(4, 12), 0).any()


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (7, 9)])
def test_an_enlarged_picture_is_reduced_exactly(tmp_path, size):
    draw = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(draw).save(tmp_path / "small.png")
    shown = squared({"background": str(tmp_path / "small.png"), "layers": []})["background"]
    assert shown.width == shown.height > CANVAS // 2
    shown.save(tmp_path / "shown.png")
    side, left, top = min(size), (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    with Image.open(reduced(tmp_path / "shown.png", tmp_path / "out.png")) as image:
        assert np.array_equal(np.asarray(image), draw[top : top + side, left : left + side])
    assert reduced(tmp_path / "small.png", tmp_path / "same.png") == tmp_path / "small.png"


def test_an_editor_without_a_picture_stays_as_it_is(tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    for value in (None, {"background": None}, {"background": str(tmp_path / "no.png")}):
        assert "background" not in squared(value)


@pytest.mark.parametrize("box", [None, (0, 0, 24, 24)])
def test_an_empty_or_a_full_mask_is_refused(library, picture, tmp_path, box):
    with pytest.raises(UserError, match="nothing is painted" if box is None else "white all over"):
        run(InpaintTab(), library.open("text"), tmp_path / "out", editor=editor(tmp_path, picture, box), prompt="red")


def test_inpainting_needs_a_picture(library, tmp_path):
    with pytest.raises(UserError, match="expected a picture to inpaint"):
        run(InpaintTab(), library.open("text"), tmp_path / "out", editor=None, prompt="red")


def test_reprompting_and_variations_are_the_commands(library, models, picture, tmp_path):
    model, folder = library.open("text"), models["text"]
    given = {"source": "a red square", "prompt": "a blue dot", "strength": 0.7, "refine": 1, "steps": 5}
    note = run(RepromptTab(), model, tmp_path / "page", image=str(picture), guidance_scale=4.0, **given)
    options = RepromptOptions(image=picture, guidance_scale=4.0, **given)
    result, error = reprompt_picture(context(folder, tmp_path / "command"), options)
    assert contents(tmp_path / "page") == contents(result.sheet.parent)
    assert note == str(error)
    given = {"prompt": "a blue dot", "strength": 0.5, "count": 2}
    run(Img2ImgTab(), model, tmp_path / "varied", image=str(picture), seed="9", **given)
    img2img_picture(context(folder, tmp_path / "vary"), Img2ImgOptions(image=picture, seed=9, **given))
    assert contents(tmp_path / "varied") == contents(tmp_path / "vary")


@pytest.mark.parametrize(
    ("tab", "given", "expected"),
    [
        (RepromptTab(), {"prompt": "red"}, "the prompt of the picture is empty"),
        (RepromptTab(), {"source": "red"}, "the new prompt is empty"),
        (Img2ImgTab(), {}, "the prompt is empty"),
        (Img2ImgTab(), {"prompt": "red", "strength": 1.5}, "strength"),
        (Img2ImgTab(), {"prompt": "red", "image": None}, "expected a picture to vary"),
    ],
)
def test_a_wrong_field_of_reprompting_is_named(library, picture, tmp_path, tab, given, expected):
    with pytest.raises(UserError) as error:
        run(tab, library.open("text"), tmp_path / "out", **({"image": str(picture)} | given))
    assert expected in str(error.value)


def test_a_file_that_is_no_picture_or_too_large_is_refused(library, tmp_path, monkeypatch, picture):
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(UserError, match=r"no\.png"):
        run(Img2ImgTab(), library.open("text"), tmp_path / "out", image=str(tmp_path / "no.png"), prompt="red")
    monkeypatch.setattr("ldm_kit.app.tabs.fields.MAX_PIXELS", 24 * 24 - 1)
    with pytest.raises(UserError, match="pixels"):
        run(Img2ImgTab(), library.open("text"), tmp_path / "out", image=str(picture), prompt="red")
