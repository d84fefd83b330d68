"""One recipe of train-vqvae over several seeds, judged as the cells of `quantisers` are.

scripts/benchmark protocol --recipe cifar10-sonnet --seeds 0 1 2 --out FOLDER [--steps N]
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from cell import add_cell_flags, records, run_cell, run_missing, tell_cells


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_cell_flags(parser)
    parser.add_argument("--recipe", required=True, help="recipe of train-vqvae")


def run(arguments: argparse.Namespace) -> None:
    """Run the seeds that are missing and print their mean."""
    from vq_prior.cli.recipes import find_recipe
    from vq_prior.core.errors import UsageError

    try:
        recipe = find_recipe("train-vqvae", arguments.recipe)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if arguments.cell:
        run_cell(arguments.cell, replace(recipe, data="", out=Path()), arguments)
        return
    names, more = [arguments.recipe], ("--recipe", arguments.recipe)
    failed = [] if arguments.table else run_missing("protocol", names, arguments, *more)
    tell_cells("protocol", records(arguments.out, names), arguments)
    if failed:
        print(f"error: {len(failed)} seeds failed; the logs in {arguments.out / 'logs'} say why", file=sys.stderr)
        raise SystemExit(1)
