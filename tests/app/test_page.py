"""The page without a browser: what it sends when a model is chosen, and when a result is restored."""

from typing import Any

import gradio as gr
import pytest

from ldm_kit.app.page import Page
from ldm_kit.app.panel import columns_for
from ldm_kit.app.results import Result, Workspace
from ldm_kit.app.server import in_event_loop
from tests.app.test_server import result

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


@pytest.fixture
def page(library, tmp_path, monkeypatch) -> Page:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = Page(library, Workspace(tmp_path))
    in_event_loop(page.build)
    return page


def sent(page: Page, updates: list[Any]) -> dict[str, dict[str, Any]]:
    """Updates by the id of the element that they are for."""
    outputs = page._chosen_outputs
    assert len(updates) == len(outputs)
    return {
        output.elem_id: new
        for output, new in zip(outputs, updates, strict=True)
        if isinstance(new, dict) and new != gr.skip()
    }


@pytest.mark.parametrize("name", ["text", "pixels", "inpaint", "diffae", "prior"])
def test_every_field_of_a_shown_tab_is_updated(page, library, name):
    new = sent(page, page._choose(name))
    model = library.open(name)
    for panel in page._panels:
        if panel.tab.available(model):
            fields = panel.tab.updates(model)
            assert {panel.fields[each].elem_id: fields[each] for each in fields}.items() <= {
                identity: {key: value for key, value in update.items() if key != "__type__"}
                for identity, update in new.items()
            }.items()
        else:
            assert not {field.elem_id for field in panel.fields.values()} & new.keys()


def test_a_restored_edit_has_its_sliders_back(page):
    values = {"attributes": ["hat", "beard"], "assigned": ["hat", "beard"], "strength_1": 0.7, "strength_2": 0.0}
    values |= {"image": None, "live": True, "strip": False, "steps": 3, "invert_steps": 4}
    made = Result("Edit", "diffae", page.workspace.new_folder(), values, key="edit")
    new = sent(page, page._updates("diffae", made))
    assert (new["edit-strength-1"]["label"], new["edit-strength-1"]["value"]) == ("hat", 0.7)
    assert (new["edit-strength-2"]["label"], new["edit-strength-2"]["value"]) == ("beard", 0.0), "not the typical one"
    assert [new[f"edit-strength-{i}"]["visible"] for i in (1, 2, 3)] == [True, True, False]
    assert (new["edit-steps"]["value"], new["edit-invert-steps"]["value"]) == (3, 4)
    assert new["edit-attributes"]["choices"] == ["glasses", "hat", "beard"]
    assert new["edit-attributes"]["value"] == ["hat", "beard"]
    assert not new["edit-assigned"]["visible"]


def test_a_result_that_is_gone_is_a_sentence(page):
    with pytest.raises(gr.Error, match="no longer in the history"):
        page._restored([], "abc")


def test_a_restored_result_is_shown_in_its_tab(page):
    each = result(page.workspace, 3, prompt="red")
    other = result(page.workspace, prompt="blue")
    made = [Result("Sample", "text", one.folder, {**one.values}, key="sample") for one in (other, each)]
    updates = page._restored(made, each.folder.name)
    assert len(updates) == len(page._restore_outputs)
    assert updates[0] == "text"
    new = dict(zip([getattr(output, "elem_id", None) for output in page._restore_outputs], updates, strict=True))
    assert new["sample-prompt"]["value"] == "red"
    assert new["tabs"].selected == "sample"
    assert len(new["sample-pictures"].value) == 3


def test_columns_fill_the_panel():
    assert [columns_for(count) for count in (1, 2, 3, 4, 8, 9, 18, 19, 64)] == [2, 2, 3, 4, 4, 6, 6, 8, 8]
