import json
import os

import pytest
import torch

from vq_prior.core.disk.artifacts import MANIFEST, write_manifest
from vq_prior.core.disk.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from vq_prior.core.errors import ArtifactError, NumericError


def checkpoint_at(step, value=None):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    if value is not None:
        weight[1, 2] = value
    return Checkpoint(
        step,
        modules={"codec": {"w": weight, "count": torch.arange(3)}, "discriminator": {"w": torch.rand(2)}},
        optimizers={
            "codec": {"w/exp_avg": torch.randn(4, 3, generator=generator), "w/step": torch.tensor(float(step))}
        },
        averages={"codec": {"w": torch.randn(4, 3, generator=generator)}},
        state={"best_loss": 0.1, "worse": 2, "note": None},
    )


def same_bits(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    saved = checkpoint_at(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert (loaded.step, loaded.state) == (saved.step, saved.state)
    for kind in ("modules", "optimizers", "averages"):
        before, after = getattr(saved, kind), getattr(loaded, kind)
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].keys() == after[name].keys()
            assert all(same_bits(before[name][key], after[name][key]) for key in before[name])


def test_a_checkpoint_is_a_folder_of_open_formats(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(7))
    assert path.name == "step-00000007"
    assert set(os.listdir(path)) == {
        "modules.codec.safetensors",
        "modules.discriminator.safetensors",
        "optimizers.codec.safetensors",
        "averages.codec.safetensors",
        "state.json",
        MANIFEST,
    }


def test_a_dotted_name_survives(tmp_path):
    path = save_checkpoint(tmp_path, Checkpoint(1, {"a.b": {"w": torch.ones(1)}}))
    assert load_checkpoint(path).modules.keys() == {"a.b"}


def test_the_two_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, checkpoint_at(step))
        assert len(os.listdir(tmp_path)) == min(2, 1 + (step > 5))
    assert sorted(os.listdir(tmp_path)) == ["step-00000015", "step-00000100"]
    assert latest_checkpoint(tmp_path)[0].step == 100


def test_without_a_checkpoint_there_is_none_to_continue(tmp_path):
    assert latest_checkpoint(tmp_path / "none") == (None, [])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit": lambda path: flip_a_bit(path / "modules.codec.safetensors"),
    "missing file": lambda path: (path / "optimizers.codec.safetensors").unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "torn manifest": lambda path: (path / MANIFEST).write_text('{"format'),
    "extra file": lambda path: (path / "modules.other.safetensors").write_bytes(b""),
    "empty folder": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_is_passed_over_with_a_line_that_names_it(tmp_path, damage):
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint_at(step))
    damage(tmp_path / "step-00000010")
    checkpoint, passed_over = latest_checkpoint(tmp_path)
    assert checkpoint.step == 5
    assert len(passed_over) == 1
    assert passed_over[0].startswith("passed over checkpoint step-00000010: ")


def test_damaged_later_checkpoints_never_push_out_a_new_one(tmp_path):
    for step in (5, 20, 30):
        save_checkpoint(tmp_path, checkpoint_at(step), keep=3)
    for step in (20, 30):
        flip_a_bit(tmp_path / f"step-{step:08d}" / "modules.codec.safetensors")
    save_checkpoint(tmp_path, checkpoint_at(10))
    checkpoint, passed_over = latest_checkpoint(tmp_path)
    assert checkpoint.step == 10
    assert len(passed_over) == 2


def test_saving_the_same_step_again_replaces_it(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    flip_a_bit(path / "modules.codec.safetensors")
    save_checkpoint(tmp_path, checkpoint_at(5))
    assert latest_checkpoint(tmp_path)[1] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_that_is_not_finite_is_saved(tmp_path, value):
    save_checkpoint(tmp_path, checkpoint_at(5))
    with pytest.raises(NumericError, match=r"modules\.codec is not finite at 'w'"):
        save_checkpoint(tmp_path, checkpoint_at(10, value))
    assert os.listdir(tmp_path) == ["step-00000005"]


def test_a_hidden_leftover_is_never_a_checkpoint(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    path.rename(tmp_path / ".step-00000009.partial")
    assert latest_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "state",
    [
        {"format_version": 2, "step": 5, "state": {}},
        {"format_version": 1, "step": "5", "state": {}},
        {"format_version": 1, "state": {}},
        {"format_version": 1, "step": 5, "state": []},
        [],
    ],
)
def test_a_sealed_checkpoint_with_a_malformed_state_is_refused(tmp_path, state):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    (path / "state.json").write_text(json.dumps(state))
    write_manifest(path)
    with pytest.raises(ArtifactError):
        load_checkpoint(path)


def test_a_sealed_checkpoint_with_a_file_of_no_known_kind_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint_at(5))
    (path / "modules.codec.safetensors").rename(path / "weights.safetensors")
    write_manifest(path)
    with pytest.raises(ArtifactError, match="no known kind"):
        load_checkpoint(path)
