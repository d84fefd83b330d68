"""Quantisers by name. A new one is a file here and a line below; `contract.py` says what it must do."""

from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.ema import EMAQuantizer
from stage1_vqvae.quantizers.fsq import FSQQuantizer
from stage1_vqvae.quantizers.gumbel import GumbelQuantizer
from stage1_vqvae.quantizers.lfq import LFQQuantizer
from stage1_vqvae.quantizers.nearest import NearestQuantizer
from stage1_vqvae.quantizers.simvq import SimVQQuantizer
from vq_prior.core.registry import Registry

QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer", group="vq_prior.quantizers")
QUANTIZERS.add("ema", EMAQuantizer)
QUANTIZERS.add("nearest", NearestQuantizer)
QUANTIZERS.add("simvq", SimVQQuantizer)
QUANTIZERS.add("fsq", FSQQuantizer)
QUANTIZERS.add("lfq", LFQQuantizer)
QUANTIZERS.add("gumbel", GumbelQuantizer)

__all__ = ["QUANTIZERS", "Quantized", "Quantizer"]
