"""Two processes against one: the same codes, the same images, the same training up to rounding."""

import hashlib
import subprocess
import sys

import pytest

ACCELERATE_LAUNCH = "import runpy; runpy.run_module('accelerate.commands.launch', run_name='__main__')"


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run(warm, child_environment):
    """Run a command in one process, in two of ours, or in two of `accelerate launch`."""

    def run(words, launcher="ours"):
        words = list(map(str, words))
        if launcher != "accelerate":
            return warm.run([*words, "--num-processes", "2"] if launcher == "two" else words)
        launch = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "vq_prior", *words]
        return warm.run(ACCELERATE_LAUNCH, child_environment(ACCELERATE_USE_CPU="1"), arguments=launch)

    return run


@pytest.fixture(scope="module")
def dump_codes(run, tiny_run, many_digits, tmp_path_factory):
    """Write the code store of many digits with a launcher and return its digests."""

    def dump(launcher):
        out = tmp_path_factory.mktemp("codes") / launcher
        done = run(["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits, "--out", out], launcher)
        assert done.returncode == 0, done.stderr
        return _digests(out)

    return dump


@pytest.fixture(scope="module")
def codes_of_one(dump_codes):
    """Digests of the code store that one process writes."""
    return dump_codes("ours")


@pytest.mark.parametrize("launcher", ["two", "accelerate"])
def test_the_code_store_is_the_same(dump_codes, codes_of_one, launcher):
    assert codes_of_one
    assert dump_codes(launcher) == codes_of_one


def test_the_images_are_the_same_for_processes_and_batch_sizes(tmp_path, run, tiny_run):
    words = ["generate", "--model", tiny_run / "model", "--seed", 0, "--num-images", 20]
    for name, flags, how in (
        ("whole", ["--batch-size", 20], "ours"),
        ("single", ["--batch-size", 1], "two"),
        ("sevens", ["--batch-size", 7], "accelerate"),
    ):
        done = run([*words, *flags, "--out", tmp_path / name], how)
        assert done.returncode == 0, done.stderr
    assert _digests(tmp_path / "single") == _digests(tmp_path / "whole")
    assert _digests(tmp_path / "sevens") == _digests(tmp_path / "whole")


def test_training_on_two_processes_follows_one(tmp_path, run):
    import json

    words = ["train-vqvae", "--data", "digits", "--steps", 20, "--batch-size", 30, "--log-every", 5]
    words += ["--precision", "fp32", "--out"]
    losses = []
    for name, how in (("one", "ours"), ("two", "two")):
        done = run([*words, tmp_path / name], how)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["reconstruction"] for line in lines])
    assert len(losses[0]) >= 4
    # float32 sums in another order: 1e-5 relative is the documented gap
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_failure_is_one_line_whichever_process_meets_it(tmp_path, child_environment):
    words = ["train-vqvae", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--num-processes", "2"]
    command = [sys.executable, "-m", "vq_prior", *words]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert not (tmp_path / "out").exists()
