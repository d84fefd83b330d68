"""The entropy term: every latent sure of its code, and all codes equally likely over the batch.

Jansen et al. 2020, "Coincidence, categorization, and consolidation"; Yu et al. 2023,
"Language model beats diffusion", eq. 4. Letters: D code dimension, K number of codes,
N vectors.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 1 << 20  # elements of one piece of the N x K table


Sums = Callable[[Tensor], Tensor]  # over the processes that share the batch


def entropy_term(conditional: Tensor, mean: Tensor, count: int, sums: Sums) -> Tensor:
    """Return the mean entropy of q(code | latent) minus the entropy of its mean over the batch, in nats.

    The batch is that of all processes: the second part is written as -sum m log M with m
    this process's mean and M everyone's, whose average over processes, and whose
    gradient, are those of the entropy of M.

    Args:
        conditional: Mean entropy of this process's `count` vectors, a scalar.
        mean: Their mean distribution, [..., K], each row summing to 1.
        count: N of this process.
        sums: Over the processes that share the batch.
    """
    shares = sums(torch.cat([(mean.detach() * count).reshape(-1), mean.new_tensor([float(count)])]))
    everyone = (shares[:-1] / shares[-1].clamp_min(1)).view_as(mean)
    return conditional + (mean * everyone.clamp_min(1e-12).log()).sum()


def codebook_entropy(vectors: Tensor, codebook: Tensor, temperature: float, sums: Sums) -> Tensor:
    """Return the entropy term of q(k | z) = softmax over k of -|z - e_k|^2 / temperature.

    The N x K table is made piece by piece, and again for the gradient. 0 for an empty batch.

    Args:
        vectors: Latents, [N, D].
        codebook: [K, D].
        temperature: Above 0.
        sums: Over the processes that share the batch.
    """
    N, K = vectors.shape[0], codebook.shape[0]
    rows = max(1, ROWS_AT_ONCE // K)
    entropy, total = vectors.new_zeros(()), codebook.new_zeros(K) + 0 * codebook.sum()
    for first in range(0, N, rows):
        part, shares = checkpoint(_piece, vectors[first : first + rows], codebook, temperature, use_reentrant=False)
        entropy, total = entropy + part, total + shares
    return entropy_term(entropy / max(1, N), total / max(1, N), N, sums)


def _piece(vectors: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores = (2 * vectors @ codebook.t() - codebook.square().sum(1)) / temperature
    log_q = F.log_softmax(scores, dim=1)
    q = log_q.exp()
    return -(q * log_q).sum(), q.sum(0)


def sign_entropy(z: Tensor, temperature: float, sums: Sums) -> Tensor:
    """Return the entropy term of codes that are D independent signs, with q(+1 | z) = sigmoid(4 z / temperature).

    That is the softmax of -|z - e|^2 / temperature over all K = 2^D sign vectors e, which is a
    product over axes: its mean over the batch is one matrix product of the distributions
    of the first and the last half of the signs, so no N x K table exists.

    Args:
        z: Latents, [N, D].
        temperature: Above 0.
        sums: Over the processes that share the batch.
    """
    N, D = z.shape
    if N == 0:
        return z.sum()
    logits = 4 * z / temperature
    p = torch.sigmoid(logits)
    conditional = F.binary_cross_entropy_with_logits(logits, p, reduction="sum") / N
    halves = [_joint(p[:, : D // 2]), _joint(p[:, D // 2 :])]
    return entropy_term(conditional, (halves[0].t() @ halves[1]).reshape(-1) / N, N, sums)


def _joint(p: Tensor) -> Tensor:
    """Return the distribution over all combinations of independent signs, [N, 2^d], from P(+1) [N, d]."""
    joint = p.new_ones((p.shape[0], 1))
    for axis in range(p.shape[1]):
        both = torch.stack([1 - p[:, axis], p[:, axis]], dim=1)
        joint = (joint[:, :, None] * both[:, None, :]).flatten(1)
    return joint
