"""Files of several frames: the first is taken and that is said, or each is a row, those of a file on one side."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.check import check_data
from stage1_vqvae.data.columns import with_columns
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.settings import CheckData, ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.errors import ArtifactError, UsageError

FORMATS = {
    "tif": {"format": "TIFF"},
    "gif": {"format": "GIF"},
    "webp": {"format": "WEBP", "lossless": True},
    "png": {"format": "PNG"},
}


def frames_of(number: int, count: int = 3) -> list[np.ndarray]:
    """Grey frames of two tones, which every format keeps; each says which one it is."""
    return [np.pad(np.full((4, 8), 10 * number + n + 1, np.uint8), ((2, 2), (0, 0))) for n in range(count)]


def write(path: Path, frames: list[np.ndarray]) -> None:
    pictures = [Image.fromarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **FORMATS[path.suffix[1:]])


def values_of(rows) -> list[int]:
    stored = load_rows(rows, PICTURES, Transform(8, 8, 1), num_workers=2).stored(range(len(rows)))
    return stored[:, 4, 4, 0].tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_first_frame_is_taken_and_said_or_every_frame_is_a_row(tmp_path: Path, suffix: str) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.{suffix}", frames_of(number))
    write(tmp_path / "9.png", frames_of(9, count=1))
    first = open_data(str(tmp_path))
    assert values_of(first.train) + values_of(first.validation) == [1, 11, 21, 31, 91]
    said = f"data {tmp_path}: 4 of 5 images are the first of several frames; --frames all takes every frame"
    assert first.told_of(Transform(8, 8, 3)) == [said]
    every = open_data(str(tmp_path), frames="all")
    assert values_of(every.validation) == [91]  # as the first frame of that file would be
    assert values_of(every.train) == [1, 2, 3, 11, 12, 13, 21, 22, 23, 31, 32, 33]
    assert every.facts().channels == first.facts().channels
    assert every.told_of(Transform(8, 8, 3)) == []
    assert "5 files of the train split hold 13 frames, each a row" in every.notes
    assert every.train.name(4) == f"{tmp_path / f'1.{suffix}'} frame 1"
    assert every.validation.name(0) == str(tmp_path / "9.png")
    assert every.data_id != first.data_id
    assert every.data_id == open_data(str(tmp_path), frames="all", num_workers=1).data_id


def test_frames_have_the_label_and_the_numbers_of_their_file(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.gif", frames_of(number, count=number + 1))
    lines = [f"{number}.gif,{'ab'[number % 2]},{number / 2}" for number in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,size", *lines]))
    data = with_columns(open_data(str(tmp_path), frames="all"), ["size"])
    assert data.train.labels is not None
    assert data.validation.labels is not None
    assert data.train.labels.tolist() == [0, 1, 1, 0, 0, 0]
    assert data.validation.labels.tolist() == [1, 1, 1, 1]  # every frame of the file that is held out
    assert data.train.columns["size"].tolist() == [0, 0.5, 0.5, 1, 1, 1]
    assert data.validation.columns["size"].tolist() == [1.5] * 4


def test_frames_of_16_bits_and_of_colours_keep_them(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (3, 8, 8, 3), dtype=np.uint16)
    import tifffile

    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", deep // (number + 1), photometric="rgb")
    data = open_data(str(tmp_path), frames="all")
    rows = load_rows(data.train, PICTURES, Transform(8, 8, 3, range=(0, 65535))).stored(range(6))
    assert np.array_equal(rows, np.concatenate([deep, deep // 2]))
    (tmp_path / "colour").mkdir()
    colour = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 4), dtype=np.uint8)
    for number in range(2):
        pictures = [Image.fromarray(frame) for frame in colour]
        pictures[0].save(tmp_path / "colour" / f"{number}.png", save_all=True, append_images=pictures[1:])
    every = open_data(str(tmp_path / "colour"), frames="all")
    white = colour[..., :3] * (colour[..., 3:] / 255) + 255 - colour[..., 3:]
    found = load_rows(every.train, PICTURES, Transform(8, 8, 3)).stored(range(2))
    assert np.abs(found - white).max() <= 1


def test_command_says_it_and_a_rerun_takes_the_frames_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write(tmp_path / "data" / f"{number}.gif", frames_of(number))
    small = {"steps": 1, "batch_size": 2, "model": ModelSettings(width=8, num_residual_blocks=0), "precision": "fp32"}
    train_vqvae(TrainVQVAE(str(tmp_path / "data"), tmp_path / "a", dry_run=True, **small))
    assert "4 of 4 images are the first of several frames" in capsys.readouterr().out
    train_vqvae(TrainVQVAE(str(tmp_path / "data"), tmp_path / "b", frames="all", **small))
    assert "9 images to train on, 3 to validate" in capsys.readouterr().out
    train_vqvae(TrainVQVAE(str(tmp_path / "data"), tmp_path / "b"))
    assert "is finished (1 steps)" in capsys.readouterr().out


def test_frames_of_a_single_file_cannot_be_held_out_but_beside_others_they_may(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train" / "a.gif", frames_of(1))
    with pytest.raises(ArtifactError, match="holds one file, whose frames are held out together; give at least two"):
        open_data(str(tmp_path / "data" / "train"), frames="all")
    write(tmp_path / "data" / "val" / "b.gif", frames_of(2))
    data = open_data(str(tmp_path / "data"), frames="all")
    assert (values_of(data.train), values_of(data.validation)) == ([11, 12, 13], [21, 22, 23])


def test_damaged_frame_is_found_and_left_out_with_its_file(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "data" / f"{number}.tif", frames_of(number))
    whole = (tmp_path / "data" / "1.tif").read_bytes()
    (tmp_path / "data" / "1.tif").write_bytes(whole[: len(whole) // 2])
    checked = CheckData(str(tmp_path / "data"), tmp_path / "list.json", policy="skip", frames="all")
    check_data(checked)
    data = open_data(str(tmp_path / "list.json"), frames="all")
    assert values_of(data.train) == [1, 2, 3]
    assert values_of(data.validation) == [21, 22, 23]
    with pytest.raises(ArtifactError, match=r"1\.tif cannot be decoded"):
        open_data(str(tmp_path / "data"), frames="all")
    write(tmp_path / "data" / "2.tif", frames_of(7))
    with pytest.raises(ArtifactError, match=r"2\.tif is not what it was"):
        open_data(str(tmp_path / "list.json"), frames="all")
    with pytest.raises(UsageError, match="frames must be all, or be left out, got some"):
        open_data(str(tmp_path / "data"), frames="some")
