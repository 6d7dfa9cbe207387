"""Evaluate a model, an autoencoder or a folder of pictures against reference pictures: measures with intervals."""

import logging
from pathlib import Path
from typing import Any

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.inference.evaluate_job import prepare
from ldm_kit.inference.evaluate_plan import check_names
from ldm_kit.inference.evaluate_report import Evaluation
from ldm_kit.inference.evaluate_subjects import run_of
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.models.options import SamplingOptions
from ldm_kit.paths import check_writable, check_writable_file
from ldm_kit.viz.png import unused_path

_log = logging.getLogger("ldm_kit.inference")


def evaluate(
    path: Path | str,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> Evaluation:
    """Measure how good a model's pictures are, compared with reference pictures.

    Args:
        path: a saved diffusion model or autoencoder, a run or a checkpoint of one, or a folder of pictures.
        options: how a model is sampled; None, and values not given: as its run was judged.
        guides: folders of the models that guide sampling; None: no guides.
        data: the reference, if `reference` is not given; None: the data of the run.
        request: fields of `ldm_kit.inference.requests.EvaluationRequest`, such as `reference="faces"`, `split="train"`,
            `count=200`, `features="inception"`, `measures="fd,kid"`; `ldm-kit evaluate --help` explains each. Without
            `out` nothing is written.

    Returns:
        The values with their 95 % intervals: `result["fd"].value`; `print(result)` shows a table.

    Raises:
        UserError: something is missing, unknown or does not fit, before anything is sampled; or the result cannot be
            written, which is then logged.
    """
    checked = configs.check(EvaluationRequest, request, "evaluate")
    result = run_evaluation(Path(path), checked, options, guides, data=data)
    try:
        if checked.out is not None:
            result.write(checked.out)
    except UserError:
        _log.warning("%s", result)  # it took long to measure
        raise
    return result


def run_evaluation(
    path: Path,
    request: EvaluationRequest,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
) -> Evaluation:
    """Evaluate what is at `path` as a request says; write nothing, but check that its file can be. See `evaluate`."""
    check_names(request.chosen)
    if request.out is not None:
        check_writable_file(request.out)
    return prepare(path, request, options, guides, data=data).run()


def default_out(path: Path) -> Path:
    """Return the free file to write to if none is named: in the run's folder, or else in the current one.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = run_of(path) or Path()
    check_writable(folder)
    return unused_path(folder / "evaluation.json")
