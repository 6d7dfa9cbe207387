"""Find samples that are copies of training pictures: nearest training pictures, a sheet of them, and a JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm_kit import config as configs
from ldm_kit.config import UserError
from ldm_kit.data import peers
from ldm_kit.data.images import PictureSet, Split, value_range_of
from ldm_kit.inference.evaluate_autoencoders import Reconstructed
from ldm_kit.inference.evaluate_plan import unseen_by
from ldm_kit.inference.evaluate_processes import on_all_processes
from ldm_kit.inference.evaluate_reference import Reference, open_reference, run_of
from ldm_kit.inference.evaluate_sampled import Sampled, Subject
from ldm_kit.inference.evaluate_semantic import Semantics
from ldm_kit.inference.evaluate_subjects import open_subject
from ldm_kit.inference.memorisation_search import NEAREST, distances
from ldm_kit.inference.requests import EvaluationRequest, GuideModels, MemorisationRequest
from ldm_kit.memory import BatchSize
from ldm_kit.methods import read_run
from ldm_kit.metrics.memorisation import Memorisation
from ldm_kit.models.feature_nets import FeatureNet, load_feature_net
from ldm_kit.models.folder import device_named
from ldm_kit.models.options import SamplingOptions
from ldm_kit.paths import check_writable_file
from ldm_kit.viz.grid import enlargement, grid
from ldm_kit.viz.png import save_png, unused_path, write_atomic


@dataclass(frozen=True, eq=False)
class MemorisationReport:
    """Samples with their nearest training pictures; `str(report)` is a Markdown table.

    Attributes:
        spaces: distances in the feature network's space ("features") and of pixels in 0..1 ("pixels").
        order: indices of the samples, the most suspicious first.
        train: the training pictures.
        samples: uint8 [N, C, R, R].
        settings: what was judged, the training set, the feature network and so on, as JSON values.
    """

    spaces: dict[str, Memorisation]
    order: list[int]
    train: PictureSet
    samples: Tensor
    settings: dict[str, Any]

    @property
    def copies(self) -> list[int]:
        """Indices of the samples that count as copies in either space."""
        return torch.stack([space.copies for space in self.spaces.values()]).any(0).nonzero().flatten().tolist()

    def __str__(self) -> str:
        rows = [
            f"| {name} | {space.auroc:.3f} | {space.nearer_than_median:.3f} | {int(space.copies.sum())} | "
            f"{space.threshold:.4g} | {space.samples.distances[:, 0].median():.4g} | "
            f"{space.heldout.distances[:, 0].median():.4g} |"
            for name, space in self.spaces.items()
        ]
        head = (
            "| distance | AUROC | nearer than the median | copies | copies are below | median of samples | of held-out "
            "pictures |\n|---|---|---|---|---|---|---|"
        )
        verdict = f"{len(self.copies)} of {len(self.samples)} samples count as copies of training pictures"
        return "\n".join([head, *rows, "", verdict])

    @property
    def json(self) -> dict[str, Any]:
        """The report as JSON values."""
        spaces = {
            name: {
                "auroc": space.auroc,
                "nearer_than_median": space.nearer_than_median,
                "copies": int(space.copies.sum()),
                "threshold": space.threshold,
                "median": space.samples.distances[:, 0].median().item(),
                "heldout_median": space.heldout.distances[:, 0].median().item(),
            }
            for name, space in self.spaces.items()
        }
        copies = {*self.copies}
        samples = [{"sample": i, "copy": i in copies, **self._nearest(i)} for i in self.order]
        return {**self.settings, "copies": len(copies), "spaces": spaces, "samples": samples}

    def _nearest(self, sample: int) -> dict[str, Any]:
        return {
            name: {
                "distances": space.samples.distances[sample].tolist(),
                "ratio": space.samples.ratios[sample].item(),
                "nearest": [self.train.records[i].name for i in space.samples.indices[sample].tolist()],
            }
            for name, space in self.spaces.items()
        }

    def sheet(self, rows: int) -> Image.Image:
        """Return a picture of the most suspicious samples, each beside its nearest training pictures."""
        pictures: list[Tensor] = []
        captions: list[str] = []
        for i in self.order[:rows]:
            pictures.append(self.samples[i])
            captions.append(f"sample {i}{' copy' if i in self.copies else ''}")
            for name, count in (("features", NEAREST), ("pixels", 1)):
                near = self.spaces[name].samples
                for distance, index in zip(near.distances[i, :count], near.indices[i, :count], strict=True):
                    pictures.append(self.train.picture(int(index)))
                    captions.append(f"{name} {distance:.3g}")
        return grid(torch.stack(pictures), 2 + NEAREST, enlargement(self.train.resolution), captions)

    def write(self, path: Path, rows: int) -> tuple[Path, Path]:
        """Write the JSON file at `path` and the sheet, of `rows` samples, beside it; return both paths.

        Raises:
            UserError: a file cannot be written.
        """
        sheet = path.with_suffix(".png")
        try:
            write_atomic(path, (json.dumps(self.json, indent=1) + "\n").encode())
            save_png(self.sheet(rows), sheet, None)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
        return path, sheet


def memorisation(
    path: Path | str,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    *,
    data: Split | None = None,
    **request: Any,
) -> MemorisationReport:
    """Find which samples are copies of training pictures; write nothing.

    Args:
        path: a saved diffusion model, a run or a checkpoint of one, or a folder of pictures.
        options: how a model is sampled; None, and values not given: as its run was judged.
        guides: folders of the models that guide sampling; None: no guides.
        data: training and held-out pictures, if `reference` is not given; None: the data of the run.
        request: fields of `ldm_kit.inference.requests.MemorisationRequest`, such as `count=200`.

    Returns:
        The samples, their nearest training pictures, and which of them count as copies. Under a launcher of several
        processes each makes a share of the samples, and all return the same.

    Raises:
        UserError: something is missing, unknown or does not fit, before anything is sampled.
    """
    return find_memorised(
        Path(path), configs.check(MemorisationRequest, request, "memorisation"), options, guides, data
    )


def find_memorised(
    path: Path,
    request: MemorisationRequest,
    options: SamplingOptions | None = None,
    guides: GuideModels | None = None,
    data: Split | None = None,
) -> MemorisationReport:
    """Find which samples of what is at `path` are copies of training pictures; see `memorisation`."""

    def run(device: str | None) -> MemorisationReport:
        own = request.model_copy(update={"device": device or request.device})
        return _find(path, own, options, guides, data)

    return on_all_processes(run)


def _find(
    path: Path,
    request: MemorisationRequest,
    options: SamplingOptions | None,
    guides: GuideModels | None,
    data: Split | None,
) -> MemorisationReport:
    if request.out is not None:
        check_writable_file(request.out)
        check_writable_file(request.out.with_suffix(".png"))
    given = request.model_dump(exclude={"rows", "out"}, exclude_unset=True)
    evaluation = EvaluationRequest(**{**given, "device": request.device})
    subject = open_subject(path, evaluation, options, guides)
    if isinstance(subject, Reconstructed):
        raise UserError(f"{path} holds an autoencoder, which samples nothing; expected a diffusion model or a folder")
    if isinstance(subject, Semantics):
        if subject.semantic.prior is None:
            raise UserError(
                f"{path} holds a semantic model without a prior, which samples nothing; expected one with it"
            )
        subject.names = ("fd",)  # of samples
    if reasons := unseen_by(subject):
        raise UserError(next(iter(reasons.values())))
    captions = isinstance(subject, Sampled | Semantics) and subject.takes_prompts
    reference = open_reference(evaluation.model_copy(update={"split": "heldout"}), run_of(path), subject.shape, data,
                               captions=captions, values=value_range_of(subject))  # fmt: skip
    if len(reference.split.train) < NEAREST:
        raise UserError(f"the reference {reference.name} has {len(reference.split.train)} training pictures; expected "
                        f"{NEAREST} or more")  # fmt: skip
    rows = subject.rows(reference, request.count)
    net = load_feature_net(request.features, request.feature_size, device_named(request.device))
    size = BatchSize.of(request.batch_size)
    mirrored = _mirrored(run_of(path)) if request.reference is None else False
    samples = _samples(subject, reference, rows, request.seed, size)
    spaces = distances(samples, reference, net, size, mirrored=mirrored)
    order = spaces["features"].samples.distances[:, 0].argsort(stable=True).tolist()
    settings = _settings(path, subject, reference, net, request, mirrored=mirrored)
    return MemorisationReport(spaces, order, reference.split.train, samples, settings)


def default_out(path: Path) -> Path:
    """Return the free JSON file to write to if none is named: in the run's folder, or else in the current one."""
    return unused_path((run_of(path) or Path()) / "memorisation.json", ".png")


def _mirrored(run: Path | None) -> bool:
    """Return whether the run trained on mirrored pictures too."""
    return run is not None and bool(read_run(run / "config.yaml").flip)


def _samples(subject: Subject, reference: Reference, rows: Sequence[int], seed: int, size: BatchSize) -> Tensor:
    """Return the samples for some rows of the reference, uint8 [N, C, R, R]; of several processes each makes a share.

    Sample i has the seed `seed` + i.
    """

    def make(own: Sequence[int]) -> Tensor:
        batches: list[Tensor] = []
        with tqdm(total=len(own), desc="samples", unit="picture", leave=False) as bar:
            for pictures, _ in subject.batches(reference, [rows[i] for i in own], [seed + i for i in own], size):
                batches.append(pictures)
                bar.update(len(pictures))
        return torch.cat(batches)

    return peers.divided(len(rows), make)


def _settings(
    path: Path, subject: Subject, reference: Reference, net: FeatureNet, request: MemorisationRequest, *, mirrored: bool
) -> dict[str, Any]:
    names: Sequence[tuple[str, PictureSet]] = (("train", reference.split.train), ("heldout", reference.pictures))
    sets = {name: {"count": len(one), "fingerprint": one.fingerprint} for name, one in names}
    return {
        "judged": {"path": str(path), **subject.description},
        "reference": {"name": reference.name, **sets, "mirrored": mirrored},
        "features": {"name": net.name, "resize": net.resize, "sha256": net.sha256},
        "seed": request.seed,
    }
