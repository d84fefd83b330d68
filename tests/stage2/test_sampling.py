"""Filters against numpy, the inverse CDF against frequencies, and samples that do not depend on the batch."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stage2_prior.layout import SequenceLayout
from stage2_prior.prior import CausalPrior
from stage2_prior.sampling import check_sampling, filtered_probabilities, inverse_cdf, sample_tokens
from vq_prior.core.errors import NumericError, UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec
from vq_prior.core.training.randomness import sample_uniforms


def numpy_filter(
    logits: NDArray[np.float32], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> NDArray[np.float64]:
    """Return the filtered, normalised distribution of one row, written as its definition reads."""
    p = np.exp(logits.astype(np.float64) / temperature)
    if top_k is not None:
        p[np.argsort(-p, kind="stable")[top_k:]] = 0
    p /= p.sum()
    if top_p is not None:
        reached = 0.0
        for token in np.argsort(-p, kind="stable"):
            if reached >= top_p:
                p[token] = 0
            reached += p[token]
    if min_p is not None:
        p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.0, 0.05, 0.9])
def test_filters_equal_their_definition(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = torch.randn((8, 40), generator=torch.Generator().manual_seed(0)) * 2
    weights = filtered_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = weights / weights.sum(1, keepdim=True)
    for row in range(8):
        expected = numpy_filter(logits[row].numpy(), temperature, top_k, top_p, min_p)
        np.testing.assert_allclose(weights[row].numpy(), expected, atol=1e-6)  # float32 against float64


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert filtered_probabilities(logits, temperature=1e-300).tolist() == [[0.0, 1.0, 0.0]]


def test_inverse_cdf_draws_the_distribution() -> None:
    p = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64)
    grid = (torch.arange(10_000) + 0.5) / 10_000
    counts = torch.bincount(inverse_cdf(3.7 * p.expand(10_000, 6), grid), minlength=6)
    assert (counts / 10_000 - p).abs().max() <= 1e-4  # a cell of the grid


def test_inverse_cdf_of_many_ids_is_that_of_their_running_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand((64, 1000), generator=generator) * (torch.rand((64, 1000), generator=generator) < 0.1)
    uniforms = torch.rand(64, generator=generator)
    cumulative = weights.double().numpy().cumsum(1)
    wanted = uniforms.double().numpy() * cumulative[:, -1]
    expected = [int(np.searchsorted(row, value, side="right")) for row, value in zip(cumulative, wanted, strict=True)]
    assert inverse_cdf(weights, uniforms).tolist() == expected


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24, 0.5])
def test_an_impossible_id_is_never_drawn(u: float) -> None:
    weights = torch.tensor([[0, 0, 1e-300, 0, 1.0, 0, 0], [0, 1, 0, 0, 0, 0, 1e-300], [0, 0, 0, 5.0, 0, 0, 0]])
    weights = weights.double()
    drawn = inverse_cdf(weights, torch.full((3,), u))
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def drawn(prior: CausalPrior, indices: list[int], **settings: object) -> torch.Tensor:
    labels = torch.tensor([index % 3 for index in indices])
    return sample_tokens(prior, labels, seed=5, indices=indices, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.01},
        {"guidance_scale": 2.0, "guidance_power": 1.5, "precision": "bf16"},
    ],
)
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_sample_does_not_depend_on_its_batch(
    make_prior: Callable[..., CausalPrior], kind: str, settings: dict[str, object]
) -> None:
    prior = make_prior(kind, key_value_heads=4)
    whole = drawn(prior, list(range(64)), **settings)
    assert whole.unique(dim=0).shape[0] > 32
    for size in (1, 7, 20):
        order = [(11 * n) % 64 for n in range(64)]
        parts = [drawn(make_prior(kind, key_value_heads=4), order[i : i + size], **settings) for i in (0, 20, 40)]
        for start, part in zip((0, 20, 40), parts, strict=True):
            assert torch.equal(part, whole[order[start : start + size]])


def test_a_token_is_the_inverse_cdf_of_the_stock_model(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    tokens = drawn(prior, [3, 4], temperature=0.8)
    uniforms = sample_uniforms(5, [3, 4], 6)
    for row, label in enumerate([0, 1]):
        prefix = [prior.layout.num_codes + label]
        for position in range(6):
            with torch.no_grad():
                logits = prior.model(torch.tensor([prefix])).logits[0, -1, :12].double().numpy()
            p = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
            prefix.append(int(np.searchsorted(p.cumsum(), uniforms[row, position], side="right")))
        assert tokens[row].tolist() == prefix[1:]


def test_several_levels_stay_legal_by_position(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior(spec=CodeSpec(1, (4, 4), (LevelSpec((1, 1), 5), LevelSpec((2, 2), 7))))
    first, second = prior.layout.to_codes(drawn(prior, list(range(32)), guidance_scale=2.0))
    assert int(first.max()) < 5
    assert int(second.max()) < 7


def test_guidance_leaves_unconditional_rows_alone(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    null = torch.full((8,), prior.layout.null_label)
    plain = sample_tokens(prior, null, seed=0, indices=range(8))
    assert torch.equal(plain, sample_tokens(prior, null, seed=0, indices=range(8), guidance_scale=3.0))
    labels = torch.zeros(8, dtype=torch.int64)
    assert torch.equal(plain, sample_tokens(prior, labels, seed=0, indices=range(8), guidance_scale=0.0))


def test_rising_guidance_begins_as_a_plain_draw_and_is_the_constant_one_of_its_position(
    make_prior: Callable[..., CausalPrior],
) -> None:
    prior, T = make_prior(), 6
    rising = drawn(prior, list(range(64)), guidance_scale=9.0, guidance_power=1.0)
    assert torch.equal(rising[:, 0], drawn(prior, list(range(64)))[:, 0])
    for position in range(T):
        scale = 1 + 8 * (1 - math.cos(math.pi * position / T)) / 2
        constant = drawn(prior, list(range(64)), guidance_scale=scale, given=first_of(rising, position))
        assert torch.equal(rising[:, position], constant[:, position])
    assert not torch.equal(rising, drawn(prior, list(range(64)), guidance_scale=9.0))


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_what_is_given_is_kept_and_the_rest_is_drawn_after_it(
    make_prior: Callable[..., CausalPrior], guidance_scale: float
) -> None:
    prior = make_prior()
    plain = drawn(prior, list(range(20)), guidance_scale=guidance_scale)
    own = drawn(prior, list(range(20)), guidance_scale=guidance_scale, given=first_of(plain, 4))
    assert torch.equal(own, plain)
    given = first_of((plain + 1) % 12, 4)
    whole = drawn(prior, list(range(20)), guidance_scale=guidance_scale, given=given)
    assert torch.equal(whole[:, :4], given[:, :4])
    assert not torch.equal(whole[:, 4:], plain[:, 4:])
    part = drawn(prior, [19, 3], guidance_scale=guidance_scale, given=given[[19, 3]])
    assert torch.equal(part, whole[[19, 3]])
    assert torch.equal(drawn(prior, [5], given=plain[5:6]), plain[5:6])


def test_rows_may_be_given_other_positions(make_prior: Callable[..., CausalPrior]) -> None:
    prior, generator = make_prior(), torch.Generator().manual_seed(3)
    given = torch.randint(12, (20, 6), generator=generator)
    given[torch.rand((20, 6), generator=generator) < 0.5] = -1
    whole = drawn(prior, list(range(20)), given=given)
    assert torch.equal(whole[given >= 0], given[given >= 0])
    for row in (0, 7, 19):
        # A row alone, token by token: what is drawn at a position follows from what stands before it.
        alone = drawn(prior, [row], given=given[row : row + 1])
        assert torch.equal(alone, whole[row : row + 1])
        for position in range(6):
            before = first_of(whole[row : row + 1], position)
            before[0, position] = given[row, position]
            assert drawn(prior, [row], given=before)[0, position] == whole[row, position]


def first_of(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return the tokens with all but the first `count` to be drawn."""
    given = torch.full_like(tokens, -1)
    given[:, :count] = tokens[:, :count]
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros((1, 6)).long(), r"given must be \[2, 6\] int64 tokens, -1 where one is drawn, got \[1, 6\] int64"),
        (torch.zeros((2, 7)).long(), r"got \[2, 7\]"),
        (torch.zeros((2, 6)), r"got \[2, 6\] float32"),
        (torch.tensor([[0, 1, 2, 3, 4, 5], [2, 12, 0, 0, 0, 0]]), r"-1 or ids in \[0, 12\) for codes.0, got 12"),
        (torch.tensor([[0, 1, 2, 3, 4, 5], [2, -2, 0, 0, 0, 0]]), "got -2"),
    ],
)
def test_what_does_not_fit_cannot_be_given(
    make_prior: Callable[..., CausalPrior], given: torch.Tensor, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        drawn(make_prior(), [0, 1], given=given)


def test_no_samples_are_an_empty_tensor(make_prior: Callable[..., CausalPrior]) -> None:
    assert drawn(make_prior(), []).shape == (0, 6)


LAYOUT = SequenceLayout((LevelSpec((2, 2), 512),), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 600}, r"top_k must be between 1 and 512 \(this prior's codebook size\), got 600"),
        ({"top_k": 0}, "got 0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": float("inf")}, "got inf"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.01}, "got 1.01"),
        ({"top_p": float("nan")}, "got nan"),
        ({"min_p": 1.0}, "min_p must be at least 0 and below 1, got 1.0"),
        ({"min_p": -0.1}, "got -0.1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0"),
        ({"guidance_scale": float("nan")}, "got nan"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_sampling(LAYOUT, **settings)  # type: ignore[arg-type]


def test_guidance_needs_classes() -> None:
    with pytest.raises(UsageError, match=r"prior without classes, got 1.5"):
        check_sampling(SequenceLayout(LAYOUT.levels, 0), guidance_scale=1.5)


def test_rows_that_do_not_fit_are_refused(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    with pytest.raises(UsageError, match="as many"):
        sample_tokens(prior, torch.zeros(2, dtype=torch.int64), seed=0, indices=[1])
    with pytest.raises(UsageError, match=r"labels must lie in \[0, 3\], got 4"):
        sample_tokens(prior, torch.tensor([4]), seed=0, indices=[1])
    with pytest.raises(UsageError, match="got -1"):
        sample_tokens(prior, torch.tensor([0]), seed=-1, indices=[1])


def test_weights_that_overflow_are_a_numeric_error(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    with torch.no_grad():
        prior.model.lm_head.weight[3] = float("inf")  # type: ignore[union-attr,operator,index]
    with pytest.raises(NumericError, match="not finite"):
        drawn(prior, [0])


def test_a_batch_is_at_least_eight_times_as_fast_as_single_samples(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()

    def seconds(size: int) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            drawn(prior, list(range(size)))
            times.append(time.perf_counter() - begin)
        return min(times) / size

    assert seconds(1) > 8 * seconds(64)
