"""What released versions wrote, kept in tests/golden by scripts/golden: this version reads it, and goes on with it."""

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.settings import TrainVQVAE
from stage1_vqvae.train import train_vqvae
from stage2_prior.settings import TrainPrior
from stage2_prior.train import train_prior
from vq_prior import CodeStore
from vq_prior.core.config import to_json
from vq_prior.judge.fingerprint import fingerprint

GOLDEN = sorted(path for path in (Path(__file__).parents[1] / "golden").iterdir() if path.is_dir())

# What binds codes and priors to a codec: other ids here would make strangers of all that people have.
IDS = {
    "0.1.0": {
        "codec": "20a28703a95dd9a9396a63900a73eee15f5e6e7c26c6e86de1f9645349a51934",
        "store": "d9bcd7b04d2d162c307bcdf2a4b91b333ba0277b7e4461aff7dc6223daa60f12",
    },
}

pytestmark = [pytest.mark.fault("F43"), pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)]


@pytest.fixture
def run(golden, tmp_path):
    """A copy of what that version wrote."""
    shutil.copytree(golden, tmp_path / "run")
    return tmp_path / "run"


def test_every_part_is_whole_and_its_codes_are_those_that_its_codec_gives(run, run_cli):
    for part in ("vqvae", "prior", "model", "codes", "vqvae-training", "prior-training"):
        done = run_cli("verify", run / part)
        assert done.returncode == 0, f"{part}: {done.stderr}"
    done = run_cli("verify", run / "codes", "--codec", run / "vqvae")
    assert done.returncode == 0, done.stderr


def test_a_fingerprint_is_the_one_that_was_taken_then(golden, run):
    (run / "fingerprint.txt").unlink()
    assert fingerprint(run) == (golden / "fingerprint.txt").read_text().splitlines()


def test_ids_are_those_of_then(golden, run):
    assert (
        open_codec(run / "vqvae").codec_id == open_codec(run / "model" / "vqvae").codec_id == IDS[golden.name]["codec"]
    )
    store = CodeStore.open(run / "codes")
    assert (store.index.codec.id, store.store_id) == (IDS[golden.name]["codec"], IDS[golden.name]["store"])


def test_a_model_draws_the_images_that_it_drew(golden, run, run_cli, tmp_path):
    done = run_cli("generate", "--model", run / "model", "--num-images", 16, "--seed", 7, "--out", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    same = 0
    for number in range(16):
        name = f"{number:06d}.png"
        was = np.asarray(Image.open(golden / "samples" / name), dtype=int)
        now = np.asarray(Image.open(tmp_path / "drawn" / name), dtype=int)
        same += np.abs(was - now).max() <= 1
    assert same >= 15  # another processor rounds otherwise: a level of a pixel, and seldom a token


@pytest.mark.parametrize("stage", ["vqvae", "prior"])
def test_a_training_goes_on(run, run_cli, stage):
    """From its checkpoint to more steps, by the command of then."""
    checkpoint = next((run / f"{stage}-training" / "checkpoints").iterdir())
    steps = int(checkpoint.name.removeprefix("step-"))
    small = {
        "vqvae": "--data digits --model.width 8 --model.num-residual-blocks 1"
        " --quantizer.num-codes 32 --quantizer.code-dim 4",
        "prior": "--model.num-layers 1 --model.hidden-size 16 --model.num-heads 2 --codes run/codes --codec run",
    }[stage]
    words = [f"train-{stage}", "--out", "run", "--batch-size", 64, "--steps", steps + 20, *small.split()]
    done = run_cli(*words, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"continuing (at|from) step {steps}\b", done.stdout)
    assert (checkpoint.parent / f"step-{steps + 20:08d}").is_dir()


@dataclass
class GrownVQVAE(TrainVQVAE):
    """A later version's settings: one that did not exist, and another default of one that did."""

    new_setting: float = 0.5
    log_every: int = 7


@dataclass
class GrownPrior(TrainPrior):
    """The same for stage two."""

    new_setting: float = 0.5
    weight_decay: float = 0.2


@pytest.mark.parametrize("stage", ["vqvae", "prior"])
def test_a_training_goes_on_after_a_setting_was_added_and_a_default_was_changed(run, stage, capsys):
    """What the person does not give is that of the run; what the run does not name is its default."""
    folder = run / f"{stage}-training"
    before = json.loads((folder / "config.json").read_text())["settings"]
    steps = before["steps"] + 10
    if stage == "vqvae":
        train_vqvae(GrownVQVAE(data="digits", out=run, steps=steps))
    else:
        train_prior(GrownPrior(codes=run / "codes", out=run, steps=steps))
    assert f"step {before['steps']}" in capsys.readouterr().out
    after = json.loads((folder / "config.json").read_text())["settings"]
    places = {"data", "codes", "codec", "out"}
    came_since = after.keys() - before.keys()

    def as_before(name: str) -> Any:
        """What the run has now, without entries of a group that came since."""
        value, old = after[name], before[name]
        return {key: value[key] for key in old} if isinstance(old, dict) else value

    kept = [name for name in before if name not in places | {"steps"}]
    assert {name: as_before(name) for name in kept} == {name: before[name] for name in kept}
    assert before.keys() <= after.keys()
    grown = GrownVQVAE if stage == "vqvae" else GrownPrior
    usual = {each.name: to_json(each.default) for each in dataclasses.fields(grown)} | {"optimizer": "adamw"}
    usual["level_order"] = "flat"  # of one level
    assert {name: after[name] for name in came_since} == {name: usual[name] for name in came_since}
    assert after["new_setting"] == 0.5
    assert after["optimizer"] == "adamw"
    assert (folder / "checkpoints" / f"step-{steps:08d}").is_dir()


@pytest.mark.parametrize(("stage", "flag"), [("vqvae", "--warmup-steps"), ("prior", "--weight-decay")])
def test_what_the_person_types_is_refused_even_if_it_is_the_default(run, run_cli, stage, flag):
    path = run / f"{stage}-training" / "config.json"
    config = json.loads(path.read_text())
    name = flag.strip("-").replace("-", "_")
    config["settings"][name] = 25 if name == "warmup_steps" else 0.25
    path.write_text(json.dumps(config))
    default = {"warmup_steps": 100, "weight_decay": 0.1}[name]
    words = {"vqvae": ["--data", "digits"], "prior": ["--codes", "run/codes"]}[stage]
    refused = run_cli(f"train-{stage}", "--out", "run", *words, flag, default, cwd=run.parent)
    assert refused.returncode == 2
    assert f"{flag.strip('-')} {config['settings'][name]} -> {default}" in refused.stderr
    kept = run_cli(f"train-{stage}", "--out", "run", *words, cwd=run.parent)
    assert kept.returncode == 0, kept.stderr
    assert "is finished" in kept.stdout
