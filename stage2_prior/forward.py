"""The forward pass over whole sequences, of the weights of a stock Qwen3 or Llama model and faster than the stock code.

Queries, keys and values come from one product, gate and up projection from another. The weights of the norms before
them are multiplied into these matrices, and the channels of a head are put in pairs, so that the rotary positions
(Su et al. 2021, "RoFormer", eq. 34) are one complex product. What goes around the products is written with its own
backward pass: left to autograd, it takes as long as they do. The logits are those of the stock pass up to rounding.

Letters: R rows, S positions, D width, H query heads, G key-value heads, d head width, V vocabulary; with a head over
depth N cells of C tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage2_prior.conditions import prompt_vectors
from stage2_prior.layout import LevelPlaces
from vq_prior.core.fast.products import linear


@dataclass(frozen=True)
class Block:
    """The matrices of one block.

    Attributes:
        qkv: [(H + 2 G) d, D].
        qk_norm: Weights of the norms of queries and keys (Henry et al. 2020), [H + G, d]; None without them.
        out: [D, H d].
        gate_up: [2 M, D].
        down: [D, M].
    """

    qkv: Tensor
    qk_norm: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Depth:
    """The last blocks of a model as a head over the tokens of a cell (Lee et al. 2022, section 3.2).

    The blocks before them see a vector a cell, the sum of its tokens' embeddings; what they say of the next cell is
    read by the last ones, with the sum of what is known of that cell added, a place a token. Both are turned by their
    place in the cell (`turned`).

    Attributes:
        blocks: How many of the blocks, the last ones.
        tokens: C, tokens of a cell.
    """

    blocks: int
    tokens: int


def depth_of(config: Any) -> Depth | None:
    """Return the head over depth that a model's config asks for, None without one."""
    blocks = getattr(config, "depth_blocks", 0)
    return Depth(blocks, config.cell_tokens) if blocks else None


@dataclass(frozen=True)
class Packed:
    """The weights of a model, packed; a function of the stock ones through which gradients flow.

    Attributes:
        embedding: [V, D].
        blocks: One for each layer.
        head: [V, D].
        rotation: Unit numbers of the rotary positions, [positions, d / 2] complex64.
        num_heads: H.
        num_groups: G.
        eps: Added to the mean squares in norms.
        depth: What reads the tokens of a cell one after another; None where each token is a position of its own.
    """

    embedding: Tensor
    blocks: tuple[Block, ...]
    head: Tensor
    rotation: Tensor
    num_heads: int
    num_groups: int
    eps: float
    depth: Depth | None

    @property
    def head_dim(self) -> int:
        """Width d of a head."""
        return 2 * self.rotation.shape[1]


def pack(model: nn.Module, dtype: torch.dtype = torch.float32) -> Packed:
    """Return the packed weights of a stock model, the matrices in `dtype`; adapters (LoRA) are added to them."""
    w = _pack_ends(model, dtype)
    layers: Any = model.model.layers  # type: ignore[union-attr]
    return replace(w, blocks=tuple(_pack_block(layer, w, dtype) for layer in layers))


def _pack_ends(model: nn.Module, dtype: torch.dtype) -> Packed:
    """Return what is packed but the blocks."""
    config: Any = model.config
    body: Any = model.model
    H, G = config.num_attention_heads, config.num_key_value_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // H
    head = model.get_output_embeddings().weight * body.norm.weight  # type: ignore[operator]
    rotation = _rotation(config.max_position_embeddings, d, config.rope_parameters["rope_theta"], head.device)
    ends = (body.embed_tokens.weight, (), head.to(dtype), rotation)
    return Packed(*ends, H, G, config.rms_norm_eps, depth_of(config))


def _pack_block(layer: Any, w: Packed, dtype: torch.dtype) -> Block:
    a, m = layer.self_attn, layer.mlp
    H, G, d = w.num_heads, w.num_groups, w.head_dim
    q, k = (_in_pairs(_matrix(projection), d) for projection in (a.q_proj, a.k_proj))
    qkv = torch.cat([q, k, _matrix(a.v_proj)]) * layer.input_layernorm.weight
    gate_up = torch.cat([_matrix(m.gate_proj), _matrix(m.up_proj)]) * layer.post_attention_layernorm.weight
    norms = None
    if hasattr(a, "q_norm"):
        q, k = (_in_pairs(norm.weight, d) for norm in (a.q_norm, a.k_norm))
        norms = torch.cat([q.expand(H, d), k.expand(G, d)])
    qkv, out, gate_up, down = (w.to(dtype) for w in (qkv, _matrix(a.o_proj), gate_up, _matrix(m.down_proj)))
    return Block(qkv, norms, out, gate_up, down)


def _matrix(layer: Any) -> Tensor:
    """Return the weight of a linear layer, with its adapters added."""
    weight: Tensor = layer.weight
    for adapter in getattr(layer, "active_adapters", ()):
        weight = weight + layer.get_delta_weight(adapter)
    return weight


def _in_pairs(weight: Tensor, d: int) -> Tensor:
    """Return the rows of each head so that what the stock model rotates together, rows i and i + d / 2, is adjacent."""
    return weight.unflatten(0, (-1, 2, d // 2)).transpose(1, 2).reshape(weight.shape)


def _rotation(positions: int, d: int, theta: float, device: torch.device) -> Tensor:
    frequencies = 1.0 / (theta ** (torch.arange(0, d, 2, dtype=torch.float32, device=device) / d))
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Return float32 x [..., d], each pair of channels multiplied, as a complex number, by `rotation` [..., d/2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(-2)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """Return vectors x [..., C, D], each piece of a head's width turned as a query at that place of a cell would be.

    So a sum of a cell's tokens keeps which of them stood where: cells of a finer grid share their ids.
    """
    return rotate(x.unflatten(-1, (-1, 2 * rotation.shape[-1])), rotation[:, None]).flatten(-2)


def normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square along the last axis (Zhang and Sennrich 2019, eq. 4), and 1 over that root."""
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * inverse, inverse


def _normalised_backward(grad: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of x from that of y = x * inverse: (grad - y mean(grad y)) * inverse."""
    along = (grad * y).mean(-1, keepdim=True).neg_()
    return torch.addcmul(grad, y, along).mul_(inverse)


class _RMSNorm(torch.autograd.Function):
    """x [..., D] -> x over its root mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, inverse = normalised(x, eps)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        return _normalised_backward(grad, y, inverse), None


class _NormAndRotate(torch.autograd.Function):
    """Queries and keys [R, S, H + G, d] -> the same over their root mean square, times the norm's weights, rotated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> Tensor:
        y, inverse = normalised(x, eps)
        ctx.save_for_backward(y, inverse, weight, rotation)
        return rotate(y * weight, rotation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y, inverse, weight, rotation = ctx.saved_tensors
        grad = rotate(grad.contiguous(), rotation.conj())
        weight_grad = (grad * y).sum((0, 1))
        return _normalised_backward(grad.mul_(weight), y, inverse), weight_grad, None, None


class _Gated(torch.autograd.Function):
    """Gate and up projection [..., 2 M] -> silu(gate) * up, [..., M] (Shazeer 2020, eq. 6)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        open_gate = F.silu(gate)
        ctx.save_for_backward(gate_up, open_gate)
        return open_gate * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, open_gate = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        gate_grad, up_grad = result.chunk(2, dim=-1)
        torch.mul(grad, open_gate, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        return result


def _block_output(x: Tensor, block: Block, w: Packed) -> Tensor:
    R, S, _ = x.shape
    H, G, d = w.num_heads, w.num_groups, w.head_dim
    qkv = linear(_RMSNorm.apply(x, w.eps).to(block.qkv.dtype), block.qkv).view(R, S, H + 2 * G, d)
    qk, v = qkv.split([H + G, G], dim=2)
    qk, rotation = qk.float(), w.rotation[:S, None]
    qk = rotate(qk, rotation) if block.qk_norm is None else _NormAndRotate.apply(qk, block.qk_norm, rotation, w.eps)
    # On a CPU the fused kernel takes longer in bfloat16 than in float32.
    dtype = torch.float32 if x.device.type == "cpu" else block.qkv.dtype
    q, k, v = (part.transpose(1, 2).to(dtype) for part in (*qk.split([H, G], dim=2), v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)
    x = x + linear(attended.transpose(1, 2).reshape(R, S, H * d).to(block.out.dtype), block.out)
    gated = _Gated.apply(linear(_RMSNorm.apply(x, w.eps).to(block.gate_up.dtype), block.gate_up))
    return x + linear(gated, block.down)


class _Layer(nn.Module):
    """One block of the stock model as training runs it; what FSDP2 gathers and lets go of at a time."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor, w: Packed) -> Tensor:
        """Return what the block makes of x [R, S, D]."""
        return _block_output(x, _pack_block(self.layer, w, self.dtype), w)


class SequenceModel(nn.Module):
    """A stock model as training runs it, and what parallelism wraps: tokens [R, S] -> logits [R, S, V].

    With levels, of which there are several, it gives the logits of each, [R, cells, K], of the ids legal there: most of
    what the others would take is spared.

    Attributes:
        stock: The model; the parameters are its own.
        layers: Its blocks.
        dtype: Of the matrices and the products.
        levels: Where the codes of each level stand; None for logits of all ids everywhere.
        checkpointing: Whether each block is computed again for its backward pass, instead of kept (Chen et al. 2016).
    """

    def __init__(
        self,
        stock: nn.Module,
        dtype: torch.dtype,
        levels: Sequence[LevelPlaces] | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stock, self.dtype, self.checkpointing = stock, dtype, checkpointing
        self.levels = levels if levels is not None and len(levels) > 1 else None
        layers: Any = stock.model.layers  # type: ignore[union-attr]
        self.layers = nn.ModuleList(_Layer(layer, dtype) for layer in layers)

    def forward(self, tokens: Tensor, columns: Mapping[str, Tensor] | None = None) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of whole sequences, prompt first; `columns` are conditions beside the class, by name."""
        w, again = _pack_ends(self.stock, self.dtype), self.checkpointing and torch.is_grad_enabled()
        vectors = prompt_vectors(self.stock, columns or {}, len(tokens))

        def block(layer: nn.Module, x: Tensor) -> Tensor:
            made: Tensor = checkpoint(layer, x, w, use_reentrant=False) if again else layer(x, w)
            return made

        x = _answers_of(w, tokens, vectors, [partial(block, layer) for layer in self.layers])
        if self.levels is None:
            return linear(x, w.head)
        return tuple(linear(x[:, each.positions], w.head[each.low : each.high]) for each in self.levels)


def _embedded(x: Tensor, vectors: Tensor | None) -> Tensor:
    """Return what the blocks read: x [R, S, D], and vectors [R, P, D] of the prompt behind the first of them."""
    return x if vectors is None else torch.cat([x[:, :1], vectors, x[:, 1:]], dim=1)


def _answers(x: Tensor, vectors: Tensor | None) -> Tensor:
    """Return the places that say what comes next: all but those of the prompt before its last."""
    return x if vectors is None else x[:, vectors.shape[1] :]


def logits(w: Packed, tokens: Tensor, vectors: Tensor | None = None) -> Tensor:
    """Return logits [R, S, V], in the dtype of the matrices, of whole sequences [R, S] (prompt first).

    Args:
        w: The weights.
        tokens: [R, S].
        vectors: What stands in the prompt behind its token, [R, P, D]; None for nothing.
    """
    blocks = [partial(_block_output, block=block, w=w) for block in w.blocks]
    return linear(_answers_of(w, tokens, vectors, blocks), w.head)


def _answers_of(
    w: Packed, tokens: Tensor, vectors: Tensor | None, blocks: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return what the output layer reads at each token, [R, S, D] in the dtype of the matrices."""
    if w.depth is not None:
        x = _by_cell(w, w.depth, tokens, vectors, blocks)
    else:
        x = _embedded(F.embedding(tokens, w.embedding), vectors)
        for block in blocks:
            x = block(x)
        x = _answers(x, vectors)
    return _RMSNorm.apply(x, w.eps).to(w.head.dtype)


def _by_cell(
    w: Packed, depth: Depth, tokens: Tensor, vectors: Tensor | None, blocks: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return what the blocks make of whole sequences of cells, S = N C: the prompt and all tokens but the last."""
    (R, S), C = tokens.shape, depth.tokens
    x = F.embedding(tokens, w.embedding)
    places = w.rotation[:C]
    cells = turned(F.pad(x[:, 1:], (0, 0, 0, 1)).view(R, S // C, C, -1), places)  # nothing follows the last token
    h = _embedded(torch.cat([x[:, :1], cells[:, :-1].sum(2)], dim=1), vectors)
    for block in blocks[: -depth.blocks]:
        h = block(h)
    known = F.pad(cells[:, :, :-1].cumsum(2), (0, 0, 1, 0))  # of a cell, before each of its tokens
    said = _answers(h, vectors)[:, :, None].expand(-1, -1, C, -1)
    y = (turned(said, places) + known).flatten(0, 1)
    for block in blocks[-depth.blocks :]:
        y = block(y)
    return y.view(R, S, -1)
