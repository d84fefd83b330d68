"""From 32x32 JPEGs to codes on disk, against the encoder alone and against a dump as people write it.

The codec is that of the recipe `cifar10-sonnet` (the notebook's network, 512 codes of 64 numbers), untrained, in
float32. Nothing is cached: every round decodes every picture.

`ours_...`: what `extract-codes` does between "the data are checked" and "the store is there": decode, encode, look up,
write the shards. `command_...`: the whole function behind the command, which also reads the file, hashes every picture
and checks every header. `encoder_alone`: the encoder's forward pass without gradients on the same images in memory, at
the batch size that a trial finds best; no lookup. `encoder_in_our_calls`: the same in calls of as many rows as the dump
makes. `encode_in_memory`: `codec.encode` of them. `lmdb`: see baselines.py.
"""

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from timing import add_device_flag, device_of, faster_by, interleaved, require, row, tell, wait_for_device

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg" / "train.parquet"
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_device_flag(parser)
    parser.add_argument("--data", type=Path, default=DATA, help="parquet file of 32x32 JPEGs")
    parser.add_argument("--num-images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)


@contextlib.contextmanager
def decoder(*, fast: bool) -> Iterator[None]:
    """Decode with or without the extra `fast-jpeg`."""
    from stage1_vqvae.modalities.pictures import jpeg

    found = jpeg.simplejpeg
    jpeg.simplejpeg = found if fast else None
    try:
        yield
    finally:
        jpeg.simplejpeg = found


def write_codec(folder: Path) -> Any:
    """Write the untrained codec and return it."""
    from stage1_vqvae.model import load_codec
    from stage1_vqvae.settings import resolve
    from stage1_vqvae.train import new_codec
    from vq_prior.cli.recipes import find_recipe
    from vq_prior.core.modality import Facts

    facts = Facts(num_train=50_000, common_shape=(32, 32), short_side=32, channels=3)
    recipe = replace(find_recipe("train-vqvae", "cifar10-sonnet"), data="cifar10", out=folder)
    new_codec(resolve(recipe, facts, "cpu")).save_pretrained(folder)
    return load_codec(folder)


class Dumps:
    """The contenders, on the first pictures of a table."""

    def __init__(self, table: Path, num_images: int, folder: Path, device: Any) -> None:
        import pyarrow.parquet as pq
        import torch
        from baselines import OneHotEMA

        from stage1_vqvae.data.loading import load_rows
        from stage1_vqvae.data.sources import open_data
        from stage1_vqvae.settings import ExtractCodes

        rows = pq.read_table(table).slice(0, num_images)
        pq.write_table(rows, folder / "images.parquet", row_group_size=1000)
        self.folder = folder
        self.encoded = [value["bytes"] for value in rows.column("image").to_pylist()]
        self.codec = write_codec(folder / "codec").eval().to(device)
        self.settings = ExtractCodes(str(folder / "codec"), str(folder / "images.parquet"), folder / "codes")
        self.data = open_data(self.settings.data)
        form = self.codec.modality, self.codec.transform
        parts = [load_rows(part, *form) for part in (self.data.train, self.data.validation)]
        self.images = torch.cat([part.batch(range(len(part)), device) for part in parts])
        self.quantizer = OneHotEMA(code_dim=self.codec.quantizer.code_dim).eval().to(device)
        self.batch_size = min(BATCH_SIZES, key=self._seconds_at)

    def _seconds_at(self, batch_size: int) -> float:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            self.encoder_alone(batch_size, 512 if self.codec.device.type == "cpu" else None)
            wait_for_device()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def encoder_alone(self, batch_size: int | None = None, most: int | None = None) -> None:
        """Run the encoder alone on the images in memory."""
        import torch

        with torch.inference_mode():
            for images in self.images[:most].split(batch_size or self.batch_size):
                self.codec.encoder(images)

    def encode_in_memory(self) -> None:
        """Encode the images in memory to codes."""
        self.codec.encode(self.images)

    def shards(self, *, fast: bool) -> None:
        """Write the shards of a store."""
        from stage1_vqvae import extract
        from vq_prior.core.processes.runtime import start_runtime

        store = self.folder / "store"
        rmtree(store, ignore_errors=True)
        for split in ("train", "validation"):
            (store / split).mkdir(parents=True)
        with decoder(fast=fast), contextlib.redirect_stdout(io.StringIO()):
            extract._write_shards(self.settings, start_runtime("fp32"), self.codec, self.data, store)

    def command(self, *, fast: bool) -> None:
        """Do all that `extract-codes` does."""
        from stage1_vqvae.extract import extract_codes

        rmtree(self.settings.out, ignore_errors=True)
        with decoder(fast=fast), contextlib.redirect_stdout(io.StringIO()):
            extract_codes(self.settings)

    def lmdb(self) -> None:
        """Dump as people do."""
        import torch
        from baselines import dump_to_lmdb

        rmtree(self.folder / "lmdb", ignore_errors=True)
        workers = torch.get_num_threads()
        dump_to_lmdb(self.encoded, self.codec.encoder, self.quantizer, self.folder / "lmdb", workers=workers)


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    require(lmdb="lmdb")
    if device_of(arguments).type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    from stage1_vqvae.modalities.pictures import jpeg
    from vq_prior.core.processes.fixed_calls import rows_per_call

    if not arguments.data.is_file():
        raise SystemExit(f"error: {arguments.data} does not exist; name a parquet file of 32x32 JPEGs with --data")
    with TemporaryDirectory(prefix="vq-prior-") as temporary:
        dumps = Dumps(arguments.data, arguments.num_images, Path(temporary), device_of(arguments))
        decoders = {"pillow": False} | ({"fast_jpeg": True} if jpeg.simplejpeg is not None else {})
        contenders: dict[str, Callable[[], object]] = {}
        for name, fast in decoders.items():
            contenders[f"ours_{name}"] = lambda fast=fast: dumps.shards(fast=fast)
            contenders[f"command_{name}"] = lambda fast=fast: dumps.command(fast=fast)
        calls = rows_per_call(dumps.codec.device, 32 * 32)
        contenders |= {"encoder_alone": dumps.encoder_alone, "encode_in_memory": dumps.encode_in_memory}
        contenders["encoder_in_our_calls"] = lambda: dumps.encoder_alone(calls)
        contenders["lmdb"] = dumps.lmdb
        seconds = interleaved(contenders, rounds=arguments.rounds)
    n = len(dumps.encoded)
    rows = [row(name, values, images_per_second=n / median(values)) for name, values in seconds.items()]
    ours = [f"ours_{name}" for name in decoders]
    best = min(ours, key=lambda name: median(seconds[name]))
    ratios = {"of_encoder": faster_by(best, "encoder_alone", seconds)}
    ratios |= {name.replace("ours", "of_encoder"): faster_by(name, "encoder_alone", seconds) for name in ours}
    ratios["of_encoder_in_our_calls"] = faster_by(best, "encoder_in_our_calls", seconds)
    ratios |= {name.replace("ours", "of_encode"): faster_by(name, "encode_in_memory", seconds) for name in ours}
    ratios["vs_lmdb"] = faster_by(best, "lmdb", seconds)
    ratios["command_vs_lmdb"] = faster_by(best.replace("ours", "command"), "lmdb", seconds)
    tell("dump", rows, ratios, arguments, num_images=n, encoder_batch_size=dumps.batch_size)
