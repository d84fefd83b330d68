"""A prior in a shuffled order whose coarse level is given, by the real commands; and what it must be told."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from vq_prior import VQPriorPipeline
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import UsageError
from vq_prior.core.identity import file_sha256

RunCli = Callable[..., "CompletedProcess[str]"]
ORDER = [*range(16), *np.random.default_rng(0).permutation(np.arange(16, 32)).tolist()]
PRIOR = ["--steps", 12, "--batch-size", 8, "--eval-every", 6, "--checkpoint-every", 4]
SMALL = ["--model.num-layers", 2, "--model.hidden-size", 16, "--model.num-heads", 2, "--warmup-steps", 2]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, toy_cli: RunCli) -> Path:
    """A RUN of two levels, of which the prior is given the first."""
    run = tmp_path_factory.mktemp("given") / "run"
    steps = ["--steps", 6, "--batch-size", 16, "--log-every", 3, "--warmup-steps", 2, "--precision", "fp32"]
    network = ["--model.width", 16, "--model.num-residual-blocks", 1, "--quantizer.name", "two-levels"]
    sizes = ["--quantizer.num-codes", 16, "--quantizer.code-dim", 4]
    toy_cli("train-vqvae", "--data", "digits", "--out", run, *steps, *network, *sizes)
    toy_cli("extract-codes", "--codec", run, "--data", "digits", "--out", run / "codes")
    (run / "order.json").write_text(json.dumps(ORDER))
    toy_cli(*train(run), "--order", run / "order.json", "--given-levels", 0)
    return run


def train(run: Path, out: Path | None = None) -> list[object]:
    codes = ["--codes", run / "codes", "--codec", run, "--out", out or run]
    return ["train-prior", *codes, *PRIOR, *SMALL]


def pictures(folder: Path) -> list[str]:
    return [file_sha256(path) for path in sorted(folder.glob("0*.png"))]


def test_the_folder_says_what_it_is(road: Path) -> None:
    config = json.loads((road / "prior/prior_config.json").read_text())
    assert config["order"] == ORDER
    assert config["given_levels"] == [0]
    assert "num_special" not in config
    saved = json.loads((road / "prior-training/config.json").read_text())["settings"]
    assert json.loads(saved["order"]) == ORDER


def test_doctor_gives_the_level_of_held_out_rows(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    out = tmp_path / "doctor.json"
    words = ["doctor", "--codec", road, "--prior", road / "prior", "--codes", road / "codes", "--out", out]
    toy_cli(*words, code=4)  # so short a training is found wanting
    assert json.loads(out.read_text())["measured"]["samples"]["given_levels"] == [0]


def test_a_rerun_needs_neither_the_file_nor_the_flags(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    (road / "order.json").rename(tmp_path / "order.json")
    assert "is finished" in toy_cli(*train(road)).stdout
    refused = toy_cli(*train(road), "--order", "raster", code=2)
    assert "order [0,1," in refused.stderr
    (tmp_path / "order.json").rename(road / "order.json")


def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    road: Path, tmp_path: Path, toy_cli: RunCli, toy_cli_killed: RunCli
) -> None:
    words = train(road, tmp_path / "killed")
    toy_cli_killed(tmp_path / "killed", *words, "--order", road / "order.json", "--given-levels", 0)
    toy_cli(*words)
    for name in ("model.safetensors", "prior_config.json"):
        assert file_sha256(tmp_path / "killed/prior" / name) == file_sha256(road / "prior" / name)


def test_two_processes_train_as_one(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    more = ["--order", json.dumps(ORDER), "--given-levels", 0, "--num-processes", 2]
    toy_cli(*train(road, tmp_path / "two"), *more)
    logs = [run / "prior-training/metrics.jsonl" for run in (road, tmp_path / "two")]
    one, two = (json.loads(log.read_text().splitlines()[-1])["held_out_nats"] for log in logs)
    assert abs(one - two) < 1e-4  # sums of float32 in another order, over 12 steps


def test_samples_have_the_given_level_and_do_not_depend_on_the_batch(
    road: Path, tmp_path: Path, toy_cli: RunCli
) -> None:
    call = ["generate", "--model", road / "model", "--num-images", 7, "--given", road / "codes"]
    toy_cli(*call, "--out", tmp_path / "one", "--batch-size", 1)
    toy_cli(*call, "--out", tmp_path / "two", "--batch-size", 3, "--num-processes", 2)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    request = json.loads((tmp_path / "one/samples.json").read_text())
    store = CodeStore.open(road / "codes", "validation")
    assert request["given"] == store.store_id
    rows = store.rows(np.arange(7))
    assert request["labels"][:7] == [store.index.label_names[label] for label in rows["label"]]


@pytest.mark.usefixtures("toys_in_process")
def test_the_pipeline_keeps_what_is_given(road: Path) -> None:
    pipe = VQPriorPipeline.from_pretrained(road / "model")
    rows = CodeStore.open(road / "codes", "validation").rows(np.arange(5))
    coarse = torch.from_numpy(rows["codes.0"].astype(np.int64))
    drawn = pipe(5, labels=0, given=pipe.prior.layout.given_of({0: coarse})).codes
    assert torch.equal(drawn[0], coarse)
    assert len(drawn[1].unique()) > 1
    with pytest.raises(UsageError, match="does not draw level 0; give all of its codes"):
        pipe(5)


def test_what_is_measured_leaves_the_given_level_out(road: Path, toy_cli: RunCli) -> None:
    log = [json.loads(line) for line in (road / "prior-training/metrics.jsonl").read_text().splitlines()]
    kept = json.loads((road / "prior/prior_config.json").read_text()).get("kept")
    sizes = [len(each) if each else size for each, size in zip(kept or (None, None), (16, 8), strict=True)]
    assert abs(log[-1]["uniform"] - np.log(sizes[1])) < 1e-9
    assert "Samples" in Path(toy_cli("report", road).stdout.split()[1].rstrip(":")).read_text()


def test_evaluate_gives_samples_the_level_of_their_images(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    out = tmp_path / "evaluation.json"
    toy_cli("evaluate", "--data", "digits", "--out", out, "--model", road / "model", "--num-images", 20)
    result = json.loads(out.read_text())
    bits = result["prior"]["nats_per_token"] * 16 / np.log(2) / 64  # 16 cells drawn, 8 x 8 pixels
    assert abs(result["prior"]["bits_per_dimension"] - bits) < 1e-9
    assert result["samples"]["num_images"] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--order", "[0, 1]"], "--order must list 32 places, got 2"),
        (["--order", "interleaved"], "--order is of cells, got interleaved"),
        (["--order", "nowhere.json"], "nowhere.json is missing"),
        (["--given-levels", 0, 1], "--given-levels must be ascending numbers of the 2 level"),
        (["--order", json.dumps(ORDER), "--level-order", "interleaved"], "leave out one"),
    ],
)
def test_an_order_that_does_not_fit_is_one_line(
    road: Path, tmp_path: Path, toy_cli: RunCli, words: list[object], message: str
) -> None:
    code = 3 if "nowhere.json" in words else 2
    refused = toy_cli(*train(road, tmp_path / "none"), *words, code=code)
    assert message in refused.stderr
    assert not (tmp_path / "none").exists()


def test_codes_must_be_given_and_be_of_the_codec(road: Path, tmp_path: Path, toy_cli: RunCli) -> None:
    call = ["generate", "--model", road / "model", "--num-images", 2, "--out", tmp_path / "none"]
    assert "give codes that hold it by --given" in toy_cli(*call, code=2).stderr
    assert "does not exist" in toy_cli(*call, "--given", tmp_path / "nowhere", code=3).stderr
