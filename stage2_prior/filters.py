"""From logits to a token: filters, guidance along the positions, and the inverse of a cumulative distribution.

Letters: R rows of one call, T positions, K legal ids of a position.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_TEMPERATURE = 1e-30  # what is smaller takes the likeliest all the same; float32 holds 1e-38
BLOCK = 128


def filtered_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return the distribution that tokens are drawn from, [R, K] float32; rows need not sum to 1.

    In this order: divide by the temperature; keep the `top_k` likeliest (and what ties
    with the last of them); then the smallest set of the likeliest whose renormalised
    probability reaches `top_p` (Holtzman et al. 2020, eq. 2-3); then drop what is less likely than `min_p`
    times the likeliest (Nguyen et al. 2024, eq. 1-3). What is dropped has probability exactly 0.

    Args:
        logits: [R, K] float32, finite.
        temperature: Positive.
        top_k: Between 1 and any number; None is off.
        top_p: In (0, 1]; None is off.
        min_p: In [0, 1); None is off.
    """
    scaled = logits - logits.amax(dim=-1, keepdim=True)
    if temperature != 1:
        scaled.div_(max(temperature, SMALLEST_TEMPERATURE))
    if top_k is not None and top_k < logits.shape[-1]:
        scaled.masked_fill_(scaled < scaled.topk(top_k, dim=-1).values[:, -1:], -math.inf)
    weights = scaled.exp_()
    if top_p is not None and top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        reached = ordered.cumsum(dim=-1, dtype=torch.float64)
        dropped = reached - ordered >= top_p * reached[:, -1:]
        dropped[:, 0] = False
        weights = weights.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0)
    if min_p is not None and min_p > 0:
        weights = weights.masked_fill(weights < min_p, 0.0)  # the likeliest has weight exactly 1
    return weights


def guidance_at(num_tokens: int, *, guidance_scale: float, guidance_power: float | None) -> list[float]:
    """Return the guidance scale of each of T positions.

    Constant without a power. With power p, 1 + (scale - 1) (1 - cos(pi (t / T)^p)) / 2 at position t (Gao et al. 2023,
    "MDTv2", the power-cosine schedule; Yu et al. 2024, "RAR", for tokens): the first tokens, which
    choose what the image shows, are drawn almost freely.

    >>> [round(scale, 2) for scale in guidance_at(4, guidance_scale=3.0, guidance_power=1.0)]
    [1.0, 1.29, 2.0, 2.71]
    """
    if guidance_power is None:
        return [guidance_scale] * num_tokens
    share = (0.5 - 0.5 * math.cos(math.pi * (t / num_tokens) ** guidance_power) for t in range(num_tokens))
    return [1 + (guidance_scale - 1) * part for part in share]


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first id whose cumulative weight exceeds u times the total, [R] int64.

    In two steps, first among blocks of ids, then within one: running sums over all ids would take longer than
    everything else about a draw. An id of weight 0 is never returned, since its cumulative weight is that of the id
    before it.

    Args:
        weights: [R, K], at least 0, not all 0 in a row.
        uniforms: [R] in [0, 1).
    """
    blocks, ends = blocks_of(weights)
    wanted = uniforms.double()[:, None] * ends[:, -1:]
    # A row that is not finite would search beyond the end.
    block = torch.searchsorted(ends, wanted, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(-1)
    # The block's sum above and this one are rounded differently.
    rest = torch.minimum(wanted - before, inside[:, -1:].nextafter(torch.zeros_like(before)))
    return (block * BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0]


def blocks_of(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights in blocks of ids, [R, blocks, BLOCK], and the running sum at the end of each, [R, blocks]."""
    missing = -weights.shape[1] % BLOCK
    padded = F.pad(weights, (0, missing)) if missing else weights  # padding by nothing copies
    blocks = padded.unflatten(1, (-1, BLOCK))
    return blocks, blocks.sum(-1).double().cumsum(-1)
