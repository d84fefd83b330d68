"""A codec of two levels through the real commands, on one process and on two."""

import json

SMALL = ["--steps", 6, "--batch-size", 16, "--log-every", 3, "--warmup-steps", 2, "--precision", "fp32"]
NETWORK = ["--model.width", 16, "--model.num-residual-blocks", 1, "--quantizer.name", "two-levels"]
SIZES = ["--quantizer.num-codes", 16, "--quantizer.code-dim", 4, "--reproducible"]
PRIOR = ["--steps", 4, "--batch-size", 8, "--eval-every", 4, "--model.num-layers", 1, "--model.hidden-size", 16]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_levels_go_the_whole_road(tmp_path, toy_cli, toy_cli_killed):
    train = ["train-vqvae", "--data", "digits", *SMALL, *NETWORK, *SIZES]
    one, two = tmp_path / "one", tmp_path / "two"
    toy_cli(*train, "--out", one)
    toy_cli(*train, "--out", two, "--num-processes", 2)
    for run, processes in ((one, 1), (two, 2)):
        extract = ["extract-codes", "--codec", run, "--data", "digits", "--out", run / "codes"]
        toy_cli(*extract, "--num-processes", processes)
    assert files(one / "codes").keys() == files(two / "codes").keys()
    same = [name for name, data in files(one / "codes").items() if files(two / "codes")[name] == data]
    assert {name for name in files(one / "codes") if name.endswith(".safetensors")} <= set(same)
    toy_cli("reconstruct", "--codec", one, "--data", "digits", "--out", tmp_path / "pairs", "--num-images", 2)
    toy_cli("train-prior", "--codes", one / "codes", "--codec", one, "--out", one, *PRIOR, "--model.num-heads", 2)
    draw = ["generate", "--model", one / "model", "--num-images", 3, "--batch-size", 2]
    toy_cli(*draw, "--out", tmp_path / "a")
    toy_cli(*draw, "--out", tmp_path / "b", "--num-processes", 2)
    assert (tmp_path / "a" / "000002.png").read_bytes() == (tmp_path / "b" / "000002.png").read_bytes()
    killed = [*train, "--checkpoint-every", 2, "--out", tmp_path / "killed"]
    toy_cli_killed(tmp_path / "killed", *killed)
    toy_cli(*killed)
    assert files(tmp_path / "killed/vqvae")["model.safetensors"] == files(one / "vqvae")["model.safetensors"]
    asked = ["--data", "digits", "--num-images", 20, "--out", one / "evaluation.json"]
    toy_cli("evaluate", "--model", one / "model", *asked)
    result = json.loads((one / "evaluation.json").read_text())
    assert [level["num_codes"] for level in result["codec"]["levels"]] == [16, 8]
    assert result["samples"]["num_images"] == 20
    toy_cli("report", one)
    assert "of the finest level" in (one / "report.html").read_text()
    line = json.loads((one / "vqvae-training" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"usage.0", "usage.1"} <= line.keys()
