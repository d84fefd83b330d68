"""Nearest-code lookup and the training step of the EMA quantiser, against diffusers and vector-quantize-pytorch.

The same latents, threads and float32 for all. Rows `..._ours`, `..._diffusers` and `..._lucidrains` do the same job
without gradients: latents in; vectors, codes and loss out. `..._lookup` is our search alone and `..._gemm` the matrix
product it contains, alone: into one preallocated output (`whole`, what `..._of_gemm` means), and into one buffer of
2,048 rows again and again (`pieces`), which spares the memory. `ema_step_...`: forward, backward and, for those that
have it, the update.
Letters: D code dimension, K number of codes, N vectors.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from timing import add_device_flag, device_of, extra_mb, extra_mb_of, faster_by, interleaved, require, row, tell

GEMM_ROWS = 2048


@dataclass(frozen=True)
class Size:
    """A lookup: N vectors of D numbers among K codes."""

    N: int
    D: int
    K: int


SIZES = {"k512": Size(65_536, 64, 512), "k16384": Size(16_384, 8, 16_384), "ema_step": Size(65_536, 64, 512)}
QUICK = {"k512": Size(2048, 64, 512), "k16384": Size(512, 8, 1024), "ema_step": Size(2048, 64, 512)}
OF_LOOKUP = ("ours", "lookup", "gemm_whole", "gemm_pieces", "diffusers", "lucidrains")
NAMES = (
    *(f"k512_{kind}" for kind in OF_LOOKUP),
    *(f"k16384_{kind}" for kind in OF_LOOKUP if kind != "lucidrains"),  # takes 4 GB and seconds a pass
    *(f"ema_step_{kind}" for kind in ("ours", "diffusers", "lucidrains")),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_device_flag(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: whether it runs, not how fast; memory of one row only"
    )
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)


def contender(name: str, size: Size, device: Any) -> Callable[[], object]:
    """Return what one row times, its inputs and modules made."""
    import torch

    job, kind = name.split("_", 1) if not name.startswith("ema_step") else ("ema_step", name.removeprefix("ema_step_"))
    torch.manual_seed(0)
    z, codebook = torch.randn(size.N, size.D).to(device), torch.randn(size.K, size.D).to(device)
    if kind == "lookup":
        from stage1_vqvae.quantizers.lookup import nearest_codes

        return lambda: nearest_codes(z, codebook)
    if kind.startswith("gemm"):
        rows = min(size.N, GEMM_ROWS if kind == "gemm_pieces" else size.N)
        output, transposed = torch.zeros(rows, size.K, device=device), codebook.t()

        def multiply() -> None:
            for first in range(0, size.N, rows):
                torch.mm(z[first : first + rows], transposed, out=output)

        return multiply
    training = job == "ema_step"
    module, update = QUANTISERS[kind](size, codebook)
    module.to(device).train(training)
    if kind == "diffusers":  # channels first; laid out so that its own change to channels last copies nothing
        z = z.view(1, 1, size.N, size.D).permute(0, 3, 1, 2)
    if training:
        return partial(_training_step, module, update, z, torch.randn_like(z))
    return torch.no_grad()(lambda: module(z))


def _training_step(module: Any, update: Callable[[], object], z: Any, upstream: Any) -> None:
    """Forward, backward from the loss and from a gradient of the vectors, update."""
    import torch

    latents = z.detach().requires_grad_()
    output = module(latents)
    if hasattr(output, "vectors"):
        vectors, loss = output.vectors, sum(output.loss.values())
    else:
        vectors, loss = output[0], output[1] if output[1].ndim == 0 else output[2].sum()
    torch.autograd.backward([vectors, loss], [upstream, None])
    module.zero_grad(set_to_none=True)
    update()


def _ours(size: Size, codebook: Any) -> tuple[Any, Callable[[], object]]:
    import numpy as np

    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.quantizers import QUANTIZERS

    settings = QuantizerSettings(name="ema", num_codes=size.K, code_dim=size.D, start="data")
    module, rng = QUANTIZERS["ema"](settings), np.random.default_rng(0)
    module.start(codebook, rng)
    return module, lambda: module.update(rng)


def _diffusers(size: Size, codebook: Any) -> tuple[Any, Callable[[], object]]:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    module = VectorQuantizer(size.K, size.D, beta=0.25, legacy=False)
    module.embedding.weight.data.copy_(codebook)
    return module, lambda: None


def _lucidrains(size: Size, codebook: Any) -> tuple[Any, Callable[[], object]]:
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=size.D, codebook_size=size.K, decay=0.99, commitment_weight=0.25)
    module._codebook.embed.data.copy_(codebook[None])
    return module, lambda: None


QUANTISERS = {"ours": _ours, "diffusers": _diffusers, "lucidrains": _lucidrains}


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    require(diffusers="diffusers", vector_quantize_pytorch="vector-quantize-pytorch")
    sizes, device = QUICK if arguments.quick else SIZES, device_of(arguments)
    calls = 10 if device.type == "cuda" else 1

    def made(name: str, among: dict[str, Size]) -> Callable[[], object]:
        return contender(name, next(size for job, size in among.items() if name.startswith(f"{job}_")), device)

    if arguments.memory_of:
        made(arguments.memory_of, QUICK)()  # libraries set up their threads and kernels
        print(json.dumps(extra_mb(made(arguments.memory_of, sizes))))
        return
    seconds = {}
    for job in sizes:
        names = [name for name in NAMES if name.startswith(f"{job}_")]
        contenders = {name: made(name, sizes) for name in names}
        seconds |= interleaved(contenders, rounds=arguments.rounds, warmup=2, calls=calls)
    flags = sys.argv[1:]
    measured = ["k512_lookup"] if arguments.quick else [name for name in NAMES if "gemm" not in name]
    if device.type == "cuda":  # whose allocator tells it of each call; two warm-up rounds are behind
        peaks = {name: extra_mb(made(name, sizes)) for name in NAMES}
    else:
        peaks = dict.fromkeys(NAMES) | {name: extra_mb_of(name, flags) for name in measured}
    rows = [row(name, seconds[name], peak_mb=peaks[name]) for name in NAMES]
    ratios = {
        "k512_vs_diffusers": faster_by("k512_ours", "k512_diffusers", seconds),
        "k512_vs_lucidrains": faster_by("k512_ours", "k512_lucidrains", seconds),
        "k512_of_gemm": faster_by("k512_lookup", "k512_gemm_whole", seconds),
        "k512_of_gemm_in_pieces": faster_by("k512_lookup", "k512_gemm_pieces", seconds),
        "k16384_vs_diffusers": faster_by("k16384_ours", "k16384_diffusers", seconds),
        "k16384_of_gemm": faster_by("k16384_lookup", "k16384_gemm_whole", seconds),
        "ema_step_vs_diffusers": faster_by("ema_step_ours", "ema_step_diffusers", seconds),
        "ema_step_vs_lucidrains": faster_by("ema_step_ours", "ema_step_lucidrains", seconds),
    }
    own = [peaks[name] for name in measured if name.endswith("_lookup")]
    limits = {"extra_mb": None if None in own else max(own)}
    tell("lookup", rows, ratios, arguments, limits=limits, device=device.type)
