"""Quantisers by name. A new one is a file here and a line below; `contract.py` says what it must do."""

from stage1_vqvae.quantizer_settings import SUITS, QuantizerSettings, refuse_unused
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


def quantizer_class(settings: QuantizerSettings) -> type[Quantizer]:
    """Return the class of the quantiser that typed settings name.

    Raises:
        UsageError: If there is none of this name, or it is an installed one and does not read what was typed.
        EnvironmentFault: If it is an installed one that cannot be loaded.
    """
    quantizer = QUANTIZERS[settings.name]
    if settings.name not in SUITS:
        refuse_unused(settings, quantizer.settings_used)
    return quantizer


__all__ = ["QUANTIZERS", "Quantized", "Quantizer", "quantizer_class"]
