"""Reference pictures of an evaluation: which data set and part, and their features, which are cached by content."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.batches import spread
from ldm_kit.data.buckets import square_split
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.factors import FactorSet, known_factors
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.images import PictureSet, Split, subset
from ldm_kit.data.joined import whole
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.records import names_of
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.splits import picture_roles
from ldm_kit.data.value_range import ValueRange, check_same_range
from ldm_kit.inference.requests import EvaluationRequest
from ldm_kit.methods import read_run
from ldm_kit.methods.export import is_checkpoint

BUILT_IN: dict[str, type] = {
    "faces": FacesConfig,
    "openmoji": OpenMojiConfig,
    "shapes": ShapesConfig,
    "digits": DigitsConfig,
}
LOOKED_AT = 256  # files of a reference folder whose size is read


@dataclass(frozen=True, eq=False)
class Reference:
    """The pictures to compare with.

    Attributes:
        name: the data set in words, for reports.
        split_name: "heldout", "train" or "all".
        split: the whole data set.
        pictures: those pictures of the named split that are compared with.
        data: config of the data set; None: the pictures came from a Python program.
        scaled: a sentence if it is a folder whose pictures have another size than those that are judged; else "".
    """

    name: str
    split_name: str
    split: Split
    pictures: PictureSet
    data: Any = None
    scaled: str = ""

    @property
    def factors(self) -> FactorSet | None:
        """The pictures as a set that knows its factors; None where it does not."""
        try:
            return None if self.data is None else known_factors(self.pictures)
        except UserError:
            return None


def open_reference(
    request: EvaluationRequest,
    run: Path | None,
    shape: tuple[int, int],
    data: Split | None,
    *,
    captions: bool,
    values: ValueRange | None = None,
) -> Reference:
    """Open the reference that a request names.

    Args:
        request: names the data set, its split, and how many pictures of it.
        run: folder of the run that is evaluated, whose data are the reference if the request names none; None: no run.
        shape: channels and side of the pictures that are judged.
        data: pictures that a Python program passed; None: none.
        captions: whether captions or classes of the reference are used.
        values: what the levels of the pictures that are judged stand for; None: they have 8 bits.

    Raises:
        UserError: there is no such data set, it has no picture in the split, or its pictures have another shape, or
            another range of values.
    """
    given = data is not None and request.reference is None
    config = None if given else _config(request.reference, run, shape, values)
    name = "given pictures" if config is None else _name(config)
    split = data if config is None else sources.load(config, captions=captions)
    assert split is not None
    split = square_split(split)
    split_name = request.split or ("all" if _is_bare(request.reference, config, split) else "heldout")
    pictures = whole(split) if split_name == "all" else getattr(split, split_name)
    if not len(pictures):
        raise UserError(f"the reference {name} has no picture in its split {split_name}; expected another --split")
    if (pictures.channels, pictures.resolution) != shape:
        raise UserError(
            f"the reference {name} has pictures of {pictures.resolution} px and {pictures.channels} channels, but "
            f"those that are judged have {shape[1]} px and {shape[0]} channels"
        )
    check_same_range("what is judged", values, pictures)
    if request.reference_count is not None and request.reference_count < len(pictures):
        pictures = subset(pictures, spread(len(pictures), request.reference_count))
    return Reference(name, split_name, split, pictures, config, _scaled(request.reference, config, pictures))


def _scaled(reference: str | None, config: Any, pictures: PictureSet) -> str:
    """Return a sentence if --reference is a folder some of whose files have another size than `pictures`; else ""."""
    if reference is None or not isinstance(config, FolderConfig) or Path(reference).expanduser() != config.path:
        return ""
    side = pictures.resolution
    for row in spread(len(pictures), min(LOOKED_AT, len(pictures))):
        name = pictures.records[row].name
        with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(config.path / name) as image:
            if image.size != (side, side):
                scaled = f"are scaled to {side} x {side} px, such as {name} of {image.size[0]} x {image.size[1]} px"
                return f"pictures of the reference {config.path} {scaled}: distances also measure the scaling"
    return ""


def same_data(path: Path, other: Path) -> bool:
    """Return whether two runs were trained on the same data, by their configs; True if neither belongs to a run."""
    runs = [run_of(path), run_of(other)]
    first, second = (None if run is None else read_run(run / "config.yaml").data for run in runs)
    return first == second


def run_of(path: Path) -> Path | None:
    """Return the run's folder to which a run, its model/ or one of its checkpoints belongs; None: there is none."""
    candidates = (path, *([path.parent] if path.name == "model" or is_checkpoint(path) else []))
    return next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)


def _is_bare(reference: str | None, config: Any, split: Split) -> bool:
    """Return whether --reference is a folder of pictures that names no splits, so that its split is by a hash."""
    if reference is None or not isinstance(config, FolderConfig) or Path(reference).expanduser() != config.path:
        return False
    names = [name for pictures in split[:2] if pictures is not None for name in names_of(pictures.records)]
    return config.layout != "auto" or picture_roles(names, config.path, "") is None


def _name(config: Any) -> str:
    path = getattr(config, "path", None)
    return config.source if path is None else f"{config.source} {path}"


def _config(text: str | None, run: Path | None, shape: tuple[int, int], values: ValueRange | None) -> Any:
    """Return the config of a data set; `text` is --reference, None: the data of the run."""
    if text is None:
        if run is None:
            raise UserError("what is evaluated belongs to no run, whose data would be the reference; give --reference")
        return read_run(run / "config.yaml").data
    if text in BUILT_IN:
        sized = "resolution" in BUILT_IN[text].model_fields
        return BUILT_IN[text](**({"resolution": shape[1]} if sized else {}))
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _of_yaml(path)
    if (path / "config.yaml").is_file():
        return _of_yaml(path / "config.yaml")
    if path.is_dir():
        pairs = None if values is None else values.pairs
        section = {"path": path, "resolution": shape[1], "channels": shape[0], "range": pairs}
        return FolderConfig.model_validate(section)
    raise UserError(
        f"--reference is {text!r:.80}; expected {', '.join(BUILT_IN)}, a folder of pictures, a run or a config"
    )


def _of_yaml(path: Path) -> Any:
    """Return the data config that a run's config has in its section `data`, or that a file is itself."""
    tree = configs.tree(path)
    if "source" not in tree:
        return read_run(path).data
    try:
        return TypeAdapter(sources.DataConfig).validate_python(tree)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"])) or "source"
        raise UserError(f"{path}: {key}: {fault['msg']}") from None


def prompts_of(reference: Reference, rows: Sequence[int], *, classes: bool) -> list[str]:
    """Return the caption, or the class name, of each of some of the reference's pictures.

    Raises:
        UserError: a picture has no class, or none has a caption.
    """
    records = [reference.pictures.records[i] for i in rows]
    if not classes:
        if not any(record.text for record in records):
            raise UserError(f"the reference {reference.name} has no captions, which the model is sampled with")
        return [record.text for record in records]
    if any(record.label is None for record in records):
        raise UserError(f"the reference {reference.name} has pictures without a class, but the model samples classes")
    return [reference.pictures.classes[record.label] for record in records if record.label is not None]


def cycled(total: int, count: int) -> list[int]:
    """Return `count` indices: evenly spaced over 0..total - 1, or all of these, again and again, if `count` is more."""
    return spread(total, count) if count <= total else [i % total for i in range(count)]
