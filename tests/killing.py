"""Trainings of a codec that end in the middle of a step, as a process does that is killed."""

from collections.abc import Callable

import numpy as np
import pytest

from stage1_vqvae import run as one_run


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_and_run_again(train: Callable[[], object], *, at: list[int]) -> None:
    """Call `train` until it ends; when the rows of one of these steps are asked for, it dies, once at each."""
    real, left = one_run.batch_rows, list(at)

    def dying(num_rows: int, batch_size: int, seed: int, step: int) -> np.ndarray:
        if left and step == left[0]:
            left.pop(0)
            raise Killed
        return real(num_rows, batch_size, seed, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_run, "batch_rows", dying)
        while left:
            with pytest.raises(Killed):
                train()
        train()
