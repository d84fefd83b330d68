"""Six jobs by the code of one tree, each timed when it is asked for; `against.py` starts one such process a tree.

Started with the tree on PYTHONPATH, so it imports nothing of the folder that it lies in. It uses what every version
has: `vq_prior.cli.main`, `vq_prior.VQPriorPipeline`, and a hook of torch on the steps of optimisers. Each line of its
input is the name of a job; each line of its answer is the seconds of one unit of it (a step, a dump, a call). What the
commands print goes to its stderr.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from statistics import fmean, median
from typing import Any

SKIPPED = 3  # the first steps of a training pay for what later ones find ready


class StepClock:
    """The moments at which the optimiser of a training ended its steps: the first of those that step most.

    Others may step before it, where the program tries what a step takes.
    """

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.start()
        register_optimizer_step_post_hook(self._after)

    def start(self) -> None:
        """Forget what was seen."""
        self.moments: dict[int, list[float]] = {}
        self._seen: list[object] = []  # kept, so that no two have one number

    def _after(self, optimizer: object, *_: object) -> None:
        import torch

        if id(optimizer) not in self.moments:
            self._seen.append(optimizer)
            self.moments[id(optimizer)] = []
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.moments[id(optimizer)].append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the times from the end of one step to the end of the next."""
        moments = max(self.moments.values(), key=len)[SKIPPED:]
        return [later - earlier for earlier, later in pairwise(moments)]


class Jobs:
    """The jobs, on a codec, codes and a prior that this tree made of the table: their speed is that of trained ones.

    Making them is also what pays for all that a process does once.
    """

    def __init__(self, table: Path, folder: Path, *, steps: int, calls: int, of: str) -> None:
        self.table, self.folder, self.steps, self.calls = table, folder, steps, calls
        self.of = {"median": median, "mean": fmean}[of]
        self.clock = StepClock()
        rmtree(folder, ignore_errors=True)
        self.run = folder / "run"
        command("train-vqvae", "--data", table, "--steps", 8, "--out", self.run)
        command("extract-codes", "--codec", self.run, "--data", table, "--out", self.run / "codes")
        command("train-prior", "--codes", self.run / "codes", "--codec", self.run, "--steps", 8, "--out", self.run)
        from vq_prior import VQPriorPipeline

        self.pipeline = VQPriorPipeline.from_pretrained(self.run / "model")

    def train_vqvae(self) -> float:
        """Return the seconds of a training step of stage one."""
        return self._step("train-vqvae", "--data", self.table)

    def train_prior(self) -> float:
        """Return the seconds of a training step of stage two."""
        return self._step("train-prior", "--codes", self.run / "codes")

    def _step(self, *words: object) -> float:
        self.clock.start()
        self._in_new_folder(*words, "--steps", self.steps)
        return self.of(self.clock.seconds())

    def dump(self) -> float:
        """Return the seconds of `extract-codes`, start and imports left out."""
        started = time.perf_counter()
        self._in_new_folder("extract-codes", "--codec", self.run, "--data", self.table)
        return time.perf_counter() - started

    def _in_new_folder(self, *words: object) -> None:
        out = self.folder / "out"
        rmtree(out, ignore_errors=True)
        command(*words, "--out", out)

    def sample(self, num_images: int) -> float:
        """Return the seconds of a call that draws so many images at once, codec included."""
        seconds = []
        for number in range(self.calls):
            started = time.perf_counter()
            self.pipeline(num_images, seed=number, batch_size=num_images, guidance_scale=1.0, output_type="np")
            seconds.append(time.perf_counter() - started)
        return self.of(seconds)

    def named(self) -> dict[str, Callable[[], float]]:
        """Return each job by its name."""
        jobs: dict[str, Callable[[], float]] = {
            "train-vqvae": self.train_vqvae,
            "train-prior": self.train_prior,
            "dump": self.dump,
        }
        return jobs | {f"sample-{n}": lambda n=n: self.sample(n) for n in (1, 16, 64)}


def command(*words: object) -> None:
    """Run a command of the tree in this process; one that fails ends the process."""
    from vq_prior.cli import main

    if code := main([str(word) for word in words]):
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {code}")


def answers() -> Any:
    """Return a file for the answers: what was stdout; what is printed from now on goes to stderr."""
    sys.stdout.flush()
    file = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return file


def serve() -> None:
    """Say that the jobs are ready, then do each one that a line of input names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--of", choices=("median", "mean"), required=True)
    arguments = parser.parse_args()
    told = answers()
    import vq_prior

    home = Path(vq_prior.__file__).resolve().parents[1]
    if home != arguments.tree.resolve():
        raise SystemExit(f"vq_prior was imported from {home}, not from {arguments.tree}")
    jobs = Jobs(
        arguments.table, arguments.folder, steps=arguments.steps, calls=arguments.calls, of=arguments.of
    ).named()
    print(json.dumps("ready"), file=told)
    for line in sys.stdin:
        gc.collect()  # what jobs before left; a full collection takes a third of a second, in whichever job it falls
        print(json.dumps(jobs[line.strip()]()), file=told)


if __name__ == "__main__":
    serve()
