"""The built wheel, without the repository: its configs, and training, sampling and export by `ldm-kit`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def ldm_kit(site, tmp_path_factory):
    """Run `ldm-kit` as installed from the wheel, in an empty folder; its other packages are this interpreter's."""
    empty = tmp_path_factory.mktemp("empty")
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "ldm_kit", *arguments]
        return subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    run.folder = empty  # type: ignore[attr-defined]
    return run


def test_it_holds_every_config_and_nothing_of_tests_or_benchmarks(site):
    packed = {path.relative_to(site / "ldm_kit/configs") for path in (site / "ldm_kit/configs").rglob("*.yaml")}
    assert packed == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"ldm_kit", "autoencoder", "conditioning"}
    assert all((site / name / "py.typed").exists() for name in top)
    (scripts,) = site.glob("*.dist-info/entry_points.txt")
    assert "ldm-kit = ldm_kit.cli:main" in scripts.read_text()


def test_it_trains_and_samples_without_the_repository(ldm_kit):
    trained = ldm_kit("train-ldm", "pixels/tiny", "run=run", "train.steps=1", "log.evaluate_every=1", "log.pictures=1")
    assert trained.returncode == 0, trained.stderr
    assert (ldm_kit.folder / "run/model/model_index.json").is_file()
    sampled = ldm_kit("sample", "run", "3", "--out", "pictures", "--steps", "2")
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((ldm_kit.folder / "pictures").glob("*.png"))) == 2, "the picture and the sheet"


def test_it_lists_and_copies_its_configs(ldm_kit):
    listed = ldm_kit("configs").stdout
    assert "faces/ldm_minilm" in listed
    assert "benchmarks/" not in listed
    assert ldm_kit("configs", "pixels/tiny", "--out", "mine/config.yaml").returncode == 0
    copied = (ldm_kit.folder / "mine/config.yaml").read_bytes()
    assert copied == (ROOT / "configs/pixels/tiny.yaml").read_bytes()
