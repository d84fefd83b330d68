"""Pictures with alpha: what a network sees of them, that colour under alpha 0 counts nowhere, and what comes back.

Letters: C channels, a alpha.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.evaluate import evaluate_codec
from stage1_vqvae.modalities import in_form, preprocessing
from stage1_vqvae.modalities.pictures import PICTURES, pictures_in
from stage1_vqvae.modalities.pictures.files import read_header, read_picture
from stage1_vqvae.modalities.pictures.networks import network_inputs
from stage1_vqvae.modalities.pictures.quality import ssim
from stage1_vqvae.modalities.pictures.settings import PictureHeader, PictureSize
from stage1_vqvae.modalities.pictures.values import RULE, Transform
from stage1_vqvae.model import load_codec
from stage1_vqvae.settings import ModelSettings, TrainVQVAE, resolve
from stage1_vqvae.train import new_codec, train_vqvae
from vq_prior.app import over, pictures_of
from vq_prior.cli import main
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import facts_of
from vq_prior.model.given_images import images_of
from vq_prior.model.pipeline import VQPriorPipeline

KIND = pictures_in(None, alpha=True)
COLOUR, GREY = Transform(6, 8, 4, alpha="keep"), Transform(6, 8, 2, alpha="keep")
SMALL = {"steps": 2, "batch_size": 4, "model": ModelSettings(width=8, num_residual_blocks=0), "precision": "fp32"}


def png(picture: np.ndarray | Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, format="PNG", **options)
    return file.getvalue()


def sprites(count: int, side: int, hidden: int, channels: int = 4) -> list[np.ndarray]:
    """Random pictures of which the left third is clear; there colour is random by the seed `hidden`."""
    rng, other = np.random.default_rng(3), np.random.default_rng(hidden)
    pictures = []
    for _ in range(count):
        picture = rng.integers(0, 256, (side, side, channels), dtype=np.uint8)
        picture[:, : side // 3] = other.integers(0, 256, (side, side // 3, channels), dtype=np.uint8)
        picture[:, : side // 3, -1] = 0
        pictures.append(picture)
    return pictures


def folder_of(path: Path, pictures: list[np.ndarray]) -> Path:
    for number, picture in enumerate(pictures):
        place = path / ("round" if number % 2 else "square") / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(picture))
    return path


def seen(picture: np.ndarray, form: Transform = COLOUR) -> np.ndarray:
    return read_picture(png(picture), form, lambda: "picture")


# What is read


def pixel(data: bytes, form: Transform = COLOUR) -> list[int]:
    return read_picture(data, form, lambda: "picture")[0, 0].tolist()


def test_transparency_of_every_kind_is_read_as_alpha() -> None:
    half = Image.new("RGBA", (8, 6), (10, 20, 200, 51))
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    cases = [
        (png(half), [10, 20, 200, 51], True),
        (png(Image.new("LA", (8, 6), (77, 3))), [77, 77, 77, 3], True),
        (png(palette, transparency=bytes([255, 99])), [10, 20, 30, 99], True),
        (png(Image.new("RGB", (8, 6), (1, 2, 3)), transparency=(1, 2, 3)), [255, 255, 255, 0], True),
        (png(Image.new("RGB", (8, 6), (1, 2, 3)), transparency=(9, 2, 3)), [1, 2, 3, 255], True),
        (png(np.full((6, 8), 257 * 7, np.uint16), transparency=257 * 7), [255, 255, 255, 0], True),
        (png(palette), [10, 20, 30, 255], False),
        (png(Image.new("L", (8, 6), 5)), [5, 5, 5, 255], False),
    ]
    for data, expected, alpha in cases:
        assert pixel(data) == expected
        assert read_header(data, lambda: "x").alpha is alpha
    assert pixel(png(Image.new("LA", (8, 6), (77, 3))), GREY) == [77, 3]
    assert pixel(png(half), GREY) == [round(0.299 * 10 + 0.587 * 20 + 0.114 * 200), 51]
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 6), (250, 250, 250)).save(jpeg, format="JPEG")
    assert pixel(jpeg.getvalue()) == [250, 250, 250, 255]
    assert not read_header(jpeg.getvalue(), lambda: "x").alpha


def keys(x: np.ndarray) -> np.ndarray:
    """Keys 1981, eq. 15, with a = -1/2: the bicubic kernel."""
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def filtered(layer: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A layer brought to a size: each number is the mean under the kernel, as wide as the factor, cut at the border."""
    for axis, wanted in enumerate(shape):
        side = layer.shape[axis]
        factor = max(1.0, side / wanted)
        centres = (np.arange(wanted) + 0.5) * side / wanted
        weights = keys((np.arange(side) + 0.5 - centres[:, None]) / factor)
        layer = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), layer, (1, axis)), 0, axis)
    return layer


@pytest.mark.parametrize("side", [32, 16, 5])  # to 8: by four, by two, and up by 8 / 5
def test_resizing_weighs_colour_by_alpha(side: int) -> None:
    picture = np.random.default_rng(side).integers(0, 256, (side, side, 4), dtype=np.uint8)
    picture[: side // 2, : side // 2, 3] = 0
    brought = seen(picture, Transform(8, 8, 4, alpha="keep"))
    alpha = filtered(picture[..., 3].astype(float), (8, 8))
    premultiplied = [filtered(picture[..., c] * (picture[..., 3] / 255), (8, 8)) for c in range(3)]
    expected = np.stack(premultiplied, -1) / np.where(alpha > 0, alpha / 255, 1)[..., None]
    assert np.abs(brought[..., 3] - alpha.clip(0, 255)).max() <= 0.51  # half a level, and float32 in between
    covered = alpha > 2
    assert covered.sum() > 30
    assert np.abs(brought[..., :3] - expected.clip(0, 255))[covered].max() <= 0.51


@pytest.mark.parametrize("side", [61, 16, 5])
def test_a_sprite_of_one_colour_keeps_it_to_its_edge(side: int) -> None:
    y, x = np.mgrid[:side, :side] - side / 2
    inside = x**2 + y**2 < (side / 2.5) ** 2
    picture = np.zeros((side, side, 4), np.uint8)  # black where nothing is, as most programs write it
    picture[inside] = (200, 30, 90, 255)
    for fit in ("crop", "pad", "stretch"):
        brought = seen(picture, Transform(12, 20, 4, fit, alpha="keep"))
        covered = brought[..., 3] > 0
        assert (brought[covered][:, :3] == (200, 30, 90)).all(), "no dark fringe"
        assert (brought[~covered] == (255, 255, 255, 0)).all()
        assert ((brought[..., 3] > 0) & (brought[..., 3] < 255)).any(), "its edge is smooth"


def test_pad_puts_transparency_around() -> None:
    picture = np.full((4, 8, 4), 200, np.uint8)
    padded = seen(picture, Transform(8, 8, 4, "pad", alpha="keep"))
    assert (padded[2:6] == 200).all()
    assert (padded[[0, 1, 6, 7]] == (255, 255, 255, 0)).all()


# What networks see


def test_every_colour_at_every_alpha_comes_back_and_lies_over_white() -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    stored = np.stack([colour, 255 - colour, colour // 2, alpha], -1).astype(np.uint8)
    stored[0, :, :3] = 255
    values = KIND.values.to_values(torch.from_numpy(stored[None]))
    expected = (stored[..., :3] / 255.0 * alpha[..., None] / 255 + 1 - alpha[..., None] / 255) * 2 - 1
    assert np.abs(values[0, :3].movedim(0, -1).numpy() - expected).max() < 1e-6
    assert np.array_equal(KIND.values.to_stored(values)[0], stored)
    assert np.array_equal(KIND.files.read(KIND.files.encode(stored), Transform(256, 256, 4, alpha="keep"), str), stored)
    with Image.open(io.BytesIO(KIND.files.encode(stored))) as written:
        assert written.mode == "RGBA"
    grey = KIND.values.to_values(torch.from_numpy(stored[None, :, :, [0, 3]]))
    assert torch.equal(grey[0], values[0, [0, 3]])
    with Image.open(io.BytesIO(KIND.files.encode(stored[..., [0, 3]]))) as written:
        assert written.mode == "LA"


def test_opaque_pictures_are_the_very_numbers_that_they_are_without_alpha() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with_alpha, plain = seen(pixels), seen(pixels, Transform(6, 8, 3))
    values = KIND.values.to_values(torch.from_numpy(with_alpha[None]))
    assert torch.equal(values[:, :3], PICTURES.values.to_values(torch.from_numpy(plain[None].copy())))
    assert (values[:, 3] == 1).all()


def test_colour_under_alpha_0_changes_no_bit(tmp_path: Path) -> None:
    """Neither as it is nor resized, neither in values, codes, losses and measures nor in what training makes."""
    for side, size in ((9, "9"), (30, "9")):
        runs = []
        for hidden in (1, 2):
            where = tmp_path / f"{side} {hidden}"
            data = folder_of(where / "data", sprites(8, side, hidden))
            settings = TrainVQVAE(str(data), where / "run", image_size=size, alpha="keep", augment=True, **SMALL)
            codec = load_codec(train_vqvae(settings))
            opened = open_data(str(data))
            rows = load_rows(opened.train, in_form(opened.modality, codec.transform), codec.transform)
            measured = evaluate_codec(codec, rows)
            log = (where / "run/vqvae-training/metrics.jsonl").read_text().splitlines()
            lines = [json.loads(line) for line in log]
            losses = [{k: v for k, v in line.items() if "second" not in k and k != "time"} for line in lines]
            values = rows.batch(range(len(rows)))
            runs.append((opened.train.encoded(0), values, codec.encode(values), measured, losses, codec.codec_id))
        one, other = runs
        assert one[0] != other[0], "the files differ"
        assert torch.equal(one[1], other[1])
        assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))
        assert one[3:] == other[3:]
    stored = torch.from_numpy(np.stack(sprites(1, 9, 1) + sprites(1, 9, 2)))  # as a Python caller may hand them over
    values = KIND.values.to_values(stored)
    assert torch.equal(values[0], values[1])


# Identity, settings, words


def test_alpha_is_part_of_the_codec_only_where_it_is_kept() -> None:
    plain = {"image_size": [8, 8], "channels": 3, "rule": RULE}
    assert preprocessing(PICTURES, Transform(8, 8, 3)) == plain
    kept = Transform(8, 8, 4, alpha="keep")
    assert preprocessing(KIND, kept) == plain | {"channels": 4, "alpha": "keep"}
    assert KIND.values.from_description(kept.describe(), "x") == kept
    assert KIND.values.settings_of(kept) == PictureSize(image_size="8x8", range=None, alpha="keep")
    assert in_form(PICTURES, kept) is KIND
    assert in_form(PICTURES, Transform(8, 8, 3)) is PICTURES
    for wrong in ({"channels": 3}, {"alpha": "drop"}, {"alpha": None}, {"range": [0, 4095]}, {"alpha": "white"}):
        with pytest.raises(ArtifactError, match=r"channels must be|alpha must be|range must be"):
            PICTURES.values.from_description(kept.describe() | wrong, "x")


def header(channels: int, alpha: bool) -> PictureHeader:
    return PictureHeader((8, 8), channels, alpha=alpha)


def test_channels_follow_the_data_and_what_does_not_go_together_is_refused() -> None:
    def form(settings: PictureSize, *headers: PictureHeader, channels: int | None = None) -> Transform:
        facts = facts_of(len(headers), headers)
        return PICTURES.values.transform(settings, facts, channels=channels, device_type="cpu")

    keep = PictureSize(alpha="keep")
    assert form(keep, header(1, True), header(1, False)) == Transform(8, 8, 2, alpha="keep")
    assert form(keep, header(1, True), header(3, False)) == Transform(8, 8, 4, alpha="keep")
    assert form(keep, header(3, True), channels=2).channels == 2
    assert form(PictureSize(), header(3, True)) == Transform(8, 8, 3)
    with pytest.raises(UsageError, match="for images with alpha, and none of these 2 has it; leave it out"):
        form(keep, header(3, False), header(1, False))
    with pytest.raises(UsageError, match=r"--model.channels must be 2 or 4 with --alpha keep, got 3"):
        form(keep, header(3, True), channels=3)
    with pytest.raises(UsageError, match=r"--model.channels must be 1 or 3 .* got 4"):
        form(PictureSize(), header(3, True), channels=4)
    with pytest.raises(UsageError, match=r"--alpha keep keeps 8 bits .* --range 0..4095"):
        form(PictureSize(alpha="keep", range="0..4095"), header(3, True))
    with pytest.raises(UsageError, match="--alpha must be one of white, keep, got drop"):
        form(replace(keep, alpha="drop"), header(3, True))  # type: ignore[arg-type]


def test_what_becomes_of_alpha_is_said() -> None:
    headers = [header(3, True), header(3, False), header(3, True)]
    assert PICTURES.values.told(Transform(8, 8, 4, alpha="keep"), headers) == [
        "2 of 3 images have alpha, which is kept; the others are opaque"
    ]
    assert PICTURES.values.told(Transform(8, 8, 3), headers) == [
        "2 of 3 images have alpha: white lies under it; train-vqvae --alpha keep keeps it"
    ]
    assert PICTURES.values.told(Transform(8, 8, 3), headers[1:2]) == []


# How they are shown and measured


def test_pictures_lie_over_white_and_sheets_over_a_checkerboard() -> None:
    clear = torch.cat([torch.ones(1, 3, 32, 32), -torch.ones(1, 1, 32, 32)], dim=1)
    assert (KIND.show.pictures(clear) == 255).all()
    sheet = np.asarray(KIND.show.sheet(clear))
    assert set(np.unique(sheet[2:-2, 2:-2])) == {208, 255}
    assert (sheet[2:6, 2:6] == 255).all()
    assert (sheet[2:6, 6:10] == 208).all()
    half = torch.from_numpy(np.full((1, 8, 8, 4), 100, np.uint8))
    over_white = round(100 * 100 / 255 + 155)
    assert (KIND.show.pictures(KIND.values.to_values(half)) == over_white).all()
    heated = KIND.show.heat(clear, [torch.ones(1, 2, 2)], (1.0,))
    assert heated.shape == (1, 32, 64, 3)


def test_what_is_judged_is_what_is_kept() -> None:
    """A decoder's numbers need not fit together: the picture that is judged is that of the file."""
    values = torch.rand((4, 4, 8, 8), generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    files = [KIND.files.encode(stored) for stored in KIND.values.to_stored(values)]
    judged = KIND.show.pictures(values)
    for file, picture in zip(files, judged, strict=True):
        rgba = Image.open(io.BytesIO(file))
        laid = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        assert np.abs(np.asarray(laid).astype(int) - picture).max() <= 1  # Pillow rounds twice


def test_measures_say_what_they_are_of() -> None:
    measures = KIND.quality.measures
    assert measures["psnr"].title == "PSNR of reconstructions (dB, colour over white and alpha)"
    assert measures["psnr"].unit == "dB (colour over white and alpha)"
    first = torch.zeros(1, 4, 8, 8)
    second = first.clone()
    second[:, 3] = 0.2  # alpha alone is wrong: a quarter of the numbers
    assert float(measures["psnr"].function(first, second)) == pytest.approx(10 * np.log10(4 / (0.04 / 4)), abs=1e-4)
    alone = [float(ssim(first[:, c : c + 1], second[:, c : c + 1])) for c in range(4)]
    assert float(measures["ssim"].function(first, second)) == pytest.approx(np.mean(alone), abs=1e-6)
    shares = KIND.quality.statistics["transparent"](
        KIND.values.to_values(torch.tensor([[[[0, 0, 0, 127], [0, 0, 0, 128], [9, 9, 9, 0], [9, 9, 9, 255]]]]).byte())
    )
    assert shares.tolist() == [0.5]
    assert PICTURES.quality.statistics == {}


def test_networks_of_others_see_pictures_over_white() -> None:
    pixels = torch.from_numpy(np.stack(sprites(2, 9, 1)))
    values = KIND.values.to_values(pixels)

    class Config:
        num_channels = 3

    inputs: Tensor = network_inputs(values, None, Config())
    assert torch.equal(inputs, values[:, :3])


# The road


def test_data_without_alpha_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", [picture[..., :3] for picture in sprites(4, 8, 1)])
    words = ["train-vqvae", "--data", str(data), "--out", str(tmp_path / "run"), "--alpha", "keep"]
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines == [
        "error: --alpha keep is for images with alpha, and none of these 4 has it; leave it out, or give other data"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("channels", [4, 2])
def test_sprites_go_the_whole_road(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", sprites(24, 12, 1, channels))
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    small = ["--batch-size", "4", "--steps", "2", "--precision", "fp32"]
    network = ["--model.width", "8", "--model.num-residual-blocks", "0", "--quantizer.num-codes", "8"]

    def done(*words: object) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    sheet = tmp_path / "look.png"
    said = done("check-data", data, "--out", tmp_path / "c.json", "--sheet", sheet, "--alpha", "keep")
    assert "24 of 24 images have alpha, which is kept" in said
    said = done("train-vqvae", "--data", data, "--out", run, "--alpha", "keep", *small, *network)
    assert "24 of 24 images have alpha, which is kept" in said
    assert f"codec: images 12x12x{channels} -> " in said
    assert " dB (colour over white and alpha), ssim " in said
    described = json.loads((run / "vqvae/preprocessor_config.json").read_text())
    assert (described["alpha"], described["channels"]) == ("keep", channels)
    assert json.loads((run / "vqvae/training.json").read_text())["measured"]["measures_of"] is not None
    assert "nothing to do" in done("train-vqvae", "--data", data, "--out", run, *small)  # what was chosen stays
    done("extract-codes", "--codec", run, "--data", data, "--out", run / "codes")
    prior = ["--model.num-layers", "1", "--model.hidden-size", "32", "--model.num-heads", "1"]
    done("train-prior", "--codes", run / "codes", "--codec", run, "--out", run, *small, *prior)
    mode = {4: "RGBA", 2: "LA"}[channels]
    done("reconstruct", "--codec", run, "--data", data, "--out", tmp_path / "copies")
    with Image.open(tmp_path / "copies/000000.png") as pair:
        assert (pair.mode, pair.size) == (mode, (24, 12))
        assert (np.asarray(pair)[:, :4, -1] == 0).all(), "the original is clear where it was"
    done("generate", "--model", model, "--out", tmp_path / "samples", "--num-samples", "3")
    with Image.open(tmp_path / "samples/000001.png") as drawn, Image.open(tmp_path / "samples.png") as of_all:
        assert drawn.mode == mode
        assert of_all.mode == ("RGB" if channels == 4 else "L"), "a sheet is seen, not used"
    first = tmp_path / "samples/000000.png"
    done("complete", "--model", model, "--image", first, "--out", tmp_path / "completed", "--num-samples", "1")
    done("score", "--model", model, "--data", data, "--out", tmp_path / "scores")
    done("evaluate", "--model", model, "--data", data, "--out", run / "evaluation.json", "--num-samples", "8")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["evaluator"]["sees"] == "images over white"
    assert found["codec"]["measures_of"] == "colour over white and alpha"
    shares = [found[part]["transparent"] for part in ("reference", "held_out", "reconstructions", "samples")]
    train = np.stack(sprites(24, 12, 1, channels))
    assert shares[1] == pytest.approx(np.mean(train[..., -1] < 128), abs=0.1)
    assert all(0 <= share <= 1 for share in shares)
    done("report", run)
    page = (run / "report.html").read_text()
    assert "transparent" in page
    assert f"{shares[3]:.3f}"[:4] in page
    check_pipeline(model, mode, sprites(1, 12, 1, channels)[0])


def check_pipeline(model: Path, mode: str, picture: np.ndarray) -> None:
    pipe = VQPriorPipeline.from_pretrained(model)
    pictures = pipe(2, seed=1).images
    assert [each.mode for each in pictures] == [mode, mode]
    array = pipe(2, seed=1, output_type="np").images
    assert np.array_equal(array[0], np.asarray(pictures[0]))
    values = pipe(2, seed=1, output_type="pt").images
    assert np.array_equal(pipe.codec.modality.values.to_stored(values), array)
    assert pipe(2, seed=1)._repr_png_() is not None
    assert [np.array_equal(np.asarray(a), b) for a, b in zip(pictures_of(pipe, values), array, strict=True)] == [
        True
    ] * 2
    clear = over(Image.new(mode, (12, 12)), np.zeros((2, 2), int))  # black under alpha 0
    assert clear.getpixel((3, 3)) == (255, 255, 255)
    given = [images_of(each, pipe.codec) for each in (picture, [picture], Image.fromarray(picture), picture[None])]
    assert all(torch.equal(each, given[0]) for each in given)
    assert len(images_of(np.stack([picture, picture]), pipe.codec)) == 2
    with pytest.raises(UsageError, match=r"colour c and alpha a of 0..255 become such by \(c \* a / 255"):
        images_of(values * 9, pipe.codec)
    with pytest.raises(UsageError, match="1 to 4"):
        images_of([np.zeros((12, 12, 5), np.uint8)], pipe.codec)


def test_a_codec_with_alpha_takes_pictures_without_it(tmp_path: Path) -> None:
    facts = facts_of(9, [header(3, True)])
    codec = new_codec(resolve(TrainVQVAE("digits", tmp_path, alpha="keep", **SMALL), facts, "cpu"))
    opaque = images_of(np.full((8, 8, 3), 9, np.uint8), codec)
    assert opaque.shape == (1, 4, 8, 8)
    assert (opaque[:, 3] == 1).all()
    assert codec.encode(opaque)[0].shape[0] == 1
