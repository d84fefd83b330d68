"""What a part of your own has to pass before it is used: call these from your tests; each fails with what is wrong."""

from vq_prior.testing.modality import check_modality
from vq_prior.testing.quantizers import check_quantizer

__all__ = ["check_modality", "check_quantizer"]
