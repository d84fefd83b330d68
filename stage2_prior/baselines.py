"""What a prior must beat: nats per token of three distributions that need no network.

Letters: n rows, T tokens of a sequence, K codes of all levels together.
"""

from dataclasses import dataclass
from math import log, prod
from typing import Any

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
        levels: The same of each level, where there are several.
    """

    uniform: float
    unigram: float
    previous_token: float
    levels: "tuple[LevelBaselines, ...]" = ()


@dataclass(frozen=True)
class LevelBaselines:
    """Mean nats per token of one level's codes in the held-out rows.

    Attributes:
        unigram, previous_token: As of all levels.
        level_above: Frequency given the code of the level above at the same place, smoothed as `previous_token`; None
            for the first level.
    """

    unigram: float
    previous_token: float
    level_above: float | None


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

    Args:
        unigram: [K].
        train: Sequences with their prompts, [n, 1 + T].
        held_out: The same, of the held-out rows.
    """
    return pair_nats(unigram, (train[:, :-1], train[:, 1:]), (held_out[:, :-1], held_out[:, 1:]))


def pair_nats(
    unigram: NDArray[np.float64],
    train: tuple[NDArray[np.int64], NDArray[np.int64]],
    held_out: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.float64]:
    """Return nats of each held-out token given another one, [n, T].

    p(b | a) = (count(a, b) + kinds(a) * unigram(b)) / (count(a) + kinds(a)), where kinds(a) is the
    number of different tokens seen with a; a token never seen in that place leaves the unigram.

    Args:
        unigram: [K].
        train: The tokens a and b of each pair, [n, T] each.
        held_out: The same, of the held-out rows.
    """
    size = int(max(*(part.max() for part in train), *(part.max() for part in held_out))) + 1
    pairs, counts = np.unique(train[0] * size + train[1], return_counts=True)
    kinds = np.bincount(pairs // size, minlength=size)
    totals = np.bincount(pairs // size, weights=counts, minlength=size)
    before, wanted = held_out
    queries = before * size + wanted
    place = np.minimum(np.searchsorted(pairs, queries), len(pairs) - 1)
    seen = np.where(pairs[place] == queries, counts[place], 0)
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
    measured = _with_prompt(held_out, slice(None))
    unigram = unigram_probabilities(layout, seen[:, 1:])
    drawn = layout.drawn_positions
    numbers = [n for n in range(len(layout.levels)) if n not in layout.given_levels]
    total = sum(layout.levels[n].num_tokens * log(layout.level_sizes[n]) for n in numbers)
    previous = previous_token_nats(unigram, seen, measured)
    return Baselines(
        uniform=total / layout.num_drawn,
        unigram=float(-np.log(unigram[measured[:, 1:][:, drawn]]).mean()),
        previous_token=float(previous[:, drawn].mean()),
        levels=_of_levels(layout, unigram, seen[:, 1:], measured[:, 1:], previous) if len(layout.levels) > 1 else (),
    )


def _of_levels(
    layout: SequenceLayout,
    unigram: NDArray[np.float64],
    seen: NDArray[np.int64],
    measured: NDArray[np.int64],
    previous: NDArray[np.float64],
) -> tuple[LevelBaselines, ...]:
    """Return the baselines of each level from the tokens of training and held-out rows, [n, T] without prompts."""
    levels = []
    cells = [np.arange(layout.num_tokens)[_index(level.positions)] for level in layout.levels_at()]
    for number, own in enumerate(cells):
        above = None
        if number:
            parent = cells[number - 1][_above(layout.levels[number - 1].grid, layout.levels[number].grid)]
            pairs = ((rows[:, parent], rows[:, own]) for rows in (seen, measured))
            above = float(pair_nats(unigram, *pairs).mean())
        own_unigram = float(-np.log(unigram[measured[:, own]]).mean())
        levels.append(LevelBaselines(own_unigram, float(previous[:, own].mean()), above))
    return tuple(levels)


def _index(positions: Any) -> Any:
    return positions if isinstance(positions, slice) else positions.numpy()


def _above(coarse: tuple[int, ...], fine: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the raster place, in a coarser grid, of the cell in which the middle of each cell of a finer one lies."""
    axes = np.indices(fine).reshape(len(fine), -1)
    places = [(2 * axis + 1) * few // (2 * many) for axis, few, many in zip(axes, coarse, fine, strict=True)]
    return np.ravel_multi_index(places, coarse)
