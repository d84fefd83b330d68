"""A number that is none, wherever it comes up: every process stops before the update, and none of it is saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from trainings import train

from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import NumericError
from vq_prior.core.processes import runtime
from vq_prior.judge.fingerprint import fingerprint

STEP, EVERY = 7, 5
WHERE = {"codec": ("loss", "gradient", "codebook"), "prior": ("loss", "gradient", "weight")}

IN_TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_not_finite
from vq_prior.core.processes.runtime import leave_runtime
folder, codes = Path(sys.argv[1]), Path(sys.argv[3])
test_not_finite.poison_all(folder, codes, float(sys.argv[4]))
leave_runtime(0)
"""


def poisoned(stage: str, where: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a value into what the step after `STEP` works with, on the last process alone."""
    import stage1_vqvae.run
    import stage2_prior.run

    gives_rows = stage1_vqvae.run if stage == "codec" else stage2_prior.run
    place = runtime.start_runtime()
    rows = gives_rows.batch_rows

    def at_step(*arguments):
        at_step.now = arguments[3] == STEP and place.process_index == place.num_processes - 1
        if at_step.now and where in ("codebook", "weight"):
            tensor = at_step.model.quantizer.codebook if where == "codebook" else next(at_step.model.parameters())
            with torch.no_grad():
                tensor.view(-1)[-3] = value
        return rows(*arguments)

    at_step.now = False
    monkeypatch.setattr(gives_rows, "batch_rows", at_step)
    backward = torch.Tensor.backward

    def poisoning(loss, *arguments, **named):
        parameters = [p for p in at_step.model.parameters() if p.requires_grad]
        if at_step.now and where == "loss":
            loss = loss * value
        backward(loss, *arguments, **named)
        if at_step.now and where == "gradient":
            parameters[3].grad.view(-1)[0] = value

    monkeypatch.setattr(torch.Tensor, "backward", poisoning)
    wrap = runtime.Runtime.wrap

    def wrapping(self, model):
        at_step.model = model
        return wrap(self, model)

    monkeypatch.setattr(runtime.Runtime, "wrap", wrapping)


def poison_all(folder: Path, codes: Path, value: float) -> None:
    """Poison each place of each stage; every process must say so, and the checkpoint before must be the only one."""
    place = runtime.start_runtime()
    for stage, places in WHERE.items():
        for where in places:
            out = folder / stage / where
            with pytest.MonkeyPatch.context() as patch:
                poisoned(stage, where, value, patch)
                with pytest.raises(NumericError, match="not finite") as told:
                    train(stage, out, codes, steps=20, checkpoint_every=EVERY)
            assert f"step {STEP + 1}" in str(told.value), (stage, where, str(told.value))
            runtime.start_runtime().barrier()
            if place.is_main:
                check_what_is_left(next(out.glob("*-training")))


def check_what_is_left(training: Path) -> None:
    """Expect one checkpoint, finite, of the step before, and the rows of the step that was not taken."""
    assert [path.name for path in (training / "checkpoints").iterdir()] == [f"step-{EVERY:08d}"]
    for path in training.rglob("*.safetensors"):
        for name, tensor in read_tensors(path).items():
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), (path, name)
    listed = json.loads((training / "not-finite.json").read_text())
    assert listed["step"] == STEP + 1
    assert len(listed["rows"]) == 16


def check_that_it_goes_on(folder: Path, codes: Path) -> None:
    """Without the poison the same command ends as if nothing had been."""
    for stage, places in WHERE.items():
        train(stage, folder / stage / "whole", codes, steps=20, checkpoint_every=EVERY)
        whole = fingerprint(folder / stage / "whole")
        train(stage, folder / stage / places[-1], codes, steps=20, checkpoint_every=EVERY)
        assert fingerprint(folder / stage / places[-1]) == whole


@pytest.mark.one_of
@pytest.mark.fault("F21", "F22", "R13")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_step(value, tmp_path, tiny_run, faults):
    poison_all(tmp_path, tiny_run / "codes", value)
    check_that_it_goes_on(tmp_path, tiny_run / "codes")
    faults.planted(6)


@pytest.mark.fault("F21", "F22", "R13")
def test_what_is_not_finite_on_one_process_stops_all(tmp_path, tiny_run, launch, request, faults):
    launch(IN_TWO_PROCESSES, tmp_path, request.path.parent, tiny_run / "codes", "nan", timeout=300)
    faults.planted(6)


@pytest.mark.fault("F22")
def test_nothing_that_is_not_finite_is_published(tmp_path, tiny_run):
    from stage1_vqvae.model import load_codec, save_codec

    codec = load_codec(tiny_run / "vqvae")
    with torch.no_grad():
        codec.quantizer.codebook[3, 1] = float("nan")
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(NumericError):
        save_codec(codec, tmp_path / "vqvae")
    shutil.rmtree(tmp_path / "vqvae")
