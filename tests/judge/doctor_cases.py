"""Runs that are well, and the faults that can be planted in them, for `test_doctor`.

Every run is trained by the real commands, on digits, for as long as it takes to be called healthy.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.data.sources import open_data
from stage2_prior.prior import load_prior, save_prior
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.disk.code_store import CodeStore, write_index

Run = Callable[..., None]
CODEC = ("--model.width", 32, "--model.num-residual-blocks", 1)  # small: a run that is well in seconds
PRIOR = ("--model.num-layers", 2, "--model.hidden-size", 64, "--model.num-heads", 2)


def digit_folder(folder: Path, *, count: int, classes: bool = True, repeat: int = 1) -> Path:
    """Write some of the digits as pictures, a folder a class; return the folder."""
    data = open_data("digits")
    for row in range(count):
        label = data.label_names[int(data.train.labels[row])] if classes else "."
        (folder / label).mkdir(parents=True, exist_ok=True)
        for copy in range(repeat):
            Image.fromarray(data.train.encoded(row)).save(folder / label / f"{row:04d}-{copy}.png")
    return folder


@dataclass(frozen=True)
class Trainer:
    """Trains runs by commands."""

    run: Run

    def codec(self, out: Path, data: str, *flags: object, steps: int = 300) -> Path:
        self.run("train-vqvae", "--data", data, "--out", out, "--steps", steps, *CODEC, *flags)
        return out

    def codes(self, out: Path, data: str) -> Path:
        self.run("extract-codes", "--codec", out, "--data", data, "--out", out / "codes")
        return out / "codes"

    def prior(self, out: Path, *flags: object, steps: int = 150, codes: Path | None = None) -> Path:
        codes = codes or out / "codes"
        words = ["--codes", codes, "--codec", out, "--out", out, "--steps", steps]
        self.run("train-prior", *words, *PRIOR, *flags)
        return out / "model"

    def whole(self, out: Path, data: str, *flags: object, steps: int = 300, prior_steps: int = 150) -> Path:
        self.codec(out, data, *flags, steps=steps)
        self.codes(out, data)
        self.prior(out, steps=prior_steps)
        return out


def edited_codec(source: Path, out: Path, edit: Callable[[torch.nn.Module], object]) -> Path:
    """Write a codec with other weights."""
    codec = open_codec(source)
    with torch.no_grad():
        edit(codec)
    with new_folder(out) as staging:
        codec.save(staging)
    return out


def edited_prior(source: Path, out: Path, edit: Callable[[torch.nn.Module], object], **changes: object) -> Path:
    """Write a prior with other weights, or other facts."""
    prior = load_prior(source)
    with torch.no_grad():
        edit(prior.model)
    with new_folder(out) as staging:
        save_prior(replace(prior, **changes), staging)
    return out


def edited_store(source: Path, out: Path, edit: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """Write a code store with other rows, sealed as extract-codes would."""
    from hashlib import sha256

    from vq_prior.core.disk.code_store import shard_bytes

    shutil.rmtree(out, ignore_errors=True)
    index, shards = CodeStore.open(source).index, []
    for shard in index.shards:
        store = CodeStore.open(source, shard.split)
        rows = store.rows(np.arange(shard.first_row, shard.first_row + shard.num_rows))
        data = shard_bytes(index.columns, edit(shard.split, rows))
        (out / shard.file).parent.mkdir(parents=True, exist_ok=True)
        (out / shard.file).write_bytes(data)
        shards.append(replace(shard, sha256=sha256(data).hexdigest()))
    write_index(out, replace(index, shards=tuple(shards)))
    return out


def verdict(path: Path) -> list[str]:
    """Return the faults that a doctor's file names."""
    return [finding["fault"] for finding in json.loads(path.read_text())["findings"]]


def overfit(prior_folder: Path, out: Path, store: Path, *, rows: int, steps: int) -> Path:
    """Write a prior that was trained on `rows` rows of a store only, without any of what keeps it from that."""
    prior = load_prior(prior_folder)
    columns = CodeStore.open(store).rows(np.arange(rows))
    tokens = prior.layout.to_tokens((torch.from_numpy(columns["codes.0"].astype(np.int64)),))
    labels = torch.from_numpy(columns["label"])
    whole = torch.cat([prior.layout.prompt(labels)[:, None], tokens], dim=1)
    optimizer = torch.optim.AdamW(prior.model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    prior.model.train()
    for _ in range(steps):
        batch = whole[torch.randint(rows, (64,), generator=draw)]
        logits = prior.model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.model.eval()
    with new_folder(out) as staging:
        save_prior(prior, staging)
    return out
