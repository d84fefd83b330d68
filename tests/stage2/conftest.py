"""What the tests of stage two share: tiny priors, small code stores."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from code_stores import CODEC_ID, SPEC, write_store

from stage2_prior.prior import CausalPrior, build_prior
from stage2_prior.settings import PriorModel
from vq_prior.core.spec import CodeSpec


def tiny_prior(
    kind: str = "qwen3",
    *,
    key_value_heads: int = 2,
    spec: CodeSpec = SPEC,
    classes: int = 3,
    kept: tuple[tuple[int, ...] | None, ...] | None = None,
) -> CausalPrior:
    """Return a prior of two layers whose every weight is random, norms and zero-initialised matrices among them."""
    model = PriorModel(kind, 2, 32, 4, key_value_heads, 48, 100.0)  # type: ignore[arg-type]
    names = [f"class {n}" for n in range(classes)]
    prior = build_prior(model, spec, codec_id=CODEC_ID, label_names=names, kept=kept)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    return prior


@pytest.fixture
def make_prior() -> Callable[..., CausalPrior]:
    """Return `tiny_prior`."""
    return tiny_prior


@pytest.fixture(scope="session")
def code_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled store of 200 rows, 2 x 3 cells, 12 codes, 3 classes."""
    return write_store(tmp_path_factory.mktemp("store") / "codes")
