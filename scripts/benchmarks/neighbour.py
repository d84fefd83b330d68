"""All four jobs beside another busy process, and on an idle machine.

`..._busy`: the defaults against one thread (OMP_NUM_THREADS=1), both beside one process that computes without end.
`..._idle`, with --against PATH: the defaults against those of a clone at another commit, nothing else running.
Ratios are the medians over the rounds of the other's seconds over those of our defaults: above 1 ours are faster.

A round starts new processes, as `all` does. What a unit of a job took is the mean over all that were done, so that the
steps spent on finding the number of threads count. Every pair is written to FOLDER when it is done; the same call goes
on where it stopped.
"""

import argparse
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from against import ROOT, Rounds, Tree, content_id, write_table
from timing import row, tell

JOBS = {"train_vqvae": "train-vqvae", "train_prior": "train-prior", "dump": "dump", "sample": "sample-16"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--against", type=Path, metavar="PATH", help="a clone at another commit, for the idle machine")
    parser.add_argument("--out", type=Path, default=Path("runs/neighbour"), metavar="FOLDER", help="what was measured")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), help="these jobs alone")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--num-images", type=int, default=4096, help="pictures of the table")
    parser.add_argument("--side", type=int, default=32, help="of a picture, in pixels")
    parser.add_argument("--steps", type=int, default=150, help="steps of a training in one round, 6 at least")
    parser.add_argument("--calls", type=int, default=6, help="calls that draw in one round")
    parser.set_defaults(of="mean")


def busy() -> "subprocess.Popen[bytes]":
    """Start a process that computes without end."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def measure(rounds: Rounds, table: Path, arguments: argparse.Namespace, *, idle: bool) -> None:
    """Do the rounds that are missing, of an idle machine or of a busy one."""
    end, other = ("idle", arguments.against) if idle else ("busy", ROOT)
    environment = {} if idle else {"OMP_NUM_THREADS": "1"}
    for number in range(arguments.rounds):
        jobs = [job for job in arguments.only if len(rounds.of(f"{job}_{end}")) <= number]
        if not jobs:
            continue
        places = [("defaults", ROOT, {}), ("theirs" if idle else "one_thread", other, environment)]
        first = number % 2
        with ExitStack() as stack:
            trees = [
                Tree(name, place, table, arguments, stack, environment)
                for name, place, environment in places[first:] + places[:first]
            ]
            for tree in trees:
                tree.ready()
            if not idle:
                neighbour = stack.enter_context(busy())
                stack.callback(neighbour.kill)
            for job in jobs:
                rounds.add(f"{job}_{end}", {tree.name: tree.seconds(JOBS[job]) for tree in trees})


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    if arguments.steps < 6:
        raise SystemExit(f"error: --steps must be at least 6, got {arguments.steps}")
    made_by = {"ours": content_id(ROOT)}
    made_by |= {name: getattr(arguments, name) for name in ("num_images", "side", "steps", "calls", "threads")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out.resolve() / "noise.parquet"
    write_table(table, arguments.num_images, arguments.side)
    measured = {"busy": Rounds(arguments.out, dict(made_by))}
    if arguments.against is not None:
        made_by["theirs"] = content_id(arguments.against)
        measured["idle"] = Rounds(arguments.out, made_by)
    rows, ratios = [], {}
    for end, rounds in measured.items():
        measure(rounds, table, arguments, idle=end == "idle")
        other = "theirs" if end == "idle" else "one_thread"
        for name in (f"{job}_{end}" for job in arguments.only):
            pairs = rounds.of(name)
            rows += [row(f"{name}_{who}", [pair[who] for pair in pairs]) for who in ("defaults", other)]
            ratios[name] = median(pair[other] / pair["defaults"] for pair in pairs)
    tell("neighbour", rows, ratios, arguments, made_by=made_by)
