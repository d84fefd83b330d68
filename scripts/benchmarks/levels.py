"""Codecs of one and of several levels, each with a prior over its codes, in the same processor minutes of both stages.

    scripts/benchmark levels --data DATA --out FOLDER [--only NAME ...] [--minutes 20] [--seeds 0 1 2]
    scripts/benchmark levels --data DATA --out FOLDER --table

A cell trains its codec by the default steps, writes the codes, trains the prior for what is left of the minutes (all
settings default but the steps), and is judged by `evaluate`, whose network is a function of the data alone. A cell
that has its file is not run again; an interrupted one goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from math import log2
from pathlib import Path
from statistics import fmean
from typing import Any

CELLS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {  # quantiser, grids, prior
    "single-512": ({}, 1, {}),
    "single-16384": ({"num_codes": 16_384, "code_dim": 8}, 1, {}),
    "residual-2": ({"depth": 2}, 1, {}),
    "residual-2-flat": ({"depth": 2}, 1, {"level_order": "flat"}),
    "residual-2-interleaved": ({"depth": 2}, 1, {"level_order": "interleaved"}),
    "residual-4": ({"depth": 4}, 1, {}),
    "residual-4-flat": ({"depth": 4}, 1, {"level_order": "flat"}),
    "residual-4-interleaved": ({"depth": 4}, 1, {"level_order": "interleaved"}),
    "two-grids": ({}, 2, {}),
    "two-grids-flat": ({}, 2, {"level_order": "flat"}),
    "two-grids-interleaved": ({}, 2, {"level_order": "interleaved"}),
    "residual-2-depth": ({"depth": 2}, 1, {"depth_blocks": 1}),
    "residual-4-depth": ({"depth": 4}, 1, {"depth_blocks": 1}),
    "two-grids-depth": ({}, 2, {"depth_blocks": 1}),
}
FEW, MORE = 20, 60  # steps of the two short trainings whose difference tells the seconds of a step


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--data", required=True, help="pictures, as any command takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one JSON file a cell and seed")
    parser.add_argument("--only", nargs="+", choices=list(CELLS), default=list(CELLS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=20.0, help="of both stages, the writing of codes included")
    parser.add_argument("--codec-steps", type=int, help="left out: the default")
    parser.add_argument("--num-images", type=int, default=10_000, help="samples that are judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")


def codec_run(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the folder of a codec; cells that differ in the prior alone share it."""
    quantizer, grids, _ = CELLS[name]
    first = next(other for other, (values, count, _) in CELLS.items() if (values, count) == (quantizer, grids))
    return Path(arguments.out / "codecs" / f"{first}-{arguments.codec_steps or 'default'}-seed-{seed}")


def timed(path: Path, work: Callable[[], object]) -> float:
    """Do work once and return the processor seconds that it took, then and ever after.

    What was interrupted counts what it took at last. With one thread they are those of the clock on an idle machine.
    """
    if not path.exists():
        started = time.process_time()
        work()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(time.process_time() - started))
    return float(json.loads(path.read_text()))


def run_cell(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train both stages of a cell, judge them, and write its file."""
    from stage1_vqvae.extract import extract_codes
    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.settings import ExtractCodes, TrainVQVAE
    from stage1_vqvae.train import train_vqvae
    from stage2_prior.settings import PriorModel, TrainPrior
    from stage2_prior.train import train_prior
    from vq_prior.core.config import pretty_json
    from vq_prior.core.disk.artifacts import write_atomic
    from vq_prior.core.disk.code_store import CodeStore
    from vq_prior.judge.evaluate import evaluate
    from vq_prior.model.folder import assemble
    from vq_prior.settings import Evaluate

    quantizer, grids, prior = CELLS[name]
    codec, cell = codec_run(name, seed, arguments), record_path(name, seed, arguments)
    settings = TrainVQVAE(arguments.data, codec, seed=seed, quantizer=QuantizerSettings(**quantizer), levels=grids)
    settings = replace(settings, steps=arguments.codec_steps) if arguments.codec_steps else settings
    seconds = timed(codec / "codec-seconds.json", lambda: train_vqvae(settings))
    extract = ExtractCodes(str(codec), arguments.data, codec / "codes")
    dump = timed(codec / "dump-seconds.json", lambda: extract_codes(extract))
    run = arguments.out / "priors" / cell.stem
    depth = prior.get("depth_blocks", 0)
    prior = {name: value for name, value in prior.items() if name != "depth_blocks"}
    wanted = TrainPrior(codes=codec / "codes", out=run, seed=seed, model=PriorModel(depth_blocks=depth), **prior)
    spans = []
    for steps in (FEW, MORE):
        trial = replace(wanted, out=run / f"trial-{steps}", steps=steps, eval_every=steps, eval_rows=32)
        spans.append(timed(run / f"trial-{steps}.json", lambda trial=trial: train_prior(trial)))
    step = max(1e-3, (spans[1] - spans[0]) / (MORE - FEW))
    left = 60 * arguments.minutes - seconds - dump
    steps = int(left / step * 0.96)  # the rest is for held-out rows
    if steps < MORE:
        raise SystemExit(f"error: {name} leaves {left:.0f} s for the prior; give more --minutes")
    spent = timed(run / "prior-seconds.json", lambda: train_prior(replace(wanted, steps=steps)))
    model = run / "model"
    if not (model / "config.json").exists():
        assemble(codec / "vqvae", run / "prior", model)
    what = Evaluate(data=arguments.data, out=run / "evaluation.json", model=model, num_images=arguments.num_images)
    result = evaluate(replace(what, seed=seed))
    record = {"name": name, "seed": seed, "minutes": arguments.minutes, "prior_steps": steps}
    record |= {"codec_seconds": seconds, "dump_seconds": dump, "prior_seconds": spent}
    record |= {"tokens": CodeStore.open(codec / "codes").spec.num_tokens, "evaluation": result}
    cell.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cell, pretty_json({**record, "codec": read(codec, "vqvae"), "prior": read(run, "prior")}))


def read(run: Path, part: str) -> dict[str, Any]:
    """Return what a finished training measured."""
    found: dict[str, Any] = json.loads((run / part / "training.json").read_text())["measured"]
    return found


def record_path(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the file of one cell and seed."""
    return Path(arguments.out / "cells" / f"{name}-{arguments.minutes:g}-minutes-seed-{seed}.json")


def records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what is there, in the order of the cells."""
    paths = [record_path(name, seed, arguments) for name in arguments.only for seed in arguments.seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def bits_of(codec: dict[str, Any], tokens: int) -> float:
    """Return the bits of an image's codes at a fixed length each, T tokens in all."""
    sizes = [level["num_codes"] for level in codec["levels"]]
    return tokens * log2(sizes[0])  # the levels of a cell have one size


def markdown(found: list[dict[str, Any]]) -> str:
    """Return a table with one line a cell, means over the seeds."""
    heads = ["cell", "seeds", "tokens", "bits", "PSNR (dB)", "SSIM", "codes used", "first level alone (dB)"]
    heads += ["nats an image", "of each level, against the code above", "FID", "of it the codec's", "precision, recall"]
    heads += ["seconds: codec, prior"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(record["name"] for record in found):
        members = [record for record in found if record["name"] == name]

        def mean(value: Callable[[dict[str, Any]], float], members: list[dict[str, Any]] = members) -> float:
            return fmean(value(record) for record in members)

        first = members[0]
        levels, of_prior = first["codec"]["levels"], first["prior"].get("levels", [])
        tokens = first["tokens"]
        alone = mean(lambda r: r["codec"]["levels"][0].get("to_here", r["codec"])["psnr"])
        nats = ", ".join(
            f"{level['nats_per_token']:.2f} ({level['level_above'] or level['unigram']:.2f})" for level in of_prior
        )
        used = min(mean(lambda r, n=n: r["codec"]["levels"][n]["usage"]) for n in range(len(levels)))
        cells = [name, str(len(members)), str(tokens), f"{bits_of(first['codec'], tokens):.0f}"]
        cells += [f"{mean(lambda r: r['codec']['psnr']):.2f}", f"{mean(lambda r: r['codec']['ssim']):.3f}"]
        cells += [
            f"{used:.1%}",
            f"{alone:.2f}",
            f"{mean(lambda r: r['prior']['nats_per_token'] * r['tokens']):.0f}",
            nats,
        ]
        cells += [f"{mean(lambda r: r['evaluation']['samples']['fid']):.3f}"]
        cells += [f"{mean(lambda r: r['evaluation']['reconstructions']['fid']):.3f}"]
        near = [mean(lambda r, key=key: r["evaluation"]["samples"][key]) for key in ("precision", "recall")]
        cells += [", ".join(f"{value:.3f}" for value in near)]
        cells += [f"{mean(lambda r: r['codec_seconds']):.0f}, {mean(lambda r: r['prior_seconds']):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, each cell and seed on its own, and print the table."""
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.only:
                if not record_path(name, seed, arguments).exists():
                    run_cell(name, seed, arguments)
    found = records(arguments)
    print(markdown(found))
    if arguments.json:
        print(json.dumps({"benchmark": "levels", "rows": found, "ratios": {}}))
