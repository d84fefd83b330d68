"""The record of a training: what a card may tell, and nothing of the machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from vq_prior.core.disk.records import (
    RECORD,
    TrainingRecord,
    command_line,
    keep_record,
    public_name,
    read_record,
    write_record,
)
from vq_prior.core.errors import ArtifactError
from vq_prior.core.settings import Formerly, Free, Once, Place

GIVEN = TrainingRecord(1, "vq-prior train-vqvae --data digits --out RUN", "digits", "0" * 64, 9, 1, {"psnr": 20.5})


@dataclass
class Inner:
    width: int | None = None


@dataclass
class Settings:
    data: str
    out: Annotated[Path, Place("RUN")]
    codec: Annotated[str | None, Place("CODEC")] = None
    steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    flip: bool = False
    overwrite: Annotated[bool, Once()] = False
    num_workers: Annotated[int | None, Free()] = None
    max_norm: Annotated[float, Formerly("max-grad-norm")] = 1.0
    model: Inner = field(default_factory=Inner)


def test_the_command_holds_what_was_set_and_no_place() -> None:
    settings = Settings(
        "/data/of/somebody/cats", Path("/x/run"), codec="/x/run", steps=5, betas=(0.5, 0.9), flip=True, overwrite=True
    )
    settings.num_workers, settings.max_norm = 3, 2.0
    settings.model.width = 8
    assert command_line("train", settings) == (
        "vq-prior train --data cats --out RUN --codec CODEC --steps 5 --betas 0.5 0.9 --flip --max-grad-norm 2.0 "
        "--model.width 8"
    )


def test_hub_ids_stay() -> None:
    settings = Settings("owner/pictures", Path("run"), codec="owner/codec")
    assert command_line("train", settings) == "vq-prior train --data owner/pictures --out RUN --codec owner/codec"


@pytest.mark.parametrize(
    ("typed", "public"),
    [
        ("digits", "digits"),
        ("runs/cats", "runs/cats"),
        ("/data/cats/train.parquet", "train.parquet"),
        ("~/cats", "cats"),
        ("../../somebody/cats", "cats"),
        ("C:\\Users\\me\\cats", "cats"),
        ("/", "data"),
    ],
)
def test_a_path_is_published_without_its_place(typed: str, public: str) -> None:
    assert public_name(typed) == public


def test_it_comes_back_and_is_read_strictly(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    write_record(tmp_path, GIVEN)
    assert read_record(tmp_path) == GIVEN
    text = (tmp_path / RECORD).read_text()
    (tmp_path / RECORD).write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ArtifactError, match="format version 2"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text(text.replace('"command"', '"shell"'))
    with pytest.raises(ArtifactError, match="shell"):
        read_record(tmp_path)


def test_a_record_goes_with_its_weights_alone(tmp_path: Path) -> None:
    source, same, other = (tmp_path / name for name in ("source", "same", "other"))
    for folder, weights in ((source, b"1"), (same, b"1"), (other, b"2")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    write_record(source, GIVEN)
    for folder in (same, other):
        keep_record(source, folder)
        keep_record(None, folder)
    assert read_record(same) == GIVEN
    assert read_record(other) is None
