"""Opening an artefact whatever it is: a MODEL, a codec or a prior."""

from pathlib import Path

from stage1_vqvae.model import VQVAE, load_codec
from stage2_prior.prior import CausalPrior, load_prior
from vq_prior.model.index import kind_of
from vq_prior.model.pipeline import VQPriorPipeline


def open_artefact(folder: Path) -> VQPriorPipeline | VQVAE | CausalPrior:
    """Return what a folder holds, every byte of it checked.

    Raises:
        ArtifactError: If it holds nothing of ours, or is damaged.
    """
    kind = kind_of(folder)
    if kind == "model":
        return VQPriorPipeline.from_pretrained(folder)
    return load_codec(folder) if kind == "vqvae" else load_prior(folder)
