"""vq-prior: two-stage image generation that anyone can train, trust and share."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stage1_vqvae.model import VQVAE
    from stage2_prior.prior import CausalPrior
    from vq_prior.core.disk.code_store import CodeStore
    from vq_prior.core.spec import Codec, CodeSpec, LevelSpec
    from vq_prior.model.pipeline import VQPriorPipeline

_HOMES = {
    "VQPriorPipeline": "vq_prior.model.pipeline",
    "VQVAE": "stage1_vqvae.model",
    "CausalPrior": "stage2_prior.prior",
    "CodeStore": "vq_prior.core.disk.code_store",
    "Codec": "vq_prior.core.spec",
    "CodeSpec": "vq_prior.core.spec",
    "LevelSpec": "vq_prior.core.spec",
}

__all__ = ["VQVAE", "CausalPrior", "CodeSpec", "CodeStore", "Codec", "LevelSpec", "VQPriorPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import vq_prior` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vq_prior' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
