"""What perceptual terms buy: codecs that differ in their loss alone, judged by a network that none of them knows.

    scripts/benchmark sharpness --out FOLDER [--only CELL ...] [--seeds 0 1 2] [--steps N] [--table]

A CELL is `mse` (no such term) or NAME[:WEIGHT[:START]] of `--loss.perceptual`; `depth2/` before it gives a codec of two
levels, `+relativistic` or `+hinge` behind it `--loss.adversarial`. The data are 20,000 pictures of CIFAR-10 to train on
and 5,000 held out; the judge, of another architecture than any network in a loss, is fitted once to the classes of the
other 25,000, which no codec sees. Of each cell: seconds of the training (those of the processor, with one thread),
PSNR, rFID (held-out pictures against their reconstructions, in the judge's features), the share that the judge names
rightly, nats an image of a small prior of 300 steps, and how much energy flat places have at the frequency of the
stride, over that of the pictures. A cell that has its file is not run again; an interrupted one goes on where it
stopped.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from dump import DATA

NUM_TRAIN, NUM_HELD_OUT, JUDGED_FROM = 20_000, 5000, 25_000
WIDTHS, STEPS, BATCH, PEAK = (48, 96, 192), 1200, 128, 3e-3
PRIOR_STEPS = 300


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one JSON file a cell and seed")
    parser.add_argument("--data", type=Path, default=DATA, help="parquet file of CIFAR-10's 50,000 training pictures")
    parser.add_argument("--only", nargs="+", default=["mse", "own", "turns", "random", "focal-frequency", "patches"])
    parser.add_argument("--steps", type=int, help="of each codec; left out: the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")


def split(arguments: argparse.Namespace) -> Path:
    """Write the codecs' pictures with their classes as two splits; return the folder."""
    import pyarrow.parquet as pq

    folder = arguments.out / "data"
    if not folder.exists():
        table = pq.read_table(arguments.data)
        staging = arguments.out / ".data"
        parts = {"train": table.slice(0, NUM_TRAIN), "validation": table.slice(NUM_TRAIN, NUM_HELD_OUT)}
        for name, rows in parts.items():
            (staging / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, staging / name / f"{name}.parquet", row_group_size=1000)
        staging.rename(folder)
    return folder


def judge_network() -> Any:
    """Return the untrained judge: pairs of convolutions with group norms between maxima, [B, 3, 32, 32] to logits."""
    from torch import nn

    layers: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(before, 10))


def judge(arguments: argparse.Namespace) -> Any:
    """Return the judge, fitted to the pictures that no codec sees; its weights are kept in FOLDER."""
    import io

    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file

    from vq_prior.core.training.fitting import fit_classifier

    torch.manual_seed(20_261_130)
    network, path = judge_network(), arguments.out / "judge.safetensors"
    if not path.exists():
        table = pq.read_table(arguments.data).slice(JUDGED_FROM)
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()])
        labels = torch.tensor(table[label_column(table)].to_pylist())
        values, rng = torch.from_numpy(pixels).permute(0, 3, 1, 2), np.random.default_rng(77)

        def batch(_: int) -> Any:
            rows = torch.from_numpy(rng.integers(len(values), size=BATCH))
            some = values[rows].float() / 127.5 - 1
            some = torch.nn.functional.pad(some, (2, 2, 2, 2), mode="reflect")
            y, x = rng.integers(5, size=2)
            some = some[:, :, y : y + 32, x : x + 32]
            return (some.flip(3) if rng.random() < 0.5 else some), labels[rows]

        fit_classifier(network, batch, steps=STEPS, peak=PEAK)
        save_file(network.state_dict(), path)
    network.load_state_dict(load_file(path))
    return network.eval()


def label_column(table: Any) -> str:
    """Return the name of the column of classes."""
    return next(name for name in table.column_names if "label" in name)


def stride_energy(images: Any, stride: int) -> float:
    """Return the energy of images [n, C, height, width] at the frequencies of the stride, mean over the flattest tenth
    of the patches of four strides a side.
    """
    import torch

    size = 4 * stride
    patches = images.unfold(2, size, size).unfold(3, size, size).mean(dim=1).flatten(0, 2)
    patches = patches - patches.mean(dim=(1, 2), keepdim=True)
    flat = patches[patches.square().mean(dim=(1, 2)).argsort()[: max(1, len(patches) // 10)]]
    power = torch.fft.fft2(flat).abs().square()
    at = [size * k // stride for k in range(stride)]
    grid = power[:, at][:, :, at]
    grid[:, 0, 0] = 0
    return float(grid.sum(dim=(1, 2)).mean() / size**4)


def record_path(cell: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the file of one cell and seed."""
    name = cell.replace("/", "-").replace(":", "_").replace("+", "-")
    return Path(arguments.out / "cells" / f"{name}-{arguments.steps or 'default'}-steps-seed-{seed}.json")


def judged_by(network: Any, run: Path, data: str) -> dict[str, float]:
    """Return what the judge says of the held-out pictures as the codec gives them back."""
    import torch

    from stage1_vqvae.codecs import open_codec
    from stage1_vqvae.data.loading import load_rows
    from stage1_vqvae.data.sources import open_data
    from vq_prior.core.training.frechet import frechet_distance

    codec, source = open_codec(run), open_data(data)
    rows = load_rows(source.validation, codec.modality, codec.transform)
    seen: dict[str, list[Any]] = {"features": [], "copied": [], "named": [], "energy": [], "own_energy": []}
    first = 0
    with torch.inference_mode():
        for values in rows.batches(250):
            copies = codec.decode(codec.encode(values))
            copies = ((copies + 1) * 127.5).round() / 127.5 - 1
            seen["features"].append(network[0](values))
            seen["copied"].append(network[0](copies))
            labels = torch.from_numpy(source.validation.labels[first : first + len(values)])
            seen["named"].append((network[1](seen["copied"][-1]).argmax(1) == labels).float().mean())
            seen["energy"].append(stride_energy(copies, 4))
            seen["own_energy"].append(stride_energy(values, 4))
            first += len(values)
    return {
        "rfid": frechet_distance(torch.cat(seen["copied"]), torch.cat(seen["features"])),
        "named_rightly": float(torch.stack(seen["named"]).mean()),
        "stride_energy": fmean(seen["energy"]) / fmean(seen["own_energy"]),
    }


def run_cell(cell: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train a codec and a small prior, judge the codec, and write the record."""
    from stage1_vqvae.extract import extract_codes
    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.settings import ExtractCodes, LossSettings, TrainVQVAE
    from stage1_vqvae.train import train_vqvae
    from stage2_prior.settings import PriorModel, TrainPrior
    from stage2_prior.train import train_prior
    from vq_prior.core.config import pretty_json
    from vq_prior.core.disk.artifacts import write_atomic

    data, path = str(split(arguments)), record_path(cell, seed, arguments)
    run = arguments.out / "runs" / path.stem
    depth, _, loss = cell.rpartition("/")
    loss, _, adversarial = loss.partition("+")
    name, _, rest = loss.partition(":")
    weight, _, start = rest.partition(":")
    terms = LossSettings() if name == "mse" else LossSettings(perceptual=name)
    terms = replace(terms, perceptual_weight=float(weight)) if weight else terms
    terms = replace(terms, perceptual_start=float(start)) if start else terms
    terms = replace(terms, adversarial=adversarial) if adversarial else terms
    quantizer = QuantizerSettings(depth=2) if depth else QuantizerSettings()
    settings = TrainVQVAE(data, run, seed=seed, loss=terms, quantizer=quantizer)
    seconds = run / "codec-seconds.json"
    started = time.process_time()
    train_vqvae(replace(settings, steps=arguments.steps) if arguments.steps else settings)
    if not seconds.exists():
        seconds.write_text(json.dumps(time.process_time() - started))
    extract_codes(ExtractCodes(str(run), data, run / "codes"))
    model = PriorModel(num_layers=2, hidden_size=128, num_heads=4)
    prior = TrainPrior(codes=run / "codes", out=run, seed=seed, steps=PRIOR_STEPS, batch_size=32, model=model)
    train_prior(replace(prior, learning_rate=3e-3, optimizer="adamw", eval_every=PRIOR_STEPS))
    judged = judged_by(judge(arguments), run, data)
    measured = json.loads((run / "vqvae" / "training.json").read_text())["measured"]
    of_prior = json.loads((run / "prior" / "training.json").read_text())["measured"]
    record = {
        "cell": cell,
        "seed": seed,
        "steps": arguments.steps,
        "seconds": json.loads(seconds.read_text()),
        "psnr": measured["psnr"],
        "ssim": measured["ssim"],
        "usage": min(level["usage"] for level in measured["levels"]),
        "nats_per_token": of_prior["nats_per_token"],
        **judged,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, pretty_json(record))


def markdown(found: list[dict[str, Any]]) -> str:
    """Return a table with one line a cell, means over the seeds, and over those of `mse` where it is there."""
    lines = ["| cell | seeds | rFID | over mse | PSNR (dB) | SSIM | named rightly | nats a token | over mse |"]
    lines[0] += " flat places at the stride, over the pictures' | seconds | over mse |"
    lines.append("|---" * 12 + "|")
    plain = {record["seed"]: record for record in found if record["cell"] == "mse"}
    for cell in dict.fromkeys(record["cell"] for record in found):
        members = [record for record in found if record["cell"] == cell]

        def mean(key: str, members: list[dict[str, Any]] = members) -> float:
            return fmean(record[key] for record in members)

        def over(key: str, members: list[dict[str, Any]] = members) -> str:
            ratios = [record[key] / plain[record["seed"]][key] for record in members if record["seed"] in plain]
            return f"{fmean(ratios):.3f}" if ratios else ""

        cells = [cell, str(len(members)), f"{mean('rfid'):.3f}", over("rfid"), f"{mean('psnr'):.2f}"]
        cells += [f"{mean('ssim'):.3f}", f"{mean('named_rightly'):.3f}", f"{mean('nats_per_token'):.3f}"]
        cells += [over("nats_per_token"), f"{mean('stride_energy'):.2f}", f"{mean('seconds'):.0f}", over("seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, each cell and seed on its own, and print the table."""
    if not arguments.table:
        for seed in arguments.seeds:
            for cell in arguments.only:
                if not record_path(cell, seed, arguments).exists():
                    run_cell(cell, seed, arguments)
    cells = (arguments.out / "cells").glob("*.json")
    found = sorted(
        (json.loads(path.read_text()) for path in cells), key=lambda record: (record["cell"], record["seed"])
    )
    print(markdown(found))
    if arguments.json:
        print(json.dumps({"benchmark": "sharpness", "rows": found, "ratios": {}}))
