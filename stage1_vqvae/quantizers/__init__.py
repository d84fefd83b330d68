"""Quantisers by name. A new one is a file here and a line below; `contract.py` says what it must do."""

from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.ema import EMAQuantizer
from stage1_vqvae.quantizers.nearest import NearestQuantizer
from vq_prior.core.registry import Registry

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")
QUANTIZERS.add("ema", EMAQuantizer)
QUANTIZERS.add("nearest", NearestQuantizer)

__all__ = ["QUANTIZERS", "Quantized", "Quantizer"]
