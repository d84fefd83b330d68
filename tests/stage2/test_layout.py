"""The layout is an invertible map between code grids and tokens, for any rank and number of levels."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage2_prior.layout import SequenceLayout
from stage2_prior.orders import layout_of, level_order_of
from stage2_prior.settings import TrainPrior
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec


@st.composite
def layouts(draw: st.DrawFn) -> SequenceLayout:
    rank = draw(st.integers(1, 3))
    sizes = st.lists(st.integers(1, 4), min_size=rank, max_size=rank).map(tuple)
    levels = tuple(draw(st.lists(st.builds(LevelSpec, sizes, st.integers(1, 9)), min_size=1, max_size=3)))
    kept = None
    if draw(st.booleans()):
        choices = []
        for level in levels:
            codes = st.sets(st.integers(0, level.num_codes - 1), min_size=1).map(lambda s: tuple(sorted(s)))
            choices.append(draw(st.none() | codes))
        kept = tuple(choices)
    num_tokens = sum(level.num_tokens for level in levels)
    orders = st.just("raster") | st.permutations(range(num_tokens)).map(tuple)
    if len(levels) > 1 and len({level.grid for level in levels}) == 1:
        orders |= st.just("interleaved")
    given = draw(st.sets(st.integers(0, len(levels) - 1), max_size=len(levels) - 1).map(lambda s: tuple(sorted(s))))
    return SequenceLayout(levels, draw(st.integers(0, 5)), kept, draw(orders), given, draw(st.integers(0, 3)))


def places(layout: SequenceLayout) -> list[tuple[int, int]]:
    """Return (level, cell) of each position, written as the orders are defined."""
    cells = [(n, cell) for n, level in enumerate(layout.levels) for cell in range(level.num_tokens)]
    if layout.order == "raster":
        return cells
    if layout.order == "interleaved":
        return sorted(cells, key=lambda place: place[::-1])
    return [cells[place] for place in layout.order]


@given(layouts())
def test_every_order_is_its_definition(layout: SequenceLayout) -> None:
    tokens = random_tokens(layout, 2)
    codes = [grid.flatten(1) for grid in layout.to_codes(tokens)]
    for position, (number, cell) in enumerate(places(layout)):
        low, high = layout.legal_range(position)
        assert (low, high - low) == (layout.offsets[number], layout.level_sizes[number])
        relative = tokens[:, position] - low
        kept = layout.kept[number] if layout.kept else None
        code = relative if kept is None else torch.tensor(kept)[relative]
        assert torch.equal(codes[number][:, cell], code)
    drawn = [p for p, (number, _) in enumerate(places(layout)) if number not in layout.given_levels]
    assert torch.arange(layout.num_tokens)[layout.drawn_positions].tolist() == drawn
    assert layout.num_drawn == len(drawn)


@given(layouts())
def test_given_levels_stand_at_their_places(layout: SequenceLayout) -> None:
    tokens = random_tokens(layout, 3)
    codes = dict(enumerate(layout.to_codes(tokens)))
    last = len(codes) - 1
    given = layout.given_of({last: codes[last]})
    held = torch.tensor([number == last for number, _ in places(layout)])
    assert torch.equal(given[:, held], tokens[:, held])
    assert (given[:, ~held] == -1).all()


def random_tokens(layout: SequenceLayout, rows: int) -> torch.Tensor:
    columns = [torch.randint(*layout.legal_range(t), (rows,)) for t in range(layout.num_tokens)]
    return torch.stack(columns, dim=1)


@given(layouts())
def test_tokens_to_codes_and_back_is_the_identity(layout: SequenceLayout) -> None:
    tokens = random_tokens(layout, 3)
    codes = layout.to_codes(tokens)
    assert [tuple(grid.shape) for grid in codes] == [(3, *level.grid) for level in layout.levels]
    for number, (grid, level) in enumerate(zip(codes, layout.levels, strict=True)):
        assert int(grid.min()) >= 0
        assert int(grid.max()) < level.num_codes
        if layout.kept and layout.kept[number] is not None:
            assert set(grid.flatten().tolist()) <= set(layout.kept[number])
    assert torch.equal(layout.to_tokens(codes), tokens)


@given(layouts())
def test_ids_are_codes_then_classes_then_the_null_token(layout: SequenceLayout) -> None:
    prompts = layout.prompt(torch.arange(layout.num_classes + 1))
    assert prompts.tolist() == list(range(layout.num_codes + layout.num_special, layout.vocab_size))
    assert layout.null_token == int(layout.prompt(torch.tensor([layout.null_label]))) == layout.vocab_size - 1
    ranges = [layout.legal_range(t) for t in range(layout.num_tokens)]
    if layout.order == "raster":
        assert sorted(set(ranges)) == list(dict.fromkeys(ranges))  # level after level
    assert max(high for _, high in ranges) == layout.num_codes


@given(layouts())
def test_json_describes_the_whole_layout(layout: SequenceLayout) -> None:
    assert SequenceLayout.from_json(json.loads(json.dumps(layout.to_json())), "layout") == layout


def test_cells_follow_in_raster_order() -> None:
    layout = SequenceLayout.from_spec(CodeSpec(3, (8, 8), (LevelSpec((1, 2), 5), LevelSpec((2, 2), 4))), 0)
    codes = (torch.tensor([[[4, 0]]]), torch.tensor([[[0, 1], [2, 3]]]))
    assert layout.to_tokens(codes).tolist() == [[4, 0, 5, 6, 7, 8]]
    assert [layout.legal_range(t) for t in (0, 1, 2, 5)] == [(0, 5), (0, 5), (5, 9), (5, 9)]


@pytest.mark.parametrize("wrong", [-1, 5, 9])
def test_an_illegal_id_is_refused_with_its_value(wrong: int) -> None:
    layout = SequenceLayout((LevelSpec((2,), 5), LevelSpec((1,), 4)), 2)
    tokens = torch.tensor([[wrong, 0, 6]])
    with pytest.raises(ArtifactError, match=rf"positions 0 to 1 must lie in \[0, 5\), got {wrong}"):
        layout.to_codes(tokens)
    with pytest.raises(ArtifactError, match="tokens must be"):
        layout.to_codes(tokens[:, :2])
    with pytest.raises(ArtifactError, match=rf"codes.0 must lie in \[0, 5\), got {wrong}"):
        layout.to_tokens((torch.tensor([[wrong, 0]]), torch.tensor([[0]])))
    with pytest.raises(ArtifactError, match=r"labels must lie in \[0, 3\), got 3"):
        layout.prompt(torch.tensor([3]))


def test_a_code_without_a_token_is_refused() -> None:
    layout = SequenceLayout((LevelSpec((2,), 5),), 0, ((1, 4),))
    assert layout.to_tokens((torch.tensor([[4, 1]]),)).tolist() == [[1, 0]]
    with pytest.raises(ArtifactError, match="code 2, which this vocabulary left out"):
        layout.to_tokens((torch.tensor([[4, 2]]),))


@pytest.mark.parametrize("kept", [((),), ((1, 1),), ((2, 1),), ((5,),), ((-1,),), ((0,), (0,))])
def test_a_vocabulary_that_does_not_fit_is_refused(kept: tuple) -> None:
    with pytest.raises(ArtifactError, match=r"layout\.kept"):
        SequenceLayout((LevelSpec((2,), 5),), 0, kept)


def test_the_drawing_shows_positions() -> None:
    text = SequenceLayout((LevelSpec((2, 3), 12),), 3).describe()
    assert "vocabulary 16 (12 codes, 3 classes, 1 null)" in text
    assert "  0 1 2\n  3 4 5" in text


def test_given_rows_are_the_beginning_of_the_sequence() -> None:
    layout = SequenceLayout((LevelSpec((3, 2), 9),), 2, ((0, 2, 5, 8),))
    codes = torch.tensor([[[0, 2], [5, 8], [7, 7]], [[8, 8], [2, 0], [5, 0]]])
    assert layout.given_rows((codes,), 2).tolist() == [[0, 1, 2, 3, -1, -1], [3, 3, 1, 0, -1, -1]]
    assert layout.given_rows((codes,), 0).tolist() == [[-1] * 6] * 2
    assert torch.equal(layout.given_rows((codes[1:],), 3), layout.to_tokens((codes[1:],)))
    with pytest.raises(UsageError, match="the kept part holds code 7"):
        layout.given_rows((codes,), 3)


@pytest.mark.parametrize("order", ["raster", "interleaved"])
def test_given_rows_of_every_level(order: str) -> None:
    layout = SequenceLayout((LevelSpec((2, 1), 4), LevelSpec((4, 2), 4)), 0, order=order)
    codes = (torch.tensor([[[1], [2]]]), torch.arange(8).view(1, 4, 2) % 4)
    given = layout.given_rows(codes, 1)
    whole = layout.to_tokens(codes)
    assert int((given >= 0).sum()) == 1 + 4
    assert torch.equal(given[given >= 0], whole[given >= 0])
    assert torch.equal(layout.given_rows(codes, 2), whole)


TWO = (LevelSpec((2, 2), 5), LevelSpec((2, 2), 4))


def test_levels_of_one_grid_interleave_cell_by_cell() -> None:
    layout = SequenceLayout(TWO, 2, order="interleaved")
    codes = (torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[[3, 2], [1, 0]]]))
    assert layout.to_tokens(codes).tolist() == [[0, 8, 1, 7, 2, 6, 3, 5]]
    text = layout.describe()
    assert "codes.0: 2 x 2, positions 0 to 6, every 2, ids 0 to 4\n  0 2\n  4 6" in text
    assert "codes.1: 2 x 2, positions 1 to 7, every 2, ids 5 to 8\n  1 3\n  5 7" in text


def test_a_finer_grid_follows_the_cells_it_lies_in() -> None:
    levels = (LevelSpec((1, 2), 5), LevelSpec((1, 2), 5), LevelSpec((2, 6), 5))
    layout = SequenceLayout(levels, 0, order="interleaved")
    assert layout._places.tolist() == [0, 2, 4, 5, 6, 10, 11, 12, 1, 3, 7, 8, 9, 13, 14, 15]
    codes = tuple(torch.randint(5, (3, *level.grid)) for level in levels)
    tokens = layout.to_tokens(codes)
    assert all(torch.equal(one, other) for one, other in zip(layout.to_codes(tokens), codes, strict=True))
    assert [low // 5 for low, _ in layout.legal_ids] == [0, 1, *[2] * 6, 0, 1, *[2] * 6]


def test_the_drawing_shows_an_order_of_its_own() -> None:
    layout = SequenceLayout((LevelSpec((2, 2), 5),), 0, order=(3, 0, 2, 1), num_special=2)
    text = layout.describe()
    assert "vocabulary 8 (5 codes, 2 special, 0 classes, 1 null)" in text
    assert "  1 3\n  2 0" in text  # cell 3 is drawn first, then cell 0


@pytest.mark.parametrize(
    ("levels", "more", "message"),
    [
        (TWO[:1], {"order": (0, 1, 2)}, "must list 4 places, got 3"),
        (TWO[:1], {"order": (0, 1, 2, 2)}, "each place from 0 to 3 once, got 2 twice"),
        (TWO[:1], {"order": (0, 1, 2, 4)}, "each place from 0 to 3 once, got 4"),
        (TWO[:1], {"order": "interleaved"}, "needs several levels, .*, got 2 x 2"),
        ((TWO[0], LevelSpec((4,), 3)), {"order": "interleaved"}, "needs several levels, .*, got 2 x 2, 4"),
        ((TWO[0], LevelSpec((3, 4), 3)), {"order": "interleaved"}, "a whole number of times .*, got 2 x 2, 3 x 4"),
        (TWO, {"order": "spiral"}, "must be raster, interleaved or a list of places, got 'spiral'"),
        (TWO, {"given_levels": (0, 1)}, "one left to draw"),
        (TWO, {"given_levels": (2,)}, r"got \[2\]"),
        (TWO, {"num_special": -1}, "got -1"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(levels: tuple, more: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        SequenceLayout(levels, 0, **more)


def test_what_a_layout_always_had_has_the_keys_it_always_had() -> None:
    assert SequenceLayout(TWO, 2).to_json().keys() == {"levels", "num_classes", "kept"}


def test_completion_needs_the_kept_rows_first() -> None:
    codes = torch.tensor([[[0, 1], [2, 3]]])
    shuffled = SequenceLayout(TWO[:1], 0, order=(1, 0, 2, 3))
    assert shuffled.given_rows((codes,), 1).tolist() == [[1, 0, -1, -1]]
    with pytest.raises(UsageError, match="draws the first 1 rows of its grid before all others"):
        SequenceLayout(TWO[:1], 0, order=(0, 2, 1, 3)).given_rows((codes,), 1)


@pytest.mark.parametrize(
    ("levels", "more", "wanted"),
    [
        (TWO, {}, "interleaved"),
        (TWO[:1], {}, "flat"),
        ((TWO[0], LevelSpec((3, 4), 3)), {}, "flat"),
        ((TWO[0], LevelSpec((4, 6), 3)), {}, "interleaved"),
        (TWO, {"given_levels": (0,)}, "flat"),
        (TWO, {"order": "[7, 6, 5, 4, 3, 2, 1, 0]"}, "flat"),
        (TWO, {"from_model": "M"}, "flat"),
        (TWO, {"level_order": "flat"}, "flat"),
    ],
)
def test_levels_interleave_where_they_can(levels: tuple, more: dict, wanted: str) -> None:
    settings = TrainPrior(Path("c"), Path("r"), **more)
    spec = CodeSpec(1, (4, 6), levels)
    assert level_order_of(settings, spec) == wanted
    layout_of(replace(settings, level_order=wanted), spec, 0)
