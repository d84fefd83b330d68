"""Fine-tuning: what a prior keeps of the one it starts from, and that adapters change nothing else."""

import copy
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from code_stores import CODEC_ID, SPEC, write_store

from stage2_prior import run, train
from stage2_prior.fine_tuning import add_adapters, architecture_of, merged, prior_id, with_classes
from stage2_prior.prior import CausalPrior, build_prior, load_prior, save_prior, shifted, token_nats
from stage2_prior.settings import CodeFacts, PriorModel, TrainPrior, check, resolve
from stage2_prior.train import train_prior
from vq_prior.core.disk.checkpoints import load_checkpoint
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec

NAMES = ("class 2", "stranger")


def some_tokens(rows: int = 8) -> torch.Tensor:
    return torch.randint(12, (rows, 6), generator=torch.Generator().manual_seed(3))


def disturb(prior: CausalPrior) -> None:
    """Give every trained weight a random value, as if it had been trained."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in prior.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def stock_log_probs(prior: CausalPrior, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = prior.model(input_ids=shifted(prior.layout, tokens, labels), use_cache=False).logits
    return -token_nats(prior.layout, logits, tokens)


@pytest.fixture
def base_folder(make_prior: Callable[..., CausalPrior], tmp_path: Path) -> Path:
    folder = tmp_path / "base" / "prior"
    folder.mkdir(parents=True)
    save_prior(make_prior(), folder)
    return tmp_path / "base"


def tuning(codes: Path, out: Path, base: Path, **changes: Any) -> TrainPrior:
    """Return settings of a fine-tuning of a moment."""
    settings = TrainPrior(codes, out, from_model=str(base), lora=True, lora_rank=3, steps=12, batch_size=8)
    settings = dataclasses.replace(settings, checkpoint_every=4, eval_every=3, warmup_steps=2)
    return dataclasses.replace(settings, **changes)


@pytest.mark.parametrize(("kind", "key_value_heads"), [("qwen3", 2), ("llama", 4)])
def test_untrained_adapters_and_other_classes_leave_the_distribution_of_codes(
    make_prior: Callable[..., CausalPrior], kind: str, key_value_heads: int
) -> None:
    base = make_prior(kind, key_value_heads=key_value_heads)
    tuned = with_classes(base, NAMES)
    add_adapters(tuned, rank=4, seed=0)
    tokens, of_base = some_tokens(), base.layout.null_label
    # new class 0 is the base's class 2, new class 1 starts as its null prompt, and so does null
    for new, old in ((0, 2), (1, of_base), (tuned.layout.null_label, of_base)):
        wanted = base.log_probs(tokens, torch.full((8,), old))
        labels = torch.full((8,), new)
        # another order of float32 sums in the fused decoder
        torch.testing.assert_close(merged(tuned).log_probs(tokens, labels), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(stock_log_probs(tuned, tokens, labels), wanted, rtol=0, atol=1e-5)


def test_without_classes_the_null_prompt_is_the_bases(make_prior: Callable[..., CausalPrior]) -> None:
    base = make_prior()
    tuned = with_classes(base, ())
    assert tuned.layout.vocab_size == 12 + 1
    tokens = some_tokens()
    wanted = base.log_probs(tokens, torch.full((8,), base.layout.null_label))
    assert torch.equal(tuned.log_probs(tokens, torch.zeros(8, dtype=torch.int64)), wanted)


def test_the_base_is_left_as_it_was(make_prior: Callable[..., CausalPrior]) -> None:
    base = make_prior()
    before = prior_id(base)
    tuned = with_classes(base, NAMES)
    add_adapters(tuned, rank=4, seed=0)
    disturb(tuned)
    assert prior_id(base) == before
    assert prior_id(merged(tuned)) != before


def test_merged_weights_give_what_the_adapters_give(make_prior: Callable[..., CausalPrior]) -> None:
    tuned = with_classes(make_prior(), NAMES)
    add_adapters(tuned, rank=4, seed=0)
    disturb(tuned)
    tokens, labels = some_tokens(), torch.arange(8) % 3
    plain = merged(tuned)
    wanted = stock_log_probs(tuned, tokens, labels)
    # (W + BA) x against W x + B (A x) in float32
    torch.testing.assert_close(stock_log_probs(plain, tokens, labels), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(plain.log_probs(tokens, labels), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(tuned.log_probs(tokens, labels), wanted, rtol=0, atol=1e-4)


def test_peft_merges_to_the_same_weights(make_prior: Callable[..., CausalPrior]) -> None:
    from peft.tuners.lora import LoraLayer

    tuned = with_classes(make_prior(), NAMES)
    add_adapters(tuned, rank=4, seed=0)
    disturb(tuned)
    ours = merged(tuned).model.state_dict()
    layers = {name: m for name, m in copy.deepcopy(tuned.model).named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == 2 * 7
    for name, layer in layers.items():
        layer.merge()
        torch.testing.assert_close(ours[f"{name}.weight"], layer.get_base_layer().weight, rtol=0, atol=1e-6)


def test_only_adapters_and_prompts_are_trained_and_their_start_follows_from_the_seed(
    make_prior: Callable[..., CausalPrior],
) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(states))  # the global generator decides nothing
        tuned = with_classes(make_prior(), NAMES)
        add_adapters(tuned, rank=4, seed=seed)
        states.append({n: p.detach().clone() for n, p in tuned.model.named_parameters() if p.requires_grad})
    assert all("lora_" in name or name == "model.embed_tokens.prompts" for name in states[0])
    assert states[0]["model.embed_tokens.prompts"].shape == (3, 32)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    first = next(name for name in states[0] if "lora_A" in name)
    assert not torch.equal(states[0][first], states[2][first])


def test_a_tuned_prior_is_better_on_the_new_data_and_loads_without_peft(
    code_store: Path, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train_prior(tuning(code_store, tmp_path / "run", base_folder, steps=60, lora_rank=None))
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    tuned, base = load_prior(folder), load_prior(base_folder)
    assert tuned.label_names == ("class 0", "class 1", "class 2")
    assert tuned.trained_steps == 60
    assert architecture_of(tuned) == architecture_of(base)
    training = run.Sequences.read(CodeStore.open(code_store), tuned.layout)
    tokens, labels = training.batch(slice(None))
    assert float(tuned.log_probs(tokens, labels).mean()) > float(base.log_probs(tokens, labels).mean()) + 0.5
    K = 12
    codes = [prior.model.state_dict()["model.embed_tokens.weight"][:K] for prior in (tuned, base)]
    assert torch.equal(*codes)
    heads = [prior.model.state_dict()["lm_head.weight"] for prior in (tuned, base)]
    assert torch.equal(*heads)


@pytest.mark.parametrize("stop_after", [1, 6, 11])
@pytest.mark.parametrize("lora", [True, False])
def test_a_tuning_cut_anywhere_ends_in_the_same_bits(
    code_store: Path, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, lora: bool
) -> None:
    rank = 3 if lora else None
    train_prior(tuning(code_store, tmp_path / "whole", base_folder, lora=lora, lora_rank=rank))
    update, done = train.update, []

    def cut(training: run.Training) -> torch.Tensor:
        if len(done) == stop_after:
            raise KeyboardInterrupt  # nothing after this moment is written, as if the process were gone
        done.append(1)
        return update(training)

    monkeypatch.setattr(train, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train_prior(tuning(code_store, tmp_path / "cut", base_folder, lora=lora, lora_rank=rank))
    monkeypatch.setattr(train, "update", update)
    train_prior(tuning(code_store, tmp_path / "cut", base_folder, lora=lora, lora_rank=rank))
    final = [(tmp_path / name / "prior/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert final[0] == final[1]
    last = [load_checkpoint(tmp_path / name / "prior-training/checkpoints/step-00000012") for name in ("whole", "cut")]
    assert last[0].state == last[1].state
    for group in ("modules", "optimizers", "averages"):
        for name, tensors in getattr(last[0], group).items():
            for key, tensor in tensors.items():
                assert torch.equal(tensor, getattr(last[1], group)[name][key])


def test_rerunning_says_finished_and_another_base_is_refused(
    code_store: Path, tmp_path: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train_prior(tuning(code_store, out, base_folder))
    capsys.readouterr()
    train_prior(tuning(code_store, out, base_folder))
    assert "is finished (12 steps)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="lora-rank 3 -> 5"):
        train_prior(tuning(code_store, out, base_folder, lora_rank=5))
    with pytest.raises(UsageError, match="the content of from"):
        train_prior(tuning(code_store, out, shutil.copytree(out / "prior", tmp_path / "other")))
    with pytest.raises(UsageError, match="would replace the prior that --from names"):
        train_prior(tuning(code_store, base_folder, base_folder, overwrite=True))


def test_a_stranger_is_refused_with_both_ids(code_store: Path, tmp_path: Path) -> None:
    other = build_prior(PriorModel("qwen3", 1, 16, 2, 2, 32, 100.0), SPEC, codec_id="e" * 64)
    (tmp_path / "other").mkdir()
    save_prior(other, tmp_path / "other")
    with pytest.raises(ArtifactError, match=f"{CODEC_ID}.*{'e' * 64}"):
        train_prior(tuning(code_store, tmp_path / "run", tmp_path / "other"))
    wider = CodeSpec(1, (8, 8), (LevelSpec((3, 3), 12),))
    (tmp_path / "wider").mkdir()
    save_prior(build_prior(PriorModel("qwen3", 1, 16, 2, 2, 32, 100.0), wider, codec_id=CODEC_ID), tmp_path / "wider")
    with pytest.raises(ArtifactError, match="the prior of --from is for"):
        train_prior(tuning(code_store, tmp_path / "run", tmp_path / "wider"))
    with pytest.raises(ArtifactError, match="nowhere does not exist"):
        train_prior(tuning(code_store, tmp_path / "run", tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_model": None, "lora_rank": None}, "--lora needs a prior to start from"),
        ({"lora": False}, "--lora-rank goes with --lora, got 3"),
        ({"lora_rank": 0}, "--lora-rank must be between 1 and 1024, got 0"),
        ({"lora_rank": 5000}, "--lora-rank must be between 1 and 1024, got 5000"),
        ({"model": PriorModel(hidden_size=48)}, "--model.hidden-size 48 cannot go with --from"),
        ({"model": PriorModel(kind="llama")}, "--model.kind llama cannot go with --from"),
        ({"codes": None}, "either --codes .* or --data .* got neither"),
        ({"data": "digits"}, "either --codes .* or --data .* got both"),
        ({"image_column": "picture"}, "--image-column goes with --data, got picture"),
        ({"codes": None, "data": ""}, "--data must name a folder"),
        ({"codes": None, "data": "d", "from_model": None, "lora": False, "lora_rank": None}, "give --codec, or --from"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(tuning(tmp_path, tmp_path, tmp_path), **changes))


def test_a_code_without_a_token_in_the_base_is_found_before_anything_is_written(
    make_prior: Callable[..., CausalPrior], code_store: Path, tmp_path: Path
) -> None:
    base = make_prior(kept=(tuple(range(11)),))
    with pytest.raises(ArtifactError, match="holds code 11, which this vocabulary left out"):
        train_prior(tuning(code_store, tmp_path / "run", tmp_path, lora=False, lora_rank=None), base=base)
    assert not (tmp_path / "run").exists()


def test_without_peft_one_line_says_what_to_install(
    code_store: Path, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EnvironmentFault, match=r'pip install "vq-prior\[lora\]"'):
        train_prior(tuning(code_store, tmp_path / "run", base_folder))
    assert not (tmp_path / "run").exists()
    train_prior(tuning(code_store, tmp_path / "run", base_folder, lora=False, lora_rank=None))


def test_defaults_are_a_pure_function_and_do_not_depend_on_the_steps(tmp_path: Path) -> None:
    settings = TrainPrior(tmp_path, tmp_path, from_model="m", lora=True)
    facts = CodeFacts(16, 128, 190, PriorModel("qwen3", 4, 96, 3, 3, 256, 1000.0))
    resolved = resolve(settings, facts, "cpu")
    assert resolve(resolved, facts, "cpu") == resolved
    assert resolved.model == PriorModel()  # so that --config of this run is accepted again
    longer = resolve(dataclasses.replace(settings, steps=9), facts, "cpu")
    assert dataclasses.replace(longer, steps=resolved.steps) == resolved
    scratch = resolve(TrainPrior(tmp_path, tmp_path), CodeFacts(16, 128, 190), "cpu")
    assert (scratch.label_dropout, scratch.warmup_steps, scratch.lora_rank) == (0.1, 100, None)


def test_codes_without_labels_and_of_several_levels_make_an_unconditional_prior(tmp_path: Path) -> None:
    spec = CodeSpec(1, (8,), (LevelSpec((2,), 4), LevelSpec((4,), 30)))
    write_store(tmp_path / "codes", spec, num_rows=60, labelled=False)
    model = PriorModel("qwen3", 1, 16, 2, 2, 32, 100.0)
    (tmp_path / "base").mkdir()
    save_prior(build_prior(model, spec, codec_id=CODEC_ID, label_names=("a", "b")), tmp_path / "base")
    train_prior(tuning(tmp_path / "codes", tmp_path / "run", tmp_path / "base"))
    prior = load_prior(tmp_path / "run")
    assert prior.layout.vocab_size == 34 + 1
    assert prior.unconditional
    assert prior.sampling.guidance_scale == 1.0
