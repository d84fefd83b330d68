"""`scripts/benchmark NAME`: one benchmark a file here; each is told what it needs by its own flags."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

BENCHMARKS = {
    "all": ("against", "steps of both stages, the dump and drawing, against the code of another clone"),
    "neighbour": ("neighbour", "all four jobs beside a busy process, and on an idle machine"),
    "lookup": ("lookup", "nearest-code lookup and the EMA step against other libraries"),
    "dump": ("dump", "images to codes on disk, against the encoder alone and a dump as people write it"),
    "train-vqvae": ("train_step", "a training step of stage one against plain PyTorch"),
    "train-prior": ("train_prior", "a training step of stage two against a stock Llama"),
    "recipe": ("recipe", "held-out nats of our default recipe of stage two and of a plain one, by seconds"),
    "sample": ("sample", "drawing token sequences against generate() of transformers"),
    "processes": ("processes", "two processes with one thread each against one with two threads, job by job"),
    "quantisers": ("quantisers", "quantisers by codebook size and code dimension: errors, use, and nats of a prior"),
    "levels": ("levels", "codecs of one and of several levels with their priors, in the same minutes"),
    "sharpness": ("sharpness", "perceptual terms of stage one, judged by a network that none of them knows"),
    "starts": ("starts", "a hundred starts of the adversarial term: is what is kept ever worse than before?"),
    "protocol": ("protocol", "one recipe of train-vqvae over several seeds, by the same measures"),
}


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Measures both stages.")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for name, (module, about) in BENCHMARKS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name != chosen:
            continue
        command.add_argument("--json", action="store_true", help="end with one line of JSON")
        command.add_argument("--threads", type=int, help="threads of the computation; left out: as torch chooses")
        import_module(module).add_flags(command)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    import_module(BENCHMARKS[arguments.benchmark][0]).run(arguments)


if __name__ == "__main__":
    main()
