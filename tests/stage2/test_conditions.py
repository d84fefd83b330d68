"""Conditions: vectors in the prompt of a stock model, dropped and missing rows, their file, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from code_stores import CODEC_ID, SPEC

from stage2_prior.conditions import Conditioned, VectorCondition, checked_values, conditions_of, kind_of, prompt_vectors
from stage2_prior.forward import SequenceModel
from stage2_prior.prior import CausalPrior, build_prior, load_prior, save_prior, shifted
from stage2_prior.sampling import sample_tokens
from stage2_prior.settings import PriorModel
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.disk.code_store import Column
from vq_prior.core.errors import ArtifactError, UsageError

INK, PLACE = Column("ink", "float32", ()), Column("place", "float64", (2,))
SIZES = PriorModel("qwen3", 2, 32, 4, 2, 48, 100.0)


@pytest.fixture
def prior() -> CausalPrior:
    """A prior of three classes and two conditions, every weight random."""
    names = ["class 0", "class 1", "class 2"]
    made = build_prior(SIZES, SPEC, codec_id=CODEC_ID, label_names=names, conditions=(INK, PLACE), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    for condition in conditions_of(made.model):
        condition.fit(torch.randn((50, *condition.column.shape), generator=generator))
    return made


def rows(count: int = 5) -> Conditioned:
    generator = torch.Generator().manual_seed(2)
    ink, place = torch.randn(count, generator=generator), torch.randn((count, 2), generator=generator)
    ink[1] = torch.nan
    return Conditioned(torch.arange(count) % 4, {"ink": ink, "place": place})


def test_every_pass_is_the_stock_model_on_embeddings(prior: CausalPrior) -> None:
    conditioned = rows()
    tokens = torch.randint(12, (5, 6), generator=torch.Generator().manual_seed(4))
    table = prior.model.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    vectors = prior.prompt_vectors(conditioned)
    inputs = table[shifted(prior.layout, tokens, conditioned.labels)]
    with torch.no_grad():
        read = torch.cat([inputs[:, :1], vectors, inputs[:, 1:]], dim=1)
        expected = prior.model(inputs_embeds=read).logits[:, 2:]
        trained = SequenceModel(prior.model, torch.float32)(
            shifted(prior.layout, tokens, conditioned.labels), conditioned.columns
        )
    assert (prior.token_logits(tokens, conditioned) - expected).abs().max() < 1e-4  # float32, logits of size 10
    assert (trained - expected).abs().max() < 1e-4
    total = prior.log_probs(tokens, conditioned)
    legal = expected[..., :12].log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    assert (total - legal).abs().max() < 1e-4


def test_a_row_without_a_value_gets_the_learnt_vector(prior: CausalPrior) -> None:
    ink, place = conditions_of(prior.model)
    values = rows().columns["ink"]
    vectors = ink.prompt(values)
    assert torch.equal(vectors[1], ink.nothing)
    numbers = (values[0] - ink.mean) / ink.deviation
    by_hand = ink.map.weight @ numbers + ink.map.bias
    torch.testing.assert_close(vectors[0, 0], by_hand)
    alone = prompt_vectors(prior.model, {"ink": values}, 5)
    assert torch.equal(alone[:, 1], place.nothing.expand(5, -1))


def test_gradients_reach_a_condition_though_rows_lack_it(prior: CausalPrior) -> None:
    (ink, _) = conditions_of(prior.model)
    ink.prompt(rows().columns["ink"]).square().sum().backward()
    for parameter in ink.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_samples_follow_the_condition_and_never_the_batch(prior: CausalPrior) -> None:
    conditioned = rows(20)
    for scale in (1.0, 2.0):
        whole = sample_tokens(prior, conditioned, seed=1, indices=range(20), guidance_scale=scale)
        part = sample_tokens(prior, conditioned[[7, 3]], seed=1, indices=[7, 3], guidance_scale=scale)
        assert torch.equal(part, whole[[7, 3]])
    other = replace(conditioned, columns={**conditioned.columns, "place": conditioned.columns["place"] + 3})
    assert not torch.equal(sample_tokens(prior, other, seed=1, indices=range(20), guidance_scale=2.0), whole)


def test_nothing_is_the_unconditional_draw(prior: CausalPrior) -> None:
    null = torch.full((8,), prior.layout.null_label)
    plain = sample_tokens(prior, null, seed=0, indices=range(8))
    assert torch.equal(sample_tokens(prior, rows(8).null(prior.layout), seed=0, indices=range(8)), plain)
    assert torch.equal(sample_tokens(prior, rows(8), seed=0, indices=range(8), guidance_scale=0.0), plain)


def test_a_draw_is_the_likelihood_of_the_stock_passes(prior: CausalPrior) -> None:
    conditioned = rows(4)
    tokens = sample_tokens(prior, conditioned, seed=2, indices=range(4), temperature=1e-6)
    logits = prior.token_logits(tokens, conditioned)[..., :12]
    assert torch.equal(logits.argmax(-1), tokens)


def test_a_folder_holds_them_and_loads_to_the_same_numbers(prior: CausalPrior, tmp_path: Path) -> None:
    with new_folder(tmp_path / "prior") as staging:
        save_prior(prior, staging)
    config = json.loads((tmp_path / "prior/prior_config.json").read_text())
    assert [each["kind"] for each in config["conditions"]] == ["vector", "vector"]
    assert "conditions.safetensors" in (tmp_path / "prior/manifest.json").read_text()
    again, tokens = load_prior(tmp_path / "prior"), torch.zeros((5, 6), dtype=torch.int64)
    assert torch.equal(again.token_logits(tokens, rows()), prior.token_logits(tokens, rows()))
    (tmp_path / "prior/manifest.json").unlink()
    config["conditions"][0]["kind"] = "perfume"
    (tmp_path / "prior/prior_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"unknown condition 'perfume'.*install the package"):
        load_prior(tmp_path / "prior")
    config["conditions"] = []
    (tmp_path / "prior/prior_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"conditions\.safetensors is there"):
        load_prior(tmp_path / "prior")


def test_rows_lose_conditions_together_and_apart(make_prior: Callable[..., CausalPrior]) -> None:
    layout, n = make_prior().layout, 4000
    whole = Conditioned(torch.zeros(n).long(), {"ink": torch.zeros(n), "place": torch.zeros(n, 2)})
    lost = whole.dropped(layout, rate=0.2, seed=1, step=5)
    gone = [lost.labels == 3, lost.columns["ink"].isnan(), lost.columns["place"].isnan().all(1)]
    for one in gone:
        assert abs(float(one.float().mean()) - 0.36) < 0.03  # 1 - 0.8^2; three deviations of 4,000 rows
    assert abs(float((gone[0] & gone[1] & gone[2]).float().mean()) - (0.2 + 0.8 * 0.2**3)) < 0.02
    alone = Conditioned(whole.labels).dropped(layout, rate=0.2, seed=1, step=5)
    assert abs(float((alone.labels == 3).float().mean()) - 0.2) < 0.02
    again = whole.dropped(layout, rate=0.2, seed=1, step=5)
    assert torch.equal(again.columns["ink"].isnan(), gone[1])
    assert not torch.equal(whole.dropped(layout, rate=0.2, seed=1, step=6).labels, lost.labels)


def test_a_column_chooses_its_kind_and_what_does_not_fit_is_refused(prior: CausalPrior) -> None:
    assert kind_of(PLACE) == "vector"
    with pytest.raises(UsageError, match=r"column tags \(int64 \[3\]\) is taken by no kind of condition"):
        kind_of(Column("tags", "int64", (3,)))
    ink, place = conditions_of(prior.model)
    with pytest.raises(UsageError, match=r"condition place must have values of shape \[2\], got \[3\]"):
        checked_values(place, torch.zeros(2, 3))
    with pytest.raises(UsageError, match="condition ink is not finite in row 1"):
        checked_values(ink, torch.tensor([0.0, torch.inf]))
    assert checked_values(ink, torch.tensor([0.0, torch.nan])).dtype == torch.float32


def test_standardisation_is_that_of_the_training_rows() -> None:
    condition = VectorCondition(PLACE, 4)
    values = np.random.default_rng(0).normal(3, 2, (100, 2))
    values[:, 1] = 7  # which never changes
    condition.fit(torch.from_numpy(values))
    np.testing.assert_allclose(condition.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(condition.deviation, [values[:, 0].std(), 1.0], rtol=1e-6)
