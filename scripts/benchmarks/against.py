"""This code against that of another clone: a training step of each stage, the dump, and drawing 1, 16 and 64 images.

PATH is a plain clone at another commit. A round starts one process a tree, by the same Python with the tree on
PYTHONPATH (`jobs_of_tree.py`), and does every job in both, one after the other; which tree is started first, and which
does a job first, changes with every round. Two processes of the same code can differ by some percent for as long as
they live (where their memory happens to lie), so a pair that stayed for all rounds would measure its own luck.
`ratios` are the medians over the rounds of their seconds over ours: above 1 this code is faster.

Every pair is written to FOLDER when it is done; the same call goes on where it stopped. The pictures are coloured
noise of 32x32 as JPEGs, and all settings are the defaults: a step costs the same, whatever is learnt.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from statistics import median
from types import MappingProxyType
from typing import Any

from timing import row, tell

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")
JOBS = ("train-vqvae", "train-prior", "dump", "sample-1", "sample-16", "sample-64")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--against", type=Path, required=True, metavar="PATH", help="a clone at another commit")
    parser.add_argument("--out", type=Path, default=Path("runs/against"), metavar="FOLDER", help="what was measured")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="these jobs alone")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--num-images", type=int, default=8192, help="pictures of the table")
    parser.add_argument("--side", type=int, default=32, help="of a picture, in pixels")
    parser.add_argument("--steps", type=int, default=30, help="steps of a training in one round, 6 at least")
    parser.add_argument("--calls", type=int, default=8, help="calls that draw in one round")
    parser.set_defaults(of="median")  # the time of a unit of a job, of all that were done


def write_table(path: Path, num_images: int, side: int) -> None:
    """Write coloured noise of ten classes as a parquet file of JPEGs."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    generator, encoded = np.random.default_rng(0), []
    for _ in range(num_images):
        small = Image.fromarray(generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    columns = {"image": encoded, "label": [number % 10 for number in range(num_images)]}
    pq.write_table(pa.table(columns), path, row_group_size=1000)


def content_id(tree: Path) -> str:
    """Return a hash of the code of a tree."""
    files = sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))
    if not files:
        raise SystemExit(f"error: {tree} holds no {PACKAGES[0]}; --against names a clone of this repository")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(tree).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Tree:
    """The process that works with the code of one tree, until `stack` ends it."""

    def __init__(
        self,
        name: str,
        tree: Path,
        table: Path,
        arguments: argparse.Namespace,
        stack: ExitStack,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        folder = arguments.out.resolve()
        self.name, self.log = name, folder / f"{name}.txt"
        worker = Path(__file__).resolve().with_name("jobs_of_tree.py")
        words = [sys.executable, "-P", worker, "--tree", tree.resolve(), "--table", table, "--folder", folder / name]
        words += ["--steps", arguments.steps, "--calls", arguments.calls, "--of", arguments.of]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                list(map(str, words)),
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(tree.resolve())} | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        stack.callback(rmtree, folder / name, ignore_errors=True)
        stack.callback(self.process.communicate)  # ends it: no more lines

    def ready(self) -> None:
        """Return when it can do jobs; two trees may get there side by side."""
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the jobs of {self.name} ended with code {self.process.wait()}, see {self.log}")
        return json.loads(line)

    def seconds(self, job: str) -> float:
        """Do a job and return the seconds of one unit of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(job + "\n")
        self.process.stdin.flush()
        return float(self._answer())


class Rounds:
    """What was measured so far, of each job one pair of seconds a round; a file a job.

    Args:
        folder: Where the files lie.
        made_by: What has to be the same for rounds to stand beside each other.
    """

    def __init__(self, folder: Path, made_by: dict[str, Any]) -> None:
        self.folder, self.made_by = folder, made_by

    def of(self, job: str) -> list[dict[str, float]]:
        """Return the rounds of a job.

        Raises:
            SystemExit: If they are of other code, or were made in another way.
        """
        path = self.folder / f"{job}.json"
        if not path.exists():
            return []
        found = json.loads(path.read_text())
        if found["made_by"] != self.made_by:
            raise SystemExit(f"error: {path} holds rounds of other code or sizes; name another folder with --out")
        return list(found["rounds"])

    def add(self, job: str, pair: dict[str, float]) -> None:
        """Write one more round of a job."""
        whole = {"made_by": self.made_by, "rounds": [*self.of(job), pair]}
        staged = self.folder / f".{job}.json"
        staged.write_text(json.dumps(whole, indent=1))
        staged.replace(self.folder / f"{job}.json")


def measure(rounds: Rounds, arguments: argparse.Namespace) -> None:
    """Do every round that is missing, both trees in turns."""
    missing = {job: arguments.rounds - len(rounds.of(job)) for job in arguments.only}
    if not any(count > 0 for count in missing.values()):
        return
    table = arguments.out.resolve() / "noise.parquet"
    write_table(table, arguments.num_images, arguments.side)
    for number in range(arguments.rounds):
        jobs = [job for job, count in missing.items() if arguments.rounds - count <= number]
        if jobs:
            _round(number, jobs, rounds, table, arguments)


def _round(number: int, jobs: list[str], rounds: Rounds, table: Path, arguments: argparse.Namespace) -> None:
    """Do these jobs once in a new process of each tree."""
    places = [("ours", ROOT), ("theirs", arguments.against)]
    first = number % 2
    with ExitStack() as stack:
        trees = [Tree(name, place, table, arguments, stack) for name, place in places[first:] + places[:first]]
        for tree in trees:
            tree.ready()
        for job in jobs:
            rounds.add(job, {tree.name: tree.seconds(job) for tree in trees})


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    if arguments.steps < 6:
        raise SystemExit(f"error: --steps must be at least 6, got {arguments.steps}")
    made_by = {"ours": content_id(ROOT), "theirs": content_id(arguments.against)}
    made_by |= {name: getattr(arguments, name) for name in ("num_images", "side", "steps", "calls", "threads")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    rounds = Rounds(arguments.out, made_by)
    measure(rounds, arguments)
    rows, ratios = [], {}
    for job in arguments.only:
        pairs = rounds.of(job)
        rows += [row(f"{job}_{name}", [pair[name] for pair in pairs]) for name in ("ours", "theirs")]
        ratios[job] = median(pair["theirs"] / pair["ours"] for pair in pairs)
    tell("all", rows, ratios, arguments, made_by=made_by)
