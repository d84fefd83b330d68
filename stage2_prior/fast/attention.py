"""Attention of one new position at a time, read by an embedding bag.

Letters: R rows, H query heads, G key-value heads, d head width.

Plain twin: softmax(q k) v, with queries that are divided by sqrt(d) already.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES = 64  # positions of a block of keys


class Cache:
    """Keys and values of `rows` rows, written in place.

    Attention of one position is a matter of reading: a score is a sum of the rows of a head's keys, [d, positions],
    weighted by its query, and a result a sum of the rows of its values, [positions, d], weighted by its scores. Both
    are what an embedding bag does: it reads everything once, in order, each bag by itself.

    Args:
        layers: Of the model.
        positions: Places in a sequence.
        rows: Of a call; it may have more, copies that fill it up, whose attention is left out.
        heads: Query heads.
        groups: Key-value heads.
        head_dim: Numbers of a head.
        like: Gives device and type of the entries.

    Attributes:
        keys: [layers, blocks, rows, G, d, PLACES].
        values: [layers, rows, G, positions, d].
        inner: Of the blocks that read the tokens of one cell; None where there are none.
        cell: What the other blocks said of the present cell, and the sum of what is known of it, [rows of a call, D].
    """

    def __init__(
        self, layers: int, positions: int, rows: int, *, heads: int, groups: int, head_dim: int, like: Tensor
    ) -> None:
        blocks = -(-positions // PLACES)
        self.keys = like.new_zeros((layers, blocks, rows, groups, head_dim, PLACES))
        self.values = like.new_zeros((layers, rows, groups, positions, head_dim))
        # Query heads that share a key-value head stand together.
        owner = torch.arange(rows)[:, None] * groups + torch.arange(heads) // (heads // groups)
        block = torch.arange(blocks)[:, None, None] * (rows * groups) + owner
        self._key_rows = (block.reshape(-1, 1) * head_dim + torch.arange(head_dim)).int().to(like.device)
        self._value_rows = (owner.reshape(-1, 1) * positions + torch.arange(positions)).int().to(like.device)
        self._read: tuple[int, Tensor] = (0, self._value_rows[:, :0])
        self.inner: Cache | None = None
        self.cell: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        """Rows whose keys and values are kept."""
        return self.values.shape[1]

    def write(self, layer: int, position: int, k: Tensor, v: Tensor) -> None:
        """Keep keys and values [rows, G, d] of a position."""
        self.keys[layer, position // PLACES, ..., position % PLACES] = k
        self.values[layer, :, :, position] = v

    def attend(self, q: Tensor, layer: int, position: int) -> Tensor:
        """Return attention [rows * H, d] of queries [rows * H, d] to every position up to this one, in their type."""
        length, blocks = position + 1, position // PLACES + 1
        if self._read[0] != length:  # the same for every layer
            self._read = length, self._value_rows[:, :length].contiguous()
        heads = len(q)
        scores = F.embedding_bag(
            self._key_rows[: blocks * heads],
            self.keys[layer].view(-1, PLACES),
            mode="sum",
            per_sample_weights=q.repeat(blocks, 1),
        )
        scores = scores.view(blocks, heads, PLACES).transpose(0, 1).reshape(heads, -1)[:, :length]
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        values = self.values[layer].view(-1, q.shape[1])
        return F.embedding_bag(self._read[1], values, mode="sum", per_sample_weights=weights)
