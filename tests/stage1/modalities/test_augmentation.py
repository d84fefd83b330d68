"""Shifting and mirroring training images, against a loop over pixels."""

import numpy as np
import pytest

from stage1_vqvae.modalities.pictures.values import shifted_and_mirrored
from vq_prior.core.training.randomness import keyed_generator


def pictures(count: int) -> np.ndarray:
    return np.arange(count * 6 * 5 * 3, dtype=np.uint32).reshape(count, 6, 5, 3).astype(np.uint8)


def test_every_picture_is_a_shift_with_a_repeated_border_and_perhaps_a_mirror() -> None:
    given = pictures(40)
    moved = shifted_and_mirrored(given, keyed_generator(0, 3, "test"), most=2, rows=slice(0, 40))
    kinds = set()
    for before, after in zip(given, moved, strict=True):
        matches = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
                shifted = padded[2 + dy : 8 + dy, 2 + dx : 7 + dx]
                matches += [
                    (dy, dx, mirrored)
                    for mirrored, picture in ((False, shifted), (True, shifted[:, ::-1]))
                    if np.array_equal(picture, after)
                ]
        assert len(matches) == 1
        kinds.add(matches[0])
    assert {mirrored for *_, mirrored in kinds} == {True, False}
    assert len(kinds) > 20


@pytest.mark.parametrize("cut", [1, 7, 16])
def test_a_row_does_not_depend_on_how_the_batch_is_shared(cut: int) -> None:
    given = pictures(17)
    whole = shifted_and_mirrored(given, keyed_generator(5, 9, "test"), most=3, rows=slice(0, 17))
    parts = [
        shifted_and_mirrored(given[share], keyed_generator(5, 9, "test"), most=3, rows=share)
        for share in (slice(0, cut), slice(cut, 17))
    ]
    assert np.array_equal(np.concatenate(parts), whole)
