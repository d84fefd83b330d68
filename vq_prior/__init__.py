"""vq-prior: two-stage image generation that anyone can train, trust and share."""

import sys
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


# Modules that guides showed and that lie elsewhere now; they stay importable for one version.
_MOVED = {"vq_prior.core.media": ("stage1_vqvae.modalities.sheets", "stage1_vqvae.modalities.pictures.values")}


class _FormerPlaces:
    """Finds a module where it was: a module of the names of its new homes, with a warning."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:  # noqa: ARG004
        """Return how to make a module that has moved; None for any other."""
        if name not in _MOVED:
            return None
        from importlib.util import spec_from_loader

        return spec_from_loader(name, _FormerPlaces())  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """Leave making the empty module to Python."""

    def exec_module(self, module: Any) -> None:
        """Fill the module and say where its names are."""
        from importlib import import_module
        from warnings import warn

        homes = _MOVED[module.__name__]
        text = f"{module.__name__} has moved to {' and '.join(homes)}; import it from there"
        warn(text, DeprecationWarning, stacklevel=2)
        for home in homes:
            names = {name: value for name, value in vars(import_module(home)).items() if not name.startswith("_")}
            module.__dict__.update(names)


sys.meta_path.append(_FormerPlaces)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import vq_prior` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vq_prior' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
