"""A kind of data of one axis, brought by an installed package, on the whole road and by the real commands."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from vq_prior_toys.curves import CURVES, CurveFiles, CurveForm

from stage1_vqvae.modalities import MODALITIES
from vq_prior import VQPriorPipeline
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.identity import file_sha256
from vq_prior.testing import check_modality

RunCli = Callable[..., "CompletedProcess[str]"]
CODEC = "--steps 6 --batch-size 16 --model.width 16 --model.num-residual-blocks 1 --warmup-steps 2 --precision fp32"
CODEC += " --quantizer.num-codes 16 --quantizer.code-dim 4 --augment True --checkpoint-every 3 --reproducible"
PRIOR = "--steps 6 --batch-size 8 --model.num-layers 1 --model.hidden-size 16 --model.num-heads 2 --warmup-steps 2"


def curves(count: int, length: int = 32) -> list[np.ndarray]:
    """Sines and steps in turn, [length, 2]."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        t = np.arange(length) / length * 2 * np.pi + rng.uniform(0, 6)
        waves = np.stack([np.sin(t), np.cos(2 * t)], axis=1)
        made.append((np.sign(waves) if number % 2 else waves).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves") / "data"
    for number, curve in enumerate(curves(80)):
        path = folder / ("step" if number % 2 else "sine") / f"{number:03d}.toy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CurveFiles().encode(curve))
    return folder


@pytest.fixture(scope="module")
def road(data: Path, toy_cli: RunCli) -> Path:
    """A RUN on curves, with MODEL."""
    run = data.parent / "run"
    done = toy_cli("train-vqvae", "--data", data, "--out", run, *CODEC.split())
    assert f"data {data}: curves, 80 toy files" in done.stdout
    toy_cli("extract-codes", "--codec", run, "--data", data, "--out", run / "codes")
    toy_cli("train-prior", "--codes", run / "codes", "--codec", run, "--out", run, *PRIOR.split())
    return run


@pytest.fixture
def _installed(toys_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line finds in an environment with the toys, in this process."""
    monkeypatch.syspath_prepend(toys_installed)
    monkeypatch.setattr(MODALITIES, "_installed", None)
    monkeypatch.setattr(MODALITIES, "_entries", dict(MODALITIES._entries))


def test_the_kind_passes_the_suite_of_own_kinds() -> None:
    files = CurveFiles()
    check_modality(CURVES, [files.encode(curve) for curve in curves(9)] + [files.encode(curves(1, length=20)[0])])


def test_folders_name_the_kind_and_how_its_values_are_made(road: Path) -> None:
    described = json.loads((road / "vqvae/preprocessor_config.json").read_text())
    assert described == {"modality": "curves", "length": 32, "channels": 2, "rule": "cut or hold; 1"}
    assert CodeStore.open(road / "codes").index.transform == described
    settings = json.loads((road / "vqvae-training/config.json").read_text())["settings"]
    assert (settings["modality"], settings["options"]) == ("curves", {"curves": {"length": 32}})


def test_samples_are_files_of_the_kind_and_one_sheet(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    words = ["generate", "--model", road / "model", "--num-samples", 5, "--batch-size"]
    toy_cli(*words, 5, "--out", tmp_path / "one")
    toy_cli(*words, 2, "--out", tmp_path / "two", "--num-processes", 2)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [*(f"00000{n}.toy" for n in range(5)), "samples.json"]
    assert file_sha256(tmp_path / "one.png") == file_sha256(tmp_path / "two.png")
    for name in names:
        assert file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "two" / name)
    form = CurveForm(32, 2)
    drawn = [CurveFiles().read((tmp_path / "one" / name).read_bytes(), form, lambda: "x") for name in names[:5]]
    assert np.isfinite(np.stack(drawn)).all()
    assert json.loads((tmp_path / "one/samples.json").read_text())["num_images"] == 5
    toy_cli("reconstruct", "--codec", road, "--data", road.parent / "data", "--num-samples", 2, "--out", tmp_path / "r")
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == ["000000.toy", "000001.toy", "reconstructions.json"]
    assert (tmp_path / "r.png").is_file()
    toy_cli("score", "--model", road / "model", "--data", road.parent / "data", "--out", tmp_path / "scored")
    assert (tmp_path / "scored/000079.png").is_file()


@pytest.mark.usefixtures("_installed")
def test_python_gets_arrays_by_the_name_of_the_kind(road: Path) -> None:
    pipe = VQPriorPipeline.from_pretrained(road / "model")
    drawn = pipe(3, seed=1)
    assert drawn.images is None
    assert drawn.arrays is not None
    assert drawn.arrays["curves"].shape == (3, 32, 2)
    as_tensors = pipe(3, seed=1, output_type="pt").arrays
    assert as_tensors is not None
    assert torch.equal(as_tensors["curves"], torch.from_numpy(drawn.arrays["curves"]).movedim(-1, 1))
    scores = pipe.score(curves(2))
    assert scores.maps[0].shape == (2, *pipe.codec.spec.levels[0].grid)


def test_a_model_is_judged_and_reported(road: Path, data: Path, toy_cli: RunCli) -> None:
    asked = ["--data", data, "--model", road / "model", "--num-images", 12, "--out", road / "evaluation.json"]
    toy_cli("evaluate", *asked)
    result = json.loads((road / "evaluation.json").read_text())
    assert result["samples"]["fid"] > 0
    assert set(result["codec"]) == {"num_images", "mse", "levels"}
    toy_cli("report", road)
    page = (road / "report.html").read_text()
    for part in ("Codebook atlas", "Samples", "Completions"):
        assert part in page
    told = toy_cli("doctor", "--codec", road / "vqvae", "--data", data).stdout
    assert "variance_kept" in told
    toy_cli("verify", road / "codes", "--codec", road / "vqvae", "--data", data)


def test_a_training_that_is_killed_goes_on_and_two_processes_give_the_same_bytes(
    road: Path, data: Path, tmp_path: Path, toy_cli: RunCli, toy_cli_killed: RunCli
) -> None:
    weights = "vqvae/model.safetensors"
    toy_cli("train-vqvae", "--data", data, "--out", tmp_path / "two", *CODEC.split(), "--num-processes", 2)
    assert file_sha256(tmp_path / "two" / weights) == file_sha256(road / weights)
    words = ["train-vqvae", "--data", data, "--out", tmp_path / "killed", *CODEC.split()]
    toy_cli_killed(tmp_path / "killed", *words)
    toy_cli(*words)
    assert file_sha256(tmp_path / "killed" / weights) == file_sha256(road / weights)


def test_flags_of_the_kind_are_checked_and_those_of_others_refused(
    road: Path, data: Path, tmp_path: Path, toy_cli: RunCli
) -> None:
    train = ["train-vqvae", "--out", tmp_path / "run", *CODEC.split(), "--data"]
    assert "--curves.length {None}|INT" in toy_cli("train-vqvae", "--help").stdout
    assert "--curve-column" in toy_cli("extract-codes", "--help").stdout
    for words, told in (
        (["--image-size", 8], "--image-size is for pictures, and this data is curves"),
        (["--curves.length", 2], "--curves.length must be at least 4, got 2"),
        (["--curves.width", 2], "unknown flag --curves.width"),
        (["--modality", "sound"], "--modality must be one of pictures, curves, volumes, got sound"),
    ):
        assert told in toy_cli(*train, data, *words, code=2).stderr
    refused = toy_cli(*train, "digits", "--curves.length", 8, code=2)
    assert "--curves.length is for curves, and this data is pictures" in refused.stderr
    words = ["extract-codes", "--codec", road, "--data", "digits", "--out", tmp_path / "codes"]
    assert "the digits are pictures, not curves" in toy_cli(*words, code=2).stderr
    assert "--views must be one of none for curves, got flip" in toy_cli(*words, "--views", "flip", code=2).stderr


def test_a_table_of_lists_is_read_and_one_of_two_kinds_refused(tmp_path: Path, toy_cli: RunCli) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.array([curve.tolist() for curve in curves(40)], pa.list_(pa.list_(pa.float32())))
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"wave": lists, "label": [n % 2 for n in range(40)]}), path)
    done = toy_cli("train-vqvae", "--data", path, "--out", tmp_path / "run", *CODEC.split())
    assert f"data {path}: curves, column wave" in done.stdout
    assert "2 classes" in done.stdout
    (tmp_path / "both").mkdir()
    (tmp_path / "both/a.toy").write_bytes(CurveFiles().encode(curves(1)[0]))
    (tmp_path / "both/a.png").write_bytes(b"")
    refused = toy_cli("check-data", tmp_path / "both", "--out", tmp_path / "checked.json", code=2)
    assert "may be pictures (1 png files) and curves (1 toy files)" in refused.stderr
    assert "choose by --modality pictures or --modality curves" in refused.stderr
    toy_cli("check-data", tmp_path / "both", "--modality", "curves", "--out", tmp_path / "checked.json")
    assert json.loads((tmp_path / "checked.json").read_text())["modality"] == "curves"
