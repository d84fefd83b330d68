"""Attention read by an embedding bag is softmax(q k) v over the places so far, and over nothing else."""

import pytest
import torch
from torch import Tensor

from stage2_prior.fast.attention import PLACES, Cache

LENGTH = 2 * PLACES + 3  # three blocks of keys, the last one not full


def filled(heads: int, groups: int, dtype: torch.dtype, *, rows: int = 5) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """A cache of two layers and what was written into its second, [LENGTH, rows, G, d]; queries [rows, H, d]."""
    generator = torch.Generator().manual_seed(0)
    cache = Cache(2, LENGTH, rows, heads=heads, groups=groups, head_dim=8, like=torch.empty(0, dtype=dtype))
    keys, values = (torch.randn(LENGTH, rows, groups, 8, generator=generator).to(dtype) for _ in range(2))
    for position in range(LENGTH):
        cache.write(1, position, keys[position], values[position])
    return cache, keys, values, torch.randn(rows, heads, 8, generator=generator).to(dtype)


def plain(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [rows * H, d] of queries to keys and values [length, rows, G, d], in float64, as its formula reads."""
    shared = q.shape[1] // keys.shape[2]  # query heads of a key-value head stand together
    k, v = (tensor.double().repeat_interleave(shared, dim=2) for tensor in (keys, values))
    weights = torch.einsum("rhd,trhd->rht", q.double(), k).softmax(-1)
    return torch.einsum("rht,trhd->rhd", weights, v).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (1, 1)])
def test_attention_is_its_formula(heads: int, groups: int, dtype: torch.dtype) -> None:
    cache, keys, values, q = filled(heads, groups, dtype)
    for position in (0, 1, PLACES - 1, PLACES, LENGTH - 1):
        expected = plain(q, keys[: position + 1], values[: position + 1])
        attended = cache.attend(q.flatten(0, 1), 1, position)
        assert attended.dtype == dtype
        # means of numbers near 1: rounded to 24 bits, or to 8 bits twice
        assert (attended.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


def test_later_places_and_other_layers_are_not_read() -> None:
    cache, keys, _, q = filled(4, 2, torch.float32)
    before = cache.attend(q.flatten(0, 1), 1, 70)
    nothing = torch.full_like(keys[0], torch.nan)
    for position in range(71, LENGTH):
        cache.write(1, position, nothing, nothing)
    cache.keys[0], cache.values[0] = torch.nan, torch.nan
    assert torch.equal(cache.attend(q.flatten(0, 1), 1, 70), before)


def test_a_place_that_is_written_again_counts_as_it_is_now() -> None:
    cache, keys, values, q = filled(4, 2, torch.float32)
    before = cache.attend(q.flatten(0, 1), 1, 5)
    cache.write(1, 3, keys[7], values[7])
    assert not torch.equal(cache.attend(q.flatten(0, 1), 1, 5), before)
    cache.write(1, 3, keys[3], values[3])
    assert torch.equal(cache.attend(q.flatten(0, 1), 1, 5), before)
