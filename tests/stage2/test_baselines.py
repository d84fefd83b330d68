"""Baselines against plain counting."""

from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from stage2_prior.baselines import bits_per_dimension, measure_baselines
from stage2_prior.conditions import Conditioned
from stage2_prior.layout import SequenceLayout
from stage2_prior.sequences import Sequences, drop_tokens
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.spec import CodeSpec, LevelSpec


def counted(train: list[list[int]], held_out: list[list[int]], sizes: list[range]) -> tuple[float, float, float]:
    """Return the three baselines by counting; sequences hold their prompt first, `sizes` is the ids of each position"""
    singles = Counter(token for row in train for token in row[1:])
    pairs = Counter((a, b) for row in train for a, b in pairwise(row))
    uniform, unigram, previous = [], [], []
    for row in held_out:
        for t, (a, b) in enumerate(pairwise(row)):
            p1 = (singles[b] + 1) / sum(singles[c] + 1 for c in sizes[t])
            followers = [count for (first, _), count in pairs.items() if first == a]
            p2 = (pairs[a, b] + len(followers) * p1) / (sum(followers) + len(followers)) if followers else p1
            uniform.append(log(len(sizes[t])))
            unigram.append(-log(p1))
            previous.append(-log(p2))
    return float(np.mean(uniform)), float(np.mean(unigram)), float(np.mean(previous))


def test_baselines_equal_plain_counting() -> None:
    generator = np.random.default_rng(0)
    layout = SequenceLayout((LevelSpec((2,), 5), LevelSpec((2, 2)[:1], 9)), 3)

    def draw(rows: int, classes: int) -> Sequences:
        grids = tuple(generator.integers(0, k, (rows, 2)).astype(np.uint8) for k in (4, 9))
        return Sequences(layout, grids, generator.integers(0, classes, rows))

    train, held_out = draw(30, 2), draw(20, 3)  # class 2 and code 4 are never seen in training

    def rows(sequences: Sequences) -> list[list[int]]:
        tokens, labels = sequences.batch(slice(None))
        return torch.cat([layout.prompt(labels)[:, None], tokens], 1).tolist()

    measured = measure_baselines(train, held_out)
    expected = counted(rows(train), rows(held_out), [range(5)] * 2 + [range(5, 14)] * 2)
    assert (measured.uniform, measured.unigram, measured.previous_token) == pytest.approx(expected, rel=1e-12)


def test_bits_per_dimension_count_every_value_of_the_data() -> None:
    spec = CodeSpec(3, (8, 8), (LevelSpec((4, 4), 256),))
    assert bits_per_dimension(log(256), spec) == pytest.approx(16 * 8 / 192)


def test_rows_come_back_as_tokens(code_store: Path) -> None:
    store = CodeStore.open(code_store, "validation")
    layout = SequenceLayout.from_spec(store.spec, 3)
    sequences = Sequences.read(store, layout)
    tokens, labels = sequences.batch(np.array([3, 1]))
    raw = store.rows([3, 1])
    assert torch.equal(tokens, torch.from_numpy(raw["codes.0"].reshape(2, 6).astype(np.int64)))
    assert labels.tolist() == raw["label"].tolist()
    assert len(Sequences.read(store, layout, max_rows=4)) == 4


def test_dropouts_are_functions_of_seed_and_step() -> None:
    layout = SequenceLayout((LevelSpec((20,), 12),), 3)
    labels = torch.arange(5000) % 3
    dropped = Conditioned(labels).dropped(layout, rate=0.1, seed=1, step=2).labels
    assert torch.equal(dropped, Conditioned(labels).dropped(layout, rate=0.1, seed=1, step=2).labels)
    assert not torch.equal(dropped, Conditioned(labels).dropped(layout, rate=0.1, seed=1, step=3).labels)
    share = float((dropped == layout.null_label).float().mean())
    assert abs(share - 0.1) < 0.02  # five standard deviations of 5,000 coin flips
    assert torch.equal(dropped[dropped != 3], labels[dropped != 3])

    inputs = torch.cat([layout.prompt(labels)[:, None], torch.randint(12, (5000, 19))], 1)
    noisy = drop_tokens(inputs, layout, rate=0.2, seed=1, step=2)
    assert torch.equal(noisy[:, 0], inputs[:, 0])
    changed = noisy != inputs
    assert (noisy[changed] == layout.null_token).all()
    assert abs(float(changed[:, 1:].float().mean()) - 0.2) < 0.01
    assert torch.equal(drop_tokens(inputs, layout, rate=0.0, seed=1, step=2), inputs)
