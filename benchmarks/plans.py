"""What `ldm-kit new` promises and what `ldm-kit train` keeps: minutes and PSNR on folders of pictures.

`python -m benchmarks.plans --minutes 6` makes the folders, plans and trains each, prints a table, and fits the numbers
of `ldm_kit.planning.expected.MEASURED`; finished trainings are kept in --out. `--only NAME` does one.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from ldm_kit.data import sources
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.planning.expected import PsnrModel, pca_psnr

PHOTOGRAPHS = (
    "astronaut.png chelsea.png coffee.png rocket.jpg hubble_deep_field.jpg retina.jpg ihc.png motorcycle_left.png"
)
CROP = 96  # pixels along each side of a crop of a photograph


def pictures_of(split: Split) -> Iterator[tuple[Image.Image, str, str]]:
    """Yield each picture of a data set with its caption and its class name."""
    for part in (split.train, split.heldout):
        for row, record in enumerate(part.records):
            pixels = part.picture(row).permute(1, 2, 0).squeeze(-1).numpy()
            yield Image.fromarray(pixels), record.text, _class(part, record.label)


def _class(part: PictureSet, label: int | None) -> str:
    return "" if label is None else part.classes[label]


def photographs() -> Iterator[tuple[Image.Image, str, str]]:
    """Yield crops of the sample photographs of scikit-learn and, where it is installed, scikit-image."""
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    spec = find_spec("skimage")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) / "data" if spec else None
    images += [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS.split()] if folder else []
    for image in images:
        for top in range(0, image.height - CROP + 1, CROP):
            for left in range(0, image.width - CROP + 1, CROP):
                yield image.crop((left, top, left + CROP, top + CROP)), "", ""


@dataclass(frozen=True)
class Case:
    """A folder of pictures to make: its pictures, what names them, and how many at most."""

    pictures: Callable[[], Iterator[tuple[Image.Image, str, str]]]
    named: str = "neither"  # captions, classes or neither
    most: int = 10**9


def _faces() -> Iterator[tuple[Image.Image, str, str]]:
    return pictures_of(sources.load(FacesConfig(resolution=64)))


def _shapes(count: int) -> Callable[[], Iterator[tuple[Image.Image, str, str]]]:
    return lambda: pictures_of(sources.load(ShapesConfig(resolution=64, count=count)))


CASES = {
    "faces": Case(_faces, "captions"),
    "openmoji": Case(lambda: pictures_of(sources.load(OpenMojiConfig(resolution=64))), "captions"),
    "digits": Case(lambda: pictures_of(sources.load(DigitsConfig())), "classes"),
    "photographs": Case(photographs),
    "faces-50": Case(_faces, "neither", 50),
    "shapes-5000": Case(_shapes(5200), "neither", 5000),
    "shapes-captions": Case(_shapes(1000), "captions"),
    "openmoji-classes": Case(lambda: pictures_of(sources.load(OpenMojiConfig(resolution=64))), "classes", 1500),
}


def make_folder(case: Case, folder: Path) -> None:
    """Write the pictures of a case as a user would have them, unless the folder is there."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    lines: list[str] = []
    for number, (image, text, label) in zip(range(case.most), case.pictures(), strict=False):
        name = f"{number:05d}.png"
        place = folder / label if case.named == "classes" else folder
        place.mkdir(exist_ok=True)
        image.save(place / name)
        lines.append(json.dumps({"file_name": name, "text": text}))
    if case.named == "captions":
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def run_case(name: str, out: Path, minutes: float) -> dict[str, Any]:
    """Plan and train a case, unless that was done; return its row."""
    folder, plan = out / "pictures" / name, out / "plans" / name
    make_folder(CASES[name], folder)
    if not (plan / "plan.json").exists():
        _call("new", str(folder), "--minutes", str(minutes), "--out", str(plan))
    if not (plan / "result.json").exists():
        _call("train", str(plan))
    planned, result = (json.loads((plan / file).read_text()) for file in ("plan.json", "result.json"))
    row = {"name": name, "planned": sum(planned["seconds"]), "taken": sum(result["seconds"]), "psnr": result["psnr"]}
    if result["psnr"] is None:
        return row
    config = sources_config(plan / "ae.yaml")
    data = sources.load(FolderConfig(**config["data"]))
    seen = config["train"]["steps"] * config["train"]["batch_size"]
    return {**row, "components": pca_psnr(data.train), "seen": seen, "expected": planned["psnr"]}


def sources_config(path: Path) -> dict[str, Any]:
    """Return a config as nested dicts."""
    from ldm_kit.config import tree

    return tree(path)


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ldm_kit", *arguments], check=True)


LONGER = (  # longer trainings of the same recipe: data, pictures seen, dB
    (FacesConfig(resolution=64), 8000, 36.0),  # configs/faces/ae_kl.yaml before it had 8 latent channels; plans have 4
    (OpenMojiConfig(resolution=32), 9600, 25.04),  # configs/openmoji/ae_quick.yaml, by its header
)


def fit(rows: list[dict[str, Any]]) -> tuple[PsnrModel, list[float]]:
    """Return the fit of PSNR to all trainings, and for each row what a fit without it expects, in dB."""
    measured = [(row["components"], row["seen"], row["psnr"]) for row in rows]
    longer = [(pca_psnr(sources.load(data).train), seen, psnr) for data, seen, psnr in LONGER]
    points = np.array([*measured, *longer])
    left_out: list[float] = []
    for row, (components, seen, _) in enumerate(points):
        left_out.append(PsnrModel(*_weights(np.delete(points, row, 0)), 0.0).psnr(components, seen))
    error = max(abs(expected - psnr) for expected, psnr in zip(left_out, points[:, 2], strict=True))
    return PsnrModel(*_weights(points), round(float(error), 1)), left_out[: len(rows)]


def _weights(points: np.ndarray[Any, Any]) -> list[float]:
    from scipy.optimize import least_squares

    def errors(weights: np.ndarray[Any, Any]) -> list[float]:
        model = PsnrModel(*weights, 0.0)
        return [model.psnr(components, seen) - psnr for components, seen, psnr in points]

    bounds = ([20, 0.3, 25, 2], [45, 1.2, 45, 6])
    found = least_squares(errors, [28, 0.6, 36, 4], bounds=bounds, loss="soft_l1").x
    return [round(float(weight), 2) for weight in found]


def main(
    out: Annotated[Path, typer.Option(help="folder of pictures, plans and runs")] = Path("runs/benchmarks/plans"),
    minutes: Annotated[float, typer.Option(help="minutes of each plan")] = 6.0,
    only: Annotated[list[str] | None, typer.Option(help="a case's name; may be given again")] = None,
) -> None:
    """Print planned and taken minutes and expected and reached PSNR of each folder."""
    rows = [run_case(name, out, minutes) for name in only or CASES]
    staged = [row for row in rows if row["psnr"] is not None]
    model, left_out = fit(staged)
    expected = dict(zip((row["name"] for row in staged), left_out, strict=True))
    print(
        "| folder | planned, min | taken, min | ratio | expected, dB | reached, dB | pictures seen |\n|" + " --- |" * 7
    )
    for row in rows:
        times = f"{row['planned'] / 60:.1f} | {row['taken'] / 60:.1f} | {row['taken'] / row['planned']:.2f}"
        quality = f"{expected[row['name']]:.1f} | {row['psnr']:.1f} | {row['seen']}" if row in staged else "- | - | -"
        print(f"| {row['name']} | {times} | {quality} |")
    print(f"expected: by a fit without the folder. Fit to all: {model}")


if __name__ == "__main__":
    typer.run(main)
