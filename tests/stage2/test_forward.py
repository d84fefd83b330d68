"""The packed forward pass gives the logits and gradients of the stock one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stage2_prior.forward import SequenceModel, logits, pack
from stage2_prior.prior import CausalPrior, shifted


def inputs_of(prior: CausalPrior, rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(prior.layout.num_codes, (rows, prior.layout.num_tokens), generator=generator)
    return shifted(prior.layout, tokens, torch.arange(rows) % 4)


def disturb_norms(prior: CausalPrior) -> None:
    """Give every norm weights of its own: at first all are 1."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in prior.model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_logits_and_gradients_are_those_of_the_stock_model(
    make_prior: Callable[..., CausalPrior], kind: str, key_value_heads: int
) -> None:
    prior = make_prior(kind, key_value_heads=key_value_heads)
    disturb_norms(prior)
    model, inputs = prior.model, inputs_of(prior)
    target = torch.randn((*inputs.shape, prior.layout.vocab_size), generator=torch.Generator().manual_seed(5))

    def gradients(outputs: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (outputs * target).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = model(input_ids=inputs).logits
    wanted = gradients(expected)
    ours = SequenceModel(model, torch.float32)(inputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    got = gradients(ours)
    again = gradients(SequenceModel(model, torch.float32, checkpointing=True)(inputs))
    assert all(torch.equal(again[name], gradient) for name, gradient in got.items())
    assert got.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 2e-5 * gradient.norm(), name


def test_bfloat16_products_are_near_and_the_gradients_point_the_same_way(
    make_prior: Callable[..., CausalPrior],
) -> None:
    prior = make_prior("qwen3")
    disturb_norms(prior)
    model, inputs = prior.model, inputs_of(prior)
    exact, rough = logits(pack(model), inputs), logits(pack(model, torch.bfloat16), inputs)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).std() < 0.02 * exact.std()
    wanted = torch.autograd.grad(exact.square().mean(), list(model.parameters()))
    got = torch.autograd.grad(rough.float().square().mean(), list(model.parameters()))
    for parameter, a, b in zip(model.parameters(), wanted, got, strict=True):
        assert b.dtype == parameter.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_an_earlier_position_does_not_see_a_later_one(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior("qwen3")
    inputs = inputs_of(prior)
    other = inputs.clone()
    other[:, 3:] = (other[:, 3:] + 1) % prior.layout.num_codes
    before, after = (logits(pack(prior.model), tokens) for tokens in (inputs, other))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])
