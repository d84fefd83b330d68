"""A decoder of our own over the packed weights, for sampling.

The key-value cache is written in place and read up to the length so far, and the matrices are laid out once for the
library that multiplies by them. The logits are those of the stock forward pass up to rounding.

Letters: R rows, S positions, H query heads, G key-value heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.forward import pack, rotate
from stage2_prior.products import Product

ATTENDED_ROWS = 64  # at a time on a CPU, which bounds the room for their products


@dataclass(frozen=True)
class Cache:
    """Keys and values, written in place.

    Attributes:
        entries: [layers, 2, positions, rows, G, d]. A call may have more rows, copies that fill it up: their attention
            is left out.
        room: For the products of attention, flat float32; empty where none is needed. Memory that is asked for anew at
            every step has to be mapped first, which takes as long as the products.
    """

    entries: Tensor
    room: Tensor


def _attend_in_order(q: Tensor, keys: Tensor, values: Tensor, room: Tensor) -> Tensor:
    """Return attention [R, G, H / G, d] of q of this shape and keys and values [positions, R, G, d].

    One query a row makes attention a matter of reading: products and sums that go through keys and values in their
    order in memory take less time than batched products, which jump from head to head.
    """
    result = torch.empty_like(q)
    for rows in (slice(first, first + ATTENDED_ROWS) for first in range(0, len(q), ATTENDED_ROWS)):
        products = room[: len(keys) * q[rows].numel()].view(len(keys), *q[rows].shape)
        scores = _times(keys[:, rows, :, None], q[rows], products).sum(-1, keepdim=True)
        # Along any other axis than the last, the bits of a softmax depend on how many columns stand side by side.
        weights = scores.movedim(0, -1).softmax(-1).movedim(-1, 0)
        torch.sum(_times(values[:, rows, :, None], weights, products), 0, out=result[rows])
    return result


def _times(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Return a * b in `out`, float32; widening first takes less time than a product of two types."""
    return torch.mul(a, b, out=out) if a.dtype == out.dtype else out.copy_(a).mul_(b)


def _norm(x: Tensor, eps: float) -> Tensor:
    """Return the RMS norm over the last axis (Zhang and Sennrich 2019, eq. 4); half the operations of torch's."""
    return x * (x * x).mean(-1, keepdim=True).add_(eps).rsqrt_()


@dataclass(frozen=True)
class _Block:
    qkv: Product
    qk_norm: Tensor | None
    out: Product
    gate_up: Product
    down: Product


class Decoder:
    """The packed weights of a stock Qwen3 or Llama model; a copy, so build a new one after the weights changed.

    Args:
        model: The stock model.
        dtype: Of the matrices and the products; bfloat16 is faster where the machine has it. What is summed along the
            depth, the norms, the rotary positions and the logits stay float32.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        config: Any = model.config
        self.max_length: int = config.max_position_embeddings
        w = pack(model, dtype)
        self.embedding = w.embedding.detach()
        self.blocks = [
            _Block(Product(b.qkv), b.qk_norm, Product(b.out), Product(b.gate_up), Product(b.down)) for b in w.blocks
        ]
        self.rotation, self.num_heads, self.num_groups, self.eps = w.rotation, w.num_heads, w.num_groups, w.eps
        self.head_dim, self.dtype = w.head_dim, dtype
        self._head = w.head
        self._heads: dict[tuple[int, int], Product] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._head.shape[0]

    def _head_of(self, low: int, high: int) -> Product:
        """Return the output layer of ids low to high - 1."""
        if (low, high) not in self._heads:
            self._heads[low, high] = Product(self._head[low:high])
        return self._heads[low, high]

    def new_cache(self, rows: int) -> Cache:
        """Return an empty cache."""
        shape = (len(self.blocks), 2, self.max_length, rows, self.num_groups, self.head_dim)
        products = self.max_length * min(rows, ATTENDED_ROWS) * self.num_heads * self.head_dim
        return Cache(
            torch.zeros(shape, dtype=self.dtype, device=self.device),
            torch.empty(products if self.device.type == "cpu" else 0),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache, layer: int, position: int) -> Tensor:
        """Return attention of one new position, [R, H * d], 0 beyond the cache's rows; q [R, H, d], k and v [R, G, d].

        Not by the fused kernel, which cuts the keys by the number of rows and threads: a row's bits would depend on
        its neighbours.

        Args:
            q: Queries.
            k: Keys of the new position.
            v: Values of the new position.
            cache: Written in place.
            layer: Number of the layer.
            position: Place in the sequence.
        """
        (R, H, d), G, n = q.shape, k.shape[1], cache.entries.shape[3]
        cache.entries[layer, 0, position] = k[:n]
        cache.entries[layer, 1, position] = v[:n]
        keys, values = cache.entries[layer, :, : position + 1]
        q = q[:n].view(n, G, H // G, d) * d**-0.5  # queries that share a key-value head stand together
        if q.device.type == "cpu":
            attended = _attend_in_order(q, keys, values, cache.room)
        else:
            scores = torch.einsum("rghd,prgd->rghp", q.to(keys.dtype), keys)
            attended = torch.einsum("rghp,prgd->rghd", scores.softmax(-1), values)
        attended = attended.reshape(n, H * d)
        return attended if n == R else F.pad(attended, (0, 0, 0, R - n))

    def _block(self, x: Tensor, layer: int, rotation: Tensor, cache: Cache, position: int) -> Tensor:
        R, block = x.shape[0], self.blocks[layer]
        H, G, d = self.num_heads, self.num_groups, self.head_dim
        h = _norm(x, self.eps).to(self.dtype)
        qk, v = block.qkv(h).view(R, H + 2 * G, d).split([H + G, G], dim=1)
        qk = qk.float()
        if block.qk_norm is not None:
            qk = _norm(qk, self.eps) * block.qk_norm
        q, k = rotate(qk, rotation).split([H, G], dim=1)
        attended = self.attend(q, k, v, cache, layer, position).to(self.dtype)
        x = x + block.out(attended)
        h = _norm(x, self.eps).to(self.dtype)
        gate, up = block.gate_up(h).chunk(2, dim=-1)
        return x + block.down(F.silu(gate).mul_(up))

    def step(self, tokens: Tensor, position: int, cache: Cache, low: int, high: int) -> Tensor:
        """Return logits [R, high - low] float32 of ids low to high - 1 at the place after `position`.

        Args:
            tokens: The token at `position` of each row, [R] int64; position 0 is the prompt.
            position: Place of `tokens` in the sequence; all places before it are in the cache.
            cache: From `new_cache`; written in place.
            low: First id wanted.
            high: End of the ids wanted.
        """
        x = F.embedding(tokens, self.embedding)
        rotation = self.rotation[position]
        for layer in range(len(self.blocks)):
            x = self._block(x, layer, rotation, cache, position)
        h = _norm(x, self.eps).to(self.dtype)
        return self._head_of(low, high)(h).float()
