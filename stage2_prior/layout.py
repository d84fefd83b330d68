"""How code grids become a sequence of tokens and back: data, invertible and drawable.

Letters: B batch, T tokens of a sequence, K codes of all levels together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.spec import MAX_CODES, CodeSpec, LevelSpec


@dataclass(frozen=True)
class SequenceLayout:
    """A tuple of code grids as one sequence: the prompt (a class or the null token), then T codes.

    The codes stand in raster order, level after level, coarse to fine. Token ids
    are the codes of level 0, of level 1, ... (K in all), then `num_classes` class
    tokens, then the null token::

        ids   0 ... K_0-1 | K_0 ... K-1 | K ... K+C-1 | K+C
              codes.0       codes.1       classes       null

    Two levels, 1x2 and 2x2, of 4 codes each, three classes::

        prompt  codes.0  codes.1
        [c]     [0 1]    [2 3]
                         [4 5]

    Attributes:
        levels: One entry a code grid, coarse to fine.
        num_classes: Classes; 0 if the data has none.
        kept: For each level the codes that have a token, ascending, or None for all of them;
            None altogether when the vocabulary is not compacted.

    Raises:
        ArtifactError: If `kept` does not fit the levels or `num_classes` is negative.
    """

    levels: tuple[LevelSpec, ...]
    num_classes: int
    kept: tuple[tuple[int, ...] | None, ...] | None = None

    def __post_init__(self) -> None:
        if not self.levels:
            raise ArtifactError("layout.levels must hold at least one level")
        for number, level in enumerate(self.levels):
            sizes_hold = 1 <= len(level.grid) <= 3 and all(size >= 1 for size in level.grid)
            if not (sizes_hold and 1 <= level.num_codes <= MAX_CODES):
                raise ArtifactError(f"layout.levels[{number}] must have 1 to 3 axes and at least one code, got {level}")
        if not 0 <= self.num_classes <= MAX_CODES:
            raise ArtifactError(f"layout.num_classes must be at least 0, got {self.num_classes}")
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

    @classmethod
    def from_spec(cls, spec: CodeSpec, num_classes: int) -> "SequenceLayout":
        """Return the layout of a codec's grids."""
        return cls(spec.levels, num_classes)

    @classmethod
    def from_json(cls, value: Any, where: str) -> "SequenceLayout":
        """Return the layout that `to_json` described; raises `ArtifactError` naming the key that is wrong."""
        return from_json(cls, value, where)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values of the layout."""
        values: dict[str, Any] = to_json(self)
        return values

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Tokens that stand for codes of each level."""
        kept = self.kept or (None,) * len(self.levels)
        return tuple(level.num_codes if k is None else len(k) for level, k in zip(self.levels, kept, strict=True))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token id of each level."""
        return tuple(accumulate(self.level_sizes, initial=0))[:-1]

    @cached_property
    def segments(self) -> tuple[tuple[int, int, int, int], ...]:
        """For each level: first position, end position, lowest legal id, end of the legal ids."""
        starts = list(accumulate((level.num_tokens for level in self.levels), initial=0))
        return tuple(
            (starts[n], starts[n + 1], low, low + size)
            for n, (low, size) in enumerate(zip(self.offsets, self.level_sizes, strict=True))
        )

    @property
    def num_tokens(self) -> int:
        """T, codes of one sequence without its prompt."""
        return sum(level.num_tokens for level in self.levels)

    @property
    def num_codes(self) -> int:
        """K, token ids that stand for codes."""
        return sum(self.level_sizes)

    @property
    def vocab_size(self) -> int:
        """K codes, the classes, and the null token."""
        return self.num_codes + self.num_classes + 1

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
        return labels.to(torch.int64) + self.num_codes

    def legal_range(self, position: int) -> tuple[int, int]:
        """Return (low, high) such that the ids legal at `position` (0 to T - 1) are low to high - 1."""
        for first, end, low, high in self.segments:
            if first <= position < end:
                return low, high
        raise IndexError(f"position must be between 0 and {self.num_tokens - 1}, got {position}")

    def to_tokens(self, codes: Sequence[Tensor]) -> Tensor:
        """Return tokens [B, T] int64 from the codes of each level, [B, *grid] integers.

        Raises:
            ArtifactError: On a shape that is not the grid's, a code out of range, or one without a token.
        """
        if len(codes) != len(self.levels):
            raise ArtifactError(f"codes must have {len(self.levels)} levels, got {len(codes)}")
        parts = []
        for number, (level, grid) in enumerate(zip(self.levels, codes, strict=True)):
            if tuple(grid.shape[1:]) != level.grid:
                raise ArtifactError(f"codes.{number} must be [B, {_by(level.grid)}], got {list(grid.shape)}")
            tokens = self.level_tokens(number, grid)
            if tokens.numel() and int(tokens.min()) < 0:
                stranger = int(grid.flatten(1)[tokens < 0][0])
                raise ArtifactError(f"codes.{number} holds code {stranger}, which this vocabulary left out")
            parts.append(tokens)
        return torch.cat(parts, dim=1)

    def first_rows(self, codes: Tensor, rows: int) -> Tensor:
        """Return the tokens [B, P] of the first rows of the grid, which a sequence of one level begins with.

        Codes of the other rows need no token.

        Args:
            codes: Of the one level, [B, *grid] integers.
            rows: How many, along the grid's first axis.

        Raises:
            UsageError: If there are several levels, or a code of these rows has no token.
        """
        if len(self.levels) > 1:
            raise UsageError(f"completion needs a model of one code grid, this one has {len(self.levels)}")
        tokens = self.level_tokens(0, codes[:, :rows])
        strangers = codes[:, :rows].flatten(1)[tokens < 0]
        if strangers.numel():
            raise UsageError(
                f"the kept part holds code {int(strangers[0])}, which this vocabulary left out; keep fewer rows"
            )
        return tokens

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
        for number, (first, end, low, high) in enumerate(self.segments):
            part = tokens[:, first:end].to(torch.int64)
            _require_range(part, low, high, f"tokens at positions {first} to {end - 1}")
            part = part - low
            kept = self.kept[number] if self.kept else None
            if kept is not None:
                part = torch.tensor(kept, dtype=torch.int64, device=part.device)[part]
            grids.append(part.reshape(-1, *self.levels[number].grid))
        return tuple(grids)

    def describe(self) -> str:
        """Return the layout in words and, for small grids of up to two axes, as a drawing of the positions."""
        lines = [
            f"1 prompt + {self.num_tokens} tokens, vocabulary {self.vocab_size} "
            f"({self.num_codes} codes, {self.num_classes} classes, 1 null)"
        ]
        for number, (first, end, low, high) in enumerate(self.segments):
            grid = self.levels[number].grid
            lines.append(f"codes.{number}: {_by(grid)}, positions {first} to {end - 1}, ids {low} to {high - 1}")
            if len(grid) <= 2 and grid[-1] <= 16 and end - first <= 256:
                width = len(str(end - 1))
                for row in range(first, end, grid[-1]):
                    lines.append("  " + " ".join(f"{position:>{width}}" for position in range(row, row + grid[-1])))
        return "\n".join(lines)


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))


def _require_range(values: Tensor, low: int, high: int, name: str) -> None:
    if values.numel() and not (int(values.min()) >= low and int(values.max()) < high):
        stranger = int(values[(values < low) | (values >= high)][0])
        raise ArtifactError(f"{name} must lie in [{low}, {high}), got {stranger}")
