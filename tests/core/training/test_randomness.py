import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq_prior.core.training.randomness import batch_rows, keyed_generator, philox4x32, sample_uniforms

# kat_vectors of Random123, the reference implementation by the authors of Philox.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# Pinned: another number here would change every image that anyone has drawn with a seed.
GOLDEN = (
    [[6694888, 16311500, 326307], [8668437, 13270262, 12974611], [10174031, 7009114, 8056222]],
    [[8254681, 9610033, 11487745]],
)


def words(text):
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


def philox_in_python(counter, key):
    """Philox4x32-10 as Salmon et al. print it, in unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    assert philox4x32(words(counter)[None], words(key))[0].tolist() == words(expected).tolist()


def test_a_batch_of_counters_and_keys_gives_the_known_answers_together():
    counters = np.stack([words(counter) for counter, _, _ in KNOWN_ANSWERS])
    keys = np.stack([words(key) for _, key, _ in KNOWN_ANSWERS])
    expected = np.stack([words(answer) for _, _, answer in KNOWN_ANSWERS])
    assert (philox4x32(counters, keys) == expected).all()


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(1, 5))
def test_each_uniform_is_24_bits_of_philox_keyed_by_seed_index_and_position(seed, index, num_positions):
    drawn = sample_uniforms(seed, [index], num_positions)
    for position in range(num_positions):
        counter = [position, 0, index % 2**32, index >> 32]
        word = philox_in_python(counter, [seed % 2**32, seed >> 32])[0]
        assert drawn[0, position] == (word >> 8) / 2**24  # 24 bits are exact in float32


def test_the_uniforms_of_published_samples_never_change():
    drawn = sample_uniforms(0, [0, 1, 2**40], 3)
    assert drawn.dtype == np.float32
    assert (drawn * 2**24).astype(int).tolist() == GOLDEN[0]
    assert (sample_uniforms(1234567890123, [7], 3) * 2**24).astype(int).tolist() == GOLDEN[1]


def test_a_sample_does_not_depend_on_its_neighbours():
    together = sample_uniforms(5, [0, 1, 2, 3], 16)
    assert (sample_uniforms(5, [2], 16)[0] == together[2]).all()
    assert (sample_uniforms(5, [3, 0], 7) == together[[3, 0], :7]).all()


def test_uniforms_fill_the_unit_interval_evenly():
    drawn = sample_uniforms(3, range(1000), 100)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 170  # 99 degrees of freedom; both tails together are below 1e-4


def test_a_keyed_generator_is_a_function_of_its_three_keys():
    first = keyed_generator(0, 1, "noise").random(4)
    assert (keyed_generator(0, 1, "noise").random(4) == first).all()
    for other in [(1, 1, "noise"), (0, 2, "noise"), (0, 1, "labels"), (0, 11, "noise")]:
        assert (keyed_generator(*other).random(4) != first).all()


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation_of_all_rows(num_rows, batch_size, seed):
    num_steps = -(-3 * num_rows // batch_size)
    chain = np.concatenate([batch_rows(num_rows, batch_size, seed, step) for step in range(num_steps)])
    for epoch in range(3):
        rows = chain[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(rows.tolist()) == list(range(num_rows))


def test_a_batch_is_a_function_of_the_step_alone():
    in_order = [batch_rows(50, 8, 3, step) for step in range(30)]
    for step in (29, 3, 17, 0):
        assert (batch_rows(50, 8, 3, step) == in_order[step]).all()


def test_a_batch_that_the_caller_changes_does_not_change_later_ones():
    before = batch_rows(10, 4, 0, 0).copy()
    batch_rows(10, 4, 0, 0)[:] = -1
    assert (batch_rows(10, 4, 0, 0) == before).all()


def test_another_batch_size_reads_the_same_chain_of_rows():
    eights = np.concatenate([batch_rows(50, 8, 3, step) for step in range(5)])
    twenties = np.concatenate([batch_rows(50, 20, 3, step) for step in range(2)])
    assert (eights == twenties).all()


def test_epochs_and_seeds_differ_in_order():
    first = batch_rows(100, 100, 0, 0)
    assert (batch_rows(100, 100, 0, 1) != first).any()
    assert (batch_rows(100, 100, 1, 0) != first).any()
