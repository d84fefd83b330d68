"""JPEGs: whatever decoder is installed, and whether or not the header is read the short way, pixels are Pillow's."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.modalities.pictures import files as files_of_pictures
from stage1_vqvae.modalities.pictures import jpeg
from stage1_vqvae.modalities.pictures.files import read_header, read_picture
from stage1_vqvae.modalities.pictures.values import Transform
from vq_prior.core.errors import ArtifactError

SIZES = ((32, 32), (31, 45), (64, 32), (130, 140), (1, 7))
OPTIONS: tuple[dict, ...] = (
    {},
    {"quality": 30, "optimize": True},
    {"quality": 95, "subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2, "restart_marker_blocks": 2},
    {"progressive": True},
    {"comment": b"a comment"},
    {"icc_profile": b"no profile at all"},
)


def jpeg_bytes(size: tuple[int, int], mode: str = "RGB", *, turned: bool = False, **options: object) -> bytes:
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC, (0, 0, size[0] / 4, size[1] / 4))
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, Transform], np.ndarray]:
    """The oracle: every file through Pillow's own reading of header and pixels."""

    def decode(encoded: bytes, transform: Transform) -> np.ndarray:
        with monkeypatch.context() as patched:
            patched.setattr(files_of_pictures, "plain_jpeg", lambda _: None)
            return read_picture(encoded, transform, lambda: "a.jpg")

    return decode


@pytest.mark.parametrize("fast", [False, True], ids=["pillow", "fast-jpeg"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_pillow(
    fast: bool, size: tuple[int, int], long_way: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast:
        pytest.importorskip("simplejpeg", reason="the extra fast-jpeg is not installed")
    else:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    files = [jpeg_bytes(size, **options) for options in OPTIONS]
    files += [jpeg_bytes(size, "L"), jpeg_bytes(size, "L", progressive=True), jpeg_bytes(size, "CMYK")]
    files += [jpeg_bytes(size, turned=True)]
    for number, encoded in enumerate([*files, *files]):  # the second time the fast decoder is trusted
        for transform in (Transform(32, 32, 3), Transform(24, 40, 1), Transform(size[1], size[0], 3)):
            expected = long_way(encoded, transform)
            assert np.array_equal(read_picture(encoded, transform, lambda: "a.jpg"), expected), (
                number % len(files),
                transform,
            )


def test_headers_say_the_same_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [jpeg_bytes(size, mode) for size in SIZES for mode in ("RGB", "L", "CMYK")]
    files += [jpeg_bytes((31, 45), turned=True)]
    short = [read_header(encoded, lambda: "a.jpg") for encoded in files]
    assert sum(jpeg.plain_jpeg(encoded) is not None for encoded in files) == 2 * len(SIZES)
    monkeypatch.setattr(files_of_pictures, "plain_jpeg", lambda _: None)
    assert short == [read_header(encoded, lambda: "a.jpg") for encoded in files]


def test_a_header_that_was_just_read_is_remembered_and_says_the_same() -> None:
    files = [jpeg_bytes(size, mode) for size in SIZES for mode in ("RGB", "L")]
    for encoded in files:
        first = jpeg.plain_jpeg(encoded)
        assert jpeg._latest == (encoded[: encoded.rindex(b"\xff\xda") + 2], first)
        assert jpeg.plain_jpeg(encoded) is first is not None
        lengths = range(len(jpeg._latest[0]) + 12)
        again = [jpeg.plain_jpeg(encoded[:length]) for length in lengths]
        afresh = []
        for length in lengths:
            jpeg.plain_jpeg(files[0] if encoded is files[-1] else files[-1])
            afresh.append(jpeg.plain_jpeg(encoded[:length]))
        assert again == afresh
        assert set(again) == {None, first}


@pytest.mark.parametrize("fast", [False, True], ids=["pillow", "fast-jpeg"])
def test_a_cut_file_is_refused_as_pillow_refuses_it(
    fast: bool, long_way: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    transform = Transform(32, 32, 3)
    for options in ({}, {"progressive": True}):
        whole = jpeg_bytes((32, 32), **options)
        for length in range(2, len(whole), 7):
            with pytest.raises(ArtifactError) as refusal:
                read_picture(whole[:length], transform, lambda: "a.jpg")
            with pytest.raises(ArtifactError) as expected:
                long_way(whole[:length], transform)
            assert str(refusal.value) == str(expected.value)


def test_a_damaged_file_gives_pillows_pixels_or_its_refusal(long_way: Callable) -> None:
    transform, rng = Transform(32, 32, 3), np.random.default_rng(0)
    whole = jpeg_bytes((32, 32))
    for _ in range(200):
        damaged = bytearray(whole)
        start = damaged.index(b"\xff\xda")
        damaged[rng.integers(start + 14, len(whole) - 2)] ^= 1 << rng.integers(8)
        try:
            expected = long_way(bytes(damaged), transform)
        except ArtifactError:
            with pytest.raises(ArtifactError, match=r"a\.jpg"):
                read_picture(bytes(damaged), transform, lambda: "a.jpg")
        else:
            assert np.array_equal(read_picture(bytes(damaged), transform, lambda: "a.jpg"), expected)


def test_a_decoder_whose_pixels_differ_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        @staticmethod
        def decode_jpeg(encoded: bytes, colorspace: str) -> np.ndarray:
            assert encoded
            assert colorspace == "RGB"
            return np.zeros((32, 32, 3), dtype=np.uint8)

    encoded, transform = jpeg_bytes((32, 32)), Transform(32, 32, 3)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    expected = read_picture(encoded, transform, lambda: "a.jpg")
    monkeypatch.setattr(jpeg, "simplejpeg", Other)
    monkeypatch.setattr(jpeg, "TRUSTED", {})
    for _ in range(3):
        assert np.array_equal(read_picture(encoded, transform, lambda: "a.jpg"), expected)
    assert list(jpeg.TRUSTED.values()) == [False]
