"""The loop that fits a small classifier: for judges of samples, and for the features of a perceptual loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vq_prior.core.errors import NumericError


def fit_classifier(
    network: nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    peak: float,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Fit a network in place: AdamW, one cycle of the learning rate. One process, nothing to resume.

    Args:
        network: [B, C, *shape] to logits [B, K].
        batch: Gives for a step, from 0, its inputs and their classes [B] int64.
        steps: Optimiser steps.
        peak: Largest learning rate.
        progress: Called with 1 after each step.

    Raises:
        NumericError: If the loss is not finite.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for step in range(steps):
        inputs, wanted = batch(step)
        loss = F.cross_entropy(network(inputs), wanted)
        if not bool(loss.isfinite()):
            raise NumericError(f"the loss of a classifier is {float(loss)} at step {step}; use another --seed")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(1)
