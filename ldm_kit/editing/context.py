"""What every command of `edit.py` is given beside its own options: the model, and where its results go.

No torch at import, as `--help` must not wait for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from ldm_kit.config import Config, Precision

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline
    from ldm_kit.models.semantic import SemanticModel


class ModelContext(Config):
    """Which model is used, and on which device."""

    model: Path = Field(description="a saved model's folder, a run's, or a checkpoint's")
    checkpoint: str | None = Field(default=None, description="of a run: best, last, or a checkpoint's name or step")
    device: str | None = Field(default=None, description="cpu, cuda, ...; the accelerator if there is one")

    @property
    def folder(self) -> Path:
        """The model's own folder; that of a checkpoint is made when it is first asked for."""
        from ldm_kit.methods.export import saved_model
        from ldm_kit.models.folder import model_folder

        return model_folder(saved_model(self.model, self.checkpoint, self.device))

    @property
    def directions(self) -> Path:
        """The folder of the model's directions."""
        from ldm_kit.models.directions import FILE

        return self.folder / FILE

    def check_out(self) -> None:
        """Check, before the model is loaded, that what a command writes can be written; raises UserError."""

    def load_semantic_model(self, precision: Precision = "no") -> "SemanticModel":
        """Load the semantic model, to decode under autocast to a precision; raises UserError where there is none."""
        from ldm_kit.models.folder import autocast_dtype, device_named
        from ldm_kit.models.semantic import SemanticModel

        self.check_out()
        device = device_named(self.device)
        return SemanticModel.load(self.folder, device, autocast_dtype(precision, device))

    def load_pipeline(self, precision: Precision = "no") -> "Pipeline":
        """Load a model of prompts, classes or nothing; raises UserError where there is none."""
        from ldm_kit.models.folder import autocast_dtype, device_named
        from ldm_kit.models.pipeline import Pipeline

        self.check_out()
        device = device_named(self.device)
        return Pipeline.load(self.folder, device, autocast_dtype(precision, device))


class EditContext(ModelContext):
    """Which model is used, how it computes, and where the pictures go."""

    out: Path = Field(default=Path("edits"), description="folder for the pictures and sheet.png")
    precision: Precision = Field(default="no", description="autocast; auto: bf16 where the device computes it natively")
    metadata: bool = Field(default=True, description="record the settings in the PNGs")

    def check_out(self) -> None:
        """Check, before the model is loaded, that pictures can be written; raises UserError."""
        from ldm_kit.paths import check_writable

        check_writable(self.out)

    def make_out(self) -> None:
        """Make the folder for the pictures, before anything slow."""
        self.out.mkdir(parents=True, exist_ok=True)

    def png_text(self, **settings: Any) -> Mapping[str, str] | None:
        """Return the text that PNGs record, or None where they are to record nothing."""
        return png_settings(**settings) if self.metadata else None


class EditResult(NamedTuple):
    """How many pictures were written, and the sheet that shows them all."""

    pictures: int
    sheet: Path

    def __str__(self) -> str:
        return f"{self.pictures} pictures in {self.sheet.parent}, all of them in {self.sheet}"


def png_settings(**settings: Any) -> dict[str, str]:
    """Return the text that PNGs record of an edit; the settings must hold no path and no name of a file."""
    return {"edit": json.dumps(settings, ensure_ascii=False)}
