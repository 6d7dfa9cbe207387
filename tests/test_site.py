"""The site: links that lead to pages from where they are shown, and a strict build."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path, monkeypatch) -> ModuleType:
    """The program that builds the site, in a folder of its own."""
    spec = spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STAGE", tmp_path)
    monkeypatch.setattr(module, "PAGES", tmp_path / "docs")
    return module


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/training.md#start-from-weights", "training.md#start-from-weights"),
        ("README.md", "docs/demo.png", "demo.png"),
        ("README.md", "NOTICE", "NOTICE.md"),
        ("docs/methods.md", "../configs/faces/ae_kl.yaml", "configs/faces/ae_kl.yaml.md"),
        ("docs/results/few-steps.md", "../training.md", "../training.md"),
        ("docs/concepts/schedule.md", "../../ldm_kit/diffusion/schedule.py", "../ldm_kit/diffusion/schedule.py.md"),
        ("docs/methods.md", "https://arxiv.org/abs/2010.02502", "https://arxiv.org/abs/2010.02502"),
        ("docs/methods.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_lead_to_pages(site, source, link, expected):
    text, _ = site.linked(f"see [it]({link}).", Path(source))
    assert text == f"see [it]({expected})."


def test_the_site_builds_and_every_page_of_docs_is_in_its_navigation(site):
    assert site.build() == 0
    built = site.STAGE / "site"
    for page in (ROOT / "docs").rglob("*.md"):
        folder = page.relative_to(ROOT / "docs").with_suffix("")
        assert (built / folder / "index.html").is_file(), folder
        assert f'"{folder.as_posix()}.md"' in (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"), folder
    first = (built / "index.html").read_text(encoding="utf-8")
    assert 'src="demo.png"' in first
    assert (built / "demo.png").is_file()
    assert "fonts.googleapis" not in first, "nothing is loaded from other hosts"
    assert "optim" in (built / "configs" / "faces" / "ldm_minilm.yaml" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", ["nowhere.md", "training.md#no-such-section"])
def test_a_broken_link_is_an_error(site, link, monkeypatch):
    whole = site.stage

    def stage() -> None:
        whole()
        page = site.PAGES / "questions.md"
        page.write_text(f"{page.read_text(encoding='utf-8')}\n[broken]({link})\n", encoding="utf-8")

    monkeypatch.setattr(site, "stage", stage)
    assert site.build() != 0
