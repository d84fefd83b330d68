"""Views of a picture: the first is the picture, the others its mirror image and its crops; only training has them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from stage1_vqvae.data.loading import stored_views
from stage1_vqvae.data.rows import ArrayRows
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.files import read_picture
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.model import VQVAE
from vq_prior.cli import main
from vq_prior.core.disk.code_store import CodeStore


def digit(number: int) -> np.ndarray:
    return np.floor(load_digits().images[number] * (255 / 16) + 0.5).astype(np.uint8)


def test_the_views_are_the_picture_its_corners_and_their_mirror_images() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    transform = Transform(height=20, width=20, channels=3)
    rows = ArrayRows(picture[None], "picture")
    views = stored_views(rows, 0, PICTURES, transform, "ten-crop")
    assert np.array_equal(views[0], read_picture(picture, transform, lambda: "picture"))
    assert np.array_equal(views[1::2], views[::2, :, ::-1])
    large = np.asarray(Image.fromarray(picture).resize((22, 22), Image.Resampling.BICUBIC, box=(5, 0, 35, 30)))
    corners = [large[:20, :20], large[:20, 2:], large[2:, :20], large[2:, 2:]]
    assert np.array_equal(views[2::2], corners)
    assert np.array_equal(stored_views(rows, 0, PICTURES, transform, "flip"), views[:2])
    assert np.array_equal(stored_views(rows, 0, PICTURES, transform, "none"), views[:1])


@pytest.mark.parametrize(("views", "each", "rows_per_shard"), [("flip", 2, 4096), ("ten-crop", 10, 4090)])
def test_the_codes_of_every_view_stand_beside_each_other(
    tiny_run: Path, tmp_path: Path, views: str, each: int, rows_per_shard: int
) -> None:
    words = ["extract-codes", "--codec", str(tiny_run), "--data", "digits", "--views", views]
    assert main([*words, "--out", str(tmp_path / "codes")]) == 0
    plain, store = CodeStore.open(tiny_run / "codes"), CodeStore.open(tmp_path / "codes")
    store.verify()
    assert store.index.rows_per_shard == rows_per_shard
    assert len(store) == each * len(plain)
    rows, once = store.rows(np.arange(len(store))), plain.rows(np.arange(len(plain)))
    assert np.array_equal(rows["view"].reshape(-1, each), np.tile(np.arange(each), (len(plain), 1)))
    for name in ("source_index", "label"):
        assert np.array_equal(rows[name].reshape(-1, each), once[name][:, None].repeat(each, axis=1))
    assert np.array_equal(rows["codes.0"][::each], once["codes.0"])
    codec = VQVAE.from_pretrained(tiny_run / "vqvae")
    for image in (0, 1, 900):
        number = int(once["source_index"][image])
        rows_of_one, transform = ArrayRows(digit(number)[None], "digit"), Transform(height=8, width=8, channels=1)
        pixels = stored_views(rows_of_one, 0, PICTURES, transform, views)
        (codes,) = codec.encode(torch.from_numpy(pixels).float().div(127.5).sub(1).permute(0, 3, 1, 2))
        assert np.array_equal(codes, rows["codes.0"][image * each : (image + 1) * each])
    held_out, wanted = (CodeStore.open(at / "codes", "validation") for at in (tmp_path, tiny_run))
    assert np.array_equal(held_out.rows([0, 1, 88])["codes.0"], wanted.rows([0, 1, 88])["codes.0"])
    assert len(held_out) == len(wanted)


def test_the_bytes_depend_on_the_views_alone(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract-codes", "--codec", str(tiny_run), "--data", "digits", "--views", "flip"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--batch-size", "7", "--num-workers", "2"]) == 0
    of_one, of_two = (
        {str(file.relative_to(at)): hashlib.sha256(file.read_bytes()).hexdigest() for file in at.rglob("*.*")}
        for at in (tmp_path / "one", tmp_path / "two")
    )
    assert of_one == of_two
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert "is finished (3416 + 89 rows); nothing to do" in capsys.readouterr().out
    assert main([*words[:-2], "--out", str(tmp_path / "one")]) == 2
    assert "other views" in capsys.readouterr().err
