"""What a prior must beat: nats per token of three distributions that need no network.

Letters: n rows, T tokens of a sequence, K codes of all levels together.
"""

from dataclasses import dataclass
from math import log, prod

import numpy as np
from numpy.typing import NDArray

from stage2_prior.layout import SequenceLayout
from stage2_prior.sequences import Sequences
from vq_prior.core.spec import CodeSpec

MAX_COUNTED_TOKENS = 20_000_000


@dataclass(frozen=True)
class Baselines:
    """Mean nats per token of the held-out rows; the prompt and levels that are given are not counted.

    Attributes:
        uniform: Every legal code alike.
        unigram: Frequency of each code in the training rows, add-one smoothed (Laplace).
        previous_token: Frequency given the token before (the prompt, for the first), smoothed
            towards the unigram (Witten and Bell 1991, method C).
    """

    uniform: float
    unigram: float
    previous_token: float


def bits_per_dimension(nats_per_token: float, spec: CodeSpec, num_drawn: int | None = None) -> float:
    """Return the bits the codes of one item take under the prior, per value of the data.

    Total nats of a sequence / ln 2 / (channels * product of the shape). These are bits of the
    codes: a bound on nothing but them, and no likelihood of pixels, since the codec loses information.

    Args:
        nats_per_token: Mean over the tokens that the prior draws.
        spec: Shapes of the data and the codes.
        num_drawn: Tokens that the prior draws, where some are given; None is all of them.
    """
    num_tokens = spec.num_tokens if num_drawn is None else num_drawn
    return nats_per_token * num_tokens / log(2) / (spec.channels * prod(spec.shape))


def unigram_probabilities(layout: SequenceLayout, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the add-one smoothed frequency of every code token among those of its level, [K] float64."""
    counts = np.bincount(tokens.ravel(), minlength=layout.num_codes).astype(np.float64) + 1
    for level in layout.levels_at():
        counts[level.low : level.high] /= counts[level.low : level.high].sum()
    return counts


def previous_token_nats(
    unigram: NDArray[np.float64], train: NDArray[np.int64], held_out: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return nats of each held-out token given the one before it, [n, T].

    p(b | a) = (count(a, b) + kinds(a) * unigram(b)) / (count(a) + kinds(a)), where kinds(a) is the
    number of different tokens seen after a; a token never seen as predecessor leaves the unigram.

    Args:
        unigram: [K].
        train: Sequences with their prompts, [n, 1 + T].
        held_out: The same, of the held-out rows.
    """
    size = int(max(train.max(), held_out.max())) + 1
    pairs, counts = np.unique(train[:, :-1] * size + train[:, 1:], return_counts=True)
    kinds = np.bincount(pairs // size, minlength=size)
    totals = np.bincount(pairs // size, weights=counts, minlength=size)
    before, wanted = held_out[:, :-1], held_out[:, 1:]
    asked = before * size + wanted
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[place] == asked, counts[place], 0)
    kinds, totals = np.maximum(kinds, totals == 0), np.asarray(totals)  # an unseen predecessor: all unigram
    result: NDArray[np.float64] = -np.log((seen + kinds[before] * unigram[wanted]) / (totals[before] + kinds[before]))
    return result


def _with_prompt(sequences: Sequences, rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
    tokens, labels = sequences.batch(rows)
    prompts = sequences.layout.prompt(labels).numpy()
    joined: NDArray[np.int64] = np.concatenate([prompts[:, None], tokens.numpy()], axis=1)
    return joined


def measure_baselines(train: Sequences, held_out: Sequences) -> Baselines:
    """Return the baselines; of very large training sets an evenly spread part is counted (20 million tokens)."""
    layout = train.layout
    count = min(len(train), max(1, MAX_COUNTED_TOKENS // layout.num_tokens))
    seen = _with_prompt(train, np.arange(count, dtype=np.int64) * len(train) // count)
    asked = _with_prompt(held_out, slice(None))
    unigram = unigram_probabilities(layout, seen[:, 1:])
    drawn = layout.drawn_positions
    numbers = [n for n in range(len(layout.levels)) if n not in layout.given_levels]
    total = sum(layout.levels[n].num_tokens * log(layout.level_sizes[n]) for n in numbers)
    return Baselines(
        uniform=total / layout.num_drawn,
        unigram=float(-np.log(unigram[asked[:, 1:][:, drawn]]).mean()),
        previous_token=float(previous_token_nats(unigram, seen, asked)[:, drawn].mean()),
    )
