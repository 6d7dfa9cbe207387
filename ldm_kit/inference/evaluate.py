"""Evaluate a model, an autoencoder or a folder of pictures against reference pictures: measures with intervals."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.inference.evaluate_job import prepare
from ldm_kit.inference.evaluate_plan import check_names
from ldm_kit.inference.evaluate_processes import is_main_process, on_all_processes
from ldm_kit.inference.evaluate_reference import run_of
from ldm_kit.inference.evaluate_report import Evaluation
from ldm_kit.inference.evaluate_runs import EvaluationOfRuns, evaluate_runs
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.models.options import SamplingOptions
from ldm_kit.paths import check_writable, check_writable_file
from ldm_kit.viz.png import unused_path

_log = logging.getLogger("ldm_kit.inference")


@overload
def evaluate(
    path: Path | str,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> Evaluation: ...
@overload
def evaluate(
    path: Sequence[Path | str],
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> EvaluationOfRuns: ...
def evaluate(
    path: Path | str | Sequence[Path | str],
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> Evaluation | EvaluationOfRuns:
    """Measure how good a model's pictures are, compared with reference pictures.

    Args:
        path: a saved diffusion model or autoencoder, a run or a checkpoint of one, or a folder of pictures; or a list
            of two or more of one kind, trained from different seeds.
        options: how a model is sampled; None, and values not given: as its run was judged.
        guides: folders of the models that guide sampling; None: no guides.
        data: the reference, if `reference` is not given; None: the data of the run.
        request: fields of `ldm_kit.inference.requests.EvaluationRequest`, such as `reference="faces"`, `split="train"`,
            `count=200`, `features="inception"`, `measures="fd,kid"`; `ldm-kit evaluate --help` explains each. Without
            `out` nothing is written.

    Returns:
        The values with their 95 % intervals: `result["fd"].value`; `print(result)` shows a table. Of one path the
        intervals are over its pictures; of several the value is the mean, and the interval is over trainings. Under a
        launcher of several processes each returns the same result, and the first one writes it.

    Raises:
        UserError: something is missing, unknown or does not fit, before anything is sampled; or the result cannot be
            written, which is then logged.
    """
    checked = configs.check(EvaluationRequest, request, "evaluate")
    paths = [path] if isinstance(path, Path | str) else [*path]
    if len(paths) < 2 and not isinstance(path, Path | str):
        raise UserError(f"evaluate got a list of {len(paths)}; expected two trainings or more, or a path")
    result = run_evaluation([Path(each) for each in paths], checked, options, guides, data=data)
    try:
        if checked.out is not None and is_main_process():
            result.write(checked.out)
    except UserError:
        _log.warning("%s", result)  # it took long to measure
        raise
    return result


def run_evaluation(
    paths: Sequence[Path],
    request: EvaluationRequest,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
) -> Evaluation | EvaluationOfRuns:
    """Evaluate what is at `paths` as a request says; write nothing, but check that its file can be. See `evaluate`."""
    check_names(request.chosen)

    def run(device: str | None) -> Evaluation | EvaluationOfRuns:
        if request.out is not None:
            check_writable_file(request.out)
        own = request.model_copy(update={"device": device or request.device})
        if len(paths) > 1:
            return evaluate_runs(paths, own, options, guides, data)
        return prepare(paths[0], own, options, guides, data=data).run()

    return on_all_processes(run)


def default_out(paths: Path | Sequence[Path]) -> Path:
    """Return the free file to write to if none is named: in the run's folder if it is one, or else in the current one.

    Raises:
        UserError: the folder cannot be written to.
    """
    given = [paths] if isinstance(paths, Path) else paths
    folder = (run_of(given[0]) if len(given) == 1 else None) or Path()
    check_writable(folder)
    return unused_path(folder / "evaluation.json")
