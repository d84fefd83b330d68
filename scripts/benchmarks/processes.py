"""Two processes with one thread each against one process with two threads, job by job, by the real commands.

Each job runs twice for a time: with much to do and with little. The difference is work alone, without the start of
Python, of the launcher and of the libraries, which two processes do twice. `ratios` are the throughput of two
processes over that of one. What is drawn and dumped is the same bytes in both (tests/distributed/test_processes.py).

The pictures are the first of a table of 32x32 JPEGs; the codec and the prior are trained for a moment with the default
settings, since speed does not depend on what they learnt.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory

from dump import DATA
from timing import RoundSeconds, faster_by, row, tell

LITTLE_AND_MUCH = {  # images dumped, images drawn, steps
    "dump": (8_192, 40_960),
    "generate": (256, 2_304),
    "train-vqvae": (20, 140),
    "train-prior": (20, 220),
}
HOW = {"one": ({"OMP_NUM_THREADS": "2"}, ()), "two": ({"OMP_NUM_THREADS": "1"}, ("--num-processes", "2"))}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--data", type=Path, default=DATA, help="parquet file of 32x32 JPEGs")
    parser.add_argument("--jobs", nargs="+", choices=list(LITTLE_AND_MUCH), default=list(LITTLE_AND_MUCH))
    parser.add_argument("--rounds", type=int, default=3)


def command(*words: object, more: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> float:
    """Run a command of vq-prior to its end and return the seconds it took."""
    started = time.perf_counter()
    full = [sys.executable, "-m", "vq_prior", *map(str, words), *more]
    done = subprocess.run(full, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(full)}\n{done.stderr}")
    return time.perf_counter() - started


class Jobs:
    """The four jobs, on pictures, a codec, codes and a prior made for them."""

    def __init__(self, table: Path, folder: Path) -> None:
        import pyarrow.parquet as pq

        self.folder, self.tables = folder, []
        pictures = pq.read_table(table)
        for count in LITTLE_AND_MUCH["dump"]:
            self.tables.append(folder / f"{count}.parquet")
            pq.write_table(pictures.slice(0, count), self.tables[-1], row_group_size=1000)
        self.run = folder / "run"
        command("train-vqvae", "--data", self.tables[1], "--steps", 20, "--out", self.run)
        command("extract-codes", "--codec", self.run, "--data", self.tables[0], "--out", self.run / "codes")
        command("train-prior", "--codes", self.run / "codes", "--codec", self.run, "--steps", 20, "--out", self.run)

    def seconds(self, job: str, how: str, *, much: bool) -> float:
        """Do a job once and return the seconds it took, starts included."""
        out = self.folder / "out"
        rmtree(out, ignore_errors=True)
        amount = LITTLE_AND_MUCH[job][much]
        words = {
            "dump": ["extract-codes", "--codec", self.run, "--data", self.tables[much]],
            "generate": ["generate", "--model", self.run / "model", "--num-images", amount],
            "train-vqvae": ["train-vqvae", "--data", self.tables[0], "--steps", amount],
            "train-prior": ["train-prior", "--codes", self.run / "codes", "--steps", amount],
        }[job]
        environment, more = HOW[how]
        return command(*words, "--out", out, more=more, environment=environment)


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    if not arguments.data.is_file():
        raise SystemExit(f"error: {arguments.data} does not exist; name a parquet file of 32x32 JPEGs with --data")
    names = [f"{job}_{how}" for job in arguments.jobs for how in HOW]
    seconds: RoundSeconds = {name: [] for name in names}
    with TemporaryDirectory(prefix="vq-prior-") as temporary:
        jobs = Jobs(arguments.data, Path(temporary))
        for number in range(arguments.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                job, _, how = name.rpartition("_")
                little, much = (jobs.seconds(job, how, much=much) for much in (False, True))
                seconds[name].append(much - little)
    rows = []
    for name, values in seconds.items():
        little, much = LITTLE_AND_MUCH[name.rpartition("_")[0]]
        unit = "steps" if name.startswith("train") else "images"
        rows.append(row(name, values, **{f"{unit}_per_second": (much - little) / median(values)}))
    ratios = {job: faster_by(f"{job}_two", f"{job}_one", seconds) for job in arguments.jobs}
    tell("processes", rows, ratios, arguments)
