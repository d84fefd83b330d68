"""The lookup's kernel finds what its tables find: the first nearest code of every vector."""

import numpy as np
import pytest
import torch

from stage1_vqvae.quantizers import lookup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize(
    ("N", "D", "K"), [(1000, 64, 512), (777, 8, 1025), (130, 3, 7), (65, 128, 70), (40, 200, 33), (1, 1, 1), (0, 4, 5)]
)
def test_lookup_finds_the_first_nearest(
    monkeypatch: pytest.MonkeyPatch, N: int, D: int, K: int, with_kernel: bool
) -> None:
    assert lookup._kernel() is not None
    if not with_kernel:
        monkeypatch.setattr(lookup, "_kernel", lambda: None)
        monkeypatch.setattr(lookup, "TABLE_ELEMENTS", 100 * K)
    rng = np.random.default_rng(0)
    # small whole numbers: every product and sum is exact, so ties are true ties
    whole = [torch.from_numpy(rng.integers(-3, 4, size).astype(np.float32)) for size in ((N, D), (K, D))]
    real = [torch.from_numpy(rng.standard_normal(size).astype(np.float32)) for size in ((N, D), (K, D))]
    for vectors, codebook in (whole, real):
        distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
        nearest = lookup.nearest_codes(vectors.cuda(), codebook.cuda())
        assert nearest.dtype == torch.int64
        assert torch.equal(nearest.cpu(), distances.argmin(1))


def test_lookup_holds_no_table() -> None:
    vectors, codebook = torch.randn(65_536, 64, device="cuda"), torch.randn(512, 64, device="cuda")
    lookup.nearest_codes(vectors[:1], codebook)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lookup.nearest_codes(vectors, codebook)
    assert torch.cuda.max_memory_allocated() - before < 2e6
