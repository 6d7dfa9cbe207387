"""Training of a model by any method: the program behind `train_ae.py`, `train_ldm.py` and `ldm_kit.train`."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data.buckets import square_split
from ldm_kit.data.given import GivenConfig
from ldm_kit.data.images import Split, value_range_of
from ldm_kit.data.lists import check_lists
from ldm_kit.data.near_duplicates import find_leaks
from ldm_kit.data.peers import shared_by
from ldm_kit.data.sources import load
from ldm_kit.methods import check_run, find_method, read_run
from ldm_kit.methods.base import Collectives, Method
from ldm_kit.methods.measures import open_measures
from ldm_kit.methods.measures_check import check_measures, comparable, figures_with, open_feature_net, with_direction
from ldm_kit.methods.run_config import RunConfig, method_name
from ldm_kit.methods.shared_work import SharedWork
from ldm_kit.nets.execution import configure_network
from ldm_kit.training.distributed import work_groups
from ldm_kit.training.launch import launched_precision
from ldm_kit.training.log import Log
from ldm_kit.training.loop import Trainer
from ldm_kit.training.retention import check_keep_best
from ldm_kit.training.session import Session, due, session

T = TypeVar("T")
FROM_CONFIG = "from config"  # argument `start` of `open_method`: open what the config names under `init`


def train(
    config: Path | str | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str] = (),
    *,
    data: Split | None = None,
    resume: str | None = None,
) -> Path:
    """Train a model by the method that a config names, and save the model.

    Args:
        config: a YAML file, a plain mapping of the same keys, or a config object.
        overrides: dotted keys with values that replace the config's, such as `optim.lr=3e-4`.
        data: pictures in memory, or from a source of your own. They replace the config's `data`, which may then be
            left out. None: load the config's `data`.
        resume: checkpoint to resume from: `latest` or a checkpoint's folder; None: start a new run.

    Returns:
        The folder of the finished model, RUN/model.

    Raises:
        UserError: the config has an unknown key or a wrong value, or does not fit the pictures; another process uses
            the run's folder; or `resume` is None and the folder holds checkpoints.
        AutoencoderError, ConditioningError: a model that the config names cannot be opened.
    """
    settings = with_direction(_with_launched_precision(resolve_config(config, overrides, data)))
    _check_metrics(settings, None)
    with session(settings, resume) as run:
        method = _open(settings, data, run)
        trainer = run.trainer(method, method.batches)
        log = run.log(trainer)
        log.print(method.describe())
        was_finished = trainer.step == trainer.config.steps
        with contextlib.closing(log.bar):  # so that a sentence on an error has a line of its own
            _train(method, run, trainer, log)
        log.flush()
        _on_main(method, trainer, lambda: _finish(method, run, trainer, log, evaluate=was_finished))
        log.close()
        return run.folder / "model"


def _open(config: RunConfig, data: Split | None, run: Session) -> Method[Any]:
    """Open the trained weights that a run starts from, then its pictures, and build its method.

    The trained weights are let go on return, as the method has copies of those that it needs.
    """
    groups = work_groups()
    with shared_by(*groups):
        start = open_start(config, run.resume)
        pictures = load(config.data, captions=config.needs_captions) if data is None else data
        _check_metrics(config, pictures)
        net = open_feature_net(config.log.measures, run.device)
        collectives = Collectives(run.all_reduce_mean, run.all_reduce_sum, run.broadcast)
        method = open_method(config, pictures, run.device, collectives, start=start)
        method.notes = [*method.notes, *_leaks(pictures)]
        method.measures = open_measures(config, square_split(pictures), net, method.eval_batch)
    method.precision, method.shared_work = run.precision, SharedWork(*groups)
    return method


def _leaks(pictures: Split) -> list[str]:
    """Return a warning if held-out pictures have near-duplicates among the training pictures; [] if none have."""
    sentence = find_leaks(pictures).sentence()
    return [f"warning: {sentence}"] if sentence else []


def _train(method: Method[Any], run: Session, trainer: Trainer, log: Log) -> None:
    """Train `method` to the last step; log metrics, evaluate and save checkpoints at the steps that its config sets."""
    for step in trainer.train(method.batches):
        log.step(step)
        metrics = None
        if due(step, method.config.log.evaluate_every, trainer.config.steps):
            metrics = _on_main(method, trainer, lambda number=step.number: _evaluate(method, run, log, number))
        run.save_when_due(trainer, step, comparable(metrics, method.config))


def _on_main(method: Method[Any], trainer: Trainer, task: Callable[[], T]) -> T | None:
    """Call `task` with averaged weights on the main process; the others do a share of its evaluation and get None."""
    with trainer.ema.applied():
        return method.shared_work.on_main(task, method.in_evaluation)


def _evaluate(method: Method[Any], run: Session, log: Log, number: int) -> dict[str, float] | None:
    every, last = method.config.log.measures.every, method.config.train.steps

    def evaluate(step: int) -> dict[str, float]:
        method.metrics = method.evaluate(step, run.folder)
        if every is None or step % every == 0 or step == last:
            method.metrics |= method.shared_work.run(method.in_evaluation, "take_measures")
        return method.metrics

    return log.evaluate(number, evaluate)


def _finish(method: Method[Any], run: Session, trainer: Trainer, log: Log, *, evaluate: bool) -> None:
    """Save the finished model; log where it is.

    `evaluate`: whether to evaluate it first, as is done if a resumed run had trained all its steps already.
    """
    if evaluate:
        _evaluate(method, run, log, trainer.step)
    log.print(method.finish(run.folder))


def _with_launched_precision(config: RunConfig) -> RunConfig:
    """Return the config with the precision that `accelerate launch` asks for, if any.

    Raises UserError if the config sets another precision (not `auto`), or the launcher's is not fp16 or bf16.
    """
    precision = launched_precision(config.train, os.environ)
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def _check_metrics(config: RunConfig, pictures: Split | None) -> None:
    """Check the measures that the run takes, and that it has the metric that `train.keep_best` names.

    `pictures` are the run's; None: not loaded yet, so that any metric that the method may measure is accepted.

    Raises:
        UserError: a measure cannot be taken, or there is no such metric.
    """
    method = find_method(method_name(config))
    check_measures(config, method, pictures)
    check_keep_best(config.train.keep_best, figures_with(method.figures(config, pictures), config.log.measures))


def open_method(
    config: RunConfig,
    data: Split | None = None,
    device: torch.device | str = "cpu",
    collectives: Collectives | None = None,
    *,
    start: Any = FROM_CONFIG,
) -> Method[Any]:
    """Build the method of a config, with its pictures, caches and networks.

    Args:
        config: the run's config.
        data: pictures to use instead of the config's `data`; None: load the config's.
        device: device on which frozen networks run, and for which trained ones are set up (memory layout, attention).
        collectives: reductions over the processes of the run; None: there is one process.
        start: trained weights that the run starts from, as `open_start` returns them; None: random weights. Left out,
            it is `FROM_CONFIG`: those that the config names under `init` are opened, if it has that key.
    """
    start = open_start(config) if start == FROM_CONFIG else start
    pictures = load(config.data, captions=config.needs_captions) if data is None else _checked(data)
    given = {} if start is None else {"start": start}
    method = find_method(method_name(config)).build(config, pictures, torch.device(device), **given)
    for module in method.modules.values():
        configure_network(module, device, config.train)
    method.collectives = collectives or Collectives()
    return method


def open_start(config: RunConfig, checkpoint: Path | None = None) -> Any:
    """Open the trained weights that a config names under `init`; torch's random numbers stay as they are.

    Args:
        config: the run's config.
        checkpoint: checkpoint from which the run goes on; the weights that it started from are then not read again.

    Returns:
        What the method's `build` takes as `start`; None: the run starts from random weights.

    Raises:
        UserError: the weights cannot be opened or do not fit the config.
        AutoencoderError, ConditioningError: the same, of an autoencoder or a text encoder.
    """
    with torch.random.fork_rng(devices=[]):
        return find_method(method_name(config)).open_start(config, checkpoint)


def _checked(data: Split) -> Split:
    """Return `data`, the pictures that a program passed, after checking that both its sets are of one kind.

    Raises:
        UserError: the held-out pictures differ from the training pictures in size, channels or classes.
    """
    if not len(data.heldout):
        return data
    for name in ("resolution", "channels", "classes"):
        train, heldout = (getattr(pictures, name) for pictures in (data.train, data.heldout))
        if (list(train) != list(heldout)) if name == "classes" else (train != heldout):
            raise UserError(
                f"data.heldout has {name} {heldout!r:.80}, data.train {train!r:.80}; expected pictures of one size,"
                " with labels that index one list of classes"
            )
    return data


def resolve_config(
    config: Path | str | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = (), data: Split | None = None
) -> RunConfig:
    """Return the validated config of a run, with `overrides`, such as `optim.lr=3e-4`, applied.

    `config` is a YAML file, a mapping of the same keys, or a config object. If pictures `data` are given, its section
    `data` is replaced by one that states their size and channels.

    Raises:
        UserError: the config or an override has an unknown key or a value that is not valid.
    """
    check_lists(overrides=overrides)
    if data is None and not isinstance(config, Mapping | RunConfig):
        return read_run(config, overrides)
    if isinstance(config, RunConfig):  # what it leaves out stays left out: the launcher may decide it
        tree, where = {**config.model_dump(mode="json", exclude_unset=True), "method": method_name(config)}, "config"
    elif isinstance(config, Mapping):
        tree, where = _copied(config), "config"
    else:
        tree, where = configs.tree(config), str(config)
    for override in overrides:
        configs.assign(tree, override)
    if data is not None:
        values = value_range_of(data.train)
        pairs = None if values is None else values.pairs
        given = {"resolution": data.train.resolution, "channels": data.train.channels, "range": pairs}
        tree["data"] = GivenConfig.model_validate(given).model_dump(mode="json", exclude_none=True)
    return check_run(tree, where)


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `tree`, a config of nested mappings, so that overrides do not change the caller's config."""
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
