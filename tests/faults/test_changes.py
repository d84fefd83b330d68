"""A run that goes on with other settings than it began with: what is free, what is accepted, what does not fit."""

import json
import shlex

import pytest
import torch
from trainings import stopped_after, train

import stage1_vqvae.train
import stage2_prior.train
from vq_prior.cli import main
from vq_prior.core.disk.records import read_record
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.cards import recipe_text

FOLDERS = {"codec": ("vqvae-training", "vqvae"), "prior": ("prior-training", "prior")}
FREE = {
    "codec": {"gradient_accumulation_steps": 2, "log_every": 5},
    "prior": {"gradient_accumulation_steps": 4, "log_every": 5, "sample_every": 3, "gradient_checkpointing": True},
}
SHORT = {"steps": 12, "precision": "fp32"}


def config_of(out, stage):
    return json.loads((out / FOLDERS[stage][0] / "config.json").read_text())


@pytest.fixture(params=["codec", "prior"])
def begun(request, tmp_path, tiny_run):
    """A stage, its training as a function of what is changed, and its RUN, at step 5 of 12."""
    stage, out = request.param, tmp_path / "run"

    def go_on(where=out, **changes):
        train(stage, where, tiny_run / "codes", **(SHORT | changes))

    with stopped_after(5):
        go_on()
    return stage, go_on, out


def test_what_the_result_does_not_depend_on_may_change(begun, tmp_path):
    stage, go_on, out = begun
    go_on(**FREE[stage])
    assert "changes" not in config_of(out, stage)
    assert config_of(out, stage)["settings"]["log_every"] == 5
    record = read_record(out / FOLDERS[stage][1])
    assert record.changes == ()
    assert "changes" not in (out / FOLDERS[stage][1] / "training.json").read_text()
    go_on(tmp_path / "whole")
    mine, whole = (read_tensors(at / FOLDERS[stage][1] / "model.safetensors") for at in (out, tmp_path / "whole"))
    for name, tensor in whole.items():  # in pieces the sums are rounded otherwise
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-3)


def test_what_it_depends_on_is_refused_and_goes_on_where_that_is_accepted(begun):
    stage, go_on, out = begun
    before = config_of(out, stage)
    with pytest.raises(UsageError, match=r"batch-size 16 -> 8; learning-rate \S+ -> 0.002.* --accept-changes to go on"):
        go_on(batch_size=8, learning_rate=2e-3)
    assert config_of(out, stage) == before
    with stopped_after(2):
        go_on(batch_size=8, learning_rate=2e-3, accept_changes=True)
    first, second = config_of(out, stage)["changes"][0]["changed"]
    assert first == "batch-size 16 -> 8"
    assert second.startswith("learning-rate ")
    assert second.endswith(" -> 0.002")
    assert config_of(out, stage)["settings"]["batch_size"] == 8
    go_on(batch_size=8, learning_rate=2e-3)  # the run has them now
    with pytest.raises(UsageError, match="batch-size 8 -> 16"):
        go_on(learning_rate=2e-3)
    changes = [{"step": 5, "changed": [first, second]}]
    assert config_of(out, stage)["changes"] == changes
    record = read_record(out / FOLDERS[stage][1])
    assert record.changes == (f"from step 5 on: {first}", f"from step 5 on: {second}")
    assert "Changed on the way, from step 5 on: batch-size 16 -\\> 8." in recipe_text(record, None)
    with stopped_after(1):
        go_on(batch_size=8, learning_rate=2e-3, seed=1, steps=13, accept_changes=True)
    assert config_of(out, stage)["changes"] == [*changes, {"step": 12, "changed": ["seed 0 -> 1"]}]


def test_what_does_not_fit_the_networks_is_refused_and_changes_nothing(begun):
    stage, go_on, out = begun
    before = config_of(out, stage)
    from stage1_vqvae.settings import ModelSettings
    from stage2_prior.settings import PriorModel

    other = ModelSettings(width=24, num_residual_blocks=1) if stage == "codec" else PriorModel(num_layers=3)
    with pytest.raises(ArtifactError):
        go_on(model=other, accept_changes=True)
    with pytest.raises(ArtifactError):
        go_on(optimizer="muon", accept_changes=True)
    assert config_of(out, stage) == before
    go_on()


def test_other_codes_are_another_run(begun):
    stage, go_on, out = begun
    path = out / FOLDERS[stage][0] / "config.json"
    config = config_of(out, stage)
    (name,) = config["inputs"]
    config["inputs"][name] = "0" * 64
    path.write_text(json.dumps(config))
    if stage == "codec":
        go_on(accept_changes=True)
        assert config_of(out, stage)["changes"][0]["changed"][0].startswith(f"the content of data {'0' * 64} -> ")
        return
    with pytest.raises(UsageError, match="the content of codes") as told:
        go_on(accept_changes=True)
    assert "--accept-changes" not in str(told.value)


ERRORS = (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: 9 GB"))
SAME, OTHER = "--gradient-accumulation-steps 2", "--batch-size 2 --gradient-accumulation-steps 2 --accept-changes"


@pytest.mark.parametrize("stage", ["codec", "prior"])
@pytest.mark.parametrize(("batch", "pieces", "advice"), [(16, 1, SAME), (4, 4, OTHER), (1, 1, None)])
def test_a_training_out_of_memory_goes_on_with_what_it_says(
    stage, batch, pieces, advice, tiny_run, tmp_path, capsys, monkeypatch
):
    words = {
        "codec": ["train-vqvae", "--data", "digits", "--model.width", "16"],
        "prior": ["train-prior", "--codes", str(tiny_run / "codes"), "--model.num-layers", "1"],
    }[stage]
    words += ["--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", str(batch)]
    words += ["--gradient-accumulation-steps", str(pieces)] if pieces > 1 else []
    module, error = {"codec": stage1_vqvae.train, "prior": stage2_prior.train}[stage], ERRORS[batch % 3]

    def no_memory(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "passes", no_memory)
        assert main(words) == 5
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: out of memory; ")
    if advice is None:
        assert "--" not in line
        return
    assert f"run the same command with {advice}" in line
    kept = words if advice == SAME else words[: words.index("--batch-size")]
    assert main([*kept, *shlex.split(advice)]) == 0, capsys.readouterr().err


def test_other_commands_out_of_memory_name_only_flags_that_they_have(tiny_model, tmp_path, capsys, monkeypatch):
    def no_memory(*_, **_how):
        raise MemoryError

    from vq_prior.model.pipeline import VQPriorPipeline

    monkeypatch.setattr(VQPriorPipeline, "from_pretrained", no_memory)
    for command, named in (("generate", "lower --batch-size"), ("score", "end other programs")):
        data = ["--data", "digits"] if command == "score" else []
        assert main([command, "--model", str(tiny_model), "--out", str(tmp_path / "o"), *data]) == 5
        assert f"error: out of memory; {named}" in capsys.readouterr().err
