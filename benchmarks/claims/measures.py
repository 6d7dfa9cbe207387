"""Claims about measures of picture quality: which of them rank known amounts of known faults rightly.

Held-out faces are degraded by growing amounts and compared with training faces. A measure ranks a fault rightly if each
larger amount has a strictly worse value, in every draw of the pictures.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError
from ldm_kit.data.faces.dataset import FacesConfig, load
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion import rng
from ldm_kit.models.feature_nets import LITE0, FeatureNet, load_feature_net
from ldm_kit.models.measures import PICTURES, Bootstrap
from ldm_kit.models.set_measures import SETS, set_figures

BATCH = 64
Measured = Mapping[str, Mapping[str, Sequence[float]]]  # values by fault and measure, one for each amount from 0 on
COMPARED = ("psnr", "ssim", "ssim_zero_padded")  # measures of a picture and its original
MODES = "hair"  # factor of which values are dropped


class Fault(NamedTuple):
    """A way to degrade a set of pictures, and its amounts, from harmless to worst."""

    title: str
    amounts: Sequence[float]
    degrade: Callable[[Tensor, float, int], Tensor] | None = None  # of pictures, an amount and a seed; None: a choice


def blur(pictures: Tensor, sigma: float, seed: int) -> Tensor:
    """Blur pictures uint8 [N, C, R, R] by a Gaussian of `sigma` pixels; borders are reflected."""
    reach = max(1, int(3 * sigma + 0.5))
    kernel = torch.softmax(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2, 0)
    x = pictures.flatten(0, 1)[:, None].float()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), "reflect"), kernel.view(1, 1, 1, -1))
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), "reflect"), kernel.view(1, 1, -1, 1))
    return x.round().clamp(0, 255).to(torch.uint8).view_as(pictures)


def add_noise(pictures: Tensor, deviation: float, seed: int) -> Tensor:
    """Add normal noise of a deviation in levels of 255 to pictures uint8 [N, C, R, R]."""
    noise = rng.normal(seed, "pixel noise", torch.arange(len(pictures)), pictures.shape[1:])
    return (pictures + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def compress(pictures: Tensor, quality: float, seed: int) -> Tensor:
    """Encode pictures uint8 [N, 3, R, R] as JPEG of a quality of 1 to 100, and decode them."""
    decoded: list[Tensor] = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        with Image.open(file) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        decoded.append(pixels.view(*picture.shape[1:], 3).permute(2, 0, 1))
    return torch.stack(decoded)


FAULTS: Mapping[str, Fault] = {
    "blur": Fault("blur, sigma in px", (0.5, 1.0, 2.0), blur),
    "noise": Fault("noise, deviation of 255", (5, 15, 45), add_noise),
    "jpeg": Fault("JPEG, quality", (80, 40, 10), compress),
    "modes": Fault("values of hair left, of 4", (3, 2, 1)),
    "repeats": Fault("different pictures, of all", (0.3, 0.1, 0.03)),
    "copies": Fault("training pictures, of all", (0.25, 0.5, 1.0)),
}
"""Faults by name; each begins, besides, with the amount 0: other held-out pictures, as they are."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Pictures of one draw: what may be degraded, and what it is compared with.

    Attributes:
        heldout: uint8 [N, C, R, R].
        training: uint8 [N, C, R, R], the reference.
        spare: uint8 [M, C, R, R], held-out pictures, of which those with some values are taken.
        values: int64 [M], the value of a factor that each of `spare` shows.
        seed: number of the draw.
    """

    heldout: Tensor
    training: Tensor
    spare: Tensor
    values: Tensor
    seed: int

    def degraded(self, name: str, amount: float) -> Tensor:
        """Return the N pictures with an amount of a fault of FAULTS."""
        count = len(self.heldout)
        if (degrade := FAULTS[name].degrade) is not None:
            return degrade(self.heldout, amount, self.seed)
        if name == "modes":
            kept = torch.nonzero(self.values < amount).flatten()[:count]
            if len(kept) < count:
                raise UserError(
                    f"{len(kept)} held-out pictures have {amount:g} values; expected --count of at most that"
                )
            return self.spare[kept]
        share = round(amount * count)
        if name == "repeats":
            return self.heldout[torch.arange(count) % max(1, share)]
        return torch.cat([self.training[:share], self.heldout[share:]])


def draw_pictures(heldout: PictureSet, training: PictureSet, values: Tensor, count: int, seed: int) -> Draw:
    """Draw `count` held-out and `count` training pictures; `values` [M] are the held-out pictures' of a factor."""
    if count > min(len(heldout), len(training)):
        raise UserError(
            f"--count is {count}; expected at most {min(len(heldout), len(training))}, the pictures of a part"
        )
    order = rng.permuted(seed, "held-out", torch.arange(len(heldout)), len(heldout))
    chosen = rng.permuted(seed, "training", torch.arange(count), len(training))
    spare = heldout.pictures(order.tolist())
    return Draw(spare[:count], training.pictures(chosen.tolist()), spare, values[order], seed)


def measure(draw: Draw, net: FeatureNet) -> Measured:
    """Return each fault's values by measure: of the amount 0, then of each amount."""
    references = features(net, draw.training)
    clean = _values(draw, draw.heldout, net, references, paired=True)
    values: dict[str, dict[str, list[float]]] = {}
    for name, fault in FAULTS.items():
        sets = tqdm([draw.degraded(name, amount) for amount in fault.amounts], desc=name)
        rows = [_values(draw, pictures, net, references, paired=fault.degrade is not None) for pictures in sets]
        values[name] = {key: [row[key] for row in (clean, *rows)] for key in rows[0]}
    return values


def features(net: FeatureNet, pictures: Tensor) -> Tensor:
    """Return the features [N, D] of pictures [N, C, R, R]."""
    return torch.cat([net(batch).features for batch in pictures.split(BATCH)])


def _values(draw: Draw, pictures: Tensor, net: FeatureNet, references: Tensor, *, paired: bool) -> dict[str, float]:
    figures, _ = set_figures([*SETS], net, features(net, pictures), references, Bootstrap(0, draw.seed))
    values = {figure.name: figure.value or 0.0 for figure in figures}
    for name in COMPARED if paired else ():
        compare = PICTURES[name].compare
        assert compare is not None
        values[name] = compare(to_unit(draw.heldout), to_unit(pictures)).double().mean().item()
    return values


def ranks_rightly(values: Sequence[float], better: str) -> bool:
    """Return whether each value is strictly worse than the one before; `better`: "lower" or "higher" values are."""
    steps = torch.tensor(values).double().diff()
    return bool((steps > 0).all() if better == "lower" else (steps < 0).all())


def rank_correlation(values: Sequence[float], better: str) -> float:
    """Return Spearman's correlation of values, of which worse ones count as larger, with the order of amounts."""
    x = torch.tensor(values).double() * (1 if better == "lower" else -1)
    ranks = torch.stack([((x < v).sum() + (x <= v).sum() + 1) / 2 for v in x]).double()  # ties share their mean rank
    pair = torch.stack([ranks, torch.arange(len(x)).double()])
    return 0.0 if bool((ranks == ranks[0]).all()) else torch.corrcoef(pair)[0, 1].item()


def table(draws: Sequence[Measured]) -> str:
    """Return a Markdown table: for each measure and fault in how many draws it ranks rightly, and its correlation."""
    names = [*SETS, *COMPARED]
    better = {name: (SETS[name] if name in SETS else PICTURES[name]).better for name in names}
    rows: list[list[str]] = []
    for name in names:
        cells = [_cell([draw[fault].get(name, ()) for draw in draws], better[name]) for fault in FAULTS]
        rows.append([name, *cells])
    return markdown(["measure", *(fault.title for fault in FAULTS.values())], rows)


def _cell(draws: Sequence[Sequence[float]], better: str) -> str:
    if not draws[0]:
        return "-"
    right = sum(ranks_rightly(values, better) for values in draws)
    mean = sum(rank_correlation(values, better) for values in draws) / len(draws)
    return f"{'**yes**' if right == len(draws) else 'no'}, {right} of {len(draws)} ({mean:.2f})"


def table_of_values(draws: Sequence[Measured]) -> str:
    """Return a Markdown table of values, means over draws: a row for each fault and amount."""
    rows: list[list[str]] = []
    for name, fault in FAULTS.items():
        for i, amount in enumerate((0.0, *fault.amounts)):
            means = [_mean([draw[name][key][i] for draw in draws]) for key in SETS]
            rows.append([f"{fault.title}: {'none' if i == 0 else f'{amount:g}'}", *means])
    return markdown(["fault", *SETS], rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g}"


def measures(
    count: Annotated[int, typer.Option(min=6, help="pictures of a set")] = 200,
    draws: Annotated[int, typer.Option(min=1, help="draws of the pictures")] = 3,
    feature_size: Annotated[int, typer.Option(min=32, help="side that the feature network sees")] = 64,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the tables into docs/evaluation.md")] = False,
) -> None:
    """Degrade held-out faces by known amounts, and print which measures rank the amounts rightly."""
    with cli_errors():
        split = load(FacesConfig(resolution=64, heldout=0.5))
        values = torch.tensor([record.label or 0 for record in split.heldout.records])
        net = load_feature_net(LITE0, feature_size)
        measured = [
            measure(draw_pictures(split.heldout, split.train, values, count, seed), net) for seed in range(draws)
        ]
        text = f"{table(measured)}\n\nValues, means of the draws:\n\n{table_of_values(measured)}"
        typer.echo(text)
        if page:
            write_section(page_of("evaluation.md"), "measures", text)
