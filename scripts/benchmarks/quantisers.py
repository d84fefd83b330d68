"""Quantisers against each other: the same network, data and budget, judged by errors, use of codes and a small prior.

    scripts/benchmark quantisers --out FOLDER [--only NAME ...] [--steps N] [--seeds 0 1] [--jobs 2]
    scripts/benchmark quantisers --out FOLDER --table

A cell is a quantiser at a codebook size K and code dimension D. The codec is the default one for 32x32 pictures,
trained in bf16; everything that a cell does not name is the command's default.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cell import add_cell_flags, records, run_cell, run_missing, tell_cells

STEPS = 1500
COSINE: dict[str, Any] = {"distance": "cosine"}
ROTATION: dict[str, Any] = {"gradient": "rotation"}
SMALL: dict[str, dict[str, Any]] = {  # K = 512, D = 64
    "ema": {"name": "ema"},
    "ema-plain": {"name": "ema", "start": "data", "revive_below": None},
    "ema-cosine": {"name": "ema"} | COSINE,
    "ema-rotation": {"name": "ema"} | ROTATION,
    "ema-cosine-rotation": {"name": "ema"} | COSINE | ROTATION,
    "ema-entropy": {"name": "ema", "entropy_temperature": 1.0},
    "nearest": {"name": "nearest"},
    "nearest-cosine": {"name": "nearest"} | COSINE,
    "simvq": {"name": "simvq"},
    "simvq-cosine": {"name": "simvq"} | COSINE,
    "simvq-rotation": {"name": "simvq"} | ROTATION,
    "gumbel": {"name": "gumbel"},
}
LARGE: dict[str, dict[str, Any]] = {  # K = 16,384, D = 8
    "ema": {"name": "ema"},
    "ema-cosine": {"name": "ema"} | COSINE,
    "ema-rotation": {"name": "ema"} | ROTATION,
    "nearest-plain": {"name": "nearest", "revive_below": None},
    "simvq": {"name": "simvq"},
    "simvq-cosine": {"name": "simvq"} | COSINE,
}
FREE = (("fsq", 512), ("fsq", 16_384), ("lfq", 512))  # choose their own D
BETWEEN = ("ema", "ema-cosine", "simvq-cosine")  # at K = 4,096, too: does a larger codebook keep more?


def cells() -> dict[str, dict[str, Any]]:
    """Return the quantiser settings of every cell, by name."""
    small = {f"{name}-k512-d64": {**values, "num_codes": 512, "code_dim": 64} for name, values in SMALL.items()}
    large = {f"{name}-k16384-d8": {**values, "num_codes": 16_384, "code_dim": 8} for name, values in LARGE.items()}
    between = {f"{name}-k4096-d8": {**LARGE[name], "num_codes": 4096, "code_dim": 8} for name in BETWEEN}
    wide = {"ema-k16384-d64": {"name": "ema", "num_codes": 16_384, "code_dim": 64}}
    free = {f"{name}-k{K}": {"name": name, "num_codes": K} for name, K in FREE}
    return small | free | between | large | wide


def codec_settings(values: dict[str, Any]) -> Any:
    """Return the settings of train-vqvae for a cell; data, out and seed are filled in."""
    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.settings import ModelSettings, TrainVQVAE

    return TrainVQVAE(
        data="",
        out=Path(),
        steps=STEPS,
        batch_size=64,
        image_size="32x32",
        precision="bf16",
        optimizer="adamw",
        model=ModelSettings(channels=3, downsampling=4, width=128, residual_width=32),
        quantizer=QuantizerSettings(**values),
        checkpoint_every=500,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_cell_flags(parser)
    parser.add_argument("--only", nargs="+", choices=list(cells()), metavar="NAME", help="these cells")
    parser.add_argument("--list", action="store_true", help="print the names of the cells, run nothing")


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing and print the table."""
    known = cells()
    if arguments.cell:
        run_cell(arguments.cell, codec_settings(known[arguments.cell]), arguments)
        return
    if arguments.list:
        print("\n".join(known))
        return
    names = arguments.only or list(known)
    failed = [] if arguments.table else run_missing("quantisers", names, arguments)
    tell_cells("quantisers", records(arguments.out, names), arguments)
    if failed:
        print(f"error: {len(failed)} cells failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)
