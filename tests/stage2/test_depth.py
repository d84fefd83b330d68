"""A head over depth: the last blocks go through the codes of a cell, the others see a cell as one vector."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from code_stores import CODEC_ID
from torch import Tensor

from stage2_prior.conditions import Conditioned, conditions_of
from stage2_prior.fast import invariance
from stage2_prior.fine_tuning import add_adapters, merged, prior_id, with_classes
from stage2_prior.forward import SequenceModel, depth_of
from stage2_prior.prior import CausalPrior, build_prior, load_prior, save_prior, shifted, token_nats
from stage2_prior.sampling import sample_tokens
from stage2_prior.settings import PriorModel
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.disk.code_store import Column
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec, LevelSpec

SPECS = {
    "two of one grid": CodeSpec(1, (4, 4), (LevelSpec((2, 2), 6), LevelSpec((2, 2), 5))),
    "three of one grid": CodeSpec(1, (8,), (LevelSpec((4,), 6), LevelSpec((4,), 5), LevelSpec((4,), 4))),
    "a finer grid": CodeSpec(1, (8, 8), (LevelSpec((2, 2), 6), LevelSpec((4, 4), 5))),
}
CELLS = {"two of one grid": 2, "three of one grid": 3, "a finer grid": 5}
SIZES = PriorModel("qwen3", 3, 32, 4, 2, 48, 100.0, 1)
EACH = pytest.mark.parametrize("levels", SPECS)


def prior_of(levels: str, *, sizes: PriorModel = SIZES, conditions: tuple[Column, ...] = ()) -> CausalPrior:
    """A prior whose every weight is random."""
    names = ("a", "b", "c")
    layout: dict[str, Any] = {"label_names": names, "order": "interleaved", "conditions": conditions}
    prior = build_prior(sizes, SPECS[levels], codec_id=CODEC_ID, **layout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    for condition in conditions_of(prior.model):
        condition.fit(torch.randn((50, *condition.column.shape), generator=generator))
    return prior


def some_tokens(prior: CausalPrior, rows: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    columns = [torch.randint(low, high, (rows,), generator=generator) for low, high in prior.layout.legal_ids]
    return torch.stack(columns, dim=1)


def by_stock_blocks(prior: CausalPrior, tokens: Tensor, labels: Tensor) -> Tensor:
    """The same distribution of two stock models that share their ends, cell by cell, the plain way."""
    stock: Any = prior.model
    depth = depth_of(stock.config)
    assert depth is not None
    layers, norm = list(stock.model.layers), stock.model.norm
    head, table = stock.lm_head, stock.model.embed_tokens.weight

    def run(blocks: list[Any], read: Tensor, last: Any) -> Tensor:
        stock.model.layers, stock.model.norm = torch.nn.ModuleList(blocks), last
        try:
            made: Tensor = stock.model(inputs_embeds=read, use_cache=False).last_hidden_state
        finally:
            stock.model.layers, stock.model.norm = torch.nn.ModuleList(layers), norm
        return made

    C, d, theta, answers = depth.tokens, stock.config.head_dim, stock.config.rope_parameters["rope_theta"], []

    def at(place: int, vectors: Tensor) -> Tensor:
        """Pairs of channels turned by place / theta^(2 i / d), in each head's width."""
        angle = place * theta ** (-torch.arange(0, d, 2) / d).repeat(vectors.shape[-1] // d)
        even, odd = vectors[:, ::2], vectors[:, 1::2]
        turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        return torch.stack(turned, dim=-1).flatten(1)

    read = [table[prior.layout.prompt(labels)]]
    for cell in tokens.split(C, dim=1):
        said = run(layers[: -depth.blocks], torch.stack(read, dim=1), torch.nn.Identity())[:, -1]
        embedded = [at(k, table[cell[:, k]]) for k in range(C)]
        known = [at(j, said) + sum(embedded[:j], torch.zeros_like(said)) for j in range(C)]
        answers.append(head(run(layers[-depth.blocks :], torch.stack(known, dim=1), norm)))
        read.append(sum(embedded[1:], embedded[0]))
    return torch.cat(answers, dim=1)


def test_a_sum_of_a_cell_tells_which_token_stood_where() -> None:
    """Two cells of a finer grid that hold the same codes in another order are not one."""
    prior = prior_of("a finer grid")
    tokens, labels = some_tokens(prior), torch.zeros(6, dtype=torch.int64)
    other = tokens.clone()
    other[:, 1], other[:, 2] = 6, 7
    swapped = other.clone()
    swapped[:, 1], swapped[:, 2] = 7, 6
    first, second = (prior.token_logits(each, labels)[:, 5] for each in (other, swapped))
    assert (first - second).abs().amax(1).min() > 1e-2


@EACH
@pytest.mark.parametrize("blocks", [1, 2])
def test_logits_and_gradients_are_those_of_two_stock_models(levels: str, blocks: int) -> None:
    prior = prior_of(levels, sizes=replace(SIZES, depth_blocks=blocks))
    assert prior.layout.cell_tokens == CELLS[levels]
    tokens, labels = some_tokens(prior), torch.arange(6) % 4
    prior.model.zero_grad()
    expected = by_stock_blocks(prior, tokens, labels)
    token_nats(prior.layout, expected, tokens).mean().backward()
    wanted = {name: p.grad.clone() for name, p in prior.model.named_parameters() if p.grad is not None}
    assert (prior.token_logits(tokens, labels) - expected).abs().max() < 1e-4  # float32, logits of size 10
    for checkpointing in (False, True):
        model = SequenceModel(prior.model, torch.float32, prior.layout.levels_at(), checkpointing=checkpointing)
        prior.model.zero_grad()
        token_nats(prior.layout, model(shifted(prior.layout, tokens, labels)), tokens).mean().backward()
        for name, parameter in prior.model.named_parameters():
            assert parameter.grad is not None
            assert (parameter.grad - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-8, name


@EACH
def test_steps_are_the_whole_pass_and_see_nothing_ahead(levels: str) -> None:
    prior = prior_of(levels)
    tokens, labels = some_tokens(prior), torch.arange(6) % 4
    inputs, whole = shifted(prior.layout, tokens, labels), prior.token_logits(tokens, labels)
    decoder = prior.decoder()
    cache = decoder.new_cache(len(inputs))
    with torch.inference_mode():
        for position, (low, high) in enumerate(prior.layout.legal_ids):
            step = decoder.step(inputs[:, position], position, cache, low, high)
            assert (step - whole[:, position, low:high]).abs().max() < 1e-4
    for position, (low, high) in enumerate(prior.layout.legal_ids[:-1]):
        other = tokens.clone()
        other[:, position] = low + (other[:, position] - low + 1) % (high - low)
        moved = (prior.token_logits(other, labels) - whole).abs().amax((0, 2))
        assert float(moved[: position + 1].max()) < 1e-5
        assert float(moved[position + 1]) > 1e-3


@EACH
def test_a_row_does_not_depend_on_the_others(levels: str) -> None:
    prior = prior_of(levels)
    labels, indices = torch.arange(21) % 4, list(range(21))
    whole = sample_tokens(prior, labels, seed=5, indices=indices)
    assert len(whole.unique(dim=0)) > 15
    parts = [
        sample_tokens(prior, labels[some], seed=5, indices=indices[some])
        for some in (slice(0, 1), slice(1, 9), slice(9, 21))
    ]
    assert torch.equal(torch.cat(parts), whole)
    given = whole.clone()
    given[:, 2:] = -1
    assert torch.equal(sample_tokens(prior, labels, seed=5, indices=indices, given=given), whole)
    guided = sample_tokens(prior, labels[:3], seed=5, indices=[0, 1, 2], guidance_scale=2.0)
    assert not torch.equal(guided, whole[:3])


def test_conditions_stand_before_the_first_cell() -> None:
    prior = prior_of("a finer grid", conditions=(Column("ink", "float32", ()), Column("place", "float32", (2,))))
    generator = torch.Generator().manual_seed(2)
    columns = {"ink": torch.randn(6, generator=generator), "place": torch.randn((6, 2), generator=generator)}
    conditioned, tokens = Conditioned(torch.arange(6) % 4, columns), some_tokens(prior)
    inputs, whole = shifted(prior.layout, tokens, conditioned.labels), prior.token_logits(tokens, conditioned)
    decoder, vectors = prior.decoder(), prior.prompt_vectors(conditioned)
    assert vectors is not None
    read = [inputs[:, 0], *vectors.unbind(1), *inputs[:, 1:].unbind(1)]
    cache = decoder.new_cache(len(inputs))
    with torch.inference_mode():
        steps = [decoder.step(each, place, cache, 0, prior.layout.vocab_size) for place, each in enumerate(read)]
        assert (torch.stack(steps[2:], dim=1) - whole).abs().max() < 1e-4
        other = Conditioned(conditioned.labels, {**columns, "ink": columns["ink"] + 1})
        assert (prior.token_logits(tokens, other) - whole).abs().amax((0, 2)).min() > 1e-3


def written(prior: CausalPrior, folder: Path) -> Path:
    with new_folder(folder) as staging:
        save_prior(prior, staging)
    return folder


@EACH
def test_it_comes_back_and_is_no_model_of_transformers(levels: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    prior = prior_of(levels)
    folder = written(prior, tmp_path / "prior")
    again = load_prior(folder)
    tokens, labels = some_tokens(prior), torch.arange(6) % 4
    assert torch.equal(again.token_logits(tokens, labels), prior.token_logits(tokens, labels))
    assert prior_id(again) == prior_id(prior)
    assert prior_id(prior) != prior_id(prior_of(levels, sizes=replace(SIZES, depth_blocks=2)))
    ours = json.loads((folder / "prior_config.json").read_text())
    assert ours["kind"] == "depth"
    assert "vq-prior generate" in ours["note"]
    assert not list(folder.glob("tokenizer*")) + list(folder.glob("generation*"))
    with pytest.raises(ValueError, match="vq_prior_depth"):
        AutoModelForCausalLM.from_pretrained(folder)
    second = written(again, tmp_path / "second")
    for path in folder.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"depth_blocks": 3}, "depth_blocks below num_hidden_layers"),
        ("config.json", {"depth_blocks": 0}, "depth_blocks below num_hidden_layers"),
        ("config.json", {"depth_blocks": True}, "depth_blocks below num_hidden_layers"),
        ("config.json", {"cell_tokens": 3}, "cell_tokens of interleaved levels, 2"),
        ("config.json", {"blocks_type": "gpt2"}, "blocks_type must be one of qwen3, llama"),
        ("config.json", {"model_type": "qwen3"}, "model_type"),
        ("prior_config.json", {"kind": "causal"}, "model_type"),
        ("prior_config.json", {"order": "raster"}, "cell_tokens of interleaved levels, 1"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    file: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = written(prior_of("two of one grid"), tmp_path / "prior")
    (folder / "manifest.json").unlink()  # as another program would have saved it
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=message):
        load_prior(folder)


def test_a_stock_model_does_not_say_that_it_has_one(tmp_path: Path) -> None:
    folder = written(prior_of("two of one grid", sizes=replace(SIZES, depth_blocks=0)), tmp_path / "prior")
    (folder / "manifest.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    assert "depth_blocks" not in values
    (folder / "config.json").write_text(json.dumps(values | {"depth_blocks": 1, "cell_tokens": 2}))
    with pytest.raises(ArtifactError, match="this prior is causal"):
        load_prior(folder)


def test_it_is_tuned_with_classes_of_its_own_and_adapters() -> None:
    pytest.importorskip("peft")
    base = prior_of("a finer grid")
    tokens = some_tokens(base)
    tuned = with_classes(base, ("b", "z"))
    assert depth_of(tuned.model.config) == depth_of(base.model.config)
    for label, before in ((0, 1), (1, 3)):  # b is known, z starts as no class
        ours, theirs = (torch.full((6,), each) for each in (label, before))
        torch.testing.assert_close(tuned.log_probs(tokens, ours), base.log_probs(tokens, theirs))
    add_adapters(tuned, rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    labels = torch.arange(6) % 3
    plain = merged(tuned)
    assert depth_of(plain.model.config) is not None
    torch.testing.assert_close(plain.log_probs(tokens, labels), tuned.log_probs(tokens, labels), atol=1e-4, rtol=0)
    untuned = with_classes(base, ("b", "z")).log_probs(tokens, labels)
    assert (plain.log_probs(tokens, labels) - untuned).abs().max() > 0.01


@EACH
def test_one_block_of_each_kind_shows_whether_threads_agree(levels: str) -> None:
    decoder = prior_of(levels).decoder()
    few = decoder.of_one_block()
    assert (len(few.blocks), few.depth and few.depth.blocks, len(decoder.blocks)) == (2, 1, 3)
    assert invariance._threads_agree(decoder, 8, 8, most=1)
