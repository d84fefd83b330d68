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
from stage1_vqvae.modalities.pictures.fitting import told_of_cuts, told_of_scaling
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
