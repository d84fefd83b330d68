"""The whole road with codes of several levels: killed, cut, on two processes, shared; the same bits and bytes."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from hub.server import LoopbackHub, hub_environment
from warm import BRIEFLY, Warm

from stage1_vqvae.model import load_codec
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.model.pipeline import VQPriorPipeline

CODEC = ["--steps", 24, "--batch-size", 16, "--log-every", 8, "--warmup-steps", 2, "--precision", "fp32"]
CODEC += ["--model.width", 16, "--model.num-residual-blocks", 1, "--model.downsampling", 4, "--reproducible"]
CODEC += ["--quantizer.num-codes", 16, "--quantizer.code-dim", 4]
PRIOR = ["--steps", 12, "--batch-size", 16, "--eval-every", 6, "--model.num-layers", 1, "--model.hidden-size", 16]
PRIOR += ["--model.num-heads", 2, "--reproducible"]
DEPTH = ["--model.num-layers", 2, "--model.depth-blocks", 1]
ROADS = {
    "residual": (["--quantizer.depth", 3], ["--level-order", "interleaved"]),
    "grids": (["--levels", 2], ["--level-order", "interleaved"]),
    "grids, residual, flat": (["--levels", 2, "--quantizer.depth", 2], ["--level-order", "flat"]),
    "grids, by depth": (["--levels", 2], DEPTH),
    "residual, by depth": (["--quantizer.depth", 2], DEPTH),
}


@pytest.fixture(scope="module")
def briefly(child_environment, tmp_path_factory):
    """A process that forks for each command; the evaluator's network is fitted in few steps."""
    with Warm(child_environment(), tmp_path_factory.mktemp("warm-levels"), BRIEFLY) as process:
        yield process


@pytest.fixture
def command(briefly):
    """Run a command and expect it to succeed."""

    def run(*words):
        done = briefly.run([str(word) for word in words])
        assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
        return done.stdout

    return run


def killed_once(warm, run, words):
    """Start a training and kill it when its first checkpoint is there."""
    with open(os.devnull, "w") as nothing:
        running = warm.start([str(word) for word in words], stdout=nothing.fileno(), stderr=nothing.fileno())
        ends = time.monotonic() + 60
        while not list(run.glob("*-training/checkpoints/step-*")) and time.monotonic() < ends:
            time.sleep(0.002)
        running.kill()
        assert running.wait(60) in (0, -signal.SIGKILL)


@pytest.mark.one_of("levels road")
@pytest.mark.fault("R1", "R2", "R4", "R5", "R6")
@pytest.mark.parametrize("road", ROADS)
def test_a_road_of_several_levels(road, briefly, command, tmp_path, digests, faults, child_environment):
    of_codec, of_prior = ROADS[road]
    one, two, struck = tmp_path / "one", tmp_path / "two", tmp_path / "struck"
    train = ["train-vqvae", "--data", "digits", *CODEC, *of_codec]
    command(*train, "--out", one)
    command(*train, "--out", two, "--num-processes", 2)
    killed_once(briefly, struck, [*train, "--checkpoint-every", 3, "--out", struck])
    command(*train, "--checkpoint-every", 3, "--out", struck)
    weights = [(run / "vqvae" / "model.safetensors").read_bytes() for run in (one, two, struck)]
    assert weights[0] == weights[1] == weights[2]
    for run, processes in ((one, 1), (two, 2)):
        extract = ["extract-codes", "--codec", one, "--data", "digits", "--out", run / "codes"]
        command(*extract, "--num-processes", processes)
    assert digests(one / "codes") == digests(two / "codes")
    prior = ["train-prior", "--codes", one / "codes", "--codec", one, *PRIOR, *of_prior]
    command(*prior, "--out", one)
    killed_once(briefly, struck, [*prior, "--checkpoint-every", 3, "--out", struck])
    command(*prior, "--checkpoint-every", 3, "--out", struck)
    assert (one / "prior/model.safetensors").read_bytes() == (struck / "prior/model.safetensors").read_bytes()
    draw = ["generate", "--model", one / "model", "--num-images", 5]
    command(*draw, "--batch-size", 5, "--out", tmp_path / "a")
    command(*draw, "--batch-size", 2, "--num-processes", 2, "--out", tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    faults.planted(2)
    measured = json.loads((one / "prior" / "training.json").read_text())["measured"]["levels"]
    assert measured[0]["level_above"] is None
    assert all(level["level_above"] > 0 for level in measured[1:])
    _the_rest(one, tmp_path, command)
    _shared(one / "model", tmp_path, child_environment)
    for part in ("vqvae", "prior"):
        weights = [(model / part / "model.safetensors").read_bytes() for model in (one / "model", tmp_path / "pulled")]
        assert weights[0] == weights[1]
    assert digests(tmp_path / "fetched") == digests(tmp_path / "a")


def _the_rest(run, folder, command):
    """What comes after: judging, scoring, completing, a page, and a copy of the model that is the same."""
    evaluation = ["evaluate", "--model", run / "model", "--data", "digits", "--num-images", 20]
    command(*evaluation, "--out", run / "evaluation.json")
    command("report", run)
    page = (run / "report.html").read_text()
    assert "from the codes of its first level alone" in page
    assert "Completions" in page
    pipe = VQPriorPipeline.from_pretrained(run / "model")
    store = CodeStore.open(run / "codes", "validation")
    rows = store.rows(np.arange(4))
    codes = tuple(torch.from_numpy(rows[f"codes.{n}"].astype(np.int64)) for n in range(len(store.spec.levels)))
    values = pipe.codec.decode(codes)
    scores = pipe.score(values)
    assert [tuple(each.shape[1:]) for each in scores.maps] == [level.grid for level in store.spec.levels]
    completed = pipe.complete(values, 0.5, num_images=2, output_type="pt")
    again = pipe.codec.encode(values)
    for level, drawn in zip(again, completed.codes, strict=True):
        half = level.shape[1] // 2
        assert torch.equal(drawn[:, :half], level[:, :half].repeat_interleave(2, dim=0))
    given = pipe.prior.layout.given_of({0: codes[0]})
    varied = pipe(4, given=given, labels=[0, 1, 2, 3], output_type="pt")
    assert torch.equal(varied.codes[0], codes[0])
    assert not torch.equal(varied.codes[-1], codes[-1])
    shutil.copytree(run / "model", folder / "copy")
    command("verify", folder / "copy")
    other = VQPriorPipeline.from_pretrained(folder / "copy")
    assert torch.equal(other(2, seed=3, output_type="pt").drawn, pipe(2, seed=3, output_type="pt").drawn)
    assert torch.equal(load_codec(run).decode(codes[:1]), pipe.codec.decode(codes[:1]))


def _shared(model, folder, child_environment):
    """Push a model to a Hub on this machine, pull it, and draw from it by its name there."""
    with LoopbackHub() as hub:
        environment = child_environment(**hub_environment(hub, folder / "cache", token="hf_of_these_tests"))
        with Warm(environment, folder) as person:
            for words in (
                ["push", "--model", model, "--repo-id", "somebody/levels"],
                ["pull", "somebody/levels", "--out", folder / "pulled"],
                ["generate", "--model", "somebody/levels", "--num-images", 5, "--out", folder / "fetched"],
            ):
                done = person.run([str(word) for word in words])
                assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
        assert hub.errors == []
