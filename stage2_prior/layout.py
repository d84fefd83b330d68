"""How code grids become a sequence of tokens and back: data, invertible and drawable.

Letters: B batch, T tokens of a sequence, K codes of all levels together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from stage2_prior.interleaving import interleaved, nest
from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.spec import MAX_CODES, CodeSpec, LevelSpec, by

Order = Literal["raster", "interleaved"] | tuple[int, ...]
MAX_SPECIAL = 1 << 20


@dataclass(frozen=True)
class LevelPlaces:
    """Where the codes of one level stand in a sequence, and which ids they have there.

    Attributes:
        positions: Of its cells in raster order: a slice where they are evenly spaced, else [cells] int64.
        low: Lowest legal id.
        high: End of the legal ids.
    """

    positions: slice | Tensor
    low: int
    high: int


@dataclass(frozen=True)
class SequenceLayout:
    """A tuple of code grids as one sequence: the prompt (a class or the null token), then T codes.

    In raster order the codes stand row by row, level after level, coarse to fine. Token ids
    are the codes of level 0, of level 1, ... (K in all), then ids kept for later, then `num_classes`
    class tokens, then the null token::

        ids   0 ... K_0-1 | K_0 ... K-1 | K ... K+S-1 | K+S ... K+S+C-1 | K+S+C
              codes.0       codes.1       special       classes           null

    Two levels, 1x2 and 2x2, of 4 codes each, three classes::

        prompt  codes.0  codes.1
        [c]     [0 1]    [2 3]
                         [4 5]

    Two levels of one grid, 1x2, interleaved: cell by cell, each with all its levels::

        prompt  codes.0  codes.1
        [c]     [0 2]    [1 3]

    Where a level has a finer grid, a cell is followed by those that lie in it. The 1x2 and 2x2 from above::

        prompt  codes.0  codes.1
        [c]     [0 3]    [1 4]
                         [2 5]

    Attributes:
        levels: One entry a code grid, coarse to fine.
        num_classes: Classes; 0 if the data has none.
        kept: For each level the codes that have a token, ascending, or None for all of them;
            None altogether when the vocabulary is not compacted.
        order: "raster"; "interleaved"; or the raster place of the code at each position, all T of them once.
        given_levels: Levels that are never drawn but given, ascending; a prior is not judged by them.
        num_special: Ids between codes and classes, which no code has.

    Raises:
        ArtifactError: If `kept`, `order` or `given_levels` do not fit the levels, or a count is out of range.
    """

    levels: tuple[LevelSpec, ...]
    num_classes: int
    kept: tuple[tuple[int, ...] | None, ...] | None = None
    order: Order = "raster"
    given_levels: tuple[int, ...] = ()
    num_special: int = 0

    def __post_init__(self) -> None:
        if not self.levels:
            raise ArtifactError("layout.levels must hold at least one level")
        for number, level in enumerate(self.levels):
            sizes_hold = 1 <= len(level.grid) <= 3 and all(size >= 1 for size in level.grid)
            if not (sizes_hold and 1 <= level.num_codes <= MAX_CODES):
                raise ArtifactError(f"layout.levels[{number}] must have 1 to 3 axes and at least one code, got {level}")
        if not 0 <= self.num_classes <= MAX_CODES:
            raise ArtifactError(f"layout.num_classes must be at least 0, got {self.num_classes}")
        if not 0 <= self.num_special <= MAX_SPECIAL:
            raise ArtifactError(f"layout.num_special must be between 0 and {MAX_SPECIAL}, got {self.num_special}")
        self._check_kept()
        self._check_order()
        ascending = all(a < b for a, b in pairwise(self.given_levels))
        inside = all(0 <= number < len(self.levels) for number in self.given_levels)
        if not (ascending and inside and len(self.given_levels) < len(self.levels)):
            raise ArtifactError(
                f"layout.given_levels must be ascending numbers of the {len(self.levels)} level(s), one left to draw, "
                f"got {list(self.given_levels)}"
            )

    def _check_kept(self) -> None:
        if self.kept is not None and len(self.kept) != len(self.levels):
            raise ArtifactError(f"layout.kept must have {len(self.levels)} entries, got {len(self.kept)}")
        for number, (codes, level) in enumerate(zip(self.kept or (), self.levels, strict=False)):
            if codes is None:
                continue
            ascending = all(a < b for a, b in pairwise(codes))
            if not codes or not ascending or codes[0] < 0 or codes[-1] >= level.num_codes:
                raise ArtifactError(
                    f"layout.kept[{number}] must be ascending codes in [0, {level.num_codes}), at least one"
                )

    def _check_order(self) -> None:
        if self.order == "raster":
            return
        if self.order == "interleaved":
            if len(self.levels) < 2 or not nest([level.grid for level in self.levels]):
                grids = ", ".join(by(level.grid) for level in self.levels)
                raise ArtifactError(
                    "layout.order interleaved needs several levels, the cells of each a whole number of times those of "
                    f"the level before it, got {grids}"
                )
            return
        if isinstance(self.order, str):
            raise ArtifactError(f"layout.order must be raster, interleaved or a list of places, got {self.order!r}")
        if len(self.order) != self.num_tokens:
            raise ArtifactError(f"layout.order must list {self.num_tokens} places, got {len(self.order)}")
        seen: set[int] = set()
        for place in self.order:
            if not 0 <= place < self.num_tokens or place in seen:
                raise ArtifactError(
                    f"layout.order must hold each place from 0 to {self.num_tokens - 1} once, got {place}"
                    + (" twice" if place in seen else "")
                )
            seen.add(place)

    @classmethod
    def from_spec(cls, spec: CodeSpec, num_classes: int) -> "SequenceLayout":
        """Return the layout of a codec's grids in raster order."""
        return cls(spec.levels, num_classes)

    @classmethod
    def from_json(cls, value: Any, where: str) -> "SequenceLayout":
        """Return the layout that `to_json` described; raises `ArtifactError` naming the key that is wrong."""
        return from_json(cls, value, where)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values of the layout; an entry that came later and has its original meaning is left out."""
        values: dict[str, Any] = to_json(self)
        usual = {"order": "raster", "given_levels": [], "num_special": 0}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Tokens that stand for codes of each level."""
        kept = self.kept or (None,) * len(self.levels)
        return tuple(level.num_codes if k is None else len(k) for level, k in zip(self.levels, kept, strict=True))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token id of each level."""
        return tuple(accumulate(self.level_sizes, initial=0))[:-1]

    def levels_at(self) -> tuple[LevelPlaces, ...]:
        """Return for each level where its codes stand and which ids they have."""
        return self._levels_at

    def drawn_levels_at(self) -> tuple[LevelPlaces, ...]:
        """Return `levels_at` of the levels that are drawn."""
        return tuple(level for n, level in enumerate(self.levels_at()) if n not in self.given_levels)

    @cached_property
    def _levels_at(self) -> tuple[LevelPlaces, ...]:
        starts = list(accumulate((level.num_tokens for level in self.levels), initial=0))
        if self.order == "raster":
            positions: list[slice | Tensor] = [slice(a, b) for a, b in pairwise(starts)]
        elif self._woven:
            positions = [slice(n, self.num_tokens, len(self.levels)) for n in range(len(self.levels))]
        else:
            inverse = self._places.argsort()
            positions = [inverse[a:b] for a, b in pairwise(starts)]
        return tuple(
            LevelPlaces(where, low, low + size)
            for where, low, size in zip(positions, self.offsets, self.level_sizes, strict=True)
        )

    @property
    def cell_tokens(self) -> int:
        """Tokens of a cell of the coarsest grid: with its codes of every level where these are interleaved, else 1."""
        return self.num_tokens // self.levels[0].num_tokens if self.order == "interleaved" else 1

    @property
    def _woven(self) -> bool:
        """Whether the levels are interleaved and have one grid."""
        return self.order == "interleaved" and len({level.grid for level in self.levels}) == 1

    @cached_property
    def _places(self) -> Tensor:
        """The raster place of the code at each position, [T] int64."""
        if self.order == "raster":
            return torch.arange(self.num_tokens)
        if self.order != "interleaved":
            return torch.tensor(self.order, dtype=torch.int64)
        return interleaved([level.grid for level in self.levels])

    @cached_property
    def legal_ids(self) -> tuple[tuple[int, int], ...]:
        """For each position (low, high): the ids legal there are low to high - 1."""
        legal = [(0, 0)] * self.num_tokens
        for level in self.levels_at():
            for position in torch.arange(self.num_tokens)[level.positions].tolist():
                legal[position] = (level.low, level.high)
        return tuple(legal)

    @cached_property
    def level_of_each(self) -> tuple[int, ...]:
        """The number of the level whose code stands at each position."""
        numbers = torch.zeros(self.num_tokens, dtype=torch.int64)
        for number, level in enumerate(self.levels_at()):
            numbers[level.positions] = number
        return tuple(numbers.tolist())

    @cached_property
    def drawn_positions(self) -> slice | list[int]:
        """Positions of the levels that are drawn, ascending: an index of the T positions."""
        if not self.given_levels:
            return slice(None)
        drawn = torch.ones(self.num_tokens, dtype=torch.bool)
        for number in self.given_levels:
            drawn[self.levels_at()[number].positions] = False
        return [int(position) for position in drawn.nonzero()[:, 0]]

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Return values [B, T, ...] in the order of the sequence from those of each level, [B, cells, ...]."""
        if self._woven:
            return torch.stack(list(parts), dim=2).flatten(1, 2)
        joined = torch.cat(list(parts), dim=1)
        return joined if self.order == "raster" else joined[:, self._places.to(joined.device)]

    @property
    def num_tokens(self) -> int:
        """T, codes of one sequence without its prompt."""
        return sum(level.num_tokens for level in self.levels)

    @property
    def num_drawn(self) -> int:
        """Codes of one sequence that are drawn: T without those of the given levels."""
        return self.num_tokens - sum(self.levels[number].num_tokens for number in self.given_levels)

    @property
    def num_codes(self) -> int:
        """K, token ids that stand for codes."""
        return sum(self.level_sizes)

    @property
    def first_class(self) -> int:
        """Id of class 0, behind the codes and the special ids."""
        return self.num_codes + self.num_special

    @property
    def vocab_size(self) -> int:
        """K codes, the special ids, the classes, and the null token."""
        return self.first_class + self.num_classes + 1

    @property
    def null_label(self) -> int:
        """The label that means unconditional: num_classes."""
        return self.num_classes

    @property
    def null_token(self) -> int:
        """The last token id."""
        return self.vocab_size - 1

    def prompt(self, labels: Tensor) -> Tensor:
        """Return the prompt token of each label, [B] int64, from labels [B] in [0, num_classes].

        Raises:
            ArtifactError: On a label out of range.
        """
        _require_range(labels, 0, self.num_classes + 1, "labels")
        return labels.to(torch.int64) + self.first_class

    def legal_range(self, position: int) -> tuple[int, int]:
        """Return (low, high) such that the ids legal at `position` (0 to T - 1) are low to high - 1."""
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"position must be between 0 and {self.num_tokens - 1}, got {position}")
        return self.legal_ids[position]

    def to_tokens(self, codes: Sequence[Tensor]) -> Tensor:
        """Return tokens [B, T] int64 from the codes of each level, [B, *grid] integers.

        Raises:
            ArtifactError: On a shape that is not the grid's, a code out of range, or one without a token.
        """
        if len(codes) != len(self.levels):
            raise ArtifactError(f"codes must have {len(self.levels)} levels, got {len(codes)}")
        return self.in_order([self._whole_level(number, grid) for number, grid in enumerate(codes)])

    def _whole_level(self, number: int, grid: Tensor) -> Tensor:
        """Return the tokens of one level's codes, [B, cells]; raises `ArtifactError` unless each has one."""
        level = self.levels[number]
        if tuple(grid.shape[1:]) != level.grid:
            raise ArtifactError(f"codes.{number} must be [B, {by(level.grid)}], got {list(grid.shape)}")
        tokens = self.level_tokens(number, grid)
        if tokens.numel() and int(tokens.min()) < 0:
            stranger = int(grid.flatten(1)[tokens < 0][0])
            raise ArtifactError(f"codes.{number} holds code {stranger}, which this vocabulary left out")
        return tokens

    def given_of(self, codes: Mapping[int, Tensor]) -> Tensor:
        """Return [B, T] int64 that give whole levels and leave the others to be drawn: tokens, and -1.

        Args:
            codes: By number of the level, [B, *grid] integers; at least one.

        Raises:
            ArtifactError: On a level that is not there, a wrong shape, a code out of range, or one without a token.
        """
        for number in codes:
            if not 0 <= number < len(self.levels):
                raise ArtifactError(f"codes of level {number} are given, there are {len(self.levels)} level(s)")
        num_rows = len(next(iter(codes.values())))
        given = torch.full((num_rows, self.num_tokens), -1, dtype=torch.int64)
        for number, grid in codes.items():
            given[:, self.levels_at()[number].positions] = self._whole_level(number, grid).cpu()
        return given

    def given_rows(self, codes: Sequence[Tensor], rows: int) -> Tensor:
        """Return [B, T] int64 that give the first rows of the grid of every level: tokens, and -1.

        Codes of the other rows need no token.

        Args:
            codes: Of each level, [B, *grid] integers.
            rows: How many, along the first axis of the coarsest grid; of a finer grid those beside them.

        Raises:
            UsageError: If the order draws another cell of a level before its rows are over, or a code of these rows has
                no token.
        """
        given = torch.full((len(codes[0]), self.num_tokens), -1, dtype=torch.int64)
        for number, (grid, level, own) in enumerate(zip(codes, self.levels_at(), self.levels, strict=True)):
            part = grid[:, : rows * own.grid[0] // self.levels[0].grid[0]]
            tokens = self.level_tokens(number, part)
            strangers = part.flatten(1)[tokens < 0]
            if strangers.numel():
                raise UsageError(
                    f"the kept part holds code {int(strangers[0])}, which this vocabulary left out; keep fewer rows"
                )
            positions = torch.arange(self.num_tokens)[level.positions]
            first = positions[: tokens.shape[1]]
            if (
                first.numel()
                and first.numel() < len(positions)
                and int(first.max()) > int(positions[len(first) :].min())
            ):
                raise UsageError(
                    f"completion needs a prior that draws the first {rows} rows of its grid before all others; "
                    "this one has another order"
                )
            given[:, first] = tokens.cpu()
        return given

    def level_tokens(self, number: int, codes: Tensor) -> Tensor:
        """Return tokens [B, cells] of some cells of a level, [B, ...]; -1 where the vocabulary left a code out.

        Raises:
            ArtifactError: On a code out of range.
        """
        flat = codes.reshape(codes.shape[0], prod(codes.shape[1:])).to(torch.int64)
        _require_range(flat, 0, self.levels[number].num_codes, f"codes.{number}")
        kept = self.kept[number] if self.kept else None
        if kept is None:
            return flat + self.offsets[number]
        table = torch.full((self.levels[number].num_codes,), -1, dtype=torch.int64, device=flat.device)
        first = self.offsets[number]
        table[torch.tensor(kept, device=flat.device)] = torch.arange(first, first + len(kept), device=flat.device)
        return table[flat]

    def to_codes(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of each level, [B, *grid] int64, from tokens [B, T].

        Raises:
            ArtifactError: On a wrong length, or an id that is not legal at its position.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ArtifactError(f"tokens must be [B, {self.num_tokens}], got {list(tokens.shape)}")
        grids = []
        for number, level in enumerate(self.levels_at()):
            part = tokens[:, level.positions].to(torch.int64)
            _require_range(part, level.low, level.high, f"tokens at {_in_words(level.positions)}")
            part = part - level.low
            kept = self.kept[number] if self.kept else None
            if kept is not None:
                part = torch.tensor(kept, dtype=torch.int64, device=part.device)[part]
            grids.append(part.reshape(-1, *self.levels[number].grid))
        return tuple(grids)

    def describe(self) -> str:
        """Return the layout in words and, for small grids of up to two axes, as a drawing of the positions."""
        special = f"{self.num_special} special, " if self.num_special else ""
        lines = [
            f"1 prompt + {self.num_tokens} tokens, vocabulary {self.vocab_size} "
            f"({self.num_codes} codes, {special}{self.num_classes} classes, 1 null)"
        ]
        for number, (spec, level) in enumerate(zip(self.levels, self.levels_at(), strict=True)):
            grid, given = spec.grid, ", given" if number in self.given_levels else ""
            where, ids = _in_words(level.positions), f"ids {level.low} to {level.high - 1}"
            lines.append(f"codes.{number}: {by(grid)}, {where}, {ids}{given}")
            if len(grid) <= 2 and grid[-1] <= 16 and spec.num_tokens <= 256:
                positions = torch.arange(self.num_tokens)[level.positions].tolist()
                width = len(str(max(positions)))
                for row in range(0, len(positions), grid[-1]):
                    lines.append("  " + " ".join(f"{p:>{width}}" for p in positions[row : row + grid[-1]]))
        return "\n".join(lines)


def _in_words(positions: slice | Tensor) -> str:
    """Return in words where the codes of a level stand."""
    if isinstance(positions, Tensor):
        return f"positions {int(positions.min())} to {int(positions.max())}, in an order of their own"
    there = range(positions.start, positions.stop, positions.step or 1)
    apart = "" if there.step == 1 else f", every {there.step}"
    return f"positions {there[0]} to {there[-1]}{apart}"


def _require_range(values: Tensor, low: int, high: int, name: str) -> None:
    if values.numel() and not (int(values.min()) >= low and int(values.max()) < high):
        stranger = int(values[(values < low) | (values >= high)][0])
        raise ArtifactError(f"{name} must lie in [{low}, {high}), got {stranger}")
