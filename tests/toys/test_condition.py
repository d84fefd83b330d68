"""A condition of three floats of an installed package, from a column of a table to samples, by the real commands."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.identity import file_sha256

RunCli = Callable[..., "CompletedProcess[str]"]
ROWS = 120


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_table(path: Path, spot: list[list[float | None]]) -> Path:
    digits = load_digits()
    pictures = pa.array([{"bytes": png(image), "path": None} for image in digits.images[:ROWS]])
    columns = {"image": pictures, "label": digits.target[:ROWS].tolist(), "spot": spot, "ink": [r[0] for r in spot]}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def spots() -> list[list[float]]:
    """Three numbers of each picture: mean, and the middle of its ink."""
    images = load_digits().images[:ROWS]
    grid = np.arange(8) - 3.5
    total = images.sum((1, 2))
    middles = [(images * axis).sum((1, 2)) / total for axis in (grid, grid[:, None])]
    return np.stack([images.mean((1, 2)) / 4, *middles], axis=1).astype(np.float32).tolist()


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, toy_cli: RunCli, spots: list[list[float]]) -> Path:
    """A RUN whose prior is conditioned on the class, `spot` and `ink`."""
    run = tmp_path_factory.mktemp("condition") / "run"
    data = write_table(run.parent / "digits.parquet", spots)
    network = ["--model.width", 16, "--model.num-residual-blocks", 1, "--quantizer.num-codes", 16]
    steps = ["--steps", 6, "--batch-size", 16, "--log-every", 3, "--warmup-steps", 2, "--precision", "fp32"]
    toy_cli("train-vqvae", "--data", data, "--out", run, *steps, *network)
    toy_cli("extract-codes", "--codec", run, "--data", data, "--out", run / "codes", "--condition", "spot", "ink")
    toy_cli(*train(run))
    return run


def train(run: Path, out: Path | None = None) -> list[object]:
    sizes = ["--model.num-layers", 2, "--model.hidden-size", 16, "--model.num-heads", 2, "--warmup-steps", 2]
    steps = ["--steps", 12, "--batch-size", 8, "--eval-every", 6, "--checkpoint-every", 4]
    return ["train-prior", "--codes", run / "codes", "--codec", run, "--out", out or run, *steps, *sizes]


def pictures(folder: Path) -> list[str]:
    return [file_sha256(path) for path in sorted(folder.glob("0*.png"))]


def test_the_store_holds_the_columns_of_the_data(road: Path, spots: list[list[float]]) -> None:
    for split in ("train", "validation"):
        rows = CodeStore.open(road / "codes", split)
        held = rows.rows(np.arange(len(rows)))
        wanted = np.array(spots, dtype=np.float32)[held["source_index"]]
        assert np.array_equal(held["spot"], wanted)
        assert np.array_equal(held["ink"], wanted[:, 0])


def test_the_plug_in_takes_its_column_and_the_other_is_standardised(road: Path) -> None:
    config = json.loads((road / "model/prior/prior_config.json").read_text())
    assert [(each["column"]["name"], each["kind"]) for each in config["conditions"]] == [
        ("ink", "vector"),
        ("spot", "spot"),
    ]
    assert "conditions.safetensors" in (road / "model/prior/manifest.json").read_text()


def test_reruns_go_on_and_two_processes_write_the_same_store(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    assert "is finished" in toy_cli(*train(road)).stdout
    data = road.parent / "digits.parquet"
    call = ["extract-codes", "--codec", road, "--data", data, "--condition", "spot", "ink"]
    assert "nothing to do" in toy_cli(*call, "--out", road / "codes").stdout
    toy_cli(*call, "--out", tmp_path / "codes", "--num-processes", 2, "--batch-size", 7)
    ids = {CodeStore.open(folder).store_id for folder in (road / "codes", tmp_path / "codes")}
    assert len(ids) == 1
    refused = toy_cli(*call[:-1], "--out", road / "codes", code=2)
    assert "other conditions" in refused.stderr
    toy_cli(*train(road, tmp_path / "two"), "--num-processes", 2)
    logs = [run / "prior-training/metrics.jsonl" for run in (road, tmp_path / "two")]
    one, two = (json.loads(log.read_text().splitlines()[-1])["held_out_nats"] for log in logs)
    assert abs(one - two) < 1e-4  # sums of float32 in another order, over 12 steps


def test_samples_follow_the_file_and_never_the_batch(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    values = {"spot": [[0.5 * n, -1.0, 1.0] for n in range(6)], "ink": [1.5]}
    (tmp_path / "asked.json").write_text(json.dumps(values))
    call = ["generate", "--model", road / "model", "--num-images", 6, "--temperature", 1, "--guidance-scale", 3]
    call = [*call, "--labels", "1"]
    toy_cli(*call, "--out", tmp_path / "one", "--batch-size", 1, "--condition", tmp_path / "asked.json")
    more = ["--batch-size", 4, "--num-processes", 2, "--condition", tmp_path / "asked.json"]
    toy_cli(*call, "--out", tmp_path / "two", *more)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    without = toy_cli(*call, "--out", tmp_path / "none").stdout
    assert "condition spot is not given: every sample is drawn without it" in without
    assert pictures(tmp_path / "none") != pictures(tmp_path / "one")
    assert "conditions_sha256" not in json.loads((tmp_path / "none/samples.json").read_text())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spot": [[1, 2]]}, "condition spot must have values of shape [3], got [2]"),
        ({"spot": [[1, 2, 30]]}, "spot must lie in [-10, 10], got 30"),
        ({"spot": [[1, 2, 3]] * 2}, "condition spot has 2 rows for 3 samples"),
        ({"spot": "red"}, "condition spot must be numbers"),
        ({"size": [1]}, "names the condition size, the model has ink, spot"),
        ([1], "must hold an object of lists"),
    ],
)
def test_values_that_do_not_fit_are_one_line(
    road: Path, tmp_path: Path, toy_cli: RunCli, values: object, message: str
) -> None:
    (tmp_path / "asked.json").write_text(json.dumps(values))
    call = ["generate", "--model", road / "model", "--num-images", 3, "--out", tmp_path / "none"]
    refused = toy_cli(*call, "--condition", tmp_path / "asked.json", code=2)
    assert message in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("wrong", "message"), [(float("nan"), "bad.parquet row 7; mend"), (None, "column spot holds no number for")]
)
def test_a_row_without_numbers_is_refused_at_the_dump(
    road: Path, tmp_path: Path, toy_cli: RunCli, spots: list[list[float]], wrong: float | None, message: str
) -> None:
    bad: list[list[float | None]] = [list(row) for row in spots]
    bad[7][1] = wrong
    data = write_table(tmp_path / "bad.parquet", bad)
    call = ["extract-codes", "--codec", road, "--data", data, "--out", tmp_path / "none", "--condition", "spot"]
    assert message in toy_cli(*call, code=3).stderr
    for name in ("label", "smell"):
        refused = toy_cli(*call[:-1], name, code=2 if name == "label" else 3)
        assert name in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    road: Path, tmp_path: Path, toy_cli: RunCli, toy_cli_killed: RunCli
) -> None:
    words = train(road, tmp_path / "killed")
    toy_cli_killed(tmp_path / "killed", *words)
    toy_cli(*words)
    for name in ("model.safetensors", "conditions.safetensors", "prior_config.json"):
        assert file_sha256(tmp_path / "killed/prior" / name) == file_sha256(road / "prior" / name)


def test_evaluate_draws_with_the_class_alone(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    data, out = road.parent / "digits.parquet", tmp_path / "evaluation.json"
    toy_cli("evaluate", "--data", data, "--out", out, "--model", road / "model", "--num-images", 20)
    result = json.loads(out.read_text())
    assert result["samples"]["num_images"] == 20
    assert result["prior"]["nats_per_token"] > 0


def test_a_list_is_given_by_one_flag(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    call = ["extract-codes", "--codec", road, "--data", "digits", "--out", tmp_path / "none"]
    refused = toy_cli(*call, "--condition", "spot", "--condition", "ink", code=2)
    assert "--condition is given 2 times; give all its values after one" in refused.stderr


def test_report_and_verify_know_a_conditioned_prior(road: Path, toy_cli: RunCli) -> None:
    assert "Samples" in Path(toy_cli("report", road).stdout.split()[1].rstrip(":")).read_text()
    assert "the model is whole" in toy_cli("verify", road / "model").stdout
