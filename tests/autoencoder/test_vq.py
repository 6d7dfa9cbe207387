from types import SimpleNamespace

import pytest
import torch

from autoencoder.adversarial import two_player
from autoencoder.base import Autoencode, AutoencoderError
from autoencoder.codebook import Codebook, CodeUsage, forget, perplexity, smoothed
from autoencoder.loss import AutoencoderLoss, LossConfig
from autoencoder.quantiser import flatten, nearest, quantise
from autoencoder.vq import VQConfig, build_vq

SETTINGS = {"ema": True, "decay": 0.5, "revive_every": 0, "revive_below": 0.03, "revive_until": None}


def embedding(codes, dim):
    torch.manual_seed(0)
    return torch.nn.Embedding(codes, dim)


def codebook(codes, dim, **more):
    return Codebook(embedding(codes, dim), SimpleNamespace(**(SETTINGS | more)))


def update(book, z, indices, step):
    """One step of one micro-batch."""
    book.see(z, indices)
    return book.after_step(step)


def test_chunked_neighbours_are_the_nearest_even_under_autocast():
    z, codes = torch.randn(50, 4), torch.randn(17, 4)
    expected = torch.cdist(z, codes).argmin(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest(z, codes, chunk=40).equal(expected)


def test_commitment_moves_the_encoder_by_beta_and_the_other_term_the_codes():
    z, codes = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    found = quantise(z, codes, beta=0.1)
    gz, gc = torch.autograd.grad(found.loss, (z, codes))
    chosen = codes[found.indices].movedim(-1, 1)
    torch.testing.assert_close(gz, 0.1 * 2 * (z - chosen) / z.numel())
    expected = torch.zeros_like(codes).index_add_(0, found.indices.flatten(), flatten(2 * (chosen - z) / z.numel()))
    torch.testing.assert_close(gc, expected)


def test_gradients_go_straight_through():
    z, codes = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    latents = quantise(z, codes).latents
    (grad,) = torch.autograd.grad((latents * torch.arange(4.0)).sum(), z)
    torch.testing.assert_close(grad, torch.arange(4.0).expand_as(z))


def test_our_loss_is_diffusers_own_once_beta_sits_right():
    vae, z = build_vq(VQConfig(codes=8, widths=(16, 16))), torch.randn(2, 4, 4, 4)
    _, loss, (_, _, indices) = vae.quantize(z)
    found = quantise(z, vae.quantize.embedding.weight)
    torch.testing.assert_close(found.loss, loss)
    assert found.indices.flatten().equal(indices)


def test_an_ema_codebook_has_no_codebook_gradient():
    vae = build_vq(VQConfig(codes=8, widths=(16, 16), ema=True))
    found = quantise(torch.randn(1, 4, 4, 4, requires_grad=True), vae.quantize.embedding.weight)
    found.loss.backward()
    assert vae.quantize.embedding.weight.grad is None


def test_moving_averages_converge_to_k_means():
    book = codebook(4, 2, decay=0.2)
    z = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(5))
    for step in range(80):
        codes = book.embedding.weight
        update(book, z, quantise(z, codes).indices, step)
    vectors, indices = flatten(z), quantise(z, book.embedding.weight).indices.flatten()
    for k in indices.unique():
        torch.testing.assert_close(book.embedding.weight[k], vectors[indices == k].mean(0), atol=1e-3, rtol=0)


def test_one_update_is_the_formula_and_sums_over_ranks():
    book = codebook(3, 2, decay=0.9)
    before = book.embedding.weight.clone()
    book.reduce = lambda t: 2 * t  # a second rank with the same batch
    z, indices = torch.ones(1, 2, 1, 2), torch.tensor([[[1, 1]]])
    update(book, z, indices, 1)
    counts = torch.tensor([0.9, 0.9 + 0.1 * 4, 0.9])
    sums = 0.9 * before
    sums[1] += 0.1 * 4
    torch.testing.assert_close(book.embedding.weight.data, sums / smoothed(counts)[:, None])
    torch.testing.assert_close(book.embedding.weight[0], before[0], atol=1e-4, rtol=1e-4)


def test_revival_fills_a_collapsed_codebook():
    z = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(5))
    used = {}
    for every in (0, 5):
        book = codebook(32, 2, revive_every=every)
        book.embedding.weight.data.add_(100)
        book.embedding.weight.data[0] = 0
        book.sums = book.embedding.weight.detach().clone()
        for step in range(40):
            update(book, z, quantise(z, book.embedding.weight).indices, step)
        usage = CodeUsage(32)
        usage.add(quantise(z, book.embedding.weight).indices)
        used[every] = usage.summary()["usage"]
    assert used[0] == 1 / 32
    assert used[5] > 0.9


def test_revival_happens_on_its_steps_and_gives_every_rank_the_same_codes():
    book = codebook(6, 2, revive_every=5, revive_until=10, decay=0.01)
    book.share = lambda fresh: torch.full_like(fresh, 7.0)
    z, indices = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert [int(update(book, z, indices, s).sum()) for s in (0, 4, 15)] == [0, 0, 0]
    dead = update(book, z, indices, 5)
    assert dead.tolist() == [False] + [True] * 5
    assert (book.embedding.weight[1:] == 7).all()
    book = Codebook(book.embedding, book.settings, reduce=lambda t: 2 * t)
    with pytest.raises(AutoencoderError, match="broadcast from rank 0"):
        update(book, z, indices, 5)


def test_revived_rows_lose_their_adam_moments():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimiser = torch.optim.Adam([weight])
    weight.sum().backward()
    optimiser.step()
    forget(optimiser, weight, torch.tensor([True, False, False]))
    assert (optimiser.state[weight]["exp_avg"] == 0).all(1).tolist() == [True, False, False]


def test_usage_counts_over_a_whole_set():
    usage = CodeUsage(4, reduce=lambda counts: 2 * counts)
    for batch in ([0, 1], [1, 0], [0, 1]):
        usage.add(torch.tensor(batch))
    assert usage.counts.tolist() == [3, 3, 0, 0]
    assert usage.summary() == pytest.approx({"usage": 0.5, "perplexity": 2.0, "perplexity_share": 0.5})
    assert perplexity(torch.tensor([5, 0])) == 1


def test_a_codebook_state_goes_with_a_checkpoint():
    book, other = codebook(4, 2), codebook(4, 2)
    z = torch.randn(1, 2, 4, 4)
    update(book, z, quantise(z, book.embedding.weight).indices, 0)
    other.load_state_dict(book.state_dict())
    assert other.sums.equal(book.sums)
    with pytest.raises(AutoencoderError, match=r"shape \(4, 2\)"):
        codebook(5, 2).load_state_dict(book.state_dict())


def test_micro_batches_move_a_codebook_as_their_whole_does_and_void_ones_not_at_all():
    z = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    whole, parts = (codebook(8, 2, revive_every=1, revive_below=0.9) for _ in "ab")
    indices = quantise(z, whole.embedding.weight).indices
    parts.see(z, indices)
    parts.discard_step()
    assert parts.embedding.weight.equal(whole.embedding.weight)
    for half, codes in zip(z.chunk(2), indices.chunk(2), strict=True):
        parts.see(half, codes)
    assert parts.after_step(1).equal(update(whole, z, indices, 1))
    assert parts.embedding.weight.equal(whole.embedding.weight)
    assert parts.counts.equal(whole.counts)
    assert parts.sums.equal(whole.sums)


def test_a_training_step_shows_the_codebook_its_latents_after_the_backward():
    config = VQConfig(resolution=16, widths=(8, 16), norm_num_groups=4, codes=8, ema=True)
    wrapped = Autoencode(build_vq(config), beta=config.beta)
    book = Codebook(wrapped.vae.quantize.embedding, config)
    before = book.embedding.weight.clone()
    x, loss = torch.rand(2, 3, 16, 16), AutoencoderLoss(LossConfig())
    turns = two_player(x, wrapped(x, torch.empty(0)), 1, loss=loss, last_layer=wrapped.last_layer, codebook=book)
    for _, loss, logs in turns:
        loss.backward()
        assert book.embedding.weight.equal(before)
        assert 1 <= logs["perplexity"] <= 8
        assert logs["kl"] == 0
        assert not book.seen
    book.after_step(1)
    assert not book.embedding.weight.equal(before)
