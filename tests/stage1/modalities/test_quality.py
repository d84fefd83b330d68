import math

import numpy as np
import pytest
import torch

from stage1_vqvae.modalities.pictures.quality import mse, psnr, ssim


def images(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ssim_in_numpy(x, y, window):
    """Wang et al. 2004, eq. 13, one window at a time, for images [height, width] in [-1, 1] seen as 0 to 255."""
    x, y = (x + 1) * 127.5, (y + 1) * 127.5
    offsets = np.arange(window) - window // 2
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    scores = []
    for top in range(x.shape[0] - window + 1):
        for left in range(x.shape[1] - window + 1):
            a, b = (image[top : top + window, left : left + window] for image in (x, y))
            mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
            var_a, var_b = (kernel * (a - mean_a) ** 2).sum(), (kernel * (b - mean_b) ** 2).sum()
            covariance = (kernel * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            scores.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return np.mean(scores)


@pytest.mark.parametrize(("height", "width", "window"), [(32, 32, 11), (12, 20, 11), (8, 8, 7), (11, 9, 9), (3, 30, 3)])
def test_ssim_equals_the_formula_written_window_by_window(height, width, window):
    x = images(0, 3, 2, height, width)
    y = (x + 0.3 * images(1, 3, 2, height, width)).clamp(-1, 1)
    expected = [
        np.mean([ssim_in_numpy(a.double().numpy(), b.double().numpy(), window) for a, b in zip(p, q, strict=True)])
        for p, q in zip(x, y, strict=True)
    ]
    # Sums in another order in float64, then rounded to float32.
    assert ssim(x, y).numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_ssim_of_an_image_with_itself_is_one():
    x = images(0, 2, 3, 16, 16)
    assert ssim(x, x).tolist() == [1.0, 1.0]
    assert (ssim(x, -x) < -0.5).all()  # every window is anti-correlated


def test_mse_and_psnr_equal_numpy():
    x, y = images(0, 4, 3, 8, 8), images(1, 4, 3, 8, 8)
    errors = ((x.double() - y.double()).numpy() ** 2).mean(axis=(1, 2, 3))
    assert mse(x, y).numpy() == pytest.approx(errors, rel=1e-6)  # float32 sums of 192 terms
    assert psnr(x, y).numpy() == pytest.approx(10 * np.log10(4 / errors), rel=1e-6)


def test_psnr_has_a_closed_form_for_a_constant_error():
    black = torch.full((1, 1, 4, 4), -1.0)
    assert psnr(black, -black).item() == pytest.approx(0.0, abs=1e-6)
    assert psnr(black, black + 0.2).item() == pytest.approx(20.0, abs=1e-4)
    assert math.isfinite(psnr(black, black).item())


def test_an_image_does_not_depend_on_its_batch():
    x, y = images(0, 4, 3, 16, 16), images(1, 4, 3, 16, 16)
    for metric in (mse, psnr, ssim):
        together = metric(x, y)
        assert together.shape == (4,)
        assert torch.allclose(metric(x[2:3], y[2:3]), together[2:3], atol=1e-6)  # sums may be split otherwise
