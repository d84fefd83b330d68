"""A decoder of our own over the packed weights, for sampling.

The key-value cache is written in place and read up to the length so far, and the matrices are laid out once for the
library that multiplies by them. The logits are those of the stock forward pass up to rounding.

Letters: R rows, S positions, H query heads, G key-value heads, d head width.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.conditions import num_vectors
from stage2_prior.fast.attention import Cache
from stage2_prior.forward import Depth, pack, rotate, turned
from vq_prior.core.fast.products import Product
from vq_prior.core.processes.threads import ThreadChoice


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

    Attributes:
        row_counts: At which row counts of a call the other rows change no bit, as `fast.invariance` measured.
        thread_choices: Number of threads to use, by rows, rows attended and threads of a call; None where it matters to
            a bit.
        threads: How many threads the latest draw ended with; None if it could not choose.
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
        self._rotation_at = w.rotation.unbind(0)  # looked up in every block
        self.head_dim, self.dtype, self.depth = w.head_dim, dtype, w.depth
        self.prompt_vectors = num_vectors(model)
        self._head = w.head
        self._heads: dict[tuple[int, int], Product] = {}
        self.row_counts: dict[tuple[int, int], bool] = {}
        self.thread_choices: dict[tuple[int, int, int], ThreadChoice | None] = {}
        self.threads: int | None = None

    def of_one_block(self) -> "Decoder":
        """Return this decoder with its first block alone; with a head over depth, one before it and one inside."""
        few = copy(self)
        few.blocks = [self.blocks[0]]
        if self.depth is not None:
            few.blocks, few.depth = [self.blocks[0], self.blocks[-1]], replace(self.depth, blocks=1)
        return few

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def places(self) -> int:
        """Places that the blocks see, those of a head over depth aside: of the prompt, and of tokens or cells."""
        places, P = self.max_length - 1, self.prompt_vectors
        return places if self.depth is None else P + (places - P) // self.depth.tokens

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
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        sizes = {"heads": self.num_heads, "groups": self.num_groups, "head_dim": self.head_dim}
        last = 0 if self.depth is None else self.depth.blocks
        cache = Cache(len(self.blocks) - last, self.places, rows, **sizes, like=like)
        if self.depth is not None:
            cache.inner = Cache(last, self.depth.tokens, rows, **sizes, like=like)
        return cache

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
        (R, H, d), n = q.shape, cache.rows
        cache.write(layer, position, k[:n], v[:n])
        queries = (q[:n] * d**-0.5).to(self.dtype).view(n * H, d)
        attended = cache.attend(queries, layer, position).view(n, H * d)
        return attended if n == R else F.pad(attended, (0, 0, 0, R - n))

    def _block(self, x: Tensor, block: _Block, layer: int, cache: Cache, position: int) -> Tensor:
        R, rotation = x.shape[0], self._rotation_at[position]
        H, G, d = self.num_heads, self.num_groups, self.head_dim
        h = _norm(x, self.eps).to(self.dtype)
        qk, v = block.qkv(h).view(R, H + 2 * G, d).split([H + G, G], dim=1)
        qk = qk.float()
        if block.qk_norm is not None:
            qk = _norm(qk, self.eps) * block.qk_norm
        q, k = rotate(qk, rotation).split([H, G], dim=1)
        x = x + block.out(self.attend(q, k, v, cache, layer, position))
        h = _norm(x, self.eps).to(self.dtype)
        gate, up = block.gate_up(h).chunk(2, dim=-1)
        return x + block.down(F.silu(gate).mul_(up))

    def step(self, tokens: Tensor, position: int, cache: Cache, low: int, high: int) -> Tensor:
        """Return logits [R, high - low] float32 of ids low to high - 1 at the place after `position`.

        Args:
            tokens: The token at `position` of each row, [R] int64, or a vector of the prompt, [R, D] float32;
                position 0 is the prompt's first place.
            position: Place of `tokens` in the sequence; all places before it are in the cache.
            cache: From `new_cache`; written in place.
            low: First id wanted.
            high: End of the ids wanted.
        """
        x = tokens if tokens.is_floating_point() else F.embedding(tokens, self.embedding)
        if self.depth is None:
            x = self._through(self.blocks, x, cache, position)
        else:
            x = self._in_cell(self.depth, x, cache, position)
        h = _norm(x, self.eps).to(self.dtype)
        return self._head_of(low, high)(h).float()

    def _through(self, blocks: Sequence[_Block], x: Tensor, cache: Cache, position: int) -> Tensor:
        for layer, block in enumerate(blocks):
            x = self._block(x, block, layer, cache, position)
        return x

    def _in_cell(self, depth: Depth, x: Tensor, cache: Cache, position: int) -> Tensor:
        """Return what the last blocks make of x [R, D], the token or vector at `position`, in its cell."""
        assert cache.inner is not None
        first, last = self.blocks[: -depth.blocks], self.blocks[-depth.blocks :]
        if position < self.prompt_vectors:
            return self._through(first, x, cache, position)  # of which nothing is asked
        cell, within = divmod(position - self.prompt_vectors, depth.tokens)
        said, known = cache.cell or (torch.zeros_like(x), torch.zeros_like(x))
        if cell or within:  # x is the token before, at the place before
            known = known + self._turned(x, (within - 1) % depth.tokens)
        if not within:
            said = self._through(first, known if cell else x, cache, self.prompt_vectors + cell)
            known = torch.zeros_like(x)
        cache.cell = said, known
        return self._through(last, self._turned(said, within) + known, cache.inner, within)

    def _turned(self, x: Tensor, place: int) -> Tensor:
        return turned(x[:, None], self.rotation[place : place + 1])[:, 0]
