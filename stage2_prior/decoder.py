"""A decoder of our own over the stock weights, for sampling.

Queries, keys and values come from one product, gate and up projection from
another, and the key-value cache is written in place and read up to the length so
far. The logits are those of the stock forward pass up to rounding.

Letters: R rows, S new positions, D width, H query heads, G key-value heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Block:
    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


def _swap_halves(x: Tensor) -> Tensor:
    """Return the last axis with its two halves exchanged."""
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], x[..., :half]), dim=-1)


class Decoder:
    """The fused weights of a stock Qwen3 or Llama model; a copy, so build a new one after the weights changed.

    Rotary positions (Su et al. 2021, "RoFormer", eq. 34, in the half-split form) and the
    weights of the query and key norms (Henry et al. 2020) enter as two tables:
    rope(w * x) = x * (w * cos) + swap(x) * (swap(w) * signed sin).
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self.num_heads: int = config.num_attention_heads
        self.num_groups: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.eps: float = config.rms_norm_eps
        self.max_length: int = config.max_position_embeddings
        # Adapters keep their weights beside the layer's own, which is all that is read below.
        assert not any("lora_" in name for name, _ in model.named_parameters()), "merge the adapters first"
        body: Any = model.model
        layers = list(body.layers)
        self.has_qk_norm = hasattr(layers[0].self_attn, "q_norm")
        with torch.no_grad():
            self.embedding: Tensor = body.embed_tokens.weight.detach()
            self.final_norm: Tensor = body.norm.weight.detach()
            self.head: Tensor = model.get_output_embeddings().weight.detach()  # type: ignore[operator]
            self.blocks = [self._fuse(layer) for layer in layers]
            self._cos, self._sin = self._rotary_tables(layers, config)

    @staticmethod
    def _fuse(layer: Any) -> _Block:
        a, m = layer.self_attn, layer.mlp
        return _Block(
            layer.input_layernorm.weight.detach(),
            torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).detach(),
            a.o_proj.weight.detach(),
            layer.post_attention_layernorm.weight.detach(),
            torch.cat([m.gate_proj.weight, m.up_proj.weight]).detach(),
            m.down_proj.weight.detach(),
        )

    def _rotary_tables(self, layers: list[Any], config: Any) -> tuple[Tensor, Tensor]:
        """Return cos and sin tables [positions, d] and keep the norm weights of each layer, [H + G, d]."""
        device, d = self.embedding.device, self.head_dim
        theta = config.rope_parameters["rope_theta"]
        frequencies = 1.0 / (theta ** (torch.arange(0, d, 2, dtype=torch.float32, device=device) / d))
        angles = torch.arange(self.max_length, dtype=torch.float32, device=device)[:, None] * frequencies
        cos = torch.cat([angles.cos(), angles.cos()], dim=-1)
        sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        weights = torch.ones((len(layers), self.num_heads + self.num_groups, d), device=device)
        if self.has_qk_norm:
            for number, layer in enumerate(layers):
                weights[number, : self.num_heads] = layer.self_attn.q_norm.weight.detach().float()
                weights[number, self.num_heads :] = layer.self_attn.k_norm.weight.detach().float()
        self._norm_weights, self._swapped_weights = weights, _swap_halves(weights)
        return cos, sin

    def new_cache(self, rows: int) -> Tensor:
        """Return an empty key-value cache, [layers, 2, rows, G, positions, d]."""
        shape = (len(self.blocks), 2, rows, self.num_groups, self.max_length, self.head_dim)
        return torch.zeros(shape, dtype=self.embedding.dtype, device=self.embedding.device)

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
        G = self.num_groups
        cache[0, :, :, position] = k
        cache[1, :, :, position] = v
        keys, values = cache[:, :, :, : position + 1].reshape(2, R * G, position + 1, d)
        # The queries that share a key-value head stand where a sequence would: no head is copied.
        scores = torch.bmm(q.reshape(R * G, H // G, d), keys.transpose(1, 2)).mul_(d**-0.5)
        return torch.bmm(scores.softmax(dim=-1), values).view(R, H * d)

    def step(self, tokens: Tensor, position: int, cache: Tensor, low: int, high: int) -> Tensor:
        """Return logits [R, high - low] of ids low to high - 1 at the place after `position`.

        Args:
            tokens: The token at `position` of each row, [R] int64; position 0 is the prompt.
            position: Place of `tokens` in the sequence; all places before it are in the cache.
            cache: From `new_cache`; written in place.
            low: First id wanted.
            high: End of the ids wanted.
        """
        R, H, G, d = tokens.shape[0], self.num_heads, self.num_groups, self.head_dim
        cos = (self._norm_weights * self._cos[position]).to(self.embedding.dtype)
        sin = (self._swapped_weights * self._sin[position]).to(self.embedding.dtype)
        x = F.embedding(tokens, self.embedding)
        shape = (x.shape[-1],)
        for number, block in enumerate(self.blocks):
            h = F.rms_norm(x, shape, block.input_norm, self.eps)
            qkv = F.linear(h, block.qkv).view(R, H + 2 * G, d)
            qk = qkv[:, : H + G]
            if self.has_qk_norm:
                qk = F.rms_norm(qk, (d,), None, self.eps)
            qk = torch.addcmul(qk * cos[number], _swap_halves(qk), sin[number])
            attended = self.attend(qk[:, :H], qk[:, H:], qkv[:, H + G :], cache[number], position)
            x = x + F.linear(attended, block.out)
            h = F.rms_norm(x, shape, block.post_norm, self.eps)
            gate, up = F.linear(h, block.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate).mul_(up), block.down)
        return F.linear(F.rms_norm(x, shape, self.final_norm, self.eps), self.head[low:high]).float()

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the hidden states after the final norm, [R, S, D], of whole sequences [R, S] (prompt first)."""
        R, S = tokens.shape
        H, G, d = self.num_heads, self.num_groups, self.head_dim
        x = F.embedding(tokens, self.embedding)
        shape = (x.shape[-1],)
        for number, block in enumerate(self.blocks):
            h = F.rms_norm(x, shape, block.input_norm, self.eps)
            qkv = F.linear(h, block.qkv).view(R, S, H + 2 * G, d)
            qk = qkv[:, :, : H + G]
            if self.has_qk_norm:
                qk = F.rms_norm(qk, (d,), None, self.eps)
            cos = (self._norm_weights[number] * self._cos[:S, None]).to(x.dtype)
            sin = (self._swapped_weights[number] * self._sin[:S, None]).to(x.dtype)
            qk = torch.addcmul(qk * cos, _swap_halves(qk), sin)
            q, k, v = (part.transpose(1, 2) for part in (qk[:, :, :H], qk[:, :, H:], qkv[:, :, H + G :]))
            repeat = H // G
            k, v = (part.repeat_interleave(repeat, dim=1) if repeat > 1 else part for part in (k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(attended.transpose(1, 2).reshape(R, S, H * d), block.out)
            h = F.rms_norm(x, shape, block.post_norm, self.eps)
            gate, up = F.linear(h, block.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate).mul_(up), block.down)
        return F.rms_norm(x, shape, self.final_norm, self.eps)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits [R, S, vocabulary] float32 of whole sequences [R, S] (prompt first)."""
        return F.linear(self.hidden(tokens), self.head).float()
