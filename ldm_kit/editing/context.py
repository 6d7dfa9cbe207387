"""Settings that every command of `edit.py` takes beside its own options: the model, and the folder for results.

No torch at import, as `--help` must not wait for it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, PrivateAttr

from ldm_kit.config import Config, Precision

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline
    from ldm_kit.models.semantic import SemanticModel


class ModelContext(Config):
    """Settings of a command that uses a model: the folder of the model, run or checkpoint, and the device."""

    model: Path = Field(description="a saved model's folder, a run's, or a checkpoint's")
    checkpoint: str | None = Field(default=None, description="checkpoint of a run: best, last, or a name or step")
    device: str | None = Field(default=None, description="cpu, cuda, ...; left out: the accelerator, if any")

    @property
    def folder(self) -> Path:
        """The folder of the saved model. A checkpoint is first exported to a saved model in the cache, once."""
        from ldm_kit.methods.export import saved_model
        from ldm_kit.models.folder import model_folder

        return model_folder(saved_model(self.model, self.checkpoint, self.device))

    @property
    def directions(self) -> Path:
        """The folder `directions/` in the model's folder, with the attribute directions learned for the model."""
        from ldm_kit.models.directions import FILE

        return self.folder / FILE

    def check_out(self) -> None:
        """Check, before the model is loaded, that the command's results can be written; raises UserError.

        Here nothing is checked, as a command with this context has no output folder; `EditContext` overrides the
        method.
        """

    def load_semantic_model(self, precision: Precision = "no") -> "SemanticModel":
        """Load the model as a semantic model, whose decoder runs under autocast to `precision` ("no": in float32).

        Raises:
            UserError: the output folder cannot be written to, or the model's folder holds no semantic model.
        """
        from ldm_kit.models.folder import autocast_dtype, device_named
        from ldm_kit.models.semantic import SemanticModel

        self.check_out()
        device = device_named(self.device)
        return SemanticModel.load(self.folder, device, autocast_dtype(precision, device))

    def load_pipeline(self, precision: Precision = "no") -> "Pipeline":
        """Load the model as a `Pipeline`, a diffusion model without semantic encoder, under autocast to `precision`.

        Raises:
            UserError: the output folder cannot be written to, or the model's folder holds no such model.
        """
        from ldm_kit.models.folder import autocast_dtype, device_named
        from ldm_kit.models.pipeline import Pipeline

        self.check_out()
        device = device_named(self.device)
        return Pipeline.load(self.folder, device, autocast_dtype(precision, device))

    def provenance(self, precision: Precision = "no") -> dict[str, str]:
        """Return metadata for PNGs: the release of ldm_kit, the sha256 of the model's manifest, and the precision."""
        from ldm_kit.models.folder import autocast_dtype, device_named
        from ldm_kit.models.provenance import provenance

        return provenance(self.folder, autocast_dtype(precision, device_named(self.device)))


class EditContext(ModelContext):
    """Settings of a command that writes pictures: the model, the device, the precision, and the output folder."""

    out: Path = Field(
        default=Path("edits"),
        description="folder for the pictures and sheet.png, beside earlier ones, which stay; left out: a new folder",
    )
    precision: Precision = Field(default="no", description="autocast; auto: bf16 where the device computes it natively")
    metadata: bool = Field(default=True, description="record the settings in the PNGs")

    _out_folder: Path | None = PrivateAttr(default=None)  # folder that `out_folder` chose; None: not chosen yet

    @property
    def out_folder(self) -> Path:
        """The folder for the pictures: the user's or else a new one, so that no earlier edit is overwritten."""
        if self._out_folder is None:
            self._out_folder = chosen_out(self)
        return self._out_folder

    def check_out(self) -> None:
        """Check, before the model is loaded, that pictures can be written to the output folder; raises UserError."""
        from ldm_kit.paths import check_writable

        check_writable(self.out_folder)

    def png_text(self, **settings: Any) -> Mapping[str, str] | None:
        """Return the metadata to write into PNGs; None if the option `metadata` is False.

        The metadata are the edit's `settings`, and this context's `provenance`: release, model and precision.
        """
        return {**png_settings(**settings), **self.provenance(self.precision)} if self.metadata else None


class EditResult(NamedTuple):
    """Result of a command that writes pictures; `str(result)` is the text that the command prints."""

    pictures: int  # number of pictures written
    sheet: Path  # a PNG that shows them all
    note: str = ""  # a sentence on the options whose values were saved with the model; empty if none were

    def __str__(self) -> str:
        text = f"{self.pictures} pictures in {self.sheet.parent}, all of them in {self.sheet}"
        return f"{text}\n{self.note}" if self.note else text


def chosen_out(options: Any) -> Path:
    """Return the output path of a command: `options.out` if the user gave it, or else a path where nothing is yet.

    This path is the default of `out` or, if something is there already, the default with a number, such as edits-2.
    `options` are any options with a field `out`.
    """
    from ldm_kit.viz.png import unused_path

    return options.out if "out" in options.model_fields_set else unused_path(options.out)


def png_settings(**settings: Any) -> dict[str, str]:
    """Return metadata for PNGs: the settings of an edit as JSON under the key "edit".

    The settings, values that JSON can hold, must contain no path and no name of a file.
    """
    return {"edit": json.dumps(settings, ensure_ascii=False)}
