"""A decoder of our own over the packed weights, for sampling.

The key-value cache is written in place and read up to the length so far. The logits are those of the stock forward
pass up to rounding.

Letters: R rows, S positions, H query heads, G key-value heads, d head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.forward import Block, logits, pack, rotate


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
        self.weights = pack(model, dtype)
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.weights.head.shape[0]

    def new_cache(self, rows: int) -> Tensor:
        """Return an empty key-value cache, [layers, 2, rows, G, positions, d]."""
        w = self.weights
        shape = (len(w.blocks), 2, rows, w.num_groups, self.max_length, w.head_dim)
        # On a CPU, products as small as those of attention take longer in bfloat16.
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, position: int) -> Tensor:
        """Return attention of one new position, [R, H * d]; q [R, H, d], k and v [R, G, d].

        Plain batched products: the fused kernel cuts the keys by the number of rows and threads, and a row's bits
        would depend on its neighbours.

        Args:
            q: Queries.
            k: Keys of the new position.
            v: Values of the new position.
            cache: Keys and values of one layer, [2, R, G, positions, d]; written in place.
            position: Place in the sequence.
        """
        R, H, d = q.shape
        G = k.shape[1]
        cache[0, :, :, position] = k
        cache[1, :, :, position] = v
        keys, values = cache[:, :, :, : position + 1].reshape(2, R * G, position + 1, d)
        # The queries that share a key-value head stand where a sequence would: no head is copied.
        scores = torch.bmm(q.reshape(R * G, H // G, d).to(keys.dtype), keys.transpose(1, 2)).mul_(d**-0.5)
        return torch.bmm(scores.softmax(dim=-1), values).view(R, H * d)

    def _block(self, x: Tensor, block: Block, rotation: Tensor, cache: Tensor, position: int) -> Tensor:
        w, R, shape = self.weights, x.shape[0], x.shape[1:]
        H, G, d = w.num_heads, w.num_groups, w.head_dim
        h = F.rms_norm(x, shape, None, w.eps).to(self.dtype)
        qk, v = F.linear(h, block.qkv).view(R, H + 2 * G, d).split([H + G, G], dim=1)
        qk = qk.float()
        if block.qk_norm is not None:
            qk = F.rms_norm(qk, (d,), None, w.eps) * block.qk_norm
        q, k = rotate(qk, rotation).split([H, G], dim=1)
        attended = self.attend(q, k, v, cache, position).to(self.dtype)
        x = x + F.linear(attended, block.out)
        h = F.rms_norm(x, shape, None, w.eps).to(self.dtype)
        gate, up = F.linear(h, block.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate).mul_(up), block.down)

    def step(self, tokens: Tensor, position: int, cache: Tensor, low: int, high: int) -> Tensor:
        """Return logits [R, high - low] float32 of ids low to high - 1 at the place after `position`.

        Args:
            tokens: The token at `position` of each row, [R] int64; position 0 is the prompt.
            position: Place of `tokens` in the sequence; all places before it are in the cache.
            cache: From `new_cache`; written in place.
            low: First id wanted.
            high: End of the ids wanted.
        """
        w = self.weights
        x = F.embedding(tokens, w.embedding)
        for number, block in enumerate(w.blocks):
            x = self._block(x, block, w.rotation[position], cache[number], position)
        h = F.rms_norm(x, x.shape[1:], None, w.eps).to(self.dtype)
        return F.linear(h, w.head[low:high]).float()

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits [R, S, vocabulary] float32 of whole sequences [R, S] (prompt first)."""
        return logits(self.weights, tokens).float()
