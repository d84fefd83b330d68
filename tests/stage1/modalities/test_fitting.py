"""Pictures of other proportions than the codec's: how they come into its size, and what is said of what is cut."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.modalities import preprocessing
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.files import read_picture
from stage1_vqvae.modalities.pictures.fitting import told_of_cuts, told_of_nearest, told_of_scaling
from stage1_vqvae.modalities.pictures.settings import PictureSize, default_size
from stage1_vqvae.modalities.pictures.values import RULE, Transform
from stage1_vqvae.model import VQVAE, load_codec, save_codec
from stage1_vqvae.settings import ModelSettings, TrainVQVAE, resolve
from stage1_vqvae.train import new_codec, train_vqvae
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Facts, Header

FACTS = Facts(num_train=60, common_shape=(32, 400), short_side=32, channels=1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def folder_of(path: Path, *shapes: tuple[int, int]) -> Path:
    path.mkdir()
    for number, shape in enumerate(shapes):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        (path / f"{number:02d}.png").write_bytes(png(pixels))
    return path


def codec(fit: str | None = None, size: str = "32") -> VQVAE:
    settings = TrainVQVAE("digits", Path("none"), image_size=size, fit=fit, model=ModelSettings(width=8))
    return new_codec(resolve(settings, FACTS, "cpu"))


@pytest.mark.parametrize(
    ("shapes", "wanted", "said"),
    [
        ([(32, 400)], (32, 32), "92% cut away: images of 32 x 400 are cut to the proportions of 32 x 32"),
        ([(400, 32)] * 3, (32, 32), "92% cut away: images of 400 x 32"),
        ([(64, 64), (32, 32), (8, 8)], (32, 32), None),
        ([(32, 400), (64, 800)], (32, 400), None),
        ([(32, 64), (64, 64)], (32, 32), "25% cut away on the average, 50% at most: 1 of 2 images"),
        ([(1000, 1001)], (32, 32), "less than 1% cut away"),
        ([(8, 16000)], (64, 64), "more than 99% cut away"),
    ],
)
def test_share_that_is_cut_away_is_said_and_nothing_where_nothing_is(
    shapes: list[tuple[int, int]], wanted: tuple[int, int], said: str | None
) -> None:
    told = told_of_cuts(shapes, wanted)
    assert told is None if said is None else told is not None and told.startswith(said)


@pytest.mark.parametrize(
    ("shapes", "wanted", "said"),
    [
        ([(32, 32)] * 3, (32, 32), None),
        ([(16, 64)], (32, 32), None),
        (
            [(32, 32), (64, 80), (100, 50)],
            (32, 32),
            "2 of 3 images are scaled down to 32 x 32, the largest from 64 x 80",
        ),
    ],
)
def test_scaling_down_is_said(shapes: list[tuple[int, int]], wanted: tuple[int, int], said: str | None) -> None:
    assert told_of_scaling(shapes, wanted) == said


def test_colour_that_is_lost_is_said() -> None:
    headers = [Header((8, 8), 3), Header((8, 8), 1), Header((8, 8), 3)]
    assert PICTURES.values.told(Transform(8, 8, 1), headers) == [
        "2 of 3 images lose their colour: the codec's are grey"
    ]
    assert PICTURES.values.told(Transform(8, 8, 3), headers) == []


def test_every_command_says_what_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, square = folder_of(tmp_path / "wide", *[(32, 400)] * 3), folder_of(tmp_path / "square", *[(32, 32)] * 3)
    small = TrainVQVAE(str(wide), tmp_path / "out", dry_run=True, steps=1, batch_size=2, model=ModelSettings(width=8))
    for settings, cut in (
        (small, True),
        (replace(small, data=str(square)), False),
        (replace(small, fit="pad"), False),
        (replace(small, fit="stretch"), False),
        (replace(small, image_size="8x100"), False),
    ):
        train_vqvae(settings)
        said = capsys.readouterr().out
        assert ("92% cut away" in said) is cut
        assert ("cut away" in said) is cut
    with new_folder(tmp_path / "codec") as staging:
        save_codec(codec(), staging)
    for words in (
        ("reconstruct", "--codec", tmp_path / "codec", "--data", wide, "--out", tmp_path / "copies"),
        ("extract-codes", "--codec", tmp_path / "codec", "--data", wide, "--out", tmp_path / "codes"),
    ):
        assert main([str(word) for word in words]) == 0
        assert "92% cut away" in capsys.readouterr().out


def test_pad_keeps_the_whole_picture_and_repeats_its_border() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 3), dtype=np.uint8)
    padded = read_picture(png(pixels), Transform(32, 32, 3, "pad"), lambda: "x")
    assert np.array_equal(padded[12:20], pixels)
    assert (padded[:12] == pixels[0]).all()
    assert (padded[20:] == pixels[-1]).all()
    high = read_picture(png(pixels[..., 0].T.copy()), Transform(33, 33, 1, "pad"), lambda: "x")[..., 0]
    assert high.shape == (33, 33)
    assert (high[:, :12] == high[:, 12:13]).all()  # of 25 missing columns 12 stand left


def test_stretch_keeps_the_whole_picture_out_of_proportion() -> None:
    pixels = np.zeros((20, 200), dtype=np.uint8)
    pixels[:, 100:] = 200
    stretched = read_picture(png(pixels), Transform(20, 20, 1, "stretch"), lambda: "x")[..., 0]
    assert (stretched[:, :8] == 0).all()  # the filter reaches two pixels of the result from the edge at 10
    assert (stretched[:, 12:] == 200).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_picture_of_the_right_size_is_untouched_by_any_fit(fit: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_picture(png(pixels), Transform(6, 8, 3, fit), lambda: "x"), pixels)


def test_size_left_open_is_the_whole_made_smaller_where_nothing_is_to_be_cut() -> None:
    assert default_size(FACTS, "cpu") == (32, 32)
    height, width = default_size(FACTS, "cpu", whole=True)
    assert abs(width / height - 400 / 32) < 0.3
    assert height * width <= 64 * 64 * 1.02
    assert default_size(replace(FACTS, common_shape=(48, 40)), "cpu", whole=True) == (48, 40)
    assert default_size(FACTS, "cuda", whole=True) == (32, 400)


def test_fit_is_part_of_the_codec_and_cutting_is_what_it_always_was(tmp_path: Path) -> None:
    plain = {"image_size": [32, 32], "channels": 1, "rule": RULE}
    assert codec().preprocessing == codec("crop").preprocessing == plain
    assert codec("pad").preprocessing == plain | {"fit": "pad"}
    assert len({codec(fit).codec_id for fit in (None, "crop", "pad", "stretch")}) == 3
    settings = PICTURES.values.settings_of(Transform(32, 32, 1, "stretch"))
    assert settings == PictureSize(image_size="32x32", fit="stretch", range=None)
    with new_folder(tmp_path / "codec", manifest=False) as staging:
        save_codec(codec("pad"), staging)
    assert load_codec(tmp_path / "codec").transform == Transform(32, 32, 1, "pad")
    path = tmp_path / "codec" / "preprocessor_config.json"
    for wrong in ({"fit": "crop"}, {"fit": "shrink"}, {"fit": None}, {"fit": "pad", "more": 1}):
        path.write_text(json.dumps(plain | wrong))
        with pytest.raises(ArtifactError, match=r"fit must be one of|is not the preprocessing"):
            load_codec(tmp_path / "codec")


def test_fit_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="--fit must be one of crop, pad, stretch, got shrink"):
        PICTURES.values.transform(PictureSize(image_size="32", fit="shrink"), FACTS, channels=1, device_type="cpu")
    assert preprocessing(PICTURES, Transform(8, 8, 1)) == {"image_size": [8, 8], "channels": 1, "rule": RULE}


# Pixel art: --resize nearest


def art(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Pixels of which no two are alike."""
    numbers = np.arange(height * width).reshape(height, width)
    return np.stack([numbers % 251, numbers // 251, numbers % 7, numbers % 5][:channels], -1).astype(np.uint8)


def nearest(pixels: np.ndarray, height: int, width: int, fit: str = "crop") -> np.ndarray:
    form = Transform(height, width, pixels.shape[2], fit, resize="nearest")
    return read_picture(png(pixels), form, lambda: "x")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_nearest_repeats_and_takes_whole_pixels(fit: str) -> None:
    pixels = art(8, 8)
    assert np.array_equal(nearest(pixels, 24, 24, fit), pixels.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(nearest(pixels.repeat(4, 0).repeat(4, 1), 8, 8, fit), pixels), "what was enlarged comes back"
    assert np.array_equal(nearest(pixels, 4, 4, fit), pixels[1::2, 1::2])
    assert np.array_equal(nearest(pixels, 8, 8, fit), pixels)
    uneven = nearest(pixels, 5, 5, fit)  # centres 0.8, 2.4, 4, 5.6, 7.2 of each axis
    assert np.array_equal(uneven, pixels[np.ix_([0, 2, 4, 5, 7], [0, 2, 4, 5, 7])])


def test_nearest_mixes_no_colours_and_bicubic_does() -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 90, 255], np.uint8), (19, 33, 3))
    for fit in ("crop", "pad", "stretch"):
        for size in ((16, 16), (40, 24), (7, 50)):
            assert set(np.unique(nearest(pixels, *size, fit))) <= {0, 90, 255}
    smooth = read_picture(png(pixels), Transform(16, 16, 3), lambda: "x")
    assert len(np.unique(smooth)) > 3
    file = io.BytesIO()  # whose decoder would shrink it by means of its pixels
    Image.fromarray(art(64, 64).repeat(8, 0).repeat(8, 1)).save(file, format="JPEG", quality=100, subsampling=0)
    decoded = np.asarray(Image.open(file))
    taken = read_picture(file.getvalue(), Transform(8, 8, 3, resize="nearest"), lambda: "x")
    assert np.array_equal(taken, decoded[32::64, 32::64])


def test_nearest_crops_whole_pixels_and_pads_by_whole_factors() -> None:
    pixels = art(8, 13)
    assert np.array_equal(nearest(pixels, 8, 8), pixels[:, 2:10])
    assert np.array_equal(nearest(pixels, 16, 16), pixels[:, 2:10].repeat(2, 0).repeat(2, 1))
    padded = nearest(pixels, 32, 32, "pad")  # 32 / 13 is 2.46: twice, and the border around
    assert np.array_equal(padded[8:24, 3:29], pixels.repeat(2, 0).repeat(2, 1))
    assert (padded[:8, 3:29] == padded[8, 3:29]).all()
    shrunk = nearest(art(40, 80), 20, 20, "pad")
    assert np.array_equal(shrunk[5:15], art(40, 80)[2::4, 2::4])


def test_nearest_takes_numbers_of_more_bits_and_alpha_as_they_are() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    form = Transform(16, 16, 1, range=(0, 65535), resize="nearest")
    assert np.array_equal(read_picture(png(deep), form, lambda: "x")[..., 0], deep.repeat(2, 0).repeat(2, 1))
    sprite = art(8, 8, 4)
    sprite[..., 3] = np.where(sprite[..., 3] > 2, 200, 0)
    brought = read_picture(png(sprite), Transform(16, 16, 4, alpha="keep", resize="nearest"), lambda: "x")
    clear = sprite[..., 3:] == 0
    assert np.array_equal(brought, np.where(clear, [255, 255, 255, 0], sprite).repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("shapes", "fit", "said"),
    [
        ([(32, 32)] * 3, "crop", None),
        ([(32, 50)] * 3, "crop", None),  # cut, and not resized
        ([(16, 16), (64, 64), (32, 32)], "crop", "2 of 3 images are resized to 32 x 32 by nearest, whole factors"),
        (
            [(16, 16), (33, 33), (20, 24)],
            "crop",
            "3 of 3 images are resized to 32 x 32 by nearest, 2 of them by no whole factor, so that their pixels "
            "differ in size",
        ),
        ([(16, 16), (10, 13)], "pad", "2 of 2 images are resized to 32 x 32 by nearest, whole factors"),
    ],
)
def test_nearest_is_said(shapes: list[tuple[int, int]], fit: str, said: str | None) -> None:
    assert told_of_nearest(shapes, (32, 32), fit) == said


def test_nearest_is_part_of_the_codec_only_where_it_is_used(tmp_path: Path) -> None:
    plain = {"image_size": [32, 32], "channels": 1, "rule": RULE}

    def of(resize: str | None) -> VQVAE:
        settings = TrainVQVAE("digits", Path("none"), image_size="32", resize=resize, model=ModelSettings(width=8))
        return new_codec(resolve(settings, FACTS, "cpu"))

    assert of(None).preprocessing == of("bicubic").preprocessing == plain
    assert of("nearest").preprocessing == plain | {"resize": "nearest"}
    assert of("nearest").codec_id != of(None).codec_id == codec().codec_id
    assert of("nearest").transform == Transform(32, 32, 1, resize="nearest")
    with pytest.raises(UsageError, match="--resize must be one of bicubic, nearest, got linear"):
        of("linear")
    settings = PICTURES.values.settings_of(Transform(32, 32, 1, resize="nearest"))
    assert settings == PictureSize(image_size="32x32", range=None, resize="nearest")
    data = folder_of(tmp_path / "data", *[(16, 16)] * 4)
    assert main(["check-data", str(data), "--out", str(tmp_path / "list.json"), "--resize", "nearest"]) == 0


def test_opening_lines_say_what_nearest_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", (16, 16), (20, 20), (32, 32))
    small = ModelSettings(width=8)
    train_vqvae(
        TrainVQVAE(str(data), tmp_path / "x", steps=1, batch_size=2, model=small, dry_run=True, image_size="32")
    )
    assert "nearest" not in capsys.readouterr().out.split("{")[0]
    nearest = TrainVQVAE(
        str(data), tmp_path / "x", steps=1, batch_size=2, model=small, dry_run=True, image_size="32", resize="nearest"
    )
    train_vqvae(nearest)
    assert "2 of 3 images are resized to 32 x 32 by nearest, 1 of them by no whole factor" in capsys.readouterr().out
