import math

import pytest
import torch

from ldm_kit.metrics.reconstruction import decibels, mse, psnr, ssim, ssim_zero_padded


def picture(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_psnr_is_that_of_bytes():
    a, b = torch.randint(256, (2, 4, 3, 8, 8)).double()
    on_bytes = 10 * torch.log10(255**2 / (a - b).square().mean((1, 2, 3)))
    assert torch.allclose(psnr(a / 127.5 - 1, b / 127.5 - 1), on_bytes, atol=1e-5)


def test_psnr_in_closed_form():
    x = torch.zeros(2, 1, 2, 2)
    y = torch.stack([torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 9.0)])  # the second is clamped to 1
    assert psnr(x, y).tolist() == pytest.approx([20.0, 10 * math.log10(4)], abs=1e-5)
    assert psnr(x, x).tolist() == pytest.approx([10 * math.log10(4e10)] * 2)
    assert psnr(x, x * math.nan).isnan().all()


def test_two_figures_of_a_set_are_not_one():
    x, y = picture(2, 3, 8, 8), picture(2, 3, 8, 8).flip(0)
    y[0] = x[0] + 0.01
    mean_of_psnr, psnr_of_mean = psnr(x, y).mean(), decibels(mse(x, y).mean())
    assert psnr_of_mean < mean_of_psnr
    assert psnr_of_mean == pytest.approx(10 * math.log10(4 / mse(x, y).mean().item()))
    assert decibels(0.04).item() == pytest.approx(20)


def test_ssim_is_that_of_pictures_in_the_unit_interval():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = picture(3, 3, 16, 12), picture(3, 3, 16, 12).flip(2)
    unit = structural_similarity_index_measure((x + 1) / 2, (y + 1) / 2, data_range=1.0, reduction="none")
    assert torch.allclose(ssim(x, y), unit, atol=1e-5)
    assert torch.allclose(ssim(x, x), torch.ones(3))
    assert ssim(x, x.clone()[:1].expand(3, -1, -1, -1))[1] < 0.5


def test_ssim_of_flat_pictures_in_closed_form():
    """Without variance only the luminance term is left: (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2, a, b in 0..1."""
    x, y = torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), 0.0)
    assert ssim(x, y).item() == pytest.approx(1e-4 / (0.25 + 1e-4), rel=1e-3)


@pytest.mark.parametrize("figure", [mse, psnr, ssim, ssim_zero_padded])
def test_figures_refuse_bad_input(figure):
    x = picture(1, 3, 8, 8)
    for bad in (x[:, :1], x[0], x.byte()):
        with pytest.raises(ValueError, match="one shape"):
            figure(x, bad)


def test_ssim_wants_six_pixels():
    assert ssim(picture(1, 1, 6, 6), picture(1, 1, 6, 6)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 6"):
        ssim(picture(1, 1, 5, 9), picture(1, 1, 5, 9))


def test_zero_padded_ssim_is_the_formula_at_each_pixel():
    """Weighted sums over the window written out, for pictures narrower than the window."""
    x, y = (p / 2 + 0.5 for p in picture(2, 2, 7, 9).double())
    steps = torch.arange(-5, 6)
    weight = torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 1.5**2)).double()
    weight /= weight.sum()

    def around(image, i, j):
        padded = torch.nn.functional.pad(image, (5, 5, 5, 5))
        return (weight * padded[i : i + 11, j : j + 11]).sum()

    values = []
    for a, b in zip(x, y, strict=True):
        for i in range(7):
            for j in range(9):
                m, n = around(a, i, j), around(b, i, j)
                s, t, both = around(a * a, i, j) - m * m, around(b * b, i, j) - n * n, around(a * b, i, j) - m * n
                values.append((2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m * m + n * n + 1e-4) * (s + t + 9e-4)))
    assert ssim_zero_padded(*(2 * p[None] - 1 for p in (x, y))).item() == pytest.approx(
        float(sum(values) / 126), abs=1e-6
    )


def test_the_two_borders_of_ssim_differ_near_borders_alone():
    """Black around the pictures is the same in both, so that border pixels agree more; far inside nothing changes."""
    x, y = picture(2, 3, 16, 16), picture(2, 3, 16, 16).flip(0)
    assert (ssim_zero_padded(x, y) > ssim(x, y) + 0.005).all()
    assert torch.allclose(ssim_zero_padded(x, x), torch.ones(2))
    assert ssim_zero_padded(x, 9 * y) == pytest.approx(ssim_zero_padded(x, (9 * y).clamp(-1, 1)))
    inside = [torch.nn.functional.pad(p, (40, 40, 40, 40), value=-1.0) for p in (x, y)]  # black already
    assert torch.allclose(ssim_zero_padded(*inside), ssim(*inside), atol=1e-5)
