"""`scripts/benchmark`: what it prints, that it resumes, and that its contenders do the same job."""

import argparse
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

Benchmark = Callable[[str], ModuleType]


@pytest.fixture
def benchmark_module(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Import a file of scripts/benchmarks by its name, as the entry does."""
    monkeypatch.syspath_prepend(str(repository / "scripts" / "benchmarks"))
    return import_module


def test_lookup_ends_with_one_line_of_json(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="the extra benchmark is not installed")
    pytest.importorskip("diffusers", reason="the extra benchmark is not installed")
    folder = repository / "scripts" / "benchmarks"
    monkeypatch.setattr(sys, "argv", [str(folder), "lookup", "--quick", "--rounds", "2", "--json"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(folder), run_name="__main__")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["benchmark"] == "lookup"
    assert {"name", "seconds", "seconds_per_round", "peak_mb"} <= set(told["rows"][0])
    for row in told["rows"]:
        assert len(row["seconds_per_round"]) == 2
        assert row["seconds"] == pytest.approx(np.median(row["seconds_per_round"]))
    wanted = {"k512_vs_diffusers", "k512_vs_lucidrains", "k512_of_gemm", "k16384_vs_diffusers", "ema_step_vs_diffusers"}
    assert wanted <= set(told["ratios"])
    seconds = {row["name"]: row["seconds"] for row in told["rows"]}
    assert told["ratios"]["k512_vs_diffusers"] == pytest.approx(seconds["k512_diffusers"] / seconds["k512_ours"])
    assert 0 <= told["limits"]["extra_mb"] < 100


@pytest.mark.parametrize(
    ("name", "flags", "ratios"),
    [
        (
            "sample",
            ["--tokens", "4", "1", "--batch-sizes", "1", "16"],
            {"fp32_b1", "fp32_b16", "fast_b16", "guided_b16", "fp32_vs_dynamic_b16"},
        ),
        (
            "train-prior",
            ["--tokens", "4", "1", "--batch-tokens", "16"],
            {"fp32_vs_llama", "default_vs_llama"},
        ),
    ],
)
def test_stage_two_ends_with_one_line_of_json(
    benchmark_module: Benchmark,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: list[str],
    ratios: set[str],
) -> None:
    reference = benchmark_module("reference_prior")
    for key, value in {"LAYERS": 1, "WIDTH": 16, "HEADS": 2, "FEED_FORWARD": 32, "K": 12}.items():
        monkeypatch.setattr(reference, key, value)
    folder = repository / "scripts" / "benchmarks"
    monkeypatch.setattr(sys, "argv", [str(folder), name, *flags, "--rounds", "2", "--json"])
    runpy.run_path(str(folder), run_name="__main__")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["benchmark"] == name
    # Sequences of 64 tokens have the plain names.
    assert reference.ending(64) == ""
    assert {f"{ratio}_t{tokens}" for ratio in ratios for tokens in (4, 1)} <= told["ratios"].keys()
    seconds = {row["name"]: row["seconds"] for row in told["rows"]}
    if name == "sample":
        guided = seconds["stock_guided_b16_t4"] / seconds["guided_b16_t4"]
        assert told["ratios"]["guided_b16_t4"] == pytest.approx(guided)
        assert told["ratios"]["fp32_b16_t4"] == pytest.approx(seconds["stock_b16_t4"] / seconds["fp32_b16_t4"])
        shares = {f"of_limit_b{rows}_t{tokens}" for rows in (1, 16) for tokens in (4, 1)}
        draws = {f"draw_of_step_k16384_b64_{precision}" for precision in ("fp32", "bf16")}
        assert told["limits"].keys() == shares | draws
    else:
        llama = seconds["llama_fp32_t4"] / seconds["ours_fp32_t4"]
        assert told["ratios"]["fp32_vs_llama_t4"] == pytest.approx(llama)


def test_recipes_are_compared_on_real_codes(
    tiny_run: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository / "scripts" / "benchmarks"
    flags = ["--codes", str(tiny_run / "codes"), "--seconds", "2", "--layers", "1", "--width", "32", "--heads", "2"]
    monkeypatch.setattr(sys, "argv", [str(folder), "recipe", *flags, "--same-size", "--json"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(folder), run_name="__main__")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    plain, ours = told["rows"]
    assert plain["seconds"] == pytest.approx(2, rel=0.2)
    assert 1.5 < plain["nats"] < np.log(128)  # better than codes that are all alike
    assert 1.5 < ours["nats"] < np.log(128)
    assert told["ratios"]["nats_ratio"] == pytest.approx(ours["nats"] / plain["nats"])


def test_stock_sampling_is_of_the_same_prior(benchmark_module: Benchmark) -> None:
    sample = benchmark_module("sample")
    prior = sample.random_prior(4)
    stock = [sample.stock(prior, 3, **how) for how in ({}, {"cache": "dynamic"}, {"guidance_scale": 2.0})]
    for drawn in (*stock, sample.ours(prior, 3)):
        assert drawn.shape == (3, 4)
        assert int(drawn.max()) < 512


def test_two_trees_work_in_turns_and_a_second_call_goes_on(
    repository: Path, tmp_path: Path, child_environment: Callable[..., dict[str, str]]
) -> None:
    """With the repository itself as the other clone, at sizes that say nothing of speed."""
    command = [sys.executable, str(repository / "scripts" / "benchmarks"), "all", "--against", str(repository)]
    command += ["--out", str(tmp_path), "--json", "--rounds", "1"]
    small = ["--num-images", "40", "--side", "8", "--steps", "6", "--calls", "1"]

    def call(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *more], env=child_environment(), capture_output=True, text=True, timeout=300, check=False
        )

    done = call(*small)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    jobs = ["train-vqvae", "train-prior", "dump", "sample-1", "sample-16", "sample-64"]
    assert told["benchmark"] == "all"
    assert list(told["ratios"]) == jobs
    seconds = {row["name"]: row["seconds_per_round"] for row in told["rows"]}
    for job in jobs:
        (ours,), (theirs,) = seconds[f"{job}_ours"], seconds[f"{job}_theirs"]
        assert 0 < ours < 60
        assert told["ratios"][job] == pytest.approx(theirs / ours)

    assert json.loads(call(*small).stdout.splitlines()[-1]) == told
    other = call(*small, "--num-images", "41")
    assert other.returncode == 1
    assert "rounds of other code or sizes" in other.stderr


def test_a_tree_without_our_code_is_refused(benchmark_module: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no vq_prior"):
        benchmark_module("against").content_id(tmp_path)


def test_a_library_that_is_missing_is_named_in_one_line(
    benchmark_module: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = benchmark_module("timing")
    with pytest.raises(SystemExit) as ending:
        timing.require(no_such_module="no-such-package")
    assert ending.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no-such-package" in line


def test_rounds_are_interleaved_and_rotated(benchmark_module: Benchmark) -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = benchmark_module("timing").interleaved(contenders, rounds=2, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_extra_memory_is_what_was_held_at_the_peak(benchmark_module: Benchmark) -> None:
    measured = benchmark_module("timing").extra_mb(lambda: np.ones(50_000_000 // 8).sum())
    if measured is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 45 < measured < 60  # 50 MB were held, and given back


def test_contenders_find_the_same_codes(benchmark_module: Benchmark) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="the extra benchmark is not installed")
    pytest.importorskip("diffusers", reason="the extra benchmark is not installed")
    lookup = benchmark_module("lookup")
    size = lookup.Size(300, 8, 32)
    codes = lookup.contender("k512_lookup", size, "cpu")()
    assert torch.equal(lookup.contender("k512_diffusers", size, "cpu")()[2][2].view(-1), codes)
    assert torch.equal(lookup.contender("k512_lucidrains", size, "cpu")()[1].view(-1), codes)


def test_the_plain_network_is_the_notebooks(benchmark_module: Benchmark) -> None:
    baselines = benchmark_module("baselines")
    training = baselines.PlainTraining()
    assert sum(parameter.numel() for parameter in training.model.parameters()) == 662_723
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    losses = [training.step(pixels) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_every_cell_is_a_setting_that_train_vqvae_takes(benchmark_module: Benchmark) -> None:
    from stage1_vqvae.settings import check, resolve
    from stage1_vqvae.train import new_codec
    from vq_prior.core.modality import Facts

    quantisers = benchmark_module("quantisers")
    cells = quantisers.cells()
    assert len(cells) == 25
    for name, values in cells.items():
        settings = quantisers.codec_settings({**values})
        settings.data, settings.out = "digits", Path("somewhere")
        check(settings)
        resolved = resolve(settings, Facts(45_000, (32, 32), 32, 3), "cpu")
        assert new_codec(resolved).spec.levels[0].num_codes == values["num_codes"], name


def test_cells_run_once_and_are_told_by_seed(
    benchmark_module: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = benchmark_module("cell")
    folder = tmp_path / "cells"
    folder.mkdir()
    for seed, psnr in ((0, 24.0), (1, 26.0)):
        record = dict.fromkeys(cell.COLUMNS, 1.0) | {"name": "a", "seed": seed, "steps": 5, "psnr": psnr}
        cell.record_path(tmp_path, "a", 5, seed).write_text(json.dumps(record))
    table = cell.markdown(cell.records(tmp_path, ["a"]))
    assert "| a | 5 | 2 | 25.00 ± 1.41 |" in table

    parser = argparse.ArgumentParser()
    cell.add_cell_flags(parser)
    arguments = parser.parse_args(["--out", str(tmp_path), "--steps", "5", "--seeds", "0", "1"])
    assert cell.run_missing("quantisers", ["a"], arguments) == []
    assert "2 are there, 0 to run" in capsys.readouterr().out
