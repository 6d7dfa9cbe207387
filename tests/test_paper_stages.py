"""The claims on shapes: first stages, costs, captions with or without attention, and their judge."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.claims import paper_factors
from benchmarks.claims.paper_factors import COLOURS, FactorJudge
from benchmarks.claims.paper_pooled import pooled_captions
from benchmarks.claims.paper_runs import CHANNELS, CONFIGS, FACTORS, VARIANTS, Runs
from benchmarks.claims.paper_stages import Cost, Prompted, Restored, Shown, generated, judge_of
from benchmarks.claims.paper_ways import Bench
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.data.images import to_unit
from ldm_kit.methods import read_run
from ldm_kit.metrics.reconstruction import psnr
from ldm_kit.models.pipeline import Pipeline

TINY = (
    "train.steps=2",
    "train.batch_size=4",
    "data.count=80",
    "data.heldout=0.3",
    "log.max_heldout=8",
    "log.pictures=2",
)
FEW = {"solver": "ddim", "steps": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A bench of toy runs, with a reader of factors that has hardly been trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_factors, "READER", paper_factors.ReaderConfig(width=2, epochs=1, count=64))
        yield Bench(Runs(tmp_path_factory.mktemp("claims"), range(1), TINY), 16)


@pytest.fixture(scope="module")
def conditioner():
    torch.manual_seed(0)
    config = TextConfig(kind="text", expansion=2, width=16, layers=1, heads=2, vocabulary=520, length=8)
    return TextConditioner.build(config, captions=["a red cube", "a blue ball"]).eval()


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("f", FACTORS)
def test_first_stages_have_the_reduction_factor_of_their_name(kind, f):
    variant = VARIANTS[f"{kind}-f{f}"]
    config = read_run(CONFIGS / f"{variant.config}.yaml", variant.overrides).autoencoder
    assert (config.kind, config.factor, config.latent_channels) == (kind, f, CHANNELS[f])
    latents = VARIANTS[f"{kind}-f{f}-latents"]
    unet = read_run(
        CONFIGS / f"{latents.config}.yaml", [o.format_map({f"{kind}-f{f}": "x"}) for o in latents.overrides]
    )
    assert config.side % unet.unet.factor == 0
    assert unet.data == read_run(CONFIGS / f"{variant.config}.yaml").data


def test_pooled_captions_are_the_mean_of_the_states_as_one_token(conditioner):
    inputs = conditioner.prepare(["a red cube", ""])
    states = conditioner(**inputs).tokens
    with pooled_captions():
        pooled = conditioner(**inputs)
    assert pooled.mask is None
    assert pooled.vector is None
    assert torch.equal(pooled.tokens, states.mean(1, keepdim=True))
    assert torch.equal(conditioner(**inputs).tokens, states)


def _judge(asked, read):
    """Return a judge of pictures of three colours and a shape, whose reader says `read`."""

    class Reader:
        factors = dict.fromkeys((*COLOURS, "shape"), ("a", "b", "c", "d"))

        def read(self, pictures):
            return torch.tensor(read)

    return FactorJudge(Reader(), None, torch.tensor(asked), torch.zeros(1))  # pyright: ignore[reportArgumentType]


def test_fidelity_counts_colours_in_their_place_and_swapped_ones():
    asked = [[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 2, 2], [0, 0, 1, 3]]
    read = [[0, 1, 2, 0], [1, 0, 2, 1], [3, 1, 2, 0], [0, 1, 0, 3]]  # right; two swapped; one wrong; two swapped
    figures = _judge(asked, read).fidelity(torch.zeros(4, 3, 2, 2))
    assert figures == {"colours": 7 / 12, "all colours": 0.25, "swapped": 0.5, "shape": 0.75}


def test_prompts_and_labels_are_taken_in_turn():
    """More pictures than held-out captions: the fifth has the first's caption, and is judged by it."""
    asked = [[0, 1, 2, 0], [1, 2, 0, 1]]
    figures = _judge(asked, [*asked, *asked, asked[0]]).fidelity(torch.zeros(5, 3, 2, 2))
    assert figures["all colours"] == 1.0


def test_pictures_and_costs_of_latents(bench):
    """From a first stage to the pictures of a model of its latents, trained once for all ways."""
    ways = Restored("kl-f4"), Shown("kl-f4-latents", ("kl-f4-latents", "kl-f4"), FEW), Cost(("kl-f4-latents",))
    restored, shown, cost = (bench.figures(way, 0) for way in ways)
    pictures = ways[1].pictures(bench, 0)
    assert (pictures.shape, pictures.dtype) == ((16, 3, 32, 32), torch.uint8)
    assert set(shown) == {"distance", "precision", "recall", "seconds"}
    assert shown["seconds"] == pytest.approx(restored["seconds"] + cost["seconds"])
    originals = judge_of(bench, "kl-f4", 0).split.heldout.pictures(range(16))
    assert restored["psnr"] == pytest.approx(psnr(to_unit(originals), to_unit(ways[0].pictures(bench, 0))).mean())


def test_a_quantised_first_stage_is_restored_through_its_codes(bench):
    assert math.isfinite(bench.figures(Restored("vq-f4"), 0)["psnr"])


def test_a_model_of_pooled_captions_is_trained_with_one_token(tmp_path, conditioner, monkeypatch):
    lengths: dict[str, int] = {}

    def train(config: Path, overrides: list[str], data: None = None) -> None:
        folder = Path(overrides[0].removeprefix("run="))
        lengths[folder.name] = conditioner(**conditioner.null_inputs()).tokens.shape[1]
        (folder / "model").mkdir(parents=True)

    monkeypatch.setattr("benchmarks.claims.paper_runs.train", train)
    for name in ("pooled", "cross-attention"):
        Runs(tmp_path).model(name, 0)
    assert lengths == {"pooled-0": 1, "cross-attention-0": 8}


def test_a_model_of_pooled_captions_is_sampled_with_one_token(bench):
    """The same weights make other pictures with all states; without the context, the same as cross-attention does."""
    way = Prompted("pooled", FEW)
    assert set(bench.figures(way, 0)) == {"colours", "all colours", "swapped", "shape", "distance"}
    prompts = judge_of(bench, "pooled", 0).prompts(16)
    attended = generated(Pipeline.load(bench.runs.model("pooled", 0)), prompts, 0, FEW)
    with pooled_captions():
        pooled = generated(Pipeline.load(bench.runs.model("pooled", 0)), prompts, 0, FEW)
    assert torch.equal(way.pictures(bench, 0), pooled)
    assert not torch.equal(pooled, attended)
