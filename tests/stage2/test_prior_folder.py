"""A prior's folder: strict for us, stock for everyone else."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from code_stores import CODEC_ID

from stage2_prior.prior import CausalPrior, SamplingDefaults, load_prior, save_prior
from stage2_prior.sampling import sample_tokens
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec, LevelSpec

KINDS = pytest.mark.parametrize("kind", ["qwen3", "llama"])

FOREIGN = """
import json, sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vq_prior", "stage1_vqvae", "stage2_prior"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], subfolder="prior", output_loading_info=True)
torch.manual_seed(0)
prompts = torch.arange(12, 16)[:, None].repeat(16, 1)
tokens = model.generate(prompts)
print(json.dumps({
    "shape": list(tokens.shape), "low": int(tokens[:, 1:].min()), "high": int(tokens[:, 1:].max()),
    "prompts_kept": bool((tokens[:, :1] == prompts).all()), "distinct": int(tokens[:, 1:].unique(dim=0).shape[0]),
    "problems": [len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")],
    "ours": [name for name in sys.modules if name.split(".")[0] in ("vq_prior", "stage1_vqvae", "stage2_prior")],
    "logits": model(tokens[:4, :-1]).logits.flatten()[:8].tolist(), "tokens": tokens[:4, :-1].tolist(),
}))
"""


def written(prior: CausalPrior, folder: Path) -> Path:
    with new_folder(folder) as staging:
        save_prior(prior, staging)
    return folder


@KINDS
def test_a_prior_comes_back_as_it_was(make_prior: Callable[..., CausalPrior], tmp_path: Path, kind: str) -> None:
    prior = make_prior(kind, key_value_heads=1)
    prior.sampling, prior.trained_steps = SamplingDefaults(0.9, 1.25), 7
    written(prior, tmp_path / "prior")
    for path in (tmp_path, tmp_path / "prior"):
        again = load_prior(path)
        for name, tensor in prior.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor)
        assert (again.layout, again.spec, again.codec_id) == (prior.layout, prior.spec, CODEC_ID)
        assert (again.label_names, again.sampling, again.trained_steps) == (prior.label_names, prior.sampling, 7)
        labels, indices = torch.tensor([0, 1, 3]), [4, 5, 6]
        first, second = (sample_tokens(p, labels, seed=1, indices=indices) for p in (prior, again))
        assert torch.equal(first, second)  # also what the model computes came back, not only its tensors
    assert again.notes == ()


@pytest.mark.one_of
@KINDS
def test_stock_generate_draws_legal_codes_where_our_packages_are_not(
    make_prior: Callable[..., CausalPrior], tmp_path: Path, kind: str
) -> None:
    prior = make_prior(kind)
    written(prior, tmp_path / "prior")
    run = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["shape"] == [64, 1 + 6]
    assert 0 <= seen["low"] <= seen["high"] < 12
    assert seen["prompts_kept"]
    assert seen["distinct"] > 32  # top_k and the end-of-sequence default of transformers would cut variety short
    assert seen["problems"] == [0, 0, 0]
    assert seen["ours"] == []
    ours = prior.logits(torch.tensor(seen["tokens"])).flatten()[:8]
    assert (ours - torch.tensor(seen["logits"])).abs().max() < 1e-4  # promised; see test_decoder


def test_several_levels_say_that_only_our_sampler_is_legal(
    make_prior: Callable[..., CausalPrior], tmp_path: Path
) -> None:
    spec = CodeSpec(1, (4,), (LevelSpec((1,), 3), LevelSpec((2,), 4)))
    written(make_prior(spec=spec), tmp_path / "prior")
    assert "several code grids" in json.loads((tmp_path / "prior/prior_config.json").read_text())["note"]
    assert load_prior(tmp_path).spec == spec


def test_a_flipped_byte_is_refused(make_prior: Callable[..., CausalPrior], tmp_path: Path) -> None:
    file = written(make_prior(), tmp_path / "prior") / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        load_prior(tmp_path)


def test_a_missing_prior_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load_prior(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no prior"):
        load_prior(tmp_path)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("prior_config.json", {"kind": "masked"}, "kind must be one of causal, depth, got 'masked'"),
        ("prior_config.json", {"order": "spiral"}, "order must be one of raster"),
        ("prior_config.json", {"format_version": 2}, "format version 2"),
        ("prior_config.json", {"extra": 1}, "unknown key 'extra'"),
        ("prior_config.json", {"num_codes": 11}, "num_codes is 11, its spec has 12"),
        ("prior_config.json", {"num_classes": 4}, "label_names has 3 names for 4 classes"),
        ("prior_config.json", {"sampling": {"temperature": 0}}, "sampling is out of range"),
        ("config.json", {"model_type": "gpt2"}, "model_type must be qwen3 or llama, got 'gpt2'"),
        ("config.json", {"auto_map": {"AutoModel": "x.y"}}, "asks to run code"),
        ("config.json", {"vocab_size": 17}, "vocab_size is 17"),
        ("config.json", {"attention_bias": True}, "attention_bias is True"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("config.json", {"max_position_embeddings": 3}, "max_position_embeddings is 3"),
        ("config.json", {"hidden_size": 64}, "has shape"),
        ("config.json", {"num_hidden_layers": 3, "layer_types": None}, "lacks tensor"),
        ("config.json", {"num_hidden_layers": 1, "layer_types": None}, "has an unknown tensor"),
        ("config.json", {"hidden_size": "wide"}, "describes no model"),
        ("config.json", {"num_key_value_heads": 3}, r"describes no model|shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    make_prior: Callable[..., CausalPrior], tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = written(make_prior(), tmp_path / "prior")
    (folder / "manifest.json").unlink()  # as another program would have saved it
    assert "no manifest.json" in load_prior(folder).notes[0]
    edit(folder / file, lambda values: values.update(change))
    with pytest.raises(ArtifactError, match=message):
        load_prior(tmp_path)
