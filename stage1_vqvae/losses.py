"""Loss terms of the codec: functions that return named terms, and their weighted sum."""

from torch import Tensor

from stage1_vqvae.settings import LossSettings


def reconstruction_terms(images: Tensor, reconstruction: Tensor, *, kind: str) -> dict[str, Tensor]:
    """Return {"reconstruction": scalar}: mean squared ("mse") or absolute ("l1") error over all pixels, float32."""
    difference = reconstruction.float() - images.float()
    return {"reconstruction": difference.square().mean() if kind == "mse" else difference.abs().mean()}


def weighted_sum(terms: dict[str, Tensor], settings: LossSettings) -> Tensor:
    """Return the training loss: each term times the weight its name has in the settings.

    Raises:
        KeyError: If a term has no weight in the settings.
    """
    weights = {
        "reconstruction": settings.reconstruction_weight,
        "commitment": settings.commitment_weight,
        "codebook": settings.codebook_weight,
        "entropy": settings.entropy_weight,
        "kl": settings.kl_weight,
    }
    return sum((weights[name] * term for name, term in terms.items()), next(iter(terms.values())).new_zeros(()))
