"""Row counts that were measured draw what the fixed one draws, which is used where a row feels its neighbours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stage2_prior.fast import invariance
from stage2_prior.prior import CausalPrior
from stage2_prior.sampling import sample_tokens


def drawn(prior: CausalPrior, indices: list[int], **settings: Any) -> torch.Tensor:
    labels = torch.tensor([index % 3 for index in indices])
    return sample_tokens(prior, labels, seed=5, indices=indices, **settings)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.5}, {"precision": "bf16"}], ids=str)
def test_measured_row_counts_draw_what_the_fixed_one_draws(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    measured = [drawn(make_prior(), indices, **settings) for indices in ([3], [0, 1, 2], list(range(20)))]
    monkeypatch.setattr(invariance, "rows_are_invariant", lambda *_: False)
    prior = make_prior()
    assert invariance.call_rows(prior.decoder(), 3, 2) == invariance.FIXED_ROWS
    for indices, tokens in zip(([3], [0, 1, 2], list(range(20))), measured, strict=True):
        assert torch.equal(drawn(prior, indices, **settings), tokens)


def test_the_fixed_row_count_gives_the_same_rows(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariance, "rows_are_invariant", lambda *_: False)
    prior = make_prior()
    whole = drawn(prior, list(range(70)))
    assert torch.equal(drawn(prior, [69, 2]), whole[[69, 2]])


@pytest.mark.parametrize("part", ["attend", "step"])
def test_a_decoder_whose_rows_feel_their_number_has_the_fixed_count(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    decoder = make_prior().decoder()
    plain = getattr(decoder, part)

    def feels_its_neighbours(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return plain(x, *rest) * (1 + 1e-6 * len(x))

    monkeypatch.setattr(decoder, part, feels_its_neighbours)
    assert not invariance.rows_are_invariant(decoder, invariance.ROW_MULTIPLE, 16)
    assert invariance.call_rows(decoder, 9, 1) == invariance.FIXED_ROWS
    if part == "attend":
        assert invariance.attended_rows(decoder, 3, 8, 1) == 8


def test_attention_leaves_the_padding_out_only_where_no_bit_changes(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = make_prior()
    whole = drawn(prior, [0, 1, 2])
    assert invariance.attended_rows(prior.decoder(), 3, 8, 1) in (3, 8)
    assert invariance.attended_rows(prior.decoder(), 3, 8, 2) == 16
    monkeypatch.setattr(invariance, "_attention_is_invariant", lambda *_: False)
    unknown = make_prior()
    assert invariance.attended_rows(unknown.decoder(), 3, 8, 1) == 8
    assert torch.equal(drawn(unknown, [0, 1, 2]), whole)


def test_threads_are_compared_only_where_a_draw_would_change_their_number(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(invariance.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(invariance, "_threads_agree", lambda *_: bool(asked.append(True)))
    idle, busy = make_prior().decoder(), make_prior().decoder()
    busy.threads = 1
    choice = invariance.thread_choice(idle, 8, 8)
    assert choice is not None
    assert (choice.number, asked) == (2, [])
    assert invariance.thread_choice(busy, 8, 8) is None  # of other bits: as many as always
    assert asked == [True]
