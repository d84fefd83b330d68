"""Pictures of more than 8 bits: which of their numbers a codec sees, what is said of the others, and what comes back.

Letters: C channels.
"""

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from stage1_vqvae.data.sources import open_data
from stage1_vqvae.extract import extract_codes
from stage1_vqvae.modalities.pictures import PICTURES, pictures_in
from stage1_vqvae.modalities.pictures.deep import numbers_of
from stage1_vqvae.modalities.pictures.files import read_header, read_picture
from stage1_vqvae.modalities.pictures.opening import open_picture
from stage1_vqvae.modalities.pictures.settings import PictureSize, Range, parse_range
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.model import load_codec
from stage1_vqvae.settings import ExtractCodes, ModelSettings, TrainVQVAE, resolve
from stage1_vqvae.train import new_codec, train_vqvae
from vq_prior.cli import main
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.testing import check_modality

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
COVERED = RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
SIGNED = RNG.integers(-704, 1409, (5, 7)).astype(np.int16)


def png16(pixels: np.ndarray, colour_type: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, written by its specification alone: lines without a filter."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def netpbm(values: np.ndarray, most: int, *, plain: bool = False) -> bytes:
    kind = (3 if values.ndim == 3 else 2) if plain else 6 if values.ndim == 3 else 5
    body = " ".join(map(str, values.ravel())).encode() if plain else values.astype(">u2").tobytes()
    return b"P%d\n%d %d\n%d\n" % (kind, values.shape[1], values.shape[0], most) + body


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


SMALL = {"steps": 2, "batch_size": 4, "model": ModelSettings(width=8, num_residual_blocks=0), "precision": "fp32"}


def folder_of(path: Path, files: list[bytes], suffix: str = "png") -> Path:
    path.mkdir()
    for number, file in enumerate(files):
        (path / f"{number:02d}.{suffix}").write_bytes(file)
    return path


def twelve_bits(count: int = 20, side: int = 8) -> list[np.ndarray]:
    """Pictures of 0..4095 in 16 bits, both ends among them."""
    pictures = [np.random.default_rng(n).integers(0, 4096, (side, side), dtype=np.uint16) for n in range(count)]
    pictures[0][0, :2] = 0, 4095
    return pictures


CASES = {
    "png grey": (png16(GREY, 0), GREY, (0, 65535)),
    "png colour": (png16(COLOUR, 2), COLOUR, (0, 65535)),
    "pgm of 12 bits": (netpbm(GREY // 16, 4095), GREY // 16, (0, 4095)),
    "pgm of 16 bits": (netpbm(GREY, 65535), GREY, (0, 65535)),
    "ppm of 12 bits": (netpbm(COLOUR // 16, 4095), COLOUR // 16, (0, 4095)),
    "ppm of 16 bits": (netpbm(COLOUR, 65535), COLOUR, (0, 65535)),
    "pgm in words": (netpbm(GREY // 16, 4095, plain=True), GREY // 16, (0, 4095)),
    "ppm in words": (netpbm(COLOUR, 65535, plain=True), COLOUR, (0, 65535)),
} | {
    f"tiff {order} {compression} {name}": (
        tiff(values, byteorder=order, compression=compression, photometric=photometric),
        values,
        bounds,
    )
    for order in "<>"
    for compression in (None, "zlib")
    for name, values, photometric, bounds in (
        ("grey", GREY, "minisblack", (0, 65535)),
        ("colour", COLOUR, "rgb", (0, 65535)),
        ("signed", SIGNED, "minisblack", (-32768, 32767)),
        ("32 bits", SIGNED.astype(np.int32) * 3, "minisblack", (-(2**31), 2**31 - 1)),
    )
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_that_were_written(case: str) -> None:
    data, values, bounds = CASES[case]
    numbers = numbers_of(data, open_picture(data, case))
    assert np.array_equal(numbers.values, values)
    assert numbers.alpha is None
    assert (numbers.least, numbers.most) == bounds
    header = read_header(data, lambda: case)
    assert (header.shape, header.channels) == (values.shape[:2], 1 if values.ndim == 2 else 3)
    low, high = int(values.min()), int(values.max())
    whole = Transform(5, 7, header.channels, range=(low, high))
    assert np.array_equal(np.squeeze(read_picture(data, whole, lambda: case)), values)


def test_transparency_of_16_bits_is_laid_over_the_largest_number() -> None:
    for data, values, alpha in (
        (png16(COVERED, 6), COVERED[..., :3], COVERED[..., 3] / 65535),
        (png16(COVERED[..., :2], 4), COVERED[..., :1].repeat(3, axis=2), COVERED[..., 1] / 65535),
    ):
        expected = values * alpha[..., None] + 65535 * (1 - alpha[..., None])
        found = read_picture(data, Transform(5, 7, 3, range=(0, 65535)), lambda: "x")
        assert np.abs(found - expected).max() <= 1  # float32, rounded once
    key = struct.pack(">H", int(GREY[1, 1]))
    keyed = read_picture(png16(GREY, 0, (b"tRNS", key)), Transform(5, 7, 1, range=(0, 65535)), lambda: "x")[..., 0]
    assert keyed[1, 1] == 65535
    assert (np.where(GREY[1, 1] == GREY, 65535, GREY) == keyed).all()


def test_resized_and_grey_numbers_stay_in_their_units() -> None:
    flat = np.full((20, 60, 3), (1000, 2000, 3000), dtype=np.uint16)
    for fit in ("crop", "pad", "stretch"):
        found = read_picture(png16(flat, 2), Transform(10, 10, 3, fit, (500, 4000)), lambda: "x")
        assert (found == (1000, 2000, 3000)).all()
    grey = read_picture(png16(flat, 2), Transform(10, 10, 1, range=(500, 4000)), lambda: "x")
    assert (grey == round(0.299 * 1000 + 0.587 * 2000 + 0.114 * 3000)).all()
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, format="PNG", exif=turned)
    upright = read_picture(file.getvalue(), Transform(7, 5, 1, range=(0, 65535)), lambda: "x")[..., 0]
    assert np.array_equal(upright, np.rot90(GREY, -1))


@pytest.mark.parametrize(
    ("chosen", "dtype"),
    [((0, 4095), "uint16"), ((-704, 1408), "int16"), ((-9, 65000), "int32"), ((70_000, 70_900), "int32")],
)
def test_what_is_stored_is_written_and_read_back_in_the_units_of_the_source(chosen: Range, dtype: str) -> None:
    low, high = chosen
    kind, transform = pictures_in(chosen), Transform(9, 6, 3, range=chosen)
    assert kind.values.stored_like(transform) == ((9, 6, 3), np.dtype(dtype))
    stored = RNG.integers(low, high + 1, (2, 9, 6, 3)).astype(dtype)
    stored[0, 0, 0, :2] = low, high
    values = kind.values.to_values(torch.from_numpy(stored))
    expected = (stored.astype(np.float64) - low) / (high - low) * 2 - 1
    assert np.abs(values.movedim(1, -1).numpy() - expected).max() < 1e-6
    assert np.array_equal(kind.values.to_stored(values), stored)
    file = kind.files.encode(stored[0])
    assert np.array_equal(kind.files.read(file, transform, lambda: "x"), stored[0])
    plain = Image.open(io.BytesIO(kind.files.encode(stored[0][..., :1])))
    assert plain.mode == "I;16"  # others read numbers of 16 bits, less the least where these go below 0 or beyond
    shift = 0 if dtype == "uint16" else low
    assert np.array_equal(np.asarray(plain).astype(np.int64) + shift, stored[0][..., 0])


def test_pictures_of_more_bits_keep_the_contract_of_a_kind() -> None:
    rows = [png(picture) for picture in twelve_bits(3, side=16)] + [png(twelve_bits(1, side=20)[0])]
    check_modality(pictures_in((0, 4095)), rows)
    check_modality(pictures_in((-704, 1408)), [tiff(np.linspace(-704, 1408, 256, dtype=np.int16).reshape(16, 16))] * 2)


def test_twelve_bits_in_sixteen_go_the_whole_road(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = twelve_bits()
    data = folder_of(tmp_path / "data", [png(picture) for picture in pictures])
    codec = train_vqvae(TrainVQVAE(str(data), tmp_path / "run", **SMALL))
    said = capsys.readouterr().out
    assert f"data {data}: range 0..4095 of 0..65535\n" in said
    assert " dB of the range 0..4095, " in said
    assert json.loads((codec / "training.json").read_text())["measured"]["psnr_range"] == "0..4095"
    assert json.loads((codec / "preprocessor_config.json").read_text())["range"] == [0, 4095]
    assert load_codec(codec).transform == Transform(8, 8, 1, range=(0, 4095))
    extract_codes(ExtractCodes(str(codec), str(data), tmp_path / "codes"))
    assert json.loads((tmp_path / "codes/codes.json").read_text())["transform"]["range"] == [0, 4095]
    out = tmp_path / "copies"
    assert main(["reconstruct", "--codec", str(codec), "--data", str(data), "--out", str(out)]) == 0
    assert "range 0..4095 of 0..65535" in capsys.readouterr().out
    held_out = open_data(str(data)).validation
    pair = np.asarray(Image.open(out / "000000.png"))
    assert pair.dtype == np.uint16
    assert pair.shape == (8, 16)
    assert np.array_equal(pair[:, :8], pictures[int(held_out.source_index[0])])
    assert pair.max() <= 4095


def test_signed_pictures_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.linspace(-704, 1408, 64).astype(np.int16).reshape(8, 8)
    data = folder_of(tmp_path / "data", [tiff(ramp)] * 4, "tif")
    train_vqvae(TrainVQVAE(str(data), tmp_path / "run", dry_run=True, **SMALL))
    said = capsys.readouterr().out
    assert "range -704..1408 of -32768..32767; PNGs that are written hold each number plus 704\n" in said
    assert '"range": "-704..1408"' in said


def test_range_that_is_given_cuts_and_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.linspace(0, 4000, 64).astype(np.uint16).reshape(8, 8)
    data = folder_of(tmp_path / "data", [png(ramp)] * 4)
    settings = TrainVQVAE(str(data), tmp_path / "run", dry_run=True, range="0..999", **SMALL)
    train_vqvae(settings)
    said = capsys.readouterr().out
    assert "range 0..999 of 0..65535\n" in said
    assert "75% of the numbers, which reach from 0 to 4000, are cut to 0..999" in said
    dark = np.pad(ramp // 8, ((0, 56), (0, 56)), constant_values=100)
    dark[63, 63] = 60000  # one pixel of the sensor is broken
    train_vqvae(replace(settings, data=str(folder_of(tmp_path / "hot", [png(dark)] * 4)), range="data"))
    said = capsys.readouterr().out
    usual = "{}..{}".format(*(int(np.quantile(dark, share, method="nearest")) for share in (0.001, 0.999)))
    assert "range 0..60000 of 0..65535\n" in said
    assert f"99.8% of the numbers of every image lie in {usual}; train-vqvae --range {usual} spreads" in said


@pytest.mark.parametrize("text", ["4095", "0-4095", "5..5", "9..1", "0..65536", "-1..65535", "0..9e9", "a..b", ""])
def test_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--range must be LOW\.\.HIGH such as 0\.\.4095 .* got"):
        parse_range(text)


def test_pictures_of_8_bits_have_no_range_and_mixed_ones_none_by_themselves(tmp_path: Path) -> None:
    eight = [png((picture >> 4).astype(np.uint8)) for picture in twelve_bits(4)]
    plain = open_data(str(folder_of(tmp_path / "plain", eight)))
    given = TrainVQVAE("x", tmp_path / "run", range="0..100")
    with pytest.raises(UsageError, match=r"--range 0\.\.100 is for images of more than 8 bits"):
        resolve(given, plain.facts(), "cpu")
    assert resolve(replace(given, range="data"), plain.facts(), "cpu").range is None
    mixed = open_data(str(folder_of(tmp_path / "mixed", [*eight, png(twelve_bits(1)[0])])))
    assert resolve(replace(given, range="data"), mixed.facts(), "cpu").range is None
    assert mixed.told_of(Transform(8, 8, 1))[0].endswith(
        "range 0..65535 of 0..65535, in 8 bits: 1 of 5 images of more bits lose the rest"
    )
    told = mixed.told_of(Transform(8, 8, 1, range=(0, 4095)))
    assert told[-1].endswith("4 of 5 images have 8 bits: their 0..255 is taken for 0..4095")
    pixels = read_picture(png(np.array([[0, 51, 255]], np.uint8)), Transform(1, 3, 1, range=(100, 1100)), lambda: "x")
    assert pixels.ravel().tolist() == [100, 300, 1100]


def test_numbers_too_far_apart_for_16_bits_ask_for_a_range(tmp_path: Path) -> None:
    wide = np.array([[-5, 100_000]], dtype=np.int32).repeat(4, axis=0).repeat(2, axis=1)
    data = open_data(str(folder_of(tmp_path / "data", [tiff(wide)] * 3, "tif")))
    settings = TrainVQVAE("x", tmp_path / "run")
    with pytest.raises(UsageError, match=r"numbers from -5 to 100000.* say by --range LOW\.\.HIGH"):
        resolve(settings, data.facts(), "cpu")
    assert resolve(replace(settings, range="0..50000"), data.facts(), "cpu").range == "0..50000"


def test_range_is_part_of_the_codec(tmp_path: Path) -> None:
    settings = TrainVQVAE("x", tmp_path, image_size="8", **SMALL)
    facts = open_data(str(folder_of(tmp_path / "data", [png(picture) for picture in twelve_bits(4)]))).facts()
    ids = {new_codec(resolve(replace(settings, range=r), facts, "cpu")).codec_id for r in ("data", "0..9", "8-bit")}
    assert len(ids) == 3
    form = PICTURES.values.from_description(Transform(8, 8, 1, range=(-7, 9)).describe(), "x")
    assert form == Transform(8, 8, 1, range=(-7, 9))
    assert PICTURES.values.settings_of(form) == PictureSize(image_size="8x8", range="-7..9")
    for wrong in ([1], [1, 2, 3], [2, 1], [0, 70000], [0.0, 1.0], "0..1", {"low": 0}, [True, 2]):
        with pytest.raises(ArtifactError, match="range must be"):
            PICTURES.values.from_description({**form.describe(), "range": wrong}, "x")


def test_run_from_before_ranges_goes_on_in_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", [png(picture) for picture in twelve_bits(20)])
    settings = TrainVQVAE(str(data), tmp_path / "run", range="8-bit", **SMALL)
    train_vqvae(settings)
    saved = json.loads((tmp_path / "run/vqvae-training/config.json").read_text())["settings"]
    assert not {"range", "fit"} & saved.keys()  # as it was written before there were any
    words = ["train-vqvae", "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "3"]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "continuing from step 2" in said
    assert "range 0..65535 of 0..65535, in 8 bits: images of more bits lose the rest" in said
    assert "99.8% of the numbers of every image lie in" in said
    assert "range" not in json.loads((tmp_path / "run/vqvae/preprocessor_config.json").read_text())


def test_sheet_of_check_data_shows_the_range_that_training_would_see(tmp_path: Path) -> None:
    folder_of(tmp_path / "data", [png(np.full((32, 32), value, np.uint16)) for value in (0, 1000, 4000, 2000, 3000)])
    words = ["check-data", str(tmp_path / "data"), "--out", str(tmp_path / "list.json")]
    assert main([*words, "--sheet", str(tmp_path / "sheet.png")]) == 0
    shown = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert {0, 64, 255, 128} <= set(np.unique(shown).tolist())  # a quarter, all and half of 0..4000


def test_arrays_of_16_bits_are_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack(twelve_bits(4)))
    data = open_data(str(tmp_path / "a.npy"))
    assert data.told_of(Transform(8, 8, 1, range=(0, 4095))) == [
        f"data {tmp_path / 'a.npy'}: range 0..4095 of 0..65535"
    ]
    form = Transform(8, 8, 1, range=(0, 4095))
    assert np.array_equal(read_picture(data.train.encoded(0), form, lambda: "x")[..., 0], data.train.encoded(0))
    colour = read_header(COLOUR, lambda: "x")
    assert (colour.shape, colour.channels) == ((5, 7), 3)
    with pytest.raises(ArtifactError, match="x cannot be decoded"):
        read_header(np.zeros((5, 7, 13), np.uint16), lambda: "x")
