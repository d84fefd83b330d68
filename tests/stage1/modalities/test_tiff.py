"""TIFFs of science: read as what they are, or refused by name, with tifffile and without."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities.pictures.files import read_header, read_picture
from stage1_vqvae.modalities.pictures.values import Transform
from vq_prior.core.errors import ArtifactError

RNG = np.random.default_rng(0)


def bytes_of(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def name() -> str:
    return "x.tif"


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
NOT_PICTURES = {
    "bands last": (
        tiff(bytes_of(16, 16, 13)),
        r"x\.tif holds an array \[16, 16, 13\], which may be 13 bands or 16 pages",
    ),
    "wide bands last": (tiff(bytes_of(40, 60, 4, dtype=np.uint16), **CONTIGUOUS), r"x\.tif is a TIFF of uint16 .* YXS"),
    "13 bands": (tiff(bytes_of(16, 16, 13), **CONTIGUOUS), r"x\.tif is a TIFF of uint8 \[16, 16, 13\], axes YXS"),
    "13 planes": (tiff(bytes_of(13, 8, 8), photometric="minisblack", planarconfig="separate"), r"uint8 \[13, 8, 8\]"),
    "2 bands": (tiff(bytes_of(16, 16, 2), **CONTIGUOUS), r"x\.tif is a TIFF of uint8 \[16, 16, 2\]"),
    "three pages as colour": (
        tiff(bytes_of(3, 16, 16)),
        r"x\.tif holds an array \[3, 16, 16\], which may be 3 pages or",
    ),
    "four pages as colour": (
        tiff(bytes_of(4, 16, 16)),
        r"x\.tif holds an array \[4, 16, 16\], which may be 4 pages or",
    ),
    "float64": (tiff(RNG.random((8, 8))), r"x\.tif is a TIFF of float64 \[8, 8\]"),
    "float16": (tiff(RNG.random((8, 8)).astype(np.float16)), r"x\.tif is a TIFF of float16 \[8, 8\]"),
    "complex": (tiff(RNG.random((8, 8)).astype(np.complex64)), r"x\.tif is a TIFF of complex64 \[8, 8\]"),
    "float colour": (tiff(RNG.random((8, 8, 3), dtype=np.float32), photometric="rgb"), r"TIFF of float32 \[8, 8, 3\]"),
    "64 bits": (tiff(np.array([[0, 2**40]] * 2)), r"x\.tif is a TIFF of int64 \[2, 2\].* beyond 32 bits"),
    "pages of 64 bits": (tiff(np.zeros((5, 8, 8), np.int64)), r"x\.tif is a TIFF of 5 pages of int64 \[8, 8\]"),
    "pages or colour of 64 bits": (tiff(np.zeros((3, 8, 8), np.int64)), r"holds an array \[3, 8, 8\], which may be"),
    "cut": (tiff(bytes_of(16, 16, 13), **CONTIGUOUS)[:600], r"x\.tif is "),
}


@pytest.mark.parametrize("case", NOT_PICTURES)
def test_what_is_no_picture_is_refused_by_name(case: str) -> None:
    data, message = NOT_PICTURES[case]
    with pytest.raises(ArtifactError, match=message):
        read_header(data, name)


def test_floats_of_32_bits_are_refused_when_they_are_read() -> None:
    with pytest.raises(ArtifactError, match=r"x\.tif cannot be decoded \(floating-point pixels have no agreed range\)"):
        read_picture(tiff(RNG.random((8, 8), dtype=np.float32)), Transform(8, 8, 1), name)


READ = {
    "masks": (np.arange(64).reshape(8, 8) < 16, {}, 0, 255, (0, 255)),
    "signed bytes": (RNG.integers(-100, 100, (8, 8)).astype(np.int8), {}, -128, 127, None),
    "signed colour": (RNG.integers(-5, 900, (8, 8, 3)).astype(np.int16), {"photometric": "rgb"}, -32768, 32767, None),
    "colour of 8 bits": (bytes_of(8, 8, 3), {"photometric": "rgb"}, 0, 255, (0, 255)),
    "64 bits that are small": (RNG.integers(0, 900, (8, 8)), {}, -(2**31), 2**31 - 1, None),
    "unsigned of 64 bits": (RNG.integers(0, 900, (8, 8)).astype(np.uint64), {}, -(2**31), 2**31 - 1, None),
    "big-endian of 32 bits": (
        bytes_of(8, 8, dtype=np.uint16).astype(np.uint32),
        {"byteorder": ">"},
        0,
        2**32 - 1,
        None,
    ),
    "BigTIFF": (bytes_of(8, 8, dtype=np.uint16), {"bigtiff": True}, 0, 65535, None),
}


@pytest.mark.parametrize("case", READ)
def test_integers_are_read_as_they_were_written(case: str) -> None:
    values, options, least, most, bounds = READ[case]
    header = read_header(tiff(values, **options), name)
    channels = 1 if values.ndim == 2 else 3
    assert (header.shape, header.channels) == ((8, 8), channels)
    if bounds is None:
        assert (header.least, header.most) == (least, most)
        assert (header.quantiles[0], header.quantiles[-1]) == (values.min(), values.max())
        bounds = (int(values.min()), int(values.max()))
        found = read_picture(tiff(values, **options), Transform(8, 8, channels, range=bounds), name)
        assert np.array_equal(np.squeeze(found), values)
    else:
        found = read_picture(tiff(values, **options), Transform(8, 8, channels), name)
        assert np.array_equal(np.squeeze(found), values.astype(np.uint8) * (255 if values.dtype == bool else 1))


def test_colour_in_planes_of_another_program_is_colour() -> None:
    for dtype, transform in ((np.uint8, Transform(8, 8, 3)), (np.uint16, Transform(8, 8, 3, range=(0, 65535)))):
        values = bytes_of(3, 8, 8, dtype=dtype)
        data = tiff(values, photometric="rgb", planarconfig="separate", metadata=None, software="other", description="")
        assert np.array_equal(read_picture(data, transform, name), np.moveaxis(values, 0, -1))
        assert read_header(data, name).channels == 3


def test_masks_of_pillow_are_as_they_were() -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(64).reshape(8, 8) < 16).save(file, format="TIFF")
    assert (read_picture(file.getvalue(), Transform(8, 8, 1), name) == 255).mean() == 0.25


def test_without_tifffile_what_pillow_cannot_read_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for data, kind in (
        (NOT_PICTURES["13 bands"][0], "13 channels of 8-bit integers"),
        (NOT_PICTURES["float64"][0], "1 channels of 64-bit floating-point numbers"),
    ):
        with pytest.raises(
            ArtifactError, match=rf"x\.tif is a TIFF that Pillow cannot read \({kind}\); pip install .*tiff"
        ):
            read_header(data, name)


def test_arrays_of_bands_are_named_by_the_command_that_reads_them(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.tif").write_bytes(NOT_PICTURES["bands last"][0])
    with pytest.raises(ArtifactError, match=r"0\.tif holds an array \[16, 16, 13\].* by --frames all"):
        open_data(str(tmp_path))
    data = open_data(str(tmp_path), frames="all")
    assert len(data.train) + len(data.validation) == 64
    assert data.facts().common_shape == (16, 13)
