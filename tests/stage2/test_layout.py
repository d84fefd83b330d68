"""The layout is an invertible map between code grids and tokens, for any rank and number of levels."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage2_prior.layout import SequenceLayout
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
    return SequenceLayout(levels, draw(st.integers(0, 5)), kept)


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
    assert prompts.tolist() == list(range(layout.num_codes, layout.vocab_size))
    assert layout.null_token == int(layout.prompt(torch.tensor([layout.null_label]))) == layout.vocab_size - 1
    ranges = [layout.legal_range(t) for t in range(layout.num_tokens)]
    assert sorted(set(ranges)) == list(dict.fromkeys(ranges))  # level after level
    assert ranges[-1][1] == layout.num_codes


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


def test_the_first_rows_are_the_beginning_of_the_sequence() -> None:
    layout = SequenceLayout((LevelSpec((3, 2), 9),), 2, ((0, 2, 5, 8),))
    codes = torch.tensor([[[0, 2], [5, 8], [7, 7]], [[8, 8], [2, 0], [5, 0]]])
    assert layout.first_rows(codes, 2).tolist() == [[0, 1, 2, 3], [3, 3, 1, 0]]
    assert layout.first_rows(codes, 0).shape == (2, 0)
    assert torch.equal(layout.first_rows(codes[1:], 3), layout.to_tokens((codes[1:],)))
    with pytest.raises(UsageError, match="the kept part holds code 7"):
        layout.first_rows(codes, 3)
    with pytest.raises(UsageError, match="one code grid, this one has 2"):
        SequenceLayout((LevelSpec((1,), 4), LevelSpec((2,), 4)), 0).first_rows(codes, 1)
