"""The page in a real browser: headless Chromium clicks it, and no request leaves this machine."""

import re
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.app.server import running_page
from tests.app.conftest import OPTIONS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.filterwarnings("ignore:unclosed file .*ldm_kit-app-:ResourceWarning"),  # gradio's, of an upload
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets"),
]
PATIENCE = 120_000  # milliseconds that an element may take to appear on a busy machine


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    with running_page([models["text"], models["diffae"], models["inpaint"]], OPTIONS) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address) -> Iterator[object]:
    """A fresh page, in which every request and every error of a script is noted."""
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(PATIENCE)
    hosts, errors = set(), []
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", request.url)))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#sample-run")
    yield page
    assert {host for host in hosts if host.startswith("http")} == {address.rstrip("/")}
    assert not errors
    page.close()


def tab(page, title: str) -> None:
    page.get_by_role("tab", name=title, exact=True).click()


def fill(page, identity: str, value: object) -> None:
    """Type into a field and leave it."""
    field = page.locator(f"#{identity}").locator("textarea, input[type=text], input[type=number]").first
    field.fill(str(value))
    field.blur()


def value(page, identity: str) -> str:
    return page.locator(f"#{identity}").locator("textarea, input[type=text], input[type=number]").first.input_value()


def choose_model(page, name: str, waits_for: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.wait_for_selector(f"#{waits_for}", state="visible")


def pictures(page, key: str, count: int) -> list[str]:
    """Addresses of a tab's pictures, once there are `count`."""
    images = page.locator(f"#{key}-pictures .thumbnail-item img")
    playwright.expect(images).to_have_count(count, timeout=PATIENCE)
    return [images.nth(i).get_attribute("src") for i in range(count)]


def fetched(address: str, path: Path) -> Path:
    with urllib.request.urlopen(address, timeout=30) as answer:
        path.write_bytes(answer.read())
    return path


def sentence(page) -> str:
    toast = page.locator(".toast-body").last
    toast.wait_for()
    return toast.inner_text().splitlines()[-1]  # after the title and the button that closes it


def test_sampling_history_and_restored_settings(page, tmp_path):
    fill(page, "sample-prompt", "a red square")
    fill(page, "sample-count", 2)
    fill(page, "sample-seed", "18446744073709551000")
    page.click("#sample-run")
    shown = pictures(page, "sample", 2)
    with Image.open(fetched(shown[1], tmp_path / "one.png")) as image:
        assert image.format == "PNG"
        assert (image.info["prompt"], image.info["seed"]) == ("a red square", "18446744073709551001")
        assert '"eta": 0.5' in image.info["settings"]
    with page.expect_download() as download:
        page.click("#sample-download")
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert len(archive.namelist()) == 3

    fill(page, "sample-prompt", "a blue dot")
    fill(page, "sample-count", 3)
    page.click("#sample-run")
    pictures(page, "sample", 3)
    history = page.locator("#history .thumbnail-item")
    playwright.expect(history).to_have_count(2)
    history.nth(1).click()
    playwright.expect(page.locator("#detail")).to_contain_text("a red square")
    page.click("#restore")
    pictures(page, "sample", 2)
    assert value(page, "sample-prompt") == "a red square"
    assert (value(page, "sample-count"), value(page, "sample-seed")) == ("2", "18446744073709551000")


def test_a_wrong_value_is_a_sentence_and_the_pictures_stay(page):
    fill(page, "sample-prompt", "a red square")
    page.click("#sample-run")
    pictures(page, "sample", 4)
    fill(page, "sample-seed", "abc")
    page.click("#sample-run")
    assert sentence(page) == "The seed is 'abc'; expected a whole number."
    page.wait_for_selector("#sample-run", state="visible")
    assert page.locator("#sample-pictures .thumbnail-item img").first.is_visible()
    page.locator("#sample-seed").get_by_role("button", name="Random").click()
    playwright.expect(page.locator("#sample-seed textarea, #sample-seed input")).not_to_have_value("abc")
    assert value(page, "sample-seed").isdecimal()


def test_stop_ends_a_long_request(page):
    fill(page, "sample-prompt", "a red square")
    fill(page, "sample-count", 64)
    fill(page, "sample-steps", 100)
    page.click("#sample-run")
    page.get_by_text(re.compile(r"\d+/200")).first.wait_for()
    page.click("#sample-stop")
    assert "no picture was written" in sentence(page)
    page.wait_for_selector("#sample-run", state="visible")
    assert page.locator("#sample-pictures .thumbnail-item").count() == 0


def test_sliders_edit_an_uploaded_picture(page, picture, tmp_path):
    choose_model(page, "diffae", "edit-run")
    assert not page.get_by_role("tab", name="Sample", exact=True).is_visible()
    page.set_input_files("#edit-image input[type=file]", str(picture))
    page.wait_for_selector("#edit-image img")
    page.locator("#edit-more button").first.click()
    fill(page, "edit-steps", 2)
    fill(page, "edit-invert-steps", 3)
    page.locator("#edit-attributes input").click()
    page.get_by_role("option", name="glasses", exact=True).click()
    page.wait_for_selector("#edit-strength-1", state="visible")
    playwright.expect(page.locator("#edit-strength-1")).to_contain_text("glasses")
    live = pictures(page, "edit", 3)
    fill(page, "edit-strength-1", -0.4)
    page.locator("#edit-strength-1 input[type=range]").press("ArrowRight")
    playwright.expect(page.locator("#edit-pictures .thumbnail-item img").nth(2)).not_to_have_attribute("src", live[2])
    page.locator("#edit-strip input").check()
    strip = pictures(page, "edit", 8)
    with Image.open(fetched(strip[1], tmp_path / "strip.png")) as image:
        assert image.info["picture"] == "glasses -0.6"


def test_the_brush_inpaints(page, picture, tmp_path):
    choose_model(page, "inpaint", "inpaint-run")
    page.click("#inpaint-run")
    assert sentence(page) == "Expected a picture to inpaint."
    page.set_input_files("#inpaint-editor input[type=file]", str(picture))
    canvas = page.locator("#inpaint-editor canvas").first
    page.wait_for_timeout(1500)  # the editor draws the picture
    page.click("#inpaint-run")
    playwright.expect(page.locator(".toast-body").last).to_contain_text("painted", timeout=PATIENCE)
    page.locator("#inpaint-editor button[aria-label=Brush]").click()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.45)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.56, box["y"] + box["height"] * 0.55, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    fill(page, "inpaint-count", 1)
    fill(page, "inpaint-steps", 2)
    page.click("#inpaint-run")
    (shown,) = pictures(page, "inpaint", 1)
    with Image.open(fetched(shown, tmp_path / "inpainted.png")) as image:
        assert image.size == (16, 16)
        assert image.getpixel((0, 0)) == (200, 40, 40), "outside of the stroke"
