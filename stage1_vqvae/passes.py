"""The passes of one step of the training of a codec: losses, gradients, what is told. Letters: B batch, C channels."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from stage1_vqvae.adversary import Measured
from stage1_vqvae.level_dropout import drawn_levels
from stage1_vqvae.losses import coarse_terms, even_rows, part_of_even, reconstruction_terms, weighted_sum
from stage1_vqvae.model import VQVAEOutput
from stage1_vqvae.run import Training
from vq_prior.core.processes.gradients import StepSums
from vq_prior.core.training.randomness import keyed_generator

LENGTHS = ("length_of_others", "length_of_adversary")


def passes(t: Training, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Do the passes of one step; every weight's gradient is that of the batch, at most the largest norm long.

    Args:
        t: The run.
        images: This process's share of the batch, [share, C, *shape] on its device.

    Returns:
        The unweighted terms of the losses; the loss, that of an adversary included; and the norm of the gradients. The
        same on every process.
    """
    s, B = t.settings, t.batch_size
    sums, first = StepSums(t.runtime, t.module), t.runtime.share(B).start
    pieces = t.runtime.pieces(B, s.gradient_accumulation_steps)
    seen = []  # by the adversary, after the codec
    for piece in pieces:
        noise = partial(_row_noise, s.seed, t.step, piece.start)
        t.model.quantizer.begin_step(progress=t.step / (s.steps or 1), noise=noise, sums=t.runtime.sum_over_piece)
        share, count = s.quantizer.level_dropout, len(t.model.quantizer.level_sizes)
        t.model.first_levels = drawn_levels(piece, count, share, seed=s.seed, step=t.step)
        part = (piece.stop - piece.start) / B
        if t.model.coarse_rows is not None:
            t.model.coarse_rows = even_rows(piece.start, piece.stop - piece.start)
        of_piece = images[piece.start - first : piece.stop - first]
        with sums.piece(last=piece is pieces[-1]):
            terms, output, lengths = losses(t, of_piece, piece.start)
            loss = weighted_sum(terms, t.weights) * part
            sums.backward(loss, {name: term * part for name, term in terms.items()} | {"loss": loss} | lengths)
        t.window.counts.add(output.codes)
        if t.adversary is not None and t.adversary.learns(t.progress):
            seen.append((of_piece, output.images.detach(), part))
    numbers = sums.finish()
    total = numbers.pop("loss")
    norm = nn.utils.clip_grad_norm_(t.model.parameters(), s.max_gradient_norm)
    if lengths:
        assert t.adversary is not None
        t.adversary.note_lengths(*(float(numbers.pop(name)) for name in LENGTHS))
    if seen:
        assert t.adversary is not None
        measured, its_loss = t.adversary.passes(seen, s.max_gradient_norm)
        numbers |= measured
        total, norm = total + its_loss, norm + measured[f"{t.adversary.name}_gradient_norm"]
    return numbers, total, norm


def losses(t: Training, images: Tensor, first: int) -> tuple[dict[str, Tensor], VQVAEOutput, dict[str, Tensor]]:
    """Return the unweighted terms of the loss, and what the codec made of images from place `first` of the batch on.

    Beside them, where an adversary's pull is balanced, what the backward pass will fill in: the squared lengths, at
    the reconstructions, of the gradients of its terms and of all others.
    """
    with t.runtime.autocast():
        output: VQVAEOutput = t.module(images)
    kind, copies, lengths = t.settings.loss.reconstruction, output.images, dict[str, Tensor]()
    for_adversary = copies
    joining = t.adversary if t.adversary is not None and t.adversary.joins(t.progress) else None
    if joining is not None and joining.network.pull is not None:
        others, own = (torch.zeros((), device=copies.device) for _ in LENGTHS)
        lengths = dict(zip(LENGTHS, (others, own), strict=True))
        for_adversary = Measured.apply(copies, joining.factor(t.progress), own)
        copies = Measured.apply(copies, 1.0, others)
    terms = reconstruction_terms(images, copies, kind=kind) | output.loss
    terms |= coarse_terms(images, output.coarse, t.model.coarse_rows, kind=kind, first=first)
    if (perceptual := t.perceptual_now()) is not None:
        some = even_rows(first, len(images))  # half of its cost
        with t.runtime.autocast():
            distance = perceptual(images[some], copies[some]).float()
        terms["perceptual"] = distance * part_of_even(first, len(images))
    if joining is not None:
        with joining.frozen() as adversary, t.runtime.autocast():
            terms |= {name: term.float() for name, term in adversary.judged(images, for_adversary).items()}
    return terms, output, lengths


def _row_noise(seed: int, step: int, first: int, row: int) -> np.random.Generator:
    """Return the generator of row `row` of a piece that begins at row `first` of the global batch."""
    return keyed_generator(seed, step, f"quantizer noise {first + row}")
