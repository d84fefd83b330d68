import numpy as np
import pytest
import torch

from vq_prior.core.training.code_use import CodeCounts, perplexity, usage


def test_perplexity_has_its_closed_forms():
    assert perplexity(torch.full((512,), 7)) == pytest.approx(512)
    assert perplexity(torch.tensor([5, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([3, 3, 0, 0])) == pytest.approx(2)
    assert perplexity(torch.zeros(4)) == 0
    p = np.array([1, 2, 5]) / 8
    assert perplexity(torch.tensor([1, 2, 5])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_usage_is_the_share_of_codes_that_occur():
    assert usage(torch.tensor([1, 0, 9, 0])) == 0.5


@pytest.mark.parametrize("reset", [False, True])
def test_counts_over_many_batches_equal_counts_over_all_at_once(reset):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 7, (10, 2, 2), generator=generator)
    fine = torch.randint(0, 40, (10, 4, 4), generator=generator).to(torch.uint8)
    counts = CodeCounts((8, 50))
    for first in range(0, 10, 3):
        counts.add((coarse[first : first + 3], fine[first : first + 3]))
    for level, (codes, num_codes) in zip(counts.read(reset=reset), ((coarse, 8), (fine, 50)), strict=True):
        expected = np.bincount(codes.numpy().ravel(), minlength=num_codes)
        p = expected[expected > 0] / expected.sum()
        assert level["usage"] == (expected > 0).mean()
        assert level["num_dead"] == (expected == 0).sum()
        assert level["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_after_a_reset_a_new_window_starts():
    counts = CodeCounts((4,))
    counts.add((torch.tensor([0, 1, 2, 3]),))
    assert counts.read(reset=True)[0]["perplexity"] == pytest.approx(4)
    counts.add((torch.tensor([3, 3]),))
    assert counts.read()[0] == {"usage": 0.25, "perplexity": pytest.approx(1), "num_dead": 3}
