import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_vqvae.modalities.pictures.values import to_pixels, to_unit_range
from stage1_vqvae.modalities.sheets import picture_grid, png_bytes, save_png, to_picture


def pixels_of(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_value_survives_the_round_trip(channels):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    images = to_unit_range(torch.from_numpy(pixels))
    assert images.shape == (1, channels, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert (to_pixels(images) == pixels).all()


def test_the_axes_are_not_mixed_up():
    pixels = pixels_of(2, 4, 6, 3)
    images = to_unit_range(torch.from_numpy(pixels))
    assert images[1, 2, 3, 5].item() == pytest.approx(pixels[1, 3, 5, 2] / 127.5 - 1)


def test_values_beyond_the_range_are_cut_and_not_wrapped():
    images = torch.tensor([-3.0, -1.01, 1.01, 99.0]).view(1, 1, 2, 2)
    assert to_pixels(images).ravel().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_pixels_exactly_and_the_same_bytes_each_time(tmp_path, channels, mode):
    pixels = pixels_of(5, 7, channels)
    save_png(tmp_path / "x.png", to_picture(pixels))
    read = Image.open(tmp_path / "x.png")
    assert (read.mode, read.size) == (mode, (7, 5))
    assert (np.asarray(read).reshape(pixels.shape) == pixels).all()
    assert (tmp_path / "x.png").read_bytes() == png_bytes(to_picture(pixels))
    assert Image.open(io.BytesIO(png_bytes(read))).size == read.size


@pytest.mark.parametrize("count", [1, 5, 6])
def test_a_grid_shows_each_picture_at_its_place(count):
    pixels = pixels_of(count, 32, 40, 3)
    grid = np.asarray(picture_grid(pixels, columns=3, gap=2))
    for number in range(count):
        top, left = 2 + number // 3 * 34, 2 + number % 3 * 42
        assert (grid[top : top + 32, left : left + 40] == pixels[number]).all()
    assert (grid[:2] == 255).all()
    assert grid.shape == (2 + -(-count // 3) * 34, 2 + 3 * 42, 3)


def test_small_pictures_are_enlarged_by_a_whole_factor():
    pixels = pixels_of(10, 8, 8, 1)
    grid = np.asarray(picture_grid(pixels))
    assert grid[2:34, 2:34].shape == (32, 32)
    assert (grid[2:34:4, 2:34:4] == pixels[0, ..., 0]).all()
    assert (grid[5:34:4, 5:34:4] == pixels[0, ..., 0]).all()


def test_the_module_that_guides_showed_is_still_there_and_says_where_it_went(repository, child_environment):
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    from vq_prior.core.media import picture_grid, to_pixels\n"
        "print([str(each.message) for each in told if each.category is DeprecationWarning][0])\n"
        "print(picture_grid.__module__, to_pixels.__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "vq_prior.core.media has moved to stage1_vqvae.modalities.sheets" in done.stdout
    assert "stage1_vqvae.modalities.sheets stage1_vqvae.modalities.pictures.values" in done.stdout
