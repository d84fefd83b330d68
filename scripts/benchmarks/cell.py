"""One cell: a codec trained by the real command, its codes, a small prior on them, and what was measured.

The data are the first 45,000 rows of CIFAR-10 to train on and the last 5,000 held out. Cells run in processes of their
own, several at a time if asked; a cell that has its file is not run again, and an interrupted one continues.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from statistics import fmean, stdev
from typing import Any

from dump import DATA

NUM_TRAIN, NUM_HELD_OUT = 45_000, 5000
COLUMNS = {
    "psnr": "PSNR (dB)",
    "psnr_of_mean_mse": "PSNR of the mean error",
    "ssim": "SSIM",
    "train_usage": "codes used",
    "train_perplexity": "perplexity",
    "perplexity": "of held-out rows",
    "nats_per_image": "nats an image",
}


def add_cell_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every benchmark made of cells."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one JSON file a cell and seed")
    parser.add_argument("--data", type=Path, default=DATA, help="parquet file of CIFAR-10's 50,000 training pictures")
    parser.add_argument("--steps", type=int, help="optimiser steps of each codec")
    parser.add_argument("--prior-steps", type=int, default=300, help="optimiser steps of each prior")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; they share the threads")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--keep", action="store_true", help="keep the runs and code stores of finished cells")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--num-rows", type=int, nargs=2, default=[NUM_TRAIN, NUM_HELD_OUT], help=argparse.SUPPRESS)


def write_split(table: Path, folder: Path, num_train: int, num_held_out: int) -> Path:
    """Write the first rows as `train` and the last ones as `validation`, pictures without labels; return the folder.

    Without labels a prior has no guidance to choose, and all its nats are the pictures'.
    """
    import pyarrow.parquet as pq

    data = folder / f"data-{num_train}-{num_held_out}"
    if not data.exists():
        pictures = pq.read_table(table, columns=["image"]).replace_schema_metadata(None)
        staging = folder / f".{data.name}.{os.getpid()}"
        parts = {"train": pictures.slice(0, num_train), "validation": pictures.slice(len(pictures) - num_held_out)}
        for split, rows in parts.items():
            (staging / split).mkdir(parents=True)
            pq.write_table(rows, staging / split / f"{split}.parquet", row_group_size=1000)
        staging.rename(data)
    return data


def record_path(out: Path, name: str, steps: int | None, seed: int) -> Path:
    """Return the file of one cell and seed."""
    return out / "cells" / f"{name}-{steps or 'own'}-steps-seed-{seed}.json"


def run_cell(name: str, codec: Any, arguments: argparse.Namespace) -> None:
    """Train a codec (settings of train-vqvae but data, out and seed) and a prior on its codes; write the record."""
    from stage1_vqvae.extract import extract_codes
    from stage1_vqvae.settings import ExtractCodes
    from stage1_vqvae.train import train_vqvae
    from stage2_prior.settings import PriorModel, TrainPrior
    from stage2_prior.train import train_prior
    from vq_prior.core.config import pretty_json, to_json
    from vq_prior.core.disk.artifacts import write_atomic

    (seed,), steps = arguments.seeds, arguments.steps or codec.steps
    data = write_split(arguments.data, arguments.out, *arguments.num_rows)
    path = record_path(arguments.out, name, arguments.steps, seed)
    run = arguments.out / "runs" / path.stem
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[f"{part}_seconds"] = time.perf_counter() - started

    settings = replace(codec, data=str(data), out=run, seed=seed, steps=steps)
    with timed("codec"):
        train_vqvae(settings)
    with timed("extraction"):
        extract_codes(ExtractCodes(str(run), str(data), run / "codes"))
    prior = TrainPrior(
        codes=run / "codes",
        out=run,
        steps=arguments.prior_steps,
        batch_size=32,
        learning_rate=3e-3,
        seed=seed,
        precision="fp32",
        model=PriorModel(num_layers=2, hidden_size=128, num_heads=4),
        eval_every=arguments.prior_steps,
        eval_rows=min(2000, arguments.num_rows[1]),
        log_every=100,
        patience=None,
    )
    with timed("prior"):
        train_prior(prior)
    record = {"name": name, "seed": seed, "steps": steps, "settings": to_json(settings), **_measured(run), **seconds}
    record["settings"]["data"], record["settings"]["out"] = "CIFAR-10", "RUN"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, pretty_json(record))
    if not arguments.keep:
        rmtree(run)


def _measured(run: Path) -> dict[str, Any]:
    """Return what a finished run says of its codec and prior, and the use of codes over all training rows."""
    import numpy as np
    import torch

    from vq_prior.core.disk.code_store import CodeStore
    from vq_prior.core.training.code_use import perplexity, usage

    codec, prior = (json.loads((run / part / "training.json").read_text())["measured"] for part in ("vqvae", "prior"))
    (level,) = codec["levels"]
    store = CodeStore.open(run / "codes", "train")
    codes = np.concatenate([store.rows(part)["codes.0"] for part in np.array_split(np.arange(len(store)), 16)])
    counts = torch.bincount(torch.from_numpy(codes.astype(np.int64)).reshape(-1), minlength=level["num_codes"])
    num_tokens = codes[0].size
    return {
        "psnr": codec["psnr"],
        "psnr_of_mean_mse": 10 * math.log10(4 / codec["mse"]),
        "ssim": codec["ssim"],
        "num_codes": level["num_codes"],
        "usage": level["usage"],
        "perplexity": level["perplexity"],
        "train_usage": usage(counts),
        "train_perplexity": perplexity(counts),
        "nats_per_image": prior["nats_per_token"] * num_tokens,
        "unigram_nats_per_image": prior["unigram"] * num_tokens,
    }


def run_missing(benchmark: str, names: Sequence[str], arguments: argparse.Namespace, *more: str) -> list[str]:
    """Run the cells that have no file yet, each in a process of its own, and return the names of those that failed."""
    import torch

    todo = [
        (name, seed)
        for seed in arguments.seeds
        for name in names
        if not record_path(arguments.out, name, arguments.steps, seed).exists()
    ]
    print(f"{len(names) * len(arguments.seeds) - len(todo)} are there, {len(todo)} to run", flush=True)
    if not todo:
        return []
    write_split(arguments.data, arguments.out, *arguments.num_rows)
    (arguments.out / "logs").mkdir(parents=True, exist_ok=True)
    threads = str(max(1, torch.get_num_threads() // arguments.jobs))
    flags = ["--out", arguments.out, "--data", arguments.data, "--prior-steps", arguments.prior_steps]
    flags += ["--threads", threads, "--num-rows", *arguments.num_rows, *more]
    flags += ["--steps", arguments.steps] if arguments.steps else []
    flags += ["--keep"] if arguments.keep else []

    def one(cell: tuple[str, int]) -> str | None:
        name, seed = cell
        log = arguments.out / "logs" / f"{record_path(arguments.out, name, arguments.steps, seed).stem}.txt"
        command = [sys.executable, Path(__file__).parent, benchmark, "--cell", name, "--seeds", seed, *flags]
        started = time.monotonic()
        with log.open("a") as file:
            code = subprocess.run(list(map(str, command)), stdout=file, stderr=file, check=False).returncode
        ending = "done" if code == 0 else f"failed, see {log}"
        print(f"{name} seed {seed}: {ending} after {time.monotonic() - started:.0f} s", flush=True)
        return None if code == 0 else name

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return [name for name in pool.map(one, todo) if name is not None]


def records(out: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return what was recorded, in the order of `names`, then of the files."""
    found = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    if names is None:
        return found
    return sorted((r for r in found if r["name"] in names), key=lambda r: (list(names).index(r["name"]), r["seed"]))


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Return a table with one line a cell: means over seeds, and their standard deviation where there are several."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in found:
        groups.setdefault((record["name"], record["steps"]), []).append(record)
    lines = ["| cell | steps | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (name, steps), members in groups.items():
        cells = [_entry(key, [record[key] for record in members]) for key in COLUMNS]
        lines.append(f"| {name} | {steps} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _entry(key: str, values: Sequence[float]) -> str:
    digits = {"train_usage": 3, "ssim": 4, "psnr": 2, "psnr_of_mean_mse": 2}.get(key, 1 if "perplexity" in key else 0)
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def tell_cells(benchmark: str, found: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the table; with `--json` the last line is all records as one JSON object."""
    print(markdown(found))
    if arguments.json:
        rows = [{**r, "seconds": r["codec_seconds"], "seconds_per_round": [r["codec_seconds"]]} for r in found]
        print(json.dumps({"benchmark": benchmark, "rows": rows, "ratios": {}}))
