"""The codes of a store, resident in memory, as batches of tokens.

Letters: n rows, T tokens of a sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_prior.conditions import Conditioned, condition_columns
from stage2_prior.layout import SequenceLayout
from vq_prior.core.disk.code_store import CodeStore, shard_ranges
from vq_prior.core.training.randomness import keyed_generator

COMPACT_BELOW = 0.9


@dataclass
class Sequences:
    """Rows of one split of a code store; codes stay in their smallest integer type until a batch is made.

    Attributes:
        layout: How code grids become tokens.
        grids: The codes of each level, [n, *grid].
        labels: [n] int64; the null label throughout if the store has no labels.
        columns: Values of the conditions beside the class by name, [n, *shape].
    """

    layout: SequenceLayout
    grids: tuple[NDArray[np.generic], ...]
    labels: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    @classmethod
    def read(cls, store: CodeStore, layout: SequenceLayout, *, max_rows: int | None = None) -> "Sequences":
        """Return the rows of a store, or `max_rows` of them spread evenly."""
        rows = np.arange(len(store), dtype=np.int64)
        if max_rows is not None and len(rows) > max_rows:
            rows = np.arange(max_rows, dtype=np.int64) * len(store) // max_rows
        columns = store.rows(rows)
        labels = columns["label"] if store.labelled else np.full(len(rows), layout.null_label, dtype=np.int64)
        grids = tuple(columns[f"codes.{n}"] for n in range(len(layout.levels)))
        return cls(layout, grids, labels, {each.name: columns[each.name] for each in condition_columns(store.index)})

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
        """Return tokens [n, T] and labels [n], int64 on the host, of some rows."""
        codes = tuple(torch.from_numpy(grid[rows].astype(np.int64)) for grid in self.grids)
        return self.layout.to_tokens(codes), torch.from_numpy(self.labels[rows].astype(np.int64))

    def conditioned(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Conditioned]:
        """Return tokens [n, T] of some rows and all that they are conditioned on, on the host."""
        tokens, labels = self.batch(rows)
        columns = {name: torch.from_numpy(each[rows].astype(np.float32)) for name, each in self.columns.items()}
        return tokens, Conditioned(labels, columns)


def used_codes(stores: Sequence[CodeStore]) -> tuple[tuple[int, ...] | None, ...] | None:
    """Return, for each level, the codes that occur if they are few, else None; None altogether if no level has few.

    Few is less than `COMPACT_BELOW` of all. A prior then has no tokens for the others: it would only learn to avoid
    them.
    """
    kept: list[tuple[int, ...] | None] = []
    for number, level in enumerate(stores[0].spec.levels):
        used = np.zeros(level.num_codes, dtype=bool)
        for store in stores:
            for rows in shard_ranges(len(store)):
                used[store.rows(np.arange(rows.start, rows.stop))[f"codes.{number}"]] = True
        few = used.sum() < COMPACT_BELOW * level.num_codes
        kept.append(tuple(map(int, np.flatnonzero(used))) if few else None)
    return tuple(kept) if any(kept) else None


def drop_tokens(inputs: Tensor, layout: SequenceLayout, *, rate: float, seed: int, step: int) -> Tensor:
    """Return what the model reads at one step, [B, T], some codes replaced by the null token; never the prompt.

    A model that cannot rely on any one token overfits later. Which ones is a function of (seed, step).
    """
    if not rate:
        return inputs
    dropped = torch.from_numpy(keyed_generator(seed, step, "token dropout").random(tuple(inputs.shape)) < rate)
    dropped[:, 0] = False
    return inputs.masked_fill(dropped, layout.null_token)
