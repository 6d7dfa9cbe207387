"""Several data sets as one: shares of every batch by address, classes by name, held-out sets of their own."""

import pytest
import torch
from PIL import Image

from ldm_kit import config as configs
from ldm_kit.config import UserError, check
from ldm_kit.data.alpha import AlphaMasked
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.data.joined import whole
from ldm_kit.data.latents import LatentBatches, pixels
from ldm_kit.data.mixed import MixedSet, mix, shares_of
from ldm_kit.data.readable import readable, replacements
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.sources import MixConfig, load
from ldm_kit.methods import check_run
from ldm_kit.methods.train import open_method
from ldm_kit.training.batches import BatchSplit, Mixture, StepBatchSampler
from tests.data.test_alpha import folder as transparent
from tests.data.test_alpha import rgba
from tests.training.helpers import TEXT, picture_folder, play


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def grey(first, count, classes, labels, text="a thing"):
    """Pictures whose grey is their number."""
    shades = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 8, 8)
    records = [Record(f"{i}", f"{text} {first + i}", label) for i, label in zip(range(count), labels, strict=True)]
    return InMemory(records, classes, shades.contiguous(), f"{first} {count}")


def split(first, count, classes, labels, heldout=1):
    train, held = grey(first, count, classes, labels), grey(first + 100, heldout, classes, labels[:heldout])
    return Split(train, held, None)


def three():
    sets = [
        split(0, 3, ["cat", "dog"], [0, 1, 0]),
        split(10, 4, ["ant", "cat"], [0, 1, 1, 0]),
        split(20, 2, [], [None] * 2),
    ]
    return mix(sets, [0.5, 0.25, 0.25])


def test_parts_lie_one_after_the_other_with_classes_by_name():
    train, heldout, compositional = three()
    shades = [0, 1, 2, 10, 11, 12, 13, 20, 21]
    assert train.classes == heldout.classes == ["ant", "cat", "dog"]
    assert [record.label for record in train.records] == [1, 2, 1, 0, 1, 1, 0, None, None]
    assert [record.name for record in train.records][2:5] == ["1/2", "2/0", "2/1"]
    assert [record.text for record in train.records][6] == "a thing 13"
    assert [int(train.picture(i)[0, 0, 0]) for i in range(9)] == shades
    order = [8, 0, 4, 4, 2, 7]
    assert train.pictures(order)[:, 0, 0, 0].tolist() == [shades[i] for i in order]
    assert train.pictures([]).shape == (0, 3, 8, 8)
    assert int(train.picture(-1)[0, 0, 0]) == 21
    assert heldout.pictures(range(3))[:, 0, 0, 0].tolist() == [100, 110, 120]
    assert compositional is None
    assert (train.resolution, train.channels, len(train)) == (8, 3, 9)
    assert shares_of(train) == ([3, 4, 2], [0.5, 0.25, 0.25])
    with pytest.raises(IndexError):
        train.picture(9)


def test_compositional_parts_are_joined_where_there_are_some():
    first, second = split(0, 3, [], [None] * 3), split(10, 3, [], [None] * 3)
    joined = mix([first, second._replace(compositional=grey(50, 2, [], [None] * 2))], [1, 1]).compositional
    assert joined is not None
    assert joined.pictures(range(2))[:, 0, 0, 0].tolist() == [50, 51]


def test_the_order_of_parts_is_part_of_the_fingerprint_and_shares_are_not():
    a, b = split(0, 3, [], [None] * 3), split(10, 3, [], [None] * 3)
    prints = [
        mix(sets, shares).train.fingerprint for sets, shares in (([a, b], [1, 1]), ([a, b], [1, 2]), ([b, a], [1, 1]))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_whole_of_a_mix_has_every_picture_once():
    everything = whole(three())
    assert sorted(everything.pictures(range(12))[:, 0, 0, 0].tolist()) == [
        0,
        1,
        2,
        10,
        11,
        12,
        13,
        20,
        21,
        100,
        110,
        120,
    ]


SIZES, SHARES = [30, 500, 7], [0.6, 0.3, 0.1]


def drawn(world=1, start=0, stop=50, batch=20, seed=3, shares=SHARES, sizes=SIZES):
    mixture = Mixture.of(sizes, shares)
    ranks = [
        StepBatchSampler(BatchSplit.of(batch, None, world, rank), seed, mixture, start, stop) for rank in range(world)
    ]
    steps = zip(*ranks, strict=True)
    return [dict(sorted(pair for part in parts for pair in part)) for parts in steps]


def part_of(index, sizes=SIZES):
    return next(k for k in range(len(sizes)) if index < sum(sizes[: k + 1]))


@pytest.mark.parametrize(
    "shares", [SHARES, [6, 3, 1], [0.6, 0.3, 0.1000000001], [1 / 3, 1 / 3, 1 / 3], [0.005, 0.9, 0.095]]
)
def test_every_batch_has_the_shares_and_so_has_the_run(shares):
    steps = drawn(shares=shares)
    total = torch.zeros(3)
    for number, step in enumerate(steps, 1):
        counts = torch.tensor([sum(part_of(i) == k for i in step.values()) for k in range(3)])
        ideal = 20 * torch.tensor(shares) / sum(shares)
        assert (counts - ideal).abs().max() <= 2, counts
        total += counts
        assert (total - number * ideal).abs().max() <= 2, "no drift"


def test_each_part_has_epochs_of_its_own():
    indices = [index for step in drawn(stop=100) for _, index in step.items()]
    for part, size in enumerate(SIZES):
        own = [index for index in indices if part_of(index) == part]
        order = sorted((position, index) for step in drawn(stop=100) for position, index in step.items())
        epochs = len(own) // size
        counts = torch.tensor([own.count(index) for index in range(sum(SIZES[:part]), sum(SIZES[: part + 1]))])
        assert counts.min() >= epochs
        assert counts.max() <= epochs + 1
        assert len(order) == 2000


def test_shares_of_any_size_are_exact():
    assert Mixture.of([1, 1, 1], [0.7, 0.2, 0.1]).weights == [7, 2, 1]
    tiny = Mixture.of([5, 5], [1, 1e-9])
    assert sum(tiny.part(number)[0] for number in range(1000)) <= 1
    assert sum(tiny.part(5 * 10**9 + number)[0] for number in range(1000)) <= 1


def test_only_the_present_epochs_of_parts_are_held():
    """Orders of a part with a million samples take 8 MB each."""
    mixture = Mixture.of(SIZES, SHARES)
    order = [mixture.index(3, position, 20) for position in range(4000)]
    assert len(mixture.orders) <= 2 * len(SIZES)
    fresh = Mixture.of(SIZES, SHARES)
    backwards = [fresh.index(3, position, 20) for position in reversed(range(4000))]
    assert order == backwards[::-1]
    assert mixture == fresh


def test_the_order_is_the_same_on_any_number_of_processes_and_from_any_step():
    alone = drawn()
    for world in (2, 4):
        assert drawn(world=world) == alone
    assert drawn(start=17) == alone[17:]
    assert drawn(seed=4) != alone


def test_every_rank_sees_every_part():
    """Parts take turns in random order: else a rank of two would see one part alone."""
    mixture = Mixture.of([50, 50], [0.5, 0.5])
    for rank in range(2):
        sampler = StepBatchSampler(BatchSplit.of(8, None, 2, rank), 0, mixture, 0, 40)
        counts = torch.tensor([[part_of(i, [50, 50]) for _, i in batch] for batch in sampler]).float()
        assert 0.3 < counts.mean() < 0.7
        assert counts.std(0).min() > 0


def mixed_tree(tmp_path, run, *overrides, shares=(3, 1)):
    parts = []
    for number, share in enumerate(shares):
        root = tmp_path / f"part{number}"
        if not root.exists():
            picture_folder(root, count=20, seed=number)
        parts.append(
            {"share": share, "data": {"source": "folder", "path": str(root), "resolution": 16, "heldout": 0.2}}
        )
    tree = {**TEXT, "run": str(tmp_path / run), "data": {"source": "mix", "parts": parts}}
    tree["train"] = {**TEXT["train"], "steps": 6, "checkpoint_every": 3}
    for override in overrides:
        configs.assign(tree, override)
    return check_run(tree, "the test's config")


def test_a_run_trains_on_a_mix_and_resumes(tmp_path):
    whole_run = play(mixed_tree(tmp_path, "whole"))
    play(mixed_tree(tmp_path, "part"), until=3)
    rest = play(mixed_tree(tmp_path, "part"), resume="latest")
    assert rest.weights == whole_run.weights
    assert rest.lines == whole_run.lines[3:]
    assert play(mixed_tree(tmp_path, "other", shares=(1, 3))).lines != whole_run.lines


def test_other_shares_are_another_run(tmp_path):
    play(mixed_tree(tmp_path, "run"), until=3)
    with pytest.raises(UserError, match=r"data\.parts"):
        play(mixed_tree(tmp_path, "run", shares=(1, 3)), resume="latest")


def test_the_trainer_asks_for_the_shares(tmp_path):
    method = open_method(mixed_tree(tmp_path, "run"))
    sizes = [len(part) for part in method.data.train.parts]
    assert method.mixture == Mixture.of(sizes, [3, 1])
    assert len(method.batches) == sum(sizes)
    assert len(method.heldout) == 40 - sum(sizes)


def test_a_config_reads_parts_of_any_source(tmp_path):
    picture_folder(tmp_path / "in", count=12)
    parts = [
        {
            "share": 1,
            "data": {
                "source": "folder",
                "path": str(tmp_path / "in"),
                "resolution": 16,
                "caption_template": "x {class}",
            },
        },
        {"share": 2, "data": {"source": "shapes", "count": 30, "resolution": 16}},
    ]
    config = check(MixConfig, {"source": "mix", "parts": parts}, "x.yaml")
    train, heldout, compositional = load(config)
    assert isinstance(train, MixedSet)
    assert train.records[0].text.startswith("x ")
    alone = load(ShapesConfig(count=30, resolution=16))
    assert torch.equal(train.pictures(range(len(train)))[-1], alone.train.picture(len(alone.train) - 1))
    assert (config.resolution, config.channels) == (16, 3)
    assert len(heldout) == len(alone.heldout) + len(load(FolderConfig(path=tmp_path / "in", resolution=16)).heldout)
    assert (compositional is None) == (alone.compositional is None)


FOLDER = {"source": "folder", "path": "x"}


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([{"share": 1, "data": FOLDER}], "x.yaml: parts are 1; expected 2 to 16 data sets"),
        ([{"share": 0, "data": FOLDER}] * 2, "share: expected"),
        ([{"data": FOLDER}] * 2, "missing key 'parts.0.share'"),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {**FOLDER, "resolution": 64}}],
            "part 2 (folder) has resolution 64 and part 1 (folder) 32",
        ),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {"source": "digits"}}],
            "part 2 (digits) has resolution 8",
        ),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {**FOLDER, "channels": 1}}],
            "has channels 1 and part 1 (folder) 3",
        ),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {**FOLDER, "alpha": "mask"}}],
            "part 2 has alpha mask and part 1 flatten",
        ),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {**FOLDER, "buckets": {"step": 8}}}],
            "part 2 has buckets, but the pictures of a mix are squares; leave them out",
        ),
        ([{"share": 1, "data": FOLDER}, {"share": 1, "data": {"source": "mix", "parts": []}}], "mix"),
        (
            [{"share": 1, "data": FOLDER}, {"share": 1, "data": {**FOLDER, "pth": "x"}}],
            "x.yaml: unknown key 'parts.1.data.pth'; nearest known: path",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, sentence):
    with pytest.raises(UserError) as error:
        check(MixConfig, {"source": "mix", "parts": parts}, "x.yaml")
    assert sentence in str(error.value)


def test_a_mix_of_masked_pictures_keeps_their_alpha(tmp_path):
    parts = [
        {
            "share": 1,
            "data": {
                **FOLDER,
                "path": str(transparent(tmp_path / name, rgba(4, seed=seed))),
                "resolution": 16,
                "alpha": "mask",
                "heldout": 0.0,
            },
        }
        for seed, name in enumerate("ab")
    ]
    config = check(MixConfig, {"source": "mix", "parts": parts}, "x.yaml")
    train = load(config).train
    assert config.alpha == "mask"
    assert isinstance(train, AlphaMasked)
    assert (train.channels, shares_of(train)) == (3, ([4, 4], [1, 1]))
    assert torch.equal(train.with_alpha([5])[1][0, 0], torch.from_numpy(rgba(4, seed=1)[1, :, :, 3]))


def test_a_broken_picture_of_a_part_is_replaced_within_it(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), i + (10 if name == "b" else 0)).save(tmp_path / name / f"{i}.png")
    config = FolderConfig(path=tmp_path / "a", resolution=8, heldout=0.0, memory_limit=0, verify=False, max_bad_share=1)
    sets = [load(config.model_copy(update={"path": tmp_path / name})) for name in "ab"]
    (tmp_path / "b" / "1.png").write_bytes(b"")
    joined = mix(sets, [1, 1]).train
    assert joined.pictures(range(6))[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 12, 12]
    assert dict(replacements(joined)) == {4: 5}
    assert (len(replacements(joined)), replacements(joined)[4]) == (1, 5)
    labels = torch.arange(6)[:, None]
    batch = LatentBatches(pixels(joined), {"label": labels}, [], seed=0).__getitems__([(0, 4), (1, 3)])
    assert batch["inputs"]["label"][:, 0].tolist() == [5, 3]
    assert readable(Split(joined, joined, None), config).train.pictures([4]).flatten()[0] == 12


def test_a_run_without_captions_asks_no_part_for_them(tmp_path):
    """A template whose value lacks stops a run that is told captions, and no other."""
    picture_folder(tmp_path / "in", count=12)
    data = {**FOLDER, "path": str(tmp_path / "in"), "caption_template": "{style}"}
    config = check(MixConfig, {"source": "mix", "parts": [{"share": 1, "data": data}] * 2}, "x.yaml")
    assert len(load(config, captions=False).train) > 12
    with pytest.raises(UserError, match="has no style"):
        load(config)
