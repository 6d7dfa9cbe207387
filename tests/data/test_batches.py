import torch

from ldm_kit.data.batches import PictureBatches, chunks, flipped, flips, spread
from ldm_kit.data.images import InMemory, Record, to_unit

PIXELS = torch.arange(6 * 3 * 16).view(6, 3, 4, 4).to(torch.uint8)
PICTURES = InMemory([Record(str(i), "", None) for i in range(6)], [], PIXELS, "print")


def test_a_batch_has_pictures_and_positions():
    batch = PictureBatches(PICTURES, 1).__getitems__([(7, 2), (8, 5)])
    assert torch.equal(batch["x"], to_unit(PIXELS[[2, 5]]))
    assert batch["position"].tolist() == [7, 8]
    assert (len(PictureBatches(PICTURES, 1)), PictureBatches(PICTURES, 1).fingerprint) == (6, "print")


def test_a_flip_belongs_to_the_position_not_to_the_batch():
    source = PictureBatches(PICTURES, seed=1, flip=True)
    places = [(position, position % 6) for position in range(40)]
    whole = source.__getitems__(places)["x"]
    alone = torch.cat([source.__getitems__([place])["x"] for place in places])
    assert torch.equal(whole, alone)
    mirrored = flips(1, torch.arange(40))
    for i, x in enumerate(whole):
        plain = to_unit(PIXELS[i % 6])
        assert torch.equal(x, plain.flip(2) if mirrored[i] else plain)


def test_a_flip_is_a_fair_coin_for_each_seed():
    position = torch.arange(10_000)
    assert abs(flips(1, position).float().mean() - 0.5) < 0.02
    assert abs((flips(1, position) == flips(2, position)).float().mean() - 0.5) < 0.02
    x = torch.rand(4, 1, 2, 2)
    assert torch.equal(flipped(flipped(x, 3, position[:4]), 3, position[:4]), x)


def test_pictures_shown_are_spread_over_the_whole_set():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]


def test_chunks_cover_a_set_once():
    assert [index for part in chunks(PICTURES, 4) for index in part] == list(range(6))
    assert max(map(len, chunks(PICTURES, 4))) == 4
