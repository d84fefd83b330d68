"""`--fsdp`: parameters cut over the processes; what is saved is that of a training without it."""

import shutil

import pytest
import torch

from stage2_prior.prior import load_prior
from stage2_prior.settings import TrainPrior, check
from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.core.errors import UsageError

SIZES = ["--model.num-layers", 2, "--model.hidden-size", 16, "--model.num-heads", 2]
STEPS = ["--batch-size", 16, "--checkpoint-every", 10, "--eval-every", 10, "--warmup-steps", 2]


@pytest.fixture(scope="module")
def train(run_cli, launched, tiny_run):
    """Train a prior on the codes of `tiny_run`."""

    def train(out, steps, *flags):
        words = ["train-prior", "--codes", tiny_run / "codes", "--out", out, "--steps", steps, *SIZES, *STEPS, *flags]
        done = run_cli(*words, env=launched)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return train


@pytest.fixture(scope="module")
def sharded(train, tmp_path_factory):
    """A run of 20 steps on two processes, each with a half of every parameter."""
    out = tmp_path_factory.mktemp("sharded") / "run"
    train(out, 20, "--fsdp", "--num-processes", 2)
    return out


def assert_alike(one, other):
    """Compare the checkpoints of two runs, each tensor by name."""
    first, second = (latest_checkpoint(run / "prior-training" / "checkpoints")[0] for run in (one, other))
    assert first.step == second.step
    for kind in ("modules", "optimizers", "averages"):
        groups, others = getattr(first, kind), getattr(second, kind)
        assert groups.keys() == others.keys()
        for group in groups:
            assert groups[group].keys() == others[group].keys()
            for name, tensor in groups[group].items():
                torch.testing.assert_close(tensor, others[group][name], rtol=2e-3, atol=2e-5)


def test_what_is_saved_is_that_of_a_training_without_it(sharded, train, tmp_path):
    train(tmp_path, 20)
    assert_alike(sharded, tmp_path)
    assert load_prior(sharded).trained_steps == 20
    names = {path.name for path in (tmp_path / "prior").iterdir()}
    assert {path.name for path in (sharded / "prior").iterdir()} == names


def test_a_run_continues_with_and_without_it(sharded, train, tmp_path):
    shutil.copytree(sharded, tmp_path / "alone")
    assert "continuing at step 20 of 30" in train(tmp_path / "alone", 30)
    train(tmp_path / "whole", 20)
    told = train(tmp_path / "whole", 30, "--fsdp", "--num-processes", 2, "--gradient-accumulation-steps", 1)
    assert "continuing at step 20 of 30" in told
    assert_alike(tmp_path / "alone", tmp_path / "whole")


def test_parameters_moments_and_averages_are_cut_and_accumulation_follows(tmp_path, launch, tiny_run):
    launch(IN_TWO_PROCESSES, tmp_path, tiny_run / "codes")


IN_TWO_PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from stage2_prior.run import prepare
from stage2_prior.settings import CodeFacts, PriorModel, TrainPrior, resolve
from stage2_prior.train import held_out_loss, update
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.processes.runtime import leave_runtime, start_runtime
from vq_prior.core.processes.sharding import whole

train, held_out = (CodeStore.open(Path(sys.argv[2]), split) for split in ("train", "validation"))
runtime = start_runtime("fp32")
settings = TrainPrior(Path(sys.argv[2]), Path(sys.argv[1]) / "run", steps=5, batch_size=16, fsdp=True)
settings = replace(settings, model=PriorModel(num_layers=2, hidden_size=16, num_heads=2))
facts = CodeFacts(held_out.spec.levels[0].num_tokens, held_out.spec.levels[0].num_codes, len(train))
losses = []
for changes in ({}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"fsdp": False}):
    t = prepare(resolve(replace(settings, **changes), facts, "cpu"), runtime, train, held_out, None)
    nats = [float(update(t)["train_nats"]) for _ in range(5)]
    if t.settings.fsdp:
        for name, parameter in t.prior.model.named_parameters():
            moments = t.optimizers["adamw"].state[parameter]
            for tensor in (parameter, parameter.grad, t.average.tensors[name], moments["exp_avg"]):
                assert 2 * tensor.to_local().numel() <= whole(tensor).numel() + whole(tensor)[:1].numel(), name
    losses.append([*nats, held_out_loss(t)[0]])
    t.held_out = t.held_out.__class__.read(held_out, t.prior.layout, max_rows=1)
    losses[-1].append(held_out_loss(t)[0])  # one row: a process has none
for other in losses[1:]:
    torch.testing.assert_close(torch.tensor(other), torch.tensor(losses[0]), rtol=1e-4, atol=1e-5)
leave_runtime(0)
"""


def test_a_launcher_whose_file_says_fsdp_shards(tmp_path, tiny_run, repository, accelerate_launch):
    config = repository / "scripts" / "launch" / "fsdp.yaml"
    words = ["train-prior", "--codes", tiny_run / "codes", "--codec", tiny_run, "--out", tmp_path / "run"]
    words += ["--steps", 3, "--batch-size", 8, *SIZES]
    how = ["--config_file", config, "--num_processes", 2, "--main_process_port", 0]
    done = accelerate_launch(*how, "-m", "vq_prior", *words)
    assert done.returncode == 0, done.stderr
    assert "no sample grids while training: no process holds the whole prior (--fsdp)" in done.stdout
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("changes", [{"reproducible": True}, {"optimizer": "muon"}, {"lora": True, "from_model": "x"}])
def test_what_it_does_not_go_with_is_refused(tmp_path, changes):
    with pytest.raises(UsageError, match="--fsdp does not go with"):
        check(TrainPrior(tmp_path, tmp_path / "run", fsdp=True, **changes))
