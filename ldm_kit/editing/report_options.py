"""Options of `edit.py report`: what a semantic model's codes and edits are measured on.

No torch here, as `--help` must not wait for it.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ldm_kit.editing.options import BuiltInName, RoundTripSteps
from ldm_kit.models.sampler_options import Seed


class ReportOptions(RoundTripSteps):
    """Options of `edit.py report`: the data, a built-in set or a labelled folder, and what is measured on it.

    A built-in set knows the factors of its pictures, such as hair colour, and can render the exact result of an edit.
    The reader is a classifier of the factors, trained for the report, which judges edits. DCI, a score of
    disentanglement, predicts factors from codes by a `regressor`.
    """

    dataset: BuiltInName | None = Field(default=None, description="a built-in set that knows its factors")
    images: Path | None = Field(default=None, description="a folder of pictures")
    labels: Path | None = Field(default=None, description="its labels, .csv or .jsonl: file_name and attributes")
    column: tuple[str, ...] = Field(default=(), description="of the labels; all if left out")
    count: int = Field(default=6000, ge=1, description="faces or shapes, in all parts of the split")
    edits: int = Field(default=200, ge=0, description="edits of held-out pictures, compared with the exact result")
    factor: tuple[str, ...] = Field(default=(), description="factors to edit; all if left out")
    scale: float = Field(default=1.0, gt=0, le=4, description="strength of an edit, times the typical one")
    regressor: Literal["forest", "boosting"] = Field(
        default="forest", description="of DCI; boosting: as in published figures, and slow"
    )
    group_size: int = Field(default=1, ge=1, description="dimensions of a code that count as one, such as a token's")
    estimator: Literal["classifier", "means"] = Field(
        default="classifier", description="how directions are learned, as for learn"
    )
    reader_count: int = Field(default=8000, ge=20, description="pictures that the reader of factors is trained on")
    reader_epochs: int = Field(default=8, ge=1, description="times that the reader sees each")
    seed: Seed = Field(default=0, description="of the votes, the edits' values and the reader")
    out: Path = Field(default=Path("report.json"), description="a .json file; left out: reports/ in the model's folder")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.images is None):
            raise ValueError("expected one source: --dataset NAME, or --images DIR with --labels FILE")
        if (self.images is None) != (self.labels is None):
            raise ValueError("--images and --labels belong together: a folder, and the labels of its pictures")
        if self.labels is None and self.column:
            raise ValueError("--column is for --labels FILE")
        if self.dataset is None and self.factor:
            raise ValueError("--factor is for --dataset NAME, as the true results of other edits are not known")
        if self.out.suffix != ".json":
            raise ValueError("--out: expected a file that ends in .json")
        return self

    @property
    def source(self) -> str:
        """Name of the data in the report: the built-in set's name or the folder's."""
        return self.dataset or (self.images.name if self.images is not None else "")
