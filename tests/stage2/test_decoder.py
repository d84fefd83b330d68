"""Our decoder gives the logits of the stock forward pass, whole and step by step."""

from collections.abc import Callable

import pytest
import torch

from stage2_prior.prior import CausalPrior, shifted
from vq_prior.core.spec import CodeSpec, LevelSpec

TOLERANCE = 1e-4  # the promise of the design; float32 rounding of logits of size 10 is about 1e-6
KINDS = pytest.mark.parametrize("kind", ["qwen3", "llama"])
HEADS = pytest.mark.parametrize("key_value_heads", [1, 2, 4])


def prompts_and_tokens(prior: CausalPrior, rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(prior.layout.num_codes, (rows, prior.layout.num_tokens), generator=generator)
    return shifted(prior.layout, tokens, torch.arange(rows) % 4)


@KINDS
@HEADS
def test_logits_are_those_of_the_stock_model(
    make_prior: Callable[..., CausalPrior], kind: str, key_value_heads: int
) -> None:
    prior = make_prior(kind, key_value_heads=key_value_heads)
    inputs = prompts_and_tokens(prior)
    with torch.no_grad():
        expected = prior.model(inputs).logits
    assert expected.std() > 0.5
    assert (prior.logits(inputs) - expected).abs().max() < TOLERANCE


@KINDS
@HEADS
def test_steps_are_those_of_the_stock_model(
    make_prior: Callable[..., CausalPrior], kind: str, key_value_heads: int
) -> None:
    prior = make_prior(kind, key_value_heads=key_value_heads)
    inputs, decoder = prompts_and_tokens(prior), prior.decoder()
    with torch.no_grad():
        expected = prior.model(inputs).logits
        cache = decoder.new_cache(len(inputs))
        for position in range(inputs.shape[1]):
            logits = decoder.step(inputs[:, position], position, cache, 3, 9)
            assert (logits - expected[:, position, 3:9]).abs().max() < TOLERANCE


@KINDS
def test_guided_logits_are_those_of_two_stock_passes(make_prior: Callable[..., CausalPrior], kind: str) -> None:
    prior = make_prior(kind)
    inputs, decoder = prompts_and_tokens(prior), prior.decoder()
    null = inputs.clone()
    null[:, 0] = prior.layout.null_token
    with torch.no_grad():
        with_label, without = prior.model(inputs).logits, prior.model(null).logits
        expected = without + 1.5 * (with_label - without)
        both, cache = torch.cat([inputs, null]), decoder.new_cache(2 * len(inputs))
        for position in range(inputs.shape[1]):
            logits = decoder.step(both[:, position], position, cache, 0, 12)
            guided = logits[6:] + 1.5 * (logits[:6] - logits[6:])
            assert (guided - expected[:, position, :12]).abs().max() < TOLERANCE


def test_log_probs_are_a_distribution_over_legal_ids(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior(spec=CodeSpec(1, (4,), (LevelSpec((1,), 3), LevelSpec((1,), 4))))
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3, 7))
    total = prior.log_probs(pairs, torch.ones(12, dtype=torch.int64)).sum(1).exp().sum()
    assert abs(float(total) - 1) < 1e-5  # float32 softmax


def test_the_decoder_follows_changed_weights(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    inputs = prompts_and_tokens(prior)
    before = prior.decoder()
    assert prior.decoder() is before
    assert prior.decoder("bf16") is not before
    with torch.no_grad():
        prior.model.lm_head.weight.mul_(2)  # type: ignore[union-attr,operator]
        after = prior.decoder()
        assert after is not before
        first, second = (d.step(inputs[:, 0], 0, d.new_cache(len(inputs)), 0, 12) for d in (before, after))
    assert torch.allclose(second, 2 * first, atol=1e-4)


@KINDS
def test_products_in_bfloat16_are_near(make_prior: Callable[..., CausalPrior], kind: str) -> None:
    prior = make_prior(kind, key_value_heads=2)
    inputs, decoder = prompts_and_tokens(prior), prior.decoder("bf16")
    with torch.no_grad():
        expected = prior.model(inputs).logits
        cache = decoder.new_cache(len(inputs))
        for position in range(inputs.shape[1]):
            logits = decoder.step(inputs[:, position], position, cache, 3, 9)
            assert logits.dtype == torch.float32
            error = logits - expected[:, position, 3:9]
            assert 0 < error.std() < 0.03 * expected.std()  # bfloat16 keeps 8 bits: 0.4% a rounding
