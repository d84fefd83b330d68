import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.disk.components import (
    check_sealed,
    check_transformers_config,
    find_component,
    load_strictly,
    plain_config,
)
from vq_prior.core.disk.tensors import write_tensors
from vq_prior.core.errors import ArtifactError


def network():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def weights_in(folder):
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", network().state_dict())
    return folder


def test_a_component_is_found_from_itself_a_run_or_a_model(tmp_path):
    in_model = weights_in(tmp_path / "model" / "vqvae")
    in_run = weights_in(tmp_path / "run" / "vqvae")
    assembled = weights_in(tmp_path / "other" / "model" / "vqvae")
    assert find_component(tmp_path / "model", "vqvae") == in_model
    assert find_component(tmp_path / "run", "vqvae") == in_run
    assert find_component(in_run, "vqvae") == in_run
    assert find_component(tmp_path / "other", "vqvae") == assembled
    with pytest.raises(ArtifactError, match="holds no prior"):
        find_component(tmp_path / "run", "prior")
    with pytest.raises(ArtifactError, match="does not exist"):
        find_component(tmp_path / "none", "prior")


def test_a_folder_without_a_manifest_is_mentioned_and_a_damaged_one_refused(tmp_path):
    folder = weights_in(tmp_path / "foreign")
    assert [str(folder) in note for note in check_sealed(folder)] == [True]
    with new_folder(tmp_path / "ours") as staging:
        write_tensors(staging / "model.safetensors", network().state_dict())
    assert check_sealed(tmp_path / "ours") == []
    data = bytearray((tmp_path / "ours" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ours" / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        check_sealed(tmp_path / "ours")


def config_file(tmp_path, **changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "rope_theta": 1e30} | changes))
    return path


def test_a_config_within_reason_is_returned(tmp_path):
    assert check_transformers_config(config_file(tmp_path), model_types=("llama",))["hidden_size"] == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type must be llama or qwen3, got 'bert'"),
        ({"model_type": None}, "got None"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"auto_map": None}, "auto_map"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, beyond"),
        ({"rope": {"inner": [1, -(10**12)]}}, "rope: inner is -1000000000000, beyond"),
    ],
)
def test_a_config_that_runs_code_or_has_absurd_dimensions_is_refused(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message):
        check_transformers_config(config_file(tmp_path, **changes), model_types=("llama", "qwen3"))


def test_weights_are_loaded_whole_or_not_at_all(tmp_path):
    trained, path = network(), tmp_path / "x.safetensors"
    module = nn.Linear(3, 2)
    write_tensors(path, trained.state_dict())
    load_strictly(module, path)
    assert torch.equal(module.weight, trained.weight)
    before = module.weight.detach().clone()
    wrong = {
        "lacks tensor 'bias'": {"weight": torch.zeros(2, 3)},
        "unknown tensor 'extra'": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)},
        "'bias' has shape": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        "'bias' holds values that are not finite": {"weight": torch.zeros(2, 3), "bias": torch.tensor([0, torch.nan])},
    }
    for message, tensors in wrong.items():
        save_file(tensors, path)
        with pytest.raises(ArtifactError, match=message):
            load_strictly(module, path)
        assert torch.equal(module.weight, before)


def test_a_plain_config_says_nothing_about_where_it_came_from():
    config = {
        "hidden_size": 8,
        "_name_or_path": "x",
        "transformers_version": "5",
        "torch_dtype": "float32",
        "dtype": None,
    }
    assert plain_config(config) == {"hidden_size": 8}
