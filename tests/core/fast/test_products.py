"""Products by oneDNN are those of torch, forward and backward, on machines that have it and on those that do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vq_prior.core.fast import products
from vq_prior.core.fast.products import Product, linear


@pytest.fixture(params=[True, False], ids=["as this CPU has it", "without oneDNN"], autouse=True)
def _with_and_without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(products, "has_onednn", lambda: False)


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small whole numbers, [*shape] float32: all their products and sums are exact, in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("shape", [(1,), (8,), (200,), (3, 5), (0,)])
def test_products_and_gradients_of_whole_numbers_are_torchs_to_the_bit(shape: tuple[int, ...]) -> None:
    upstream = whole_numbers(*shape, 40, seed=2)
    results = []
    for product in (linear, F.linear):
        x, weight = whole_numbers(*shape, 48, seed=0).requires_grad_(), whole_numbers(40, 48, seed=1).requires_grad_()
        y = product(x, weight)
        y.backward(upstream)
        results.append((y.detach(), x.grad, weight.grad))
    for ours, torchs in zip(*results, strict=True):
        assert ours is not None
        assert torchs is not None
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    x, weight = whole_numbers(4, 6, seed=0), whole_numbers(5, 6, seed=1)
    (weight if frozen == "x" else x).requires_grad_()
    linear(x, weight).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (weight.grad is None) == (frozen == "weight")


def test_other_types_are_multiplied_by_torch() -> None:
    x, weight = whole_numbers(4, 6, seed=0), whole_numbers(5, 6, seed=1)
    for dtype in (torch.float64, torch.bfloat16):
        result = linear(x.to(dtype), weight.to(dtype))
        assert result.dtype == dtype
        assert torch.equal(result, F.linear(x.to(dtype), weight.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 200])
def test_a_product_is_torchs_whatever_the_layout_of_its_weight(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 48, generator=generator).to(dtype) for n in (rows, 40))
    expected = x.double() @ weight.double().T
    # sums of 48 products near 1, rounded to 24 bits and to 8
    assert (Product(weight)(x).double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("rows", [1, 8, 200])
def test_a_product_of_whole_numbers_is_torchs_to_the_bit(rows: int) -> None:
    x, weight = whole_numbers(rows, 48, seed=0), whole_numbers(40, 48, seed=1)
    assert torch.equal(Product(weight)(x), F.linear(x, weight))
    transposed = whole_numbers(48, 40, seed=1).t()  # a weight that is not contiguous
    assert torch.equal(Product(transposed)(x), F.linear(x, transposed))
