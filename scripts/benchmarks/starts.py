"""A hundred starts of the adversarial term: is the codec that is kept ever worse than the one before the term?

    scripts/benchmark starts --out FOLDER [--data TABLE] [--table]

Ten kinds of data (digits, and pictures of TABLE at nine sizes, numbers and shapes) with ten seeds each, tiny codecs of
200 steps, in which the discriminator learns from step 50 and pulls from step 100 on, five times as hard as by default,
so that it does harm. Held-out reconstructions are judged every 20 steps. A start that has its file is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dump import DATA

STEPS, EVERY, WEIGHT = 200, 20, 1.0
KINDS: dict[str, dict[str, Any]] = {  # of TABLE; digits have no settings
    "digits": {},
    "8x8": {"image_size": "8x8", "max_images": 400},
    "8x8, 3000": {"image_size": "8x8", "max_images": 3000},
    "12x12": {"image_size": "12x12", "max_images": 800},
    "16x16": {"image_size": "16x16", "max_images": 400},
    "16x16, 3000": {"image_size": "16x16", "max_images": 3000},
    "16x8": {"image_size": "16x8", "max_images": 800},
    "20x20": {"image_size": "20x20", "max_images": 400},
    "two classes": {"image_size": "12x12", "max_images": 800, "classes": "cat,dog"},
    "one class": {"image_size": "12x12", "max_images": 800, "classes": "ship"},
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one JSON file a start")
    parser.add_argument("--data", type=Path, default=DATA, help="parquet file of CIFAR-10's 50,000 training pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")


def record_path(kind: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the file of one start."""
    return Path(arguments.out / "starts" / f"{kind.replace(', ', '-').replace(' ', '-')}-seed-{seed}.json")


def run_start(kind: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train a codec and write what was kept, and what there was before the term."""
    from stage1_vqvae.settings import LossSettings, ModelSettings, TrainVQVAE
    from stage1_vqvae.train import train_vqvae
    from vq_prior.core.config import pretty_json
    from vq_prior.core.disk.artifacts import write_atomic

    path = record_path(kind, seed, arguments)
    run = arguments.out / "runs" / path.stem
    losses = ("relativistic", "hinge")
    loss = LossSettings(adversarial=losses[seed % 2], adversarial_weight=WEIGHT, adversarial_start=0.5)
    data = "digits" if kind == "digits" else str(arguments.data)
    sizes: dict[str, Any] = {"model": ModelSettings(width=32), "batch_size": 32, "steps": STEPS, "judge_every": EVERY}
    train_vqvae(TrainVQVAE(data, run, seed=seed, loss=loss, num_workers=1, **sizes, **KINDS[kind]))
    lines = map(json.loads, (run / "vqvae-training" / "metrics.jsonl").read_text().splitlines())
    judged = {line["step"]: line["rfid"] for line in lines if "rfid" in line}
    measured = json.loads((run / "vqvae" / "training.json").read_text())["measured"]
    record = {"kind": kind, "seed": seed, "loss": loss.adversarial, "before": judged[STEPS // 2], "last": judged[STEPS]}
    record |= {"kept": measured["rfid"], "kept_step": measured["kept_step"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, pretty_json(record))


def markdown(found: list[dict[str, Any]]) -> str:
    """Return a table with one line a kind of data."""
    lines = ["| data | starts | kept is worse than before the term | last is worse than before | kept / before |"]
    lines.append("|---" * 5 + "|")
    for kind in KINDS:
        members = [record for record in found if record["kind"] == kind]
        if members:
            worse, last = (sum(each[name] > each["before"] for each in members) for name in ("kept", "last"))
            ratios = sorted(each["kept"] / each["before"] for each in members)
            spread = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {kind} | {len(members)} | {worse} | {last} | {spread} |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing and print the table."""
    if not arguments.table:
        for seed in arguments.seeds:
            for kind in KINDS:
                if not record_path(kind, seed, arguments).exists():
                    run_start(kind, seed, arguments)
    found = [json.loads(path.read_text()) for path in sorted((arguments.out / "starts").glob("*.json"))]
    print(markdown(found))
    if arguments.json:
        print(json.dumps({"benchmark": "starts", "rows": found, "ratios": {}}))
