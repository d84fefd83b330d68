"""Codecs of two grids on data of one, two and three axes, through the real commands."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image
from vq_prior_toys.curves import CurveFiles
from vq_prior_toys.volumes import VOLUMES, VolumeFiles

from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.identity import file_sha256
from vq_prior.testing import check_modality

RunCli = Callable[..., "CompletedProcess[str]"]
CODEC = "--levels 2 --steps 6 --batch-size 8 --model.width 16 --model.num-residual-blocks 1 --warmup-steps 2"
CODEC += " --quantizer.num-codes 16 --quantizer.code-dim 4 --precision fp32"
PRIOR = "--steps 4 --batch-size 8 --model.num-layers 1 --model.hidden-size 16 --model.num-heads 2 --eval-every 4"


def volume(number: int) -> np.ndarray:
    """A ramp along one axis with some noise, [8, 8, 8, 1] float32."""
    noise = np.random.default_rng(number).normal(size=(8, 8, 8, 1)) / 10
    return (np.moveaxis(np.linspace(-1, 1, 8).reshape(8, 1, 1, 1) + noise, 0, number % 3)).astype(np.float32)


def write(kind: str, folder: Path) -> None:
    """Write 40 rows of a kind into a folder."""
    folder.mkdir()
    for number in range(40):
        rng = np.random.default_rng(number)
        if kind == "curves":
            (folder / f"{number:02d}.toy").write_bytes(CurveFiles().encode(rng.normal(size=(32, 2)).cumsum(0) / 8))
        elif kind == "volumes":
            (folder / f"{number:02d}.vol").write_bytes(VolumeFiles().encode(volume(number)))
        else:
            pixels = np.broadcast_to(np.arange(128) * 2, (32, 128)) + rng.integers(0, 20, (32, 1))
            Image.fromarray(pixels.clip(max=255).astype(np.uint8)).save(folder / f"{number:02d}.png")


def test_volumes_pass_the_suite_of_own_kinds() -> None:
    check_modality(VOLUMES, [VolumeFiles().encode(volume(number)) for number in range(9)])


@pytest.mark.one_of("levels of a kind")
@pytest.mark.parametrize(
    ("kind", "grids"),
    [("curves", [(8,), (16,)]), ("wide pictures", [(8, 32), (16, 64)]), ("volumes", [(2, 2, 2), (4, 4, 4)])],
)
def test_two_grids(kind: str, grids: list, tmp_path: Path, toy_cli: RunCli) -> None:
    write(kind, tmp_path / "data")
    run = tmp_path / "run"
    size = ["--image-size", "32x128"] if kind == "wide pictures" else []
    toy_cli("train-vqvae", "--data", tmp_path / "data", "--out", run, *CODEC.split(), *size)
    toy_cli("extract-codes", "--codec", run, "--data", tmp_path / "data", "--out", run / "codes")
    assert [level.grid for level in CodeStore.open(run / "codes").spec.levels] == grids
    interleaved = ["--level-order", "interleaved"]
    toy_cli("train-prior", "--codes", run / "codes", "--codec", run, "--out", run, *PRIOR.split(), *interleaved)
    draw = ["generate", "--model", run / "model", "--num-samples", 2]
    toy_cli(*draw, "--out", tmp_path / "one")
    toy_cli(*draw, "--batch-size", 1, "--out", tmp_path / "two")
    assert file_sha256(tmp_path / "one.png") == file_sha256(tmp_path / "two.png")
    measured = json.loads((run / "vqvae/training.json").read_text())["measured"]
    assert len(measured["levels"]) == 2
    assert {"to_here", "without"} <= measured["levels"][1].keys()
